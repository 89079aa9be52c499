"""Append tensors to an external data file, one at a time, aligned so that it can be mapped.

In: numpy arrays. Out: ``TensorProto`` that point into ``model.onnx.data``.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# Page size: onnxruntime maps external data, and can only map from a page boundary.
ALIGNMENT: Final = 4096
INLINE_BYTES: Final = 1024  # smaller tensors stay in the graph: shapes, indices, scalars


class WeightFile:
    """Writes ``model.onnx.data``. Use as a context manager; nothing is kept in memory."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.written_bytes = 0
        self._file: BinaryIO = path.open("xb")

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, name: str, array: NDArray[Any]) -> TensorProto:
        """Append one tensor and return the initializer that refers to it."""
        array = np.ascontiguousarray(array)
        if array.nbytes < INLINE_BYTES:
            return numpy_helper.from_array(array, name)
        padding = -self.written_bytes % ALIGNMENT
        self._file.write(b"\0" * padding)
        offset = self.written_bytes + padding
        self._file.write(array.reshape(-1).view(np.uint8).data)
        self.written_bytes = offset + array.nbytes
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": self.path.name, "offset": str(offset), "length": str(array.nbytes)}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        return tensor

"""Append tensors to an external data file, one at a time, aligned so that it can be mapped.

In: numpy arrays. Out: ``TensorProto`` that point into ``model.onnx.data``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from prm_edge_runtime.errors import ExportError

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
        if array.nbytes < INLINE_BYTES:
            return numpy_helper.from_array(np.ascontiguousarray(array), name)
        return self.add_blocks(name, array.shape, array.dtype, (array,))

    def add_blocks(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        blocks: Iterable[NDArray[Any]],
    ) -> TensorProto:
        """Append one tensor that is given some rows at a time, however small it is."""
        padding = -self.written_bytes % ALIGNMENT
        self._file.write(b"\0" * padding)
        offset = self.written_bytes + padding
        length = 0
        for block in blocks:
            length += block.nbytes
            self._file.write(np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8).data)
        if length != math.prod(shape) * dtype.itemsize:
            raise ExportError(
                f"{name} of shape {list(shape)} was given {length} bytes; please report this"
            )
        self.written_bytes = offset + length
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(dtype),
            dims=shape,
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": self.path.name, "offset": str(offset), "length": str(length)}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        return tensor

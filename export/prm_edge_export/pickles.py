"""Weights stored as pickles, read without running one: torch's restricted unpickler, mapped.

In: a ``pytorch_model*.bin`` of today's zip form. Out: its tensors, in the form of safetensors'
handles. Anything that wants more than tensors and plain containers is refused.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from prm_edge_runtime.errors import CheckpointError

# torch's name -> safetensors' name; other kinds keep torch's own, and are refused later by name
DTYPES: Final[dict[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


class _Slice:
    """The part of safetensors' slices that is used here."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return DTYPES.get(self._tensor.dtype, str(self._tensor.dtype))

    def __getitem__(self, rows: slice) -> torch.Tensor:
        return self._tensor[rows].detach()


class _Handle:
    """The part of safetensors' handles that is used here."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def keys(self) -> Iterator[str]:
        return iter(self._tensors)

    def get_slice(self, name: str) -> _Slice:
        return _Slice(self._tensors[name])

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach()


@contextmanager
def open_pickle(path: Path) -> Iterator[Any]:
    """Map the tensors of a ``.bin`` file.

    Raises:
        CheckpointError: when it wants to run code, is no file of tensors, or claims more
            than it holds.
        FileNotFoundError: when it is missing.
    """
    size = path.stat().st_size
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is a pickle that asks for more than tensors, and is not run "
            f"({_wanted(error)}); use a safetensors copy of the checkpoint"
        ) from None
    except Exception as error:  # torch raises many unrelated types for a damaged file
        raise CheckpointError(
            f"{path} cannot be mapped as a pickle of tensors ({_first_sentence(error)}); download "
            "it again, or save it again with save_pretrained(safe_serialization=True)"
        ) from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} must hold a dictionary of tensors, got {type(loaded)}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path} must hold tensors by name, got {type(value).__name__} for {name!r}"
            )
        if value.layout is not torch.strided:
            raise CheckpointError(f"{path}: tensor {name!r} is {value.layout}, which is not read")
        if value.nbytes > size:
            raise CheckpointError(
                f"{path}: tensor {name!r} of shape {list(value.shape)} claims more than the file's "
                f"{size} bytes"
            )
    yield _Handle(loaded)


def _wanted(error: Exception) -> str:
    # torch's own text recommends to load without the restriction: it is not passed on
    found = re.search(r"\b(?:GLOBAL|global:?) ([\w.]+\.[\w.]+)", str(error))
    return f"it names {found[1]}" if found else "it is not plain data"


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:200]

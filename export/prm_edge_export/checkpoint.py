"""Open a checkpoint folder without trusting it: JSON and safetensors are read, nothing is run.

In: a folder in Hugging Face form. Out: its ``config.json`` and lazily read tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from prm_edge_runtime.errors import CheckpointError, UnsupportedError

CONFIG_NAME: Final = "config.json"
TOKENIZER_NAME: Final = "tokenizer.json"
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_JSON_BYTES: Final = 64 * 1024 * 1024
FLOATS: Final = {"F64", "F32", "F16", "BF16"}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of bounded size.

    Raises:
        CheckpointError: when it is missing, too large, not JSON or not an object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {size} bytes, more than {MAX_JSON_BYTES}")
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing; pass a folder saved with save_pretrained()"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data


class Checkpoint:
    """A checkpoint folder: configuration and lazily read weights. Use as a context manager."""

    def __init__(self, root: Path) -> None:
        """Open the folder.

        Raises:
            CheckpointError: when it is no folder, or lacks config.json or readable weights.
            UnsupportedError: for weights in a form that is known and not read.
        """
        if not root.is_dir():
            what = "a file" if root.is_file() else "missing"
            raise CheckpointError(
                f"checkpoint {root} is {what}; pass a local folder with config.json, "
                "tokenizer.json and *.safetensors"
            )
        self.root: Final = root
        self.config: Final = read_json(root / CONFIG_NAME)
        if self.config.get("quantization_config"):
            method = self.config["quantization_config"]
            name = method.get("quant_method", "unknown") if isinstance(method, dict) else method
            raise UnsupportedError(
                f"{root} is quantized already ({name}); export the unquantized checkpoint"
            )
        self.tensors: Final = Tensors(root)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.tensors.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies: ``dtype`` in safetensors' spelling."""

    file: str
    shape: tuple[int, ...]
    dtype: str


class Tensors:
    """The weights of a checkpoint, read one tensor at a time; remembers which were used."""

    def __init__(self, root: Path) -> None:
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self.info: dict[str, TensorInfo] = {}
        self.used: set[str] = set()
        for name, expected in _weight_files(root).items():
            self._open(root, name, expected)

    def _open(self, root: Path, name: str, expected: set[str] | None) -> None:
        try:
            handle = self._stack.enter_context(safe_open(root / name, framework="pt"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{root / name} is missing; download every shard that {INDEX} names"
            ) from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{root / name} cannot be read as safetensors ({error}); download it again"
            ) from error
        self._files[name] = handle
        keys = set(handle.keys())
        if expected is not None and expected - keys:
            missing = ", ".join(sorted(expected - keys)[:3])
            raise CheckpointError(f"{root / name} lacks tensors that {INDEX} puts there: {missing}")
        for key in sorted(keys):
            if key in self.info:
                raise CheckpointError(
                    f"tensor {key!r} is in {self.info[key].file} and in {name}; keep one of them"
                )
            view = handle.get_slice(key)
            self.info[key] = TensorInfo(
                file=name, shape=tuple(view.get_shape()), dtype=str(view.get_dtype())
            )

    def __contains__(self, name: str) -> bool:
        return name in self.info

    def __iter__(self) -> Iterator[str]:
        return iter(self.info)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            CheckpointError: when there is none of that name.
        """
        return self._info(name).shape

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.info[name]
        except KeyError:
            raise CheckpointError(
                f"the checkpoint has no tensor {name!r}, which its config.json implies; "
                "was it saved whole?"
            ) from None

    def torch(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Read a tensor as float32.

        Raises:
            CheckpointError: when it is missing, has another shape, or is not finite.
            UnsupportedError: when it is not stored as floating point.
        """
        info = self._info(name)
        if info.dtype not in FLOATS:
            raise UnsupportedError(
                f"tensor {name!r} is stored as {info.dtype}; only {', '.join(sorted(FLOATS))} "
                "can be exported: use the unquantized checkpoint"
            )
        if info.shape != shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(info.shape)}, config.json implies {list(shape)}"
            )
        try:
            tensor: torch.Tensor = self._files[info.file].get_tensor(name).to(torch.float32)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"tensor {name!r} cannot be read: {error}") from error
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"tensor {name!r} holds values that are not finite; the checkpoint is damaged"
            )
        self.used.add(name)
        return tensor

    def numpy(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Read a tensor as float32; see :meth:`torch`."""
        array: NDArray[np.float32] = self.torch(name, shape).numpy()
        return array

    def close(self) -> None:
        """Close every shard."""
        self._stack.close()
        self._files.clear()


def _weight_files(root: Path) -> dict[str, set[str] | None]:
    """File name -> tensors the index puts there (None when there is no index)."""
    if (root / INDEX).is_file():
        weight_map = read_json(root / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{root / INDEX} has no weight_map")
        files: dict[str, set[str] | None] = {}
        for tensor, name in weight_map.items():
            if not isinstance(name, str) or Path(name).name != name or "\\" in name:
                raise CheckpointError(
                    f"{root / INDEX} names the shard {name!r}; a shard is a plain file name"
                )
            found = files.setdefault(name, set())
            if found is not None:
                found.add(str(tensor))
        return files
    if (root / SINGLE).is_file():
        return {SINGLE: None}
    if (root / "adapter_config.json").is_file():
        raise UnsupportedError(
            f"{root} is a LoRA adapter; merge it into its base first (peft: merge_and_unload(), "
            "then save_pretrained())"
        )
    if any(root.glob("pytorch_model*.bin")):
        raise UnsupportedError(
            f"{root} stores its weights as pickles (pytorch_model*.bin), which are not read; "
            "save it again with save_pretrained(safe_serialization=True)"
        )
    raise CheckpointError(f"{root} has no {SINGLE} and no {INDEX}; pass a checkpoint with weights")

"""Open a checkpoint folder without trusting it: JSON and tensors are read, nothing is run.

In: a folder in Hugging Face form. Out: its ``config.json`` and lazily read tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from prm_edge_runtime.errors import CheckpointError, UnsupportedError

from .config_json import TOKENIZER_NAME, read_json
from .pickles import open_pickle
from .quantized import refuse_quantized_config, refuse_quantized_tensors
from .safetensors_header import explain

CONFIG_NAME: Final = "config.json"
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
PICKLE: Final = "pytorch_model.bin"
REWARD_FILE: Final = "reward_head.pt"  # the head of ReasonFlux-PRM-1.5B, apart from its weights
REWARD_NAME: Final = "reward_head"
KINDS_FILE: Final = "error_kinds.safetensors"  # a head that names errors, see error_kinds.py
KINDS_NAME: Final = "error_kinds"
PICKLE_INDEX: Final = "pytorch_model.bin.index.json"
ROWS_AT_ONCE: Final = 8192  # of an embedding
EMBEDDING_ENDING: Final = "model.embed_tokens.weight"
FLOATS: Final = {"F64", "F32", "F16", "BF16"}


class Checkpoint:
    """A checkpoint folder: configuration and lazily read weights. Use as a context manager.

    ``folders``: where its other files are looked for, in this order. ``origin``: what the
    provenance of a package says about where it came from.
    """

    root: Path
    folders: tuple[Path, ...]
    origin: dict[str, str]
    config: dict[str, Any]
    tensors: Tensors

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
                "tokenizer.json and *.safetensors, or a hub id such as org/name"
            )
        self.root = root
        self.folders = (root,)
        self.origin = {}
        self.config = read_json(root / CONFIG_NAME)
        refuse_quantized_config(root, self.config)
        self.tensors = Tensors(root, weight_files(root))

    def find(self, name: str) -> Path:
        """Path of a file of the checkpoint: in the first folder that has it."""
        paths = [folder / name for folder in self.folders]
        return next((path for path in paths if path.is_file()), paths[0])

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files are: one folder's, never a mixture of two."""
        return self.find(TOKENIZER_NAME).parent

    def identity(self) -> dict[str, Path]:
        """The files that decide a score besides the tokenizer, by the name they are known by."""
        names = (CONFIG_NAME, *sorted({info.file for info in self.tensors.info.values()}))
        return {name: self.root / name for name in names}

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
    """Where one tensor lies, under the name ``stored``: ``dtype`` in safetensors' spelling."""

    file: str
    stored: str
    shape: tuple[int, ...]
    dtype: str


class Tensors:
    """The weights of a checkpoint, read one tensor at a time; remembers which were used.

    A file is mapped for as long as one tensor of it is read, so that what was read leaves memory.
    """

    def __init__(
        self, root: Path, files: Mapping[str, set[str] | None], *, plain: bool = True
    ) -> None:
        """Open ``files``: name -> tensors an index puts there, None when there is no index.

        ``plain``: drop what a wrapper put before the names.
        """
        self.root = root
        self._closed = False
        self.info: dict[str, TensorInfo] = {}
        self.used: set[str] = set()
        for name, expected in files.items():
            self._list(root, name, expected)
        for name, prefix in ((REWARD_FILE, REWARD_NAME), (KINDS_FILE, KINDS_NAME)):
            if (root / name).is_file():
                self._list(root, name, None, prefix=f"{prefix}.")
        refuse_quantized_tensors(
            root, ((info.file, name, info.dtype) for name, info in self.info.items())
        )
        if plain:
            self.info = _plain_names(self.info)

    def _list(self, root: Path, name: str, expected: set[str] | None, prefix: str = "") -> None:
        try:
            with _opened(root / name) as handle:
                self._note(handle, root, name, expected, prefix)
        except FileNotFoundError:
            held = f" (tensor {min(expected)!r} and others)" if expected else ""
            raise CheckpointError(
                f"{root / name} is missing; download every shard that the index names{held}"
            ) from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{root / name} cannot be read as safetensors "
                f"({explain(root / name) or error}); download it again"
            ) from error

    def _note(
        self, handle: Any, root: Path, name: str, expected: set[str] | None, prefix: str
    ) -> None:
        keys = set(handle.keys())
        if expected is not None and expected - keys:
            missing = ", ".join(sorted(expected - keys)[:3])
            raise CheckpointError(
                f"{root / name} lacks tensors that the index puts there: {missing}"
            )
        for stored in sorted(keys):
            key = prefix + stored
            if key in self.info:
                raise CheckpointError(
                    f"tensor {key!r} is in {self.info[key].file} and in {name}; keep one of them"
                )
            view = handle.get_slice(stored)
            self.info[key] = TensorInfo(
                file=name, stored=stored, shape=tuple(view.get_shape()), dtype=str(view.get_dtype())
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
                f"{self.root}: the checkpoint has no tensor {name!r}, which its config.json "
                "implies; was it saved whole?"
            ) from None

    def where(self, name: str) -> str:
        """A tensor and its file, for messages."""
        return f"{self.root / self.info[name].file}: tensor {name!r}"

    def rows(self, name: str, rows: tuple[int, ...], width: int) -> torch.Tensor:
        """Read some rows of a matrix as float32. -> (len(rows), width)

        Raises:
            CheckpointError, UnsupportedError: see :meth:`torch`.
        """
        whole = self._info(name).shape
        if len(whole) != 2:
            raise CheckpointError(f"{self.where(name)} has shape {list(whole)}, expected rank 2")
        return self.torch(name, (whole[0], width), rows)

    def torch(
        self, name: str, shape: tuple[int, ...], rows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Read a tensor of this shape, or only some rows of it, as float32.

        Raises:
            CheckpointError: when it is missing, has another shape, or is not finite.
            UnsupportedError: when it is not stored as floating point.
        """
        info = self._info(name)
        if info.dtype not in FLOATS:
            raise UnsupportedError(
                f"{self.where(name)} is stored as {info.dtype}; only {', '.join(sorted(FLOATS))} "
                "can be exported: use the unquantized checkpoint"
            )
        if info.shape != shape:
            raise CheckpointError(
                f"{self.where(name)} has shape {list(info.shape)}, config.json implies "
                f"{list(shape)}"
            )
        if self._closed:
            raise CheckpointError(f"{self.root}: the checkpoint was closed; open it again")
        try:
            with _opened(self.root / info.file) as file:
                tensor = _read(file, info.stored, rows).to(torch.float32)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.where(name)} cannot be read: {error}") from error
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{self.where(name)} holds values that are not finite; the checkpoint is damaged"
            )
        self.used.add(name)
        return tensor

    def numpy(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Read a tensor as float32; see :meth:`torch`."""
        array: NDArray[np.float32] = self.torch(name, shape).numpy()
        return array

    def row_blocks(self, name: str, shape: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
        """Read a matrix some rows at a time; see :meth:`torch`. -> (rows, columns) each"""
        for start in range(0, shape[0], ROWS_AT_ONCE):
            yield self.torch(name, shape, range(start, min(start + ROWS_AT_ONCE, shape[0]))).numpy()

    def close(self) -> None:
        """Refuse to read from now on."""
        self._closed = True


def _opened(path: Path) -> AbstractContextManager[Any]:
    opened: AbstractContextManager[Any] = (
        open_pickle(path) if path.suffix in (".bin", ".pt") else safe_open(path, framework="pt")
    )
    return opened


def _read(file: Any, stored: str, rows: Sequence[int] | None) -> torch.Tensor:
    if rows is None:
        whole: torch.Tensor = file.get_tensor(stored)
        return whole
    view = file.get_slice(stored)
    if isinstance(rows, range):
        block: torch.Tensor = view[rows.start : rows.stop]
        return block
    return torch.cat([view[row : row + 1] for row in rows])


def _plain_names(info: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Drop the prefix that a wrapper around a decoder put before the names of its tensors.

    Raises:
        CheckpointError: when two tensors would get one name.
    """
    tables = [name for name in info if name.endswith(EMBEDDING_ENDING)]
    if len(tables) != 1 or tables[0] == EMBEDDING_ENDING:
        return info
    prefix = tables[0].removesuffix(EMBEDDING_ENDING)
    plain: dict[str, TensorInfo] = {}
    for name, entry in info.items():
        short = name.removeprefix(prefix)
        if short in plain:
            raise CheckpointError(
                f"tensors {plain[short].stored!r} and {name!r} are both {short!r} without the "
                f"prefix {prefix!r}; the checkpoint holds two models"
            )
        plain[short] = entry
    return plain


def weight_files(root: Path) -> dict[str, set[str] | None]:
    """File name -> tensors the index puts there (None when there is no index).

    Raises:
        CheckpointError: when there are none, or the index cannot be followed.
    """
    for single, index in ((SINGLE, INDEX), (PICKLE, PICKLE_INDEX)):
        if (root / index).is_file():
            return _indexed_files(root / index, Path(single).suffix)
        if (root / single).is_file():
            return {single: None}
    raise CheckpointError(
        f"{root} has no {SINGLE}, no {PICKLE} and no index of either; pass a checkpoint with "
        "weights"
    )


def _indexed_files(index: Path, suffix: str) -> dict[str, set[str] | None]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    files: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} names the shard {name!r}; a shard is a plain file name")
        if Path(name).suffix != suffix:
            raise CheckpointError(f"{index} names the shard {name!r}, which is no {suffix} file")
        files.setdefault(name, set()).add(str(tensor))
    return dict(files)

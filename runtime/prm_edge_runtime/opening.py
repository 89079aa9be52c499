"""What every record of a package begins with, whose keys and values the package holds.

In: the file that the manifest names. Out: blocks that are laid into a cache in place of a run.
Imports numpy. P tokens of the opening, S new tokens, N read positions, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from .errors import EngineError, PackageFormatError
from .manifest import Variant
from .memory import Cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opening:
    """``ids`` (P,) and their keys and values ``kv`` (2 * layers, heads, P, D)."""

    ids: NDArray[np.int64]
    kv: NDArray[np.float32]

    def lay(
        self, cache: Cache, past: int, ids: NDArray[np.int64], reads: NDArray[np.int64]
    ) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        """Lay what belongs behind ``past`` tokens into a cache. (S,), (N,)

        -> the tokens that are there then, and what is left to run.

        Raises:
            EngineError: when a record begins otherwise, a step is read here, or there is no room.
        """
        expected = self.ids[past : past + len(ids)]
        found = ids[: len(expected)]
        if not np.array_equal(found, expected) or (len(reads) and reads[0] < len(expected)):
            raise EngineError(
                f"a record begins with the tokens {found.tolist()[:8]}; those of this package "
                f"begin with {expected.tolist()[:8]}, which no step is read at"
            )
        if not len(expected):
            return past, ids, reads
        end = past + len(expected)
        if end > cache.room:
            raise EngineError(f"{end} tokens do not fit into a cache of {cache.room}")
        cache.write(past, self.kv[:, :, past:end])
        return end, ids[len(expected) :], reads - len(expected)


def read_opening(folder: Path, variant: Variant) -> Opening | None:
    """Read the prefix of a variant whose files are in ``folder``; None when it has none.

    Raises:
        PackageFormatError: when the file cannot be read, has another size, or is not finite.
    """
    prefix = variant.prefix
    if prefix is None:
        return None
    path = folder / PurePosixPath(prefix.file).name
    shape = (2 * variant.layers, variant.kv_heads, len(prefix.ids), variant.head_dim)
    try:
        kv = np.fromfile(path, dtype="<f4").astype(np.float32, copy=False)
    except OSError as error:
        raise PackageFormatError(f"{path} cannot be read: {error.strerror}") from error
    if kv.size != np.prod(shape) or not np.isfinite(kv).all():
        raise PackageFormatError(
            f"{path} must hold {np.prod(shape)} finite numbers for the prefix of variant "
            f"{variant.name!r}, and does not; export the checkpoint again"
        )
    return Opening(ids=np.array(prefix.ids, dtype=np.int64), kv=kv.reshape(shape))

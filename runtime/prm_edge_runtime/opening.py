"""The tokens that every record of a package begins with, whose keys and values it stores.

In: a variant and its folder. Out: these tokens with their keys and values. Imports numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from .errors import EngineError, PackageFormatError
from .manifest import Variant


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opening:
    """The tokens that every record begins with, and their keys and values.

    ``ids`` (P,), ``kv`` (2 * layers, 1, heads, P, D); P is 0 where the package has none.
    """

    ids: NDArray[np.int64]
    kv: NDArray[np.float32]

    def without(
        self, past: int, ids: NDArray[np.int64], reads: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What is left to run of tokens that come after ``past`` others. (S,), (N,)

        Raises:
            EngineError: when a record does not begin with these tokens, or a step is read at one.
        """
        expected = self.ids[past : past + len(ids)]
        found = ids[: len(expected)]
        if not np.array_equal(found, expected) or (len(reads) and reads[0] < len(expected)):
            raise EngineError(
                f"a record begins with the tokens {found.tolist()[:8]}; those of this package "
                f"begin with {expected.tolist()[:8]}, which no step is read at"
            )
        return ids[len(expected) :], reads - len(expected)


def read_opening(folder: Path, variant: Variant) -> Opening | None:
    """Read the prefix of a variant whose files are in ``folder``; None when it has none.

    Raises:
        PackageFormatError: when the file cannot be read, has another size, or is not finite.
    """
    prefix = variant.prefix
    if prefix is None:
        return None
    path = folder / PurePosixPath(prefix.file).name
    shape = (2 * variant.layers, 1, variant.kv_heads, len(prefix.ids), variant.head_dim)
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

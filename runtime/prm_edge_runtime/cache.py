"""Keys and values of tokens, kept so that forks share them and undo frees them.

Each node of a tree holds those of its own tokens and never changes; a run needs them as one buffer,
which is filled from the nodes and kept between runs, so that the next step copies nothing. What
belongs to the same tokens from the start is the same to the bit, so token ids say what is there.
Shapes: L layers, G key/value heads, D head size, S tokens of a node, N read positions, W outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .engine import DecoderEngine
from .memory import Block, Cache

_ROOM: Final = 64  # tokens; a buffer grows by doubling, in multiples of it
_NO_IDS: Final = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """A prompt (no parent), or one step after its parent's.

    ``depth``: steps up to here. ``n_tokens``: tokens up to here. ``ids``: its own tokens (S,), and
    ``kv`` theirs (2L, G, S, D), in the memory of the device that runs the model. ``row``: the
    outputs at its last token (W,), None where nobody read it. ``kinds``: probabilities of the kinds
    of error it may be, None where the package names none. Where nothing is cached there is ``step``
    instead, and ``revised``: the scores of all steps up to here, because there a step changes the
    scores of those before it; ``revised_kinds`` likewise.
    """

    parent: Node | None = field(repr=False)
    depth: int
    n_tokens: int
    score: float = float("nan")
    ids: NDArray[np.int64] = field(default_factory=lambda: _NO_IDS, repr=False)
    kv: Block | None = field(default=None, repr=False)
    row: NDArray[np.float32] | None = field(default=None, repr=False)
    kinds: tuple[float, ...] | None = field(default=None, repr=False)
    step: str = ""
    revised: tuple[float, ...] | None = None
    revised_kinds: tuple[tuple[float, ...] | None, ...] | None = field(default=None, repr=False)

    @property
    def start(self) -> int:
        """Where its own tokens begin."""
        return self.parent.n_tokens if self.parent else 0

    def path(self) -> list[Node]:
        """The nodes from the prompt to this one."""
        found = []
        at: Node | None = self
        while at is not None:
            found.append(at)
            at = at.parent
        return found[::-1]


class Buffer:
    """One row's cache with room to grow, and the tokens that are in it. Not thread-safe."""

    def __init__(self, engine: DecoderEngine, tokens: int = 0) -> None:
        self._engine = engine
        self._cache: Cache = engine.new_cache(_rounded(tokens + 1))
        self._ids = _NO_IDS

    def shared(self, ids: NDArray[np.int64]) -> int:
        """How many of these tokens are there already, from the first on."""
        return common_length(self._ids, ids)

    def lay(self, tip: Node) -> None:
        """Bring in the tokens of the path to a node; those that are there already stay."""
        self._reserve(tip.n_tokens)
        for node in tip.path():
            if np.array_equal(self._ids[node.start : node.n_tokens], node.ids):
                continue
            self._ids = np.concatenate([self._ids[: node.start], node.ids])
            self._cache.write(node.start, node.kv)

    def run(
        self, past: int, ids: NDArray[np.int64], reads: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Run tokens after the first ``past`` ones that are there. (S,), (N,) -> (N, W)"""
        self._reserve(past + len(ids))
        self._ids = self._ids[:past]  # and so it stays if the run fails
        rows = self._engine.extend(self._cache, past, ids, reads)
        self._ids = np.concatenate([self._ids, ids])
        return rows

    def take(
        self,
        parent: Node | None,
        end: int,
        *,
        score: float = float("nan"),
        kinds: tuple[float, ...] | None = None,
        row: NDArray[np.float32] | None = None,
    ) -> Node:
        """Make a node of the tokens from the end of ``parent`` up to ``end``."""
        start = parent.n_tokens if parent else 0
        return Node(
            parent=parent,
            depth=parent.depth + 1 if parent else 0,
            n_tokens=end,
            score=score,
            ids=self._ids[start:end].copy(),
            kv=self._cache.read(start, end),
            row=row,
            kinds=kinds,
        )

    def _reserve(self, tokens: int) -> None:
        room = self._cache.room
        if tokens + 1 > room:  # DecoderEngine.extend may add a token
            larger = self._engine.new_cache(_rounded(max(tokens + 1, 2 * room)))
            if len(self._ids):
                larger.write(0, self._cache.read(0, len(self._ids)))
            self._cache = larger


def common_length(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """How many tokens two rows have in common at their beginning."""
    n = min(len(one), len(other))
    differs = one[:n] != other[:n]
    return int(differs.argmax()) if differs.any() else n


def _rounded(tokens: int) -> int:
    return -(-tokens // _ROOM) * _ROOM

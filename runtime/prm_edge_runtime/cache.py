"""Keys and values of a session's tokens, kept so that forks share them and undo frees them.

Each node of a tree holds those of its own tokens and never changes; a run needs them as one buffer,
which is filled from the nodes and kept between runs, so that the next step copies nothing.
Shapes: L layers, G key/value heads, D head size, S tokens of a node, P room of a buffer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .engine import DecoderEngine

_ROOM: Final = 64  # tokens; a buffer grows by doubling, in multiples of it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """A prompt (no parent), or one step after its parent's.

    ``depth``: steps up to here. ``n_tokens``: tokens up to here. ``kv``: of its own tokens
    (2L, G, S, D). Where nothing is cached there is ``step`` instead, and ``revised``: the scores
    of all steps up to here, because there a step changes the scores of those before it.
    """

    parent: Node | None = field(repr=False)
    depth: int
    n_tokens: int
    score: float = float("nan")
    kv: NDArray[np.float32] | None = field(default=None, repr=False)
    step: str = ""
    revised: tuple[float, ...] | None = None

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
    """One row's cache with room to grow, filled with the path to a node. Not thread-safe."""

    def __init__(self, engine: DecoderEngine) -> None:
        self._cache = engine.new_cache(0)
        self._path: list[Node] = []

    def run(
        self, engine: DecoderEngine, tip: Node | None, ids: NDArray[np.int64], *, read: bool
    ) -> NDArray[np.float32]:
        """Run tokens after those of ``tip``; read the last one or none. (S,) -> (N, C)"""
        past = tip.n_tokens if tip else 0
        self._reserve(engine, past + len(ids) + 1)  # DecoderEngine.extend may add a token
        self._lay(tip)
        reads = np.array([len(ids) - 1] if read else [], dtype=np.int64)
        return engine.extend(self._cache, past, ids, reads)

    def take(self, parent: Node | None, n_tokens: int, score: float = float("nan")) -> Node:
        """Make a node of the first ``n_tokens`` tokens of the last run, which followed parent."""
        start = parent.n_tokens if parent else 0
        node = Node(
            parent=parent,
            depth=parent.depth + 1 if parent else 0,
            n_tokens=start + n_tokens,
            score=score,
            kv=self._cache[:, 0, :, start : start + n_tokens].copy(),
        )
        self._path.append(node)
        return node

    def _reserve(self, engine: DecoderEngine, tokens: int) -> None:
        room = self._cache.shape[3]
        if tokens > room:
            self._cache = engine.new_cache(-(-max(tokens, 2 * room) // _ROOM) * _ROOM)
            self._path = []

    def _lay(self, tip: Node | None) -> None:
        # a node's depth is its place in the path, so that what is laid already is found at once
        missing = []
        at = tip
        while at is not None and not (at.depth < len(self._path) and self._path[at.depth] is at):
            missing.append(at)
            at = at.parent
        del self._path[at.depth + 1 if at else 0 :]
        for node in reversed(missing):
            self._cache[:, 0, :, node.start : node.n_tokens] = node.kv
            self._path.append(node)

"""Short steps of a session as CUDA graphs: captured once, then replayed without a launch per node.

A replay repeats what was captured, addresses and shapes included, and looks at nothing else: not
at inputs in this process's memory, nor at ``total_tokens``, which onnxruntime reads there. So a
step is padded to one of a few lengths; its ids, its read, ``last_token`` and its outputs have
device memory of their own; keys and values lie in memory that never moves and is used again by
later sessions; and ``total_tokens`` is always as many as fit, while ``last_token``, which is on the
device, says how many there are, as in onnxruntime-genai. A first prompt, a step of several reads, a
longer one and one near the model's limit run as ever.

While one graph is replayed nothing else may run in its session: their working memory is shared.

Never run on a GPU. The logic is: everything here runs with the CPU as the device, where nothing is
captured (tests/test_step_graphs.py); benchmarks/gpu_smoke.py compares scores on a GPU.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from . import contract
from .memory import (
    Block,
    Cache,
    DeviceBlock,
    DeviceCache,
    DeviceMemory,
    run_options,
    run_synchronized,
)
from .ort import Place, load_onnxruntime

logger = logging.getLogger("prm_edge")

LENGTHS: Final = (8, 16, 32, 64)  # of a step, padded; a longer one is no matter of launches
ROOM: Final = 512  # caches hold multiples of so many tokens, so that later ones fit into old memory
MOST_GRAPHS: Final = 256  # they are never freed before their session


class FixedCache(DeviceCache):
    """Device memory that stays where it is, and the graphs that were captured with it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.steps: dict[int, StepGraph] = {}

    def write(self, start: int, block: DeviceBlock) -> None:
        self._copier.copy(self._copier.joined(self._value, start, block), self._value)


@dataclass(eq=False)
class LentCache:
    """A :class:`FixedCache` as long as somebody holds this; then the next one gets it."""

    fixed: FixedCache

    @property
    def binding(self) -> Any:
        return self.fixed.binding

    @property
    def room(self) -> int:
        return self.fixed.room

    def read(self, start: int, end: int) -> Block:
        return self.fixed.read(start, end)

    def write(self, start: int, block: DeviceBlock) -> None:
        self.fixed.write(start, block)


class FixedMemory(DeviceMemory):
    """Device memory whose caches are used again."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._free: dict[int, list[FixedCache]] = {}

    def new_cache(self, tokens: int) -> Cache:
        room = -(-tokens // ROOM) * ROOM
        free = self._free.setdefault(room, [])
        try:
            fixed = free.pop()
        except IndexError:
            fixed = FixedCache(self._session, self._layout, self._copier, room)
        lent = LentCache(fixed)
        weakref.finalize(lent, free.append, fixed).atexit = False
        return cast(Cache, lent)


class StepGraph:
    """One padded length in one cache: its device memory, and the number it is captured under."""

    def __init__(
        self,
        session: Any,
        cache: FixedCache,
        place: Place,
        *,
        length: int,
        total: int,
        widths: Mapping[str, int],
        number: int,
    ) -> None:
        value_of = load_onnxruntime().OrtValue.ortvalue_from_numpy
        self._session, self._length = session, length
        self._options = run_options(number)
        self._binding = session.io_binding()
        self._fed: dict[str, Any] = {}
        for name, array in (
            (contract.INPUT_IDS.name, np.zeros((1, length), dtype=np.int64)),
            (contract.READS.name, np.zeros(1, dtype=np.int64)),
            (contract.LAST_TOKEN.name, np.zeros(1, dtype=np.int32)),
        ):
            self._fed[name] = value_of(array, place.device, place.number)
            self._binding.bind_ortvalue_input(name, self._fed[name])
        # kept: what is bound must outlive the binding
        self._total = value_of(np.array(total, dtype=np.int32))
        self._binding.bind_ortvalue_input(contract.TOTAL_TOKENS.name, self._total)
        cache.bind_to(self._binding)
        self._outputs = []
        for name, width in widths.items():
            row = np.zeros((1, width), dtype=np.float32)
            self._outputs.append(value_of(row, place.device, place.number))
            self._binding.bind_ortvalue_output(name, self._outputs[-1])

    def run(self, past: int, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The outputs at the last token. (S,) -> (1, W)"""
        padded = np.full((1, self._length), ids[-1], dtype=np.int64)
        padded[0, : len(ids)] = ids
        self._fed[contract.INPUT_IDS.name].update_inplace(padded)
        self._fed[contract.READS.name].update_inplace(np.array([len(ids) - 1], dtype=np.int64))
        self._fed[contract.LAST_TOKEN.name].update_inplace(
            np.array([past + self._length - 1], dtype=np.int32)
        )
        run_synchronized(self._session, self._binding, self._options)
        return np.concatenate([value.numpy() for value in self._outputs], axis=1)


class StepGraphs:
    """Runs the steps for which there can be a graph. One thread at a time.

    ``widths``: columns of each output besides the cache. ``rows``: of the graph's rotary tables,
    which no token may lie beyond, padding included.
    """

    def __init__(self, session: Any, place: Place, widths: Mapping[str, int], *, rows: int) -> None:
        self._session, self._place, self._widths, self._rows = session, place, widths, rows
        self._numbers = count(1)  # 0 is onnxruntime's own
        self._made = 0

    def run(
        self, cache: Cache, past: int, ids: NDArray[np.int64], reads: NDArray[np.int64]
    ) -> NDArray[np.float32] | None:
        """Run a step; None where it is none that is captured. (S,), (N,) -> (1, W)"""
        if not isinstance(cache, LentCache):
            return None
        length = next((n for n in LENGTHS if n >= len(ids)), None)
        total = min(cache.room, self._rows)
        if (
            length is None
            or past == 0
            or past + length >= total  # a run of as many tokens as there are is a first prompt
            or reads.tolist() != [len(ids) - 1]
        ):
            return None
        steps = cache.fixed.steps
        if length not in steps:
            self._made += 1
            if self._made > MOST_GRAPHS:
                if self._made == MOST_GRAPHS + 1:
                    logger.warning(
                        "%d CUDA graphs are captured, as many as are kept; steps of further "
                        "sessions run without one, slower and with the same scores",
                        MOST_GRAPHS,
                    )
                return None
            steps[length] = StepGraph(
                self._session,
                cache.fixed,
                self._place,
                length=length,
                total=total,
                widths=self._widths,
                number=next(self._numbers),
            )
        return steps[length].run(past, ids)

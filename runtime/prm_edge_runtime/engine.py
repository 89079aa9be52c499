"""Run one variant's graph: token ids and read positions in, a row of outputs for each read out.

A row (W,) is the logits, and behind them what a head that names errors gives: W = C + K.
Imports numpy; onnxruntime only through :mod:`.ort`. Axes are those of :mod:`.contract`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from . import contract
from .cuda_options import CudaOptions
from .errors import ConfigError, EngineError, PackageFormatError
from .manifest import Variant
from .memory import (
    Cache,
    DeviceMemory,
    HostMemory,
    Layout,
    Memory,
    Outputs,
    check_output,
    plain_options,
    run_bound,
)
from .opening import Opening, read_opening
from .ort import Place, open_session
from .step_graphs import FixedMemory, StepGraphs

# GroupQueryAttention takes another path for a query tile of one row, whose last bits differ, and
# quantized layers amplify them. A run never has a length of 1 modulo this.
TILE: Final = 16
# Precisions whose runs have an even length always: MatMulNBits takes rows in pairs where its blocks
# are longer than 32, and computes a last one that is alone otherwise.
EVEN: Final = ("int4",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How a device likes its work.

    ``run_tokens``: tokens of one run, padding included, which bounds memory whatever a record
    holds; a longer record goes through its cache in pieces. ``run_cost``: as many tokens cost what
    starting a run does.
    """

    run_tokens: int
    run_cost: int


# cpu: measured with benchmarks/plan.py; pieces were faster too, by up to a quarter. cuda: estimated
# from the time of a launch and never measured: no GPU was at hand.
LIMITS: Final = {
    "cpu": Limits(run_tokens=256, run_cost=8),
    "cuda": Limits(run_tokens=2048, run_cost=64),
}
RUN_TOKENS: Final = LIMITS["cpu"].run_tokens


class Engine(Protocol):
    """What the scorer needs: one record in, the outputs at its read positions out."""

    @property
    def causal(self) -> bool:
        """Whether a token never sees later ones, so that a prefix scores on its own."""
        ...

    def run(self, ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run one record. (T,), (N,) -> (N, W)"""
        ...


def open_engine(
    graph: Path,
    variant: Variant,
    *,
    logits: int,
    threads: int,
    kinds: int = 0,
    options: CudaOptions | None = None,
    max_tokens: int = 0,
) -> Engine:
    """Open a variant's graph and check it against the contract.

    ``logits``, ``kinds``: C and K of its heads. ``max_tokens``: of the package; what is replayed as
    a CUDA graph needs to know.

    Raises:
        ConfigError: when CUDA graphs are asked for on the CPU.
        DeviceError, EngineError: see :func:`.ort.open_session`.
        PackageFormatError: when the graph's inputs or outputs are not the contract's.
    """
    if options is not None and options.graphs and variant.device == "cpu":
        raise ConfigError(
            f"graphs=True is for CUDA, and variant {variant.name!r} runs on the CPU here; leave it "
            "out, or pass device='cuda'"
        )
    session = open_session(
        graph,
        device=variant.device,
        threads=threads,
        options=options,
        precision=variant.precision,
    )
    if variant.interface == "decoder":
        place = Place(device=variant.device, options=options or CudaOptions())
        return DecoderEngine(
            session,
            variant,
            logits,
            place if place.device != "cpu" else None,
            read_opening(graph.parent, variant),
            kinds=kinds,
            max_tokens=max_tokens,
        )
    return StatelessEngine(session, variant, logits)


class DecoderEngine:
    """A causal graph with its KV cache in and out (contract ``decoder``).

    ``place``: the device whose memory holds the cache; None for this process's. ``max_tokens``: the
    longest record, for which the graph has rotary tables.
    """

    causal: Final = True

    def __init__(
        self,
        session: Any,
        variant: Variant,
        logits: int,
        place: Place | None = None,
        opening: Opening | None = None,
        *,
        kinds: int = 0,
        max_tokens: int = 0,
    ) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        kind = _cache_type(inputs)
        shape = (variant.layers, variant.kv_heads, variant.head_dim)
        _check(inputs, contract.decoder_inputs(*shape, kind), variant.name)
        _check(outputs, contract.decoder_outputs(*shape, kind, kinds), variant.name)
        self._session = session
        # what is wanted of the graph besides the cache -> its columns
        self._widths = {contract.LOGITS.name: logits}
        self._widths |= {tensor.name: kinds for tensor in contract.error_kinds(kinds)}
        self.width: Final = logits + kinds
        self._even = variant.precision in EVEN
        self.limits: Final = LIMITS[variant.device]
        parts = [(layer, part) for layer in range(variant.layers) for part in ("key", "value")]
        layout = Layout(
            past=tuple(contract.past_name(*at) for at in parts),
            present=tuple(contract.present_name(*at) for at in parts),
            heads=variant.kv_heads,
            head_dim=variant.head_dim,
            type=kind,
        )
        self._memory: Memory
        self._graphs: StepGraphs | None = None
        # what is replayed shares its working memory with every other run
        self._alone: AbstractContextManager[Any] = nullcontext()
        self._plain = None
        if place is None:
            self._memory = HostMemory(session, layout)
        elif place.options.graphs:
            self._memory = FixedMemory(session, layout, place)
            # one dummy token may follow the last real one
            self._graphs = StepGraphs(session, place, self._widths, rows=max_tokens + 1)
            self._alone, self._plain = Lock(), plain_options(place)
        else:
            self._memory = DeviceMemory(session, layout, place)
        self._opening = opening or Opening(
            ids=np.zeros(0, dtype=np.int64),
            kv=np.zeros((2 * shape[0], 1, shape[1], 0, shape[2]), dtype=np.float32),
        )

    @property
    def replays(self) -> bool:
        """Whether short steps are run as CUDA graphs."""
        return self._graphs is not None

    def _width(self, tokens: int) -> int:
        """The length at which so many tokens are run."""
        return tokens + (tokens % 2 if self._even else tokens % TILE == 1)

    def run(self, ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run one record from an empty cache. (T,), (N,) -> (N, W)"""
        if len(ids) > self.limits.run_tokens:
            return self.extend(self.new_cache(len(ids) + 1), 0, ids, reads)
        return self.run_rows([(ids, reads)])[0]

    def run_rows(
        self, rows: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
    ) -> list[NDArray[np.float32]]:
        """Run short records at once, padded to the longest. B x (T,), (N,) -> B x (N, W)

        One after the other where the package has their opening: before 1.32 onnxruntime's
        GroupQueryAttention takes a cache and several new tokens for one row only.
        """
        if len(self._opening.ids):
            return [self._in_pieces(self.new_cache(len(row[0]) + 1), 0, *row) for row in rows]
        lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int32)
        width = self._width(int(lengths.max()))
        # Padding comes after all that is read: causal, so it changes nothing before it.
        padded = np.zeros((len(rows), width), dtype=np.int64)  # (B, S)
        for row, (ids, _) in enumerate(rows):
            padded[row, : len(ids)] = ids
            padded[row, len(ids) :] = ids[-1]
        reads = np.concatenate([row * width + at for row, (_, at) in enumerate(rows)])
        feeds = {
            contract.INPUT_IDS.name: padded,
            contract.READS.name: reads,
            contract.LAST_TOKEN.name: np.full(len(rows), width - 1, dtype=np.int32),
            contract.TOTAL_TOKENS.name: np.array(width, dtype=np.int32),
        }
        outputs = self._outputs(len(reads))
        with self._alone, _failing_as(f"a run of {width} tokens"):
            self._memory.run_rows(len(rows), feeds, outputs)
        ends = np.cumsum([len(at) for _, at in rows])[:-1]
        return list(np.split(_side_by_side(outputs), ends))

    def _outputs(self, reads: int) -> Outputs:
        """Memory for what a run gives."""
        return {
            name: np.empty((reads, width), dtype=np.float32) for name, width in self._widths.items()
        }

    def new_cache(self, tokens: int) -> Cache:
        """Make room for the keys and values of ``tokens`` tokens, one or more."""
        return self._memory.new_cache(tokens)

    def extend(
        self, cache: Cache, past: int, ids: NDArray[np.int64], reads: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Run tokens after the first ``past`` ones in ``cache``. (S,), (N,) -> (N, W)

        Writes their keys and values behind those, in place; ``cache`` needs room for one token
        more. What was there is only read. ``reads`` are positions in ``ids``.
        """
        return self._in_pieces(cache, past, ids, reads)

    def _in_pieces(
        self, cache: Cache, past: int, ids: NDArray[np.int64], reads: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        most = self.limits.run_tokens
        given = len(self._opening.ids)
        if past < given:
            end = min(given, past + len(ids))
            self._fits(cache, end)
            ids, reads = self._opening.without(past, ids, reads)
            cache.write(past, self._opening.kv[:, 0, :, past:end])
            past = end
        rows = np.empty((len(reads), self.width), dtype=np.float32)
        for start in range(0, len(ids), most):
            first, last = np.searchsorted(reads, (start, start + most))
            piece = ids[start : start + most]
            found = self._append(cache, past + start, piece, reads[first:last] - start)
            rows[first:last] = found
        return rows

    def _append(
        self, cache: Cache, past: int, ids: NDArray[np.int64], reads: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if self._graphs is not None:
            with self._alone, _failing_as(f"a step of {len(ids)} tokens after {past}"):
                replayed = self._graphs.run(cache, past, ids, reads)
            if replayed is not None:
                return replayed
        width = self._width(len(ids))
        total = past + width
        # a token nobody reads, whose place in the cache the next run takes
        tokens = np.append(ids, ids[-1:]) if width > len(ids) else ids
        # a run without reads reads one and forgets it, so that the outputs are always the same
        wanted = reads if len(reads) else np.array([len(ids) - 1], dtype=np.int64)
        outputs = self._outputs(len(wanted))
        feeds = {
            contract.INPUT_IDS.name: tokens[None, :],
            contract.READS.name: wanted,
            contract.LAST_TOKEN.name: np.array([total - 1], dtype=np.int32),
            contract.TOTAL_TOKENS.name: np.array(total, dtype=np.int32),
        }
        self._fits(cache, total)
        with self._alone, _failing_as(f"a run of {width} tokens after {past}"):
            run_bound(self._session, cache.binding, feeds, outputs, self._plain)
        return _side_by_side(outputs)[: len(reads)]

    @staticmethod
    def _fits(cache: Cache, tokens: int) -> None:
        if tokens > cache.room:
            raise EngineError(f"{tokens} tokens do not fit into a cache of {cache.room}")


class StatelessEngine:
    """A graph without cache that returns logits for every token (contract ``stateless``)."""

    causal: Final = False

    def __init__(self, session: Any, variant: Variant, logits: int) -> None:
        optional = {tensor.name for tensor in contract.STATELESS_OPTIONAL}
        given = session.get_inputs()
        required = [value for value in given if value.name not in optional]
        _check(required, contract.STATELESS_REQUIRED, variant.name)
        _check(session.get_outputs(), (contract.TOKEN_LOGITS,), variant.name)
        self._session = session
        self._logits = logits
        self._inputs = {value.name for value in given}

    def run(self, ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run one record whole. (T,), (N,) -> (N, C)"""
        row = ids[None, :]
        feeds = {
            contract.INPUT_IDS.name: row,
            contract.ATTENTION_MASK.name: np.ones_like(row),
            contract.TOKEN_TYPE_IDS.name: np.zeros_like(row),
            contract.POSITION_IDS.name: np.arange(len(ids), dtype=np.int64)[None, :],
        }
        used = {name: value for name, value in feeds.items() if name in self._inputs}
        with _failing_as(f"a run of {len(ids)} tokens"):
            (logits,) = self._session.run([contract.TOKEN_LOGITS.name], used)
            everywhere = check_output(logits, (1, len(ids), self._logits))
        return np.ascontiguousarray(everywhere[0, reads])


def _side_by_side(outputs: Outputs) -> NDArray[np.float32]:
    """(N, C) and perhaps (N, K) -> (N, W)"""
    parts = list(outputs.values())
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _cache_type(given: Sequence[Any]) -> str:
    """What the first of the cache's tensors is; the check says what is wrong with the others."""
    first = contract.past_name(0, "key")
    found = next((value.type for value in given if value.name == first), contract.FLOAT)
    return found if found in contract.CACHE_TYPES else contract.FLOAT


def _check(given: Sequence[Any], expected: Sequence[contract.Tensor], variant: str) -> None:
    actual = {value.name: value for value in given}
    problems = [f"unexpected tensor {name}" for name in actual if name not in _names(expected)]
    for tensor in expected:
        value = actual.get(tensor.name)
        if value is None or not _fits(value, tensor):
            found = "nothing" if value is None else f"{value.type} {list(value.shape)}"
            problems.append(f"{tensor.name} must be {tensor.type} {list(tensor.axes)}, is {found}")
    if problems:
        raise PackageFormatError(
            f"the graph of variant {variant!r} does not follow the package format in "
            f"{len(problems)} tensors, first {'; '.join(problems[:3])}; export the checkpoint again"
        )


def _names(tensors: Sequence[contract.Tensor]) -> set[str]:
    return {tensor.name for tensor in tensors}


def _fits(value: Any, tensor: contract.Tensor) -> bool:
    # axes that the contract only names may be called anything, or be known to the graph
    return (
        value.type == tensor.type
        and len(value.shape) == len(tensor.axes)
        and all(
            axis == size
            for axis, size in zip(value.shape, tensor.axes, strict=True)
            if isinstance(size, int)
        )
    )


@contextmanager
def _failing_as(what: str) -> Iterator[None]:
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # onnxruntime raises many unrelated types
        raise EngineError(f"onnxruntime failed on {what}: {error}") from error

"""Run one variant's graph: token ids and read positions in, logits out.

Imports numpy; onnxruntime only through :mod:`.ort`. Axes are those of :mod:`.contract`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from . import contract
from .errors import EngineError, PackageFormatError
from .manifest import Variant
from .ort import load_onnxruntime, open_session

# GroupQueryAttention takes another path for a query tile of one row, whose last bits differ, and
# quantized layers amplify them. A run never has a length of 1 modulo this.
TILE: Final = 16
# Tokens of one run, padding included: what bounds memory whatever a record holds. A longer record
# goes through its cache in pieces, which was faster too, by up to a quarter (benchmarks/plan.py).
RUN_TOKENS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cache:
    """Room for one row's keys and values, bound to the graph once. One thread at a time.

    ``kv`` (2 * layers, 1, heads, tokens, D) is the memory of the OrtValues that are both past and
    present of a run, so that a run appends in place and nothing is copied between runs.
    """

    kv: NDArray[np.float32]
    binding: Any


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


class Engine(Protocol):
    """What the scorer needs: one record in, the logits of its read positions out."""

    @property
    def causal(self) -> bool:
        """Whether a token never sees later ones, so that a prefix scores on its own."""
        ...

    def run(self, ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run one record. (T,), (N,) -> (N, C)"""
        ...


def open_engine(graph: Path, variant: Variant, *, logits: int, threads: int) -> Engine:
    """Open a variant's graph and check it against the contract.

    Raises:
        DeviceError, EngineError: see :func:`.ort.open_session`.
        PackageFormatError: when the graph's inputs or outputs are not the contract's.
    """
    session = open_session(graph, device=variant.device, threads=threads)
    if variant.interface == "decoder":
        return DecoderEngine(session, variant, logits, read_opening(graph.parent, variant))
    return StatelessEngine(session, variant, logits)


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


class DecoderEngine:
    """A causal graph with its KV cache in and out (contract ``decoder``)."""

    causal: Final = True

    def __init__(
        self, session: Any, variant: Variant, logits: int, opening: Opening | None = None
    ) -> None:
        shape = (variant.layers, variant.kv_heads, variant.head_dim)
        _check(session.get_inputs(), contract.decoder_inputs(*shape), variant.name)
        _check(session.get_outputs(), contract.decoder_outputs(*shape), variant.name)
        self._session = session
        self._logits = logits
        self._kv_heads, self._head_dim = variant.kv_heads, variant.head_dim
        parts = [(layer, part) for layer in range(variant.layers) for part in ("key", "value")]
        self._past_names = [contract.past_name(*at) for at in parts]
        self._present_names = [contract.present_name(*at) for at in parts]
        self._opening = opening or Opening(
            ids=np.zeros(0, dtype=np.int64),
            kv=np.zeros((2 * shape[0], 1, shape[1], 0, shape[2]), dtype=np.float32),
        )

    def run(self, ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run one record from an empty cache. (T,), (N,) -> (N, C)"""
        if len(ids) > RUN_TOKENS:
            return self.extend(self.new_cache(len(ids) + 1), 0, ids, reads)
        return self.run_rows([(ids, reads)])[0]

    def run_rows(
        self, rows: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
    ) -> list[NDArray[np.float32]]:
        """Run short records at once, padded to the longest. B x (T,), (N,) -> B x (N, C)

        One after the other where the package has their opening: before 1.32 onnxruntime's
        GroupQueryAttention takes a cache and several new tokens for one row only.
        """
        if len(self._opening.ids):
            return [self._together([row])[0] for row in rows]
        return self._together(rows)

    def _together(
        self, rows: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
    ) -> list[NDArray[np.float32]]:
        given = len(self._opening.ids)
        rows = [self._opening.without(0, *row) for row in rows]
        lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int32)
        width = _whole_tiles(int(lengths.max()))
        # Padding comes after all that is read: causal, so it changes nothing before it.
        padded = np.zeros((len(rows), width), dtype=np.int64)  # (B, S)
        for row, (ids, _) in enumerate(rows):
            padded[row, : len(ids)] = ids
            padded[row, len(ids) :] = ids[-1]
        reads = np.concatenate([row * width + at for row, (_, at) in enumerate(rows)])
        shape = (len(rows), self._kv_heads, given, self._head_dim)
        past = [np.broadcast_to(kv, shape) for kv in self._opening.kv]
        feeds = {
            contract.INPUT_IDS.name: padded,
            contract.READS.name: reads,
            contract.LAST_TOKEN.name: np.full(len(rows), given + width - 1, dtype=np.int32),
            contract.TOTAL_TOKENS.name: np.array(given + width, dtype=np.int32),
            **dict(zip(self._past_names, past, strict=True)),
        }
        (logits,) = _run(self._session, [contract.LOGITS.name], feeds)
        ends = np.cumsum([len(at) for _, at in rows])[:-1]
        return list(np.split(_shaped(logits, (len(reads), self._logits)), ends))

    def new_cache(self, tokens: int) -> Cache:
        """Make room for the keys and values of ``tokens`` tokens, one or more."""
        shape = (len(self._past_names), 1, self._kv_heads, tokens, self._head_dim)
        kv = np.zeros(shape, dtype=np.float32)
        value_of = load_onnxruntime().OrtValue.ortvalue_from_numpy
        binding = self._session.io_binding()
        # GroupQueryAttention appends where past and present are one buffer, and copies nothing
        for past, present, memory in zip(self._past_names, self._present_names, kv, strict=True):
            value = value_of(memory)
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        return Cache(kv=kv, binding=binding)

    def extend(
        self, cache: Cache, past: int, ids: NDArray[np.int64], reads: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Run tokens after the first ``past`` ones in ``cache``. (S,), (N,) -> (N, C)

        Writes their keys and values behind those, in place; ``cache`` needs room for one token
        more. What was there is only read. ``reads`` are positions in ``ids``.
        """
        given = len(self._opening.ids)
        if past < given:
            end = min(given, past + len(ids))
            self._fits(cache, end)
            ids, reads = self._opening.without(past, ids, reads)
            cache.kv[:, :, :, past:end] = self._opening.kv[:, :, :, past:end]
            past = end
        logits = np.empty((len(reads), self._logits), dtype=np.float32)
        for start in range(0, len(ids), RUN_TOKENS):
            first, last = np.searchsorted(reads, (start, start + RUN_TOKENS))
            piece = ids[start : start + RUN_TOKENS]
            found = self._append(cache, past + start, piece, reads[first:last] - start)
            logits[first:last] = found
        return logits

    def _append(
        self, cache: Cache, past: int, ids: NDArray[np.int64], reads: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        width = _whole_tiles(len(ids))
        total = past + width
        # a token nobody reads, whose place in the cache the next run takes
        tokens = np.append(ids, ids[-1:]) if width > len(ids) else ids
        # a run without reads reads one and forgets it, so that the outputs are always the same
        wanted = reads if len(reads) else np.array([len(ids) - 1], dtype=np.int64)
        logits = np.empty((len(wanted), self._logits), dtype=np.float32)
        feeds = {
            contract.INPUT_IDS.name: tokens[None, :],
            contract.READS.name: wanted,
            contract.LAST_TOKEN.name: np.array([total - 1], dtype=np.int32),
            contract.TOTAL_TOKENS.name: np.array(total, dtype=np.int32),
        }
        self._fits(cache, total)
        try:
            for name, value in feeds.items():
                cache.binding.bind_cpu_input(name, value)
            cache.binding.bind_output(contract.LOGITS.name, *_memory(logits))
            self._session.run_with_iobinding(cache.binding)
        except Exception as error:  # onnxruntime raises many unrelated types
            raise EngineError(
                f"onnxruntime failed on a run of {width} tokens after {past}: {error}"
            ) from error
        return logits[: len(reads)]

    @staticmethod
    def _fits(cache: Cache, tokens: int) -> None:
        if tokens > cache.kv.shape[3]:
            raise EngineError(f"{tokens} tokens do not fit into a cache of {cache.kv.shape[3]}")


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
        (logits,) = _run(self._session, [contract.TOKEN_LOGITS.name], used)
        everywhere = _shaped(logits, (1, len(ids), self._logits))
        return np.ascontiguousarray(everywhere[0, reads])


def _whole_tiles(tokens: int) -> int:
    """The length at which so many tokens are run."""
    return tokens + (tokens % TILE == 1)


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


def _memory(array: NDArray[np.float32]) -> tuple[Any, ...]:
    # device, its number, element type, shape, address: as IOBinding takes them
    return "cpu", 0, np.float32, array.shape, array.ctypes.data


def _run(session: Any, names: list[str], feeds: dict[str, Any]) -> list[Any]:
    try:
        outputs: list[Any] = session.run(names, feeds)
    except Exception as error:  # onnxruntime raises many unrelated types
        tokens = feeds[contract.INPUT_IDS.name].shape[1]
        raise EngineError(f"onnxruntime failed on a run of {tokens} tokens: {error}") from error
    return outputs


def _shaped(array: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if array.shape != shape or array.dtype != np.float32:
        raise EngineError(
            f"the graph returned logits of shape {array.shape} and type {array.dtype}, "
            f"expected {shape} and float32; export the checkpoint again"
        )
    result: NDArray[np.float32] = array
    return result

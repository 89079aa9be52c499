"""Where keys and values lie between runs: in this process's memory, or on the device.

In: a session, the layout of its cache. Out: caches that a run appends to in place, and blocks of
what they hold, which are laid into other caches. On a device nothing passes through the host: small
graphs of the device's own provider cut, join and clear, and the model reads and writes by address.
Shapes: L layers, G key/value heads, T tokens of room, D head size, S tokens of a block.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from . import contract
from .errors import EngineError, PackageFormatError
from .ort import Place, load_onnxruntime, open_copier

NUMPY_TYPES: Final[dict[str, Any]] = {contract.FLOAT: np.float32, contract.FLOAT16: np.float16}
Outputs = dict[str, NDArray[np.float32]]  # by name, the memory that takes each, C-contiguous
_WORD_BYTES: Final = 4  # what is copied is never calculated with: 4 bytes are one int32


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Names and shape of a graph's cache; ``type`` is one of :data:`.contract.CACHE_TYPES`."""

    past: tuple[str, ...]
    present: tuple[str, ...]
    heads: int
    head_dim: int
    type: str

    def shape(self, tokens: int, rows: int = 1) -> tuple[int, int, int, int]:
        """Of one tensor. (B, G, T, D)"""
        return rows, self.heads, tokens, self.head_dim


class Block(Protocol):
    """Keys and values of some tokens, which never change."""

    @property
    def nbytes(self) -> int: ...


class Cache(Protocol):
    """Room for one row's keys and values, bound to the graph. One thread at a time."""

    binding: Any

    @property
    def room(self) -> int:
        """Tokens that fit in."""
        ...

    def read(self, start: int, end: int) -> Any:
        """A block of its own of the tokens from ``start`` up to ``end``."""
        ...

    def write(self, start: int, block: Any) -> None:
        """Lay a block in, its first token at ``start``."""
        ...


class Memory(Protocol):
    """Makes caches, and bindings without any."""

    def new_cache(self, tokens: int) -> Cache: ...

    def run_rows(self, rows: int, feeds: dict[str, Any], outputs: Outputs) -> None:
        """Run from empty caches; ``outputs`` take what anybody needs, by name."""
        ...


# --- in this process's memory


class HostCache:
    """``kv`` (2L, 1, G, T, D) is the memory of the tensors that are both past and present."""

    def __init__(self, session: Any, layout: Layout, tokens: int) -> None:
        shape = (len(layout.past), *layout.shape(tokens))
        self.kv: Final[NDArray[Any]] = np.zeros(shape, dtype=NUMPY_TYPES[layout.type])
        self.binding = session.io_binding()
        value_of = load_onnxruntime().OrtValue.ortvalue_from_numpy
        # GroupQueryAttention appends where past and present are one buffer, and copies nothing
        for past, present, memory in zip(layout.past, layout.present, self.kv, strict=True):
            value = value_of(memory)
            self.binding.bind_ortvalue_input(past, value)
            self.binding.bind_ortvalue_output(present, value)

    @property
    def room(self) -> int:
        return int(self.kv.shape[3])

    def read(self, start: int, end: int) -> NDArray[Any]:
        """-> (2L, G, S, D)"""
        block: NDArray[Any] = self.kv[:, 0, :, start:end].copy()
        return block

    def write(self, start: int, block: NDArray[Any]) -> None:
        self.kv[:, 0, :, start : start + block.shape[2]] = block


class HostMemory:
    """Of a session that computes in this process's memory."""

    def __init__(self, session: Any, layout: Layout) -> None:
        if layout.type not in NUMPY_TYPES:
            raise PackageFormatError(
                f"keys and values of {layout.type} are for a GPU, and this session runs on the "
                "CPU; load the package with device='cuda', or a variant for the CPU"
            )
        self._session, self._layout = session, layout

    def new_cache(self, tokens: int) -> HostCache:
        return HostCache(self._session, self._layout, tokens)

    def run_rows(self, rows: int, feeds: dict[str, Any], outputs: Outputs) -> None:
        empty = np.zeros(self._layout.shape(0, rows), dtype=NUMPY_TYPES[self._layout.type])
        found = self._session.run(
            list(outputs), {**feeds, **dict.fromkeys(self._layout.past, empty)}
        )
        for (name, memory), array in zip(outputs.items(), found, strict=True):
            memory[:] = check_output(array, memory.shape, name)


# --- on the device


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceBlock:
    """An OrtValue on the device, of whole words. (2L, G, S, words of D)"""

    value: Any
    nbytes: int


class DeviceCache:
    """One piece of device memory (2L, G, T, D); each tensor of the graph is a part of it."""

    def __init__(self, session: Any, layout: Layout, copier: Copier, tokens: int) -> None:
        self.room = tokens
        self.binding = session.io_binding()
        self._layout, self._copier = layout, copier
        self._value = copier.cleared(tokens)
        self._bind()

    def _bind(self) -> None:
        self.bind_to(self.binding)

    def bind_to(self, binding: Any) -> None:
        """Make this the past and the present of what runs with a binding."""
        layout, place = self._layout, self._copier.place
        number, size = contract.CACHE_TYPES[layout.type]
        shape = layout.shape(self.room)
        step = size * layout.heads * self.room * layout.head_dim
        address = self._value.data_ptr()
        for past, present in zip(layout.past, layout.present, strict=True):
            where = (place.device, place.number, _element(layout.type, number), shape, address)
            binding.bind_input(past, *where)
            binding.bind_output(present, *where)
            address += step

    def read(self, start: int, end: int) -> DeviceBlock:
        """-> (2L, G, S, words of D)"""
        return self._copier.cut(self._value, start, end)

    def write(self, start: int, block: DeviceBlock) -> None:
        self._value = self._copier.joined(self._value, start, block)
        self._bind()


class DeviceMemory:
    """Of a session whose tensors are OrtValues on a device; ids go in and logits come out."""

    def __init__(self, session: Any, layout: Layout, place: Place) -> None:
        self._session, self._layout = session, layout
        self._copier = Copier(layout, place)
        self.plain = plain_options(place)

    def new_cache(self, tokens: int) -> Cache:
        return DeviceCache(self._session, self._layout, self._copier, tokens)

    def run_rows(self, rows: int, feeds: dict[str, Any], outputs: Outputs) -> None:
        layout, place = self._layout, self._copier.place
        number, _ = contract.CACHE_TYPES[layout.type]
        binding = self._session.io_binding()
        empty = self._copier.empty  # of no size, but an address
        for past in layout.past:
            binding.bind_input(
                past,
                place.device,
                place.number,
                _element(layout.type, number),
                layout.shape(0, rows),
                empty.data_ptr(),
            )
        run_bound(self._session, binding, feeds, outputs, self.plain)


# Made with onnx.helper, tests/test_memory.py makes them again: int32 of four axes, the third one
# is cut and joined.
#   cut:    x, start (1), end (1) -> Slice(x, start, end)
#   joined: x, start (1), block, end (1), room (1) -> Concat(Slice(x, 0, start), block,
#           Slice(x, end, room))
#   cleared: shape (4) -> ConstantOfShape, zeros
GRAPHS: Final[dict[str, str]] = {
    "cut": (
        "c-rIO5aK8(%GFIxNl&$EW#p3QVyxg|EiOqcD&b;I%}e28Nvy~$7GkVaVhzs8OimSIOxNP&U=(1tVq|gx%S8zTwFv"
        "QX@o=ySad0s}AW#ruh!7VS2M4<l3l|dyW0WA+NMxZTpyo<+%}y*_3<81xAWax2"
    ),
    "joined": (
        "c-m!;yAFat5JlN_!O8dtjD^-DHYEB1l=umDbbt#nKGrN-sJ~+4r;02jJ~GwZIXCwX0Kr9{R&rO#_`z|B?26(pwL-"
        "TxnKmf0>%Jy0m!;A&bhpQSAu)Vo19{$|&`O;;$jwS4b<eD^GohOwRdGOjCUy(GjXD>ZiAL7A;7`VhRnY{PKa3eqT"
        "Df1Hq%D-rnoyeJ7(4=W>@=e7Nr(VL63Bt2^Dgp_4%*UREZG-6wY*8X{dyCDjvu@L=ny%L"
    ),
    "cleared": (
        "c-rIO5aK8(%GFIxNl&#(;xgu9EzU?RNEKqNRN{Be&nqrT%q#Iv3kHd4iE*)(CFYc-YH@Ke3b1K0GB`1oEns93VoZ"
        "+`hUw$t;^1HxV&P)qU`Z0@VyqP6<Kp396XM`vfIue}E(QTX0E-Y7i~"
    ),
}


def graph_bytes(text: str) -> bytes:
    """One of :data:`GRAPHS` as onnxruntime takes it."""
    return zlib.decompress(base64.b85decode(text))


class Copier:
    """Cuts, joins and clears device memory with graphs of the device's own provider."""

    def __init__(self, layout: Layout, place: Place) -> None:
        _, size = contract.CACHE_TYPES[layout.type]
        words, rest = divmod(layout.head_dim * size, _WORD_BYTES)
        if rest:
            raise PackageFormatError(
                f"keys and values of {layout.head_dim} numbers of {size} bytes are no whole words; "
                "the head size must be even"
            )
        self.place: Final = place
        self._parts, self._heads, self._words = len(layout.past), layout.heads, words
        self._sessions = {
            name: open_copier(graph_bytes(text), place) for name, text in GRAPHS.items()
        }
        self.empty: Final = self._new(1)

    def _shape(self, tokens: int) -> tuple[int, int, int, int]:
        return self._parts, self._heads, tokens, self._words

    def _new(self, tokens: int) -> Any:
        return load_onnxruntime().OrtValue.ortvalue_from_shape_and_type(
            list(self._shape(tokens)), np.int32, self.place.device, self.place.number
        )

    def cleared(self, tokens: int) -> Any:
        """New memory for so many tokens, all zero: what was there may not be a number."""
        return self._run("cleared", tokens, shape=np.array(self._shape(tokens), dtype=np.int64))

    def cut(self, value: Any, start: int, end: int) -> DeviceBlock:
        out = self._run("cut", end - start, x=value, start=_line(start), end=_line(end))
        return DeviceBlock(value=out, nbytes=int(np.prod(self._shape(end - start))) * _WORD_BYTES)

    def copy(self, value: Any, target: Any) -> None:
        """Lay a copy of ``value`` over ``target``, which has its shape."""
        self._run("cut", 0, target, x=value, start=_line(0), end=_line(value.shape()[2]))

    def joined(self, value: Any, start: int, block: DeviceBlock) -> Any:
        """A copy of ``value`` with ``block`` laid over it."""
        room, end = value.shape()[2], start + block.value.shape()[2]
        return self._run(
            "joined",
            room,
            x=value,
            start=_line(start),
            block=block.value,
            end=_line(end),
            room=_line(room),
        )

    def _run(self, name: str, tokens: int, target: Any = None, **inputs: Any) -> Any:
        out = self._new(tokens) if target is None else target
        session = self._sessions[name]
        binding = session.io_binding()
        for key, value in inputs.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(key, value)
            else:
                binding.bind_ortvalue_input(key, value)
        binding.bind_ortvalue_output("y", out)
        try:
            run_synchronized(session, binding)
        except Exception as error:  # onnxruntime raises many unrelated types
            raise EngineError(
                f"onnxruntime failed to copy the keys and values of {tokens} tokens: {error}"
            ) from error
        return out


def plain_options(place: Place) -> Any:
    """Options of a run that is no graph's, where a session keeps some; None where it does not."""
    return run_options(-1) if place.options.graphs else None


def run_options(graph: int) -> Any:
    """Options of a run that is captured or replayed under a number; -1 for neither."""
    options = load_onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def run_bound(
    session: Any, binding: Any, feeds: dict[str, Any], outputs: Outputs, options: Any = None
) -> None:
    """Run with what is bound, and ``feeds`` from and ``outputs`` into this process's memory."""
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    for name, memory in outputs.items():
        # device, its number, element type, shape, address
        binding.bind_output(name, "cpu", 0, np.float32, memory.shape, memory.ctypes.data)
    run_synchronized(session, binding, options)


def run_synchronized(session: Any, binding: Any, options: Any = None) -> None:
    """Run with what is bound, once it is there, and wait."""
    binding.synchronize_inputs()
    session.run_with_iobinding(binding, options)
    binding.synchronize_outputs()


def check_output(
    array: Any, shape: Sequence[int], name: str = contract.LOGITS.name
) -> NDArray[np.float32]:
    """An output as the contract wants it.

    Raises:
        EngineError: when it has another shape or type.
    """
    if array.shape != tuple(shape) or array.dtype != np.float32:
        raise EngineError(
            f"the graph returned {name} of shape {array.shape} and type {array.dtype}, "
            f"expected {tuple(shape)} and float32; export the checkpoint again"
        )
    result: NDArray[np.float32] = array
    return result


def _element(name: str, number: int) -> Any:
    # numpy has no bfloat16: onnxruntime takes the number
    return NUMPY_TYPES.get(name, number)


def _line(number: int) -> NDArray[np.int64]:
    return np.array([number], dtype=np.int64)

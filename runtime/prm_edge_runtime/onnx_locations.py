"""Which files does an ONNX graph read besides itself?

In: the path of a ``.onnx`` file that nobody trusted yet. Out: every ``location`` of external data
in it, wherever a tensor can hide. Walks the protobuf wire format itself, because the runtime does
not depend on onnx: it reads tags and lengths, skips weights, and never recurses.
Imports nothing but the standard library and this package's own modules.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from os import PathLike
from typing import Final, NamedTuple

from .errors import PackageFormatError

Buffer = bytes | mmap.mmap

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_FIXED_BYTES: Final = {_FIXED64: 8, _FIXED32: 4}
_MAX_TAG: Final = 2**32 - 1
_MAX_DEPTH: Final = 100  # protobuf reads no deeper either
_MAX_TEXT_BYTES: Final = 65536  # of one key or value that describes external data

# message -> field number -> message inside, for each field on the way to a tensor (onnx.proto)
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_GRAPH: Final = 7  # of a model
_DATA_LOCATION: Final = 14  # of a tensor
_EXTERNAL: Final = 1
_LOCATION: Final = "location"  # the key whose value names a file
_KEY: Final = 1  # of an entry
_VALUE: Final = 2


class _MalformedError(Exception):
    """The bytes are not the wire format of an ONNX model."""


class _Field(NamedTuple):
    number: int
    wire: int
    start: int
    end: int
    value: int  # of a varint


def external_locations(path: str | PathLike[str], *, where: str | None = None) -> frozenset[str]:
    """Every external data location named in the ONNX file at ``path``, unchecked.

    ``where`` names the file in messages.

    Raises:
        PackageFormatError: the file is no ONNX model, or is cut short.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        if not file.read(1):
            raise PackageFormatError(_message(where or str(path), "the file is empty"))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            return scan(buffer, where=where or str(path))


def scan(buffer: Buffer, *, where: str) -> frozenset[str]:
    """Every external data location in the bytes of an ONNX model; see `external_locations`.

    Raises:
        PackageFormatError: the bytes are no ONNX model.
    """
    try:
        return frozenset(_scan(buffer))
    except _MalformedError as error:
        raise PackageFormatError(_message(where, str(error))) from None


def _message(where: str, problem: str) -> str:
    return f"{where} is not an ONNX model: {problem}: copy the package again, or export again"


def _scan(buffer: Buffer) -> Iterator[str]:
    graphs = 0
    pending = [("model", 0, len(buffer), 0)]  # messages to walk
    while pending:
        message, start, end, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise _MalformedError(f"its messages are nested more than {_MAX_DEPTH} deep")
        children = _CHILDREN[message]
        external = located = False
        for field in _fields(buffer, start, end):
            inner = children.get(field.number) if field.wire == _BYTES else None
            if inner == "entry":
                key, value = _entry(buffer, field.start, field.end)
                if key == _LOCATION:
                    located = True
                    yield value
            elif inner == "node" and not _mentions(buffer, field):
                continue
            elif inner is not None:
                graphs += message == "model" and field.number == _GRAPH
                pending.append((inner, field.start, field.end, depth + 1))
            elif message == "tensor" and field.number == _DATA_LOCATION and field.wire == _VARINT:
                external = field.value == _EXTERNAL
        if external and not located:
            raise _MalformedError("a tensor with external data names no location")
    if not graphs:
        raise _MalformedError("it holds no graph")


def _mentions(buffer: Buffer, field: _Field) -> bool:
    # a string lies in one piece, so a node without these bytes holds no location: nine tenths of
    # the walk are saved
    return buffer.find(_LOCATION.encode(), field.start, field.end) >= 0


def _entry(buffer: Buffer, start: int, end: int) -> tuple[str, str]:
    texts = {_KEY: "", _VALUE: ""}
    for field in _fields(buffer, start, end):
        if field.wire == _BYTES and field.number in texts:
            if field.end - field.start > _MAX_TEXT_BYTES:
                raise _MalformedError(
                    f"external data is described in more than {_MAX_TEXT_BYTES} bytes"
                )
            try:
                texts[field.number] = buffer[field.start : field.end].decode("utf-8")
            except UnicodeDecodeError:
                raise _MalformedError(
                    "external data is described in text that is not UTF-8"
                ) from None
    return texts[_KEY], texts[_VALUE]


def _fields(buffer: Buffer, start: int, end: int) -> Iterator[_Field]:
    at = start
    while at < end:
        tag, at = _varint(buffer, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0 or tag > _MAX_TAG:
            raise _MalformedError(f"byte {at} holds no valid field number")
        value = 0
        if wire == _VARINT:
            begin = at
            value, at = _varint(buffer, at, end)
        elif wire == _BYTES:
            size, begin = _varint(buffer, at, end)
            at = begin + size
        elif wire in _FIXED_BYTES:
            begin = at
            at += _FIXED_BYTES[wire]
        else:
            raise _MalformedError(f"byte {at} starts a field of unknown kind {wire}")
        if at > end:
            raise _MalformedError(f"the field at byte {begin} is cut short")
        yield _Field(number, wire, begin, at, value)


def _varint(buffer: Buffer, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _MalformedError(f"it ends in the middle of a number, at byte {at}")
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise _MalformedError(f"a number of more than 10 bytes at byte {at}")

"""Read records to score from JSON lines, recognising each schema by its keys.

In: bytes of a file that nobody has checked. Out: one typed record per line, or an
:class:`~prm_edge_runtime.errors.InputError` that says what is wrong with that line.

A record fits a schema when it has all of the schema's keys; a key whose value is null counts as
absent, and keys that no schema knows are ignored. A record that fits two schemas is refused, and
so is what JSON readers disagree about: a key that occurs twice, NaN, an endless integer.
Imports nothing but the standard library and the runtime.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from prm_edge_runtime.errors import InputError, InputTypeError

from .schemas import SCHEMAS, Schema, Truths
from .solutions import Record, kind

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
MAX_DIGITS: Final = 640  # the lowest limit that Python lets anybody set for int(text)
CHUNK_BYTES: Final = 1024 * 1024  # how much of an endless line is skipped at a time
SHOWN_KEYS: Final = 8  # a message names at most so many keys of a record
SHOWN_KEY_CHARACTERS: Final = 40

UTF8_BOM: Final = b"\xef\xbb\xbf"
# what a file that is no UTF-8 text begins with -> what to do about it
FOREIGN_STARTS: Final = {
    b"\x1f\x8b": "a gzip stream begins in the middle of the file",
    b"\xff\xfe": "it is UTF-16: save the file as UTF-8",
    b"\xfe\xff": "it is UTF-16: save the file as UTF-8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the input, without its newline.

    ``number`` counts from 1. ``n_bytes`` is its real length; ``data`` is empty when that is more
    than ``MAX_LINE_BYTES``.
    """

    number: int
    data: bytes
    n_bytes: int


def read_lines(stream: BinaryIO) -> Iterator[Line]:
    """Cut a binary stream into the lines that hold something, in bounded memory.

    A byte-order mark at the start of a line and whitespace at either end (so CRLF) are dropped.
    """
    number = 0
    while data := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        n_bytes = len(data)
        if n_bytes > MAX_LINE_BYTES and not data.endswith(b"\n"):
            data = b""
            n_bytes += _skip_line(stream)
            yield Line(number=number, data=data, n_bytes=n_bytes)
            continue
        data = data.removeprefix(UTF8_BOM).strip()
        if data:
            yield Line(number=number, data=data, n_bytes=len(data))


def _skip_line(stream: BinaryIO) -> int:
    skipped = 0
    while data := stream.readline(CHUNK_BYTES):
        skipped += len(data)
        if data.endswith(b"\n"):
            break
    return skipped


def decode_line(line: Line) -> dict[str, Any]:
    """Decode the JSON object of one line.

    Raises:
        InputError: for a line that is too long, not UTF-8, or not unambiguous JSON.
        InputTypeError: for JSON that is no object.
    """
    if line.n_bytes > MAX_LINE_BYTES:
        raise InputError(
            f"the line has {line.n_bytes} bytes; a record may have at most {MAX_LINE_BYTES}"
        )
    try:
        data = json.loads(
            line.data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
        )
    except UnicodeDecodeError as error:
        advice = FOREIGN_STARTS.get(line.data[:2], "save the file as UTF-8")
        raise InputError(
            f"not UTF-8: byte 0x{line.data[error.start]:02x} at offset {error.start}; {advice}"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise InputError("the JSON is nested too deeply to be a record") from None
    if not isinstance(data, dict):
        raise InputTypeError(
            f"a record must be a JSON object, got {kind(data)}; "
            "every line is one record (jq -c '.[]' cuts an array into lines)"
        )
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InputError(f"the key {_shown(twice)} occurs twice in one object; keep one")
    return data


def _constant(name: str) -> object:
    raise InputError(f"{name} is not a JSON number; use null where there is no value")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise InputError(f"an integer has {len(digits)} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def recognise(data: dict[str, Any]) -> tuple[Schema, dict[str, Any]]:
    """Find the one schema that a decoded record fits; return it and the keys that are not null.

    Raises:
        InputError: when no schema fits, or more than one does.
    """
    present = {key: value for key, value in data.items() if value is not None}
    fitting = [schema for schema in SCHEMAS if all(key in present for key in schema.keys)]
    if not fitting:
        found = ", ".join(_shown(key) for key in list(present)[:SHOWN_KEYS]) or "none"
        more = ", ..." if len(present) > SHOWN_KEYS else ""
        known = ", or ".join(" and ".join(schema.keys) for schema in SCHEMAS)
        raise InputError(f"no schema fits the keys of the record ({found}{more}); use {known}")
    if len(fitting) > 1:
        both = ", and ".join(" + ".join(map(repr, schema.keys)) for schema in fitting)
        raise InputError(f"the record is ambiguous: it has {both}; keep one of them")
    return fitting[0], present


def read_record(data: dict[str, Any]) -> Record:
    """Recognise the schema of a decoded record and read it.

    Raises:
        InputError: when no schema fits, more than one does, or text is not text.
        InputTypeError: when a value has the wrong type.
    """
    schema, present = recognise(data)
    return schema.read(present)


def read_labelled(data: dict[str, Any]) -> tuple[Record, Truths]:
    """Read a record, and what the data set says of its solutions, one entry for each.

    Raises:
        InputError, InputTypeError: as :func:`read_record`, and for labels that cannot be.
    """
    schema, present = recognise(data)
    return schema.read(present), schema.truths(present)


def _shown(key: str) -> str:
    short = key[:SHOWN_KEY_CHARACTERS]
    return repr(short) if short == key else f"{short!r}..."

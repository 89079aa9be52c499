"""Read lines and put them together in batches that are scored at once.

In: the lines of a file. Out: batches of what was read of them, records and errors alike. Where a
batch begins depends on the input alone. Imports nothing but the standard library and the runtime.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from prm_edge_runtime.errors import InputError

from .records import Line, decode_line, read_record
from .solutions import Record

BATCH_RECORDS: Final = 32  # scored together where lines need not be answered one by one
BATCH_BYTES: Final = 1 << 20
BYTES_PER_TOKEN: Final = 3  # of a line, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A line that was read: the record in it, or what is wrong with it."""

    line: Line = field(repr=False)
    data: dict[str, Any]
    record: Record | None = None
    error: InputError | None = None


def parsed_batches(
    lines: Iterable[Line], *, skip: int = 0, batch_tokens: int | None = None
) -> Iterator[tuple[list[Parsed], int, int]]:
    """Batches with their bytes, and how many at their beginning an earlier run has written.

    ``batch_tokens``: about so many in one batch, instead of ``BATCH_RECORDS`` or ``BATCH_BYTES``.
    Where a batch begins depends on the input alone, never on where a run goes on.
    """
    for batch, n_bytes in _batches(lines, batch_tokens):
        if len(batch) <= skip:
            skip -= len(batch)
            continue
        yield [parse_line(line) for line in batch], n_bytes, skip
        skip = 0


def _batches(lines: Iterable[Line], batch_tokens: int | None) -> Iterator[tuple[list[Line], int]]:
    most_records: float = BATCH_RECORDS if batch_tokens is None else math.inf
    most_bytes = BATCH_BYTES if batch_tokens is None else batch_tokens * BYTES_PER_TOKEN
    batch: list[Line] = []
    n_bytes = 0
    for line in lines:
        batch.append(line)
        n_bytes += line.n_bytes
        if len(batch) >= most_records or n_bytes >= most_bytes:
            yield batch, n_bytes
            batch, n_bytes = [], 0
    if batch:
        yield batch, n_bytes


def parse_line(line: Line) -> Parsed:
    """Read one line; what is wrong with it comes back as ``error``."""
    data: dict[str, Any] = {}
    try:
        data = decode_line(line)
        return Parsed(line=line, data=data, record=read_record(data))
    except InputError as error:
        return Parsed(line=line, data=data, error=error)

"""Cut an input file into parts: what one worker scores at a time, and one file of output.

In: the lines of a file. Out: parts whose borders depend on the file and on the number of records
alone, never on the cluster or on where a run goes on. Imports pyarrow where it is needed; else
nothing but the standard library and the runtime.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from prm_edge.inputs import BLOCK_BYTES, Survey, read_source, survey
from prm_edge.records import Line
from prm_edge.writers import load_pyarrow
from prm_edge_runtime.errors import ConfigError, InputError

PARTS: Final = 512  # about so many, where nobody says how long one is
FEWEST_RECORDS: Final = 16
MOST_RECORDS: Final = 2000
MAX_FILES: Final = 10**5
MAX_PARTS: Final = 10**6  # of one file: names with more digits would not sort
PART_BYTES: Final = 32 << 20  # a part ends at so much text, however few records it has

Key = tuple[int, int]  # index of the file, number of the part in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of one file: ``file`` is its index in the job, ``number`` counts from 0."""

    file: int
    number: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """The input of a job: what each file is, in order."""

    names: tuple[str, ...]
    files: tuple[Survey, ...]

    @property
    def records(self) -> int:
        """Of all files together."""
        return sum(file.records for file in self.files)

    @property
    def sha256(self) -> str:
        """Of the only file, or of the hashes of all in order."""
        if len(self.files) == 1:
            return self.files[0].sha256
        together = "".join(f"{file.sha256} {file.records}\n" for file in self.files)
        return hashlib.sha256(together.encode("ascii")).hexdigest()


def part_name(key: Key) -> str:
    """The name of a part, without a suffix; names sort as the records lie in the input."""
    return f"part-{key[0]:05}-{key[1]:06}"


def part_key(name: str) -> Key | None:
    """The part that a name without suffix belongs to, None when it is another file's."""
    pieces = name.split("-")
    if len(pieces) != 3 or pieces[0] != "part" or not all(p.isdecimal() for p in pieces[1:]):
        return None
    key = (int(pieces[1]), int(pieces[2]))
    return key if part_name(key) == name else None


def records_per_part(records: int, asked: int | None) -> int:
    """How many records a part has: what was asked, else what gives a good number of parts."""
    if asked is not None:
        return asked
    return min(MOST_RECORDS, max(FEWEST_RECORDS, -(-records // PARTS)))


def cut(lines: Iterable[Line], file: int, records: int) -> Iterator[Part]:
    """Cut lines into parts of so many records, fewer where they are long.

    Raises:
        ConfigError: when there are more parts than names.
    """
    taken: list[Line] = []
    number, n_bytes = 0, 0
    for line in lines:
        taken.append(line)
        n_bytes += len(line.data)
        if len(taken) >= records or n_bytes >= PART_BYTES:
            yield Part(file=file, number=number, lines=tuple(taken))
            taken, n_bytes = [], 0
            number += 1
            if number >= MAX_PARTS:
                raise ConfigError(
                    f"a file has more than {MAX_PARTS} parts of {records} records; give a larger "
                    "--part-records, or cut it into several files"
                )
    if taken:
        yield Part(file=file, number=number, lines=tuple(taken))


def survey_file(filesystem: Any, path: str) -> Survey:
    """Hash one file and count its records."""
    with _opened(filesystem, path) as stream:
        return survey(stream, path)


def read_parts(filesystem: Any, path: str, file: int, records: int) -> Iterator[Part]:
    """Read one file part by part."""
    with _opened(filesystem, path) as stream:
        yield from cut(read_source(stream, path), file, records)


def _opened(filesystem: Any, path: str) -> BinaryIO:
    try:
        # buffered, because the readers look ahead
        return io.BufferedReader(filesystem.open_input_file(path), BLOCK_BYTES)
    except OSError as error:
        raise InputError(f"the input {path!r} cannot be read: {error}") from None


def to_table(part: Part) -> Any:
    """A part as one row of Arrow: whatever Ray Data does with rows, it cannot tear a part apart."""
    arrow, _ = load_pyarrow()
    line = arrow.struct(
        [("number", arrow.int64()), ("n_bytes", arrow.int64()), ("data", arrow.large_binary())]
    )
    schema = arrow.schema(
        [("file", arrow.int64()), ("part", arrow.int64()), ("lines", arrow.large_list(line))]
    )
    rows = [{"number": line.number, "n_bytes": line.n_bytes, "data": line.data}
            for line in part.lines]  # fmt: skip
    return arrow.Table.from_pylist(
        [{"file": part.file, "part": part.number, "lines": rows}], schema=schema
    )


def from_rows(rows: Sequence[Mapping[str, Any]]) -> list[Part]:
    """The parts in the rows of such tables."""
    return [
        Part(
            file=row["file"],
            number=row["part"],
            lines=tuple(Line(**line) for line in row["lines"]),
        )
        for row in rows
    ]

"""The lines of an input, whatever it is stored as: JSON lines, a JSON array, Parquet; gzip, zstd.

In: a binary stream that nobody has checked. Out: its lines, in bounded memory. What is stored how
is seen from the first bytes; only a JSON array is known by its name, ``.json``, because a file of
lines may begin with anything. pyarrow and backports.zstd are imported where they are needed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

from prm_edge_runtime.errors import ConfigError, InputError

from .records import MAX_LINE_BYTES, UTF8_BOM, Line, read_lines
from .schemas import SCHEMAS

# Bounds against bombs. Text that people write packs at most a hundredfold.
MAX_DECOMPRESSED_BYTES: Final = 256 * 1024**3
MAX_EXPANSION: Final = 1000
FREE_BYTES: Final = 64 * 1024 * 1024  # so much may come of however little
MAX_ZSTD_WINDOW_LOG: Final = 27  # 128 MiB, what the zstd command takes too
MAX_ROW_GROUP_BYTES: Final = 2 * 1024**3
BLOCK_BYTES: Final = 1024 * 1024
PARQUET_ROWS: Final = 256  # decoded at a time

PARQUET_MAGIC: Final = b"PAR1"
ARRAY_SUFFIXES: Final = (".json", ".json.gz", ".json.zst")
# beside the keys of the schemas: what other commands read from a Parquet file
OTHER_COLUMNS: Final = (
    "id", "idx", "labels", "step_labels", "final_answer_correct", "final_answers_correct",
    "source", "task", "error_steps", "classification", "scores", "prm_scores", "threshold",
)  # fmt: skip

KNOWN_COLUMNS: Final = frozenset(
    {*OTHER_COLUMNS, *(key for schema in SCHEMAS for key in schema.keys)}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a whole file is: ``sha256`` and ``n_bytes`` as stored, and how many records it has."""

    sha256: str
    n_bytes: int
    records: int


def read_source(stream: BinaryIO, name: str = "") -> Iterator[Line]:
    """The lines of a stream that hold something; ``name`` is what the file is called.

    Raises:
        ConfigError: when what would read it is not installed, or it cannot be read from a pipe.
        InputError: where it is damaged, or more than the stated bounds comes out of it.
    """
    buffered: Any = stream if hasattr(stream, "peek") else io.BufferedReader(cast(Any, stream))
    head = buffered.peek(4)[:4]
    if head == PARQUET_MAGIC:
        yield from _parquet_lines(buffered)
        return
    opener = next((o for magic, o in COMPRESSIONS.items() if head.startswith(magic)), None)
    plain: Any = (
        buffered if opener is None else io.BufferedReader(_Bounded(buffered, opener), BLOCK_BYTES)
    )
    if name.endswith(ARRAY_SUFFIXES) and _begins_array(plain):
        yield from _array_lines(plain)
    else:
        yield from read_lines(plain)


def is_file(stream: BinaryIO) -> bool:
    """Whether a stream is a regular file, which can be read again."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # no real file at all, as under a test runner
        return False


def survey(stream: BinaryIO, name: str = "") -> Survey:
    """Hash a regular file and count its records; the stream is left at its start.

    Raises:
        ConfigError, InputError: as :func:`read_source`.
    """
    digest, n_bytes = hashlib.sha256(), 0
    while block := stream.read(BLOCK_BYTES):
        digest.update(block)
        n_bytes += len(block)
    stream.seek(0)
    records = sum(1 for _ in read_source(stream, name))
    stream.seek(0)
    return Survey(sha256=digest.hexdigest(), n_bytes=n_bytes, records=records)


class _Bounded(io.RawIOBase):
    """Decompressed bytes, as long as there are not too many of them."""

    def __init__(self, packed: Any, opener: Callable[[Any], Any]) -> None:
        self._packed = _Counting(packed)
        self._plain = opener(self._packed)
        self._n_out = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            data = self._plain.read(min(len(buffer), BLOCK_BYTES))
        except (EOFError, zlib.error, gzip.BadGzipFile, _zstd_error()) as error:
            raise InputError(
                f"the compressed input is damaged or cut short, {self._n_out} bytes of text into "
                f"it: {error}; get it again, or repack it"
            ) from None
        self._n_out += len(data)
        if self._n_out > MAX_DECOMPRESSED_BYTES:
            raise InputError(
                f"the input unpacks to more than {MAX_DECOMPRESSED_BYTES} bytes, the most that is "
                "read; cut it into several files"
            )
        if self._n_out > FREE_BYTES and self._n_out > MAX_EXPANSION * self._packed.n_in:
            raise InputError(
                f"the input unpacks to more than {MAX_EXPANSION} times its size, as a bomb does; "
                "if you trust it, unpack it yourself and score the unpacked file"
            )
        buffer[: len(data)] = data
        return len(data)


class _Counting:
    """Passes a stream on and counts what was read of it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.n_in = 0

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size)
        self.n_in += len(data)
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def _open_gzip(packed: Any) -> Any:
    return gzip.GzipFile(fileobj=packed, mode="rb")


def _open_zstd(packed: Any) -> Any:
    zstd = _zstd()
    if zstd is None:
        raise ConfigError(
            "the input is compressed with zstd, which needs the extra zstd: "
            "pip install 'prm-edge[zstd]', or unpack it first (zstd -dc FILE | prm-edge score -)"
        )
    options = {zstd.DecompressionParameter.window_log_max: MAX_ZSTD_WINDOW_LOG}
    return zstd.ZstdFile(packed, options=options)


def _zstd() -> Any:
    """The module of the standard library, or what backports it; None without either."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        return None
    return zstd


def _zstd_error() -> type[Exception]:
    zstd = _zstd()
    return EOFError if zstd is None else cast(type[Exception], zstd.ZstdError)


# the first bytes -> what opens it
COMPRESSIONS: Final[dict[bytes, Callable[[Any], Any]]] = {
    b"\x1f\x8b": _open_gzip,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}


def _begins_array(stream: Any) -> bool:
    head: bytes = stream.peek(64)
    return head.removeprefix(UTF8_BOM).lstrip().startswith(b"[")


def _array_lines(stream: BinaryIO) -> Iterator[Line]:
    """One line for each entry of a JSON array, numbered from 1."""
    raw = stream.read(MAX_LINE_BYTES + 1)
    if len(raw) > MAX_LINE_BYTES:
        raise InputError(
            f"the JSON array has more than {MAX_LINE_BYTES} bytes, the most that is read at once; "
            "cut it into lines with jq -c '.[]'"
        )
    try:
        # entries are encoded again, so that one that is no record fails alone
        entries = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the input is named .json and is no JSON array: {error}") from None
    for number, entry in enumerate(entries, start=1):
        data = json.dumps(entry).encode("ascii")
        yield Line(number=number, data=data, n_bytes=len(data))


def _parquet_lines(stream: BinaryIO) -> Iterator[Line]:
    """One line for each row, numbered from 1, holding the columns that a schema knows."""
    if not is_file(stream) and not stream.seekable():
        raise ConfigError("Parquet cannot be read from a pipe; name the file")
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ConfigError(
            "the input is Parquet, which needs the extra parquet: pip install 'prm-edge[parquet]'"
        ) from None
    number = 0
    try:
        file = ParquetFile(stream)
        for index in range(file.metadata.num_row_groups):
            n_bytes = file.metadata.row_group(index).total_byte_size
            if n_bytes > MAX_ROW_GROUP_BYTES:
                raise InputError(
                    f"row group {index} of the Parquet input has {n_bytes} bytes; at most "
                    f"{MAX_ROW_GROUP_BYTES} are read at once: write it with smaller row groups"
                )
        columns = [name for name in file.schema_arrow.names if name in KNOWN_COLUMNS]
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield row_line(number, row)
    except (ArrowException, OSError) as error:
        raise InputError(
            f"the Parquet input is damaged, {number} rows into it: {str(error)[:200]}"
        ) from None


def row_line(number: int, row: Mapping[str, Any]) -> Line:
    """The line that a row of a table is, of the columns that a schema knows."""
    present = {
        key: value for key, value in row.items() if value is not None and key in KNOWN_COLUMNS
    }
    data = json.dumps(present, default=str).encode("ascii")
    return Line(number=number, data=data, n_bytes=len(data))

"""The unfinished output of a job, kept so that a killed job goes on where it was.

In: the place of the output, and a description of everything that decides what is in it. Beside
``OUT`` lie, until the job is done, ``OUT.partial``, which only grows, a whole line at a time, and
``OUT.job.json``, the description. Whatever happens between two instructions, the next run finds
either of these states: no description (begin), a description and a partial (go on behind its last
whole line), or a description that says ``finished`` and an ``OUT`` with that hash (done).
Imports nothing but the standard library and the runtime.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from prm_edge_runtime.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: two jobs on one output are not told apart there
    fcntl = None  # type: ignore[assignment]

PARTIAL: Final = ".partial"
DESCRIPTION: Final = ".job.json"
CONVERTED: Final = ".converted"
SYNC_S: Final = 5.0  # a power cut costs the records of so many seconds at most
BLOCK_BYTES: Final = 1024 * 1024

Value = TypeVar("Value")
Description = Mapping[str, str | int | float | bool | None]
Finish = Callable[[Path, Path], None]


@dataclass(slots=True, kw_only=True)
class Counts:
    """What is in an output so far."""

    records: int = 0
    failed: int = 0
    n_bytes: int = field(default=0, repr=False)


class Journal:
    """The output of a job that can be killed at any instant. A context manager.

    ``resume``: go on with what an earlier run left. ``overwrite``: replace ``out`` and what an
    earlier run left. ``seen``: is told of every record that is there already.
    """

    def __init__(
        self,
        out: Path,
        description: Description,
        *,
        resume: bool,
        overwrite: bool,
        seen: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        self.out: Final = Path(os.path.realpath(out))  # a link stays one
        self.counts: Final = Counts()
        self.complete = False  # there is nothing left to do
        self._shown = os.fspath(out)
        self._description = dict(description)
        self._resume = resume
        self._overwrite = overwrite
        self._seen = seen
        self._handle = -1
        self._synced_s = time.monotonic()

    @property
    def partial(self) -> Path:
        """Where the output grows."""
        return self.out.with_name(self.out.name + PARTIAL)

    @property
    def description(self) -> Path:
        """Where it says what the output is made from."""
        return self.out.with_name(self.out.name + DESCRIPTION)

    def __enter__(self) -> Journal:
        """Open the output, and find out how much of it is there.

        Raises:
            ConfigError: the place is taken, an earlier run was another job, or another process is
                writing there.
        """
        earlier = self._read_description()
        if earlier is not None and self._resume:
            self._compare(earlier)
            finished = earlier.get("finished")
            if isinstance(finished, dict) and self._is_out(finished):
                self.partial.unlink(missing_ok=True)
                self.counts.records = finished["records"]
                self.counts.failed = finished["failed"]
                self.complete = True
                return self
            if self.out.exists() and not self.partial.exists():
                raise ConfigError(
                    f"the output {self._shown!r} is not what the job beside it wrote: name another "
                    "file, or give --overwrite instead of --resume to begin again"
                )
        elif not self._overwrite:
            self._refuse_leftovers(earlier)
        try:
            self._open(go_on=self._resume and earlier is not None)
        except OSError as error:
            raise ConfigError(
                f"the output {self._shown!r} cannot be written: {error.strerror or error}"
            ) from None
        return self

    def _refuse_leftovers(self, earlier: dict[str, Any] | None) -> None:
        if earlier is not None and not self._resume and self.partial.exists():
            raise ConfigError(
                f"an unfinished job left {self.partial.name!r} beside the output: go on with it "
                "with --resume, or give --overwrite to begin again"
            )
        if earlier is None and self.partial.exists() and self.partial.stat().st_size:
            raise ConfigError(
                f"{self.partial.name!r} lies beside the output without {self.description.name!r}, "
                "which says what it is made from: remove it, or give --overwrite to begin again"
            )
        if self.out.exists():
            advice = (
                "it is complete, or another program's: give --overwrite to begin again"
                if self._resume
                else "give --overwrite to replace it"
            )
            raise ConfigError(f"the output {self._shown!r} exists; {advice}")

    def _read_description(self) -> dict[str, Any] | None:
        try:
            raw = self.description.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(
                f"{self.description.name!r} cannot be read: {error.strerror}"
            ) from None
        try:
            data = json.loads(raw)
            if not isinstance(data, dict) or not isinstance(data["job"], dict):
                raise ValueError("no description of a job")
        except (ValueError, KeyError) as error:
            if self._overwrite:
                return None
            raise ConfigError(
                f"{self.description.name!r} is not what prm-edge wrote ({error}): give "
                "--overwrite to begin again"
            ) from None
        return data

    def _compare(self, earlier: dict[str, Any]) -> None:
        changed = changes(earlier["job"], self._description)
        if changed:
            raise ConfigError(
                f"the job at {self._shown!r} is another one: {'; '.join(changed)}; "
                "give what it was begun with, or --overwrite instead of --resume to begin again"
            )

    def _is_out(self, finished: dict[str, Any]) -> bool:
        try:
            return bool(_sha256(self.out) == finished["sha256"])
        except OSError:
            return False

    def _open(self, *, go_on: bool) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._handle = os.open(self.partial, flags, 0o666)
        try:
            self._lock()
            if go_on:
                self._recover()
            else:
                # in this order: a description never stands beside another job's output
                self.description.unlink(missing_ok=True)
                os.ftruncate(self._handle, 0)
                os.fsync(self._handle)
                self._describe()
        except BaseException:
            self._close()
            raise

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy(self._shown) from None
        # its owner may have finished in between: this would be OUT now
        try:
            ours = os.path.samestat(os.fstat(self._handle), self.partial.stat())
        except OSError:
            ours = False
        if not ours:
            raise busy(self._shown)

    def _recover(self) -> None:
        """Count the whole lines and cut off what is behind the last of them."""
        with os.fdopen(os.dup(self._handle), "rb") as stream:
            stream.seek(0)
            while line := stream.readline():
                record = _record(line)
                if record is None:
                    break
                self.counts.records += 1
                self.counts.failed += "error" in record
                self.counts.n_bytes += len(line)
                self._seen(record)
        os.ftruncate(self._handle, self.counts.n_bytes)
        os.lseek(self._handle, self.counts.n_bytes, os.SEEK_SET)

    def _describe(self, **more: Any) -> None:
        text = json.dumps({"job": self._description, **more}, indent=2) + "\n"
        new = self.description.with_name(self.description.name + ".new")
        try:
            with new.open("wb") as stream:
                stream.write(text.encode("ascii"))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(new, self.description)
        finally:
            new.unlink(missing_ok=True)
        _fsync_folder(self.out.parent)

    def write(self, line: bytes, *, failed: bool) -> None:
        """Append one line; when this returns it survives the death of the process.

        Raises:
            OSError: the line is then not in the output.
        """
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self.counts.n_bytes)
                os.lseek(self._handle, self.counts.n_bytes, os.SEEK_SET)
            raise
        self.counts.records += 1
        self.counts.failed += failed
        self.counts.n_bytes += len(line)
        if time.monotonic() - self._synced_s > SYNC_S:
            os.fsync(self._handle)
            self._synced_s = time.monotonic()

    def finish(self, *, keep: bool, convert: Finish | None = None) -> None:
        """Put the whole output at its place; ``keep`` the description beside it.

        ``convert``: makes what goes there from the lines, where that is not the lines themselves.
        """
        os.fsync(self._handle)
        source = self.partial
        if convert is not None:
            source = self.out.with_name(self.out.name + CONVERTED)
            try:
                convert(self.partial, source)
                _fsync(source)
            except BaseException:
                source.unlink(missing_ok=True)
                raise
        done = {
            "records": self.counts.records,
            "failed": self.counts.failed,
            "sha256": _sha256(source),
        }
        self._describe(finished=done)
        if self.out.exists():
            shutil.copymode(self.out, source)
        os.replace(source, self.out)
        self.partial.unlink(missing_ok=True)
        if not keep:
            self.description.unlink(missing_ok=True)
        _fsync_folder(self.out.parent)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle < 0:
            return
        if error is not None and not self.counts.records:  # there is nothing worth going on with
            self.description.unlink(missing_ok=True)
            self.partial.unlink(missing_ok=True)
        elif error is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._handle)
        self._close()

    def _close(self) -> None:
        os.close(self._handle)
        self._handle = -1


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two descriptions of jobs differ in, in words."""
    return [
        f"{key} was {_shown(before.get(key))} and is {_shown(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


@contextlib.contextmanager
def locked(path: Path, shown: str) -> Iterator[None]:
    """Hold a file that no other process holds; ``shown`` names what it stands for.

    Raises:
        ConfigError: another process does.
    """
    with path.open("ab") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy(shown) from None
        yield


def busy(shown: str) -> ConfigError:
    """Another process is writing there."""
    return ConfigError(
        f"another process is writing {shown!r} now; wait for it, or name another file"
    )


def _record(line: bytes) -> dict[str, Any] | None:
    """A line as it was written, None when it is torn: the disk was full, or the power went."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:20]}...{text[-8:]}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())


def _fsync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut, where the system has a way to."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""The output of a job: a folder of parts, each of which is there whole or not at all.

In: finished parts, from any node, in any order, some of them twice. Out::

    OUT/part-00000-000000.jsonl         the records of part 0 of file 0, in order
    OUT/_prm_edge/part-00000-000000.json   what is in it: a part without this is not there
    OUT/_prm_edge/job.json              what the job is made from; says when it is finished

A part is written first and told of second, each under another name or in one upload, so a worker
may be killed at any instant. The parts that are told of are those that ``--resume`` leaves alone.
Imports pyarrow where it is needed; else nothing but the standard library and the runtime.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from prm_edge.journal import changes, locked
from prm_edge_runtime.errors import ConfigError

from .parts import Key, part_key, part_name
from .places import Place

ABOUT: Final = "_prm_edge"  # readers of data sets skip what begins with _
JOB: Final = "job.json"
LOCK: Final = "lock"
THREADS: Final = 16  # that read descriptions of parts, which takes a round trip each


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What one finished part is.

    ``first_failure``: the first record in it that could not be scored, and why. ``ids``: hashes of
    the ids in it, where they are compared. ``size``, ``sha256``: of the file.
    """

    file: int
    part: int
    records: int
    failed: int
    out_of_domain: int
    n_tokens: int
    first_failure: str | None
    ids: tuple[str, ...]
    size: int
    sha256: str

    @classmethod
    def from_json(cls, text: str | bytes) -> Summary:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        data = json.loads(text)
        return cls(**{**data, "ids": tuple(data["ids"])})

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @property
    def key(self) -> Key:
        """Which part it is of."""
        return (self.file, self.part)


class Folder:
    """The output folder of one job. Goes to the nodes that write; opens nothing by itself."""

    def __init__(self, place: Place, suffix: str) -> None:
        self.place: Final = place
        self.suffix: Final = suffix

    # --- before the work

    def begin(
        self, description: Mapping[str, Any], *, resume: bool, overwrite: bool
    ) -> dict[Key, Summary]:
        """Make the folder this job's; return the parts that an earlier run has finished.

        Raises:
            ConfigError: the place is taken, or the job there is another one.
        """
        held, about = self._held(self.place.path), self._held(self.place.child(ABOUT))
        earlier = self._read_job() if JOB in about else None
        if earlier is not None and resume:
            changed = changes(earlier["job"], description)
            if changed:
                raise ConfigError(
                    f"the job in {self.place.shown!r} is another one: {'; '.join(changed)}; give "
                    "what it was begun with, or --overwrite instead of --resume to begin again"
                )
            return self._finished_parts(held, about)
        if (earlier is not None or self._parts(held)) and not overwrite:
            state = "unfinished" if earlier is None or "finished" not in earlier else "finished"
            raise ConfigError(
                f"the output {self.place.shown!r} holds the parts of a job, {state}: go on with it "
                "with --resume, or give --overwrite to begin again"
            )
        if held.keys() - {ABOUT} and not self._parts(held):
            raise ConfigError(
                f"the output folder {self.place.shown!r} holds something else; name an empty one, "
                "or one that does not exist"
            )
        self._clear(held, about)
        self.place.filesystem.create_dir(self.place.child(ABOUT), recursive=True)
        self._write(f"{ABOUT}/{JOB}", _to_json({"job": dict(description)}))
        return {}

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keep a second job off this folder while the block runs; on this machine only.

        Raises:
            ConfigError: another process is writing there.
        """
        if not self.place.local:  # no filesystem of objects has locks; equal jobs write equal bytes
            yield
            return
        if os.path.isfile(self.place.path):
            raise self._is_a_file()
        try:
            os.makedirs(self.place.child(ABOUT), exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the output {self.place.shown!r} cannot be written: {error.strerror or error}"
            ) from None
        with locked(Path(self.place.child(ABOUT)) / LOCK, self.place.shown):
            yield

    def _finished_parts(self, held: dict[str, int], about: dict[str, int]) -> dict[Key, Summary]:
        named = [
            name.removesuffix(".json")
            for name in about
            if name.endswith(".json") and part_key(name.removesuffix(".json")) is not None
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(self._read_summary, named))
        return {
            summary.key: summary
            for name, summary in zip(named, found, strict=True)
            if summary is not None
            and part_key(name) == summary.key
            and held.get(name + self.suffix) == summary.size
        }

    def _read_summary(self, name: str) -> Summary | None:
        try:
            return Summary.from_json(self._read(f"{ABOUT}/{name}.json"))
        except (ValueError, TypeError, KeyError):
            return None  # torn by a power cut: the part is scored again

    def _read_job(self) -> dict[str, Any]:
        try:
            data = json.loads(self._read(f"{ABOUT}/{JOB}"))
            if not isinstance(data, dict) or not isinstance(data["job"], dict):
                raise ValueError("no description of a job")
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"{ABOUT}/{JOB} in {self.place.shown!r} is not what prm-edge wrote ({error}): name "
                "another folder, or remove this one"
            ) from None
        return data

    def _parts(self, held: dict[str, int]) -> list[str]:
        suffixes = (".jsonl", ".parquet")
        return [
            name
            for name in held
            if name.endswith(suffixes) and part_key(name.rpartition(".")[0]) is not None
        ]

    def _clear(self, held: dict[str, int], about: dict[str, int]) -> None:
        # descriptions first: a part is never told of when it is another job's
        for name in sorted(about, key=lambda name: name == JOB):
            if name != LOCK:
                self.place.filesystem.delete_file(self.place.child(f"{ABOUT}/{name}"))
        for name in self._parts(held):
            self.place.filesystem.delete_file(self.place.child(name))

    # --- during the work, on any node

    def write_part(self, summary: Summary, data: bytes) -> None:
        """Write a part, and then that it is there."""
        name = part_name(summary.key)
        self._write(name + self.suffix, data)
        self._write(f"{ABOUT}/{name}.json", f"{summary.to_json()}\n".encode("ascii"))

    # --- after the work

    def finish(self, description: Mapping[str, Any], records: int, failed: int) -> None:
        """Say that the job is done."""
        done = {"records": records, "failed": failed}
        self._write(f"{ABOUT}/{JOB}", _to_json({"job": dict(description), "finished": done}))

    def count_parts(self) -> int:
        """How many parts are told of now."""
        names = self._held(self.place.child(ABOUT))
        return sum(part_key(name.removesuffix(".json")) is not None for name in names)

    # --- files

    def _held(self, path: str) -> dict[str, int]:
        """The names in a folder with their sizes; none where there is no folder."""
        from pyarrow.fs import FileSelector, FileType

        (info,) = self.place.filesystem.get_file_info([path])
        if info.type == FileType.File:
            raise self._is_a_file()
        entries = self.place.filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        return {entry.base_name: entry.size or 0 for entry in entries}

    def _is_a_file(self) -> ConfigError:
        return ConfigError(
            f"the output {self.place.shown!r} is a file; the ray engine writes a folder of parts: "
            "name one that does not exist"
        )

    def _read(self, name: str) -> bytes:
        with self.place.filesystem.open_input_file(self.place.child(name)) as stream:
            content: bytes = stream.read()
        return content

    def _write(self, name: str, content: bytes) -> None:
        if self.place.local:
            write_whole(Path(self.place.child(name)), content)
            return
        # an upload that is not closed leaves nothing
        with self.place.filesystem.open_output_stream(self.place.child(name)) as stream:
            stream.write(content)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, and survives a power cut."""
    hidden = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        with hidden.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(hidden, path)
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)


def missing_parts(found: Mapping[Key, Summary], records: tuple[int, ...]) -> str | None:
    """What is not there, in words, when every part should be; None when nothing is missing.

    ``records``: how many each file of the input has.
    """
    for index, expected in enumerate(records):
        parts = sorted(key[1] for key in found if key[0] == index)
        written = sum(found[index, number].records for number in parts)
        if written != expected or parts != list(range(len(parts))):
            return f"{written} of the {expected} records of input file {index} were written"
    return None


def sha256(content: bytes) -> str:
    """The hash of a part."""
    return hashlib.sha256(content).hexdigest()


def _to_json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode("ascii")

"""Where files lie: a path of this machine, or a URI that pyarrow has a filesystem for.

In: what the user typed. Out: a filesystem and paths in it. Imports pyarrow where it is needed;
else nothing but the standard library and the runtime.
"""

from __future__ import annotations

import fnmatch
import os
import re
from dataclasses import dataclass
from typing import Any, Final

from prm_edge.writers import load_pyarrow
from prm_edge_runtime.errors import ConfigError

URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
GLOB: Final = re.compile(r"[*?\[]")
# of a folder, only these are read; a file that is named may be called anything
SUFFIXES: Final = (".jsonl", ".ndjson", ".json", ".parquet")
PACKED: Final = (".gz", ".zst")
HIDDEN: Final = ("_", ".")  # as Ray Data, Spark and pyarrow have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A path in a filesystem. ``shown``: as the user named it. ``local``: on this machine."""

    filesystem: Any
    path: str
    shown: str
    local: bool

    def child(self, name: str) -> str:
        """The path of something in this folder."""
        return f"{self.path}/{name}"


def is_uri(text: str) -> bool:
    """Whether it names a scheme, ``s3://`` or another."""
    return URI.match(text) is not None


def find_place(text: str) -> Place:
    """Which filesystem a path or URI belongs to; whether something is there is not looked at.

    Raises:
        ConfigError: when pyarrow is not installed or has no filesystem for the scheme.
    """
    load_pyarrow()
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, LocalFileSystem

    if not is_uri(text) or text.startswith("file://"):
        path = os.path.abspath(text.removeprefix("file://"))
        return Place(filesystem=LocalFileSystem(), path=path, shown=text, local=True)
    try:
        filesystem, path = FileSystem.from_uri(text)
    except (ArrowException, OSError, ValueError) as error:
        raise ConfigError(
            f"{text!r} cannot be reached: {_short(error)}; pyarrow opens s3://, gs://, hdfs:// and "
            "abfs://, and takes credentials from where each of them keeps its own"
        ) from None
    return Place(filesystem=filesystem, path=path.rstrip("/"), shown=text, local=False)


def find_files(text: str) -> tuple[Place, tuple[str, ...]]:
    """The input files: one, those of a folder, or those that match a pattern; sorted by path.

    Returns the place that was named and the paths in its filesystem.

    Raises:
        ConfigError: when nothing is there.
    """
    place = find_place(text)
    if GLOB.search(place.path) and not _exists(place, place.path):
        folder = place.path[: GLOB.search(place.path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        found = [path for path in _below(place, folder) if fnmatch.fnmatch(path, place.path)]
        if not found:
            raise ConfigError(f"the input {text!r} matches no file")
        return place, tuple(sorted(found))
    kind = _kind(place, place.path)
    if kind == "file":
        return place, (place.path,)
    if kind is None:
        raise ConfigError(f"the input {text!r} does not exist; name a file, a folder or a pattern")
    found = [path for path in _below(place, place.path) if _is_record_file(path)]
    if not found:
        wanted = ", ".join(SUFFIXES)
        raise ConfigError(f"the input {text!r} is a folder without files named {wanted}")
    return place, tuple(sorted(found))


def _is_record_file(path: str) -> bool:
    for suffix in PACKED:
        path = path.removesuffix(suffix)
    return path.endswith(SUFFIXES)


def _below(place: Place, folder: str) -> list[str]:
    from pyarrow.fs import FileSelector, FileType

    depth = len(folder)
    entries = _listed(place, FileSelector(folder, recursive=True))
    return [
        entry.path
        for entry in entries
        if entry.type == FileType.File
        and not any(part.startswith(HIDDEN) for part in entry.path[depth:].strip("/").split("/"))
    ]


def _exists(place: Place, path: str) -> bool:
    return _kind(place, path) is not None


def _kind(place: Place, path: str) -> str | None:
    from pyarrow.fs import FileType

    (info,) = _listed(place, [path])
    return {FileType.File: "file", FileType.Directory: "folder"}.get(info.type)


def _listed(place: Place, what: Any) -> list[Any]:
    try:
        entries: list[Any] = place.filesystem.get_file_info(what)
    except OSError as error:
        raise ConfigError(f"{place.shown!r} cannot be read: {_short(error)}") from None
    return entries


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

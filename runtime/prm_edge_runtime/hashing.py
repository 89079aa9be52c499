"""SHA-256 of files, and the memory of which large files were hashed already.

In: a path and what its manifest says. Out: whether the content is that. The memory is a small
JSON file in the user's cache folder; whatever goes wrong with it only means hashing again.
Imports nothing but the standard library and this package's own modules.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .manifest import FileEntry

logger = logging.getLogger("prm_edge")

CHUNK_BYTES: Final = 1024 * 1024
MAX_REMEMBERED: Final = 256
# a file changed this recently may change again without a new time stamp (FAT counts in 2 s)
SETTLED_NS: Final = 2_000_000_000
_CACHE_FILE: Final = "verified.json"
_CACHE_VERSION: Final = 1


def hash_file(path: str | os.PathLike[str]) -> FileEntry:
    """Size and SHA-256 of a file, read in pieces.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(size=size, sha256=digest.hexdigest())


def cache_folder() -> Path | None:
    """The folder for this user's cache of prm-edge, or None when there is no place for one."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA", "")
    else:
        root = os.environ.get("XDG_CACHE_HOME", "")
    if root and os.path.isabs(root):  # the XDG specification: ignore a relative one
        return Path(root) / "prm-edge"
    try:
        return Path.home() / ".cache" / "prm-edge"
    except RuntimeError:  # no home folder
        return None


def _key(stat: os.stat_result, sha256: str) -> str:
    # ctime as well: it also moves when the content changes and the mtime is set back
    times = f"{stat.st_mtime_ns}:{stat.st_ctime_ns}"
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{times}:{sha256}"


@dataclass(slots=True, kw_only=True)
class HashMemory:
    """Remembers across processes which files had the hash that was expected of them.

    A file is known by device, inode, size and time stamps, never by its path.
    """

    folder: Path | None = field(default_factory=cache_folder)
    _known: dict[str, None] = field(default_factory=dict)
    _loaded: bool = False
    _new: bool = False

    def knows(self, path: Path, entry: FileEntry) -> bool:
        """Whether this file, unchanged since, had this hash. Never raises."""
        try:
            key = _key(path.stat(), entry.sha256)
        except OSError:
            return False
        self._load()
        return key in self._known

    def remember(self, path: Path, entry: FileEntry, before: os.stat_result) -> None:
        """Note that the hash was right; ``before`` is the file's status before it was hashed."""
        try:
            key = _key(path.stat(), entry.sha256)
        except OSError:
            return
        newest_ns = max(before.st_mtime_ns, before.st_ctime_ns)
        if key != _key(before, entry.sha256) or time.time_ns() - newest_ns < SETTLED_NS:
            return
        self._load()
        self._known.pop(key, None)
        self._known[key] = None  # newest last
        self._new = True

    def save(self) -> None:
        """Write what is new, atomically. Never raises."""
        if not self._new or self.folder is None:
            return
        keys = list(self._known)[-MAX_REMEMBERED:]
        text = json.dumps({"version": _CACHE_VERSION, "verified": keys}, indent=0)
        temporary = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".verified-")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, self.folder / _CACHE_FILE)
            self._new = False
        except OSError as error:
            logger.debug("verified hashes are not remembered: %s", error)
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        if self.folder is None:
            return
        try:
            data = json.loads((self.folder / _CACHE_FILE).read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            logger.debug("the memory of verified hashes cannot be read: %s", error)
            return
        if isinstance(data, dict) and data.get("version") == _CACHE_VERSION:
            keys = data.get("verified")
            if isinstance(keys, list):
                self._known = {key: None for key in keys if isinstance(key, str)}

"""Hidden temporary siblings of an output folder, and one-step renames.

In: the folder to be written. Out: an empty sibling on the same filesystem that belongs to this
process until it ends, however it ends; what dead processes left is removed or put back.
Imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

logger = logging.getLogger("prm_edge")

_LOCK_SUFFIX: Final = ".lock"
_AT_FDCWD: Final = -100  # Linux, fcntl.h
_RENAME_EXCHANGE: Final = 2  # Linux, stdio.h
# what kernels and filesystems answer that cannot exchange two names
_NO_EXCHANGE: Final = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


class Staging:
    """A new hidden folder ``.NAME.tmp-XXXXXXXX`` beside ``out``.

    A lock beside it, held until the process ends, tells a living owner from a dead one.
    """

    def __init__(self, out: Path) -> None:
        while True:
            self.path = out.parent / f".{out.name}.tmp-{secrets.token_hex(4)}"
            self._lock = self.path.with_name(self.path.name + _LOCK_SUFFIX)
            handle = _owned(self._lock)
            if handle is not None:
                break
        self._handle: int | None = handle
        try:
            self.path.mkdir()
        except OSError:
            self._release()
            raise

    def remove(self) -> None:
        """Remove the folder and give up the lock. Never raises; safe to call twice."""
        _remove_tree(self.path)
        self._release()

    def _release(self) -> None:
        if self._handle is not None:
            _unlink_open(self._lock, self._handle)
            self._handle = None


def sweep(out: Path) -> None:
    """Remove what exports to ``out`` left behind when they were killed, and nothing of others.

    An old package that was moved aside and not put back is put back.
    """
    ours = re.compile(rf"\.{re.escape(out.name)}\.tmp-[0-9a-f]{{8}}{re.escape(_LOCK_SUFFIX)}")
    for lock in [path for path in sorted(out.parent.iterdir()) if ours.fullmatch(path.name)]:
        folder = lock.with_name(lock.name.removesuffix(_LOCK_SUFFIX))
        try:
            handle = os.open(lock, os.O_RDWR)
        except OSError:
            continue  # its owner just finished, or it is another user's
        if not _try_lock(handle):
            os.close(handle)
            continue  # its owner lives
        aside = _aside(folder)
        if aside.is_dir() and not os.path.lexists(out):
            os.rename(aside, out)
            logger.warning("put back %s, which a killed export had moved aside", out)
        _remove_tree(aside)
        if _remove_tree(folder):
            logger.info("removed %s, left by an export that was killed", folder)
        _unlink_open(lock, handle)


def replace_folder(staging: Path, out: Path) -> None:
    """Put ``staging`` in the place of the folder ``out``; afterwards the old one is gone.

    In one step where the system can exchange two names; else the old folder is moved aside
    first, and put back when the second step fails.

    Raises:
        OSError: ``out`` is then as it was.
    """
    if not exchange(staging, out):
        aside = _aside(staging)
        os.rename(out, aside)
        try:
            os.rename(staging, out)
        except BaseException:
            os.rename(aside, out)
            raise
        _remove_tree(aside)
    fsync_folder(out.parent)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system cannot.

    Raises:
        OSError: it can, and this time it failed.
    """
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    ctypes.set_errno(0)
    names = (os.fsencode(one), os.fsencode(other))
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def fsync_file(path: Path) -> None:
    """Make the content of a file survive a power cut."""
    # Windows flushes only through a handle that may write
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut, where the system has a way to.

    Never raises: it comes after the step that cannot be undone.
    """
    if sys.platform == "win32":
        return
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        logger.debug("%s cannot be synced: %s", path, error)


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Keep other processes that ask for the same folder waiting, where the system can."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _aside(staging: Path) -> Path:
    return staging.with_name(staging.name + ".old")


def _owned(lock: Path) -> int | None:
    """Create and lock a file; None when another process was in the way."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    if _try_lock(handle) is False:
        os.close(handle)
        return None  # someone sweeping up took it in between, and is about to remove it
    if not _same_file(lock, handle):
        os.close(handle)
        return None
    return handle


def _try_lock(handle: int) -> bool | None:
    """Whether the lock is ours now; None where the filesystem has no locks."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        return None
    return True


def _same_file(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False


def _unlink_open(path: Path, handle: int) -> None:
    if sys.platform == "win32":  # which cannot remove an open file
        os.close(handle)
    with contextlib.suppress(OSError):
        path.unlink()
    if sys.platform != "win32":
        os.close(handle)


def _remove_tree(path: Path) -> bool:
    if not path.is_dir():
        return False
    # first what would make it load
    with contextlib.suppress(OSError):
        (path / "prm_edge.json").unlink()
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        logger.warning("%s could not be removed; remove it by hand", path)
        return False
    return True

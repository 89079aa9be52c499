"""Where records come from and where results go: files, stdin, stdout.

A file named by ``-o`` is written beside its place under a hidden name, and renamed when all of it
is there: whoever looks sees the old file or the whole new one.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import click

from prm_edge.inputs import is_file
from prm_edge_runtime.errors import ConfigError

STANDARD: Final = "-"
NO_INPUT: Final = "no input: name a file of JSON lines, pipe one in, or give - to type records"
NAME_CHARACTERS: Final = 40  # of the final name kept in the hidden one: 255 bytes is the limit


@contextmanager
def open_input(name: str | None) -> Iterator[BinaryIO]:
    """Open a file of records, or stdin for ``-``, or stdin if something is piped into it.

    Raises:
        ConfigError: when it is missing, a folder, unreadable, or nothing is piped in.
    """
    if name is None or name == STANDARD:
        # it is None where the shell closed it
        if sys.stdin is None or (name is None and sys.stdin.isatty()):
            raise ConfigError(NO_INPUT)
        yield sys.stdin.buffer
        return
    shown = click.format_filename(name)
    if os.path.isdir(name):
        raise ConfigError(f"the input {shown!r} is a folder; name a file of JSON lines in it")
    try:
        stream = open(name, "rb")  # noqa: SIM115  (closed below; only its opening is guarded)
    except FileNotFoundError:
        raise ConfigError(
            f"the input {shown!r} does not exist; name a file, or - for stdin"
        ) from None
    except OSError as error:
        raise ConfigError(f"the input {shown!r} cannot be read: {error.strerror}") from None
    with stream:
        yield stream


@contextmanager
def open_output(name: str, *, source: BinaryIO, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a file that appears only when the block ends well, or stdout for ``-``.

    A pipe or device is written as it is. ``source`` is the input, which must be another file.

    Raises:
        ConfigError: when the place is taken, is the input, or cannot be written.
    """
    check_place(name, source)
    if name == STANDARD:
        yield sys.stdout.buffer
        return
    named = Path(name)
    shown = click.format_filename(name)
    if named.exists() and not named.is_file():
        with named.open("wb") as stream:
            yield stream
        return
    check_free(named, shown, overwrite)
    target = Path(os.path.realpath(name))  # a link stays a link: the file behind it is replaced
    hidden = target.with_name(f".{target.name[:NAME_CHARACTERS]}.tmp-{secrets.token_hex(4)}")
    try:
        stream = hidden.open("xb")
    except OSError as error:
        raise ConfigError(f"the output {shown!r} cannot be written: {error.strerror}") from None
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, hidden)
        os.replace(hidden, target)
    finally:
        hidden.unlink(missing_ok=True)


def is_journaled(name: str, source: BinaryIO) -> bool:
    """Whether a run can be carried on: from a regular file to a regular one."""
    if name == STANDARD or source is getattr(sys.stdin, "buffer", None):
        return False
    return is_file(source) and (Path(name).is_file() or not Path(name).exists())


def check_place(name: str, source: BinaryIO) -> None:
    """Check that a file can be the output.

    Raises:
        ConfigError: when it is closed, a folder, in a folder that does not exist, or the input.
    """
    if name == STANDARD:
        if sys.stdout is None:  # the shell closed it
            raise ConfigError("no output: stdout is closed; name a file with -o")
        return
    named, shown = Path(name), click.format_filename(name)
    if named.is_dir():
        raise ConfigError(f"the output {shown!r} is a folder; name a file in it")
    if named.is_file() and _same_file(source, named):
        raise ConfigError(f"the output {shown!r} is the input too; name another file")
    if not named.absolute().parent.is_dir():
        raise ConfigError(
            f"the output {shown!r} cannot be written: No such folder; create it, or name another"
        )


def check_free(named: Path, shown: str, overwrite: bool) -> None:
    """Check that no file is lost.

    Raises:
        ConfigError: when there is one and ``overwrite`` was not given.
    """
    if named.is_file() and not overwrite:
        raise ConfigError(f"the output {shown!r} exists; give --overwrite to replace it")


def _same_file(source: BinaryIO, named: Path) -> bool:
    try:
        opened = os.fstat(source.fileno())
    except OSError:  # not a real file, as under a test runner
        return False
    return os.path.samestat(opened, named.stat())

"""Ctrl-C in a long run: the record in hand is finished first. A second one stops at once."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import click
from click.core import ParameterSource


@dataclass(slots=True)
class Stop:
    """Whether the user asked to stop."""

    asked: bool = False


@contextmanager
def interruptible(*, graceful: bool) -> Iterator[Stop]:
    """Note the first SIGINT instead of raising, where ``graceful``.

    Where the next record may never come, as on a terminal, it raises at once as always.
    """
    stop = Stop()
    if not graceful or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or before is None:  # whoever started us wants it ignored
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def resuming_command(context: click.Context) -> str:
    """The command line that goes on with this run: what was given, and ``--resume``."""
    words = [context.command_path]
    for parameter in context.command.params:
        if parameter.name in ("overwrite", "resume"):
            continue
        if context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            words += _words(parameter, context.params[parameter.name])
    return " ".join([*words, "--resume"])


def _words(parameter: click.Parameter, value: Any) -> list[str]:
    if isinstance(parameter, click.Argument):
        return [shlex.quote(str(value))]
    assert isinstance(parameter, click.Option)  # click has no third kind
    name = max(parameter.opts, key=len)
    return [name] if parameter.is_flag else [name, shlex.quote(str(value))]

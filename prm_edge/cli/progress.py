"""What a long run says on stderr while it goes on: a line on a terminal, or JSON for programs."""

from __future__ import annotations

import json
import time
from typing import Any, Final

import click

REFRESH_S: Final = 0.1  # of the line on a terminal
LOG_S: Final = 10.0  # between two JSON lines
SETTLED_RECORDS: Final = 3  # before which nothing is said about how long it will take


class Voice:
    """Says things on stderr: in words, or as one JSON object a line."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self.quiet = quiet
        self.as_json = as_json

    def event(self, name: str, message: str | None = None, **data: Any) -> None:
        """Say what is not a problem; ``message`` is all that people see."""
        if self.quiet:
            return
        if self.as_json:
            said = {"message": message} if message is not None else {}
            click.echo(json.dumps({"event": name, **said, **data}), err=True)
        elif message is not None:
            click.echo(f"prm-edge: {message}", err=True)

    def problem(self, message: str) -> None:
        """Say what went wrong, even when told to be quiet."""
        if self.as_json:
            click.echo(json.dumps({"event": "problem", "message": message}), err=True)
        else:
            click.echo(f"prm-edge: {message}", err=True)


class Progress:
    """How far a run is. ``total``: records there are, None when nobody knows; ``done``: earlier.

    ``terminal``: draw a line. With a ``voice`` of JSON it logs instead, now and then.
    """

    def __init__(self, voice: Voice, *, terminal: bool, total: int | None, done: int = 0) -> None:
        self.records = 0  # of this run
        self.tokens = 0
        self.failed = 0
        self._voice = voice
        self._terminal = terminal and not voice.as_json and not voice.quiet
        self._every_s = LOG_S if voice.as_json else REFRESH_S
        self._total = total
        self._done = done
        self._shown = False
        self._start_s = time.monotonic()
        self._next_s = self._start_s + (LOG_S if voice.as_json else 0.0)

    def add(self, *, n_tokens: int, failed: bool) -> None:
        """Note one record, and show where we are if it is time."""
        self.records += 1
        self.tokens += n_tokens
        self.failed += failed
        now_s = time.monotonic()
        if now_s < self._next_s or not (self._terminal or self._voice.as_json):
            return
        self._next_s = now_s + self._every_s
        if self._voice.as_json:
            self._voice.event("progress", **self.figures())
            return
        self._shown = True
        click.echo(f"\r{self.line()}\x1b[K", nl=False, err=True)

    def figures(self) -> dict[str, Any]:
        """Where we are, for programs."""
        seconds = max(time.monotonic() - self._start_s, 1e-9)
        left = None if self._total is None else self._total - self._done - self.records
        rate = self.records / seconds
        eta_s = None if left is None or self.records < SETTLED_RECORDS else left / rate
        return {
            "records": self._done + self.records,
            "total": self._total,
            "failed": self.failed,
            "elapsed_s": round(seconds, 3),
            "records_per_s": round(rate, 3),
            "tokens_per_s": round(self.tokens / seconds, 1),
            "eta_s": None if eta_s is None else round(eta_s, 1),
        }

    def line(self) -> str:
        """Where we are, for people."""
        now = self.figures()
        total = "" if now["total"] is None else f"/{now['total']}"
        parts = [
            f"{now['records']}{total} records",
            f"{now['records_per_s']:.3g}/s",
            f"{now['tokens_per_s']:.0f} tokens/s",
        ]
        if now["eta_s"] is not None:
            parts.append(f"{_clock(now['eta_s'])} left")
        if now["failed"]:
            parts.append(f"{now['failed']} failed")
        return ", ".join(parts)

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._shown = False


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"

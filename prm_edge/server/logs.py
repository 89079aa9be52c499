"""Structured logs: one JSON object a line on stderr, never with a pupil's text unless asked."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any, Final, TextIO

LOGGER: Final = "prm_edge.server"
UVICORN: Final = ("uvicorn", "uvicorn.error")
FIELDS: Final = "fields"  # of a record: what goes into the object as it is
_encode: Final = json.JSONEncoder(allow_nan=False, default=str).encode

logger = logging.getLogger(LOGGER)


class JsonFormatter(logging.Formatter):
    """``time`` (UTC), ``level``, ``event``, and the fields of the record.

    Of an exception only its type and the places in the code are told: its message may quote what a
    pupil wrote.
    """

    def __init__(self, *, with_text: bool) -> None:
        super().__init__()
        self._with_text = with_text
        self._second = (0, "")  # the last one, and how it is written

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII JSON."""
        second, at = self._second
        if int(record.created) != second:
            at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            self._second = (int(record.created), at)
        data: dict[str, Any] = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, trace = record.exc_info
            data["error"] = kind.__name__
            data["at"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(trace)
            ]
            if self._with_text:
                data["message"] = str(error)
        return _encode(data)


def start_logging(*, with_text: bool, stream: TextIO | None = None) -> None:
    """Write the server's and uvicorn's logs to a stream (stderr) as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(with_text=with_text))
    for name, level in ((LOGGER, logging.INFO), *((name, logging.WARNING) for name in UVICORN)):
        named = logging.getLogger(name)
        named.handlers = [handler]
        named.setLevel(level)
        named.propagate = False


def log(level: int, event: str, **fields: Any) -> None:
    """Log an event with fields."""
    if logger.isEnabledFor(level):
        # not logger.log, which walks the stack for the name of a function that nobody prints
        record = logger.makeRecord(LOGGER, level, "", 0, event, (), None, extra={FIELDS: fields})
        logger.handle(record)

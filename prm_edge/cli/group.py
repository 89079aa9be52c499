"""From errors to exit codes: the only place that knows both."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import click

from prm_edge_runtime.errors import (
    ConfigError,
    PackageNotFoundError,
    PrmEdgeError,
    VariantError,
)

NOT_FINISHED: Final = 1
WRONG_USAGE: Final = 2
RECORDS_FAILED: Final = 3
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

USAGE_ERRORS: Final = (ConfigError, PackageNotFoundError, VariantError)


class Failure(click.ClickException):
    """It did not finish: ``Error: MESSAGE`` on stderr, and the exit code."""

    exit_code = NOT_FINISHED


class Misuse(Failure):
    """It was called wrongly."""

    exit_code = WRONG_USAGE


class Interrupted(Failure):
    """The user stopped it."""

    exit_code = INTERRUPTED


class PrmEdgeGroup(click.Group):
    """A group of commands whose expected errors end in one sentence, never in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see the exit codes above."""
        try:
            return super().invoke(ctx)
        except USAGE_ERRORS as error:
            raise Misuse(str(error)) from error
        except PrmEdgeError as error:
            raise Failure(str(error)) from error
        except KeyboardInterrupt:
            raise Interrupted("interrupted before it was done") from None
        except BrokenPipeError:
            _forget_stdout()
            ctx.exit(NOT_FINISHED)
        except OSError as error:
            raise Failure(describe_os_error(error)) from error


def describe_os_error(error: OSError) -> str:
    """What the system said, and about which file, without its number."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return reason
    return f"{reason}: {click.format_filename(error.filename)}"


def _forget_stdout() -> None:
    # whoever read our output has gone; without this Python complains when it flushes at exit
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)

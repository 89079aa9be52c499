"""``prm-edge score``: JSON lines in, JSON lines out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from .describe import name_package, say_notice
from .group import RECORDS_FAILED, Interrupted
from .options import engine_options, force_option, load_scorer, package_option
from .streams import STANDARD, open_input, open_output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prm_edge.jobs import OutputLine

REFRESH_S: Final = 0.1  # of the progress line


@click.command("score", short_help="Score the records of a JSON lines file.")
@click.argument("file", metavar="[FILE|-]", required=False, type=click.Path())
@package_option
@click.option(
    "-o",
    "--out",
    default=STANDARD,
    metavar="OUT",
    type=click.Path(),
    help="File to write, which appears when it is complete. Default: - for stdout.",
)
@engine_options
@force_option
@click.option("--threshold", type=float, help="A lower score is an error. Default: the package's.")
@click.option("--by", metavar="AGGREGATE", help="Orders candidates. Default: the recipe's own.")
@click.option(
    "--on-too-long",
    metavar="POLICY",
    type=click.Choice(["error", "null", "window"]),
    default="null",
    show_default=True,
    help="Beyond the model's limit: error, null (no score), or window (scored with the problem "
    "and only the last steps before).",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--quiet", is_flag=True, help="Say nothing on stderr but what went wrong.")
def score_command(
    file: str | None,
    package: str | None,
    out: str,
    device: str | None,
    variant: str | None,
    threads: int | None,
    force: bool,
    threshold: float | None,
    by: str | None,
    on_too_long: str,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Score the steps of every record in FILE, or of stdin.

    Every line of the input is one JSON object; other keys are ignored:

    \b
      {"id"?, "problem", "steps": [...]}             also ProcessBench
      {"id"?, "problem", "response": "..."}          cut into steps by the recipe
      {"id"?, "problem", "candidates": [[...], ...]} compared with each other
      {"prompt", "completions": [...]}               TRL

    Every record gives one line of output, in order. One that cannot be scored gives a line with
    "error" and the exit code 3; blank lines give none.
    """
    from prm_edge.jobs import score_records
    from prm_edge.records import read_lines

    with (
        open_input(file) as source,
        open_output(out, source=source, overwrite=overwrite) as sink,
        load_scorer(
            package, device=device, variant=variant, threads=threads, force=force
        ) as scorer,
    ):
        if not quiet:
            click.echo(f"prm-edge: scoring with {name_package(scorer)}", err=True)
            say_notice(scorer.package.manifest)
        lines = score_records(
            scorer,
            read_lines(source),
            by=by,
            threshold=threshold,
            on_too_long=on_too_long,
            ahead=file not in (None, STANDARD) and Path(str(file)).is_file(),
        )
        progress = Progress(enabled=not quiet and _progress_is_seen(out))
        tally = write_lines(lines, sink, progress, flush=out == STANDARD)
    tally.say(quiet=quiet)
    if tally.failed:
        raise click.exceptions.Exit(RECORDS_FAILED)


def _progress_is_seen(out: str) -> bool:
    # not between the results, where both go to the same terminal
    return sys.stderr.isatty() and not (out == STANDARD and sys.stdout.isatty())


class Progress:
    """A line on the terminal that counts records; nothing when it is not ``enabled``."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._shown = False
        self._next_s = 0.0

    def update(self, records: int) -> None:
        """Show the count, ten times a second at most."""
        if not self._enabled or time.monotonic() < self._next_s:
            return
        self._shown = True
        self._next_s = time.monotonic() + REFRESH_S
        click.echo(f"\r{records} records", nl=False, err=True)

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._shown = False


class Tally:
    """What there is to say about a run when it is over."""

    def __init__(self) -> None:
        from prm_edge.jobs import DuplicateIds

        self.records = 0
        self.failed = 0
        self._first_failure = ""
        self._duplicates = DuplicateIds()

    def add(self, line: OutputLine) -> None:
        """Note one line."""
        self.records += 1
        self._duplicates.add(line.id)
        if line.error is not None:
            if not self.failed:
                self._first_failure = f"line {line.number}: {line.error}"
            self.failed += 1

    def say(self, *, quiet: bool) -> None:
        """Say on stderr what the user has to know."""
        if self.failed:
            click.echo(
                f"prm-edge: {self.failed} of {self.records} records could not be scored; "
                f"the first, {self._first_failure}",
                err=True,
            )
        if not quiet and not self.records:
            click.echo("prm-edge: the input holds no records", err=True)
        if not quiet and self._duplicates.count:
            click.echo(
                f"prm-edge: {self._duplicates.count} records have an id that occurred before "
                f"(the first is {self._duplicates.first!r}); all of them were scored",
                err=True,
            )


def write_lines(
    lines: Iterable[OutputLine], sink: BinaryIO, progress: Progress, *, flush: bool
) -> Tally:
    """Write every line as soon as it is known.

    Raises:
        Interrupted: when the user does.
    """
    tally = Tally()
    try:
        for line in lines:
            sink.write(line.to_json())
            if flush:
                sink.flush()
            tally.add(line)
            progress.update(tally.records)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted after {tally.records} records") from None
    finally:
        progress.clear()
    return tally

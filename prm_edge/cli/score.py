"""``prm-edge score``: JSON lines in, JSON lines out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from .describe import name_package, notice
from .group import RECORDS_FAILED, Failure, Interrupted, describe_os_error
from .interrupt import Stop, interruptible, resuming_command
from .options import (
    SHARD,
    Shard,
    engine_options,
    force_option,
    load_scorer,
    package_option,
)
from .progress import Progress, Voice
from .score_ray import RAY, check_local, cluster_options, cluster_values, score_on_ray
from .streams import STANDARD, check_free, check_place, is_journaled, open_input, open_output
from .tally import Tally
from .words import some

if TYPE_CHECKING:
    from prm_edge.inputs import Survey
    from prm_edge.jobs import OutputLine
    from prm_edge.journal import Journal
    from prm_edge_runtime.scorer import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for."""

    file: str | None
    out: str
    threshold: float | None
    by: str | None
    form: str
    text: bool
    unsure: bool
    on_too_long: str
    force: bool
    shard: Shard | None
    resume: bool
    overwrite: bool


@click.command("score", short_help="Score the records of a file.")
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
@click.option("--resume", is_flag=True, help="Go on with OUT where a killed run left it.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists; begin again.")
@click.option(
    "--shard", metavar="I/N", type=SHARD, help="Score part I of N only; cat puts them together."
)
@click.option(
    "--form",
    metavar="FORM",
    default="native",
    show_default=True,
    help="What to write; see prm-edge formats.",
)
@click.option("--text", is_flag=True, help="Write problem, steps and labels too, as report reads.")
@engine_options
@force_option
@click.option("--threshold", type=float, help="A lower score is an error. Default: the package's.")
@click.option(
    "--unsure", is_flag=True, help="Say unknown inside the band that calibrate has fitted."
)
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
@click.option("--quiet", is_flag=True, help="Say nothing on stderr but what went wrong.")
@click.option("--log-json", is_flag=True, help="Say it on stderr as JSON, for programs.")
@cluster_options
@click.pass_context
def score_command(
    context: click.Context,
    /,
    *,
    package: str | None,
    device: str | None,
    variant: str | None,
    threads: int | None,
    quiet: bool,
    log_json: bool,
    engine: str,
    **options: Any,
) -> None:
    """Score the steps of every record in FILE, or of stdin.

    Every record is one JSON object a line, or a row of Parquet; gzip and zstd are seen from the
    first bytes. Those most used (prm-edge formats lists all):

    \b
      {"id"?, "problem", "steps": [...]}             also ProcessBench
      {"id"?, "problem", "response": "..."}          cut into steps by the recipe
      {"id"?, "problem", "candidates": [[...], ...]} compared with each other
      {"prompt", "completions": [...]}               TRL

    Every record gives one line of output, in order. One that cannot be scored gives a line with
    "error" and the exit code 3; blank lines give none.

    A run from file to file may be killed at any instant: --resume goes on with what it wrote,
    OUT.partial, and refuses when the input, the package or an option is another.
    """
    voice = Voice(quiet=quiet, as_json=log_json)
    cluster = cluster_values(options)
    run_by: dict[str, Any] = {
        "package": package, "device": device, "variant": variant, "threads": threads,
    }  # fmt: skip
    if engine == RAY:
        finished = Tally.of(score_on_ray(context, voice, {**options, **run_by}, cluster))
        _end(finished, voice)
        return
    check_local(cluster)
    request = Request(**options)
    with ExitStack() as stack:
        source = stack.enter_context(open_input(request.file))
        journaled = _check(request, source)
        scorer = stack.enter_context(load_scorer(**run_by, force=request.force))
        _introduce(voice, scorer)
        run = _Run(request, scorer, source, voice)
        tally = run.to_journal(context) if journaled else run.to_stream()
    _end(tally, voice)


def _end(tally: Tally, voice: Voice) -> None:
    tally.say(voice)
    if tally.failed:
        raise click.exceptions.Exit(RECORDS_FAILED)


def _check(request: Request, source: BinaryIO) -> bool:
    """Refuse what cannot be, before a model is loaded; return whether the run can be resumed."""
    from prm_edge.writers import NATIVE, form_named, load_pyarrow
    from prm_edge_runtime.errors import ConfigError

    form = form_named(request.form)
    check_place(request.out, source)
    journaled = is_journaled(request.out, source)
    if request.resume and request.overwrite:
        raise ConfigError(
            "--resume goes on with what is there and --overwrite begins again; give one of them"
        )
    if request.resume and not journaled:
        raise ConfigError(
            "--resume needs an input file and an output file (-o OUT): what comes from a pipe "
            "cannot be read again"
        )
    if request.shard is not None and not _is_named_file(request, source):
        raise ConfigError("--shard counts the records first, so it needs a file, not a pipe")
    if form.convert is not None and not journaled:
        raise ConfigError(
            f"--form {form.name} is written when all records are scored: it needs an input file "
            "and -o OUT"
        )
    if form.name == "parquet":
        load_pyarrow()  # before the work, not after it
    if request.text and form.write is not form_named(NATIVE).write:
        raise ConfigError(f"--text goes with the native form; {form.name} has the text anyway")
    if journaled and not request.resume:
        check_free(Path(request.out), click.format_filename(request.out), request.overwrite)
    return journaled


def _is_named_file(request: Request, source: BinaryIO) -> bool:
    from prm_edge.inputs import is_file

    return request.file not in (None, STANDARD) and is_file(source)


def _introduce(voice: Voice, scorer: Scorer) -> None:
    named = name_package(scorer)
    about = {"package": scorer.package.digest, "variant": scorer.variant, "device": scorer.device}
    voice.event("start", f"scoring with {named}", **about)
    if (text := notice(scorer.package.manifest)) is not None:
        voice.event("notice", f"NOTICE: {text}")


class _Run:
    """One run of the command, its output still open."""

    def __init__(self, request: Request, scorer: Scorer, source: BinaryIO, voice: Voice) -> None:
        self._request = request
        self._scorer = scorer
        self._source = source
        self._voice = voice
        self._named = _is_named_file(request, source)
        self._terminal = _progress_is_seen(request.out)

    def to_stream(self) -> Tally:
        """To stdout, a pipe or a device; or from a pipe to a file."""
        request = self._request
        flush = request.out == STANDARD
        with open_output(request.out, source=self._source, overwrite=request.overwrite) as sink:
            found = self._survey() if self._needs_count() else None
            lines, total = self._score(found, skip=0)

            def write(line: OutputLine) -> None:
                sink.write(line.to_json())
                if flush:
                    sink.flush()

            tally = Tally()
            with interruptible(graceful=self._named) as stop:
                self._write(lines, write, tally, stop, total, done=0)
            if stop.asked:
                raise Interrupted(f"interrupted after {some(tally.records, 'record')}")
        return tally

    def to_journal(self, context: click.Context) -> Tally:
        """From a file to a file, so that it can be carried on."""
        from prm_edge.journal import Journal
        from prm_edge.writers import form_named

        request, tally = self._request, Tally()
        found = self._survey()
        self._score(found, skip=0)  # refuses an impossible option before anything is written
        journal = Journal(
            Path(request.out),
            self._description(found),
            resume=request.resume,
            overwrite=request.overwrite,
            seen=tally.add_earlier,
        )
        with journal:
            if journal.complete:
                tally.records, tally.failed = journal.counts.records, journal.counts.failed
                self._voice.event("end", f"{request.out} is complete: nothing to do")
                return tally
            done = journal.counts.records
            if done:
                self._voice.event("resume", f"going on after {some(done, 'record')}", records=done)
            lines, total = self._score(found, skip=done)
            if done > total:
                raise Failure(f"{journal.partial.name!r} holds more records than the input")

            def write(line: OutputLine) -> None:
                journal.write(line.to_json(), failed=line.error is not None)

            try:
                with interruptible(graceful=True) as stop:
                    self._write(lines, write, tally, stop, total, done=done)
            except OSError as error:
                raise Failure(f"{describe_os_error(error)}; {_kept(journal, context)}") from error
            if stop.asked and journal.counts.records < total:
                raise Interrupted(f"interrupted; {_kept(journal, context)}")
            if journal.counts.records < total:
                raise Failure(
                    f"the input ended after {journal.counts.records} of {total} records: it "
                    "changed while it was read; begin again with --overwrite"
                )
            journal.finish(keep=request.resume, convert=form_named(request.form).convert)
        return tally

    def _needs_count(self) -> bool:
        counted = self._terminal or self._voice.as_json or self._request.shard is not None
        return counted and self._named

    def _survey(self) -> Survey:
        from prm_edge.inputs import survey

        return survey(self._source, self._request.file or "")

    def _score(self, found: Survey | None, *, skip: int) -> tuple[Iterator[OutputLine], Any]:
        from prm_edge.inputs import read_source
        from prm_edge.jobs import score_records

        request = self._request
        lines, total = read_source(self._source, request.file or ""), None
        if found is not None:
            first, end = (
                (0, found.records) if request.shard is None else request.shard.part(found.records)
            )
            lines, total = islice(lines, first, end), end - first
        scored = score_records(
            self._scorer,
            lines,
            by=request.by,
            threshold=request.threshold,
            form=request.form,
            text=request.text,
            unsure=request.unsure,
            on_too_long=request.on_too_long,
            skip=skip,
            ahead=self._named,
        )
        return scored, total

    def _description(self, found: Survey) -> dict[str, str | int | float | bool | None]:
        from prm_edge.versions import onnxruntime_version
        from prm_edge_runtime.version import __version__

        request, scorer = self._request, self._scorer
        return {
            "input (SHA-256)": found.sha256,
            "input (records)": found.records,
            "package": scorer.package.digest,
            "variant": scorer.variant,
            "device": scorer.device,
            "--threshold": request.threshold,
            "--by": request.by,
            "--form": request.form,
            "--text": request.text,
            "--unsure": request.unsure,
            "--on-too-long": request.on_too_long,
            "--force": request.force,
            "--shard": None if request.shard is None else str(request.shard),
            "prm-edge": __version__,
            "onnxruntime": onnxruntime_version(),
        }

    def _write(
        self,
        lines: Iterator[OutputLine],
        write: Callable[[OutputLine], None],
        tally: Tally,
        stop: Stop,
        total: int | None,
        *,
        done: int,
    ) -> None:
        """Write every line as soon as it is known, until there are no more or the user stops."""
        progress = Progress(self._voice, terminal=self._terminal, total=total, done=done)
        try:
            for line in lines:
                write(line)
                tally.add(line)
                progress.add(n_tokens=line.n_tokens, failed=line.error is not None)
                if stop.asked:
                    break
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted after {some(tally.records, 'record')}") from None
        finally:
            progress.clear()
            if close := getattr(lines, "close", None):
                close()
        self._voice.event("end", **progress.figures())


def _kept(journal: Journal, context: click.Context) -> str:
    if not journal.counts.records:
        return "nothing was written"
    kept = some(journal.counts.records, "record", "is", "are")
    return f"{kept} kept, go on with: {resuming_command(context)}"


def _progress_is_seen(out: str) -> bool:
    # not between the results, where both go to the same terminal
    return sys.stderr.isatty() and not (out == STANDARD and sys.stdout.isatty())

"""``prm-edge bench``: how fast a package is on this machine, and what memory it takes."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

from .describe import name_package
from .options import engine_options, json_option, load_scorer

MOST_TOKENS: Final = 1 << 20


class LengthsType(click.ParamType):  # type: ignore[type-arg]  # generic in click 8.5 only
    """Numbers of tokens with commas between them."""

    name = "lengths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read them, or end with a usage error."""
        parts = str(value).split(",")
        if not all(part.strip().isdigit() and 0 < int(part) <= MOST_TOKENS for part in parts):
            self.fail(f"{value!r} is no list of numbers of tokens, as in 64,256,1024", param, ctx)
        return tuple(int(part) for part in parts)


@click.command("bench", short_help="Measure speed and memory of a package here.")
@click.argument("package", metavar="[PACKAGE]", required=False, type=click.Path())
@engine_options
@click.option(
    "--lengths",
    type=LengthsType(),
    default="64,256,1024",
    show_default=True,
    metavar="N,N,...",
    help="Tokens of the records.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, max=3600),
    default=3.0,
    show_default=True,
    help="About how long to measure each; 3 runs at least.",
)
@click.option(
    "--starts",
    type=click.IntRange(min=0, max=100),
    default=3,
    show_default=True,
    help="Fresh processes to measure the cold start with.",
)
@json_option
def bench_command(
    package: str | None,
    device: str | None,
    variant: str | None,
    threads: int | None,
    lengths: tuple[int, ...],
    seconds: float,
    starts: int,
    as_json: bool,
) -> None:
    """Measure PACKAGE on this machine: cold start, memory, whole records, a live session.

    Every figure is a median of runs that were just made; nothing is compared or judged. Records
    are made of the package's stored cases. Without PACKAGE: the one of PRM_EDGE_PACKAGE, else the
    built-in one.
    """
    from prm_edge.bench import measure

    options = {"device": device, "variant": variant, "threads": threads, "force": True}
    with load_scorer(package, **options) as scorer:  # type: ignore[arg-type]
        named = name_package(scorer)
        found = measure(
            scorer,
            {"path": package, **options},
            lengths=lengths,
            budget_s=seconds,
            starts=starts,
            say=_say if sys.stderr.isatty() else lambda line: None,
        )
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join([named, *table(found)]))


def _say(line: str) -> None:
    click.echo(f"prm-edge: measuring {line}", err=True)


def table(found: dict[str, Any]) -> list[str]:
    """The figures as lines."""
    lines = [f"  variant on disk  {_megabytes(found['variant_bytes'])}"]
    cold = found["cold_start"]
    if cold is not None:
        lines += [
            f"  cold start       {cold['total_s']:.2f} s to the first score, in a fresh process "
            f"(median of {cold['starts']}; the first {cold['first_total_s']:.2f} s)",
            f"                   import {cold['import_s']:.2f} s, load {cold['load_s']:.2f} s, "
            f"first score {cold['first_score_s']:.2f} s",
            f"  memory           {_memory(cold)}",
        ]
    for row in found["records"]:
        lines.append(
            f"  {row['tokens']:6d} tokens    {row['tokens_per_s']:.0f} tokens/s, "
            f"{1000 * row['median_s']:.1f} ms ({_spread(row)})"
        )
    session = found["session"]
    if session is not None:
        how = "" if session["incremental"] else ", each scores the whole solution again"
        lines.append(
            f"  session step     {1000 * session['median_s']:.1f} ms for "
            f"{session['tokens_run_per_step']:.0f} tokens on average{how} ({_spread(session)}; "
            f"start {1000 * session['start_s']:.1f} ms)"
        )
    return lines


def _memory(cold: dict[str, Any]) -> str:
    shown = (
        ("resident_loaded_bytes", "{} once loaded"),
        ("mapped_loaded_bytes", "{} of it mapped files"),
        ("resident_scored_bytes", "{} after the first score"),
        ("peak_bytes", "{} at most"),
    )
    said = [text.format(_megabytes(cold[key])) for key, text in shown if key in cold]
    return ", ".join(said) or "this system does not say"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def _spread(row: dict[str, Any]) -> str:
    return (
        f"{1000 * row['fastest_s']:.1f} to {1000 * row['slowest_s']:.1f} ms in {row['runs']} runs"
    )

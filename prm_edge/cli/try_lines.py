"""``prm-edge try``: type a solution line by line and see each score as the line is taken."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from prm_edge.error_words import looks_like

from .describe import name_package, say_notice
from .drawing import bar, cells, marked
from .options import engine_options, force_option, json_option, load_scorer, package_option

if TYPE_CHECKING:
    from prm_edge_runtime.scorer import Scorer
    from prm_edge_runtime.session import Session

UNDO: Final = ":undo"
QUIT: Final = ":quit"
PROMPT: Final = "> "


@click.command("try", short_help="Type a solution line by line and see each score.")
@click.argument("problem")
@package_option
@engine_options
@force_option
@json_option
def try_command(
    problem: str,
    package: str | None,
    device: str | None,
    variant: str | None,
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Score a solution of PROBLEM while it is written: one line is one step.

    Lines are read from the terminal or from a pipe until they end (Ctrl-D). :undo takes the last
    one back, :quit ends. Each line runs its own tokens only.
    """
    from prm_edge_runtime.errors import InputError, SessionError

    with load_scorer(
        package, device=device, variant=variant, threads=threads, force=force
    ) as scorer:
        click.echo(f"prm-edge: scoring with {name_package(scorer)}", err=True)
        say_notice(scorer.package.manifest)
        with scorer.session(problem) as session:
            steps: list[str] = []
            for line in _typed():
                try:
                    said = _take(session, scorer, steps, line)
                except (InputError, SessionError) as error:
                    click.echo(f"prm-edge: {error}", err=True)
                    continue
                if not as_json:
                    click.echo(said)
            if as_json:
                click.echo(json.dumps(_as_data(session, scorer, problem, steps), indent=2))
            else:
                click.echo(_summary(session))


def _typed() -> Iterator[str]:
    """The lines of a person or a pipe, blank ones left out, up to ``:quit``."""
    seen = sys.stdin.isatty()
    while True:
        if seen:
            click.echo(PROMPT, nl=False, err=True)
        line = sys.stdin.readline()
        if not line or line.strip() == QUIT:
            return
        if line.strip():
            yield line.strip()


def _take(session: Session, scorer: Scorer, steps: list[str], line: str) -> str:
    """Take a line, or take the last one back; return what there is to say."""
    if line == UNDO:
        session.undo()
        return f"taken back: {steps.pop()}"
    start_s = time.perf_counter()
    score = session.add(line)
    ms = 1000 * (time.perf_counter() - start_s)
    steps.append(line)
    mark = marked(len(steps) - 1, session.first_error, session.error_kinds)
    return f"{bar(score, scorer.recipe, cells())} {score:6.3f}  {line}{mark}   ({ms:.1f} ms)"


def _summary(session: Session) -> str:
    first, kinds = session.first_error, session.error_kinds
    at = "" if first is None else f" at step {first + 1}"
    kind = None if first is None or kinds is None else kinds[first]
    said = "" if kind is None else f", which {looks_like(kind)}"
    count = len(session.scores)
    return f"{session.verdict}{at}{said}: {count} step{'' if count == 1 else 's'}"


def _as_data(session: Session, scorer: Scorer, problem: str, steps: list[str]) -> dict[str, object]:
    from prm_edge.jobs import rounded

    kinds = session.error_kinds
    return {
        "problem": problem,
        "steps": steps,
        "scores": [rounded(score) for score in session.scores],
        "verdict": session.verdict,
        "first_error": session.first_error,
        "threshold": scorer.threshold,
        **({} if kinds is None else {"error_kinds": list(kinds)}),
        "n_tokens": session.n_tokens,
        "package": scorer.package.short,
        "variant": scorer.variant,
    }

"""``prm-edge demo``: the worked solutions that are shipped, scored by a package and drawn.

Every number shown comes from this run.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import click

from .describe import name_package, notice, package_bytes, size
from .drawing import bar, cells, marked
from .group import Failure
from .options import engine_options, json_option, load_scorer, package_option

if TYPE_CHECKING:
    from prm_edge.records import Line
    from prm_edge_runtime.recipe import Recipe
    from prm_edge_runtime.scorer import Scorer

DATA: Final = "data/demo.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One solution. ``planted``: index of the step that was made wrong, -1 for none.

    ``answered``: whether the number it ends with is the right answer.
    """

    steps: list[str]
    planted: int
    answered: bool
    result: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One problem of the demo, scored. ``result``: the line that ``prm-edge score`` writes."""

    problem: str
    drafts: tuple[Draft, ...]
    result: dict[str, Any]
    seconds: float

    @property
    def n_steps(self) -> int:
        return sum(len(draft.steps) for draft in self.drafts)


@click.command("demo", short_help="Score and draw the worked solutions shipped with it.")
@package_option
@engine_options
@json_option
def demo_command(
    package: str | None,
    device: str | None,
    variant: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Score the worked solutions shipped with prm-edge, and draw every step.

    One problem has two drafts with the right answer, of which only one gets there by right
    steps: the demo says which one would be served.
    """
    with load_scorer(package, device=device, variant=variant, threads=threads) as scorer:
        shown = [_show(scorer, line) for line in demo_lines()]
        if as_json:
            click.echo(json.dumps(as_data(scorer, shown), indent=2))
        else:
            click.echo("\n".join(as_text(scorer, shown, cells())))


def demo_lines() -> Iterator[Line]:
    """Read the lines that are shipped, as ``prm-edge score`` would."""
    from prm_edge.records import read_lines

    with files("prm_edge").joinpath(DATA).open("rb") as stream:
        yield from read_lines(stream)  # type: ignore[arg-type]  # "rb" is binary


def _show(scorer: Scorer, line: Line) -> Shown:
    from prm_edge.jobs import Job, score_line

    start_s = time.perf_counter()
    output = score_line(Job(scorer=scorer), line)
    seconds = time.perf_counter() - start_s
    if output.error is not None:
        raise Failure(f"line {line.number} of the demo: {output.error}")
    record = json.loads(line.data)
    result = dict(output.data)
    drafts = (
        zip(record["candidates"], record["labels"], result["candidates"], strict=True)
        if "candidates" in record
        else [(record["steps"], record["label"], result)]
    )
    return Shown(
        problem=record["problem"],
        drafts=tuple(
            Draft(steps=s, planted=p, answered=last_number(s[-1]) == record["answer"], result=r)
            for s, p, r in drafts
        ),
        result=result,
        seconds=seconds,
    )


def last_number(text: str) -> str:
    """The last number of a step, as it is written: what grading by the answer looks at."""
    numbers: list[str] = re.findall(r"\d+(?:\.\d+)?", text)
    return numbers[-1]


def as_data(scorer: Scorer, shown: Iterable[Shown]) -> dict[str, object]:
    """The whole run, for programs."""
    manifest = scorer.package.manifest
    return {
        "package": manifest.name,
        "digest": scorer.package.digest,
        "variant": scorer.variant,
        "device": scorer.device,
        "source": scorer.source,
        "notice": notice(manifest),
        "size_bytes": package_bytes(manifest, scorer.variant),
        "records": [
            {**item.result, "problem": item.problem, "ms": round(item.seconds * 1000, 3)}
            for item in shown
        ],
    }


def as_text(scorer: Scorer, shown: list[Shown], cells: tuple[str, str]) -> list[str]:
    """The whole run, drawn line by line with the two characters of ``cells``."""
    manifest = scorer.package.manifest
    lines = [name_package(scorer)]
    if (text := notice(manifest)) is not None:
        lines += ["", f"NOTICE: {text}"]
    for number, item in enumerate(shown, start=1):
        lines += ["", f"{number}. {item.problem}"]
        for index, draft in enumerate(item.drafts):
            if len(item.drafts) > 1:
                lines += ["", f"   draft {_letter(index)}"]
            lines += _draft_lines(draft, scorer.recipe, cells)
        if len(item.drafts) > 1:
            lines += [
                "",
                f"   by the answer alone: {_by_answer(item.drafts)}",
                f"   served: {_served(item.result)}",
            ]
    steps = sum(item.n_steps for item in shown)
    tokens = sum(draft.result["n_tokens"] for item in shown for draft in item.drafts)
    seconds = sum(item.seconds for item in shown)
    return [
        *lines,
        "",
        f"{steps} steps, {tokens} tokens in {seconds:.2f} s on {scorer.device}: "
        f"{seconds * 1000 / steps:.1f} ms per step, {tokens / seconds:.0f} tokens per second",
        f"package: {size(package_bytes(manifest, scorer.variant))} with {scorer.variant}",
    ]


def _draft_lines(draft: Draft, recipe: Recipe, cells: tuple[str, str]) -> list[str]:
    result = draft.result
    lines = []
    for index, (step, score) in enumerate(zip(draft.steps, result["scores"], strict=True)):
        value = "  none" if score is None else f"{score:6.3f}"
        mark = marked(index, result["first_error"], result.get("error_kinds"))
        lines.append(f"   {bar(score, recipe, cells)} {value}  {step}{mark}")
    first = "" if result["first_error"] is None else f" at step {result['first_error'] + 1}"
    planted = "no mistake" if draft.planted < 0 else f"a mistake in step {draft.planted + 1}"
    lines.append(
        f"   {result['verdict']}{first} (it was written with {planted}, and its answer is "
        f"{'right' if draft.answered else 'wrong'}), {result['n_tokens']} tokens"
    )
    return lines


def _by_answer(drafts: tuple[Draft, ...]) -> str:
    right = [_letter(index) for index, draft in enumerate(drafts) if draft.answered]
    broken = sum(draft.answered and draft.planted >= 0 for draft in drafts)
    return f"{' and '.join(right) or 'none'} would be accepted, {broken} of them with a wrong step"


def _served(result: dict[str, Any]) -> str:
    by, sound, best = result["by"], result["best_sound"], result["best"]
    if sound is not None:
        value = result["candidates"][sound]["aggregate"][by]
        return f"draft {_letter(sound)}, the best sound one ({by} {value:.3f})"
    if best is not None:
        return f"none: no draft is sound; the best of them is {_letter(best)} by {by}"
    return "none: no draft could be scored"


def _letter(index: int) -> str:
    return "ABCDEFGH"[index]

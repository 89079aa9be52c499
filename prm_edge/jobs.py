"""Score a stream of records.

In: a scorer and the lines of a file. Out: one line of output per line of input, in order, as
soon as it is known; a record that cannot be scored becomes a line that says why. A thread reads
and decodes ahead, within bounds. Prints nothing; imports nothing but the standard library and the
runtime.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from prm_edge_runtime import results, scoring
from prm_edge_runtime.calibration import Calibration, cautious
from prm_edge_runtime.errors import ConfigError, EngineError, InputError, RecipeError
from prm_edge_runtime.lengths import NULL, check_policy

from .ahead import Ahead
from .batches import Parsed, parse_line, parsed_batches
from .records import Line
from .solutions import Candidates, Id, Record, Response, Solution, read_id
from .writers import NATIVE, Scored, form_named, with_text

if TYPE_CHECKING:
    from prm_edge_runtime.results import StepScores
    from prm_edge_runtime.scorer import Scorer

DECIMALS: Final = 6
BATCHES_AHEAD: Final = 4  # read and decoded while one is scored
# what one record can do wrong; anything else is wrong with the package or the machine, and stops
RECORD_ERRORS: Final = (InputError, EngineError, RecipeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLine:
    """The result of one line of input.

    ``number``: of the line, from 1. ``id``: of the record, None when it has none. ``data``: what
    is written. ``error``: the message when the record failed, else None. ``n_tokens``: of it all.
    ``out_of_domain``: that is why it, or a candidate of it, has no scores.
    """

    number: int
    id: Id
    data: Mapping[str, Any]
    error: str | None = None
    n_tokens: int = 0
    out_of_domain: bool = False

    def to_json(self) -> bytes:
        """One line of ASCII JSON, so that no character in it can end the line early."""
        return json.dumps(self.data, allow_nan=False).encode("ascii") + b"\n"


Solved = tuple[str, tuple[str, ...]]  # a problem and its steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How records are scored and written.

    ``by``: aggregate that orders candidates, None for the recipe's own. ``threshold``: instead of
    the package's. ``form``: of :data:`.writers.FORMS`. ``text``: write problem and steps too.
    ``unsure``: a score in the package's unsure band decides nothing. ``on_too_long``: see
    :meth:`.Scorer.score`. ``ready``: what was scored ahead.
    """

    scorer: Scorer
    by: str | None = None
    threshold: float | None = None
    form: str = NATIVE
    text: bool = False
    unsure: bool = False
    on_too_long: str = NULL
    ready: dict[Solved, StepScores] = field(default_factory=dict, repr=False, compare=False)

    def score(self, problem: str, steps: Sequence[str]) -> StepScores:
        """Score one solution as the job says, or take its scores if they are ready."""
        result = self.ready.get((problem, tuple(steps)))
        if result is None:
            result = self.scorer.score(problem, steps, on_too_long=self.on_too_long)
        return self.judge(result)

    def score_ahead(self, records: Iterable[Record]) -> None:
        """Score the solutions among a few records together, in place of those before."""
        self.ready.clear()
        try:
            solved = {
                (record.problem, tuple(SOLUTIONS[type(record)](self, record))): None
                for record in records
                if type(record) in SOLUTIONS
            }
            found = self.scorer.score_many(list(solved), on_too_long=self.on_too_long)
        except RECORD_ERRORS:
            return  # each will be scored alone, and have an error of its own
        self.ready.update(zip(solved, found, strict=True))

    @property
    def calibration(self) -> Calibration | None:
        """What was fitted to the variant that runs."""
        return self.scorer.package.manifest.calibration.get(self.scorer.variant)

    def describe(self, result: StepScores) -> dict[str, Any]:
        """One solution's scores as they are written."""
        written, fitted = describe(result), self.calibration
        if fitted is not None and fitted.temperature is not None:
            written["probabilities"] = [
                None if score is None else rounded(fitted.probability(score))
                for score in result.scores
            ]
        if self.unsure and fitted is not None and fitted.unsure is not None:
            written["verdict"], written["first_error"] = cautious(result.scores, fitted.unsure)
            if result.kinds is not None:
                written["error_kinds"] = _sure_kinds(result, fitted.unsure[0], written)
        return written

    def judge(self, result: StepScores) -> StepScores:
        """Put the job's threshold in the place of the package's."""
        if self.threshold is None:
            return result
        return replace(result, threshold=self.threshold)


def score_records(
    scorer: Scorer,
    lines: Iterable[Line],
    *,
    by: str | None = None,
    threshold: float | None = None,
    form: str = NATIVE,
    text: bool = False,
    unsure: bool = False,
    on_too_long: str = NULL,
    skip: int = 0,
    ahead: bool = False,
    batch_tokens: int | None = None,
) -> Iterator[OutputLine]:
    """Score every line that :func:`.records.read_lines` yields.

    Args:
        form, text, unsure: what is written, see :class:`Job`.
        skip: so many records at the beginning have been scored by an earlier run.
        ahead: read ahead in a thread, and score a batch at a time, which is faster; not where
            someone waits for the answer to a line before giving the next.
        batch_tokens: of a batch, about, where it reads ahead; see :func:`.parsed_batches`.

    Raises:
        ConfigError: at once, when the recipe defines no aggregate ``by``, or the threshold is
            outside the range of its scores, or there is no such policy.
    """
    job = make_job(
        scorer,
        by=by,
        threshold=threshold,
        form=form,
        text=text,
        unsure=unsure,
        on_too_long=on_too_long,
    )
    if ahead:
        return _score_batches(job, lines, skip, batch_tokens)
    return (score_parsed(job, parse_line(line)) for line in islice(lines, skip, None))


def make_job(
    scorer: Scorer,
    *,
    by: str | None = None,
    threshold: float | None = None,
    form: str = NATIVE,
    text: bool = False,
    unsure: bool = False,
    on_too_long: str = NULL,
) -> Job:
    """Check how records are to be scored.

    Raises:
        ConfigError: when the recipe defines no aggregate ``by``, the threshold is outside the
            range of its scores, there is no such form or policy, or no unsure band.
    """
    if by is not None:
        scoring.aggregate((), by, scorer.recipe.aggregates)
    lowest, highest = scorer.recipe.score.range or (-sys.float_info.max, sys.float_info.max)
    if threshold is not None and not lowest <= threshold <= highest:  # NaN is outside too
        raise ConfigError(
            f"threshold {threshold} is outside the scores of this package, "
            f"which lie from {lowest:g} to {highest:g}"
        )
    form_named(form)
    job = Job(
        scorer=scorer,
        by=by,
        threshold=threshold,
        form=form,
        text=text,
        unsure=unsure,
        on_too_long=check_policy(on_too_long),
    )
    if unsure and threshold is not None:
        raise ConfigError("the unsure band lies around the package's threshold; give no other one")
    if unsure and (job.calibration is None or job.calibration.unsure is None):
        raise ConfigError(
            f"variant {scorer.variant!r} of this package has no unsure band; fit one with "
            "prm-edge calibrate PACKAGE LABELLED"
        )
    return job


def _score_batches(
    job: Job, lines: Iterable[Line], skip: int, batch_tokens: int | None
) -> Iterator[OutputLine]:
    """Score a batch of lines at a time; the same output as one by one."""
    batches = parsed_batches(lines, skip=skip, batch_tokens=batch_tokens)
    with closing(Ahead(batches, lambda b: b[1], max_items=BATCHES_AHEAD)) as ready:
        for batch, _, done in ready:
            job.score_ahead(item.record for item in batch if item.record is not None)
            yield from (score_parsed(job, item) for item in batch[done:])


def score_line(job: Job, line: Line) -> OutputLine:
    """Score one line; what is wrong with it comes back as a line with ``error``."""
    return score_parsed(job, parse_line(line))


def score_parsed(job: Job, parsed: Parsed) -> OutputLine:
    """Score what was read of one line."""
    record = parsed.record
    if record is None:
        return _failure(parsed, parsed.error or InputError("the line holds no record"))
    try:
        steps, result = RUNNERS[type(record)](job, record)
        scored = Scored(data=parsed.data, record=record, steps=steps, result=result)
        written = with_text(scored) if job.text else form_named(job.form).write(scored)
    except RECORD_ERRORS as error:
        return _failure(parsed, error)
    named = {} if record.id is None else {"id": record.id}
    about = {"package": job.scorer.package.short, "variant": job.scorer.variant}
    return OutputLine(
        number=parsed.line.number,
        id=record.id,
        data={**named, **written, **about},
        n_tokens=sum(item["n_tokens"] for item in result.get("candidates", [result])),
        out_of_domain=is_out_of_domain(result),
    )


def is_out_of_domain(written: Mapping[str, Any]) -> bool:
    """Whether a record as it is written has steps without a score because of its domain."""
    items = written.get("candidates", [written])
    return any(results.OUT_OF_DOMAIN in item.get("status", ()) for item in items)


def _failure(parsed: Parsed, error: Exception) -> OutputLine:
    try:
        known = read_id(parsed.data)
    except InputError:
        known = None
    named = {} if known is None else {"id": known}
    number = parsed.line.number
    detail = {"type": type(error).__name__, "message": str(error), "line": number}
    return OutputLine(number=number, id=known, data={**named, "error": detail}, error=str(error))


Run = tuple[tuple[str, ...], dict[str, Any]]


def _run_solution(job: Job, record: Any) -> Run:
    result = job.score(record.problem, record.steps)
    return record.steps, job.describe(result)


def _run_response(job: Job, record: Any) -> Run:
    # the steps are written too: without them nobody knows what the scores belong to
    steps = job.scorer.split(record.response)
    result = job.score(record.problem, steps)
    return tuple(steps), {"steps": steps, **job.describe(result)}


def _run_candidates(job: Job, record: Any) -> Run:
    ranking = job.scorer.rank(
        record.problem, record.candidates, by=job.by, on_too_long=job.on_too_long
    )
    ranking = results.rank(tuple(map(job.judge, ranking.candidates)), ranking.by)
    candidates = [job.describe(candidate) for candidate in ranking.candidates]
    for candidate in candidates:
        del candidate["threshold"]  # one for all of them
    return (), {
        "candidates": candidates,
        "order": list(ranking.order),
        "best": ranking.best,
        "best_sound": next((i for i in ranking.order if candidates[i]["verdict"] == "sound"), None),
        "by": ranking.by,
        "threshold": job.scorer.threshold if job.threshold is None else job.threshold,
    }


RUNNERS: Final[dict[type[Record], Callable[[Job, Any], Run]]] = {
    Solution: _run_solution,
    Response: _run_response,
    Candidates: _run_candidates,
}


# the steps of those that hold one solution
SOLUTIONS: Final[dict[type[Record], Callable[[Job, Any], Sequence[str]]]] = {
    Solution: lambda job, record: record.steps,
    Response: lambda job, record: job.scorer.split(record.response),
}


def describe(result: StepScores) -> dict[str, Any]:
    """One solution's scores as they are written."""
    kinds = result.error_kinds
    return {
        "scores": [rounded(score) for score in result.scores],
        "verdict": result.verdict,
        "first_error": result.first_error,
        "aggregate": {by: rounded(result.aggregate(by)) for by in result.aggregates},
        "threshold": result.threshold,
        "status": list(result.status),
        "n_tokens": result.n_tokens,
        **(
            {}
            if result.redundancy is None
            else {"redundancy": [rounded(value) for value in result.redundancy]}
        ),
        **({} if kinds is None else {"error_kinds": list(kinds)}),
    }


def _sure_kinds(result: StepScores, lowest: float, written: Mapping[str, Any]) -> list[str | None]:
    """The kinds of error of steps below the band; of the first error alone where only it counts."""
    assert result.kinds is not None  # asked by the caller
    named = result.kinds.named(result.scores, lowest)
    if result.kinds.every:
        return list(named)
    return [kind if at == written["first_error"] else None for at, kind in enumerate(named)]


def rounded(score: float | None) -> float | None:
    """A score as it is written: six decimals, and never a negative zero."""
    return None if score is None else round(score, DECIMALS) + 0.0

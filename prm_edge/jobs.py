"""Score a stream of records.

In: a scorer and the lines of a file. Out: one line of output per line of input, in order, as
soon as it is known; a record that cannot be scored becomes a line that says why. Keeps one record
in memory. Prints nothing; imports nothing but the standard library and the runtime.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from prm_edge_runtime import results, scoring
from prm_edge_runtime.errors import ConfigError, EngineError, InputError, RecipeError

from .records import (
    Candidates,
    Id,
    Line,
    Record,
    Response,
    Solution,
    decode_line,
    read_id,
    read_record,
)

if TYPE_CHECKING:
    from prm_edge_runtime.results import StepScores
    from prm_edge_runtime.scorer import Scorer

DECIMALS: Final = 6
MAX_IDS: Final = 1_000_000  # ids remembered while looking for duplicates, 16 bytes each
# what one record can do wrong; anything else is wrong with the package or the machine, and stops
RECORD_ERRORS: Final = (InputError, EngineError, RecipeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLine:
    """The result of one line of input.

    ``number``: of the line, from 1. ``id``: of the record, None when it has none. ``data``: what
    is written. ``error``: the message when the record failed, else None.
    """

    number: int
    id: Id
    data: Mapping[str, Any]
    error: str | None = None

    def to_json(self) -> bytes:
        """One line of ASCII JSON, so that no character in it can end the line early."""
        return json.dumps(self.data, allow_nan=False).encode("ascii") + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How records are scored.

    ``by``: aggregate that orders candidates, None for the recipe's own. ``threshold``: instead of
    the package's.
    """

    scorer: Scorer
    by: str | None = None
    threshold: float | None = None

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
) -> Iterator[OutputLine]:
    """Score every line that :func:`.records.read_lines` yields.

    Raises:
        ConfigError: at once, when the recipe defines no aggregate ``by``, or the threshold is
            outside the range of its scores.
    """
    if by is not None:
        scoring.aggregate((), by, scorer.recipe.aggregates)
    lowest, highest = scorer.recipe.score.range or (-sys.float_info.max, sys.float_info.max)
    if threshold is not None and not lowest <= threshold <= highest:  # NaN is outside too
        raise ConfigError(
            f"threshold {threshold} is outside the scores of this package, "
            f"which lie from {lowest:g} to {highest:g}"
        )
    job = Job(scorer=scorer, by=by, threshold=threshold)
    return (score_line(job, line) for line in lines)


def score_line(job: Job, line: Line) -> OutputLine:
    """Score one line; what is wrong with it comes back as a line with ``error``."""
    data: dict[str, Any] = {}
    try:
        data = decode_line(line)
        record = read_record(data)
        result = RUNNERS[type(record)](job, record)
    except RECORD_ERRORS as error:
        return _failure(line, data, error)
    named = {} if record.id is None else {"id": record.id}
    about = {"package": job.scorer.package.short, "variant": job.scorer.variant}
    return OutputLine(number=line.number, id=record.id, data={**named, **result, **about})


def _failure(line: Line, data: dict[str, Any], error: Exception) -> OutputLine:
    try:
        known = read_id(data)
    except InputError:
        known = None
    named = {} if known is None else {"id": known}
    detail = {"type": type(error).__name__, "message": str(error), "line": line.number}
    return OutputLine(
        number=line.number, id=known, data={**named, "error": detail}, error=str(error)
    )


def _run_solution(job: Job, record: Any) -> dict[str, Any]:
    result = job.judge(job.scorer.score(record.problem, record.steps))
    return describe(result)


def _run_response(job: Job, record: Any) -> dict[str, Any]:
    # the steps are written too: without them nobody knows what the scores belong to
    steps = job.scorer.split(record.response)
    result = job.judge(job.scorer.score(record.problem, steps))
    return {"steps": steps, **describe(result)}


def _run_candidates(job: Job, record: Any) -> dict[str, Any]:
    ranking = job.scorer.rank(record.problem, record.candidates, by=job.by)
    ranking = results.rank(tuple(map(job.judge, ranking.candidates)), ranking.by)
    candidates = [describe(candidate) for candidate in ranking.candidates]
    for candidate in candidates:
        del candidate["threshold"]  # one for all of them
    return {
        "candidates": candidates,
        "order": list(ranking.order),
        "best": ranking.best,
        "best_sound": ranking.best_sound,
        "by": ranking.by,
        "threshold": job.scorer.threshold if job.threshold is None else job.threshold,
    }


RUNNERS: Final[dict[type[Record], Callable[[Job, Any], dict[str, Any]]]] = {
    Solution: _run_solution,
    Response: _run_response,
    Candidates: _run_candidates,
}


def describe(result: StepScores) -> dict[str, Any]:
    """One solution's scores as they are written."""
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
    }


def rounded(score: float | None) -> float | None:
    """A score as it is written: six decimals, and never a negative zero."""
    return None if score is None else round(score, DECIMALS) + 0.0


class DuplicateIds:
    """Counts records whose id was seen before, in bounded memory.

    Remembers the hashes of the first ``limit`` ids; later ones are still compared with those.
    """

    def __init__(self, limit: int = MAX_IDS) -> None:
        self.count = 0
        self.first: Id = None
        self._limit = limit
        self._seen: set[bytes] = set()

    def add(self, identity: Id) -> None:
        """Note the id of one record; None is no id."""
        if identity is None:
            return
        # as JSON, so that 1, "1" and true differ
        text = json.dumps(identity).encode("ascii")
        digest = hashlib.blake2b(text, digest_size=16).digest()
        if digest in self._seen:
            if not self.count:
                self.first = identity
            self.count += 1
        elif len(self._seen) < self._limit:
            self._seen.add(digest)

"""Score a stream of records.

In: a scorer and the lines of a file. Out: one line of output per line of input, in order, as
soon as it is known; a record that cannot be scored becomes a line that says why. Keeps one batch
of records in memory. Prints nothing; imports nothing but the standard library and the runtime.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from prm_edge_runtime import results, scoring
from prm_edge_runtime.errors import ConfigError, EngineError, InputError, RecipeError
from prm_edge_runtime.lengths import NULL, check_policy

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
BATCH_RECORDS: Final = 32  # scored together where lines need not be answered one by one
BATCH_BYTES: Final = 1 << 20
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


Solved = tuple[str, tuple[str, ...]]  # a problem and its steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How records are scored.

    ``by``: aggregate that orders candidates, None for the recipe's own. ``threshold``: instead of
    the package's. ``on_too_long``: see :meth:`.Scorer.score`. ``ready``: what was scored ahead.
    """

    scorer: Scorer
    by: str | None = None
    threshold: float | None = None
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
    on_too_long: str = NULL,
    ahead: bool = False,
) -> Iterator[OutputLine]:
    """Score every line that :func:`.records.read_lines` yields.

    Args:
        ahead: read a batch before it is scored, which is faster; not where someone waits for the
            answer to a line before giving the next.

    Raises:
        ConfigError: at once, when the recipe defines no aggregate ``by``, or the threshold is
            outside the range of its scores, or there is no such policy.
    """
    if by is not None:
        scoring.aggregate((), by, scorer.recipe.aggregates)
    lowest, highest = scorer.recipe.score.range or (-sys.float_info.max, sys.float_info.max)
    if threshold is not None and not lowest <= threshold <= highest:  # NaN is outside too
        raise ConfigError(
            f"threshold {threshold} is outside the scores of this package, "
            f"which lie from {lowest:g} to {highest:g}"
        )
    job = Job(scorer=scorer, by=by, threshold=threshold, on_too_long=check_policy(on_too_long))
    parsed = map(parse_line, lines)
    if ahead:
        return score_batches(job, parsed)
    return (score_parsed(job, item) for item in parsed)


def score_batches(job: Job, parsed: Iterable[Parsed]) -> Iterator[OutputLine]:
    """Score lines that were read, a batch at a time; the same output as one by one."""
    for batch in _batches(parsed):
        job.score_ahead(item.record for item in batch if item.record is not None)
        yield from (score_parsed(job, item) for item in batch)


def _batches(parsed: Iterable[Parsed]) -> Iterator[list[Parsed]]:
    batch: list[Parsed] = []
    n_bytes = 0
    for item in parsed:
        batch.append(item)
        n_bytes += item.line.n_bytes
        if len(batch) >= BATCH_RECORDS or n_bytes >= BATCH_BYTES:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A line that was read: the record in it, or what is wrong with it."""

    line: Line = field(repr=False)
    data: dict[str, Any]
    record: Record | None = None
    error: InputError | None = None


def parse_line(line: Line) -> Parsed:
    """Read one line; what is wrong with it comes back as ``error``."""
    data: dict[str, Any] = {}
    try:
        data = decode_line(line)
        return Parsed(line=line, data=data, record=read_record(data))
    except InputError as error:
        return Parsed(line=line, data=data, error=error)


def score_line(job: Job, line: Line) -> OutputLine:
    """Score one line; what is wrong with it comes back as a line with ``error``."""
    return score_parsed(job, parse_line(line))


def score_parsed(job: Job, parsed: Parsed) -> OutputLine:
    """Score what was read of one line."""
    line, data, record = parsed.line, parsed.data, parsed.record
    if record is None:
        return _failure(line, data, parsed.error or InputError("the line holds no record"))
    try:
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
    result = job.score(record.problem, record.steps)
    return describe(result)


def _run_response(job: Job, record: Any) -> dict[str, Any]:
    # the steps are written too: without them nobody knows what the scores belong to
    steps = job.scorer.split(record.response)
    result = job.score(record.problem, steps)
    return {"steps": steps, **describe(result)}


def _run_candidates(job: Job, record: Any) -> dict[str, Any]:
    ranking = job.scorer.rank(
        record.problem, record.candidates, by=job.by, on_too_long=job.on_too_long
    )
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


# the steps of those that hold one solution
SOLUTIONS: Final[dict[type[Record], Callable[[Job, Any], Sequence[str]]]] = {
    Solution: lambda job, record: record.steps,
    Response: lambda job, record: job.scorer.split(record.response),
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

"""Solutions with their scores and with what is known of them: what rank, eval and report work on.

In: the lines of a file, and where the scores come from: a key of the records, or a package. Out:
samples, grouped by problem where that is asked for. Imports nothing but the standard library and
the runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, TypeVar

from prm_edge_runtime.errors import InputError, InputTypeError
from prm_edge_runtime.lengths import NULL
from prm_edge_runtime.results import SCORED, TOO_LONG, StepScores
from prm_edge_runtime.scoring import AGGREGATE_FUNCTIONS

from .records import Line, decode_line, read_labelled, recognise
from .schemas import SCHEMAS
from .solutions import UNKNOWN, Candidates, Id, Response, Truth, kind, read_id, strings

if TYPE_CHECKING:
    from prm_edge_runtime.scorer import Scorer

SCORES: Final = "scores"
PROBLEM_ID: Final = "problem_id"
ALL_AGGREGATES: Final = tuple(sorted(AGGREGATE_FUNCTIONS))
T = TypeVar("T")
MAX_SCORE: Final = 1e6  # no reward model scores so; such a number is something else


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One solution. ``line`` and ``candidate``: where it stands; ``group``: of its problem.

    ``steps`` is empty where only scores are known. ``threshold``: what its scores were judged by,
    None when nobody has judged them. ``status``: why a step has no score, or how it got one; empty
    where that is not known. ``redundancy``: how redundant each step is, None where nobody says.
    ``error_kinds``: what the error of a step looks like; empty where nobody says.
    """

    line: int
    candidate: int | None
    id: Id
    group: str
    problem: str
    steps: tuple[str, ...]
    scores: tuple[float | None, ...]
    truth: Truth
    threshold: float | None = None
    status: tuple[str, ...] = ()
    redundancy: tuple[float | None, ...] | None = None
    error_kinds: tuple[str | None, ...] = ()

    @property
    def name(self) -> str:
        """What to call it in messages and lists."""
        name = f"line {self.line}" if self.id is None else str(self.id)
        return name if self.candidate is None else f"{name}[{self.candidate}]"


def carries_scores(lines: Iterable[Line]) -> tuple[bool, Iterator[Line]]:
    """Whether the first record that is no failure has scores; and all of the lines again."""
    lines = iter(lines)
    head: list[Line] = []
    found = False
    for line in lines:
        head.append(line)
        try:
            data = decode_line(line)
        except InputError:
            break  # whoever reads it says what is wrong
        if "error" not in data:
            found = isinstance(data.get(SCORES), list) or _scored_candidates(data) is not None
            break
    return found, chain(head, lines)


def read_samples(
    lines: Iterable[Line],
    *,
    scores_key: str | None = None,
    scorer: Scorer | None = None,
    group_key: str = PROBLEM_ID,
) -> Iterator[Sample | None]:
    """Read the solutions of a file, scored under ``scores_key`` or by ``scorer``.

    A record that says that it could not be scored gives None.

    Raises:
        InputError: naming the line; part of a data set would be another data set.
    """
    for line in lines:
        try:
            data = decode_line(line)
            if isinstance(data.get("error"), dict):
                yield None
            elif scores_key is not None:
                yield from _carried(line, data, scores_key, group_key)
            elif scorer is not None:
                yield from _scored(line, data, scorer, group_key)
        except InputTypeError as error:
            raise InputTypeError(f"line {line.number}: {error}") from None
        except InputError as error:
            raise InputError(f"line {line.number}: {error}") from None


def _scored(line: Line, data: dict[str, Any], scorer: Scorer, group_key: str) -> Iterator[Sample]:
    record, truths = read_labelled(data)
    if isinstance(record, Candidates):
        solutions = list(record.candidates)
        ranking = scorer.rank(record.problem, solutions, on_too_long=NULL)
        results = list(ranking.candidates)
    else:
        steps = (
            tuple(scorer.split(record.response)) if isinstance(record, Response) else record.steps
        )
        solutions, results = [steps], [scorer.score(record.problem, steps, on_too_long=NULL)]
    several = isinstance(record, Candidates)
    for index, (steps, result, truth) in enumerate(zip(solutions, results, truths, strict=True)):
        yield Sample(
            line=line.number,
            candidate=index if several else None,
            id=record.id,
            group=_group(data, group_key, record.problem, line, several),
            problem=record.problem,
            steps=tuple(steps),
            scores=result.scores,
            truth=truth,
            threshold=result.threshold,
            status=result.status,
            redundancy=result.redundancy,
            error_kinds=result.error_kinds or (),
        )


def _carried(line: Line, data: dict[str, Any], scores_key: str, group_key: str) -> Iterator[Sample]:
    scored = _scored_candidates(data) if scores_key == SCORES else None
    entries: list[tuple[int | None, Mapping[str, Any], Truth]]
    if scored is None:
        scores = _scores(_at(data, scores_key), scores_key)
        entries = [(None, {**data, SCORES: scores}, _truth(data, len(scores)))]
    else:
        plain = {**data, "candidates": [item.get("steps") or [] for item in scored]}
        _, truths = read_labelled({"problem": "", **plain})
        entries = [
            (index, item, truth)
            for index, (item, truth) in enumerate(zip(scored, truths, strict=True))
        ]
    problem = data.get("problem") or data.get("prompt") or ""
    for index, entry, truth in entries:
        scores = _scores(entry[SCORES], SCORES)
        steps = _steps(entry)
        if steps and len(steps) != len(scores):
            raise InputError(
                f"{scores_key} has {len(scores)} entries for {len(steps)} steps; one score for "
                "each step is needed, null where there is none"
            )
        threshold = data.get("threshold")
        yield Sample(
            line=line.number,
            candidate=index,
            id=read_id(data),
            group=_group(data, group_key, str(problem), line, index is not None),
            problem=str(problem),
            steps=steps,
            scores=scores,
            truth=truth,
            threshold=float(threshold) if isinstance(threshold, int | float) else None,
            status=_status(entry, len(scores)),
            redundancy=_redundancy(entry, len(scores)),
            error_kinds=_kinds(entry, len(scores)),
        )


def _truth(data: dict[str, Any], n_steps: int) -> Truth:
    present = {key: value for key, value in data.items() if value is not None}
    if any(all(key in present for key in schema.keys) for schema in SCHEMAS):
        schema, present = recognise(data)
        return schema.truths(present)[0]
    if n_steps and ("label" in data or "final_answer_correct" in data):
        # scores alone, with a label beside them
        return read_labelled({**data, "problem": "", "steps": [""] * n_steps})[1][0]
    return UNKNOWN


def _scored_candidates(data: dict[str, Any]) -> list[dict[str, Any]] | None:
    candidates = data.get("candidates")
    if not isinstance(candidates, list) or not candidates:
        return None
    good = all(isinstance(item, dict) and SCORES in item for item in candidates)
    return candidates if good else None


def _steps(entry: Mapping[str, Any]) -> tuple[str, ...]:
    for key in ("steps", "completions"):
        if entry.get(key) is not None:
            return strings(entry[key], key)
    return ()


def _status(entry: Mapping[str, Any], n_steps: int) -> tuple[str, ...]:
    # as score writes it; what is no list is of somebody else
    given = entry.get("status")
    return _each(strings(given, "status"), "status", n_steps) if isinstance(given, list) else ()


def _redundancy(entry: Mapping[str, Any], n_steps: int) -> tuple[float | None, ...] | None:
    given = entry.get("redundancy")
    if given is None:
        return None
    return _each(_scores(given, "redundancy"), "redundancy", n_steps)


def _kinds(entry: Mapping[str, Any], n_steps: int) -> tuple[str | None, ...]:
    given = entry.get("error_kinds")
    if given is None:
        return ()
    if not isinstance(given, list) or not all(k is None or isinstance(k, str) for k in given):
        raise InputTypeError("error_kinds must be a list of names, null where there is no error")
    return _each(tuple(given), "error_kinds", n_steps)


def _each(values: tuple[T, ...], what: str, n_steps: int) -> tuple[T, ...]:
    if len(values) != n_steps:
        raise InputError(f"{what} has {len(values)} entries for {n_steps} scores; it needs as many")
    return values


def _at(data: dict[str, Any], key: str) -> object:
    """The value under ``a.b``, or under a key that holds the point itself."""
    if key in data:
        return data[key]
    value: object = data
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            near = ", ".join(list(value)[:8]) if isinstance(value, dict) else kind(value)
            raise InputError(f"the record has no scores under {key!r} (there: {near})")
        value = value[part]
    return value


def _scores(value: object, what: str) -> tuple[float | None, ...]:
    if isinstance(value, tuple):  # checked already
        return value
    if not isinstance(value, list):
        raise InputTypeError(f"{what} must be a list of numbers, got {kind(value)}")
    for index, score in enumerate(value):
        if score is None:
            continue
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise InputTypeError(f"{what}[{index}] must be a number or null, got {kind(score)}")
        if not -MAX_SCORE <= score <= MAX_SCORE:
            raise InputError(f"{what}[{index}] is no score: {str(score)[:40]}")
    return tuple(None if score is None else float(score) for score in value)


def _group(data: dict[str, Any], key: str, problem: str, line: Line, several: bool) -> str:
    if several:
        return f"line {line.number}"
    value = data.get(key)
    if value is None:
        return problem
    if isinstance(value, list | dict):
        raise InputTypeError(f"{key} must be a string or a number, got {kind(value)}")
    return str(value)


def as_result(sample: Sample, threshold: float, by: str) -> StepScores:
    """A sample as the runtime would return it."""
    return StepScores(
        scores=sample.scores,
        status=sample.status
        or tuple(TOO_LONG if score is None else SCORED for score in sample.scores),
        threshold=threshold,
        n_tokens=0,
        n_tokens_run=0,
        aggregates=ALL_AGGREGATES,
        default_aggregate=by,
        logits=(None,) * len(sample.scores),
    )


def by_problem(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples of the same problem together, in the order in which they came."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    return groups

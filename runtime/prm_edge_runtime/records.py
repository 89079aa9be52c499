"""Run records that are ready to be run, and put the scores of each together.

In: an engine, records already encoded and cut to its limit. Out: one ``StepScores`` per record.
Imports numpy and this package's own modules; :mod:`scorer` brings the engine and the encodings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .encoding import Encoded
from .engine import DecoderEngine, Engine
from .errors import InputTypeError
from .lengths import Part
from .prefixes import PrefixCache
from .reading import Reading
from .results import TOO_LONG, StepScores
from .runs import run_records


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A record that is ready to be run, in parts where it is too long for one.

    ``missing``: the status of steps that no part scores.
    """

    encoded: Encoded
    parts: Sequence[Part]
    prompt_tokens: int
    missing: str = TOO_LONG


def pairs(items: object) -> Iterator[tuple[str, Sequence[str]]]:
    """What the caller gave, one problem and its steps after the other.

    Raises:
        InputTypeError: for anything else.
    """
    # callers without a type checker get a sentence, not an unpacking error
    if not isinstance(items, Iterable) or isinstance(items, str | bytes):
        raise InputTypeError(f"items must be pairs (problem, steps), got {type(items).__name__}")
    for index, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputTypeError(
                f"item {index} must be a pair (problem, steps), got {type(item).__name__}"
            )
        yield item[0], item[1]


def run_prepared(
    engine: Engine,
    prepared: Sequence[Prepared],
    *,
    reading: Reading,
    threshold: float,
    prefixes: PrefixCache | None,
) -> list[StepScores]:
    """Run every part of every record, and put their scores together.

    Raises:
        EngineError: when the model fails or returns a number that is none.
    """
    records = [
        replace(part.record, prompt_tokens=item.prompt_tokens)
        for item in prepared
        for part in item.parts
    ]
    if isinstance(engine, DecoderEngine):
        runs = run_records(engine, records, prefixes=prefixes)
        found = [(run.rows, run.n_tokens_run) for run in runs]
    else:
        found = [
            (engine.run(record.ids, record.reads), len(record.ids))
            if len(record.reads)
            else (np.zeros((0, reading.width), dtype=np.float32), 0)
            for record in records
        ]
    each = iter(found)
    return [
        _result(item, [next(each) for _ in item.parts], reading, threshold) for item in prepared
    ]


def _result(
    item: Prepared,
    found: Sequence[tuple[NDArray[np.float32], int]],
    reading: Reading,
    threshold: float,
) -> StepScores:
    recipe = reading.recipe
    n_steps = len(item.encoded.reads)
    scores: list[float | None] = [None] * n_steps
    status = [item.missing] * n_steps
    logits: list[tuple[float, ...] | None] = [None] * n_steps
    redundancy: list[float | None] = [None] * n_steps
    likely: list[tuple[float, ...] | None] = [None] * n_steps
    for part, (rows, _) in zip(item.parts, found, strict=True):
        values, kinds = reading.scores(rows), reading.likely(rows)
        shown, redundant = reading.logits(rows), reading.redundancy(rows)
        for index in range(part.context, len(rows)):
            at = part.first + index
            scores[at], status[at] = float(values[index]), part.status
            logits[at] = tuple(map(float, shown[index]))
            redundancy[at] = None if redundant is None else float(redundant[index])
            likely[at] = None if kinds is None else kinds[index]
    return StepScores(
        scores=tuple(scores),
        status=tuple(status),
        threshold=threshold,
        n_tokens=len(item.encoded.ids),
        n_tokens_run=sum(n_run for _, n_run in found),
        aggregates=recipe.aggregates,
        default_aggregate=recipe.aggregate,
        logits=tuple(logits),
        redundancy=None if recipe.score.redundant is None else tuple(redundancy),
        kinds=reading.step_kinds(likely),
    )

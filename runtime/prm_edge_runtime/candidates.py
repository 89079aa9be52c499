"""Run candidates of one problem so that what they have in common is run once.

In: token ids and read positions of each. Out: their logits, to the bit those of separate runs.
Sorted by their tokens, each candidate shares with the one before it as much as with any other
before it, so one buffer walks the whole tree. Shapes: T tokens, N read positions, C logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .encoding import Encoded
from .engine import DecoderEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRun:
    """``logits``: (N, C). ``n_tokens_run``: tokens that were run for this candidate alone."""

    logits: NDArray[np.float32]
    n_tokens_run: int


def run_candidates(
    engine: DecoderEngine, records: Sequence[Encoded], *, prompt_tokens: int, logits: int
) -> list[CandidateRun]:
    """Run records that begin with the same ``prompt_tokens`` tokens; they may share steps too.

    Each record ends at its last read position. One without any is not run.
    """
    pieces = [_pieces(record, prompt_tokens) for record in records]
    longest = max((len(record.ids) for record in records if len(record.reads)), default=0)
    cache = engine.new_cache(longest + 1)  # DecoderEngine.extend may add a token
    nothing = CandidateRun(logits=np.zeros((0, logits), dtype=np.float32), n_tokens_run=0)
    found = [nothing] * len(records)
    before: list[bytes] = []  # what the cache holds
    known = nothing.logits
    for index in sorted(range(len(records)), key=pieces.__getitem__):
        record = records[index]
        if not len(record.reads):
            continue
        steps = max(_common(before, pieces[index]) - 1, 0)
        past = prompt_tokens if before else 0
        if steps:
            past = int(record.reads[steps - 1]) + 1
        rows = known[:steps]
        if past < len(record.ids):
            new = engine.extend(cache, past, record.ids[past:], record.reads[steps:] - past)
            rows = np.concatenate([rows, new])
        found[index] = CandidateRun(logits=rows, n_tokens_run=len(record.ids) - past)
        before, known = pieces[index], rows
    return found


def _pieces(record: Encoded, prompt_tokens: int) -> list[bytes]:
    """The tokens of the prompt, then of each step, as keys."""
    ends = [prompt_tokens, *(int(read) + 1 for read in record.reads)]
    starts = [0, *ends[:-1]]
    return [record.ids[a:b].tobytes() for a, b in zip(starts, ends, strict=True)]


def _common(one: list[bytes], other: list[bytes]) -> int:
    """How many pieces two records have in common at their beginning."""
    for count, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return count
    return min(len(one), len(other))

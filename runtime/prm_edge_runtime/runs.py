"""Run records so that what they have in common is run once: a plan carried out.

In: token ids and read positions of each record. Out: their outputs, to the bit those of separate
runs. Shapes: T tokens, N read positions, W outputs at each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cache import Buffer
from .encoding import Encoded
from .engine import DecoderEngine
from .plan import plan
from .prefixes import PrefixCache


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRun:
    """``rows``: (N, W). ``n_tokens_run``: tokens that were run for this record alone."""

    rows: NDArray[np.float32]
    n_tokens_run: int


def run_records(
    engine: DecoderEngine,
    records: Sequence[Encoded],
    *,
    prefixes: PrefixCache | None = None,
) -> list[RecordRun]:
    """Run records, each of which ends at its last read position; one without any is not run."""
    nothing = RecordRun(rows=np.zeros((0, engine.width), dtype=np.float32), n_tokens_run=0)
    found = [nothing] * len(records)
    for group in plan(records, chain_all=prefixes is not None, limits=engine.limits):
        members = [records[index] for index in group.indices]
        if group.padded:
            rows = engine.run_rows([(record.ids, record.reads) for record in members])
            runs = [
                RecordRun(rows=row, n_tokens_run=len(record.ids))
                for row, record in zip(rows, members, strict=True)
            ]
        elif len(members) == 1 and prefixes is None:
            (record,) = members
            alone = engine.run(record.ids, record.reads)
            runs = [RecordRun(rows=alone, n_tokens_run=len(record.ids))]
        else:
            runs = _run_chain(engine, members, prefixes=prefixes)
        for index, run in zip(group.indices, runs, strict=True):
            found[index] = run
    return found


def _run_chain(
    engine: DecoderEngine,
    records: Sequence[Encoded],
    *,
    prefixes: PrefixCache | None,
) -> list[RecordRun]:
    buffer = Buffer(engine, max(len(record.ids) for record in records))
    known: dict[int, NDArray[np.float32]] = {}  # outputs of the tokens in the buffer that were read
    found = []
    for record in records:
        past = buffer.shared(record.ids)
        stored = prefixes.find(record) if prefixes else None
        if stored is not None and stored.n_tokens > past:
            buffer.lay(stored)
            known = {node.n_tokens - 1: node.row for node in stored.path() if node.row is not None}
            past = stored.n_tokens
        # the same tokens may be cut into other steps: what was not read is run again
        past = min([past, *(at for at in record.reads.tolist() if at not in known)])
        wanted = record.reads[np.searchsorted(record.reads, past) :]
        rows: dict[int, NDArray[np.float32]] = {}
        if past < len(record.ids):
            new = buffer.run(past, record.ids[past:], wanted - past)
            rows = dict(zip(wanted.tolist(), new, strict=True))
        known = {at: row for at, row in known.items() if at < past} | rows
        if prefixes is not None:
            prefixes.keep(record, buffer, known)
        table = np.stack([known[at] for at in record.reads.tolist()])
        found.append(RecordRun(rows=table, n_tokens_run=len(record.ids) - past))
    return found

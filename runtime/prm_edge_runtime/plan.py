"""Which records are run together, and how: the one place that decides it.

In: token ids of records. Out: groups of them, each either *chained* (one after the other in one
cache, so that what two neighbours have in common is run once) or *padded* (as rows of one run).
Any plan gives the same numbers, to the bit: only time and memory depend on it.

Measured with benchmarks/plan.py, one thread, fp32, models of 1.4 and 135 million parameters: a run
of T tokens costs as much time as T + 8 to a few percent, whether they are one row or several. So
rows of 8 tokens are worth running together (0.55 of the time), of 16 to 24 (0.8), of 32 (0.85), of
64 no more; and everything here follows from that one number. Candidates packed into one row were
twice as slow in the attention as separate runs, so that is not among the ways.

A device has its own numbers, :data:`.engine.LIMITS`: on a GPU a run costs more tokens, so that rows
of more different lengths are padded together. How much is padding then is counted by
benchmarks/padding.py: 0.3% to 1.3% of the tokens of real solutions, 5.3% of lines of 28 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .cache import common_length
from .encoding import Encoded
from .engine import LIMITS, Limits

CPU: Final = LIMITS["cpu"]
RUN_COST: Final = CPU.run_cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Records, by their indices, in the order in which they are run."""

    indices: tuple[int, ...]
    padded: bool


def plan(
    records: Sequence[Encoded], *, chain_all: bool = False, limits: Limits = CPU
) -> list[Group]:
    """Group records that each end at their last read position; those without any are left out.

    Sorted by their tokens, each record has as much in common with the one before it as with any
    other before it. ``chain_all``: pad none, so that everything passes through a cache.
    """
    order = [index for index, record in enumerate(records) if len(record.reads)]
    order.sort(key=lambda index: records[index].ids.tobytes())
    chains: list[list[int]] = []
    for index in order:
        last = chains[-1][-1] if chains else None
        # in common by less than a run costs: better without
        common = 0 if last is None else common_length(records[last].ids, records[index].ids)
        if common > limits.run_cost:
            chains[-1].append(index)
        else:
            chains.append([index])
    alone = [
        index
        for chain in chains
        for index in chain
        if len(chain) == 1 and len(records[index].ids) <= limits.run_tokens and not chain_all
    ]
    single = set(alone)
    return [
        Group(indices=tuple(chain), padded=False) for chain in chains if chain[0] not in single
    ] + _padded(records, alone, limits)


def _padded(records: Sequence[Encoded], alone: Sequence[int], limits: Limits) -> list[Group]:
    """Put records of like length together, so that padding and runs cost the least in all.

    Among records by length the cheapest groups are neighbours, and where the last group of the
    first n of them begins depends on the cheapest groups of those before it alone.
    """
    order = sorted(alone, key=lambda index: -len(records[index].ids))
    lengths = [len(records[index].ids) for index in order]
    costs, begins = [0], [0]  # of the first n records; where their last group begins
    for end in range(1, len(order) + 1):
        least: tuple[int, int] | None = None
        for begin in range(end - 1, -1, -1):
            tokens = (end - begin) * lengths[begin]
            if least is not None and tokens > limits.run_tokens:
                break
            cost = costs[begin] + tokens + limits.run_cost
            if least is None or cost < least[0]:
                least = cost, begin
        assert least is not None  # a record alone is a group
        costs.append(least[0])
        begins.append(least[1])
    groups: list[Group] = []
    end = len(order)
    while end:
        groups.append(Group(indices=tuple(order[begins[end] : end]), padded=True))
        end = begins[end]
    return groups[::-1]

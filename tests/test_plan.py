"""The plan of a batch: every record once, rows of like length, chains of what begins alike."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_edge_runtime.cache import common_length
from prm_edge_runtime.encoding import Encoded
from prm_edge_runtime.engine import RUN_TOKENS
from prm_edge_runtime.plan import RUN_COST, plan

# a beginning that others may have too, then tokens of its own
BEGINNINGS = [[5] * 30, [5] * 20 + [6] * 20, [7] * 3, []]


def encoded(beginning: list[int], own: list[int], reads: int = 1) -> Encoded:
    ids = np.array([*beginning, *own], dtype=np.int64)
    return Encoded(ids=ids, reads=np.array([len(ids) - 1] if reads else [], dtype=np.int64))


def alone(length: int, start: int = 0) -> Encoded:
    """A record that begins as no other."""
    return encoded([], list(range(1000 * start, 1000 * start + length)))


records = st.lists(
    st.builds(
        encoded,
        st.sampled_from(BEGINNINGS),
        st.lists(st.integers(0, 9), min_size=1, max_size=400),
        st.sampled_from([1, 1, 1, 0]),
    ),
    max_size=12,
)


@given(records, st.booleans())
@settings(max_examples=60, deadline=None)
def test_plan_properties(batch: list[Encoded], chain_all: bool) -> None:
    groups = plan(batch, chain_all=chain_all)
    planned = sorted(index for group in groups for index in group.indices)
    assert planned == [index for index, record in enumerate(batch) if len(record.reads)]
    for group in groups:
        lengths = [len(batch[index].ids) for index in group.indices]
        if group.padded:
            assert not chain_all
            assert len(lengths) * max(lengths) <= RUN_TOKENS
            assert max(lengths) - min(lengths) < RUN_COST
        else:
            for one, other in zip(group.indices, group.indices[1:], strict=False):
                assert common_length(batch[one].ids, batch[other].ids) > RUN_COST


def test_plan_chains_what_begins_alike_and_pads_the_rest() -> None:
    shared = list(range(100, 100 + RUN_COST + 1))
    batch = [alone(20, 1), encoded(shared, [1]), alone(20 - RUN_COST + 1, 2), encoded(shared, [2])]
    batch += [alone(20 - RUN_COST, 3), alone(RUN_TOKENS + 1, 4)]
    groups = plan(batch)
    assert sorted((tuple(sorted(group.indices)), group.padded) for group in groups) == [
        ((0, 2), True),
        ((1, 3), False),
        ((4,), True),
        ((5,), False),
    ]


def test_plan_shares_no_less_than_a_run_costs() -> None:
    shared = list(range(100, 100 + RUN_COST))
    (group,) = plan([encoded(shared, [1]), encoded(shared, [2])])
    assert group.padded


def test_plan_of_nothing() -> None:
    assert plan([]) == plan([encoded([], [1], reads=0)]) == []

"""The plan of a batch: every record once, rows of like length, chains of what begins alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_edge_runtime.cache import common_length
from prm_edge_runtime.encoding import Encoded
from prm_edge_runtime.engine import LIMITS, RUN_TOKENS, Limits
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
    batch += [alone(20 - 2 * RUN_COST, 3), alone(RUN_TOKENS + 1, 4)]
    groups = plan(batch)
    assert sorted((tuple(sorted(group.indices)), group.padded) for group in groups) == [
        ((0, 2), True),
        ((1, 3), False),
        ((4,), True),
        ((5,), False),
    ]


def cost(batch: list[Encoded], groups: list[tuple[int, ...]], limits: Limits) -> int:
    """Tokens that are run, and what starting the runs costs."""
    widths = [max(len(batch[index].ids) for index in group) for group in groups]
    tokens = [width * len(group) for width, group in zip(widths, groups, strict=True)]
    if any(n > limits.run_tokens for n in tokens):
        return 1 << 60
    return sum(tokens) + len(groups) * limits.run_cost


def partitions(items: list[int]) -> Iterator[list[tuple[int, ...]]]:
    if not items:
        yield []
        return
    first, *rest = items
    for others in partitions(rest):
        yield [(first,), *others]
        for at, group in enumerate(others):
            yield [*others[:at], (first, *group), *others[at + 1 :]]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=7),
    st.sampled_from([Limits(run_tokens=100, run_cost=8), Limits(run_tokens=150, run_cost=20)]),
)
@settings(max_examples=60, deadline=None)
def test_padded_rows_cost_the_least_of_all_groupings(lengths: list[int], limits: Limits) -> None:
    batch = [alone(length, at) for at, length in enumerate(lengths)]
    found = [group.indices for group in plan(batch, limits=limits)]
    best = min(cost(batch, groups, limits) for groups in partitions(list(range(len(batch)))))
    assert cost(batch, found, limits) == best


def test_little_is_padding_on_cuda() -> None:
    """Of solutions of 256 to 768 tokens, whose order says nothing; no run is beyond its bound."""
    rng = np.random.default_rng(0)
    batch = [alone(int(length), at) for at, length in enumerate(rng.integers(256, 769, 256))]
    padded = given_tokens = 0
    for group in plan(batch, limits=LIMITS["cuda"]):
        own = [len(batch[index].ids) for index in group.indices]
        assert len(own) * max(own) <= LIMITS["cuda"].run_tokens
        padded += len(own) * max(own) - sum(own)
        given_tokens += sum(own)
    assert padded < 0.02 * given_tokens


def test_best_of_16_runs_its_problem_once_on_cuda() -> None:
    prompt = list(range(400))
    batch = [encoded(prompt, [1000 + 200 * n + at for at in range(120)]) for n in range(16)]
    (group,) = plan(batch, limits=LIMITS["cuda"])
    assert not group.padded
    assert sorted(group.indices) == list(range(16))
    run = sum(
        len(batch[index].ids) - (0 if at == 0 else 400) for at, index in enumerate(group.indices)
    )
    assert run == 400 + 16 * 120  # 0.28 of what they are one by one


def test_plan_shares_no_less_than_a_run_costs() -> None:
    shared = list(range(100, 100 + RUN_COST))
    (group,) = plan([encoded(shared, [1]), encoded(shared, [2])])
    assert group.padded


def test_plan_of_nothing() -> None:
    assert plan([]) == plan([encoded([], [1], reads=0)]) == []

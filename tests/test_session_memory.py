"""Sessions keep what their own tokens need, and nothing else."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from session_scorers import make

from prm_edge_runtime import Scorer
from prm_edge_runtime.engine import DecoderEngine

PROBLEM = "A shop sells 12 apples for $3. How much do 20 apples cost?"
CYCLES = 10_000
STATM = Path("/proc/self/statm")


@pytest.fixture(scope="module")
def scorer(tiny_package: Path) -> Iterator[Scorer]:
    with make(tiny_package) as made:
        yield made


def bytes_per_token(scorer: Scorer) -> int:
    engine = scorer._engine
    assert isinstance(engine, DecoderEngine)
    return engine.new_cache(1).kv.nbytes


def test_forks_hold_their_own_tokens_only(scorer: Scorer) -> None:
    session = scorer.session(PROBLEM)
    for number in range(4):
        session.add(f"a step that every fork has in common, number {number}")
    steps = [f"{number} apples, and " * 6 for number in range(1000)]
    scorer.score(PROBLEM, steps[:1])
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        forks = [session.fork() for _ in steps]
        for fork, step in zip(forks, steps, strict=True):
            fork.add(step)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    own = sum(fork.n_tokens_run for fork in forks)
    assert own == sum(fork.n_tokens - session.n_tokens for fork in forks)
    assert after - before <= 1.2 * own * bytes_per_token(scorer)


def test_fork_and_undo_copy_nothing_that_grows(scorer: Scorer) -> None:
    session = scorer.session(PROBLEM)
    used = []
    for steps in (2, 10):
        while len(session.scores) < steps:
            session.add("a step that is long enough to be seen")
        session.fork()
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            fork = session.fork()
            fork.undo()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        used.append(peak - before)
        assert fork._tip is session._tip.parent  # type: ignore[union-attr]
    assert used[1] - used[0] < bytes_per_token(scorer)


@pytest.mark.skipif(not STATM.exists(), reason="reads the memory of this process from /proc")
def test_session_cycles_do_not_grow(scorer: Scorer) -> None:
    session = scorer.session(PROBLEM)
    session.add("a first step")
    resident = []
    for number in range(CYCLES):
        session.add(f"step {number}")
        session.undo()
        if number == CYCLES // 10:
            gc.collect()
            resident.append(int(STATM.read_text().split()[1]) * 4096)
    gc.collect()
    resident.append(int(STATM.read_text().split()[1]) * 4096)
    # what the steps' caches come to, were they kept: 10,000 of 5 tokens and 256 bytes a token
    assert resident[1] - resident[0] < 0.25 * CYCLES * 5 * bytes_per_token(scorer)
    assert len(session.scores) == 1

"""Sessions and rankings equal whole passes to the bit, and run each token once.

Any cut, fork and undo; every step is unlike all others, and every token that goes through the graph
is counted, so that remembered scores could not pass.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session_scorers import KINDS, Counter, make, make_kind

from prm_edge_runtime import Scorer, StepScores, add_many
from prm_edge_runtime.errors import EngineError, InputError

PROBLEM = "A shop sells 12 apples for $3. How much do 20 apples cost?"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=24)
# what is done to which of the sessions, with which text
ACTION = st.tuples(st.sampled_from("aaaapufm"), st.integers(0, 7), TEXT)
UNIQUE = itertools.count()
SETTINGS = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def qwen_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of Qwen2.5-Math-PRM: chat template, a token after each step, joint encoding."""
    pytest.importorskip("torch", reason="needs the export extra")
    import checkpoints

    from prm_edge_export.options import ExportOptions
    from prm_edge_export.pipeline import export

    folder = tmp_path_factory.mktemp("qwen")
    texts = folder / "texts.jsonl"
    texts.write_text(json.dumps({"problem": PROBLEM, "steps": ["3 / 12", "$5"], "label": -1}))
    checkpoint = checkpoints.qwen_prm(folder / "checkpoint")
    out = folder / "package"
    export(ExportOptions(checkpoint=checkpoint, out=out, verify=texts), lambda line: None)
    return out


@pytest.fixture(scope="module")
def int8_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linears of every kind that int8 has, where the last bit of a cut would be amplified."""
    pytest.importorskip("torch", reason="needs the export extra")
    import checkpoints
    from int8_packages import export_int8, plan_in_turn

    folder = tmp_path_factory.mktemp("int8")
    with pytest.MonkeyPatch.context() as patch:
        plan_in_turn(patch)
        export_int8(checkpoints.trl_llama(folder / "checkpoint"), folder / "package")
    return folder / "package"


@pytest.fixture(scope="module")
def chat_int8_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template, whose beginning the package holds as keys and values."""
    pytest.importorskip("torch", reason="needs the export extra")
    import checkpoints
    from int8_packages import export_int8, plan_in_turn

    folder = tmp_path_factory.mktemp("chat_int8")
    with pytest.MonkeyPatch.context() as patch:
        plan_in_turn(patch)
        export_int8(checkpoints.qwen_prm(folder / "checkpoint"), folder / "package", separator=None)
    return folder / "package"


@pytest.fixture(scope="module", params=[*KINDS, "qwen", "int8", "chat_int8"])
def scorer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scorer]:
    if request.param in KINDS:
        made = make_kind(request.param)
    else:
        made = make(request.getfixturevalue(f"{request.param}_package"))
    with made:
        yield made


@pytest.fixture(scope="module")
def counter(scorer: Scorer) -> Counter:
    return Counter(scorer)


def whole_pass(scorer: Scorer, counter: Counter, problem: str, steps: list[str]) -> StepScores:
    """One pass over everything, which is not counted; the scorer remembers nothing."""
    before = counter.tokens
    result = scorer.score(problem, steps)
    assert counter.tokens - before == result.n_tokens_run == (result.n_tokens if steps else 0)
    counter.tokens = before
    return result


@given(problem=TEXT, actions=st.lists(ACTION, max_size=14))
@SETTINGS
def test_session_is_exact_whatever_is_done(
    scorer: Scorer, counter: Counter, problem: str, actions: list[tuple[str, int, str]]
) -> None:
    start = counter.tokens
    sessions = [scorer.session(problem)]
    taken: list[list[str]] = [[]]
    assert sessions[0].incremental
    for action, which, text in actions:
        at = which % len(sessions)
        session, steps, step = sessions[at], taken[at], f"{text} {next(UNIQUE)}"
        before = session.n_tokens, session.n_tokens_run
        if action == "a":
            whole = whole_pass(scorer, counter, problem, [*steps, step])
            assert session.add(step) == whole.scores[-1]
            steps.append(step)
            assert session.n_tokens_run - before[1] == session.n_tokens - before[0]
        elif action == "p":
            whole = whole_pass(scorer, counter, problem, [*steps, step])
            assert session.peek([step]) == [whole.scores[-1]]
            assert session.n_tokens_run - before[1] == whole.n_tokens - before[0]
        elif action == "u":
            count = min(which, len(steps))
            session.undo(count)
            del steps[len(steps) - count :]
        elif action == "f":
            sessions.append(session.fork())
            taken.append(list(steps))
        else:
            new = [f"{step} {number}" for number in range(len(sessions))]
            add_many(list(zip(sessions, new, strict=True)))
            for own, one in zip(taken, new, strict=True):
                own.append(one)
        for session, steps in zip(sessions, taken, strict=True):
            assert len(session.scores) == len(steps)
    for session, steps in zip(sessions, taken, strict=True):
        whole = whole_pass(scorer, counter, problem, steps)
        assert session.scores == whole.scores
        if steps:
            assert session.n_tokens == whole.n_tokens
    assert sum(session.n_tokens_run for session in sessions) == counter.tokens - start


@pytest.mark.parametrize("length", range(12, 36))
def test_session_is_exact_at_every_length(length: int, scorer: Scorer) -> None:
    # among them every length modulo the graph's tile, of the problem and of a step
    session = scorer.session("x" * length)
    steps = ["y" * length, "z" * (length + 1), "w", "v" * 3 * length]
    for step in steps:
        session.add(step)
    assert session.scores == scorer.score("x" * length, steps).scores


@given(data=st.data())
@SETTINGS
def test_rank_is_exact_and_runs_each_token_once(
    scorer: Scorer, counter: Counter, data: st.DataObject
) -> None:
    words = [f"{data.draw(TEXT)} {next(UNIQUE)}" for _ in range(3)]
    candidates = data.draw(
        st.lists(st.lists(st.sampled_from(words), max_size=4), min_size=2, max_size=7)
    )
    start = counter.tokens
    found = scorer.rank(PROBLEM, candidates).candidates
    n_run = counter.tokens - start
    alone = [scorer.score(PROBLEM, steps) for steps in candidates]
    assert [one.scores for one in found] == [one.scores for one in alone]
    assert [one.logits for one in found] == [one.logits for one in alone]
    assert [one.n_tokens for one in found] == [one.n_tokens for one in alone]
    assert sum(one.n_tokens_run for one in found) == n_run
    # the tree, written out by hand: a path of steps -> tokens of its last one; steps that begin
    # alike may share more than that, but no token runs twice for nothing
    ids = [scorer._encoder.encode(PROBLEM, steps).ids for steps in candidates if steps]
    fewest = len({row[:count].tobytes() for row in ids for count in range(1, len(row) + 1)})
    prompt = len(scorer._encoder.encode_prompt(PROBLEM))
    tree = {
        tuple(steps[:count]): scorer.score(PROBLEM, steps[:count]).n_tokens
        - (scorer.score(PROBLEM, steps[: count - 1]).n_tokens if count > 1 else prompt)
        for steps in candidates
        for count in range(1, len(steps) + 1)
    }
    assert fewest <= n_run <= (prompt if tree else 0) + sum(tree.values())


def test_rank_of_one_or_none_or_nothing(scorer: Scorer) -> None:
    with pytest.raises(InputError, match="there are no candidates to compare"):
        scorer.rank(PROBLEM, [])
    assert scorer.rank(PROBLEM, [["x"]]).candidates == (scorer.score(PROBLEM, ["x"]),)
    assert scorer.rank(PROBLEM, [[], []]).candidates == (scorer.score(PROBLEM, []),) * 2


def test_rank_with_candidates_beyond_the_limit(tiny_package: Path) -> None:
    made = make(tiny_package, max_tokens=60)
    common = ["2x = 8", "x = 4"]
    candidates = [[*common, "y" * 90], common, [*common, "y" * 90, "z"], ["w" * 90], [*common, "z"]]
    with pytest.raises(InputError, match=r"^candidates\[0\]: step 2 of 3 .* beyond the 60"):
        made.rank(PROBLEM, candidates)
    found = made.rank(PROBLEM, candidates, on_too_long="null").candidates
    alone = [made.score(PROBLEM, steps, on_too_long="null") for steps in candidates]
    assert list(found) == alone
    assert found[0].status == ("scored", "scored", "too_long")
    assert sum(one.n_tokens_run for one in found) == alone[4].n_tokens


def test_extend_when_onnxruntime_fails(tiny_package: Path) -> None:
    engine = make(tiny_package)._open_decoder()
    ids = np.arange(8, dtype=np.int64)
    with pytest.raises(EngineError, match="onnxruntime failed on a run of 8 tokens after 0"):
        engine.extend(engine.new_cache(9), 0, ids + 10**6, ids[:0])
    with pytest.raises(EngineError, match="8 tokens do not fit into a cache of 7"):
        engine.extend(engine.new_cache(7), 0, ids, ids[:0])

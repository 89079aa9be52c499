"""Steps at fixed addresses and in few lengths: the numbers of ordinary runs, memory used again.

The CPU stands in for the device; nothing is captured there, and all that a replay needs is left.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prm_edge_runtime import CudaOptions, Scorer, memory, ort, step_graphs
from prm_edge_runtime.choice import package_path
from prm_edge_runtime.engine import DecoderEngine, open_engine
from prm_edge_runtime.errors import ConfigError, SelfTestError
from prm_edge_runtime.ort import Place, open_session
from prm_edge_runtime.package import open_package
from prm_edge_runtime.session import add_many
from prm_edge_runtime.step_graphs import LENGTHS, LentCache, StepGraph, StepGraphs

PLACE = Place(device="cpu", options=CudaOptions(graphs=True))
PROBLEM = "A shop sells 12 apples for $3. How much do 20 apples cost?"
STEPS = ["12 apples cost $3, so one costs 3 / 12 = $0.25.", "20 * 0.25 = 5", "So $5.", "", "x"]


def engine_of(package: Path) -> DecoderEngine:
    opened = open_package(package)
    variant = opened.manifest.variants[0]
    session = open_session(opened.path(variant.graph), device="cpu", threads=1)
    return DecoderEngine(
        session,
        variant,
        opened.manifest.recipe.logits,
        PLACE,
        kinds=len(opened.manifest.error_kinds),
        max_tokens=opened.manifest.max_tokens,
    )


def scorer_of(package: Path) -> Scorer:
    opened = open_package(package)
    return Scorer(opened, opened.manifest.variants[0], engine_of(package), "argument")


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is run as a graph: tokens of the step, and their padded length."""
    seen: list[tuple[int, int]] = []
    real = StepGraph.run

    def run(self: StepGraph, past: int, ids: Any) -> Any:
        seen.append((len(ids), self._length))
        return real(self, past, ids)

    monkeypatch.setattr(StepGraph, "run", run)
    return seen


def test_a_session_scores_as_ever(tiny_package: Path, replayed: list[tuple[int, int]]) -> None:
    steps = [step for step in STEPS if step]
    expected = Scorer.load(tiny_package, device="cpu").score(PROBLEM, steps).scores
    with scorer_of(tiny_package).session(PROBLEM) as session:
        found = [session.add(step) for step in steps]
        assert (
            session.peek([steps[0], "y"])[0]
            == Scorer.load(tiny_package, device="cpu").score(PROBLEM, [*steps, steps[0]]).scores[-1]
        )
    assert tuple(found) == expected
    assert len(replayed) == len(steps) + 2
    assert all(n <= length and length in LENGTHS for n, length in replayed)


def test_a_session_names_errors_as_ever(replayed: list[tuple[int, int]]) -> None:
    """The built-in package has a second output."""
    package = Path(str(package_path(None)[0]))
    steps = ["2x = 6", "x = 4", "x = 4 + 1"]
    problem = "Solve for x: 2x + 4 = 10."
    found = []
    for made in (scorer_of(package), Scorer.load(package, device="cpu")):
        with made.session(problem) as session:
            found.append(([session.add(step) for step in steps], session.error_kinds))
    assert found[0] == found[1]
    assert found[0][1] is not None
    assert len(replayed) == len(steps)


def test_forks_undo_and_beams_score_as_ever(
    tiny_package: Path, replayed: list[tuple[int, int]]
) -> None:
    plain = Scorer.load(tiny_package, device="cpu")
    session = scorer_of(tiny_package).session(PROBLEM)
    session.add("one")
    fork = session.fork()
    assert add_many([(session, "two"), (fork, "three")]) == [
        plain.score(PROBLEM, ["one", word]).scores[-1] for word in ("two", "three")
    ]
    session.undo()
    assert session.add("four") == plain.score(PROBLEM, ["one", "four"]).scores[-1]
    assert fork.add("five") == plain.score(PROBLEM, ["one", "three", "five"]).scores[-1]
    assert len(replayed) >= 5


def test_a_long_session_grows_past_its_memory(
    tiny_package: Path, replayed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_graphs, "ROOM", 64)
    steps = [f"then {n} + {n} = {2 * n}" for n in range(8)]
    expected = Scorer.load(tiny_package, device="cpu").score(PROBLEM, steps).scores
    session = scorer_of(tiny_package).session(PROBLEM)
    assert tuple(session.add(step) for step in steps) == expected
    assert len(replayed) > 4


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 17, 33, 63, 64])
@pytest.mark.parametrize("past", [1, 30, 200])
def test_every_length_gives_the_logits_of_a_plain_run(
    past: int, length: int, tiny_package: Path, replayed: list[tuple[int, int]]
) -> None:
    graphs = engine_of(tiny_package)
    opened = open_package(tiny_package)
    variant = opened.manifest.variants[0]
    plain = open_engine(opened.path(variant.graph), variant, logits=2, threads=1)
    assert isinstance(plain, DecoderEngine)
    ids = np.random.default_rng(past).integers(3, 200, past + length)
    reads = np.array([past + length - 1])
    found = []
    for engine in (graphs, plain):
        cache = engine.new_cache(past + length + 100)
        engine.extend(cache, 0, ids[:past], reads[:0])
        first = engine.extend(cache, past, ids[past:], reads - past)
        again = engine.extend(cache, past, ids[past:], reads - past)
        np.testing.assert_array_equal(first, again)
        found.append(first)
    assert found[0].tobytes() == found[1].tobytes()
    assert replayed == [(length, min(n for n in LENGTHS if n >= length))] * 2


def test_what_is_no_short_step_runs_as_ever(
    tiny_package: Path, replayed: list[tuple[int, int]]
) -> None:
    engine = engine_of(tiny_package)
    most = open_package(tiny_package).manifest.max_tokens
    cache = engine.new_cache(most + 1)
    ids = np.random.default_rng(0).integers(3, 200, most)
    last = np.array([9])
    engine.extend(cache, 0, ids[:10], last)  # a first prompt
    engine.extend(cache, 10, ids[10:20], np.array([4, 9]))  # two reads
    engine.extend(cache, 10, ids[10:20], np.array([4]))  # not the last token
    engine.extend(cache, 10, ids[10:20], last[:0])  # none
    engine.extend(cache, 20, ids[20:85], np.array([64]))  # 65 tokens
    engine.extend(cache, most - 10, ids[-10:], last)  # padded it would end behind the model
    assert not replayed
    engine.extend(cache, most - 17, ids[-17:-7], last)
    assert replayed == [(10, 16)]


def test_memory_never_moves_and_is_used_again(tiny_package: Path) -> None:
    engine = engine_of(tiny_package)
    ids = np.arange(3, 43, dtype=np.int64)

    def fill(cache: Any) -> tuple[int, Any]:
        engine.extend(cache, 0, ids[:30], np.zeros(0, dtype=np.int64))
        logits = engine.extend(cache, 30, ids[30:], np.array([9]))
        return cache.fixed._value.data_ptr(), logits

    one, other = engine.new_cache(100), engine.new_cache(200)
    assert isinstance(one, LentCache)
    assert one.room == other.room == step_graphs.ROOM
    address, logits = fill(one)
    block = one.read(0, 30)
    one.write(0, block)
    assert fill(one)[0] == address
    assert fill(other)[0] != address
    (captured,) = one.fixed.steps.values()
    del one
    gc.collect()
    later = engine.new_cache(300)
    assert isinstance(later, LentCache)
    address_now, logits_now = fill(later)
    assert address_now == address
    np.testing.assert_array_equal(logits_now, logits)
    assert list(later.fixed.steps.values()) == [captured]


def test_no_more_graphs_than_a_session_can_hold(
    tiny_package: Path,
    replayed: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(step_graphs, "MOST_GRAPHS", 1)
    engine = engine_of(tiny_package)
    cache = engine.new_cache(100)
    ids = np.arange(3, 53, dtype=np.int64)
    engine.extend(cache, 0, ids[:20], np.zeros(0, dtype=np.int64))
    for n in (8, 16, 8, 16):
        engine.extend(cache, 20, ids[20 : 20 + n], np.array([n - 1]))
    (said,) = caplog.records
    assert said.getMessage().startswith("1 CUDA graphs are captured, as many as are kept; steps")
    assert replayed == [(8, 8), (8, 8)]


def test_self_test_replays_steps_too(
    tiny_package: Path, replayed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorer_of(tiny_package)
    assert scorer.self_test() < 1e-4
    assert len(replayed) > 3
    real = StepGraph.run
    monkeypatch.setattr(StepGraph, "run", lambda *args: real(*args) + np.float32([[1, 0]]))
    with pytest.raises(SelfTestError, match="this machine does not reproduce the model"):
        scorer.self_test()


# --- what onnxruntime is told


def test_each_graph_has_a_number_and_no_other_run_has(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    real = ort.load_onnxruntime().InferenceSession.run_with_iobinding

    def run(self: Any, binding: Any, options: Any = None) -> Any:
        told.append("none" if options is None else options.get_run_config_entry("gpu_graph_id"))
        return real(self, binding, options)

    monkeypatch.setattr(ort.load_onnxruntime().InferenceSession, "run_with_iobinding", run)
    scorer = scorer_of(tiny_package)
    told.clear()
    session = scorer.session(PROBLEM)
    session.add("x = 5")
    session.add("and so it is, since 4 + 1 = 5, of which there is no doubt at all here")
    session.add("x = 5")
    scorer.score_many([(PROBLEM, STEPS[:2])] * 2)
    own = [number for number in told if number not in ("none", "-1")]  # none: copies
    assert own[0] == own[2] != own[1]
    assert all(int(number) > 0 for number in own)
    assert "-1" in told


def test_options_say_so_to_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from test_ort import install

    fake = install(monkeypatch, cuda=True)
    place = Place(device="cuda", options=CudaOptions(graphs=True))
    ort.open_session(Path("g.onnx"), device="cuda", threads=0, options=place.options)
    assert fake.provider_options is not None
    assert fake.provider_options[0]["enable_cuda_graph"] == "1"
    ort.open_copier(memory.graph_bytes(memory.GRAPHS["cut"]), place)
    assert "enable_cuda_graph" not in fake.provider_options[0]
    assert "enable_cuda_graph" not in CudaOptions().provider_options("1.31.1")


def test_graphs_are_refused_on_the_cpu(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match = "^graphs=True is for CUDA, and variant 'cpu-fp32' runs on the CPU here; leave it out"
    for device in ("cpu", "auto"):
        with pytest.raises(ConfigError, match=match):
            Scorer.load(tiny_package, device=device, cuda=CudaOptions(graphs=True))
    monkeypatch.setenv("PRM_EDGE_CUDA", "graphs=1")
    with pytest.raises(ConfigError, match=match):
        Scorer.load(tiny_package, device="cpu")


def test_graphs_and_a_stream_of_yours_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^graphs are captured on a stream .* got stream 7"):
        CudaOptions(graphs=True, stream=7)


def test_a_run_of_its_own_is_refused_a_graph() -> None:
    assert StepGraphs(None, PLACE, {}, rows=9).run(None, 1, None, None) is None  # type: ignore[arg-type]

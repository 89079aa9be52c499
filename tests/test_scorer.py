"""The public face: loading, scoring, ranking, and every way to be told no."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prm_edge_runtime import Scorer, choice, scorer
from prm_edge_runtime.engine import Engine
from prm_edge_runtime.errors import (
    ConfigError,
    DeviceError,
    EngineError,
    InputError,
    InputTypeError,
    PackageIntegrityError,
    PackageNotFoundError,
    SelfTestError,
    VariantError,
)
from prm_edge_runtime.manifest import Variant
from prm_edge_runtime.package import open_package

PROBLEM = "Solve 2x + 3 = 11."
STEPS = ["Subtract 3: 2x = 8", "", "Divide by 2:\n x = 5", "So x = 4."]


@pytest.fixture(scope="module")
def loaded(tiny_package: Path) -> Iterator[Scorer]:
    with Scorer.load(tiny_package) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PRM_EDGE_PACKAGE", "PRM_EDGE_DEVICE", "PRM_EDGE_THREADS"):
        monkeypatch.delenv(variable, raising=False)


def copy(package: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy with another manifest; hashes of changed files are written anew."""
    shutil.copytree(package, out)
    path = out / "prm_edge.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    for name, entry in data["files"].items():
        content = (out / name).read_bytes()
        entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(data), encoding="utf-8")
    return out


def limited(package: Path, max_tokens: int, **variant: Any) -> Scorer:
    """The package with another limit, not through the disk."""
    opened = open_package(package)
    manifest = dataclasses.replace(opened.manifest, max_tokens=max_tokens)
    chosen = dataclasses.replace(manifest.variants[0], **variant)
    return Scorer.from_package(dataclasses.replace(opened, manifest=manifest), chosen, threads=1)


class StandIn:
    """An engine that answers with the tokens read, so that what was run can be told."""

    def __init__(self, *, causal: bool) -> None:
        self.causal = causal
        self.lengths: list[int] = []

    def run(self, ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        self.lengths.append(len(ids))
        return np.zeros((len(reads), 2), dtype=np.float32)


def with_engine(package: Path, engine: Engine, max_tokens: int) -> Scorer:
    opened = open_package(package)
    manifest = dataclasses.replace(opened.manifest, max_tokens=max_tokens)
    return Scorer(
        dataclasses.replace(opened, manifest=manifest), manifest.variants[0], engine, "argument"
    )


# --- load


def test_load_says_what_runs(loaded: Scorer, tiny_package: Path) -> None:
    assert (loaded.device, loaded.variant, loaded.source) == ("cpu", "cpu-fp32", "argument")
    assert loaded.package.root == tiny_package.absolute()
    assert loaded.max_tokens == 512
    assert loaded.threshold == 0.5
    assert loaded.recipe.family == "trl"


@pytest.mark.parametrize("kind", [str, Path])
def test_load_takes_a_path_or_a_string(kind: type, tiny_package: Path) -> None:
    assert Scorer.load(kind(tiny_package), threads=1).source == "argument"


def test_load_an_empty_path_is_not_the_working_directory(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_package)
    with pytest.raises(PackageNotFoundError, match="there is no package at ''"):
        Scorer.load("")
    assert Scorer.load(".").source == "argument"


def test_load_package_from_the_environment(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRM_EDGE_PACKAGE", f" {tiny_package} ")
    assert Scorer.load().source == "PRM_EDGE_PACKAGE"
    assert Scorer.load(tiny_package).source == "argument"


def test_load_argument_wins_over_the_environment(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRM_EDGE_PACKAGE", str(tmp_path / "absent"))
    assert Scorer.load(tiny_package).source == "argument"
    with pytest.raises(PackageNotFoundError, match=r"there is no package at .*absent"):
        Scorer.load()


@pytest.fixture
def install_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runtime looks for what it embeds."""
    monkeypatch.setattr(choice, "files", lambda name: tmp_path)
    return tmp_path


@pytest.mark.parametrize("value", [None, "", "  "])
def test_load_without_any_package(
    value: str | None, install_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("PRM_EDGE_PACKAGE", value)
    with pytest.raises(PackageNotFoundError, match=r"embeds none.*PRM_EDGE_PACKAGE.*prm-edge exp"):
        Scorer.load()


def test_load_embedded_package(tiny_package: Path, install_folder: Path) -> None:
    shutil.copytree(tiny_package, install_folder / "default_package")
    assert Scorer.load().source == "embedded"


@pytest.mark.parametrize("verify", ["auto", "full", "sizes"])
def test_load_verifies(verify: str, tiny_package: Path, tmp_path: Path) -> None:
    assert Scorer.load(tiny_package, verify=verify).score(PROBLEM, STEPS).verdict
    damaged = copy(tiny_package, tmp_path / "damaged", lambda data: None)
    weights = damaged / "cpu-fp32/model.onnx.data"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    if verify == "sizes":
        Scorer.load(damaged, verify=verify)
        return
    with pytest.raises(PackageIntegrityError, match=r"model\.onnx\.data has the SHA-256"):
        Scorer.load(damaged, verify=verify)


def test_load_verify_of_another_kind(tiny_package: Path) -> None:
    with pytest.raises(ConfigError, match="verify must be one of auto, full, sizes; got 'none'"):
        Scorer.load(tiny_package, verify="none")


@pytest.mark.parametrize("device", ["gpu", "CPU", "", "cuda:0", 5])
def test_load_device_of_another_name(device: Any, tiny_package: Path) -> None:
    with pytest.raises(ConfigError, match=r"^device must be one of auto, cpu, cuda; got "):
        Scorer.load(tiny_package, device=device)


def test_load_device_from_the_environment(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRM_EDGE_DEVICE", " cpu ")
    assert Scorer.load(tiny_package).device == "cpu"
    monkeypatch.setenv("PRM_EDGE_DEVICE", "tpu")
    with pytest.raises(ConfigError, match=r"^PRM_EDGE_DEVICE must be one of .*; got 'tpu'"):
        Scorer.load(tiny_package)
    assert Scorer.load(tiny_package, device="auto").device == "cpu"


def test_load_device_without_a_variant(tiny_package: Path) -> None:
    with pytest.raises(
        VariantError, match=r"no variant for cuda, only cpu-fp32.*pass device='cpu'"
    ):
        Scorer.load(tiny_package, device="cuda")


def add_cuda(data: dict[str, Any]) -> None:
    twin = json.loads(json.dumps(data["variants"]["cpu-fp32"]).replace("cpu-fp32", "cuda-fp32"))
    data["variants"]["cuda-fp32"] = {**twin, "device": "cuda"}
    for name in twin["files"]:
        data["files"][name] = {"size": 0, "sha256": "0" * 64}


@pytest.fixture
def both(tiny_package: Path, tmp_path: Path) -> Path:
    """A package with a variant for each device."""
    twin = tmp_path / "twin"
    shutil.copytree(tiny_package, twin)
    shutil.copytree(twin / "cpu-fp32", twin / "cuda-fp32")
    return copy(twin, tmp_path / "both", add_cuda)


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"variant": "cuda-fp32"}])
def test_load_cuda_never_falls_back(options: dict[str, str], both: Path) -> None:
    if scorer.ort.cuda_available():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(DeviceError, match=r"'cuda' needs CUDAExecutionProvider.*prm-edge\[gpu\]'"):
        Scorer.load(both, **options)


def test_load_auto_takes_the_cpu_and_says_so(
    both: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scorer.ort, "cuda_available", lambda: False)
    with caplog.at_level(logging.INFO, "prm_edge"):
        assert Scorer.load(both).device == "cpu"
    assert "device auto: chose cpu (the package has cpu, cuda)" in caplog.text


def test_load_auto_says_that_the_gpu_build_was_overwritten(
    both: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scorer.ort, "cuda_available", lambda: False)
    monkeypatch.setattr(choice.cuda, "_version", lambda name: "1.0")
    assert Scorer.load(both).device == "cpu"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "taking cpu, as onnxruntime 1.0 and onnxruntime-gpu 1.0 are both inst" in record.message
    caplog.clear()
    assert Scorer.load(both, device="cpu").device == "cpu"
    assert not caplog.records


def test_load_auto_takes_cuda_where_it_is(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(scorer.ort, "cuda_available", lambda: True)
    monkeypatch.setattr(
        scorer, "open_engine", lambda *args, **kw: opened.append(args[1]) or StandIn(causal=True)
    )
    made = Scorer.load(both, self_test=False)  # a stand-in scores nothing
    assert (made.device, opened[0].name) == ("cuda", "cuda-fp32")
    assert Scorer.load(both, device="cpu").variant == "cpu-fp32"


def open_on_the_cpu_only(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """As with onnxruntime-gpu and no driver: CUDA is listed, and no session opens on it."""
    real = scorer.open_engine

    def open_engine(graph: Path, variant: Variant, **options: Any) -> Engine:
        if variant.device == "cuda":
            raise error
        return real(graph, variant, **options)

    monkeypatch.setattr(scorer.ort, "cuda_available", lambda: True)
    monkeypatch.setattr(scorer, "open_engine", open_engine)


@pytest.mark.parametrize("kind", [DeviceError, EngineError])
def test_load_auto_falls_back_where_no_cuda_session_opens(
    kind: type[Exception],
    both: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    open_on_the_cpu_only(monkeypatch, kind("no driver"))
    made = Scorer.load(both)
    assert (made.device, made.variant) == ("cpu", "cpu-fp32")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "device auto: cuda cannot be used (no driver); taking cpu")
    ]
    assert None not in made.score(PROBLEM, STEPS).scores


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"variant": "cuda-fp32"}])
def test_load_what_was_named_never_falls_back(
    options: dict[str, str], both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_on_the_cpu_only(monkeypatch, DeviceError("no driver"))
    with pytest.raises(DeviceError, match="no driver"):
        Scorer.load(both, **options)


def test_load_auto_has_nothing_to_fall_back_to(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = copy(both, tmp_path / "only", lambda data: data["variants"].pop("cpu-fp32"))
    open_on_the_cpu_only(monkeypatch, EngineError("no driver"))
    with pytest.raises(EngineError, match="no driver"):
        Scorer.load(only)


def test_load_auto_on_the_cpu_fails_as_it_is(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **options: Any) -> Engine:
        raise EngineError("out of memory")

    monkeypatch.setattr(scorer, "open_engine", fail)
    with pytest.raises(EngineError, match="out of memory"):
        Scorer.load(tiny_package)
    assert not caplog.records


def test_load_auto_with_only_cuda_variants(both: Path, tmp_path: Path) -> None:
    if scorer.ort.cuda_available():
        pytest.skip("this onnxruntime has CUDA")
    only = copy(both, tmp_path / "only", lambda data: data["variants"].pop("cpu-fp32"))
    with pytest.raises(DeviceError, match="needs CUDAExecutionProvider"):
        Scorer.load(only)


def test_load_variant_by_name(both: Path) -> None:
    assert Scorer.load(both, variant="cpu-fp32").variant == "cpu-fp32"
    with pytest.raises(VariantError, match="has no variant 'cpu-int8'; it has cpu-fp32, cuda-fp3"):
        Scorer.load(both, variant="cpu-int8")
    with pytest.raises(VariantError, match="'cuda-fp32' runs on cuda, and the device is cpu"):
        Scorer.load(both, variant="cuda-fp32", device="cpu")


@pytest.mark.parametrize("threads", [-1, True, 1.5, "many", 10**12])
def test_load_threads_of_another_kind(threads: Any, tiny_package: Path) -> None:
    with pytest.raises(ConfigError, match=r"^threads must be a whole number"):
        Scorer.load(tiny_package, threads=threads)


def test_load_threads_from_the_environment(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    real = scorer.open_engine
    monkeypatch.setattr(
        scorer, "open_engine", lambda *args, **kw: used.append(kw["threads"]) or real(*args, **kw)
    )
    monkeypatch.setenv("PRM_EDGE_THREADS", "2")
    Scorer.load(tiny_package)
    Scorer.load(tiny_package, threads=1)
    assert used == [2, 1]
    monkeypatch.setenv("PRM_EDGE_THREADS", "all")
    with pytest.raises(ConfigError, match=r"^PRM_EDGE_THREADS must be a whole number.*got 'all'"):
        Scorer.load(tiny_package)


def test_load_warns_of_allowed_drift(
    tiny_package: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def allow(data: dict[str, Any]) -> None:
        data["variants"]["cpu-fp32"]["proof"]["allowed_drift"] = True

    Scorer.load(tiny_package)
    assert not caplog.records
    Scorer.load(copy(tiny_package, tmp_path / "drifts", allow))
    assert "variant cpu-fp32 of v1 was exported with --allow-drift" in caplog.text


def test_load_threshold_of_the_variant(tiny_package: Path, tmp_path: Path) -> None:
    own = copy(
        tiny_package,
        tmp_path / "own",
        lambda data: data["thresholds"].update({"cpu-fp32": 0.999999}),
    )
    result = Scorer.load(own).score(PROBLEM, STEPS)
    assert (result.threshold, result.verdict) == (0.999999, "flawed")


# --- self-test


def test_self_test_passes(loaded: Scorer, tiny_package: Path) -> None:
    assert loaded.self_test() < 1e-5
    assert Scorer.load(tiny_package, self_test=True).variant == "cpu-fp32"


def test_self_test_fails_where_scores_differ(tiny_package: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(tiny_package, twin)
    cases = json.loads((twin / "selftest.json").read_text(encoding="utf-8"))
    cases["cases"][1]["scores"][2] += 0.0011  # the package allows 0.001
    (twin / "selftest.json").write_text(json.dumps(cases), encoding="utf-8")
    other = copy(twin, tmp_path / "other", lambda data: None)
    assert Scorer.load(other).variant  # only when asked for
    with pytest.raises(
        SelfTestError, match=r"case 1, step 2: expected .*allowed difference 0\.001"
    ):
        Scorer.load(other, self_test=True)


def test_self_test_runs_at_every_load_on_cuda(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its graph is run by the CPU here; that it is called cuda is what counts."""
    real = scorer.open_engine

    def on_the_cpu(path: Path, variant: Variant, **options: Any) -> Engine:
        return real(path, dataclasses.replace(variant, device="cpu"), **options)

    def elsewhere(data: dict[str, Any]) -> None:
        data["variants"]["cpu-fp32"]["device"] = "cuda"

    tested: list[str] = []
    test = Scorer.self_test

    def watched(self: Scorer) -> float:
        tested.append(self.device)
        return test(self)

    monkeypatch.setattr(scorer, "open_engine", on_the_cpu)
    monkeypatch.setattr(Scorer, "self_test", watched)
    other = copy(tiny_package, tmp_path / "other", elsewhere)
    assert Scorer.load(other, device="cuda").device == "cuda"
    assert tested == ["cuda"]
    Scorer.load(other, device="cuda", self_test=False)
    Scorer.load(tiny_package)
    assert tested == ["cuda"]


def test_self_test_fails_where_weights_differ(tiny_package: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(tiny_package, twin)
    weights = twin / "cpu-fp32/model.onnx.data"
    numbers = np.frombuffer(weights.read_bytes(), dtype=np.float32).copy()
    numbers[: len(numbers) // 2] *= np.float32(1.05)
    weights.write_bytes(numbers.tobytes())
    with pytest.raises(SelfTestError, match="this machine does not reproduce the model"):
        Scorer.load(copy(twin, tmp_path / "other", lambda data: None), self_test=True)


@pytest.mark.parametrize("tolerance", [None, "0.1", True])
def test_self_test_without_a_tolerance(tolerance: str | bool | None, tiny_package: Path) -> None:
    proof = {} if tolerance is None else {"self_test_tolerance": tolerance}
    with pytest.raises(VariantError, match=r"'cpu-fp32' records no self_test_tolerance.*export th"):
        limited(tiny_package, 512, proof=proof).self_test()


# --- score


def test_score_one_score_per_step(loaded: Scorer) -> None:
    result = loaded.score(PROBLEM, STEPS)
    assert len(result.scores) == len(result.status) == len(result.logits) == len(STEPS)
    assert set(result.status) == {"scored"}
    assert all(isinstance(score, float) and 0 <= score <= 1 for score in result.scores)
    assert result.n_tokens == result.n_tokens_run > 0
    assert result.default_aggregate == "min"
    assert result.aggregate() == min(score for score in result.scores if score is not None)
    for score, row in zip(result.scores, result.logits, strict=True):
        assert row is not None
        assert score == pytest.approx(1 / (1 + np.exp(row[0] - row[1])), rel=1e-12)


def test_score_no_steps(loaded: Scorer) -> None:
    result = loaded.score(PROBLEM, [])
    assert (result.scores, result.status, result.logits) == ((), (), ())
    assert (result.verdict, result.first_error, result.aggregate()) == ("unknown", None, None)
    assert result.n_tokens > result.n_tokens_run == 0


def test_score_hostile_text_is_only_text(loaded: Scorer) -> None:
    hostile = ["<|begin|>", "<|end|>", "a\nb\n", "\x00", "🙂" * 9]
    result = loaded.score("<|begin|><|end|>", hostile)
    assert len(result.scores) == len(hostile)
    assert None not in result.scores


@pytest.mark.parametrize("steps", ["x = 4", b"x = 4"])
def test_score_one_string_names_split(steps: Any, loaded: Scorer) -> None:
    with pytest.raises(InputTypeError, match=r"must be a list of strings.*scorer\.split\(response"):
        loaded.score(PROBLEM, steps)


def test_score_what_is_no_text(loaded: Scorer) -> None:
    with pytest.raises(InputTypeError, match=r"steps\[1\] must be a string, got NoneType"):
        loaded.score(PROBLEM, ["a", None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="problem holds a lone surrogate"):
        loaded.score("\ud800", STEPS)


def test_score_many_equals_one_by_one(loaded: Scorer) -> None:
    items = [(PROBLEM, STEPS), ("", []), ("2", ["3"] * 40), (PROBLEM, STEPS[:1]), (PROBLEM, STEPS)]
    many = loaded.score_many(items)
    assert many == [loaded.score(*item) for item in items]
    assert loaded.score_many(iter(reversed(items))) == many[::-1]
    assert loaded.score_many([]) == []


def test_score_many_a_bad_item_is_named(loaded: Scorer) -> None:
    with pytest.raises(InputTypeError, match=r"steps must be a list of strings, got one str"):
        loaded.score_many([(PROBLEM, STEPS), (PROBLEM, "x")])


@pytest.mark.parametrize("items", [None, 5, "ab", b"ab"])
def test_score_many_items_of_another_kind(items: Any, loaded: Scorer) -> None:
    got = type(items).__name__
    with pytest.raises(InputTypeError, match=rf"^items must be pairs .*, got {got}$"):
        loaded.score_many(items)


@pytest.mark.parametrize(
    ("items", "index", "got"),
    [
        ([(PROBLEM, STEPS), (PROBLEM, STEPS, 1)], 1, "tuple"),
        ([[PROBLEM]], 0, "list"),
        ((PROBLEM, STEPS), 0, "str"),  # one item where a list of them belongs
        ([5], 0, "int"),
        ([None], 0, "NoneType"),
        ({"ab": STEPS}, 0, "str"),
    ],
)
def test_score_many_an_item_that_is_no_pair(
    items: Any, index: int, got: str, loaded: Scorer
) -> None:
    match = rf"^item {index} must be a pair \(problem, steps\), got {got}$"
    with pytest.raises(InputTypeError, match=match):
        loaded.score_many(items)


def test_score_many_takes_a_list_for_a_pair(loaded: Scorer) -> None:
    items: Any = [[PROBLEM, STEPS]]  # as JSON has it
    assert loaded.score_many(items) == [loaded.score(PROBLEM, STEPS)]


@pytest.mark.parametrize("threads", [1, 2])
def test_score_is_the_same_in_every_scorer(
    threads: int, loaded: Scorer, tiny_package: Path
) -> None:
    other = Scorer.load(tiny_package, threads=threads)
    for _ in range(2):
        assert other.score(PROBLEM, STEPS) == loaded.score(PROBLEM, STEPS)


def test_score_from_eight_threads_at_once(loaded: Scorer) -> None:
    items = [(PROBLEM, STEPS[:count] * 3) for count in (1, 2, 3, 4)]
    expected = [loaded.score(*item) for item in items]
    found: list[Any] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        turned = items[number % 4 :] + items[: number % 4]
        results = loaded.score_many(turned)
        found.append(results[-(number % 4) :] + results[: -(number % 4)] if number % 4 else results)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


# --- too long


def test_score_at_the_exact_limit(tiny_package: Path, loaded: Scorer) -> None:
    whole = loaded.score(PROBLEM, STEPS)
    ends = [loaded.score(PROBLEM, STEPS[:count]).n_tokens for count in range(1, 5)]
    for count, end in enumerate(ends, start=1):
        at = limited(tiny_package, end).score(PROBLEM, STEPS, on_too_long="null")
        assert at.scores == (*whole.scores[:count], *(None,) * (4 - count))
        assert at.status == ("scored",) * count + ("too_long",) * (4 - count)
        assert at.logits == (*whole.logits[:count], *(None,) * (4 - count))
        assert (at.n_tokens, at.n_tokens_run) == (whole.n_tokens, end)
        before = limited(tiny_package, end - 1).score(PROBLEM, STEPS, on_too_long="null")
        assert before.scores == (*whole.scores[: count - 1], *(None,) * (5 - count))


def test_score_a_problem_beyond_the_limit(tiny_package: Path) -> None:
    result = limited(tiny_package, 1).score(PROBLEM, STEPS, on_too_long="null")
    assert result.scores == (None,) * 4
    assert result.status == ("too_long",) * 4
    assert (result.verdict, result.first_error, result.aggregate()) == ("unknown", None, None)
    assert result.n_tokens_run == 0


def test_score_longest_record_of_the_frozen_package(loaded: Scorer) -> None:
    fill = loaded.max_tokens - loaded.score("", ["a"]).n_tokens
    longest, longer = (
        loaded.score("~" * (fill + more), ["a"], on_too_long="null") for more in (0, 1)
    )
    assert (longest.n_tokens, longest.status) == (512, ("scored",))
    assert (longer.n_tokens, longer.status) == (513, ("too_long",))


@pytest.mark.parametrize("causal", [True, False])
def test_score_runs_no_token_in_vain(causal: bool, tiny_package: Path) -> None:
    engine = StandIn(causal=causal)
    short = with_engine(tiny_package, engine, max_tokens=512)
    ends = [short.score(PROBLEM, STEPS[:count]).n_tokens for count in (2, 4)]
    engine.lengths.clear()
    cut = with_engine(tiny_package, engine, max_tokens=ends[1] - 1)
    assert cut.score(PROBLEM, STEPS[:2]).n_tokens_run == ends[0]
    result = cut.score(PROBLEM, STEPS, on_too_long="null")
    if causal:
        assert result.status == ("scored",) * 3 + ("too_long",)
        assert len(engine.lengths) == 2
    else:  # every score depends on the whole record, and that cannot be run
        assert result.status == ("too_long",) * 4
        assert engine.lengths == [ends[0]]
        assert result.n_tokens_run == 0


# --- rank, split, close


def test_rank_compares_candidates(loaded: Scorer) -> None:
    candidates = [STEPS, STEPS[:1], [], STEPS, ["x = 4"]]
    ranking = loaded.rank(PROBLEM, candidates)
    assert ranking.candidates == tuple(loaded.score(PROBLEM, c) for c in candidates)
    values = [ranking.candidates[index].aggregate("min") for index in ranking.order]
    assert values[-1] is None
    assert ranking.order[-1] == 2
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=True)
    assert ranking.order.index(0) < ranking.order.index(3)  # a tie
    assert ranking.by == "min"
    assert loaded.rank(PROBLEM, candidates, by="last").by == "last"


def test_rank_refuses_before_any_work(loaded: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "score", None)
    with pytest.raises(ConfigError, match=r"aggregate 'max' is not defined.*use one of last, mean"):
        loaded.rank(PROBLEM, [STEPS], by="max")
    with pytest.raises(ConfigError, match="aggregate '' is not defined"):
        loaded.rank(PROBLEM, [STEPS], by="")
    with pytest.raises(InputTypeError, match="problem must be a string, got int"):
        loaded.rank(5, [STEPS])  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match=r"candidates\[1\] must be a list of strings, got one"):
        loaded.rank(PROBLEM, [STEPS, "x = 4"])
    with pytest.raises(InputTypeError, match=r"candidates\[0\]\[1\] must be a string, got int"):
        loaded.rank(PROBLEM, [["a", 5]])  # type: ignore[list-item]


@pytest.mark.parametrize("candidates", ["x", b"x", None, 5, {"a": 1}, (c for c in [STEPS])])
def test_rank_candidates_of_another_kind(candidates: Any, loaded: Scorer) -> None:
    with pytest.raises(InputTypeError, match="candidates must be a list of lists of steps, got "):
        loaded.rank(PROBLEM, candidates)


def test_split_is_the_recipes_rule(loaded: Scorer) -> None:
    assert loaded.split(" one\n\n two\n") == ["one", "two"]
    assert loaded.score(PROBLEM, loaded.split("one\ntwo")).status == ("scored", "scored")


def test_close_frees_the_model(tiny_package: Path) -> None:
    with Scorer.load(tiny_package) as made:
        assert made.score(PROBLEM, STEPS).verdict
    made.close()
    for use in (made.score, made.rank):
        with pytest.raises(ConfigError, match=r"this Scorer is closed.*Scorer\.load"):
            use(PROBLEM, [STEPS] if use == made.rank else STEPS)  # type: ignore[operator]
    assert made.split("a") == ["a"]
    assert made.variant == "cpu-fp32"


def test_close_follows_an_exception(tiny_package: Path) -> None:
    made = Scorer.load(tiny_package)
    with pytest.raises(KeyError, match="mine"), made:
        raise KeyError("mine")
    with pytest.raises(ConfigError, match="closed"):
        made.score(PROBLEM, STEPS)


def test_prepared_solutions_have_the_scores_of_score_many(tiny_package: Path) -> None:
    items = [("1 + 1 = ?", ["2"]), ("2 + 2 = ?", ["2 + 2", "= 5"]), ("1 + 1 = ?", [])]
    with Scorer.load(tiny_package) as scorer:
        prepared = [scorer.prepare(problem, steps) for problem, steps in items]
        assert scorer.score_prepared(prepared) == scorer.score_many(items)
        with pytest.raises(InputTypeError, match="cut a whole response into steps"):
            scorer.prepare("1 + 1", "2")
        with pytest.raises(ConfigError, match="on_too_long"):
            scorer.prepare("1 + 1", ["2"], on_too_long="guess")

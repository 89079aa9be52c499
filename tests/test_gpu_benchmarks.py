"""What the GPU benchmarks are built on: packages made on the spot are torch's, and the clock."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu_cases
import gpu_clock
import gpu_package
import gpu_varlen
import shapes

from prm_edge_runtime import Scorer

SHAPE = shapes.Shape(hidden=64, intermediate=96, layers=2, heads=4, kv_heads=2)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gpu")
    tiny = gpu_cases.make_checkpoint(root / "tiny", max_position_embeddings=2048)
    return gpu_package.empty_package(root, tiny)


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_packages_made_on_the_spot_score_as_torch(package: Path, precision: str) -> None:
    name = gpu_package.add_variant(package, SHAPE, precision)
    held = gpu_package.what_it_holds(package, name, SHAPE)
    model = shapes.torch_model(SHAPE, held, gpu_package.vocabulary(package), "cpu", torch.float32)
    gpu_package.record_selftest(package, name, gpu_cases.Torch(model, "cpu"))
    with Scorer.load(package, device="cpu", variant=name, verify="full", self_test=True) as scorer:
        given = gpu_cases.cases(scorer)
        largest, _ = gpu_cases.largest_dp(scorer, gpu_cases.Torch(model, "cpu"), given.many[:2])
        assert largest < 5e-3
        other = shapes.torch_model(
            SHAPE, shapes.RandomTensors(), gpu_package.vocabulary(package), "cpu", torch.float32
        )
        apart, _ = gpu_cases.largest_dp(scorer, gpu_cases.Torch(other, "cpu"), given.many[:2])
    assert (apart > 10 * largest) is (precision == "int4")  # what rounding changed is seen
    gpu_package.remove_variant(package, name)
    with Scorer.load(package, device="cpu") as left:
        assert [v.name for v in left.package.manifest.variants] == ["cpu-fp32"]


def test_cases_have_the_lengths_they_are_named_for(package: Path) -> None:
    given = gpu_cases.cases(Scorer.load(package, device="cpu"))
    assert len(given.one.ids) == pytest.approx(512, abs=24)
    lengths = [len(one.ids) for one in given.many]
    assert (len(lengths), min(lengths) >= 256, max(lengths) <= 768) == (32, True, True)
    assert len(given.best) == 16
    assert {one.problem for one in given.best} == {given.best[0].problem}
    assert given.best[0].prompt == pytest.approx(400, abs=8)
    assert len(given.best[3].ids) - given.best[3].prompt == pytest.approx(120, abs=10)
    context, step = gpu_cases.step_ids(given.long)
    assert (len(step), len(context)) == (pytest.approx(30, abs=4), pytest.approx(1000, abs=30))
    assert len(given.session.steps) == 20


def test_torchs_session_and_best_of_give_its_own_logits(package: Path) -> None:
    model = shapes.torch_model(
        SHAPE, shapes.RandomTensors(), gpu_package.vocabulary(package), "cpu", torch.float32
    )
    peer = gpu_cases.Torch(model, "cpu")
    given = gpu_cases.cases(Scorer.load(package, device="cpu"))
    whole = peer.solution(given.session)
    assert peer.session(given.session) == pytest.approx(float(whole[-1, 0]), abs=1e-4)
    shared = peer.best_of(given.best[:3])
    for one, found in zip(given.best, shared, strict=False):
        assert found == pytest.approx(peer.solution(one), abs=1e-4)


def test_torch_without_padding_gives_its_own_logits(package: Path) -> None:
    model = shapes.torch_model(
        SHAPE, shapes.RandomTensors(), gpu_package.vocabulary(package), "cpu", torch.float32
    )
    given = gpu_cases.cases(Scorer.load(package, device="cpu")).many[:5]
    alone = [gpu_cases.Torch(model, "cpu").solution(one) for one in given]
    for one, found in zip(alone, gpu_varlen.Varlen(model, "cpu").many(given, rows=3), strict=True):
        assert found == pytest.approx(one, abs=1e-4)


def test_clock_leaves_out_what_will_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    clock = gpu_clock.Clock(time.monotonic() + 1000)
    assert clock.run("a", "write", 1.0, lambda: 7) == 7
    assert clock.estimate("write", 50.0) < 1
    clock.taken["write"] = [(1.0, 10.0), (2.0, 14.0)]
    assert clock.estimate("write", 6.0) == pytest.approx(1.3 * 30)
    assert clock.estimate("time", 6.0) == 0.0
    clock.taken["write"] = [(1.0, 300.0)]
    assert clock.run("b", "write", 3.0, lambda: 8) is None
    assert clock.run("late", "time", 1.0, _fail) is None
    clock.end_s = time.monotonic()
    assert clock.run("c", "time", 1.0, lambda: 9) is None
    assert [line.split(":")[0] for line in clock.skipped] == ["b", "late", "c"]
    assert "it would take about 1170 s, and" in clock.skipped[0]
    assert "RuntimeError: no compiler" in clock.skipped[1]
    assert capsys.readouterr().out.count("left out: ") == 3


def _fail() -> Any:
    raise RuntimeError("no compiler")

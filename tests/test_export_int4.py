"""int4 end to end on tiny checkpoints: its linears, the gate, exactness, refusals."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
import onnx
import torch
from int8_packages import export_int8
from torch_reference import torch_scores

from prm_edge_export import proof
from prm_edge_export.graph import GRAPH_NAME
from prm_edge_export.quantization import search
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import ProofError, UnsupportedError

PROBLEM = "A shop sells 12 apples for $3. How much do 20 apples cost?"
STEPS = ["12 apples cost $3, so one costs 3 / 12 = $0.25.", "20 * 0.25 = 5", "So $5."]


def export_int4(checkpoint: Path, out: Path, **options: Any) -> dict[str, Any]:
    return export_int8(checkpoint, out, precision="int4", **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 128, "intermediate_size": 200, "num_hidden_layers": 3}
    return checkpoints.trl_llama(tmp_path_factory.mktemp("tiny") / "tiny", **shape)


@pytest.fixture(scope="module")
def package(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As exact as it gets: the plan is never satisfied."""
    out = tmp_path_factory.mktemp("int4") / "package"
    export_int4(checkpoint, out, drift=1e-9)
    return out


def on_the_grid(weight: torch.Tensor) -> torch.Tensor:
    """A weight that 4-bit blocks of 128 hold exactly."""
    outputs, inputs = weight.shape
    steps = torch.randint(-7, 8, (outputs, -(-inputs // 128), 128)).float()
    steps[..., 5] = -8
    scales = 0.01 + 0.02 * torch.rand(outputs, steps.shape[1], 1)
    return (steps * scales).flatten(1)[:, :inputs].contiguous()


def test_int4_is_what_torch_computes_with_weights_that_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.trl_llama(tmp_path / "tiny", hidden_size=128, intermediate_size=200)
    tensors = checkpoints.read_tensors(folder)
    for name, tensor in tensors.items():
        if "_proj.weight" in name:
            tensors[name] = on_the_grid(tensor)
    checkpoints.write_shards(folder, tensors)
    monkeypatch.setattr(search, "_rotation_helps", lambda *args: False)
    monkeypatch.setattr(search, "INT4_TARGETS", (1.0, 1.0))
    report = export_int4(folder, tmp_path / "pkg")
    assert report["plan"]["shares"] == {"int4": 1.0, "int8x2": 0.0}
    scorer = Scorer.load(tmp_path / "pkg", self_test=True)
    assert scorer.variant == "cpu-int4"
    wanted = torch_scores(folder, PROBLEM, STEPS, "\n")
    np.testing.assert_allclose(scorer.score(PROBLEM, STEPS).scores, wanted, atol=0.05)


def test_int4_holds_most_weights_in_blocks_of_128_and_the_embedding_in_8_bits(
    package: Path,
) -> None:
    report = json.loads((package / "cpu-int4/report.json").read_text())
    kinds = Counter(linear["kind"] for linear in report["plan"]["linears"])
    assert set(kinds) == {"int4", "int8x2"}
    assert report["plan"]["shares"]["int4"] >= 0.75
    assert {*report["plan"]["linears"][0]["errors"]} == {"int4", "int8x2", "fp32"}
    model = onnx.load(str(package / "cpu-int4" / GRAPH_NAME), load_external_data=False)
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    for node in products:
        values = {a.name: a.i for a in node.attribute}
        assert (values["bits"], values["block_size"], values["accuracy_level"]) == (4, 128, 4)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["embedding"] == onnx.TensorProto.INT8
    assert types["head.0.weight"] == onnx.TensorProto.FLOAT
    assert len(products) > 3


def test_int4_scores_do_not_depend_on_the_cut_or_the_batch(package: Path) -> None:
    rng = np.random.default_rng(3)
    words = ["so", "x = 5", "12", "then 3 + 4 = 7", "the area is", "\\frac{1}{2}", "apples"]
    items = []
    for count in range(1, 14):
        steps = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(count)]
        items.append((f"Problem {count}: " + " ".join(rng.choice(words, count)), steps))
    scorer = Scorer.load(package)
    one_by_one = [scorer.score(problem, steps).scores for problem, steps in items]
    assert [result.scores for result in scorer.score_many(items)] == one_by_one
    lengths = set()
    for (problem, steps), wanted in zip(items, one_by_one, strict=True):
        with scorer.session(problem) as session:
            for step in steps:
                session.peek([step, "no"])
                before = session.n_tokens
                session.add(step)
                lengths.add((session.n_tokens - before) % 2)
            assert tuple(session.scores) == wanted
    assert lengths == {0, 1}  # runs of an odd length are where the operator's last row differs


def test_int4_same_checkpoint_gives_same_bytes(
    package: Path, checkpoint: Path, tmp_path: Path
) -> None:
    export_int4(checkpoint, tmp_path / "package", drift=1e-9)
    assert Scorer.load(tmp_path / "package").package.digest == Scorer.load(package).package.digest


def test_int4_over_budget_writes_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = dataclasses.replace(proof.BUDGETS["int4"], at_most={"mean_abs_dp": 1e-9}, at_least={})
    monkeypatch.setitem(proof.BUDGETS, "int4", strict)
    with pytest.raises(ProofError, match=r"(?s)over the int4 budget: mean_abs_dp .* int4 +\d"):
        export_int4(checkpoint, tmp_path / "pkg", allow_drift=False)
    assert not (tmp_path / "pkg").exists()


def test_int4_budget() -> None:
    figures: dict[str, float | int] = {
        "mean_abs_dp": 0.03,
        "logit_rel_rms": 0.2,
        "first_error_agreement": 0.95,
    }
    assert proof.check_budget(figures, [], "int4") is None
    for name, value in (("mean_abs_dp", 0.031), ("first_error_agreement", 0.949)):
        over = proof.check_budget({**figures, name: value}, [], "int4")
        assert over is not None
        assert name in over


def test_int4_needs_an_architecture_that_it_knows(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_phi3(tmp_path / "tiny")
    with pytest.raises(UnsupportedError, match=r"--precision int4 is for llama, .*phi3"):
        export_int4(checkpoint, tmp_path / "pkg")

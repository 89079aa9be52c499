"""int8 end to end on tiny checkpoints: graph, plan, proof, gate and refusals, judged by torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
import decoder_graph
import onnx
import torch
from int8_packages import KINDS_IN_TURN, SOLUTIONS, export_int8, plan_in_turn, write_texts
from torch_reference import torch_scores

from prm_edge_export import proof
from prm_edge_export.graph import DATA_NAME, GRAPH_NAME, DecoderBuilder
from prm_edge_export.quantization import search
from prm_edge_export.quantization.graph import QuantizedBuilder
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import (
    CheckpointError,
    ConfigError,
    PackageIntegrityError,
    ProofError,
    UnsupportedError,
)

PROBLEM = "A shop sells 12 apples for $3. How much do 20 apples cost?"
STEPS = ["12 apples cost $3, so one costs 3 / 12 = $0.25.", "20 * 0.25 = 5", "So $5."]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.trl_llama(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def package(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "package"
    export_int8(checkpoint, out)
    return out


@pytest.fixture(scope="module")
def mixed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of linear in one graph."""
    out = tmp_path_factory.mktemp("mixed") / "package"
    with pytest.MonkeyPatch.context() as patch:
        plan_in_turn(patch)
        export_int8(checkpoint, out)
    return out


def ops(package: Path) -> Counter[str]:
    model = onnx.load(str(package / "cpu-int8" / GRAPH_NAME), load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(
    ("maker", "changes"),
    [
        (checkpoints.trl_llama, {"attention_bias": True, "mlp_bias": True}),
        (checkpoints.trl_qwen2, {"num_key_value_heads": 1}),
        (checkpoints.trl_qwen3, {}),
        (checkpoints.trl_mistral, {"window": 11}),
        (checkpoints.qwen_prm, {}),
    ],
    ids=["llama-biases", "qwen2", "qwen3", "mistral-window", "mlp-head"],
)
def test_int8_is_close_to_torch(maker: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = maker(tmp_path / "tiny", **changes)
    separator = None if maker is checkpoints.qwen_prm else "\n"
    report = export_int8(checkpoint, tmp_path / "pkg", separator=separator)
    assert report["proof"]["mean_abs_dp"] < 0.01
    assert report["proof"]["logit_rel_rms"] < 0.1
    scorer = Scorer.load(tmp_path / "pkg", self_test=True)
    assert scorer.variant == "cpu-int8"
    if separator:
        wanted = torch_scores(checkpoint, PROBLEM, STEPS, separator)
        np.testing.assert_allclose(scorer.score(PROBLEM, STEPS).scores, wanted, atol=0.06)


@pytest.mark.parametrize(
    ("maker", "changes"),
    [
        (checkpoints.trl_llama, {"attention_bias": True, "mlp_bias": True}),
        (checkpoints.trl_qwen2, {}),
        (checkpoints.trl_qwen3, {}),
        (checkpoints.qwen_prm, {}),
    ],
    ids=["llama-biases", "qwen2", "qwen3", "mlp-head"],
)
@pytest.mark.parametrize("rotated", [True, False])
def test_int8_folding_changes_nothing(
    rotated: bool,
    maker: Any,
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # every linear and the embedding in fp32: what is left is smoothing, rotation and the opening
    checkpoint = maker(tmp_path / "tiny", **changes)
    monkeypatch.setattr(QuantizedBuilder, "_embed", DecoderBuilder._embed)
    monkeypatch.setattr(search, "_rotation_helps", lambda *args: rotated)
    plan_in_turn(monkeypatch, ("fp32",))
    separator = None if maker is checkpoints.qwen_prm else "\n"
    report = export_int8(checkpoint, tmp_path / "pkg", separator=separator)
    assert report["proof"]["max_abs_dp"] < 1e-5
    assert report["plan"]["rotated"] is rotated
    assert any(linear["smoothing"] for linear in report["plan"]["linears"])
    assert ops(tmp_path / "pkg")["MatMulIntegerToFloat"] == 0


def test_int8_says_how_wide_a_product_is(package: Path) -> None:
    # whoever infers shapes, as onnxruntime-web does before it opens a graph, cannot know
    model = onnx.load(str(package / "cpu-int8" / GRAPH_NAME), load_external_data=False)
    scales = {t.name: t.dims[0] for t in model.graph.initializer if t.name.endswith(".scales")}
    told = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    reshaped = [n.output[0] for n in model.graph.node if "token_axes" in n.input]
    assert len(reshaped) == 5 * 2
    assert told == {name: ["B", "S", scales[f"{name}.scales"]] for name in reshaped}


def test_int8_rounds_each_activation_once(package: Path, checkpoint: Path) -> None:
    report = json.loads((package / "cpu-int8/report.json").read_text())
    layers = len(report["plan"]["linears"]) // 4
    kinds = Counter(linear["kind"] for linear in report["plan"]["linears"])
    found = ops(package)
    assert layers == 2
    assert set(kinds) <= {"int8", "int8x2"}
    assert found["MatMulIntegerToFloat"] == 5 * layers  # q, k and v are one product
    assert found["QuantizeLinear"] == 4 * layers + kinds["int8x2"]
    assert found["MatMul"] == found["MatMulNBits"] == 0


def test_int8_graph_has_the_kinds_of_its_plan(mixed: Path) -> None:
    report = json.loads((mixed / "cpu-int8/report.json").read_text())
    kinds = Counter(linear["kind"] for linear in report["plan"]["linears"])
    assert set(kinds) == set(KINDS_IN_TURN)
    assert sum(report["plan"]["shares"].values()) == pytest.approx(1, abs=1e-3)
    found = ops(mixed)
    assert min(found[op] for op in ("MatMulIntegerToFloat", "MatMul")) > 0


@pytest.mark.parametrize("cut", [2, 15, 16, 18, 34, 50])
def test_int8_graph_is_exact_however_it_is_cut(mixed: Path, cut: int) -> None:
    decoder_graph.check_two_chunks(decoder_graph.Graph(mixed), cut)


def test_int8_graph_is_exact_in_chunks_and_batches(mixed: Path) -> None:
    graph = decoder_graph.Graph(mixed)
    decoder_graph.check_many_chunks(graph)
    decoder_graph.check_padded_rows(graph)


def test_int8_holds_no_float_embedding(package: Path) -> None:
    model = onnx.load(str(package / "cpu-int8" / GRAPH_NAME), load_external_data=False)
    (table,) = [tensor for tensor in model.graph.initializer if tensor.name == "embedding"]
    assert table.data_type == onnx.TensorProto.INT8


def test_int8_same_checkpoint_gives_same_bytes(
    package: Path, checkpoint: Path, tmp_path: Path
) -> None:
    export_int8(checkpoint, tmp_path / "package")
    assert Scorer.load(tmp_path / "package").package.digest == Scorer.load(package).package.digest


def test_int8_report_says_everything(package: Path) -> None:
    report = json.loads((package / "cpu-int8/report.json").read_text())
    names = (GRAPH_NAME, DATA_NAME, search.PREFIX_NAME)
    assert report["size"]["bytes"] == sum(
        (package / "cpu-int8" / name).stat().st_size for name in names
    )
    texts = report["plan"]["solutions"]
    bundled = Path(proof.__file__).parent / "data" / "search.jsonl"
    assert texts["search_texts"] == hashlib.sha256(bundled.read_bytes()).hexdigest()
    assert texts["calibration"] == len(SOLUTIONS)
    linear = report["plan"]["linears"][0]
    assert list(linear) == ["layer", "linear", "kind", "smoothing", "compensated", "errors"]
    assert linear["errors"]["int8"] > linear["errors"]["int8x2"] > 0


def test_int8_is_added_to_an_fp32_package(checkpoint: Path, tmp_path: Path) -> None:
    export_int8(checkpoint, tmp_path / "pkg", precision="fp32", calibration=None)
    exact = Scorer.load(tmp_path / "pkg").score(PROBLEM, STEPS).scores
    report = export_int8(checkpoint, tmp_path / "pkg", add=True)
    assert "  speed " in "\n".join(report["lines"])
    scorer = Scorer.load(tmp_path / "pkg")
    assert scorer.variant == "cpu-int8"
    np.testing.assert_allclose(scorer.score(PROBLEM, STEPS).scores, exact, atol=0.06)
    assert Scorer.load(tmp_path / "pkg", variant="cpu-fp32").score(PROBLEM, STEPS).scores == exact


def test_self_test_allows_twice_what_the_stored_cases_are_off(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = dataclasses.replace(proof.BUDGETS["int8"], tolerance=0.0)
    monkeypatch.setitem(proof.BUDGETS, "int8", none)
    verify = tmp_path / "verify.jsonl"  # the stored cases are these; the proof of int8 has others
    verify.write_text(json.dumps({"problem": PROBLEM, "steps": STEPS}) + "\n")
    export_int8(checkpoint, tmp_path / "pkg", precision="fp32", calibration=None, verify=verify)
    export_int8(checkpoint, tmp_path / "pkg", add=True)
    exact = Scorer.load(tmp_path / "pkg", variant="cpu-fp32").score(PROBLEM, STEPS).scores
    with Scorer.load(tmp_path / "pkg", variant="cpu-int8", self_test=True) as scorer:
        off = np.abs(np.array(scorer.score(PROBLEM, STEPS).scores) - np.array(exact)).max()
        found = scorer.package.variant("cpu-int8").proof
    assert found["self_test_tolerance"] == pytest.approx(2 * off, abs=1e-5)
    assert found["self_test_tolerance"] < 2 * found["max_abs_dp"]


# --- the gate


def test_int8_over_budget_writes_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = dataclasses.replace(proof.BUDGETS["int8"], at_most={"mean_abs_dp": 1e-6}, at_least={})
    monkeypatch.setitem(proof.BUDGETS, "int8", strict)
    with pytest.raises(
        ProofError,
        match=r"(?s)over the int8 budget: mean_abs_dp .* > 1e-06; worst steps:\n  \|dp\|.*"
        r"linears that lose most:\n  layer +\d +(qkv|o|gate_up|down) +int8.*%.*--allow-drift.*; "
        r"--drift 0.003 aims closer.*"
        r"--precision fp32 is exact",
    ):
        export_int8(checkpoint, tmp_path / "pkg", allow_drift=False)
    assert list(tmp_path.iterdir()) == [tmp_path / "texts"]
    export_int8(checkpoint, tmp_path / "pkg")
    scorer = Scorer.load(tmp_path / "pkg")
    assert scorer.package.manifest.variants[0].proof["allowed_drift"] is True


def test_int8_budget_counts_first_errors() -> None:
    figures: dict[str, float | int] = {
        "mean_abs_dp": 0.001,
        "logit_rel_rms": 0.01,
        "first_error_agreement": 0.979,
    }
    over = proof.check_budget(figures, [], "int8")
    assert over is not None
    assert "first_error_agreement 0.979 < 0.98" in over
    assert proof.check_budget({**figures, "first_error_agreement": 0.98}, [], "int8") is None


def test_int8_plan_goes_on_until_its_target(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "TARGET_MEAN_DP", 0.1)
    monkeypatch.setattr(search, "TARGET_REL_RMS", 0.5)
    relaxed = export_int8(checkpoint, tmp_path / "relaxed")
    assert relaxed["plan"]["shares"]["int8"] == relaxed["plan"]["cost"] == 1
    monkeypatch.undo()
    strict = export_int8(checkpoint, tmp_path / "strict", drift=0.004)
    assert strict["plan"]["target"] == {"mean_abs_dp": 0.004, "logit_rel_rms": pytest.approx(0.03)}
    assert strict["plan"]["cost"] > relaxed["plan"]["cost"]
    assert strict["plan"]["drift"]["mean_abs_dp"] < relaxed["plan"]["drift"]["mean_abs_dp"]
    shares = strict["plan"]["shares"]
    assert shares["int8"] + shares["int8x2"] >= 0.65
    assert shares["fp32"] <= 0.05
    # out of reach: the most precise of the plans that were tried is the one that is kept
    never = export_int8(checkpoint, tmp_path / "never", drift=1e-9)
    tried = [
        float(line.split("mean |dp| ")[1].split(",")[0])
        for line in never["lines"]
        if line.startswith("plan ")
    ]
    assert 2 <= len(tried) <= search.TRIES
    assert never["plan"]["drift"]["mean_abs_dp"] == pytest.approx(min(tried), abs=1e-4)


def test_int8_refuses_a_drift_that_its_proof_does_not_allow(
    checkpoint: Path, tmp_path: Path
) -> None:
    for given, said in ((0.02, r"0\.02"), (0.0, "0"), (float("nan"), "nan"), (-1e-3, r"-0\.001")):
        expected = (
            rf"--drift is {said}, .* int8 allows .* 0\.01: give that at most, and more than 0"
        )
        with pytest.raises(ConfigError, match=expected):
            export_int8(checkpoint, tmp_path / "pkg", drift=given)
    with pytest.raises(ConfigError, match=r"--drift is for --precision int8 or int4, got fp32"):
        export_int8(checkpoint, tmp_path / "pkg", precision="fp32", calibration=None, drift=0.002)
    assert not (tmp_path / "pkg").exists()


def test_int8_of_the_built_in_model_passes_its_gate_where_it_is_aimed_close(
    tmp_path: Path,
) -> None:
    trained = Path(__file__).parent.parent / "training" / "checkpoint"
    if not (trained / "model.safetensors").is_file():
        pytest.skip("training/checkpoint is not here")
    report = export_int8(
        trained, tmp_path / "pkg", calibration=None, verify=None, allow_drift=False, drift=0.003
    )
    assert report["proof"]["steps"] > 2000
    assert report["proof"]["allowed_drift"] is False
    shares = report["plan"]["shares"]
    assert shares["int8"] + shares["int8x2"] >= 0.95
    assert report["size"]["bytes"] < 2 * report["size"]["parameters"]


# --- what is refused


def test_int8_is_for_the_cpu(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="int8 is for the CPU, got --target cuda"):
        export_int8(checkpoint, tmp_path / "pkg", target="cuda")


def test_calibration_is_for_int8(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--calibration is for --precision int8, .*got fp32"):
        export_int8(checkpoint, tmp_path / "pkg", precision="fp32")


def test_int8_needs_the_native_backend(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_qwen2(tmp_path / "tiny")
    with pytest.raises(UnsupportedError, match="model_type qwen2 with the optimum backend"):
        export_int8(checkpoint, tmp_path / "pkg", backend="optimum")


@pytest.mark.parametrize(
    ("solutions", "message"),
    [
        (SOLUTIONS[:7], "hold 7 worked solutions, int8 needs at least 8 .*--calibration"),
        (
            [*SOLUTIONS, {"problem": "long " * 600, "steps": ["x"]}],
            r"'long long.*' has \d+ tokens, the model takes 512; give shorter",
        ),
        (
            [*SOLUTIONS, {"problem": PROBLEM, "steps": STEPS}],
            r"1 solutions of .* are also among the verification texts, first 'A shop.*judged",
        ),
    ],
    ids=["few", "long", "shared"],
)
def test_int8_refuses_calibration_texts(
    solutions: list[dict[str, Any]], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    file = write_texts(tmp_path / "calibration.jsonl", solutions)
    with pytest.raises(CheckpointError, match=message):
        export_int8(checkpoint, tmp_path / "pkg", calibration=file)
    assert not (tmp_path / "pkg").exists()


def test_int8_refuses_search_texts_that_are_verified_on(checkpoint: Path, tmp_path: Path) -> None:
    bundled = Path(proof.__file__).parent / "data" / "search.jsonl"
    with pytest.raises(CheckpointError, match=r"plan's texts are also among the verif.*--verify"):
        export_int8(checkpoint, tmp_path / "pkg", verify=bundled)


def test_int8_refuses_a_model_too_short_for_its_texts(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny", max_position_embeddings=16)
    short = [{"problem": f"{n}", "steps": ["1"]} for n in range(8)]
    file = write_texts(tmp_path / "calibration.jsonl", short)
    with pytest.raises(CheckpointError, match=r"longer than the model's 16 tokens.*fp32"):
        export_int8(checkpoint, tmp_path / "pkg", calibration=file)


def test_int8_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    tensors = checkpoints.read_tensors(checkpoint)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    checkpoints.write_shards(checkpoint, tensors)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.* not finite"):
        export_int8(checkpoint, tmp_path / "pkg")
    assert not (tmp_path / "pkg").exists()


# --- the opening


@pytest.mark.parametrize(
    ("maker", "changes", "tokens"),
    [
        (checkpoints.trl_llama, {}, 1),
        (checkpoints.trl_mistral, {"window": 11}, 0),
        (checkpoints.qwen_prm, {}, None),
    ],
    ids=["bos", "window", "chat"],
)
def test_int8_holds_the_opening(
    maker: Any, changes: dict[str, Any], tokens: int | None, tmp_path: Path
) -> None:
    checkpoint = maker(tmp_path / "tiny", **changes)
    separator = None if maker is checkpoints.qwen_prm else "\n"
    report = export_int8(checkpoint, tmp_path / "pkg", separator=separator)
    scorer = Scorer.load(tmp_path / "pkg")
    (variant,) = scorer.package.manifest.variants
    ids = scorer._encoder.opening()
    assert report["plan"]["opening_tokens"] == (len(ids) if tokens is None else tokens)
    if tokens == 0:
        assert variant.prefix is None
        return
    assert variant.prefix is not None
    assert variant.prefix.ids == tuple(ids.tolist())
    assert tokens is not None or len(ids) > 5  # a chat header
    file = tmp_path / "pkg" / variant.prefix.file
    size = 2 * variant.layers * variant.kv_heads * len(ids) * variant.head_dim * 4
    assert file.stat().st_size == size
    file.write_bytes(b"\0" * size)
    with pytest.raises(PackageIntegrityError, match=r"prefix\.f32 has the SHA-256"):
        Scorer.load(tmp_path / "pkg")

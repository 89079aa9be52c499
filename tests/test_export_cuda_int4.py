"""int4 for CUDA: blocks of 32 with activations in half precision, checked on the CPU."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
from int8_packages import VERIFIED, export_int8
from onnx import TensorProto
from test_export_cuda import BIASED, GATED, PLANTED, plant
from torch_reference import torch_scores

from prm_edge_export import cuda_blocks, cuda_target, half_blocks
from prm_edge_export.graph import GRAPH_NAME
from prm_edge_export.model_config import read_config
from prm_edge_export.quantization import search
from prm_edge_export.quantization.kinds import UNITS
from prm_edge_export.quantization.weights import BLOCKS8, CUDA4, Inputs, quantize_blocks
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import ConfigError, EngineError, ProofError, UnsupportedError
from prm_edge_runtime.package import open_package

PROBLEM, STEPS = VERIFIED[0]["problem"], VERIFIED[0]["steps"]
# 200 inputs: the last block of down_proj is filled up
SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 200, **BIASED}


def export_int4(checkpoint: Path, out: Path, **options: Any) -> dict[str, Any]:
    return export_int8(checkpoint, out, **{"target": "cuda", "precision": "int4", **options})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.trl_llama(tmp_path_factory.mktemp("tiny") / "tiny", **SHAPE)


@pytest.fixture(scope="module")
def package(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As exact as it gets: the plan is never satisfied, so that it has both kinds of blocks."""
    out = tmp_path_factory.mktemp("int4") / "package"
    export_int4(checkpoint, out, drift=1e-9)
    return out


def products(package: Path) -> dict[str, dict[str, int]]:
    model = onnx.load(str(package / "cuda-int4" / GRAPH_NAME), load_external_data=False)
    return {
        node.output[0]: {a.name: a.i for a in node.attribute}
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    }


# --- what comes out


def test_linears_are_what_the_fused_kernel_takes(package: Path) -> None:
    found = products(package)
    assert len(found) == 5 * 2  # every linear of two layers: qkv, o, gate, up, down
    model = onnx.load(str(package / "cuda-int4" / GRAPH_NAME), load_external_data=False)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":  # no zero points, no order of columns, no bias
            assert len(node.input) == 3
            assert found[node.output[0]]["block_size"] == 32
            assert types[node.input[2]] == TensorProto.FLOAT16
    assert {given["bits"] for given in found.values()} == {4, 8}
    assert not [node for node in model.graph.node if node.op_type == "MatMul"]
    assert types["embedding"] == TensorProto.INT8
    assert types["embedding.scales"] == types["head.0.weight"] == TensorProto.FLOAT


def test_report_has_the_plan_and_the_ranges(package: Path) -> None:
    report = json.loads((package / "cuda-int4/report.json").read_text())
    plan = report["plan"]
    assert plan["activations"] == "fp16"
    assert plan["shares"]["w4"] >= 0.85
    assert 0 < plan["shares"]["w8"] <= 0.15
    kinds = Counter(linear["kind"] for linear in plan["linears"])
    assert set(kinds) == {"w4", "w8"}
    # 200 is no multiple of a block: down_proj in either kind, gate and up for their outputs too
    assert {name.split()[-1] for name in plan["unfused"]} == {"down", "gate_up"}
    for linear in plan["linears"]:
        assert linear["errors"]["w8"] < linear["errors"]["w4"] / 20
        assert linear["smoothing"] is None
    assert report["ranges"]["largest"] > 0
    assert report["proof"]["checked"] == cuda_target.CHECKS["fp16"]
    assert not list(package.rglob("tmp*"))  # nothing of the check is left


def test_linears_take_the_bytes_that_the_plan_counts(package: Path, checkpoint: Path) -> None:
    linears = sum(
        tensor.numel()
        for name, tensor in checkpoints.read_tensors(checkpoint).items()
        if "_proj.weight" in name
    )
    plan = json.loads((package / "cuda-int4/report.json").read_text())["plan"]
    model = onnx.load(str(package / "cuda-int4" / GRAPH_NAME))
    stored = sum(
        len(tensor.raw_data)
        for tensor in model.graph.initializer
        if tensor.name.endswith((".blocks", "_proj.scales"))
    )
    # what CUDA_MENU says a weight costs; the last block of down_proj is filled up
    assert stored == pytest.approx(0.5625 * linears * plan["cost"], rel=0.06)


def test_scores_are_near_torchs_and_run_on_the_cpu(package: Path, checkpoint: Path) -> None:
    with Scorer.load(package, device="cpu", variant="cuda-int4", self_test=True) as scorer:
        assert (scorer.device, scorer.variant) == ("cpu", "cuda-int4")
        ours = scorer.score(PROBLEM, STEPS)
        session = scorer.session(PROBLEM)
        stepwise = [session.add(step) for step in STEPS]
    wanted = torch_scores(checkpoint, PROBLEM, STEPS, "\n")
    np.testing.assert_allclose(ours.scores, wanted, atol=0.05)
    np.testing.assert_allclose(stepwise, ours.scores, atol=5e-3)


def on_the_grid(weight: torch.Tensor) -> torch.Tensor:
    """A weight that 4-bit blocks of 32 hold exactly, scales in float16 included."""
    outputs, inputs = weight.shape
    steps = torch.randint(-7, 8, (outputs, -(-inputs // 32), 32)).float()
    steps[..., 5] = -8
    scales = (0.01 + 0.02 * torch.rand(outputs, steps.shape[1], 1)).half().float()
    return (steps * scales).flatten(1)[:, :inputs].contiguous()


@pytest.mark.parametrize("planted", [None, *PLANTED])
def test_weights_that_blocks_hold_are_torchs(
    planted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every product, fold and bias at its place: only half precision is between the scores."""
    folder = checkpoints.trl_llama(tmp_path / "tiny", **SHAPE)
    tensors = checkpoints.read_tensors(folder)
    for name, tensor in tensors.items():
        if "_proj.weight" in name:
            tensors[name] = on_the_grid(tensor)
    checkpoints.write_shards(folder, tensors)
    if planted is not None:
        folder = plant(folder, tmp_path / "planted", PLANTED[planted])
    monkeypatch.setattr(search, "INT4_TARGETS", (1.0, 1.0))
    report = export_int4(folder, tmp_path / "pkg")
    assert report["plan"]["shares"] == {"w4": 1.0, "w8": 0.0}
    folds = report["ranges"]["folds"]
    assert [part for part, bits in folds.items() if bits] == ([planted] if planted else [])
    with Scorer.load(tmp_path / "pkg", device="cpu", variant="cuda-int4") as scorer:
        ours = scorer.score(PROBLEM, STEPS).scores
    wanted = torch_scores(folder, PROBLEM, STEPS, "\n")
    np.testing.assert_allclose(ours, wanted, atol=0.02)  # the embedding is in 8 bits
    assert report["proof"]["on_cpu_max_abs_dp"] < 0.02


def test_bf16_activations_where_fp16_cannot_hold_them(checkpoint: Path, tmp_path: Path) -> None:
    planted = plant(checkpoint, tmp_path / "planted", GATED)
    report = export_int4(planted, tmp_path / "p")
    assert report["variant"] == "cuda-int4"
    assert report["plan"]["activations"] == "bf16"
    assert report["proof"]["checked"] == cuda_target.CHECKS["bf16"]
    assert any(line.startswith("activations: bf16 (largest value") for line in report["lines"])
    variant = open_package(tmp_path / "p").variant("cuda-int4")
    model = onnx.load(str(tmp_path / "p" / variant.graph), load_external_data=False)
    assert {v.type.tensor_type.elem_type for v in model.graph.input[4:]} == {TensorProto.BFLOAT16}
    with pytest.raises(EngineError, match=r"cannot load .*implementation for MatMulNBits"):
        Scorer.load(tmp_path / "p", device="cpu", variant="cuda-int4")


def test_same_checkpoint_gives_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_int4(checkpoint, tmp_path / name / "p")
    files = [sorted((tmp_path / name / "p/cuda-int4").iterdir()) for name in ("a", "b")]
    assert [f.name for f in files[0]] == ["model.onnx", "model.onnx.data", "report.json"]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("hidden", "wide", "heads", "kv"),
    [(896, 4864, 14, 2), (1536, 8960, 12, 2), (3584, 18944, 28, 4), (576, 1536, 9, 3)],
)
def test_real_shapes_are_fusable(hidden: int, wide: int, heads: int, kv: int) -> None:
    """Qwen2.5's 0.5B, 1.5B and 7B, SmolLM2's 135M."""
    config = read_config(
        {
            "model_type": "qwen2", "vocab_size": 300, "hidden_size": hidden,
            "intermediate_size": wide, "num_hidden_layers": 2, "num_attention_heads": heads,
            "num_key_value_heads": kv,
        }
    )  # fmt: skip
    for unit in UNITS:
        assert all(cuda_blocks.fusable(config, unit.name, kind) for kind in ("w4", "w8"))


# --- the checks can fail


def test_proof_sees_the_packaged_bytes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph whose blocks are another weight's is refused, whatever the plan measured."""
    real = half_blocks.build_blocks

    def swapped(*args: Any, **options: Any) -> None:
        stored = options["calibration"].stored
        names = [name for name in stored if name.endswith(("gate_proj", "up_proj"))]
        for name in names:
            other = name.replace("gate", "x").replace("up_proj", "gate_proj").replace("x", "up")
            swap[name] = stored[other]
        stored.update(swap)
        real(*args, **options)

    swap: dict[str, Path] = {}
    monkeypatch.setattr(cuda_blocks, "build_blocks", swapped)
    with pytest.raises(
        ProofError, match=r"over the int4 budget: .*\n(.*\n)*linears that lose most"
    ):
        export_int4(checkpoint, tmp_path / "p", allow_drift=False)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("form", [CUDA4, BLOCKS8])
@pytest.mark.parametrize("compensated", [False, True])
def test_quantize_blocks_keeps_scales_that_float16_holds(form: Any, compensated: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 100)
    weight[0, :32] = 0  # a block of zeros
    weight[1, :32] *= 1e-7  # smaller than float16's normal numbers
    rows = torch.randn(400, 100)
    hessian = [rows.T @ rows] if compensated else []
    blocks = quantize_blocks(weight, Inputs.of(hessian), form, torch.float16)
    assert torch.equal(blocks.scales, blocks.scales.half().float())
    assert blocks.scales.half().ne(0).all()
    restored = blocks.restored(100)
    assert restored.isfinite().all()
    assert (restored[0, :32] == 0).all() or compensated
    error = (rows @ (restored - weight).T)[:, 2:].norm() / (rows @ weight.T)[:, 2:].norm()
    assert error < (0.12 if form is CUDA4 else 0.008)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"target": "npu"}, ConfigError, "--target 'npu' is not one of cpu, cuda"),
        ({"precision": "fp32"}, ConfigError, "cuda is for --precision fp16, bf16 or int4, got"),
        ({"backend": "optimum"}, UnsupportedError, r"int4 is for llama.*; use --precision fp16"),
    ],
)
def test_int4_refuses(
    options: dict[str, Any], error: type[Exception], match: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        export_int4(checkpoint, tmp_path / "p", **options)


def test_phi3_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"int4 is for .*model_type phi3.*--precision fp16"):
        export_int4(checkpoints.trl_phi3(tmp_path / "tiny"), tmp_path / "p")

"""Half precision for a GPU: chosen from measured values, folded exactly, proven on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import onnx
import pytest
import torch
from int8_packages import SOLUTIONS, VERIFIED, write_texts
from torch_reference import torch_scores

from prm_edge_export import cuda_target, preflight, proof, ranges
from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.graph import GRAPH_NAME
from prm_edge_export.half import FORMATS, build_half
from prm_edge_export.heads import find_head
from prm_edge_export.model_config import read_config
from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_export.ranges import Folds
from prm_edge_runtime import Scorer, contract
from prm_edge_runtime.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    ExportError,
    ProofError,
    UnsupportedError,
    VariantError,
)
from prm_edge_runtime.package import open_package

NO_FOLDS: dict[str, Any] = {"embedding": 0, **{part: {} for part in ranges.FOLDED}}
PROBLEM, STEPS = VERIFIED[0]["problem"], VERIFIED[0]["steps"]
BIASED: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}


def export_half(checkpoint: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Export for CUDA with a handful of solutions; the report, with the lines that were said."""
    texts = out.parent / "texts"
    given: dict[str, Any] = {
        "target": "cuda",
        "separator": "\n",
        "calibration": write_texts(texts / "calibration.jsonl", SOLUTIONS),
        "verify": write_texts(texts / "verify.jsonl", VERIFIED),
        **options,
    }
    lines: list[str] = []
    result = export(ExportOptions(checkpoint=checkpoint, out=out, **given), lines.append)
    return {**result.report, "lines": lines}


def plant(source: Path, target: Path, factors: dict[str, float]) -> Path:
    """Copy a checkpoint with tensors multiplied; ``factors``: ending of the name -> factor."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = checkpoints.read_tensors(source)
    touched = set()
    for name, tensor in tensors.items():
        for ending, factor in factors.items():
            if name.endswith(ending):
                tensors[name] = tensor * factor
                touched.add(ending)
    assert touched == set(factors)
    checkpoints.write_shards(target, tensors)
    return target


BIG = 2.0**15
PLANTED: dict[str, dict[str, float]] = {
    ranges.PRODUCT: {
        "0.mlp.up_proj.weight": BIG, "0.mlp.up_proj.bias": BIG, "0.mlp.down_proj.weight": 1 / BIG,
    },
    ranges.VALUES: {
        "1.self_attn.v_proj.weight": BIG, "1.self_attn.v_proj.bias": BIG,
        "1.self_attn.o_proj.weight": 1 / BIG,
    },
    # the stream becomes large, and the norm behind it makes up for that
    ranges.ATTENTION: {"0.self_attn.o_proj.weight": BIG, "0.self_attn.o_proj.bias": BIG},
    ranges.MLP: {"1.mlp.down_proj.weight": BIG, "1.mlp.down_proj.bias": BIG},
}  # fmt: skip
GATED = {"0.mlp.gate_proj.weight": BIG, "0.mlp.gate_proj.bias": BIG, "0.mlp.down_proj.weight": 1e-5}


def types(package: Path, variant: str) -> dict[str, int]:
    """Initializer name -> element type."""
    model = onnx.load(package / variant / GRAPH_NAME, load_external_data=False)
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.trl_llama(tmp_path_factory.mktemp("half") / "tiny", **BIASED)


@pytest.fixture(scope="module")
def package(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("half") / "package"
    verify = write_texts(out.parent / "verify.jsonl", VERIFIED)
    export(ExportOptions(checkpoint=checkpoint, out=out, separator="\n", verify=verify))
    export_half(checkpoint, out, add=True, verify=verify)
    export_half(checkpoint, out, add=True, verify=verify, precision="bf16", allow_drift=True)
    return out


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Any:
    return Checkpoint(checkpoint)


# --- what comes out


def test_package_has_every_variant(package: Path) -> None:
    manifest = open_package(package, verify="full").manifest
    assert [v.name for v in manifest.variants] == ["cpu-fp32", "cuda-fp16", "cuda-bf16"]
    assert [v.device for v in manifest.variants] == ["cpu", "cuda", "cuda"]
    sizes = [manifest.files[f"{v.name}/model.onnx.data"].size for v in manifest.variants]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.3)  # tiny tensors are padded to pages


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_graph_is_half_and_its_head_is_not(package: Path, precision: str) -> None:
    found = types(package, f"cuda-{precision}")
    element = FORMATS[precision].element
    for name in ("embedding", "model.layers.0.mlp.down_proj.weight", "cos"):
        assert found[name] == element, name
    for name in ("head.0.weight", "final_norm.gain", "layer.1.mlp_norm.gain"):
        assert found[name] == onnx.TensorProto.FLOAT, name
    variant = open_package(package).variant(f"cuda-{precision}")
    model = onnx.load(package / variant.graph, load_external_data=False)
    shape = (variant.layers, variant.kv_heads, variant.head_dim)
    cache = FORMATS[precision].cache
    declared = [tensor.type for tensor in contract.decoder_inputs(*shape, cache)]
    numbers = {contract.INT64: 7, contract.INT32: 6, contract.FLOAT16: 10, contract.BFLOAT16: 16}
    assert [v.type.tensor_type.elem_type for v in model.graph.input] == [
        numbers[name] for name in declared
    ]
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    # the stream is float32: in front of every norm, and behind every projection that adds to it
    casts = [node.name for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == 4 * variant.layers + 1
    added = {i for node in model.graph.node if node.op_type.startswith("Skip") for i in node.input}
    assert {f"model.layers.{n}.self_attn.o_proj.biased.float" for n in (0, 1)} <= added
    assert "model.layers.0.mlp.down_proj.biased.float" in added
    assert not list(package.rglob("tmp*"))  # nothing of the check is left


@pytest.mark.parametrize(
    "make", [checkpoints.trl_qwen2, checkpoints.trl_qwen3, checkpoints.trl_phi3]
)
def test_fp16_is_close_to_torch(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "tiny")
    report = export_half(folder, tmp_path / "p", trust_tokenizer_file=True)
    assert report["variant"] == "cuda-fp16"
    assert report["proof"]["checked"] == cuda_target.CHECKS["fp16"]
    assert report["ranges"]["folds"] == NO_FOLDS
    assert 0 < report["ranges"]["largest"] < 100
    with Scorer.load(tmp_path / "p", device="cpu", variant="cuda-fp16") as scorer:
        ours = scorer.score(PROBLEM, STEPS).scores
    if make is not checkpoints.trl_qwen2:  # whose tokenizer class encodes differently
        np.testing.assert_allclose(ours, torch_scores(folder, PROBLEM, STEPS, "\n"), atol=5e-3)


def test_fp16_variant_is_checked_on_the_cpu(package: Path) -> None:
    with Scorer.load(package) as scorer:  # auto, and no GPU here
        assert (scorer.device, scorer.variant) == ("cpu", "cpu-fp32")
        exact = scorer.score(PROBLEM, STEPS).scores
    with Scorer.load(package, device="cpu", variant="cuda-fp16", self_test=True) as scorer:
        assert (scorer.device, scorer.variant) == ("cpu", "cuda-fp16")
        half = scorer.score(PROBLEM, STEPS)
        session = scorer.session(PROBLEM)
        stepwise = [session.add(step) for step in STEPS if step.strip()]
    assert half.scores != exact
    np.testing.assert_allclose(half.scores, exact, atol=5e-3)
    np.testing.assert_allclose(stepwise, half.scores, atol=5e-3)


def test_fp16_cache_is_half_and_the_device_path_the_same(package: Path) -> None:
    from prm_edge_runtime.engine import DecoderEngine, open_engine
    from prm_edge_runtime.ort import Place, open_session
    from prm_edge_runtime.package import choose_variant

    opened = open_package(package)
    variant = choose_variant(opened.manifest, device="cpu", name="cuda-fp16")
    path = opened.path(variant.graph)
    host = open_engine(path, variant, logits=2, threads=1)
    session = open_session(path, device="cpu", threads=1)
    device = DecoderEngine(session, variant, 2, Place(device="cpu"))
    assert isinstance(host, DecoderEngine)
    assert host.new_cache(4).kv.dtype == np.float16  # type: ignore[attr-defined]
    ids = np.random.default_rng(0).integers(3, 200, 300)
    reads = np.arange(300, dtype=np.int64)
    assert host.run(ids, reads).tobytes() == device.run(ids, reads).tobytes()
    assert host.run(ids[:64], reads[:64]).tobytes() == device.run(ids[:64], reads[:64]).tobytes()


def test_bf16_needs_a_gpu(package: Path) -> None:
    with pytest.raises(VariantError, match="'cuda-bf16' runs on cuda, and the device is cpu"):
        Scorer.load(package, device="cpu", variant="cuda-bf16")


def test_cuda_without_a_gpu_says_why(package: Path) -> None:
    with pytest.raises(DeviceError, match=r"needs CUDAExecutionProvider|cannot be had"):
        Scorer.load(package, device="cuda")


def test_bf16_check_loses_less_than_torchs_bfloat16_does(package: Path, checkpoint: Path) -> None:
    proof = open_package(package).variant("cuda-bf16").proof
    assert proof["checked"] == cuda_target.CHECKS["bf16"]
    model = checkpoints.LlamaForTokenClassification.from_pretrained(checkpoint)
    errors = []
    opened = open_package(package)
    scorer = Scorer.from_package(opened, opened.variant("cpu-fp32"))
    for text in VERIFIED:
        encoded = scorer._encoder.encode(text["problem"], text["steps"])
        ids, reads = torch.from_numpy(encoded.ids)[None], torch.from_numpy(encoded.reads)
        with torch.inference_mode():
            exact = model.to(torch.float32)(input_ids=ids).logits[0, reads]
            rounded = model.to(torch.bfloat16)(input_ids=ids).logits[0, reads].float()
        model = checkpoints.LlamaForTokenClassification.from_pretrained(checkpoint)
        errors.append((exact - rounded).numpy())
    torch_rms = float(np.sqrt(np.mean(np.concatenate(errors) ** 2))) / float(proof["logit_std"])
    # torch rounds the residual stream too, and nothing rounds what nobody rounds
    assert 0.3 * torch_rms < float(proof["logit_rel_rms"]) < torch_rms


def test_fp16_graph_itself_must_be_the_model(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = replace(proof.BUDGETS["fp16"], tolerance=1e-9)
    monkeypatch.setitem(proof.BUDGETS, "fp16", budget)
    with pytest.raises(
        ProofError, match=r"on the CPU, the graph itself differs .*allowed are 1e-09"
    ):
        export_half(checkpoint, tmp_path / "p")
    assert not (tmp_path / "p").exists()
    report = export_half(checkpoint, tmp_path / "p", allow_drift=True)
    assert 1e-9 < report["proof"]["on_cpu_max_abs_dp"] < 5e-3


def test_report_says_what_was_measured(package: Path) -> None:
    report = json.loads((package / "cuda-fp16/report.json").read_text())
    by_part = report["ranges"]["by_part"]
    assert set(by_part) == set(ranges.PARTS)
    assert report["ranges"]["largest"] == max(
        size for part, size in by_part.items() if part != ranges.STREAM
    )
    assert report["ranges"]["largest_weight"]["size"] > 0
    assert len(report["ranges"]["calibration_texts"]) == 64
    assert "speed" not in report


# --- before anything runs


def test_what_it_takes_is_said_before_anything_runs(checkpoint: Path, tmp_path: Path) -> None:
    lines = export_half(checkpoint, tmp_path / "p")["lines"]
    (needs,) = [line for line in lines if line.startswith("needs about")]
    first = next(line for line in lines if line.startswith("ranges and reference"))
    assert lines.index(needs) < lines.index(first)


def test_memory_that_is_not_there_is_refused_before_anything_runs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 100_000_000)
    monkeypatch.setattr(cuda_target, "decide", None)  # would raise, were it called
    with pytest.raises(ExportError, match=r"needs about 0\.\d GB of memory and 0\.1 GB are avail"):
        export_half(checkpoint, tmp_path / "p")
    monkeypatch.undo()
    monkeypatch.setattr(preflight, "available_memory", lambda: 100_000_000)
    report = export_half(checkpoint, tmp_path / "p", ignore_limits=True)
    assert report["variant"] == "cuda-fp16"


def test_a_variant_that_is_there_is_refused_before_anything_runs(
    package: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_target, "decide", None)
    for precision in ("auto", "fp16", "bf16"):
        name = "cuda-bf16" if precision == "bf16" else "cuda-fp16"
        with pytest.raises(ExportError, match=f"has a variant '{name}' already"):
            export_half(checkpoint, package, add=True, precision=precision)


def test_bf16_that_was_chosen_is_proven_like_bf16_that_was_asked_for(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"fp16": ("verification.jsonl",), "bf16": ("search.jsonl",)}
    for precision, names in texts.items():
        budget = replace(proof.BUDGETS[precision], texts=names)
        monkeypatch.setitem(proof.BUDGETS, precision, budget)
    planted = plant(checkpoint, tmp_path / "planted", GATED)
    chosen = export_half(planted, tmp_path / "p", verify=None, allow_drift=True)
    asked = export_half(planted, tmp_path / "q", verify=None, allow_drift=True, precision="bf16")
    assert chosen["variant"] == asked["variant"] == "cuda-bf16"
    assert chosen["proof"] == asked["proof"]
    assert chosen["provenance"] == asked["provenance"]
    assert any(line.startswith("precision: bf16 (") for line in chosen["decisions"])
    assert any(line.startswith("precision: bf16, as asked (") for line in asked["decisions"])
    graphs = [out / "cuda-bf16" / GRAPH_NAME for out in (tmp_path / "p", tmp_path / "q")]
    assert graphs[0].read_bytes() == graphs[1].read_bytes()


# --- what is refused


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"precision": "fp32"},
            ConfigError,
            "cuda is for --precision fp16, bf16 or int4, got fp32",
        ),
        ({"precision": "int8"}, ConfigError, "int8 is for the CPU, got --target cuda"),
        (
            {"target": "cpu", "precision": "fp16"},
            ConfigError,
            "cpu is for --precision fp32, int8 or int4, got fp16",
        ),
        ({"target": "npu"}, ConfigError, "--target 'npu' is not one of cpu, cuda"),
        ({"backend": "optimum"}, UnsupportedError, "--target cuda needs the native backend"),
    ],
)
def test_cuda_refuses(
    options: dict[str, Any], error: type[Exception], match: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        export_half(checkpoint, tmp_path / "p", **options)


def test_cuda_needs_texts_to_measure_on(checkpoint: Path, tmp_path: Path) -> None:
    long = write_texts(tmp_path / "long.jsonl", [{"problem": "long " * 600, "steps": ["x"]}])
    with pytest.raises(CheckpointError, match=r"every solution of .*long\.jsonl is longer .*512"):
        export_half(checkpoint, tmp_path / "p", calibration=long)
    shared = write_texts(tmp_path / "shared.jsonl", VERIFIED)
    with pytest.raises(CheckpointError, match="also among the verification texts"):
        export_half(checkpoint, tmp_path / "p", calibration=shared)


def test_build_half_of_the_same_checkpoint_gives_the_same_bytes(
    opened: Any, tmp_path: Path
) -> None:
    config, head = read_config(opened.config), find_head(opened.tensors)
    assert head is not None
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_half(
            config, head, opened.tensors, tmp_path / name, precision="bf16", folds=Folds(),
            max_tokens=64,
        )  # fmt: skip
        found.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert found[0] == found[1]

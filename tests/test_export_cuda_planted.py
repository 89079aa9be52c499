"""Weights and values that float16 cannot hold: folded exactly, or bfloat16 is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_packages import VERIFIED
from test_export_cuda import BIASED, GATED, NO_FOLDS, PLANTED, export_half, plant
from torch_reference import torch_scores

from prm_edge_export import ranges
from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.graph import GRAPH_NAME
from prm_edge_export.half import Format, HalfBuilder, build_half
from prm_edge_export.heads import find_head
from prm_edge_export.model_config import read_config
from prm_edge_export.ranges import Folds
from prm_edge_export.weights import WeightFile
from prm_edge_runtime import Scorer, contract
from prm_edge_runtime.errors import EngineError, ProofError, UnsupportedError

PROBLEM, STEPS = VERIFIED[0]["problem"], VERIFIED[0]["steps"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.trl_llama(tmp_path_factory.mktemp("half") / "tiny", **BIASED)


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Any:
    return Checkpoint(checkpoint)


@pytest.mark.parametrize("what", PLANTED)
def test_fp16_folds_what_would_overflow(what: str, checkpoint: Path, tmp_path: Path) -> None:
    planted = plant(checkpoint, tmp_path / "planted", PLANTED[what])
    report = export_half(planted, tmp_path / "p")
    assert report["variant"] == "cuda-fp16"
    folds = report["ranges"]["folds"]
    assert [part for part, bits in folds.items() if bits] == [what]
    assert report["ranges"]["largest"] > ranges.LIMIT
    assert any(
        line.startswith("precision: fp16") and f"folded, exactly: {what} in 1 layer by" in line
        for line in report["lines"]
    )
    with Scorer.load(tmp_path / "p", device="cpu", variant="cuda-fp16", self_test=True) as scorer:
        ours = scorer.score(PROBLEM, STEPS).scores
    np.testing.assert_allclose(ours, torch_scores(planted, PROBLEM, STEPS, "\n"), atol=5e-3)


@pytest.mark.parametrize("what", PLANTED)
def test_fp16_without_folds_would_fail(
    what: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = plant(checkpoint, tmp_path / "planted", PLANTED[what])
    monkeypatch.setattr(ranges, "fold", lambda found: (Folds(), [], []))
    with pytest.raises((ProofError, EngineError, UnsupportedError), match=r"fp16|finite|float16"):
        export_half(planted, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_fp16_leaves_a_large_stream_alone(checkpoint: Path, tmp_path: Path) -> None:
    """What is added to it fits; the sum does not, and is float32."""
    names = ("embed_tokens.weight", "o_proj.weight", "o_proj.bias", "down_proj.weight",
             "down_proj.bias")  # fmt: skip
    planted = plant(checkpoint, tmp_path / "planted", dict.fromkeys(names, 7000.0))
    report = export_half(planted, tmp_path / "p")
    assert report["variant"] == "cuda-fp16"
    assert report["ranges"]["by_part"][ranges.STREAM] > 1.5 * ranges.LIMIT
    assert report["ranges"]["folds"] == NO_FOLDS


def test_bf16_is_chosen_where_no_fold_helps(checkpoint: Path, tmp_path: Path) -> None:
    planted = plant(checkpoint, tmp_path / "planted", GATED)
    report = export_half(planted, tmp_path / "p", allow_drift=True)
    assert report["variant"] == "cuda-bf16"
    said = next(line for line in report["lines"] if line.startswith("precision"))
    assert said in report["decisions"]
    assert "precision: bf16 (largest value" in said
    assert "no folding brings it into float16: model.layers.0.mlp." in said
    assert report["ranges"]["folds"] == NO_FOLDS
    with pytest.raises(UnsupportedError, match=r"largest value .*; no folding .*--precision bf16$"):
        export_half(planted, tmp_path / "q", precision="fp16")
    assert not (tmp_path / "q").exists()


# name -> one weight of it that is planted, the fold that it takes; None where bfloat16 is taken
OUTLIERS: dict[str, tuple[float, dict[str, Any] | None]] = {
    "embed_tokens.weight": (1e5, {"embedding": 1}),  # of a token that no text has
    "layers.0.self_attn.v_proj.weight": (1e5, {ranges.VALUES: {0: 1}}),
    "layers.1.self_attn.o_proj.weight": (1e5, {ranges.ATTENTION: {1: 1}}),
    "layers.0.mlp.up_proj.weight": (2e5, {ranges.PRODUCT: {0: 2}}),
    "layers.1.mlp.down_proj.weight": (-1e5, {ranges.MLP: {1: 1}}),
    "layers.1.mlp.down_proj.bias": (-1e5, {ranges.MLP: {1: 3}}),  # also as a value, with headroom
    "layers.0.self_attn.q_proj.weight": (1e5, None),
    "layers.1.mlp.gate_proj.weight": (1e5, None),
    "layers.0.self_attn.k_proj.bias": (1e5, None),
    # more bits than any fold takes
    "layers.0.mlp.down_proj.weight": (1e9, None),
    "layers.1.mlp.up_proj.weight": (1e12, None),
}


@pytest.mark.parametrize("name", OUTLIERS)
def test_a_weight_beyond_float16_is_folded_or_bf16_is_taken(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    """The row or column that meets the weight is zero: no score shows it, and all must hold it."""
    size, folds = OUTLIERS[name]
    planted = plant(checkpoint, tmp_path / "planted", {"norm.weight": 1.0})
    tensors = checkpoints.read_tensors(checkpoint)
    silence(tensors, f"model.{name}")
    tensors[f"model.{name}"].view(-1)[0] = size
    checkpoints.write_shards(planted, tensors)
    report = export_half(planted, tmp_path / "p", allow_drift=folds is None)
    said = next(line for line in report["lines"] if line.startswith("precision"))
    assert f"largest weight {abs(size):.3g} (model.{name})" in said
    if folds is None:
        assert report["variant"] == "cuda-bf16"
        assert f"model.{name.rpartition('.')[0]}" in said.split("float16 holds 65504; ")[1]
        return
    assert report["variant"] == "cuda-fp16"
    assert report["ranges"]["folds"] == NO_FOLDS | folds
    assert "folded, exactly" in said
    ours = Scorer.load(tmp_path / "p", device="cpu", variant="cuda-fp16").score(PROBLEM, STEPS)
    np.testing.assert_allclose(ours.scores, torch_scores(planted, PROBLEM, STEPS, "\n"), atol=5e-3)


def silence(tensors: dict[str, torch.Tensor], name: str) -> None:
    """Make what the first weight of a tensor is multiplied with, or gives, count for nothing."""
    layer = name.rsplit(".", 3)[0]
    if name.endswith("bias"):
        return
    if "o_proj" in name:  # the value that it multiplies
        tensors[f"{layer}.self_attn.v_proj.weight"][0] = 0
        tensors[f"{layer}.self_attn.v_proj.bias"][0] = 0
    elif "down_proj" in name:
        tensors[f"{layer}.mlp.up_proj.weight"][0] = 0
        tensors[f"{layer}.mlp.up_proj.bias"][0] = 0
    elif "embed" not in name:
        norm = "input_layernorm" if "self_attn" in name else "post_attention_layernorm"
        tensors[f"{layer}.{norm}.weight"][0] = 0


def test_bf16_is_taken_where_a_fold_would_not_be_exact(checkpoint: Path, tmp_path: Path) -> None:
    """One weight needs 11 bits, which every other weight of its tensor is too small for."""
    name = "model.layers.0.mlp.down_proj.weight"
    planted = plant(checkpoint, tmp_path / "planted", {name: 1 / 64})
    tensors = checkpoints.read_tensors(planted)
    silence(tensors, name)
    tensors[name][0, 0] = 1e8
    checkpoints.write_shards(planted, tensors)
    report = export_half(planted, tmp_path / "p", allow_drift=True)
    assert report["variant"] == "cuda-bf16"
    said = next(line for line in report["lines"] if line.startswith("precision"))
    assert f"folded by 2^-11, {name} would lose" in said
    # as asked, the proof decides
    report = export_half(planted, tmp_path / "q", precision="fp16")
    assert report["ranges"]["folds"][ranges.MLP] == {0: 11}


def test_fp16_as_asked_refuses_a_weight_that_no_fold_reaches(
    checkpoint: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    planted = plant(checkpoint, tmp_path / "planted", {"norm.weight": 1.0})
    tensors = checkpoints.read_tensors(checkpoint)
    silence(tensors, name)
    tensors[name][0, 0] = -1e5
    checkpoints.write_shards(planted, tensors)
    with pytest.raises(
        UnsupportedError, match=r"gate_proj\.weight holds 1e\+05; use --prec.*bf16$"
    ):
        export_half(planted, tmp_path / "p", precision="fp16")


def test_build_refuses_a_weight_that_was_not_folded(opened: Any, tmp_path: Path) -> None:
    config, head = read_config(opened.config), find_head(opened.tensors)
    assert head is not None
    folds = Folds(parts={ranges.VALUES: {0: -40}})
    with pytest.raises(UnsupportedError, match=r"v_proj.* holds the weight .*use --precision bf16"):
        build_half(config, head, opened.tensors, tmp_path, precision="fp16", folds=folds,
                   max_tokens=64)  # fmt: skip


def build_fp32(opened: Any, folder: Path, folds: Folds) -> Any:
    """The logits of the half builder's graph in float32, where every fold must be exact."""
    config = read_config(opened.config)
    head = find_head(opened.tensors)
    assert head is not None
    form = Format(dtype=np.float32, element=onnx.TensorProto.FLOAT, cache=contract.FLOAT)
    folder.mkdir(parents=True)
    with WeightFile(folder / "model.onnx.data") as weights:
        builder = HalfBuilder(config, opened.tensors, weights, form, folds)
        builder.build(head, 64, lambda done, total: None)
        model = builder.model(head)
    (folder / GRAPH_NAME).write_bytes(model.SerializeToString())
    from prm_edge_runtime.engine import open_engine
    from prm_edge_runtime.manifest import Variant

    variant = Variant(
        name="x", device="cpu", precision="fp32", interface="decoder", graph=GRAPH_NAME, files=(),
        layers=config.layers, kv_heads=config.kv_heads, head_dim=config.head_dim, proof={},
    )  # fmt: skip
    engine = open_engine(folder / GRAPH_NAME, variant, logits=head.logits, threads=1)
    return engine.run(np.arange(3, 40, dtype=np.int64), np.arange(37, dtype=np.int64))


BITS = st.integers(0, 12)


@settings(max_examples=8, deadline=None)
@given(
    embedding=BITS,
    parts=st.dictionaries(st.sampled_from(ranges.FOLDED), st.dictionaries(st.integers(0, 1), BITS)),
)
def test_folds_are_exact(
    embedding: int,
    parts: dict[str, dict[int, int]],
    opened: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("folds")
    plain = build_fp32(opened, root / "plain", Folds())
    folded = build_fp32(opened, root / "folded", Folds(embedding=embedding, parts=parts))
    assert folded.tobytes() == plain.tobytes()

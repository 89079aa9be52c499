"""Backbones beside Llama and Qwen2: exact in chunks and batches; older graphs stay as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
from decoder_graph import IDS, Graph, check_many_chunks, check_padded_rows, check_two_chunks

from prm_edge_export.model_config import read_config
from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_runtime import Scorer, contract
from prm_edge_runtime.errors import CheckpointError, UnsupportedError

WINDOW = 21
MAKERS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "qwen3": (checkpoints.trl_qwen3, {}),
    "mistral": (checkpoints.trl_mistral, {}),
    "mistral-window": (checkpoints.trl_mistral, {"window": WINDOW}),
    "phi3": (checkpoints.trl_phi3, {}),
    "phi3-window": (checkpoints.trl_phi3, {"window": WINDOW}),
    "gemma2": (checkpoints.trl_gemma2, {"window": WINDOW, "attn_logit_softcapping": 4.0}),
}


def package_of(name: str, folder: Path, maker: Callable[..., Path], **changes: Any) -> Path:
    checkpoint = maker(folder / name, **changes)
    texts = folder / "texts.jsonl"
    texts.write_text(json.dumps({"problem": "How much?", "steps": ["20 / 4 = 5", "So 5.", "no"]}))
    options = ExportOptions(
        checkpoint=checkpoint,
        out=folder / f"{name}-prm",
        separator=None if maker is checkpoints.qwen_prm else "\n",
        verify=texts,
    )
    return export(options).out


@pytest.fixture(scope="module", params=MAKERS)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    maker, changes = MAKERS[request.param]
    return Graph(package_of(request.param, tmp_path_factory.mktemp("graph"), maker, **changes))


# no chunk has a length of 1 modulo engine.TILE: see there
@pytest.mark.parametrize("cut", [2, 15, 20, 21, 22, 40, 62, 94])
def test_backbone_in_two_chunks_is_exact(graph: Graph, cut: int) -> None:
    check_two_chunks(graph, cut)


def test_backbone_in_many_chunks_is_exact(graph: Graph) -> None:
    check_many_chunks(graph)


def test_backbone_with_rows_padded_on_the_right_is_exact(graph: Graph) -> None:
    check_padded_rows(graph)


def test_backbone_without_reads_still_fills_the_cache(graph: Graph) -> None:
    logits, cache = graph.run(IDS[:32], [], [32], graph.empty())
    assert logits.shape == (0, 2)
    assert cache[contract.past_name(0, "key")].shape[2] == 32


def run_torch(checkpoint: Path, **changes: Any) -> Any:
    """Every position's logits by transformers itself, from the checkpoint as it stands."""
    import torch
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(
        checkpoint, attn_implementation="eager", **changes
    ).eval()
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(IDS)[None]).logits[0].numpy()


def in_chunks(package: Path) -> Any:
    """Every position's logits by the graph, over a cache."""
    graph = Graph(package)
    first, cache = graph.run(IDS[:40], list(range(40)), [40], graph.empty())
    second, _ = graph.run(IDS[40:], list(range(56)), [96], cache)
    return np.concatenate([first, second])


@pytest.mark.parametrize(
    "maker",
    [checkpoints.trl_mistral, checkpoints.trl_phi3, checkpoints.trl_gemma2],
    ids=["mistral", "phi3", "gemma2"],
)
def test_window_is_that_of_transformers_in_chunks(
    maker: Callable[..., Path], tmp_path: Path
) -> None:
    """Every position against torch, with a window far shorter than the text."""
    ours = in_chunks(package_of("tiny", tmp_path, maker, window=WINDOW))
    np.testing.assert_allclose(ours, run_torch(tmp_path / "tiny"), atol=1e-4)
    # one token more would have shown
    longer = run_torch(tmp_path / "tiny", sliding_window=WINDOW + 1)
    assert float(np.abs(ours - longer).max()) > 1e-3


GEMMA2: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cap": ({"attn_logit_softcapping": 4.0}, {"attn_logit_softcapping": 5.0}),
    "no cap": ({"attn_logit_softcapping": None}, {"attn_logit_softcapping": 4.0}),
    "scale": ({"query_pre_attn_scalar": 12}, {"query_pre_attn_scalar": 13}),
    "biases": ({"attention_bias": True}, {"query_pre_attn_scalar": 25}),
    "layers": (
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
}


@pytest.mark.parametrize("case", GEMMA2)
def test_gemma2_is_that_of_transformers(case: str, tmp_path: Path) -> None:
    changes, other = GEMMA2[case]
    package = package_of("tiny", tmp_path, checkpoints.trl_gemma2, window=WINDOW, **changes)
    ours = in_chunks(package)
    np.testing.assert_allclose(ours, run_torch(tmp_path / "tiny"), atol=1e-4)
    # another value would have shown
    assert float(np.abs(ours - run_torch(tmp_path / "tiny", **other)).max()) > 1e-3


def test_phi3_is_that_of_transformers(tmp_path: Path) -> None:
    ours = in_chunks(package_of("tiny", tmp_path, checkpoints.trl_phi3))
    np.testing.assert_allclose(ours, run_torch(tmp_path / "tiny"), atol=1e-4)


REFUSED: dict[str, tuple[Callable[..., Path], dict[str, Any], type[Exception], str]] = {
    "gemma3": (
        checkpoints.trl_gemma2,
        {"model_type": "gemma3_text"},
        UnsupportedError,
        "is a Gemma 3 model, which is not exported: its layers turn by two rotary embeddings",
    ),
    "gemma": (
        checkpoints.trl_gemma2,
        {"model_type": "gemma"},
        UnsupportedError,
        "model_type 'gemma' is not supported: the native backend exports gemma2",
    ),
    "long rope": (
        checkpoints.trl_phi3,
        {
            "rope_parameters": None,
            "rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]},
        },
        UnsupportedError,
        "rope scaling 'longrope' is not supported",
    ),
    "phi3 with another rope": (
        checkpoints.trl_phi3,
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
        UnsupportedError,
        "rope scaling 'linear' is not supported for phi3, only 'default'",
    ),
    "partial rope": (
        checkpoints.trl_phi3,
        {"partial_rotary_factor": 0.75, "rope_parameters": None},
        UnsupportedError,
        "partial_rotary_factor 0.75 is not supported, only 1",
    ),
    "activation": (
        checkpoints.trl_gemma2,
        {"hidden_activation": "gelu"},
        UnsupportedError,
        "hidden_activation 'gelu' is not supported, only 'gelu_pytorch_tanh'",
    ),
    "both ways": (
        checkpoints.trl_gemma2,
        {"use_bidirectional_attention": True},
        UnsupportedError,
        "use_bidirectional_attention is not supported, only causal attention",
    ),
    "layer types": (
        checkpoints.trl_gemma2,
        {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
        CheckpointError,
        "layer_types must name full_attention or sliding_attention for each of 3 layers",
    ),
    "too few layer types": (
        checkpoints.trl_gemma2,
        {"layer_types": ["full_attention"]},
        CheckpointError,
        "layer_types must name full_attention or sliding_attention for each of 3 layers",
    ),
    "scale": (
        checkpoints.trl_gemma2,
        {"query_pre_attn_scalar": 0},
        CheckpointError,
        "query_pre_attn_scalar must be a whole number from 1 to .*, got 0",
    ),
    "cap": (
        checkpoints.trl_gemma2,
        {"attn_logit_softcapping": "50"},
        CheckpointError,
        "attn_logit_softcapping must be a positive number, got '50'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_backbone_that_is_not_built_is_refused(case: str, tmp_path: Path) -> None:
    maker, changes, error, message = REFUSED[case]
    checkpoint = maker(tmp_path / "tiny")
    checkpoints.edit_config(checkpoint, lambda data: data.update(changes))
    with pytest.raises(error, match=message):
        export(ExportOptions(checkpoint=checkpoint, out=tmp_path / "pkg", separator="\n"))


def test_gemma2_of_old_configs_has_every_second_layer_full(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_gemma2(tmp_path / "tiny", window=WINDOW)

    def old(data: dict[str, Any]) -> None:
        del data["layer_types"], data["hidden_activation"]
        data["hidden_act"] = "gelu_pytorch_tanh"

    data = json.loads((checkpoint / "config.json").read_text())
    new = read_config(data)
    old(data)
    assert read_config(data) == new
    assert [new.layer_window(layer) for layer in range(3)] == [WINDOW, None, WINDOW]


def test_packed_tensors_are_phi3s(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_phi3(tmp_path / "tiny")
    tensors = checkpoints.read_tensors(checkpoint)
    name = "model.layers.0.mlp.gate_up_proj.weight"
    checkpoints.write_shards(checkpoint, tensors | {name: tensors[name][:-1]})
    with pytest.raises(CheckpointError, match=r"gate_up_proj\.weight' has shape \[223, 64\]"):
        export(ExportOptions(checkpoint=checkpoint, out=tmp_path / "pkg", separator="\n"))


def test_qwen3_needs_its_head_norms(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_qwen3(tmp_path / "tiny")
    tensors = checkpoints.read_tensors(checkpoint)
    del tensors["model.layers.1.self_attn.k_norm.weight"]
    checkpoints.write_shards(checkpoint, tensors)
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.layers\.1\.self_attn\.k_norm"):
        export(ExportOptions(checkpoint=checkpoint, out=tmp_path / "pkg", separator="\n"))


# Packages of these families were exported before the backbones above: node for node the same.
NODES: dict[str, tuple[Callable[..., Path], dict[str, Any], str]] = {
    "llama": (
        checkpoints.trl_llama,
        {},
        "4477e70b7204645d228ba3e7ec5599eb2b94b0dfdd42ed86a8d517e799ee1158",
    ),
    "llama-biases": (
        checkpoints.trl_llama,
        {"attention_bias": True, "mlp_bias": True},
        "9f26f36f7403c9ecfab6a9c90ec971ae424bd03c3540e74663315e2abceded13",
    ),
    "qwen2": (
        checkpoints.trl_qwen2,
        {},
        "a41264c211878829794ee130a14dbb38ef51c714eba991776b0e54939eff9622",
    ),
    "qwen-prm": (
        checkpoints.qwen_prm,
        {},
        "9df2634f924a9fa14f9369d00799bdb2ef70831a48f615b604b08334010dcf56",
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_older_graphs_are_unchanged(name: str, tmp_path: Path) -> None:
    maker, changes, digest = NODES[name]
    package = package_of(name, tmp_path, maker, **changes)
    graph = onnx.load(package / "cpu-fp32" / "model.onnx", load_external_data=False).graph
    nodes = b"".join(node.SerializeToString(deterministic=True) for node in graph.node)
    shapes = repr([(t.name, t.data_type, list(t.dims)) for t in graph.initializer]).encode()
    assert hashlib.sha256(nodes + shapes).hexdigest() == digest
    assert len(Scorer.load(package).score("How much?", ["20 / 4 = 5"]).scores) == 1

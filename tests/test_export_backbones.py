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

from prm_edge_export.pipeline import export
from prm_edge_export.plan import ExportOptions
from prm_edge_runtime import Scorer, contract
from prm_edge_runtime.errors import CheckpointError

WINDOW = 21
MAKERS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "qwen3": (checkpoints.trl_qwen3, {}),
    "mistral": (checkpoints.trl_mistral, {}),
    "mistral-window": (checkpoints.trl_mistral, {"window": WINDOW}),
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


def test_window_is_that_of_transformers_in_chunks(tmp_path: Path) -> None:
    """Every position against torch, with a window far shorter than the text."""
    import torch
    from transformers import AutoModelForTokenClassification

    package = package_of("mistral", tmp_path, checkpoints.trl_mistral, window=WINDOW)

    def run_torch(window: int) -> Any:
        model = AutoModelForTokenClassification.from_pretrained(
            tmp_path / "mistral", sliding_window=window
        ).eval()
        with torch.inference_mode():
            return model(input_ids=torch.from_numpy(IDS)[None]).logits[0].numpy()

    graph = Graph(package)
    first, cache = graph.run(IDS[:40], list(range(40)), [40], graph.empty())
    second, _ = graph.run(IDS[40:], list(range(56)), [96], cache)
    ours = np.concatenate([first, second])
    np.testing.assert_allclose(ours, run_torch(WINDOW), atol=1e-4)
    # one token more would have shown
    assert float(np.abs(ours - run_torch(WINDOW + 1)).max()) > 1e-3


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

"""The fp32 graph of fixed weights, byte for byte: what other precisions need must not change it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.graph import GRAPH_NAME, build_decoder
from prm_edge_export.heads import find_head
from prm_edge_export.model_config import read_config

HIDDEN, WIDE, VOCAB, HEAD = 32, 48, 40, 16
CONFIG: Final = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForTokenClassification"],
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "vocab_size": VOCAB,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
}
# of version 0.1.0, before there was int8
NODES: Final = "b4a9a999f66579797683750a5deadef25856892fd02cf7664b118021edfb6d39"
WEIGHTS: Final = "01f291d8df823c3a8a4c8b75c0068c7d9e0c589ab1d8ef738693609f2692e311"


def write_checkpoint(folder: Path) -> None:
    shapes = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "score.weight": (2, HIDDEN),
        "score.bias": (2,),
    }
    outputs = {"q": 2 * HEAD, "k": HEAD, "v": HEAD}
    for index in range(2):
        layer = f"model.layers.{index}."
        shapes |= {f"{layer}self_attn.{x}_proj.weight": (n, HIDDEN) for x, n in outputs.items()}
        shapes |= {f"{layer}self_attn.{x}_proj.bias": (n,) for x, n in outputs.items()}
        shapes |= {f"{layer}mlp.{x}_proj.weight": (WIDE, HIDDEN) for x in ("gate", "up")}
        shapes |= {
            f"{layer}self_attn.o_proj.weight": (HIDDEN, 2 * HEAD),
            f"{layer}mlp.down_proj.weight": (HIDDEN, WIDE),
            f"{layer}input_layernorm.weight": (HIDDEN,),
            f"{layer}post_attention_layernorm.weight": (HIDDEN,),
        }
    rng = np.random.default_rng(5)
    tensors = {
        name: rng.integers(-64, 64, shape).astype(np.float32) / 64 for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))


def test_fp32_graph_is_byte_for_byte_what_it_was(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        head = find_head(checkpoint.tensors)
        assert head is not None
        config = read_config(checkpoint.config)
        build_decoder(config, head, checkpoint.tensors, tmp_path, max_tokens=64)
    graph = onnx.load(str(tmp_path / GRAPH_NAME)).graph
    nodes, weights = hashlib.sha256(), hashlib.sha256()
    for node in graph.node:
        nodes.update(node.SerializeToString(deterministic=True))
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        weights.update(f"{tensor.name} {array.dtype} {array.shape}".encode())
        if tensor.name not in ("cos", "sin"):  # whose last bits are those of this machine's cosine
            weights.update(array.tobytes())
    assert (nodes.hexdigest(), weights.hexdigest()) == (NODES, WEIGHTS)

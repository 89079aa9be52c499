"""Encoders: their normalised config, and the reference that the proof compares with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import encoder_checkpoints
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prm_edge_export import optimum_backend
from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.optimum_backend import limits, load_encoder
from prm_edge_export.optimum_backend import read_encoder_config as read
from prm_edge_runtime.errors import CheckpointError, ProofError, UnsupportedError

CONFIG = {
    "model_type": "bert",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def test_encoder_config_is_read(tmp_path: Path) -> None:
    with Checkpoint(encoder_checkpoints.bert(tmp_path)) as checkpoint:
        assert limits(checkpoint) == (encoder_checkpoints.wordpiece().vocab_size, 256)
    config = read(CONFIG)
    assert (config.max_positions, config.token_types, config.eps) == (512, 2, 1e-12)
    assert config.activation == "gelu"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "'roberta' with a classifier head is not supported"),
        ({"model_type": ["bert"]}, "is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True, "add_cross_attention": True}, "is_decoder True; add_cross_att"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_act": "evil.module"}, r"hidden_act 'evil.module' \(only gelu, gelu_new, relu\)"),
    ],
)
def test_encoder_config_refuses_what_it_cannot_do(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read({**CONFIG, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": None}, "vocab_size must be a whole number .*, got None"),
        ({"hidden_size": 1 << 40}, "hidden_size must be"),
        ({"num_hidden_layers": True, "layer_norm_eps": float("nan")}, "num_hidd.*; layer_norm_eps"),
        ({"max_position_embeddings": "512"}, "max_position_embeddings must be"),
        ({"num_attention_heads": 5}, "hidden_size 64 is no multiple of num_attention_heads 5"),
    ],
)
def test_encoder_config_names_every_wrong_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read({**CONFIG, **changes})


# --- the reference encoder


@pytest.mark.parametrize("activation", optimum_backend.ACTIVATIONS)
def test_encoder_reference_is_what_transformers_loads(activation: str, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification

    root = encoder_checkpoints.bert(tmp_path, hidden_act=activation, layer_norm_eps=1e-3)
    ids = np.arange(40, dtype=np.int64)
    model = AutoModelForTokenClassification.from_pretrained(root).eval()
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(ids)[None]).logits[0, [3, 39]].numpy()
    with Checkpoint(root) as checkpoint:
        logits = load_encoder(checkpoint).run(ids, np.array([3, 39]))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    checkpoints.write_shards(folder, tensors)
    return folder


def test_encoder_reference_knows_what_no_score_needs(tmp_path: Path) -> None:
    root = edit_tensors(
        encoder_checkpoints.bert(tmp_path),
        lambda tensors: tensors.update(
            {
                "bert.pooler.dense.weight": torch.zeros(64, 64),
                "cls.predictions.bias": torch.zeros(8),
                "bert.embeddings.position_ids": torch.arange(256)[None],
            }
        ),
    )
    with Checkpoint(root) as checkpoint:
        assert load_encoder(checkpoint).run(np.arange(3), np.array([2])).shape == (1, 2)


def test_encoder_reference_names_tensors_left_over(tmp_path: Path) -> None:
    root = edit_tensors(
        encoder_checkpoints.bert(tmp_path),
        lambda tensors: tensors.update({"bert.encoder.adapter.weight": torch.zeros(4)}),
    )
    with (
        Checkpoint(root) as checkpoint,
        pytest.raises(CheckpointError, match=r"bert\.encoder\.adapter\.weight"),
    ):
        load_encoder(checkpoint)


def test_encoder_reference_names_a_missing_tensor(tmp_path: Path) -> None:
    name = "bert.embeddings.LayerNorm.weight"
    root = edit_tensors(encoder_checkpoints.bert(tmp_path), lambda tensors: tensors.pop(name))
    with Checkpoint(root) as checkpoint, pytest.raises(CheckpointError, match=name):
        load_encoder(checkpoint)


def test_encoder_reference_refuses_another_head(tmp_path: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("weight", "bias"):
            tensors[f"score.{part}"] = tensors.pop(f"classifier.{part}")

    root = edit_tensors(encoder_checkpoints.bert(tmp_path), rename)
    with (
        Checkpoint(root) as checkpoint,
        pytest.raises(UnsupportedError, match="this checkpoint has linear; optimum cannot"),
    ):
        load_encoder(checkpoint)


def test_encoder_reference_is_compared_with_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(model: Any, tensors: Any) -> None:
        tensors.used.update(tensors)
        model.bert.embeddings.LayerNorm.eps = 0.5

    monkeypatch.setattr(optimum_backend, "fill", fill)
    with (
        Checkpoint(encoder_checkpoints.bert(tmp_path)) as checkpoint,
        pytest.raises(ProofError, match=r"layer_norm_eps: .*0\.5"),
    ):
        load_encoder(checkpoint)

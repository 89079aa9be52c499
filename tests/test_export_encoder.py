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

from prm_edge_export import encoders
from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.encoder_config import ACTIVATIONS, SCHEMAS, limits
from prm_edge_export.encoder_config import read_encoder_config as read
from prm_edge_export.encoders import ENCODERS, load_encoder
from prm_edge_runtime.errors import CheckpointError, ProofError, UnsupportedError

# transformers 4.57 uses what torch deprecates, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

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
    assert config.max_tokens == 512
    assert config.values["type_vocab_size"] == 2
    assert (config.values["layer_norm_eps"], config.values["hidden_act"]) == (1e-12, "gelu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "electra"}, "'electra' with a classifier head is not supported"),
        ({"model_type": ["bert"]}, "is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True, "add_cross_attention": True}, "is_decoder True; add_cross_att"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_act": "evil.module"}, r"hidden_act 'evil.module' \(only gelu, gelu_new, relu\)"),
        ({"model_type": "deberta", "talking_head": True}, "talking_head True"),
        ({"model_type": "deberta-v2", "conv_kernel_size": 3}, "conv_kernel_size 3"),
        ({"model_type": "deberta", "pos_att_type": "c2p|p2p"}, r"\['c2p', 'p2p'\] \(only c2p"),
        (
            {"model_type": "deberta-v2", "norm_rel_ebd": "batch"},
            r"norm_rel_ebd 'batch' \(only none",
        ),
        ({"model_type": "modernbert", "rope_scaling": {"factor": 2}}, "rope_scaling {'factor': 2}"),
        (
            {"model_type": "modernbert", "rope_parameters": {"full_attention": {"rope_type": "x"}}},
            "rope_parameters {'rope_type': 'x'}",
        ),
        (
            {"model_type": "modernbert", "layer_types": ["sliding_attention", "full_attention"]},
            "does not come back every n-th layer",
        ),
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
        ({"model_type": "roberta", "pad_token_id": 511}, "pad_token_id 511 leaves no position"),
        ({"model_type": "modernbert", "rope_parameters": [1]}, r"must be an object, got \[1\]"),
        (
            {
                "model_type": "modernbert",
                "rope_parameters": {"sliding_attention": {"rope_theta": 2.0}},
                "local_rope_theta": 3.0,
            },
            "gives local_rope_theta twice, as 3.0 and as 2.0",
        ),
        ({"model_type": "modernbert", "global_rope_theta": -1}, "global_rope_theta must be a posi"),
        ({"model_type": "deberta", "relative_attention": 1}, "relative_attention must be true or"),
        ({"model_type": "deberta", "max_relative_positions": -2}, "must be a whole number from -1"),
    ],
)
def test_encoder_config_names_every_wrong_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read({**CONFIG, **changes})


# --- the reference encoder


def test_every_encoder_has_a_schema() -> None:
    assert list(SCHEMAS) == list(ENCODERS)


def test_encoder_config_modernbert_in_both_spellings() -> None:
    old = {
        **CONFIG,
        "model_type": "modernbert",
        "num_hidden_layers": 5,
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 5e4,
        "local_rope_theta": None,
    }
    new = {
        **CONFIG,
        "model_type": "modernbert",
        "num_hidden_layers": 5,
        "layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e4},
        },
    }
    assert read(old) == read(new)
    assert read(old).values["local_rope_theta"] == 5e4
    assert read({**CONFIG, "model_type": "modernbert"}).values["local_rope_theta"] == 1e4


def test_encoder_config_roberta_counts_positions_from_behind_padding() -> None:
    assert (
        read({**CONFIG, "model_type": "roberta", "max_position_embeddings": 514}).max_tokens == 512
    )


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {}) for kind in ENCODERS),
        ("roberta", {"pad_token_id": 3}),
        ("modernbert", {"global_attn_every_n_layers": 1, "norm_bias": False}),
        ("modernbert", {"classifier_activation": "relu", "hidden_activation": "relu"}),
        ("deberta", {"relative_attention": False, "position_biased_input": True}),
        ("deberta", {"type_vocab_size": 2, "max_relative_positions": 40, "pos_att_type": "c2p"}),
        ("deberta-v2", {"position_buckets": -1, "share_att_key": False, "norm_rel_ebd": "none"}),
    ],
)
def test_encoder_is_what_transformers_loads(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForTokenClassification

    root = encoder_checkpoints.encoder(kind, tmp_path / "tiny", **changes)
    ids = np.arange(5, 85, dtype=np.int64)  # longer than a window
    model = AutoModelForTokenClassification.from_pretrained(root).eval()
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(ids)[None]).logits[0, [3, 79]].numpy()
    with Checkpoint(root) as checkpoint:
        logits = load_encoder(checkpoint).run(ids, np.array([3, 79]))
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_encoder_config_cannot_claim_more_than_the_checkpoint_holds(tmp_path: Path) -> None:
    root = encoder_checkpoints.bert(tmp_path / "tiny")
    huge = {"hidden_size": 1 << 22, "intermediate_size": 1 << 22}
    checkpoints.edit_config(root, lambda data: data.update(huge))
    with (
        Checkpoint(root) as checkpoint,
        pytest.raises(CheckpointError, match=r"safetensors: tensor 'bert\..* config\.json implies"),
    ):
        load_encoder(checkpoint)
    checkpoints.edit_config(root, lambda data: data.update(num_hidden_layers=1 << 20))
    with (
        Checkpoint(root) as checkpoint,
        pytest.raises(CheckpointError, match=r"claims 1048576 layers, .* has \d+ tensors"),
    ):
        load_encoder(checkpoint)


@pytest.mark.parametrize("activation", ACTIVATIONS)
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

    monkeypatch.setattr(encoders, "fill", fill)
    with (
        Checkpoint(encoder_checkpoints.bert(tmp_path)) as checkpoint,
        pytest.raises(ProofError, match=r"layer_norm_eps: .*0\.5"),
    ):
        load_encoder(checkpoint)

"""Configs saved by transformers 4 and 5, each exported under whichever is installed.

transformers 4.57.6 reads a checkpoint saved by 5 with rope_theta 1e6 as 10000 and says nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
import transformers

from prm_edge_export import reference
from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.heads import find_head
from prm_edge_export.model_config import read_config
from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import ProofError

CONFIGS = Path(__file__).parent / "goldens" / "configs"
MAKERS = {
    "llama": checkpoints.trl_llama,
    "mistral": checkpoints.trl_mistral,
    "qwen2": checkpoints.trl_qwen2,
    "qwen3": checkpoints.trl_qwen3,
}
STEPS = ["20 / 12 * 3 = 5", "So the answer is 5."] * 6


def _native(kind: str, name: str) -> dict[str, Any]:
    """Keyword arguments for the installed version, from the config that version saved."""
    major = checkpoints.TRANSFORMERS_MAJOR
    data = json.loads((CONFIGS / f"{kind}-{name}-transformers-{major}.json").read_text())
    keys = ("rope_parameters",) if major >= 5 else ("rope_theta", "rope_scaling")
    window = {"window": data["sliding_window"]} if kind == "mistral" else {}
    return {key: data.get(key) for key in keys} | window


@pytest.mark.parametrize("saved_by", [4, 5])
@pytest.mark.parametrize("name", ["theta", "llama3"])
@pytest.mark.parametrize("kind", MAKERS)
def test_export_config_of_either_version(
    kind: str, name: str, saved_by: int, tmp_path: Path
) -> None:
    checkpoint = MAKERS[kind](tmp_path / "tiny", **_native(kind, name))
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"problem": "How much?", "steps": STEPS}) + "\n")
    scores = []
    for config in (None, CONFIGS / f"{kind}-{name}-transformers-{saved_by}.json"):
        if config is not None:
            shutil.copyfile(config, checkpoint / "config.json")
        out = tmp_path / f"pkg-{config is None}"
        export(ExportOptions(checkpoint=checkpoint, out=out, separator="\n", verify=texts))
        scores.append(Scorer.load(out).score("How much?", STEPS).scores)
    np.testing.assert_array_equal(*scores)


def test_reference_that_misread_the_config_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.trl_llama(tmp_path / "tiny", **_native("llama", "theta"))
    with Checkpoint(folder) as checkpoint:
        config = read_config(checkpoint.config)
        head = find_head(checkpoint.tensors)
        assert head is not None
        backbone = reference.load_classifier(config, head, checkpoint.tensors).model
        reference.check_same(backbone, config)
        backbone.rotary_emb.inv_freq.mul_(1.001)
        backbone.layers[1].input_layernorm.variance_epsilon = 1e-4
        with pytest.raises(ProofError, match=r"rms_norm_eps: .*rotary frequencies: "):
            reference.check_same(backbone, config)


def test_config_keys_are_all_known() -> None:
    """Every key of transformers' own config classes is read, harmless, or refused by us."""
    read = {
        *("attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size"),
        *("layer_types", "max_position_embeddings", "mlp_bias", "num_attention_heads"),
        *("num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_parameters"),
        *("rope_scaling", "rope_theta", "sliding_window", "use_sliding_window", "vocab_size"),
    }
    # no influence on a forward pass in evaluation mode
    harmless = {
        *("attention_dropout", "initializer_range", "max_window_layers", "pretraining_tp"),
        *("tie_word_embeddings", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"),
    }
    common = set(transformers.PretrainedConfig().to_dict())
    for name in ("LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config"):
        keys = set(getattr(transformers, name)().to_dict()) - common
        assert keys - read - harmless - {"model_type"} == set(), name

"""Tiny LoRA adapters as peft saves them, written by hand, and what they merge to.

The merge is written out from peft's documentation, in plain torch and all at once; the tests
marked ``trl`` compare with peft itself.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import checkpoints
import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

PREFIX = "base_model.model."
# what peft 0.21 writes for a plain LoRA, but for the keys that a test sets
CONFIG: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "loftq_config": {},
    "lora_alpha": 16,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": ["classifier", "score"],
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj"],
    "target_parameters": None,
    "task_type": "TOKEN_CLS",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_rslora": False,
}
LINEARS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def base(folder: Path, *, seed: int = 21, **changes: Any) -> Path:
    """A Qwen2 language model: the usual base of a token classifier's adapter."""
    torch.manual_seed(seed)
    tok = checkpoints.tokenizer(qwen=True)
    model = Qwen2ForCausalLM(Qwen2Config(**checkpoints.sizes(len(tok), **changes)))
    checkpoints.random_biases(model)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def adapter(
    folder: Path,
    base_folder: Path,
    *,
    linears: tuple[str, ...] = LINEARS,
    embedding: bool = False,
    head: bool = True,
    extra: dict[str, torch.Tensor] | None = None,
    ranks: dict[str, int] | None = None,
    alphas: dict[str, float] | None = None,
    seed: int = 22,
    pickled: bool = False,
    **config: Any,
) -> dict[str, torch.Tensor]:
    """Write an adapter; return every tensor of the merged model.

    ``ranks`` and ``alphas``: of linears by their last two names, and patterns of the same.
    """
    torch.manual_seed(seed)
    tensors = checkpoints.read_tensors(base_folder)
    written: dict[str, torch.Tensor] = {}
    settings = {
        **CONFIG,
        "base_model_name_or_path": str(base_folder),
        "rank_pattern": ranks or {},
        "alpha_pattern": alphas or {},
        **config,
    }

    def scale(part: str) -> float:
        alpha = (alphas or {}).get(part, settings["lora_alpha"])
        rank = (ranks or {}).get(part, settings["r"])
        return alpha / math.sqrt(rank) if settings["use_rslora"] else alpha / rank

    merged = dict(tensors)
    for name, value in tensors.items():
        part = ".".join(name.split(".")[-3:-1])
        if name.endswith(".weight") and part in linears:
            rank = (ranks or {}).get(part, settings["r"])
            a = torch.randn(rank, value.shape[1]) * 0.1
            b = torch.randn(value.shape[0], rank) * 0.1
            module = PREFIX + name.removesuffix(".weight")
            written |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            merged[name] = value + scale(part) * (b @ a)
    if embedding:
        name = "model.embed_tokens.weight"
        a = torch.randn(settings["r"], tensors[name].shape[0]) * 0.1
        b = torch.randn(tensors[name].shape[1], settings["r"]) * 0.1
        module = PREFIX + "model.embed_tokens"
        written |= {
            f"{module}.lora_embedding_A": a,
            f"{module}.lora_embedding_B": b,
            f"{module}.base_layer.weight": tensors[name],
        }
        merged[name] = tensors[name] + scale("model.embed_tokens") * (b @ a).T
    if head:
        weight = torch.zeros(2, tensors["model.norm.weight"].shape[0])
        checkpoints.spread(weight)
        written |= {f"{PREFIX}score.weight": weight, f"{PREFIX}score.bias": torch.randn(2)}
        merged |= {"score.weight": weight, "score.bias": written[f"{PREFIX}score.bias"]}
    for name, value in (extra or {}).items():
        written[PREFIX + name] = value
        merged[name] = value
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    written = {name: value.contiguous().clone() for name, value in written.items()}
    if pickled:
        torch.save(written, folder / "adapter_model.bin")
    else:
        save_file(written, folder / "adapter_model.safetensors")
    return merged


def edit_adapter(folder: Path, **changes: Any) -> None:
    """Change an adapter's configuration in place."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

"""Tiny random checkpoints of published families: language models, and ones with a value head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

# as Llama 3's own, but for the system header: content is trimmed
LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}"
    "{{- message.content | trim + '<|eot_id|>' }}{%- endfor %}"
)
LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


MERGES = (
    *(("▁", "▁"), ("к", "и"), ("▁", "ки"), ("▁", "+"), ("▁", "-"), ("▁", "="), ("▁", "t")),
    *(("h", "e"), ("▁t", "he"), ("i", "n"), ("▁", "s"), ("e", "r"), ("1", "2"), (".", "▁")),
)


def sentencepiece() -> PreTrainedTokenizerFast:
    """Like Llama 2's and Mistral's: "▁" put first, bytes for unknown characters, BOS added."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*"▁abcdefghijklmnopqrstuvwxyzASTки0123456789+-*/=.,$", *map("".join, MERGES)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    inner = Tokenizer(
        models.BPE(vocabulary, list(MERGES), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def causal(config: Any, kind: Any, seed: int) -> Any:
    """A random language model whose logits spread."""
    torch.manual_seed(seed)
    model = kind(config)
    checkpoints.random_biases(model)
    checkpoints.spread(model.get_output_embeddings().weight)
    return model


def _sizes(vocab: int, **changes: Any) -> dict[str, Any]:
    return {**checkpoints.sizes(vocab), "max_position_embeddings": 2048, **changes}


def math_shepherd(folder: Path, *, mistral: bool = False, **changes: Any) -> Path:
    """A plain language model with Mistral's kind of tokenizer."""
    tok = sentencepiece()
    if mistral:
        model = causal(MistralConfig(**_sizes(len(tok), **changes)), MistralForCausalLM, 11)
    else:
        model = causal(LlamaConfig(**_sizes(len(tok), **changes)), LlamaForCausalLM, 12)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def rlhflow(folder: Path, *, template: str = LLAMA3, **changes: Any) -> Path:
    """A plain language model with Llama 3's kind of tokenizer and chat template."""
    tok = checkpoints.tokenizer(bos=True, special=LLAMA3_TOKENS)
    tok.chat_template = template
    model = causal(LlamaConfig(**_sizes(len(tok), **changes)), LlamaForCausalLM, 13)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def skywork(folder: Path, *, prefix: str = "", pickled: bool = False, **changes: Any) -> Path:
    """A Qwen2 language model with TRL's value head, its names as a wrapper may write them."""
    tok = checkpoints.tokenizer(bos=True, qwen=True)
    config = Qwen2Config(**_sizes(len(tok), tie_word_embeddings=True, **changes))
    model = causal(config, Qwen2ForCausalLM, 14)
    tensors = {prefix + name: value.clone() for name, value in model.state_dict().items()}
    head = torch.nn.Linear(config.hidden_size, 1)
    checkpoints.spread(head.weight)
    tensors["v_head.summary.weight"] = head.weight.detach()
    tensors["v_head.summary.bias"] = head.bias.detach()
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    checkpoints.edit_config(
        folder,
        lambda data: data.update(
            architectures=["Qwen2ForPrmModel"],
            auto_map={"AutoModel": "modeling_qwen2_rm.Qwen2ForRewardModel"},
        ),
    )
    tok.save_pretrained(folder)
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        checkpoints.write_shards(folder, tensors)
    return folder

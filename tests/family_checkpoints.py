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


def _sizes(tok: Any, **changes: Any) -> dict[str, Any]:
    vocab = 1 + max(tok.get_vocab().values())
    return {**checkpoints.sizes(vocab), "max_position_embeddings": 2048, **changes}


def math_shepherd(folder: Path, *, mistral: bool = False, tok: Any = None, **changes: Any) -> Path:
    """A plain language model with Mistral's kind of tokenizer."""
    tok = tok or sentencepiece()
    if mistral:
        model = causal(MistralConfig(**_sizes(tok, **changes)), MistralForCausalLM, 11)
    else:
        model = causal(LlamaConfig(**_sizes(tok, **changes)), LlamaForCausalLM, 12)
    return _save(folder, model, tok)


def rlhflow(folder: Path, *, template: str = LLAMA3, tok: Any = None, **changes: Any) -> Path:
    """A plain language model with Llama 3's kind of tokenizer and chat template."""
    tok = tok or checkpoints.tokenizer(bos=True, special=LLAMA3_TOKENS)
    tok.chat_template = template
    return _save(folder, causal(LlamaConfig(**_sizes(tok, **changes)), LlamaForCausalLM, 13), tok)


def _save(folder: Path, model: Any, tok: Any) -> Path:
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def _save_headed(
    folder: Path, model: Any, tok: Any, head: dict[str, torch.Tensor], **described: Any
) -> Path:
    """A model with a head that transformers has no class for; ``described``: of config.json."""
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    checkpoints.edit_config(folder, lambda data: data.update(described))
    tok.save_pretrained(folder)
    checkpoints.write_shards(folder, tensors | head)
    return folder


def _linear(prefix: str, inputs: int, outputs: int, *, bias: bool = True) -> dict[str, Any]:
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    checkpoints.spread(layer.weight)
    return {f"{prefix}.{name}": value.detach() for name, value in layer.named_parameters()}


def skywork(
    folder: Path, *, prefix: str = "", pickled: bool = False, tok: Any = None, **changes: Any
) -> Path:
    """A Qwen2 language model with TRL's value head, its names as a wrapper may write them."""
    tok = tok or checkpoints.tokenizer(bos=True, qwen=True)
    config = Qwen2Config(**_sizes(tok, tie_word_embeddings=True, **changes))
    model = causal(config, Qwen2ForCausalLM, 14)
    tensors = {prefix + name: value.clone() for name, value in model.state_dict().items()}
    tensors |= _linear("v_head.summary", config.hidden_size, 1)
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


# what becomes one token there, as with the published tokenizers
OFTEN = (*("x \n\n\n\n", "x \n\n\n\n\n") * 2, "x ки", "x + -")


def tagged(folder: Path, *, qwen: bool = False, tok: Any = None, **changes: Any) -> Path:
    """A plain language model for ER-PRM, VersaPRM or, with ``qwen``, Math-psa."""
    tok = tok or checkpoints.tokenizer(bos=not qwen, qwen=True, often=OFTEN, size=512)
    if not qwen:
        add_bos(tok)
    kinds = (Qwen2Config, Qwen2ForCausalLM) if qwen else (LlamaConfig, LlamaForCausalLM)
    return _save(folder, causal(kinds[0](**_sizes(tok, **changes)), kinds[1], 15), tok)


def add_bos(tok: Any) -> None:
    """Have the tokenizer put its BOS before every text."""
    bos = (tok.bos_token, tok.bos_token_id)
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos[0]} $A", special_tokens=[bos]
    )


def llemma(folder: Path, *, tok: Any = None, **changes: Any) -> Path:
    """A language model whose output layer repeats two rows, as its authors convert theirs."""
    tok = tok or sentencepiece()
    sizes = _sizes(tok, **changes)
    sizes["vocab_size"] += sizes["vocab_size"] % 2
    model = causal(LlamaConfig(**sizes), LlamaForCausalLM, 16)
    with torch.no_grad():
        rows = model.lm_head.weight[:2].clone()
        model.lm_head.weight.copy_(rows.repeat(sizes["vocab_size"] // 2, 1))
    return _save(folder, model, tok)


def reasoneval(folder: Path, *, large: bool = False, tok: Any = None, **changes: Any) -> Path:
    """ReasonEval-7B: Mistral, padded with BOS. ``large``: the 34B, Llama, padded otherwise."""
    tok = tok or sentencepiece()
    tok.pad_token = tok.eos_token if large else tok.bos_token
    if large:
        model = causal(LlamaConfig(**_sizes(tok, **changes)), LlamaForCausalLM, 17)
    else:
        sizes = _sizes(tok, **{"sliding_window": 64, **changes})
        model = causal(MistralConfig(**sizes), MistralForCausalLM, 18)
    head = _linear("score_head", model.config.hidden_size, 3, bias=False)
    dimension = {"score_dim": 3, "bias": False} if large else {"score_dimension": 3}
    return _save_headed(
        folder, model, tok, head, architectures=["ReasonEval"], use_bias=False, **dimension
    )


def actprm(folder: Path, *, members: int = 4, tok: Any = None, **changes: Any) -> Path:
    """Qwen2 with ActPRM's ensemble of three layers, and the copy that its training keeps."""
    tok = tok or checkpoints.chat_tokenizer()
    model = causal(Qwen2Config(**_sizes(tok, **changes)), Qwen2ForCausalLM, 19)
    widths = (model.config.hidden_size, 24, 24, 1)
    head: dict[str, torch.Tensor] = {}
    for at, part in enumerate(("nn1", "nn2", "nn_out")):
        weight = torch.randn(members, *widths[at : at + 2]) * 4 / widths[at] ** 0.5
        bias = torch.randn(members, widths[at + 1])
        for copy in ("model", "reg_model"):
            head |= {f"score.{copy}.{part}.weight": weight, f"score.{copy}.{part}.bias": bias}
    return _save_headed(
        folder,
        model,
        tok,
        head,
        architectures=["Qwen2ForEnsemblePRM"],
        num_ensemble=members,
        rr_token="<extra_0>",
        rr_token_id=None,
    )


def pqm(folder: Path, *, tok: Any = None, **changes: Any) -> Path:
    """A Llama language model with TRL's value head and the token [PRM]."""
    tok = tok or checkpoints.tokenizer(bos=True)
    tok.add_special_tokens({"additional_special_tokens": ["[PRM]"]})
    model = causal(LlamaConfig(**_sizes(tok, **changes)), LlamaForCausalLM, 20)
    return _save_headed(folder, model, tok, _linear("v_head.summary", model.config.hidden_size, 1))


def trajectory(folder: Path, *, tok: Any = None, **changes: Any) -> Path:
    """ReasonFlux-PRM-1.5B: a Qwen2 language model with its head in a file of its own."""
    tok = tok or checkpoints.tokenizer(qwen=True)
    model = causal(Qwen2Config(**_sizes(tok, **changes)), Qwen2ForCausalLM, 21)
    head = _linear("", model.config.hidden_size, 1)
    _save(folder, model, tok)
    plain = {name.removeprefix("."): value for name, value in head.items()}
    torch.save(plain, folder / "reward_head.pt")
    return folder

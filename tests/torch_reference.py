"""The truth, written with transformers alone: nothing of prm-edge is imported here."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer


def torch_scores(checkpoint: Path, problem: str, steps: list[str], separator: str) -> list[float]:
    """TRL's own recipe, written with transformers alone: class 1 at each separator's last id."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForTokenClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def plain(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids += plain(problem)
    reads = []
    for step in steps:
        ids += plain(step) + plain(separator)
        reads.append(len(ids) - 1)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, reads].double()
    return [float(p) for p in torch.softmax(logits, -1)[:, 1]]

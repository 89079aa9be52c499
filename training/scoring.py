"""The reference scorer: step scores of a checkpoint, computed with torch.

In: a checkpoint folder. Out: a function ``score(problem, steps) -> list of probabilities``
that a line is good. Or the same of an exported package, run by prm-edge.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .batches import separator_id

Score = Callable[[str, list[str]], list[float]]


def load(checkpoint: Path, permuted: bool = False) -> Score:
    """Scorer of a checkpoint; `permuted` shuffles the elements of every weight matrix."""
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(checkpoint).eval()
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    separator = separator_id(tokenizer)
    if permuted:
        torch.manual_seed(0)
        for p in model.parameters():
            p.data = p.data.flatten()[torch.randperm(p.numel())].reshape(p.shape)

    @torch.no_grad()
    def score(problem: str, steps: list[str]) -> list[float]:
        parts = tokenizer.encode_batch([problem, *steps], add_special_tokens=False)
        ids, ends = list(parts[0].ids), []
        for part in parts[1:]:
            ids += [*part.ids, separator]
            ends.append(len(ids) - 1)
        logits = model(input_ids=torch.tensor([ids])).logits[0]  # (T, 2)
        return logits[ends].softmax(-1)[:, 1].tolist()

    return score


def load_package(package: Path) -> Score:
    """Scorer of an exported package."""
    from prm_edge_runtime import Scorer

    scorer = Scorer.load(package, threads=1)

    def score(problem: str, steps: list[str]) -> list[float]:
        found = scorer.score(problem, steps).scores
        if any(value is None for value in found):
            raise ValueError(f"a step of {problem!r} has no score")
        return [value for value in found if value is not None]

    return score

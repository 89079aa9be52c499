"""How often the kind of error is named rightly, and what is taken for what.

In: a checkpoint folder or a package, and solutions with labelled lines. Out: of every wrong line
that is flagged, its kind and the one that was named. Imports torch through its siblings only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from . import measure
from .batches import separator_id
from .generator import Solution
from .kinds import KINDS_NAME, load_kinds
from .measure import Figure

THRESHOLD = 0.5
NONE = "none"
Name = Callable[[str, list[str]], Sequence[str | None]]


def load_name(checkpoint: Path) -> Name | None:
    """Names of the flagged lines by torch; None for a checkpoint without the layer."""
    if not (checkpoint / KINDS_NAME).exists():
        return None
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(checkpoint).eval()
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    separator = separator_id(tokenizer)
    weight, names = load_kinds(checkpoint / KINDS_NAME)
    kept = [index for index, name in enumerate(names) if name != NONE]

    @torch.no_grad()
    def name(problem: str, steps: list[str]) -> list[str | None]:
        parts = tokenizer.encode_batch([problem, *steps], add_special_tokens=False)
        ids, ends = list(parts[0].ids), []
        for part in parts[1:]:
            ids += [*part.ids, separator]
            ends.append(len(ids) - 1)
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, ends]  # (N, H)
        good = model.score(hidden).softmax(-1)[:, 1]
        likeliest = (hidden @ weight[kept].t()).argmax(-1)
        return [
            names[kept[kind]] if score < THRESHOLD else None
            for kind, score in zip(likeliest.tolist(), good.tolist(), strict=True)
        ]

    return name


def package_name(package: Path) -> Name | None:
    """The same of an exported package; None for one that names no errors."""
    from prm_edge_runtime import Scorer

    scorer = Scorer.load(package, threads=1)
    if scorer.error_kinds is None:
        return None
    return lambda problem, steps: scorer.score(problem, steps).error_kinds or ()


@dataclass(frozen=True, slots=True)
class Naming:
    """What was measured: pairs of a wrong, flagged line's kind and the one named."""

    pairs: tuple[tuple[str, str], ...]

    @property
    def right(self) -> Figure:
        """Share of lines whose kind is the one named."""
        return measure.share([true == named for true, named in self.pairs])

    @property
    def majority(self) -> tuple[str, float]:
        """The kind that most of these lines have, and what always naming it would get."""
        counts = Counter(true for true, _ in self.pairs)
        kind, count = counts.most_common(1)[0] if counts else ("-", 0)
        return kind, count / max(1, len(self.pairs))

    def confusion(self) -> list[tuple[str, int, int, str]]:
        """For each kind: lines, named rightly, and the most frequent wrong names with counts."""
        rows = []
        for kind, count in Counter(true for true, _ in self.pairs).most_common():
            named = Counter(named for true, named in self.pairs if true == kind)
            others = [(name, n) for name, n in named.most_common() if name != kind][:3]
            shown = ", ".join(f"{name} {n}" for name, n in others) or "-"
            rows.append((kind, count, named[kind], shown))
        return rows


def measured(name: Name, solutions: Sequence[Solution]) -> Naming:
    """Name the flagged wrong lines of solutions; lines whose error has no kind are left out."""
    pairs = []
    for solution in solutions:
        found = name(solution.problem, [line.text for line in solution.lines])
        pairs += [
            (line.error, kind)
            for line, kind in zip(solution.lines, found, strict=True)
            if line.good is False and line.error != NONE and kind is not None
        ]
    return Naming(tuple(pairs))

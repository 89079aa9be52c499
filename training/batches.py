"""From solutions to tensors: TRL's process-reward form, packed by length.

Legend: B sequences, T tokens. Ids are encode(problem), then for each step encode(step) and
the separator; the label of a step stands at its separator. Imports torch and the generator.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from .generator import ERRORS, Context, Line, Solution, draw
from .generator.mixture import Start
from .real import RealMixture

IGNORE = -100
SEPARATOR = "\n"
# Half of the wordings are put into other words, half of the equations are of no listed shape.
LOOSE = 0.5
# Of linear solutions, how many are not always tidied to ax+b.
ORDERS = 0.7
# Of wrong lines of equations and of expressions, how many are wrong by a little.
NEAR = 0.35
# Shares of real moves and of real sentences.
TUTOR, GSM = 0.05, 0.06


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence: ids, step labels at separators, two denser helpers for training.

    `so_far` says at every token of a line whether the line is still good there; `targets`
    are the next tokens of good lines, left out where nothing determines them; `kinds` are the
    indices in `ERRORS` of wrong lines whose error is known, at their separators.
    """

    ids: list[int]
    labels: list[int]
    kinds: list[int]
    so_far: list[int]
    targets: list[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors (B, T), int64, right-padded."""

    ids: torch.Tensor
    labels: torch.Tensor
    kinds: torch.Tensor
    so_far: torch.Tensor
    targets: torch.Tensor


def encode(tokenizer: Tokenizer, solution: Solution, limit: int) -> Encoded:
    """Token ids and labels of one solution, cut at the last whole step within `limit`."""
    texts = [solution.problem, *(line.text for line in solution.lines)]
    parts = tokenizer.encode_batch(texts, add_special_tokens=False)
    separator = separator_id(tokenizer)
    ids = list(parts[0].ids)
    labels = [IGNORE] * len(ids)
    kinds, so_far, targets = list(labels), list(labels), list(labels)
    # The source of real tutor moves says only whether a move is right.
    named = solution.template != "real/tutor"
    for part, line in zip(parts[1:], solution.lines, strict=True):
        if len(ids) + len(part) + 1 > limit:
            break
        ids += [*part.ids, separator]
        labels += [IGNORE] * len(part) + [IGNORE if line.good is None else int(line.good)]
        kind = ERRORS.index(line.error) if line.good is False and named else IGNORE
        kinds += [IGNORE] * len(part) + [kind]
        so_far += [*_so_far(line, part.offsets), IGNORE]
        # Wrong lines teach nothing about what should come next, and words are arbitrary.
        # So are the numbers that a sum starts from.
        words = [
            (len(token) > 2 and token[1:].isalpha() and not line.text[start:end].isdigit())
            or start < line.free
            for token, (start, end) in zip(part.tokens, part.offsets, strict=True)
        ]
        known = [IGNORE if w else i for i, w in zip(part.ids, words, strict=True)]
        targets += [IGNORE] * (len(part) + 1) if line.good is False else [*known, separator]
    return Encoded(ids, labels, kinds, so_far, [*targets[1:], IGNORE])


def _so_far(line: Line, offsets: list[tuple[int, int]]) -> list[int]:
    """Whether the line is good up to each token, IGNORE where that is not known."""
    if line.good is None or (line.good is False and line.slip < 0):
        return [IGNORE] * len(offsets)
    if line.good:
        return [1] * len(offsets)
    return [int(end <= line.slip) for _, end in offsets]


def separator_id(tokenizer: Tokenizer) -> int:
    """The single token that ends a step."""
    ids = tokenizer.encode(SEPARATOR, add_special_tokens=False).ids
    if len(ids) != 1:
        raise ValueError(f"the separator must be one token, got {ids}")
    return ids[0]


def collate(rows: list[Encoded], pad: int) -> Batch:
    """Right-pad to a multiple of 8."""
    width = -(-max(len(r.ids) for r in rows) // 8) * 8

    def stack(name: str, fill: int) -> torch.Tensor:
        values = [getattr(r, name) for r in rows]
        return torch.tensor([v + [fill] * (width - len(v)) for v in values])

    return Batch(
        stack("ids", pad),
        stack("labels", IGNORE),
        stack("kinds", IGNORE),
        stack("so_far", IGNORE),
        stack("targets", IGNORE),
    )


def pack(rows: list[Encoded], tokens: int, rng: random.Random) -> list[Batch]:
    """Batches of at most `tokens` ids, rows of one length together, in random order."""
    batches: list[list[Encoded]] = [[]]
    for row in sorted(rows, key=lambda r: len(r.ids)):
        if (len(batches[-1]) + 1) * len(row.ids) > tokens and batches[-1]:
            batches.append([])
        batches[-1].append(row)
    rng.shuffle(batches)
    return [collate(batch, 0) for batch in batches if batch]


class Stream:
    """Training rows in numbered pools: a pool follows from the seed, its number and its share."""

    def __init__(
        self, tokenizer: Tokenizer, real: RealMixture, seed: int, limit: int, start: Start
    ) -> None:
        self.tokenizer, self.real, self.seed, self.limit = tokenizer, real, seed, limit
        self.start = start

    def solution(self, rng: random.Random, share: float = 1.0) -> Solution:
        """One draw of the mixture: real tutor moves, real sentences, synthetic work."""
        roll = rng.random()
        if self.start == "drills" and share < 0.4:
            roll = 1.0
        if roll < TUTOR:
            return self.real.draw_tutor(rng)
        if roll < TUTOR + GSM:
            return self.real.draw_gsm(rng)
        # Small numbers first: digits are learnt in a fraction of the time.
        level = min(1.0, 0.1 + 4 * share) if self.start == "small" else 1.0
        context = Context(rng, level=level, loose=LOOSE, orders=ORDERS, near=NEAR)
        return draw(context, share=share, start=self.start)

    def pool(self, number: int, tokens: int, share: float) -> list[Encoded]:
        """Rows of about `tokens` ids in all, each with at least one label."""
        rng = random.Random(f"{self.seed}/{number}")
        rows: list[Encoded] = []
        size = 0
        while size < tokens:
            row = encode(self.tokenizer, self.solution(rng, share), self.limit)
            if any(label != IGNORE for label in row.labels):
                rows.append(row)
                size += len(row.ids)
        return rows

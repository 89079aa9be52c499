"""The layer that names errors, as a file beside the checkpoint, and its fit on finished weights.

    python -m training.kinds training/checkpoint --data ../shared/data

``error_kinds.safetensors`` holds ``weight`` (names, hidden size) and, in its metadata, the names of
the rows: what ``prm-edge export`` wants. A run trains the layer beside the network, which moves
under it to the end, and a mean of weights is no network that any layer was trained on; this fits it
anew on the finished network, whose scores it does not touch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from .batches import IGNORE, Encoded, Stream, encode, pack
from .generator import ERRORS
from .network import hidden_states
from .real import RealMixture

KINDS_NAME = "error_kinds.safetensors"
SEED = 90210
LIMIT_TOKENS = 320
BATCH_TOKENS = 12_000
DECAY = 1e-4  # of the weights' squares, against kinds that are seldom drawn
ROUNDS = 200


def save_kinds(weight: torch.Tensor, path: Path) -> None:
    """Write the layer and the names of its rows. (names, hidden size)"""
    if len(weight) != len(ERRORS):
        raise ValueError(f"{path} would have {len(weight)} rows for {len(ERRORS)} names")
    names = json.dumps(list(ERRORS))
    save_file({"weight": weight.detach().contiguous()}, path, metadata={"names": names})


def load_kinds(path: Path) -> tuple[torch.Tensor, list[str]]:
    """Read the layer and its names; those of today where the file has none."""
    with safe_open(path, framework="pt") as file:
        names = json.loads((file.metadata() or {}).get("names", json.dumps(list(ERRORS))))
    return load_file(path)["weight"], names


def fit(states: torch.Tensor, kinds: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Logistic regression from `start`: states (N, H), kinds (N,), start (names, H) -> same."""
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = cross_entropy(states @ weight.t(), kinds) + DECAY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach()


@torch.no_grad()
def flagged(checkpoint: Path, rows: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of wrong lines below the threshold: hidden states (N, H) and kinds (N,)."""
    from transformers import LlamaForTokenClassification

    model = LlamaForTokenClassification.from_pretrained(checkpoint).float().eval()
    states, kinds = [], []
    for batch in pack(rows, BATCH_TOKENS, random.Random(SEED)):
        hidden = hidden_states(model, batch.ids, exact=True)
        good = model.score(hidden).softmax(-1)[..., 1]  # (B, T)
        at = (batch.kinds != IGNORE) & (good < 0.5)
        states.append(hidden[at])
        kinds.append(batch.kinds[at])
    return torch.cat(states), torch.cat(kinds)


def main() -> None:
    """Fit the layer of a checkpoint on training draws, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--solutions", type=int, default=12_000)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))
    # Whole solutions: the errors of the lessons are nearly all slips, and all would be named so.
    stream = Stream(tokenizer, RealMixture(args.data), SEED, LIMIT_TOKENS, "whole")
    rng = random.Random(SEED)
    rows = [encode(tokenizer, stream.solution(rng), LIMIT_TOKENS) for _ in range(args.solutions)]
    states, kinds = flagged(args.checkpoint, rows)
    path = args.checkpoint / KINDS_NAME
    before, names = load_kinds(path)
    if names != list(ERRORS):
        raise ValueError(f"{path} names {names}, the generator {list(ERRORS)}")
    weight = fit(states, kinds, before.float())
    right = [float((states @ w.t()).argmax(1).eq(kinds).float().mean()) for w in (before, weight)]
    print(f"{len(kinds)} lines: {right[0]:.3f} named rightly before, {right[1]:.3f} after the fit")
    part = path.with_suffix(".part")
    save_kinds(weight, part)
    part.chmod(0o644)
    os.replace(part, path)


if __name__ == "__main__":
    main()

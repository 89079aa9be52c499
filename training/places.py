"""Give finished weights the tokens of digits with places: a checkpoint from before they existed.

    python -m training.places OLD NEW

NEW scores about as OLD does: the tokens of one digit in all places begin with the row that the
digit had, a little apart from one another, and training (`--init NEW`) makes use of them.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from .tokens import placed_digits, save_tokenizer, use_places

SPREAD = 0.1  # of a row's own size: enough to tell places apart, too little to change a score much
BYTES = ("î", "Ģ")  # how byte-level BPE writes EE 80, with which each stand-in begins


def extend_tokenizer(tokenizer: Tokenizer) -> tuple[Tokenizer, list[tuple[int, int]]]:
    """A tokenizer with a token for each placed digit, and (its id, the id of the digit)."""
    old = json.loads(tokenizer.to_str())
    vocabulary, merges = old["model"]["vocab"], old["model"]["merges"]
    head = "".join(BYTES)
    vocabulary[head] = len(vocabulary)
    merges.append(list(BYTES))
    pairs = []
    for digit, _, stand in placed_digits():
        last = _byte_letter(stand.encode()[2])
        vocabulary[head + last] = len(vocabulary)
        merges.append([head, last])
        pairs.append((vocabulary[head + last], vocabulary[digit]))
    new = Tokenizer.from_str(json.dumps(old))
    use_places(new)
    return new, pairs


def _byte_letter(byte: int) -> str:
    """The letter that stands for a byte in byte-level BPE (OpenAI's table, GPT-2)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in kept]
    return chr(byte if byte in kept else 256 + others.index(byte))


def extend(old: Path, new: Path) -> None:
    """Write the checkpoint `new`: `old` with the further tokens."""
    tokenizer, pairs = extend_tokenizer(Tokenizer.from_file(str(old / "tokenizer.json")))
    save_tokenizer(tokenizer, new)
    for path in old.glob("*"):
        if path.suffix in (".safetensors", ".json") and not path.name.startswith("tokenizer"):
            shutil.copy(path, new)
    config = json.loads((old / "config.json").read_text())
    config["vocab_size"] = tokenizer.get_vocab_size()
    (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = load_file(old / "model.safetensors")
    rows = weights["model.embed_tokens.weight"]
    more = torch.zeros(config["vocab_size"] - len(rows), rows.shape[1])
    noise = torch.randn(more.shape, generator=torch.Generator().manual_seed(0))
    for token, digit in pairs:
        size = rows[digit].square().mean().sqrt()
        more[token - len(rows)] = rows[digit] + SPREAD * size * noise[token - len(rows)]
    weights["model.embed_tokens.weight"] = torch.cat((rows, more))
    save_file(weights, new / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    extend(Path(sys.argv[1]), Path(sys.argv[2]))

"""The tokenizer: byte-level BPE in which every digit and every lone letter stands alone.

In: texts of the generator and of the real training half. Out: a `tokenizers` file in the
form `PreTrainedTokenizerFast` reads. Any text survives encoding and decoding, since all 256
bytes are tokens. A space is put before every text: problem and first step meet without a
separator in TRL's form, and the space keeps "...=15" and "3x=..." apart. Operators keep their
spaces (" = " is one token), words keep a leading one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# One digit | newline | LaTeX command | word with its space | sign with its spaces | other space.
PIECES = r"\p{N}| ?\n|\\\p{L}+| ?\p{L}+| ?[^\s\p{L}\p{N}] ?|\s"


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Learn merges inside the pieces of `texts`, up to `size` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=20,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

"""The tokenizer: byte-level BPE in which every digit and every lone letter stands alone.

A digit's token says its place too: 4 in 42 is another token than 4 in 421 or 7.4. Carrying and
comparing by place is what short networks learn last about sums, since place counts from the right
and text is read from the left (compare the digit embeddings of McLeish et al., arXiv:2405.17399);
a normalizer can look ahead, so the token tells.

In: texts of the generator and of the real training half. Out: a `tokenizers` file in the
form `PreTrainedTokenizerFast` reads. Any text survives encoding and decoding, since all 256
bytes are tokens. A space is put before every text: problem and first step meet without a
separator in TRL's form, and the space keeps "...=15" and "3x=..." apart. Operators keep their
spaces (" = " is one token), words keep a leading one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# Stand-ins for digits that are not units, ten to a place, from a private-use block of Unicode.
FIRST_PLACED = 0xE000
# As they are, not escaped: the regular expressions of Python's and the browser's tokenizers
# escape differently.
_STANDS = f"{chr(FIRST_PLACED)}-{chr(FIRST_PLACED + 59)}"
_ANY = f"[0-9{_STANDS}]"  # a digit, already replaced or not
PLACES = (
    # (what stands before the digit, what stands after it), fractions first: once replaced, their
    # digits are no candidates for the places of whole numbers. What matches none is a unit.
    (rf"(?<=\.{_ANY}|\.{_ANY}{_ANY}|\.{_ANY}{_ANY}{_ANY})", ""),  # hundredths and smaller
    (r"(?<=\.)", ""),  # tenths
    ("", rf"(?={_ANY}(?!{_ANY}))"),  # tens
    ("", rf"(?={_ANY}{{2}}(?!{_ANY}))"),  # hundreds
    ("", rf"(?={_ANY}{{3}}(?!{_ANY}))"),  # thousands
    ("", rf"(?={_ANY}{{4}})"),  # larger
)
# Digit | newline | LaTeX command | word with its space | sign with its spaces | other space.
PIECES = (
    rf"\p{{N}}|[{_STANDS}]| ?\n|\\\p{{L}}+| ?\p{{L}}+"
    rf"| ?[^\s\p{{L}}\p{{N}}{_STANDS}] ?|\s"
)


def placed_digits() -> list[tuple[str, str, str]]:
    """(digit, what a pattern must see around it, its stand-in), in the order of replacement."""
    return [
        (str(digit), f"{before}{digit}{after}", chr(FIRST_PLACED + 10 * place + digit))
        for place, (before, after) in enumerate(PLACES)
        for digit in range(10)
    ]


def use_places(tokenizer: Tokenizer) -> None:
    """Give a tokenizer the normalizer, the pieces and the decoder of digits with places."""
    rules = [normalizers.Replace(Regex(around), stand) for _, around, stand in placed_digits()]
    tokenizer.normalizer = normalizers.Sequence([*rules, normalizers.Prepend(" ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    back = [decoders.Replace(stand, digit) for digit, _, stand in placed_digits()]
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Fuse(), *back, decoders.Strip(" ", 1, 0)]
    )


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Learn merges inside the pieces of `texts`, up to `size` tokens."""
    tokenizer = Tokenizer(models.BPE())
    use_places(tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=20,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Often enough that each placed digit becomes a token, whatever the texts hold.
    placed = [f"{10**6 + 1111111 * d:07d} {d}.{d}{d}" for d in range(1, 9)] * 2000
    placed += ["9999999 9.99", "1000000 0.00"] * 2000
    tokenizer.train_from_iterator(itertools.chain(placed, texts), trainer)
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

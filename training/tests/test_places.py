"""Weights from before places: the same scores at first, and a token for each placed digit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForTokenClassification

from training import places
from training.tokens import placed_digits, save_tokenizer, use_places


def old_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    use_places(tokenizer)
    tokenizer.normalizer = normalizers.Prepend(" ")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Solve 3x + 4 = 19"] * 10, trainer)
    return tokenizer


@pytest.fixture
def old(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = old_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=2, head_dim=16, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path / "old"
    LlamaForTokenClassification(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def test_scores_hardly_move_and_places_differ(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    places.extend(old, new)
    said = []
    for folder in (old, new):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        model = LlamaForTokenClassification.from_pretrained(folder).eval()
        ids = torch.tensor([tokenizer.encode("Solve 3x + 417 = 19").ids])
        with torch.no_grad():
            said.append(model(input_ids=ids).logits.softmax(-1))
    assert said[0].shape == said[1].shape
    assert 0 < (said[0] - said[1]).abs().max() < 0.05
    tokenizer = Tokenizer.from_file(str(new / "tokenizer.json"))
    assert len({tuple(tokenizer.encode(s).ids) for _, _, s in placed_digits()}) == 60
    assert tokenizer.decode(tokenizer.encode("x = 4107.25").ids).strip() == "x = 4107.25"

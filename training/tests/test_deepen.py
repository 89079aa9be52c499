"""More layers: the same scores at first, and every added matrix learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForTokenClassification

from training.deepen import deepen, deepened
from training.network import both_states


def write(folder: Path, layers: int) -> LlamaForTokenClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        head_dim=16,
        pad_token_id=0,
    )
    model = LlamaForTokenClassification(config).eval()
    model.save_pretrained(folder)
    return model


def test_states_stay_and_what_was_added_learns(tmp_path: Path) -> None:
    old = write(tmp_path / "old", 6)
    deepen(tmp_path / "old", tmp_path / "new", [1, 3, 5])
    new = LlamaForTokenClassification.from_pretrained(tmp_path / "new").eval()
    assert new.config.num_hidden_layers == 9
    ids = torch.randint(1, 50, (3, 21))
    with torch.no_grad():
        # two thirds of nine layers are the first four and two copies
        for before, after in zip(both_states(old, ids), both_states(new, ids), strict=True):
            assert torch.equal(before, after)
        assert torch.equal(old(input_ids=ids).logits, new(input_ids=ids).logits)
    optimizer = torch.optim.SGD(new.parameters(), lr=0.1)
    for _ in range(2):  # the first update moves what writes, the second what it reads from
        optimizer.zero_grad()
        both_states(new, ids)[1].square()[..., 0].mean().backward()
        optimizer.step()
    for at in (2, 5, 8):
        for name, weight in new.model.layers[at].named_parameters():
            assert weight.grad is not None, f"{at} {name}"
            assert weight.grad.abs().max() > 0, f"{at} {name}"


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer 6: the checkpoint has 6"):
        deepened({}, 6, [2, 6])

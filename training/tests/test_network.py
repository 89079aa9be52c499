"""The training forward pass is transformers' own, and its rounded products train the same way."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForTokenClassification

from training.network import both_states, hidden_states


def make(kv_heads: int) -> LlamaForTokenClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=16,
        pad_token_id=0,
    )
    return LlamaForTokenClassification(config).eval()


def test_hidden_states_are_those_of_transformers() -> None:
    for kv_heads in (4, 2):
        model = make(kv_heads)
        ids = torch.randint(1, 50, (3, 21))
        with torch.no_grad():
            expected = model.model(input_ids=ids).last_hidden_state
            assert torch.allclose(hidden_states(model, ids, exact=True), expected, atol=1e-5)
            rounded = (hidden_states(model, ids) - expected).norm() / expected.norm()
        assert 0 < rounded < 0.03


def test_the_state_half_way_is_that_of_transformers() -> None:
    model = make(2)
    ids = torch.randint(1, 50, (3, 21))
    with torch.no_grad():
        # [0] is the embedding, [2] what two of the three layers make of it
        expected = model.model(input_ids=ids, output_hidden_states=True).hidden_states[2]
        found = both_states(model, ids, exact=True)[0]
    size = (expected.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt()
    assert torch.allclose(found, expected / size, atol=1e-4)


def test_rounded_gradients_point_the_same_way() -> None:
    ids = torch.randint(1, 50, (3, 21))
    grads = []
    for exact in (True, False):
        model = make(4)
        hidden_states(model, ids, exact=exact)[..., 0].square().mean().backward()
        used = [p.grad for p in model.parameters() if p.grad is not None]
        grads.append(torch.cat([grad.flatten() for grad in used]))
    assert torch.nn.functional.cosine_similarity(grads[0], grads[1], dim=0) > 0.995

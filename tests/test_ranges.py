"""How large values and weights get, and the folds that float16 then needs."""

from __future__ import annotations

from typing import Any

import checkpoints
import pytest
import torch

from prm_edge_export import ranges
from prm_edge_export.model_config import read_config
from prm_edge_export.ranges import Ranges, fold, watched


def test_fold_takes_the_fewest_bits() -> None:
    found = Ranges()
    for layer, size in enumerate((1.0, ranges.LIMIT, ranges.LIMIT * 1.01, ranges.LIMIT * 4)):
        found.add(layer, ranges.PRODUCT, "p", torch.tensor([-size]))
        found.add(layer, ranges.STREAM, "s", torch.tensor([size * 100]))
    found.add(0, ranges.FIXED, "f", torch.tensor([ranges.LIMIT]))
    folds, beyond, faint = fold(found)
    assert folds.parts[ranges.PRODUCT] == {2: 1, 3: 2}
    assert (beyond, faint) == ([], [])
    assert not any(folds.parts[part] for part in ranges.FOLDED if part != ranges.PRODUCT)
    found.add(0, ranges.FIXED, "gate", torch.tensor([2 * ranges.LIMIT]))
    found.add(1, ranges.MLP, "down", torch.tensor([ranges.LIMIT * 2.0**13]))
    _, beyond, _ = fold(found)
    assert beyond == ["down reaches 1.34e+08", "gate reaches 3.28e+04"]


def test_fold_makes_room_for_weights_that_make_up_for_another_fold() -> None:
    found = Ranges()
    found.add(0, ranges.VALUES, "v", torch.tensor([4 * ranges.LIMIT]))
    found.add_weights(0, ranges.ATTENTION, "o_proj.weight", torch.tensor([[20_000.0, 1.0]]))
    found.add_weights(0, ranges.ATTENTION, "o_proj.bias", torch.tensor([20_000.0, 1.0]))
    folds, beyond, faint = fold(found)
    # 4 * 20,000 / 2 fits; the bias needs no fold and takes the second one
    assert folds.parts[ranges.VALUES] == {0: 2}
    assert folds.parts[ranges.ATTENTION] == {0: 1}
    assert [folds.power(weights) for weights in found.weights] == [1, -1]
    assert (beyond, faint) == ([], [])


def test_fold_says_which_weights_would_become_faint() -> None:
    torch.manual_seed(0)
    found = Ranges()
    usual = torch.randn(50, 50) * 0.02
    usual[7, 7] = 2.0**27
    found.add_weights(3, ranges.MLP, "down_proj.weight", usual)
    folds, beyond, faint = fold(found)
    assert folds.parts[ranges.MLP] == {3: 12}
    assert not beyond
    (text,) = faint
    assert text.startswith("folded by 2^-12, down_proj.weight would lose 0.")
    found.weights.clear()
    usual[7, 7] = 2.0**18
    found.add_weights(3, ranges.MLP, "down_proj.weight", usual)
    assert fold(found)[2] == []


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_fold_refuses_what_is_not_finite(value: float) -> None:
    found = Ranges()
    found.add(0, ranges.VALUES, "there", torch.tensor([value, 1.0]))
    assert len(fold(found)[1]) == 1


@torch.no_grad()
def test_watched_looks_at_tokens_alone() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = LlamaMLP(LlamaConfig(**checkpoints.sizes(8)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.mlp(x)
            return out

    torch.manual_seed(0)
    layer = Layer()
    x = torch.randn(2, 5, 64)
    valid = torch.ones(2, 5, dtype=torch.bool)
    valid[1, 3:] = False
    config = read_config(_llama_config())
    sizes = []
    for factor in (1.0, 1e6):
        x[1, 3:] = factor
        found = Ranges()
        with watched(layer, 0, config, found, valid):
            layer(x)
        sizes.append(found.largest)
        expected = layer.mlp.up_proj(x[valid]).abs().max()
        product = layer.mlp.act_fn(layer.mlp.gate_proj(x[valid])) * layer.mlp.up_proj(x[valid])
        largest = max(float(expected), float(product.abs().max()))
        assert found.largest[0, ranges.PRODUCT] == pytest.approx(largest, rel=1e-5)
    assert sizes[0] == pytest.approx(sizes[1])
    assert not layer.mlp.up_proj._forward_hooks


def _llama_config() -> dict[str, Any]:
    from transformers import LlamaConfig

    return {**LlamaConfig(**checkpoints.sizes(8)).to_dict(), "model_type": "llama"}

"""Rotations are orthogonal, and a rotated model is the same model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.heads import EMBEDDING, find_head
from prm_edge_export.model_config import read_config
from prm_edge_export.quantization.layers import LayerRunner, run_reference
from prm_edge_export.quantization.rotation import RotatedTensors, Rotation, can_rotate
from prm_edge_runtime.encoding import Encoded


@given(size=st.integers(1, 200), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_rotation_is_orthogonal(size: int, seed: int) -> None:
    rotation = Rotation.of(size, seed)
    matrix = rotation.columns(torch.eye(size))  # I R
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    other = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(rotation.columns(other), other.double() @ matrix)
    torch.testing.assert_close(rotation.rows(other.T), matrix.T @ other.T.double())


@pytest.mark.parametrize("size", [64, 576, 896])
def test_rotation_spreads_an_outlier(size: int) -> None:
    outlier = torch.zeros(size)
    outlier[size // 3] = 1.0
    assert Rotation.of(size).columns(outlier).abs().max() < 12 / size**0.5


@pytest.mark.parametrize(
    ("maker", "changes"),
    [
        (checkpoints.trl_llama, {"attention_bias": True, "mlp_bias": True}),
        (checkpoints.trl_qwen2, {}),
        (checkpoints.trl_qwen3, {}),
    ],
    ids=["llama-biases", "qwen2", "qwen3"],
)
def test_rotated_model_is_the_same_model(
    maker: Any, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = maker(tmp_path / "tiny", **changes)
    tensors = checkpoints.read_tensors(folder)
    generator = torch.Generator().manual_seed(8)
    for name, tensor in tensors.items():  # gains that differ, or folding them would not show
        if "norm" in name:
            tensor.mul_(torch.rand(tensor.shape, generator=generator) + 0.5)
    checkpoints.write_shards(folder, tensors)
    config = read_config(json.loads((folder / "config.json").read_text()))
    with Checkpoint(folder) as checkpoint:
        head = find_head(checkpoint.tensors)
        assert head is not None
        assert can_rotate(config, head)
        ids = torch.arange(3, 60).numpy()
        reads = torch.tensor([5, 31, 56]).numpy()
        rotated = RotatedTensors(checkpoint.tensors, config, head)
        record = Encoded(ids=ids, reads=reads, prompt_tokens=0)
        wanted, got = (
            run_reference(
                LayerRunner(config, head, tensors, scratch=tmp_path), config.layers, [record]
            ).run(ids, reads)
            for tensors in (checkpoint.tensors, rotated)
        )
        assert abs(wanted).max() > 0.05
        torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), rtol=1e-4, atol=1e-5)
        before = checkpoint.tensors.torch(EMBEDDING, (config.vocab, config.hidden))
        after = rotated.torch(EMBEDDING, (config.vocab, config.hidden))
        assert (before - after).abs().max() > 0.01
        assert "embed_tokens" in rotated.where(EMBEDDING)


def test_what_cannot_be_rotated(tmp_path: Path) -> None:
    folder = checkpoints.trl_llama(tmp_path / "tiny")
    config = read_config(json.loads((folder / "config.json").read_text()))
    with Checkpoint(folder) as checkpoint:
        head = find_head(checkpoint.tensors)
        assert head is not None
    (layer,) = head.layers
    assert can_rotate(config, head)
    for changes in ({"gemma": True}, {"fused": True}):
        assert not can_rotate(dataclasses.replace(config, **changes), head)
    for head_changes in ({"weight": EMBEDDING}, {"fold": "members"}, {"inputs": 2 * config.hidden}):
        other = dataclasses.replace(layer, **head_changes)
        assert not can_rotate(config, dataclasses.replace(head, layers=(other,)))

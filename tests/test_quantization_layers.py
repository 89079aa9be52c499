"""What a rounded linear does to its layer, and to one basis or the other, by the long way round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
import torch
from safetensors.torch import save_file

from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.heads import find_head
from prm_edge_export.model_config import read_config
from prm_edge_export.quantization import calibration, weights
from prm_edge_export.quantization.calibration import Calibration, compare_bases
from prm_edge_export.quantization.kinds import INT8, UNITS
from prm_edge_export.quantization.layers import LayerRunner
from prm_edge_export.quantization.measuring import Judge, weights_of
from prm_edge_export.quantization.rotation import RotatedTensors
from prm_edge_runtime.encoding import Encoded

MAKERS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "qwen2": (checkpoints.trl_qwen2, {}),
    "qwen3": (checkpoints.trl_qwen3, {}),
    "gemma2": (checkpoints.trl_gemma2, {"window": 11}),
}


def records_of(vocab: int, count: int = 9) -> list[Encoded]:
    rng = np.random.default_rng(3)
    return [
        Encoded(ids=rng.integers(0, vocab, length), reads=np.array([length - 1]), prompt_tokens=0)
        for length in rng.integers(4, 40, count)
    ]


@pytest.mark.parametrize("name", MAKERS)
@torch.inference_mode()
def test_a_rounded_linear_is_judged_as_the_whole_layer_would(name: str, tmp_path: Path) -> None:
    maker, changes = MAKERS[name]
    with Checkpoint(maker(tmp_path / "tiny", **changes)) as opened:
        config, head = read_config(opened.config), find_head(opened.tensors)
        assert head is not None
        opening = np.array([1, 2]) if config.window is None else None
        runner = LayerRunner(config, head, opened.tensors, opening, scratch=tmp_path)
        batches = runner.batches(
            [
                Encoded(
                    ids=np.concatenate([[1, 2], record.ids]),
                    reads=record.reads + 2,
                    prompt_tokens=0,
                )
                for record in records_of(config.vocab)
            ]
        )
        runner.load(0)
        judge = Judge(runner, batches)  # fewer tokens than are wanted: all of them
        judge.settle()
        before = [batch.stream for batch in batches]
        after = [runner.forward(stream) for stream in before]
        for unit in UNITS:
            own = weights_of(runner.layer, unit)
            kept = [weight.clone() for weight in own]
            rounded = weights.round_channels(torch.cat(own)).restored()
            found = judge.error_of(unit, rounded, weights.round_tokens)
            assert all(torch.equal(a, b) for a, b in zip(own, kept, strict=True))
            for weight, part in zip(own, rounded.split([len(w) for w in own]), strict=True):
                weight.copy_(part)
            handles = [
                runner.layer.get_submodule(part).register_forward_pre_hook(
                    lambda module, given: (weights.round_tokens(given[0]),)
                )
                for part in unit.parts
            ]
            errors = []
            for batch, stream, wanted in zip(batches, before, after, strict=True):
                change = (runner.forward(stream) - wanted)[batch.valid].norm(dim=1)
                errors.append((change / wanted[batch.valid].norm(dim=1)) ** 2)
            for handle in handles:
                handle.remove()
            for weight, original in zip(own, kept, strict=True):
                weight.copy_(original)
            assert found == pytest.approx(float(torch.cat(errors).mean()), rel=1e-3)
            assert found > 0


@torch.inference_mode()
def test_bases_are_compared_as_if_each_had_gone_through_every_layer(tmp_path: Path) -> None:
    folder = checkpoints.trl_qwen2(tmp_path / "tiny")
    tensors = checkpoints.read_tensors(folder)
    tensors["model.embed_tokens.weight"][:, 3] *= 30  # a channel that one basis has to bear
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with Checkpoint(folder) as opened:
        config, head = read_config(opened.config), find_head(opened.tensors)
        assert head is not None
        opening, records = np.array([5]), records_of(config.vocab)
        for record in records:
            record.ids[0] = 5
        turned = RotatedTensors(opened.tensors, config, head)
        plain = LayerRunner(config, head, opened.tensors, opening, scratch=tmp_path)
        other = LayerRunner(config, head, turned, opening, scratch=tmp_path, beside=plain)
        found = compare_bases(plain, other, turned.turn, config, records)
        for given, error in zip((opened.tensors, turned), found, strict=True):
            runner = LayerRunner(config, head, given, opening, scratch=tmp_path)
            batches, result = runner.batches(records), Calibration()
            assert config.layers <= calibration.SAMPLED_LAYERS  # so that every one is sampled
            for index in range(config.layers):
                runner.load(index)
                calibration._layer(runner, config, index, batches, tmp_path, result)
            wanted = sum(unit.errors[INT8] for unit in result.units)
            # a value at the edge between two integers may fall to either side
            assert error == pytest.approx(wanted, rel=0.02)
        assert found[1] < 0.9 * found[0]

"""Weights in blocks, activations as they are: what a GPU multiplies, chosen within a target.

In: the reference, a layer at a time, and encoded worked solutions. Out: for every linear its 4-bit
and its 8-bit blocks in a scratch folder with the measured error of each, and from them a plan.
Nothing is smoothed or rotated: without rounded activations there is nothing to even out, and the
powers of two that float16 needs (``factors``) are folded in before anything is rounded. N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from prm_edge_runtime.encoding import Encoded

from ..model_config import DecoderConfig
from . import weights
from .calibration import Calibration, Measured
from .kinds import CUDA_MENU, FP32, UNITS, W4, W8, Menu, Unit, layer_prefix
from .layers import Batch, LayerRunner
from .measuring import Judge, run_and_catch, weights_of

FORMS: Final = {W4: weights.CUDA4, W8: weights.BLOCKS8}


@torch.inference_mode()
def calibrate_blocks(
    runner: LayerRunner,
    config: DecoderConfig,
    records: Sequence[Encoded],
    judged: Sequence[Encoded],
    scratch: Path,
    *,
    menu: Menu = CUDA_MENU,
    factors: Mapping[str, float],
    scale_type: torch.dtype,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Round every linear to both kinds of blocks; also the reference's outputs for ``judged``.

    ``factors``: tensor name -> what it is multiplied with in the graph. ``scale_type``: of scales.

    Raises:
        CheckpointError: when a tensor is missing, has another shape or is not finite.
    """
    result = Calibration(menu=menu)
    used, others = runner.batches(records), runner.batches(judged)
    for index in range(config.layers):
        runner.load(index)
        for batch in others:
            batch.stream = runner.forward(batch.stream)
        _layer(runner, index, used, scratch, factors, scale_type, result)
        progress(index + 1, config.layers)
    result.outputs = runner.outputs(others, judged)
    return result


def _layer(
    runner: LayerRunner,
    index: int,
    batches: Sequence[Batch],
    scratch: Path,
    factors: Mapping[str, float],
    scale_type: torch.dtype,
    result: Calibration,
) -> None:
    judge = Judge(runner, batches)
    judge.settle()
    seen, _ = run_and_catch(runner, batches)
    for unit in UNITS:
        inputs = weights.Inputs.of(seen.pop(unit.name).hessian)
        own = weights_of(runner.layer, unit)
        names = (f"{layer_prefix(index)}{part}.weight" for part in unit.parts)
        factor = torch.cat(
            [torch.full((len(w), 1), factors.get(n, 1.0)) for w, n in zip(own, names, strict=True)]
        )
        weight = torch.cat(own) * factor
        errors = {FP32: 0.0}
        stored: dict[str, weights.Blocks] = {}
        for kind, form in FORMS.items():
            blocks = weights.quantize_blocks(weight, inputs, form, scale_type)
            restored = blocks.restored(weight.shape[1]) / factor
            errors[kind] = judge.error_of(unit, restored, _as_it_is)
            stored[kind] = blocks
        _keep(stored, weight.shape[1], unit, index, scratch, result)
        result.units.append(
            Measured(
                layer=index,
                unit=unit.name,
                multiply_adds=weight.numel(),
                strength=None,
                compensated=True,
                errors=errors,
            )
        )


def _as_it_is(rows: torch.Tensor) -> torch.Tensor:
    return rows


def _keep(
    stored: Mapping[str, weights.Blocks],
    inputs: int,
    unit: Unit,
    index: int,
    scratch: Path,
    result: Calibration,
) -> None:
    """Write both kinds of each product: blocks (N, G, bytes), scales (N * G,), and K."""
    count = len(unit.graph)
    for at, name in enumerate(unit.graph):
        arrays: dict[str, Any] = {"inputs": np.array(inputs)}
        for kind, blocks in stored.items():
            arrays[kind] = blocks.packed().chunk(count)[at].numpy()
            arrays[f"{kind}_scales"] = blocks.scales.chunk(count)[at].flatten().numpy()
        path = scratch / f"{index}.{name}.npz"
        np.savez(path, **arrays)
        result.stored[layer_prefix(index) + name] = path

"""Calibrate one layer after the other: smoothing, compensated int8 weights, errors of each kind.

In: the reference, layer by layer, and encoded worked solutions. Out: for every linear what folding
it gets, its int8 weights in a scratch folder, and the measured error of each kind.
T tokens, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from prm_edge_runtime.encoding import Encoded

from ..model_config import DecoderConfig
from . import weights
from .kinds import BLOCKS, FP32, INT8, INT8X2, UNITS, Unit, layer_prefix
from .layers import Batch, LayerRunner, hooked

# SmoothQuant's strengths (arXiv:2211.10438); None leaves the scales out
STRENGTHS: Final = (None, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SAMPLED_TOKENS: Final = 512  # on which strengths are compared
_JUDGED_TOKENS: Final = 1024  # on which a kind's error is measured
_SCALE_LIMIT: Final = 1e4
SAMPLED_LAYERS: Final = 4  # in which two bases are compared


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fold:
    """What a tensor of the checkpoint is divided by per row and multiplied with per column."""

    rows: NDArray[np.float32] | None = None
    columns: NDArray[np.float32] | None = None

    def apply(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fold. (N,) or (N, K)"""
        if self.rows is not None:
            array = array / (self.rows if array.ndim == 1 else self.rows[:, None])
        if self.columns is not None:
            array = array * self.columns
        return array


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One unit of one layer: its size, smoothing, and each kind's share of error.

    ``errors``: kind -> mean over tokens of |change of the layer's output|^2 / |output|^2.
    """

    layer: int
    unit: str
    multiply_adds: int  # per token
    strength: float | None
    compensated: bool
    errors: Mapping[str, float]


@dataclass(slots=True, kw_only=True, eq=False)
class Calibration:
    """Everything the plan and the graph need."""

    units: list[Measured] = field(default_factory=list)
    folds: dict[str, Fold] = field(default_factory=dict)
    stored: dict[str, Path] = field(default_factory=dict)  # a product's name in the graph -> file
    opening: list[NDArray[np.float32]] = field(default_factory=list)  # of each layer (2, G, P, D)


@torch.inference_mode()
def calibrate(
    runner: LayerRunner,
    config: DecoderConfig,
    records: Sequence[Encoded],
    scratch: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Calibrate layer after layer; the model in ``runner`` is folded as it goes.

    Raises:
        CheckpointError: when a tensor is missing, has another shape or is not finite.
    """
    result = Calibration()
    batches = runner.batches(records)
    for index in range(config.layers):
        runner.load(index)
        _layer(runner, config, index, batches, scratch, result)
        progress(index + 1, config.layers)
    return result


@torch.inference_mode()
def sampled_error(
    runner: LayerRunner, config: DecoderConfig, records: Sequence[Encoded], scratch: Path
) -> float:
    """What a few layers would lose with all their linears in int8, in the runner's basis."""
    result = Calibration()
    batches = runner.batches(records)
    count = min(SAMPLED_LAYERS, config.layers)
    sampled = {config.layers * (2 * at + 1) // (2 * count) for at in range(count)}
    for index in range(max(sampled) + 1):
        runner.load(index)
        if index in sampled:
            _layer(runner, config, index, batches, scratch, result, kinds=(INT8,))
            continue
        for batch in batches:
            batch.stream = runner.forward(batch.stream)
    return sum(unit.errors[INT8] for unit in result.units)


def _layer(
    runner: LayerRunner,
    config: DecoderConfig,
    index: int,
    batches: Sequence[Batch],
    scratch: Path,
    result: Calibration,
    kinds: Sequence[str] = (INT8, INT8X2, BLOCKS),
) -> None:
    """Calibrate the loaded layer, and move the streams on past it; measure these kinds' errors."""
    before = [batch.stream for batch in batches]
    inputs = _run_and_catch(runner, batches)
    after = [batch.stream for batch in batches]
    norms = torch.cat([batch.rows for batch in batches]).norm(dim=1)
    folded = []
    for unit in UNITS:
        smoothing, strength = _smoothing(runner.layer, config, unit, inputs[unit.name], norms)
        folded.append((unit, smoothing, strength))
    for unit, smoothing, _ in folded:
        if smoothing is not None:
            _fold(runner.layer, config, unit, smoothing, layer_prefix(index), result.folds)
    runner.settle()
    result.opening.append(runner.opening_kv())
    judged = _first_tokens(batches, _JUDGED_TOKENS)
    for unit, smoothing, strength in folded:
        rows = inputs.pop(unit.name)
        if smoothing is not None:
            rows /= _per_input(config, unit, smoothing)
        compensated = rows.shape[1] <= weights.MAX_COMPENSATED
        weight = torch.cat(_weights(runner.layer, unit))
        channels, blocks = weights.quantize(weight, rows.T @ rows if compensated else None)
        _keep(channels, blocks, unit, index, scratch, result)
        restored = channels.restored()
        ways = {
            INT8: (restored, weights.round_tokens),
            INT8X2: (restored, weights.round_tokens_twice),
            BLOCKS: (blocks.restored(weight.shape[1]), weights.round_token_blocks),
        }
        errors = {
            kind: _error(runner, unit, *ways[kind], batches, before, after, judged)
            for kind in kinds
        }
        result.units.append(
            Measured(
                layer=index,
                unit=unit.name,
                multiply_adds=weight.numel(),
                strength=strength,
                compensated=compensated,
                errors={**errors, FP32: 0.0},
            )
        )


def _run_and_catch(runner: LayerRunner, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
    """Move the streams on; return what each unit read. -> unit -> (T, K)"""
    caught: dict[str, list[torch.Tensor]] = {unit.name: [] for unit in UNITS}
    for batch in batches:

        def catch(name: str, valid: torch.Tensor) -> Callable[[torch.Tensor], None]:
            return lambda value: caught[name].append(value[valid])

        with hooked(runner.layer, {u.parts[0]: catch(u.name, batch.valid) for u in UNITS}):
            batch.stream = runner.forward(batch.stream)
    return {name: torch.cat(rows) for name, rows in caught.items()}


def _weights(layer: Any, unit: Unit) -> list[torch.Tensor]:
    return [layer.get_submodule(part).weight for part in unit.parts]


def _smoothing(
    layer: Any, config: DecoderConfig, unit: Unit, rows: torch.Tensor, norms: torch.Tensor
) -> tuple[torch.Tensor | None, float | None]:
    """The scales, of all strengths, with the least error on a sample of tokens.

    Each token's error counts in relation to the stream it is added to, where it is; else to the
    output itself.
    """
    weight = torch.cat(_weights(layer, unit))
    largest = _tied(config, unit, rows.abs().amax(dim=0)).clamp(min=1e-8)
    widest = _tied(config, unit, weight.abs().amax(dim=0)).clamp(min=1e-8)
    step = max(1, len(rows) // _SAMPLED_TOKENS)
    sample = rows[::step]
    wanted = sample @ weight.T
    size = (wanted.norm(dim=1) if unit.rows_of is None else norms[::step]).clamp(min=1e-8)
    best: tuple[float, torch.Tensor | None, float | None] | None = None
    for strength in STRENGTHS:
        scales = None
        smoothed, scaled = sample, weight
        if strength is not None:
            scales = largest**strength / widest ** (1 - strength)
            scales /= scales.log().mean().exp()
            scales.clamp_(1 / _SCALE_LIMIT, _SCALE_LIMIT)
            each = _per_input(config, unit, scales)
            smoothed, scaled = sample / each, weight * each
        got = weights.round_tokens(smoothed) @ weights.round_channels(scaled).restored().T
        error = float((((got - wanted).norm(dim=1) / size) ** 2).mean())
        if best is None or error < best[0]:
            best = (error, scales, strength)
    assert best is not None
    return best[1], best[2]


def _tied(config: DecoderConfig, unit: Unit, values: torch.Tensor) -> torch.Tensor:
    """Largest value per scale: heads that share a value head share its scales. (K,) -> (S,)"""
    if unit.name != "o":
        return values
    grouped = values.view(config.kv_heads, -1, config.head_dim)
    return grouped.amax(dim=1).flatten()


def _per_input(config: DecoderConfig, unit: Unit, scales: torch.Tensor) -> torch.Tensor:
    """One scale per input. (S,) -> (K,)"""
    if unit.name != "o":
        return scales
    repeats = config.heads // config.kv_heads
    return scales.view(config.kv_heads, config.head_dim).repeat_interleave(repeats, 0).flatten()


def _fold(
    layer: Any,
    config: DecoderConfig,
    unit: Unit,
    scales: torch.Tensor,
    prefix: str,
    folds: dict[str, Fold],
) -> None:
    """Put scales into what comes before a unit and into its weights; the layer stays the same."""
    source = layer.get_submodule(unit.gain or unit.rows_of)
    for name, parameter in source.named_parameters():
        parameter /= scales if parameter.ndim == 1 else scales[:, None]
        _note(folds, f"{prefix}{unit.gain or unit.rows_of}.{name}", rows=scales.numpy())
    each = _per_input(config, unit, scales)
    for part in unit.parts:
        layer.get_submodule(part).weight *= each
        _note(folds, f"{prefix}{part}.weight", columns=each.numpy())


def _note(folds: dict[str, Fold], name: str, **arrays: NDArray[np.float32]) -> None:
    known = folds.get(name, Fold())
    folds[name] = Fold(
        rows=arrays.get("rows", known.rows), columns=arrays.get("columns", known.columns)
    )


def _keep(
    channels: weights.Channels,
    blocks: weights.Blocks,
    unit: Unit,
    index: int,
    scratch: Path,
    result: Calibration,
) -> None:
    """Write both forms to the scratch folder, int8 in the graph's layout (K, N)."""
    count = len(unit.graph)
    values, scales = channels.values.chunk(count), channels.scales.chunk(count)
    blocked, block_scales = blocks.values.chunk(count), blocks.scales.chunk(count)
    for at, name in enumerate(unit.graph):
        path = scratch / f"{index}.{name}.npz"
        np.savez(
            path,
            int8=values[at].T.contiguous().numpy(),
            int8_scales=scales[at].numpy(),
            blocks=blocked[at].numpy(),
            block_scales=block_scales[at].numpy(),
        )
        result.stored[layer_prefix(index) + name] = path


def _first_tokens(batches: Sequence[Batch], tokens: int) -> list[int]:
    """Batches from all over the lengths, with about this many tokens together."""
    total = sum(int(batch.valid.sum()) for batch in batches)
    step = max(1, total // tokens)
    return list(range(min(step // 2, len(batches) - 1), len(batches), step))


def _error(
    runner: LayerRunner,
    unit: Unit,
    weight: torch.Tensor,
    rounding: Callable[[torch.Tensor], torch.Tensor],
    batches: Sequence[Batch],
    before: Sequence[torch.Tensor],
    after: Sequence[torch.Tensor],
    judged: Sequence[int],
) -> float:
    """What the layer's output loses when this unit alone has this weight and rounds its inputs."""
    modules = [runner.layer.get_submodule(part) for part in unit.parts]
    kept = [module.weight.clone() for module in modules]
    total, tokens = 0.0, 0
    try:
        for module, part in zip(modules, torch.split(weight, [len(w) for w in kept]), strict=True):
            module.weight.copy_(part)
        with hooked(runner.layer, dict.fromkeys(unit.parts, rounding)):
            for at in judged:
                valid = batches[at].valid
                change = (runner.forward(before[at]) - after[at])[valid]
                relative = change.norm(dim=1) / after[at][valid].norm(dim=1).clamp(min=1e-8)
                total += float((relative**2).sum())
                tokens += len(relative)
    finally:
        for module, original in zip(modules, kept, strict=True):
            module.weight.copy_(original)
    return total / max(tokens, 1)

"""Calibrate one layer after the other: smoothing, compensated int8 weights, errors of each kind.

In: the reference, layer by layer, and encoded worked solutions. Out: for every linear what folding
it gets, its rounded weights in a scratch folder, and the measured error of each kind; of two bases
the one that loses less.
T tokens, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from prm_edge_runtime.encoding import Encoded

from ..model_config import DecoderConfig
from . import weights
from .kinds import FP32, INT4, INT8, INT8_MENU, INT8X2, UNITS, Menu, Unit, layer_prefix
from .layers import Batch, LayerRunner
from .measuring import Judge, Rounding, Seen, run_and_catch, weights_of

# SmoothQuant's strengths (arXiv:2211.10438); None leaves the scales out
STRENGTHS: Final = (None, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SAMPLED_OUTPUTS: Final = 2048  # on which strengths are compared, from all over the weight
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

    menu: Menu = INT8_MENU
    units: list[Measured] = field(default_factory=list)
    folds: dict[str, Fold] = field(default_factory=dict)
    stored: dict[str, Path] = field(default_factory=dict)  # a product's name in the graph -> file
    opening: list[NDArray[np.float32]] = field(default_factory=list)  # of each layer (2, G, P, D)
    outputs: list[Any] = field(default_factory=list)  # the reference's, each judged record (N, W)


@torch.inference_mode()
def calibrate(
    runner: LayerRunner,
    reference: LayerRunner,
    config: DecoderConfig,
    records: Sequence[Encoded],
    judged: Sequence[Encoded],
    scratch: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    menu: Menu = INT8_MENU,
) -> Calibration:
    """Calibrate on ``records``; pass those to be ``judged`` through the untouched reference.

    ``runner`` may hold the model in another basis and folds as it goes; ``reference`` never does.

    Raises:
        CheckpointError: when a tensor is missing, has another shape or is not finite.
    """
    result = Calibration(menu=menu)
    used = runner.batches(records)
    others = reference.batches(judged)
    for index in range(config.layers):
        reference.load(index)
        for batch in others:
            batch.stream = reference.forward(batch.stream)
        runner.load(index)  # into the same module, where the two share one
        _layer(runner, config, index, used, scratch, result)
        progress(index + 1, config.layers)
    result.outputs = reference.outputs(others, judged)
    return result


@torch.inference_mode()
def compare_bases(
    plain: LayerRunner,
    turned: LayerRunner,
    turn: Callable[[torch.Tensor], torch.Tensor],
    config: DecoderConfig,
    records: Sequence[Encoded],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    menu: Menu = INT8_MENU,
) -> tuple[float, float]:
    """What a few layers lose with all their linears in the cheapest kind, in one basis or another.

    ``plain`` goes through the layers; ``turned`` holds the same model in the basis that ``turn``
    takes streams into, and only runs the layers that are sampled.
    """
    lost = [0.0, 0.0]
    batches, others = plain.batches(records), turned.batches(records)
    count = min(SAMPLED_LAYERS, config.layers)
    sampled = {config.layers * (2 * at + 1) // (2 * count) for at in range(count)}
    last = max(sampled)
    for index in range(last + 1):
        plain.load(index)
        if index not in sampled:
            for batch in batches:
                batch.stream = plain.forward(batch.stream)
            progress(index + 1, last + 1)
            continue
        for batch, other in zip(batches, others, strict=True):
            other.stream = turn(batch.stream)
        turned.take_opening(plain, turn)
        for at, (runner, used) in enumerate(((plain, batches), (turned, others))):
            if runner is turned:
                runner.load(index)  # into the same module, where the two share one
            layer = _Layer(runner, config, used, Calibration(menu=menu), index)
            for unit in UNITS:
                lost[at] += layer.errors(unit, (menu.kinds[0],))[menu.kinds[0]]
        progress(index + 1, last + 1)
    return lost[0], lost[1]


def _layer(
    runner: LayerRunner,
    config: DecoderConfig,
    index: int,
    batches: Sequence[Batch],
    scratch: Path,
    result: Calibration,
) -> None:
    """Calibrate the loaded layer, and move the streams on past it."""
    layer = _Layer(runner, config, batches, result, index)
    result.opening.append(runner.opening_kv())
    for unit in UNITS:
        errors = layer.errors(unit, result.menu.kinds, scratch)
        result.units.append(
            Measured(
                layer=index,
                unit=unit.name,
                multiply_adds=sum(weight.numel() for weight in weights_of(runner.layer, unit)),
                strength=layer.strengths[unit.name],
                compensated=True,
                errors={**errors, FP32: 0.0},
            )
        )


class _Layer:
    """The loaded layer, smoothed, with what its units read; the streams have moved on past it."""

    def __init__(
        self,
        runner: LayerRunner,
        config: DecoderConfig,
        batches: Sequence[Batch],
        result: Calibration,
        index: int,
    ) -> None:
        self._runner, self._config, self._result, self._index = runner, config, result, index
        self._judge = Judge(runner, batches)
        self._inputs, norms = run_and_catch(runner, batches)
        self._smoothing: dict[str, torch.Tensor | None] = {}
        self.strengths: dict[str, float | None] = {}
        for unit in UNITS:  # all of them before one is folded
            self._smoothing[unit.name], self.strengths[unit.name] = _smoothing(
                runner.layer, config, unit, self._inputs[unit.name], norms, result.menu
            )
        for unit in UNITS:
            scales = self._smoothing[unit.name]
            if scales is not None:
                _fold(runner.layer, config, unit, scales, layer_prefix(index), result.folds)
        runner.settle()
        self._judge.settle()

    def errors(
        self, unit: Unit, kinds: Sequence[str], scratch: Path | None = None
    ) -> dict[str, float]:
        """Round the unit's weights to these kinds, and measure what each loses; once for a unit.

        With ``scratch`` the rounded weights are kept there.
        """
        hessian = self._inputs.pop(unit.name).hessian
        smoothing = self._smoothing[unit.name]
        if smoothing is not None:
            each = torch.split(_per_input(self._config, unit, smoothing), weights.MAX_COMPENSATED)
            for square, scales in zip(hessian, each, strict=True):
                square /= torch.outer(scales, scales)
        inputs = weights.Inputs.of(hessian)
        del hessian
        weight = torch.cat(weights_of(self._runner.layer, unit))
        columns = weight.shape[1]
        arrays: dict[str, torch.Tensor] = {}
        # restored when its turn comes: each is as large as the weight
        tried: dict[str, tuple[Callable[[], torch.Tensor], Rounding]] = {}
        if INT8 in kinds or INT8X2 in kinds:
            channels = weights.quantize_channels(weight, inputs)
            arrays |= {"int8": channels.values, "int8_scales": channels.scales}
            tried[INT8] = channels.restored, weights.round_tokens
            tried[INT8X2] = channels.restored, weights.round_tokens_twice
        if INT4 in kinds:
            blocks = weights.quantize_blocks(weight, inputs, weights.BLOCKS4)
            arrays |= {"blocks": blocks.packed(), "block_scales": blocks.scales}
            tried[INT4] = partial(blocks.restored, columns), _rounding(INT4)
        del weight, inputs
        if scratch is not None:
            _keep(arrays, unit, self._index, scratch, self._result)
        return {
            kind: self._judge.error_of(unit, restored(), rounding)
            for kind, (restored, rounding) in tried.items()
            if kind in kinds
        }


def _smoothing(
    layer: Any,
    config: DecoderConfig,
    unit: Unit,
    seen: Seen,
    norms: torch.Tensor,
    menu: Menu,
) -> tuple[torch.Tensor | None, float | None]:
    """The scales, of all strengths, with the least error on a sample of tokens.

    Each token's error counts in relation to the stream it is added to, where it is; else to the
    output itself.
    """
    parts = [rows for part in weights_of(layer, unit) for rows in torch.split(part, weights.ROWS)]
    largest = _tied(config, unit, seen.largest).clamp(min=1e-8)
    columns = torch.stack([rows.abs().amax(dim=0) for rows in parts]).amax(dim=0)
    widest = _tied(config, unit, columns).clamp(min=1e-8)
    sample = torch.cat(seen.sample)
    step = -(-sum(map(len, parts)) // _SAMPLED_OUTPUTS)
    some = torch.cat([rows[::step] for rows in parts])
    wanted = sample @ some.T
    size = wanted.norm(dim=1) if unit.rows_of is None else norms
    size = size.clamp(min=1e-8)
    best: tuple[float, torch.Tensor | None, float | None] | None = None
    for strength in STRENGTHS:
        scales, each = None, torch.ones(sample.shape[1])
        if strength is not None:
            scales = largest**strength / widest ** (1 - strength)
            scales /= scales.log().mean().exp()
            scales.clamp_(1 / _SCALE_LIMIT, _SCALE_LIMIT)
            each = _per_input(config, unit, scales)
        rounded = _rounding(menu.kinds[0])(sample / each)
        change = rounded @ _rounded(menu.kinds[0], some * each).T - wanted
        error = float(((change.norm(dim=1) / size) ** 2).mean())
        if best is None or error < best[0]:
            best = (error, scales, strength)
    assert best is not None
    return best[1], best[2]


def _rounding(kind: str) -> Rounding:
    """How a kind rounds activations."""
    if kind == INT4:
        return partial(weights.round_token_blocks, block=weights.BLOCKS4.block)
    return weights.round_tokens


def _rounded(kind: str, weight: torch.Tensor) -> torch.Tensor:
    """What plain rounding to a kind leaves of a weight. (N, K)"""
    if kind == INT4:
        return weights.round_blocks(weight, weights.BLOCKS4).restored(weight.shape[1])
    return weights.round_channels(weight).restored()


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
    arrays: Mapping[str, torch.Tensor],
    unit: Unit,
    index: int,
    scratch: Path,
    result: Calibration,
) -> None:
    """Write rounded weights (N, ...) to the scratch folder, int8 in the graph's layout (K, N)."""
    count = len(unit.graph)
    for at, name in enumerate(unit.graph):
        path = scratch / f"{index}.{name}.npz"
        parts = {key: array.chunk(count)[at] for key, array in arrays.items()}
        if "int8" in parts:
            parts["int8"] = parts["int8"].T.contiguous()
        given: dict[str, Any] = {key: part.numpy() for key, part in parts.items()}
        np.savez(path, **given)
        result.stored[layer_prefix(index) + name] = path

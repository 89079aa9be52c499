"""How large a model's values and weights get, and whether half precision holds them.

In: the reference in float32, a layer at a time, and encoded worked solutions. Out: the largest
value of every place, and the powers of two that bring them into float16's range without changing a
score. A model's name decides nothing. The residual stream and its norms stay in float32 and are
limited by nothing. B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import torch

from prm_edge_runtime.encoding import Encoded

from .checkpoint import Tensors
from .heads import EMBEDDING
from .model_config import DecoderConfig
from .quantization.kinds import layer_prefix
from .quantization.layers import LayerRunner, StoredReference

LARGEST: Final = 65504.0  # of float16
# The texts do not show the largest value there will ever be: 2 bits are left free. Weights are
# all known, and need none.
HEADROOM: Final = 4.0
LIMIT: Final = LARGEST / HEADROOM
MOST_BITS: Final = 12  # of one fold; beyond, small values would fall below float16's smallest
# Of a typical weight, what rounding to float16 may take after a fold: three times what bfloat16
# takes (7e-4), and ten times what float16 does where nothing is too small for it
MOST_LOST: Final = 2.0**-9
SAMPLE: Final = 4096

STREAM: Final = "residual stream"  # float32
ATTENTION: Final = "output of o_proj"
MLP: Final = "output of down_proj"
VALUES: Final = "attention values"
PRODUCT: Final = "input of down_proj"
FIXED: Final = "fixed"  # what no linear can take up
PARTS: Final = (STREAM, ATTENTION, MLP, VALUES, PRODUCT, FIXED)
FOLDED: Final = (VALUES, PRODUCT, ATTENTION, MLP)
# what o_proj and down_proj make up for with larger weights
BEFORE: Final = {ATTENTION: VALUES, MLP: PRODUCT}
MOST: Final = {FIXED: 0, STREAM: 2**31}  # bits that a part may be folded by, where not MOST_BITS
# where a module of a layer reads (in) or gives (out) -> what it is part of; all others are fixed
PLACES: Final = {
    ("input_layernorm", "in"): STREAM,
    ("post_attention_layernorm", "in"): STREAM,
    ("self_attn.o_proj", "out"): ATTENTION,
    ("mlp.down_proj", "out"): MLP,
    ("self_attn.v_proj", "out"): VALUES,
    ("self_attn.o_proj", "in"): VALUES,
    ("mlp.up_proj", "out"): PRODUCT,
    ("mlp.down_proj", "in"): PRODUCT,
}
# Gemma's norms behind attention and MLP too, all of it float32
GEMMA_PLACES: Final = {
    ("post_attention_layernorm", "out"): STREAM,
    ("pre_feedforward_layernorm", "in"): STREAM,
    ("post_feedforward_layernorm", "in"): STREAM,
    ("post_feedforward_layernorm", "out"): STREAM,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Of one tensor, or of its rows that belong together: the largest magnitude, and a sample."""

    name: str
    part: str
    layer: int
    bias: bool
    largest: float
    sample: torch.Tensor


@dataclass(slots=True, kw_only=True, eq=False)
class Ranges:
    """(layer, part) -> largest magnitude; and of what is fixed, where it is that large."""

    largest: dict[tuple[int, str], float] = field(default_factory=dict)
    worst: dict[tuple[int, str], str] = field(default_factory=dict)
    weights: list[Weights] = field(default_factory=list)

    def add(self, layer: int, part: str, place: str, value: torch.Tensor) -> None:
        """Take notice of what was there."""
        found = float(value.abs().max()) if value.numel() else 0.0
        if not found <= self.largest.get((layer, part), -1.0):  # also what is not a number
            self.largest[layer, part] = found
            self.worst[layer, part] = place

    def add_weights(self, layer: int, part: str, name: str, value: torch.Tensor) -> None:
        """Take notice of a tensor, or of some rows of it, as it will be stored."""
        flat = value.detach().abs().flatten()
        step = max(1, len(flat) // SAMPLE) | 1  # odd: one that divides the rows sees one column
        self.weights.append(
            Weights(
                name=name,
                part=part,
                layer=layer,
                bias=name.endswith(".bias"),
                largest=float(flat.max()),
                sample=flat[::step].clone(),
            )
        )

    def of(self, part: str) -> dict[int, float]:
        """Layer -> largest magnitude of one part."""
        return {layer: size for (layer, name), size in self.largest.items() if name == part}


@contextmanager
def watched(
    layer: Any, index: int, config: DecoderConfig, ranges: Ranges, valid: torch.Tensor
) -> Iterator[None]:
    """Note how large everything gets that a layer of transformers holds between its modules.

    ``valid`` (B, T): where tokens are.
    """

    def catch(name: str, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        for side, value in (("in", inputs[0]), ("out", output)):
            for part, piece in _pieces(name, side, value[valid], config):
                ranges.add(index, part, f"{layer_prefix(index)}{name} ({side})", piece)

    handles = [
        module.register_forward_hook(partial(catch, name))
        for name, module in layer.named_modules()
        if name and not list(module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pieces(
    name: str, side: str, value: torch.Tensor, config: DecoderConfig, axis: int = -1
) -> list[tuple[str, torch.Tensor]]:
    """What a tensor is part of, features along ``axis``; Phi-3 packs several into one."""
    if config.fused and side == "out":
        packed = {
            "self_attn.qkv_proj": ((config.heads + config.kv_heads) * config.head_dim, VALUES),
            "mlp.gate_up_proj": (config.intermediate, PRODUCT),
        }
        if name in packed:
            at, part = packed[name]
            rest = value.shape[axis] - at
            return [(FIXED, value.narrow(axis, 0, at)), (part, value.narrow(axis, at, rest))]
    places = PLACES | GEMMA_PLACES if config.gemma else PLACES
    return [(places.get((name, side), FIXED), value)]


def note_weights(layer: Any, index: int, config: DecoderConfig, ranges: Ranges) -> None:
    """Note the weights of a layer that are stored in half precision: all but the stream's norms."""
    for name, parameter in layer.named_parameters():
        module, _, _ = name.rpartition(".")
        if module.endswith("layernorm"):
            continue
        for part, piece in _pieces(module, "out", parameter, config, axis=0):
            ranges.add_weights(index, part, f"{layer_prefix(index)}{name}", piece)


def _note_embedding(tensors: Tensors, config: DecoderConfig, ranges: Ranges) -> None:
    scale = config.embedding_scale
    for block in tensors.row_blocks(EMBEDDING, (config.vocab, config.hidden)):
        ranges.add_weights(-1, EMBEDDING, EMBEDDING, torch.from_numpy(block) * scale)


@torch.inference_mode()
def measure(
    runner: LayerRunner,
    config: DecoderConfig,
    tensors: Tensors,
    records: Sequence[Encoded],
    n_calibration: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Ranges, StoredReference]:
    """Pass records through every layer and watch the first ``n_calibration`` of them.

    Returns the ranges, and the reference's answers to the other records.

    Raises:
        CheckpointError: when a tensor is missing, has another shape or is not finite.
    """
    ranges = Ranges()
    _note_embedding(tensors, config, ranges)
    used, others = runner.batches(records[:n_calibration]), runner.batches(records[n_calibration:])
    for index in range(config.layers):
        runner.load(index)
        note_weights(runner.layer, index, config, ranges)
        for batch in used:
            with watched(runner.layer, index, config, ranges, batch.valid):
                batch.stream = runner.forward(batch.stream)
        for batch in others:
            batch.stream = runner.forward(batch.stream)
        progress(index + 1, config.layers)
    rest = records[n_calibration:]
    return ranges, StoredReference(rest, runner.outputs(others, rest))


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """Bits by which values are made smaller, exactly: of the embedding, and by part and layer.

    Attention values and down_proj's input are made up for by the next linear's weights; the
    embedding and what o_proj and down_proj give, by a multiplication in float32.
    """

    embedding: int = 0
    parts: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.embedding or any(self.parts.values()))

    def of(self, part: str, layer: int) -> int:
        """Bits of a part in a layer."""
        return self.parts.get(part, {}).get(layer, 0)

    def gain(self, weights: Weights) -> int:
        """The power of two by which a linear makes up for what was folded before it."""
        before = BEFORE.get(weights.part)
        return 0 if weights.bias or before is None else self.of(before, weights.layer)

    def power(self, weights: Weights) -> int:
        """The power of two that weights are multiplied with in all."""
        if weights.part == EMBEDDING:
            return -self.embedding
        return self.gain(weights) - self.of(weights.part, weights.layer)


def fold(ranges: Ranges) -> tuple[Folds, list[str], list[str]]:
    """The folds that float16 needs.

    -> folds, what it cannot hold all the same, and what a fold leaves too little of.
    """
    folds = Folds()
    for part in FOLDED:  # in this order: see BEFORE
        folds = replace(folds, parts={**folds.parts, part: _needed(ranges, folds, part)})
    folds = replace(folds, embedding=_needed(ranges, folds, EMBEDDING).get(-1, 0))
    beyond = [
        f"{ranges.worst[layer, part]} reaches {size:.3g}"
        for (layer, part), size in sorted(ranges.largest.items(), key=lambda item: -item[1])
        if _bits(size, LIMIT) > MOST.get(part, MOST_BITS)
    ]
    beyond += [
        f"{weights.name} holds {weights.largest:.3g}"
        for weights in sorted(ranges.weights, key=lambda one: -one.largest)
        if _bits(weights.largest * 2.0 ** folds.gain(weights), LARGEST)
        > MOST.get(weights.part, MOST_BITS)
    ]
    return folds, beyond, [text for weights in ranges.weights if (text := _faint(weights, folds))]


def _needed(ranges: Ranges, folds: Folds, part: str) -> dict[int, int]:
    """Layer -> bits by which a part must become smaller."""
    bits = {layer: _bits(size, LIMIT) for layer, size in ranges.of(part).items()}
    for weights in ranges.weights:
        if weights.part == part:
            size = weights.largest * 2.0 ** folds.gain(weights)
            bits[weights.layer] = max(bits.get(weights.layer, 0), _bits(size, LARGEST))
    return {layer: count for layer, count in bits.items() if count}


def _faint(weights: Weights, folds: Folds) -> str | None:
    """What is wrong with weights that a fold brings below float16's smallest; None if nothing."""
    power = folds.power(weights)
    sample = weights.sample[weights.sample > 0] * 2.0**power
    if power >= 0 or weights.bias or not len(sample):
        return None
    lost = float((sample.half().float() - sample).abs().median() / sample.median())
    if lost <= MOST_LOST:
        return None
    return f"folded by 2^{power}, {weights.name} would lose {lost:.1%} of a typical weight"


def _bits(size: float, limit: float) -> int:
    if not math.isfinite(size):
        return 2 * MOST_BITS
    return max(0, math.ceil(math.log2(size / limit))) if size > 0 else 0

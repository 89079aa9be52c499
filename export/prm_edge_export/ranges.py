"""How large the values of a model get, and whether half precision holds them.

In: the reference in float32, a layer at a time, and encoded worked solutions. Out: the largest
value of every place, and the powers of two that bring them into float16's range without changing a
score. A model's name decides nothing. B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch

from prm_edge_runtime.encoding import Encoded

from .model_config import DecoderConfig
from .quantization.kinds import layer_prefix
from .quantization.layers import LayerRunner, StoredReference

LARGEST: Final = 65504.0  # of float16
# The texts do not show the largest value there will ever be: 2 bits are left free.
HEADROOM: Final = 4.0
LIMIT: Final = LARGEST / HEADROOM
MOST_BITS: Final = 12  # of one fold; beyond, small values would fall below float16's smallest
# Gemma's norms follow what its blocks add, so that nothing in it can be folded the same way.
FOLDED_TYPES: Final = ("llama", "mistral", "phi3", "qwen2", "qwen3")

STREAM: Final = "residual stream"
VALUES: Final = "attention values"
PRODUCT: Final = "input of down_proj"
FIXED: Final = "fixed"  # what no linear can take up
# where a module of a layer reads (in) or gives (out) -> what it is part of; all others are fixed
PLACES: Final = {
    ("input_layernorm", "in"): STREAM,
    ("post_attention_layernorm", "in"): STREAM,
    ("self_attn.o_proj", "out"): STREAM,
    ("mlp.down_proj", "out"): STREAM,
    ("self_attn.v_proj", "out"): VALUES,
    ("self_attn.o_proj", "in"): VALUES,
    ("mlp.up_proj", "out"): PRODUCT,
    ("mlp.down_proj", "in"): PRODUCT,
}


@dataclass(slots=True, kw_only=True, eq=False)
class Ranges:
    """(layer, part) -> largest magnitude; and of what is fixed, where it is that large."""

    largest: dict[tuple[int, str], float] = field(default_factory=dict)
    worst: dict[tuple[int, str], str] = field(default_factory=dict)

    def add(self, layer: int, part: str, place: str, value: torch.Tensor) -> None:
        """Take notice of what was there."""
        found = float(value.abs().max()) if value.numel() else 0.0
        if not found <= self.largest.get((layer, part), -1.0):  # also what is not a number
            self.largest[layer, part] = found
            self.worst[layer, part] = place

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
    handles.append(
        layer.register_forward_hook(
            lambda module, inputs, output: ranges.add(
                index,
                STREAM if config.model_type in FOLDED_TYPES else FIXED,
                f"layer {index}",
                (output[0] if isinstance(output, tuple) else output)[valid],
            )
        )
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pieces(
    name: str, side: str, value: torch.Tensor, config: DecoderConfig
) -> list[tuple[str, torch.Tensor]]:
    """What a tensor is part of; Phi-3 packs several into one."""
    foldable = config.model_type in FOLDED_TYPES
    if foldable and config.fused and side == "out":
        if name == "self_attn.qkv_proj":
            at = (config.heads + config.kv_heads) * config.head_dim
            return [(FIXED, value[..., :at]), (VALUES, value[..., at:])]
        if name == "mlp.gate_up_proj":
            at = config.intermediate
            return [(FIXED, value[..., :at]), (PRODUCT, value[..., at:])]
    return [(PLACES.get((name, side), FIXED) if foldable else FIXED, value)]


@torch.inference_mode()
def measure(
    runner: LayerRunner,
    config: DecoderConfig,
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
    used, others = runner.batches(records[:n_calibration]), runner.batches(records[n_calibration:])
    for index in range(config.layers):
        runner.load(index)
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
    """Bits by which values are made smaller: exact in every format, and taken up by linears.

    ``stream``: everywhere. ``values`` and ``products``: by layer, only where there are any.
    """

    stream: int = 0
    values: Mapping[int, int] = field(default_factory=dict)
    products: Mapping[int, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.stream or self.values or self.products)


def fold(ranges: Ranges) -> tuple[Folds, list[str]]:
    """The folds that float16 needs, and what it cannot hold all the same."""
    stream = max(map(_bits, ranges.of(STREAM).values()), default=0)
    folds = Folds(
        stream=stream,
        values={layer: n for layer, size in ranges.of(VALUES).items() if (n := _bits(size))},
        products={layer: n for layer, size in ranges.of(PRODUCT).items() if (n := _bits(size))},
    )
    beyond = [
        f"{ranges.worst[layer, part]} reaches {size:.3g}"
        for (layer, part), size in sorted(ranges.largest.items(), key=lambda item: -item[1])
        if (_bits(size) > 0 if part == FIXED else _bits(size) > MOST_BITS)
    ]
    return folds, beyond


def _bits(size: float) -> int:
    if not math.isfinite(size):
        return MOST_BITS + 1
    return max(0, math.ceil(math.log2(size / LIMIT))) if size > 0 else 0

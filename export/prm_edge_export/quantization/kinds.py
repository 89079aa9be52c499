"""The linears of a decoder layer, and the kinds each of them can be.

A closed vocabulary, as data: which tensors a linear is made of, what it reads, what a kind costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

INT8: Final = "int8"  # per-token activations, per-channel weights
INT8X2: Final = "int8x2"  # the same, and what rounding left of the activations in a second pass
INT4: Final = "int4"  # 4-bit blocks of 128, activations in 8 bits
FP32: Final = "fp32"
# for CUDA: weights in 4-bit and in 8-bit blocks of 32, activations in half precision as they are
W4: Final = "w4"
W8: Final = "w8"
# Time of one multiply-add, that of int8 being 1: benchmarks/kinds.py, 384 tokens, one Zen 4 core,
# the linears of SmolLM2-135M and Qwen2.5-0.5B. From the cheapest to the dearest. 8-bit blocks of 32
# would cost 2.2 and lose more than int8x2 in every linear of the trained SmolLM2.
COSTS: Final = {INT8: 1.0, INT8X2: 2.05, FP32: 2.9}
# Of the multiply-adds: what keeps int8 worth its name, and its speed
LEAST_INT8: Final = 0.65  # in one pass where that is precise enough, else in one or two
MOST_FP32: Final = 0.05
KINDS: Final = tuple(COSTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """What a precision's linears can be, from the cheapest kind on.

    ``costs``: of one multiply-add, the first kind's being 1. ``least``: share of the multiply-adds
    that stay the first kind; ``most_fp32``: that may become float32. ``twice``: the kind that
    counts as the first too, where the first alone cannot be precise enough. ``drift``: the mean
    |dp| that a plan aims at, where it is not the precision's own (`search.py`).
    """

    precision: str
    costs: Mapping[str, float]
    cost_of: str
    least: float
    most_fp32: float
    twice: str | None = None
    drift: float | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """From the cheapest to the dearest."""
        return tuple(self.costs)


INT8_MENU: Final = Menu(
    precision=INT8,
    costs=COSTS,
    cost_of="its linears, where all of them in int8 cost 1",
    least=LEAST_INT8,
    most_fp32=MOST_FP32,
    twice=INT8X2,
)
# int4 is there for memory: costs are the bytes that a session holds of a weight, 0.64 and 1.05. A
# quarter of the weights in 8 bits makes a file of 0.33 times fp16's.
INT4_MENU: Final = Menu(
    precision=INT4,
    costs={INT4: 1.0, INT8X2: 1.64},
    cost_of="the memory of its linears, where all of them in int4 cost 1",
    least=0.75,
    most_fp32=0.0,
)
# Bytes of a weight with its share of a scale in 16 bits: 0.5625 and 1.0625. So few in 8 bits that a
# 7B still fits into 6 GB (see gpu_memory.py).
CUDA_MENU: Final = Menu(
    precision=INT4,
    costs={W4: 1.0, W8: 1.89},
    cost_of="the GPU memory of its linears, where all of them in 4 bits cost 1",
    least=0.85,
    most_fp32=0.0,
)
MENUS: Final = {menu.precision: menu for menu in (INT8_MENU, INT4_MENU)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Linears that read the same values and are planned together.

    ``parts``: modules of the layer, as its tensors are named. ``graph``: the graph's names for
    them, one per product. ``gain``: the norm before it, whose gain takes up the smoothing; else
    ``rows_of``: the part whose output rows do. ``before``: modules that give what they give
    whatever becomes of this unit.
    """

    name: str
    parts: tuple[str, ...]
    graph: tuple[str, ...]
    gain: str | None = None
    rows_of: str | None = None
    before: tuple[str, ...] = ()


UNITS: Final = (
    Unit(
        name="qkv",
        parts=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        graph=("self_attn.qkv_proj",),
        gain="input_layernorm",
    ),
    Unit(
        name="o",
        parts=("self_attn.o_proj",),
        graph=("self_attn.o_proj",),
        rows_of="self_attn.v_proj",
        before=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ),
    Unit(
        name="gate_up",
        parts=("mlp.gate_proj", "mlp.up_proj"),
        graph=("mlp.gate_proj", "mlp.up_proj"),
        gain="post_attention_layernorm",
        before=("self_attn",),
    ),
    Unit(
        name="down",
        parts=("mlp.down_proj",),
        graph=("mlp.down_proj",),
        rows_of="mlp.up_proj",
        before=("self_attn", "mlp.gate_proj", "mlp.up_proj"),
    ),
)


def layer_prefix(layer: int) -> str:
    """How the names of a layer's tensors begin."""
    return f"model.layers.{layer}."

"""The graph contract: tensor names, types and axes that exporter and engine share.

Axes: B rows, S new tokens, P cached tokens, T = P + S, N read positions, C logits,
K outputs of the head that names errors, G key/value heads, D head size, V vocabulary.

``decoder``: a causal model with its KV cache in and out, float32 or in half precision, the same for
all of it; where past and present are one buffer with room for more than T tokens, a run appends in
place (GroupQueryAttention's shared buffer).
``stateless``: a model that sees the
whole record at once and returns logits for every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FLOAT: Final = "tensor(float)"
FLOAT16: Final = "tensor(float16)"
BFLOAT16: Final = "tensor(bfloat16)"
INT64: Final = "tensor(int64)"
INT32: Final = "tensor(int32)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One graph input or output."""

    name: str
    type: str
    axes: tuple[str | int, ...]


INPUT_IDS: Final = Tensor(name="input_ids", type=INT64, axes=("B", "S"))
# Flat positions row * S + column at which logits are wanted, so that the final norm and the head
# run there and nowhere else.
READS: Final = Tensor(name="reads", type=INT64, axes=("N",))
# Index of each row's last real token, cached ones included (GroupQueryAttention's seqlens_k).
LAST_TOKEN: Final = Tensor(name="last_token", type=INT32, axes=("B",))
TOTAL_TOKENS: Final = Tensor(name="total_tokens", type=INT32, axes=())
LOGITS: Final = Tensor(name="logits", type=FLOAT, axes=("N", "C"))
ERROR_KINDS_NAME: Final = "error_kinds"

ATTENTION_MASK: Final = Tensor(name="attention_mask", type=INT64, axes=("B", "S"))
TOKEN_TYPE_IDS: Final = Tensor(name="token_type_ids", type=INT64, axes=("B", "S"))
POSITION_IDS: Final = Tensor(name="position_ids", type=INT64, axes=("B", "S"))
TOKEN_LOGITS: Final = Tensor(name="logits", type=FLOAT, axes=("B", "S", "C"))


def past_name(layer: int, part: str) -> str:
    """Name of a cache input; ``part`` is ``key`` or ``value``."""
    return f"past.{layer}.{part}"


def present_name(layer: int, part: str) -> str:
    """Name of a cache output; ``part`` is ``key`` or ``value``."""
    return f"present.{layer}.{part}"


# what keys and values may be: element type -> its number in ONNX, its bytes
CACHE_TYPES: Final = {FLOAT: (1, 4), FLOAT16: (10, 2), BFLOAT16: (16, 2)}


def decoder_inputs(
    layers: int, kv_heads: int, head_dim: int, cache_type: str = FLOAT
) -> tuple[Tensor, ...]:
    """Every input of a ``decoder`` graph, in order."""
    cache = tuple(
        Tensor(name=past_name(i, part), type=cache_type, axes=("B", kv_heads, "P", head_dim))
        for i in range(layers)
        for part in ("key", "value")
    )
    return (INPUT_IDS, READS, LAST_TOKEN, TOTAL_TOKENS, *cache)


def error_kinds(kinds: int) -> tuple[Tensor, ...]:
    """The output of a head that names errors; none for 0 kinds. Of the same rows as the logits."""
    return (Tensor(name=ERROR_KINDS_NAME, type=FLOAT, axes=("N", kinds)),) if kinds else ()


def decoder_outputs(
    layers: int, kv_heads: int, head_dim: int, cache_type: str = FLOAT, kinds: int = 0
) -> tuple[Tensor, ...]:
    """Every output of a ``decoder`` graph, in order."""
    cache = tuple(
        Tensor(name=present_name(i, part), type=cache_type, axes=("B", kv_heads, "T", head_dim))
        for i in range(layers)
        for part in ("key", "value")
    )
    return (LOGITS, *error_kinds(kinds), *cache)


STATELESS_REQUIRED: Final = (INPUT_IDS, ATTENTION_MASK)
STATELESS_OPTIONAL: Final = (TOKEN_TYPE_IDS, POSITION_IDS)

"""One normalised description of a decoder, read from a ``config.json`` that nobody trusts.

Only whitelisted keys are read, in the spellings of old transformers and of transformers 5.
Everything that could change the arithmetic is either represented here or refused by name.
A new Llama-like architecture is one row of :data:`ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError, UnsupportedError

from .rope import Rope, read_rope


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What distinguishes one Llama-like ``model_type`` from another.

    ``qkv_bias`` and ``o_bias``: True, False, or the config key that says. ``qk_norm``: an RMS
    norm over each head of query and key. ``sliding``: how its sliding window is configured, see
    :data:`_WINDOWS`. ``defaults``: values of transformers' own config class for keys that a
    config.json may leave out. ``fused``: query, key and value are one tensor, and so are gate and
    up. ``gemma``: norms add 1 to their gains and stand after attention and MLP too, embeddings are
    scaled by the root of the hidden size, scores may be capped. ``activation``: the config key
    that names it, and the only value.
    """

    qkv_bias: bool | str
    o_bias: bool | str
    mlp_bias: bool | str
    qk_norm: bool
    sliding: str
    defaults: Mapping[str, Any]
    fused: bool = False
    gemma: bool = False
    activation: tuple[str, str] = ("hidden_act", "silu")


ARCHITECTURES: Final[dict[str, Architecture]] = {
    "llama": Architecture(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        qk_norm=False,
        sliding="never",
        defaults={"rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 2048},
    ),
    "qwen2": Architecture(
        qkv_bias=True,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding="some layers",
        defaults={"rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 32768},
    ),
    "qwen3": Architecture(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias=False,
        qk_norm=True,
        sliding="some layers",
        defaults={
            "head_dim": 128,
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-6,
        },
    ),
    "mistral": Architecture(
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding="every layer",
        defaults={
            "hidden_act": "silu",
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
        },
    ),
    "phi3": Architecture(
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding="every layer",
        fused=True,
        defaults={"hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    ),
    "gemma2": Architecture(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias=False,
        qk_norm=False,
        sliding="every other layer",
        gemma=True,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        defaults={
            "attn_logit_softcapping": 50.0,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
        },
    ),
}
# null is a value of its own for these, and not the same as leaving the key out
NULL_MEANS: Final = frozenset(
    {"attn_logit_softcapping", "head_dim", "num_key_value_heads", "sliding_window"}
)

HEAD_DIM_MULTIPLE: Final = 16  # GroupQueryAttention with rotary embedding accepts no other
MAX_ROTARY: Final = 1 << 29  # numbers in the rotary tables: a million positions of 128 are 1 << 27
MAX_SIZE: Final = 1 << 24  # of any one dimension; a hostile config must not allocate terabytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A Llama-like decoder: sizes, epsilon, rotary embedding and which biases there are.

    ``window``: how many tokens each one attends to, itself included; None for all before it.
    ``full_layers``: the layers without it. ``scale``: of attention scores, None for the usual one;
    ``softcap``: the bound to which they are bent, None for none.
    """

    model_type: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope: Rope
    max_positions: int
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    window: int | None
    full_layers: tuple[int, ...] = ()
    fused: bool = False
    gemma: bool = False
    activation: str = "silu"
    scale: float | None = None
    softcap: float | None = None

    def layer_window(self, layer: int) -> int | None:
        """The window of one layer."""
        return None if layer in self.full_layers else self.window

    @property
    def attention_scale(self) -> float:
        """What attention scores are multiplied with."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied with."""
        return float(self.hidden**0.5) if self.gemma else 1.0

    @property
    def qkv_width(self) -> int:
        """Width of the packed query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Normalise a ``config.json``.

    Raises:
        CheckpointError: for a key that is missing, malformed or contradictory.
        UnsupportedError: for anything that is understood and not implemented, by name.
    """
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise UnsupportedError(
            f"model_type {model_type!r} has no native graph (supported: "
            f"{', '.join(sorted(ARCHITECTURES))}); BERT-like token classifiers export with "
            "--backend optimum"
        )
    arch = ARCHITECTURES[model_type]
    given = {k: v for k, v in config.items() if v is not None or k in NULL_MEANS}
    values = {k: v for k, v in {**arch.defaults, **given}.items() if v is not None}
    key, activation = arch.activation
    if values[key] != activation:
        raise UnsupportedError(f"{key} {values[key]!r} is not supported, only {activation!r}")
    if values.get("use_bidirectional_attention"):
        raise UnsupportedError(
            "use_bidirectional_attention is not supported, only causal attention"
        )
    heads = _size(values, "num_attention_heads")
    hidden = _size(values, "hidden_size")
    max_positions = _size(values, "max_position_embeddings")
    result = DecoderConfig(
        model_type=model_type,
        vocab=_size(values, "vocab_size"),
        hidden=hidden,
        intermediate=_size(values, "intermediate_size"),
        layers=_size(values, "num_hidden_layers"),
        heads=heads,
        kv_heads=_size(values, "num_key_value_heads", heads),
        head_dim=_size(values, "head_dim", hidden // heads),
        eps=_epsilon(values["rms_norm_eps"]),
        rope=read_rope(config),
        max_positions=max_positions,
        qkv_bias=_bias(arch.qkv_bias, values),
        o_bias=_bias(arch.o_bias, values),
        mlp_bias=_bias(arch.mlp_bias, values),
        qk_norm=arch.qk_norm,
        window=_WINDOWS[arch.sliding](values, model_type, max_positions),
        full_layers=_full_layers(values) if arch.sliding == "every other layer" else (),
        fused=arch.fused,
        gemma=arch.gemma,
        activation=activation,
        scale=_size(values, "query_pre_attn_scalar") ** -0.5 if arch.gemma else None,
        softcap=_positive(values, "attn_logit_softcapping") if _caps(arch, values) else None,
    )
    if arch.fused and result.rope.kind != "default":
        raise UnsupportedError(
            f"rope scaling {result.rope.kind!r} is not supported for {model_type}, only 'default'"
        )
    _check(result)
    return result


def _size(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_SIZE:
        raise CheckpointError(
            f"config.json: {key} must be a whole number from 1 to {MAX_SIZE}, got {value!r}"
        )
    return value


def _positive(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise CheckpointError(f"config.json: {key} must be a positive number, got {value!r}")
    return float(value)


def _caps(arch: Architecture, values: Mapping[str, Any]) -> bool:
    return arch.gemma and "attn_logit_softcapping" in values


def _epsilon(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise CheckpointError(f"config.json: rms_norm_eps must be in [0, 1), got {value!r}")
    return float(value)


def _bias(rule: bool | str, values: Mapping[str, Any]) -> bool:
    if isinstance(rule, bool):
        return rule
    value = values.get(rule, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {rule} must be true or false, got {value!r}")
    return value


def _check(config: DecoderConfig) -> None:
    if config.heads % config.kv_heads:
        raise CheckpointError(
            f"config.json: {config.heads} attention heads cannot share {config.kv_heads} "
            "key/value heads"
        )
    if config.head_dim * config.max_positions > MAX_ROTARY:
        raise CheckpointError(
            f"config.json: {config.max_positions} positions (max_position_embeddings) of head size "
            f"{config.head_dim} are more than any model has"
        )
    if config.head_dim % HEAD_DIM_MULTIPLE:
        raise UnsupportedError(
            f"a head size of {config.head_dim} is not supported: onnxruntime's attention needs "
            f"a multiple of {HEAD_DIM_MULTIPLE}"
        )


def _no_window(values: Mapping[str, Any], model_type: str, max_positions: int) -> None:
    """Llama has none, whatever its config.json carries."""


def _refused_window(values: Mapping[str, Any], model_type: str, max_positions: int) -> None:
    """Refuse a window that would ever cut; a window as long as the model's limit never does."""
    window = values.get("sliding_window") if values.get("use_sliding_window") else None
    kinds = values.get("layer_types") or []
    slides = bool(window) or any(kind != "full_attention" for kind in kinds)
    if slides and not (isinstance(window, int) and window >= max_positions):
        raise UnsupportedError(
            f"sliding-window attention (window {window}, layers {sorted(set(map(str, kinds)))}) "
            f"is not supported for {model_type}; only full attention is"
        )


def _full_layers(values: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers without a window: every second one where config.json does not say."""
    count = _size(values, "num_hidden_layers")
    kinds = values.get("layer_types")
    if kinds is None:
        return tuple(range(1, count, 2))
    if (
        not isinstance(kinds, list)
        or len(kinds) != count
        or any(kind not in ("full_attention", "sliding_attention") for kind in kinds)
    ):
        raise CheckpointError(
            f"config.json: layer_types must name full_attention or sliding_attention for each of "
            f"{count} layers, got {str(kinds)[:60]}"
        )
    return tuple(index for index, kind in enumerate(kinds) if kind == "full_attention")


def _some_window(values: Mapping[str, Any], model_type: str, max_positions: int) -> int | None:
    """Return the window of the layers that have one, or None when it never cuts."""
    window = _size(values, "sliding_window")
    return window if window < max_positions else None


def _same_window(values: Mapping[str, Any], model_type: str, max_positions: int) -> int | None:
    """Return the window of every layer, or None when it never cuts."""
    if values.get("layer_types"):
        raise UnsupportedError(
            f"config.json: layer_types is not known of {model_type}, whose layers are all alike"
        )
    if "sliding_window" not in values:
        return None
    window = _size(values, "sliding_window")
    return window if window < max_positions else None


_WINDOWS: Final[dict[str, Callable[[Mapping[str, Any], str, int], int | None]]] = {
    "never": _no_window,
    "some layers": _refused_window,
    "every layer": _same_window,
    "every other layer": _some_window,
}

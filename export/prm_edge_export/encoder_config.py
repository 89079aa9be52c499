"""The configuration of an encoder, normalised: only whitelisted keys of ``config.json`` are read.

Everything that could change the arithmetic is represented here or refused by name. A new encoder
is one row of :data:`SCHEMAS` and one of :data:`prm_edge_export.encoders.ENCODERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError, UnsupportedError

from .checkpoint import Checkpoint
from .model_config import MAX_SIZE

ACTIVATIONS: Final = ("gelu", "gelu_new", "relu")
REQUIRED: Final = ...

# kind of value -> (whether it is one, how it is called)
_KINDS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "size": (
        lambda v: type(v) is int and 0 < v <= MAX_SIZE,
        f"a whole number from 1 to {MAX_SIZE}",
    ),
    "count": (lambda v: type(v) is int and 0 <= v <= MAX_SIZE, "a whole number from 0"),
    "bound": (lambda v: type(v) is int and -1 <= v <= MAX_SIZE, "a whole number from -1"),
    "eps": (lambda v: type(v) in (int, float) and 0 <= v < 1, "in [0, 1)"),
    "theta": (lambda v: type(v) in (int, float) and 0 < v < 1e12, "a positive number"),
    "flag": (lambda v: type(v) is bool, "true or false"),
    # the choices: anything else is understood, and not implemented
    "activation": (lambda v: v in ACTIVATIONS, f"only {', '.join(ACTIVATIONS)}"),
    "relative": (
        lambda v: isinstance(v, list) and set(map(str, v)) <= {"c2p", "p2c"},
        "only c2p and p2c",
    ),
    "norm": (lambda v: v in ("none", "layer_norm"), "only none, layer_norm"),
}
_CHOICES: Final = ("activation", "relative", "norm")

# key of config.json, which is transformers' own too -> (kind, transformers' default)
_TRUNK: Final[dict[str, tuple[str, Any]]] = {
    "vocab_size": ("size", REQUIRED),
    "hidden_size": ("size", REQUIRED),
    "intermediate_size": ("size", REQUIRED),
    "num_hidden_layers": ("size", REQUIRED),
    "num_attention_heads": ("size", REQUIRED),
}
_BERT: Final = {
    **_TRUNK,
    "max_position_embeddings": ("size", 512),
    "type_vocab_size": ("size", 2),
    "layer_norm_eps": ("eps", 1e-12),
    "hidden_act": ("activation", "gelu"),
}
_DEBERTA: Final = {
    **_TRUNK,
    "max_position_embeddings": ("size", 512),
    "type_vocab_size": ("count", 0),
    "layer_norm_eps": ("eps", 1e-7),
    "hidden_act": ("activation", "gelu"),
    "relative_attention": ("flag", False),
    "max_relative_positions": ("bound", -1),
    "position_biased_input": ("flag", True),
    "pos_att_type": ("relative", []),
}
# keys that would change the arithmetic -> the values under which they do not
_BERT_NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "pruned_heads": (None, {}),
}
_DEBERTA_NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "talking_head": (None, False),
    "conv_kernel_size": (None, 0),
    "embedding_size": (None,),
    "attention_head_size": (None,),
    "is_encoder_decoder": (None, False),
    "pruned_heads": (None, {}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The keys that are read, with kind and default, and those that must not change anything.

    ``read``: from what a config.json says to these keys. ``padding``: whether positions are
    counted from behind ``pad_token_id``.
    """

    keys: Mapping[str, tuple[str, Any]]
    neutral: Mapping[str, tuple[object, ...]]
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    padding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """A normalised configuration: ``values`` by config.json's keys; the longest record."""

    model_type: str
    values: Mapping[str, Any]
    vocab: int
    max_tokens: int


def read_encoder_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Normalise an encoder's ``config.json``; only whitelisted keys are read.

    Raises:
        UnsupportedError: for another ``model_type``, or a variation that is not implemented.
        CheckpointError: for keys that are missing, malformed or contradictory, all at once.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in SCHEMAS:
        raise UnsupportedError(
            f"model_type {model_type!r} with a classifier head is not supported; the optimum "
            f"backend exports {', '.join(sorted(SCHEMAS))} token classifiers"
        )
    row = SCHEMAS[model_type]
    odd = [
        f"{key} {config[key]!r}"
        for key, allowed in row.neutral.items()
        if config.get(key) not in allowed
    ]
    config = row.read(config)
    values = {
        key: default if config.get(key) is None else config[key]
        for key, (_, default) in row.keys.items()
    }
    wrong = []
    for key, (kind, _) in row.keys.items():
        value = None if values[key] is REQUIRED else values[key]
        good, named = _KINDS[kind]
        if good(value):
            continue
        if kind in _CHOICES:
            odd.append(f"{key} {value!r} ({named})")
        else:
            wrong.append(f"{key} must be {named}, got {value!r}")
    if odd:
        raise UnsupportedError(
            f"config.json of this {model_type} is not supported: {'; '.join(odd)}"
        )
    if not wrong:
        wrong = _contradictions(row, values)
    if wrong:
        raise CheckpointError(f"config.json: {'; '.join(wrong)}")
    before = values["pad_token_id"] + 1 if row.padding else 0
    return EncoderConfig(
        model_type=model_type,
        values=values,
        vocab=values["vocab_size"],
        max_tokens=values["max_position_embeddings"] - before,
    )


def _contradictions(row: Schema, values: Mapping[str, Any]) -> list[str]:
    wrong = []
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if hidden % heads:
        wrong.append(f"hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    if row.padding and values["pad_token_id"] + 1 >= values["max_position_embeddings"]:
        wrong.append(
            f"pad_token_id {values['pad_token_id']} leaves no position of the "
            f"{values['max_position_embeddings']}, which are counted from behind it"
        )
    return wrong


def limits(checkpoint: Checkpoint) -> tuple[int, int]:
    """Rows of an encoder's embedding, and its longest record in tokens.

    Raises:
        UnsupportedError, CheckpointError: as :func:`read_encoder_config`.
    """
    config = read_encoder_config(checkpoint.config)
    return config.vocab, config.max_tokens


# --- ModernBERT, whose keys transformers 5 spells in another way


def _read_modernbert(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of transformers 4 from either spelling.

    Raises:
        UnsupportedError: for layers in another order, or scaled rotary embeddings.
        CheckpointError: for malformed or contradictory ones.
    """
    result = dict(config)
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"config.json: rope_parameters must be an object, got {rope!r:.100}")
    for layers, key in (("full_attention", "global"), ("sliding_attention", "local")):
        given = rope.get(layers) or {}
        if not isinstance(given, dict) or given.get("rope_type", "default") != "default":
            raise UnsupportedError(
                f"config.json of this modernbert is not supported: rope_parameters {given!r:.100}"
            )
        _agree(result, f"{key}_rope_theta", given.get("rope_theta"))
    if config.get("rope_scaling"):
        raise UnsupportedError(
            "config.json of this modernbert is not supported: rope_scaling "
            f"{config['rope_scaling']!r:.100}"
        )
    if "local_rope_theta" in config and result.get("local_rope_theta") is None:
        result["local_rope_theta"] = result.get("global_rope_theta")  # as transformers 4 reads it
    kinds = config.get("layer_types")
    if kinds is not None:
        _agree(result, "global_attn_every_n_layers", _every(kinds))
    return result


def _agree(config: dict[str, Any], key: str, value: Any) -> None:
    if value is None:
        return
    if config.get(key) not in (None, value):
        raise CheckpointError(f"config.json gives {key} twice, as {config[key]!r} and as {value!r}")
    config[key] = value


def _every(kinds: Any) -> int:
    """The n of "every n-th layer sees everything, beginning with the first"."""
    names = list(kinds) if isinstance(kinds, list) else []
    for n in range(1, len(names) + 1):
        if names == [layer_type(i, n) for i in range(len(names))]:
            return n
    raise UnsupportedError(
        "config.json of this modernbert is not supported: layer_types whose full attention does "
        f"not come back every n-th layer from the first ({kinds!r:.100})"
    )


def layer_type(index: int, n: int) -> str:
    return "sliding_attention" if index % n else "full_attention"


def _read_deberta(config: Mapping[str, Any]) -> dict[str, Any]:
    kinds = config.get("pos_att_type")
    if isinstance(kinds, str):
        return {**config, "pos_att_type": [kind.strip() for kind in kinds.lower().split("|")]}
    return dict(config)


SCHEMAS: Final[dict[str, Schema]] = {
    "bert": Schema(keys=_BERT, neutral=_BERT_NEUTRAL),
    "roberta": Schema(
        keys={**_BERT, "pad_token_id": ("count", 1)}, neutral=_BERT_NEUTRAL, padding=True
    ),
    "modernbert": Schema(
        keys={
            **_TRUNK,
            "max_position_embeddings": ("size", 8192),
            "norm_eps": ("eps", 1e-5),
            "norm_bias": ("flag", False),
            "attention_bias": ("flag", False),
            "mlp_bias": ("flag", False),
            "classifier_bias": ("flag", False),
            "hidden_activation": ("activation", "gelu"),
            "classifier_activation": ("activation", "gelu"),
            "global_attn_every_n_layers": ("size", 3),
            "local_attention": ("size", 128),
            "global_rope_theta": ("theta", 160000.0),
            "local_rope_theta": ("theta", 10000.0),
        },
        neutral={"pruned_heads": (None, {})},
        read=_read_modernbert,
    ),
    "deberta": Schema(keys=_DEBERTA, neutral=_DEBERTA_NEUTRAL, read=_read_deberta),
    "deberta-v2": Schema(
        keys={
            **_DEBERTA,
            "position_buckets": ("bound", -1),
            "share_att_key": ("flag", False),
            "norm_rel_ebd": ("norm", "none"),
        },
        neutral=_DEBERTA_NEUTRAL,
        read=_read_deberta,
    ),
}

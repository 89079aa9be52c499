"""Encoders with a token-classification head: their configuration, and transformers' own as judge.

In: an open checkpoint. Out: a normalised configuration, and the torch model in float32, built from
whitelisted values and the checkpoint's own tensors, so that no key of ``config.json`` reaches
transformers. A new encoder is one row of :data:`ENCODERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from prm_edge_runtime.errors import CheckpointError, ProofError, UnsupportedError

from .checkpoint import Checkpoint, Tensors
from .heads import CLASSIFIER, Head, find_head
from .model_config import MAX_SIZE
from .reference import Reference, fill, refuse_unused

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
class Encoder:
    """One row: transformers' classes, the keys that are read, the tensors no score needs.

    ``spell``: keyword arguments for the installed transformers from the values. ``facts``: what
    the built modules hold, and what they should. ``padding``: whether positions are counted from
    behind ``pad_token_id``.
    """

    config_class: str
    model_class: str
    keys: Mapping[str, tuple[str, Any]]
    neutral: Mapping[str, tuple[object, ...]]
    unused: tuple[str, ...]  # prefixes; every other tensor must be used
    facts: Callable[[Any, Mapping[str, Any]], dict[str, tuple[object, object]]]
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: config
    spell: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    padding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """A normalised configuration: ``values`` by config.json's keys; the longest record."""

    model_type: str
    values: Mapping[str, Any] = field(default_factory=dict)
    vocab: int
    max_tokens: int


def read_encoder_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Normalise an encoder's ``config.json``; only whitelisted keys are read.

    Raises:
        UnsupportedError: for another ``model_type``, or a variation that is not implemented.
        CheckpointError: for keys that are missing, malformed or contradictory, all at once.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ENCODERS:
        raise UnsupportedError(
            f"model_type {model_type!r} with a classifier head is not supported; the optimum "
            f"backend exports {', '.join(sorted(ENCODERS))} token classifiers"
        )
    row = ENCODERS[model_type]
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


def _contradictions(row: Encoder, values: Mapping[str, Any]) -> list[str]:
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
        if names == [_layer_type(i, n) for i in range(len(names))]:
            return n
    raise UnsupportedError(
        "config.json of this modernbert is not supported: layer_types whose full attention does "
        f"not come back every n-th layer from the first ({kinds!r:.100})"
    )


def _layer_type(index: int, n: int) -> str:
    return "sliding_attention" if index % n else "full_attention"


def _spell_modernbert(values: Mapping[str, Any]) -> dict[str, Any]:
    import transformers

    spelled = dict(values)
    if int(transformers.__version__.split(".")[0]) < 5:
        return {**spelled, "reference_compile": False}
    n = spelled.pop("global_attn_every_n_layers")
    thetas = {
        layers: spelled.pop(key)
        for layers, key in (
            ("full_attention", "global_rope_theta"),
            ("sliding_attention", "local_rope_theta"),
        )
    }
    return {
        **spelled,
        "layer_types": [_layer_type(i, n) for i in range(values["num_hidden_layers"])],
        "rope_parameters": {
            layers: {"rope_type": "default", "rope_theta": theta}
            for layers, theta in thetas.items()
        },
    }


def _modernbert_facts(model: Any, values: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    body, n = model.base_model, values["global_attn_every_n_layers"]
    layers = list(body.layers)
    full = [index % n == 0 for index in range(len(layers))]
    half = values["local_attention"] // 2
    thetas = [values["global_rope_theta" if whole else "local_rope_theta"] for whole in full]
    size = values["hidden_size"] // values["num_attention_heads"]
    return {
        "layers": (len(layers), values["num_hidden_layers"]),
        "eps": (_epsilons(model), {values["norm_eps"]}),
        "windows": ([_half_window(x.attn) for x in layers], [None if f else half for f in full]),
        "activation": (_active(values["hidden_activation"], [x.mlp.act for x in layers]), True),
        "head's activation": (_active(values["classifier_activation"], [model.head.act]), True),
        "rotary frequencies": (
            all(
                torch.allclose(_inverse(body, x.attn, whole), _frequencies(theta, size), rtol=1e-6)
                for x, whole, theta in zip(layers, full, thetas, strict=True)
            ),
            True,
        ),
    }


def _half_window(attention: Any) -> int | None:
    """How far to each side a layer sees: transformers 5 counts the token itself, 4 does not."""
    if hasattr(attention, "local_attention"):
        left, _ = attention.local_attention
        return None if left < 0 else int(left)
    return None if attention.sliding_window is None else int(attention.sliding_window) - 1


def _inverse(body: Any, attention: Any, full: bool) -> torch.Tensor:
    if hasattr(attention, "rotary_emb"):
        inverse: torch.Tensor = attention.rotary_emb.inv_freq
        return inverse
    name = "full_attention" if full else "sliding_attention"
    found: torch.Tensor = getattr(body.rotary_emb, f"{name}_inv_freq")
    return found


def _frequencies(theta: float, size: int) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)


# --- what is compared


def _epsilons(model: Any) -> set[float]:
    norms = [m for m in model.modules() if type(m).__name__.endswith("LayerNorm")]
    return {float(getattr(n, "eps", getattr(n, "variance_epsilon", -1.0))) for n in norms}


def _active(name: str, functions: list[Any]) -> bool:
    probe = torch.linspace(-3, 3, 7)
    expected = {
        "gelu": torch.nn.functional.gelu,
        "gelu_new": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "relu": torch.relu,
    }[name](probe)
    return all(torch.allclose(function(probe), expected) for function in functions)


def _bert_facts(model: Any, values: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    body = model.base_model
    layers = list(body.encoder.layer)
    attention = [layer.attention.self for layer in layers]
    functions = [layer.intermediate.intermediate_act_fn for layer in layers]
    facts: dict[str, tuple[object, object]] = {
        "layers": (len(layers), values["num_hidden_layers"]),
        "attention heads": (
            {a.num_attention_heads for a in attention},
            {values["num_attention_heads"]},
        ),
        "layer_norm_eps": (_epsilons(model), {values["layer_norm_eps"]}),
        "causal": ({bool(getattr(a, "is_decoder", False)) for a in attention}, {False}),
        "activation": (_active(values["hidden_act"], functions), True),
    }
    if "pad_token_id" in values:
        facts["padding"] = (body.embeddings.padding_idx, values["pad_token_id"])
    return facts


def _deberta_facts(model: Any, values: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    facts = _bert_facts(model, values)
    body = model.base_model
    attention = [layer.attention.self for layer in body.encoder.layer]
    relative = values["relative_attention"]
    reach = values["max_relative_positions"]
    reach = reach if reach > 0 else values["max_position_embeddings"]
    facts |= {
        "relative attention": ({a.relative_attention for a in attention}, {relative}),
        "kinds of it": (
            {tuple(a.pos_att_type) for a in attention},
            {tuple(values["pos_att_type"])},
        ),
        "positions at the input": (
            body.embeddings.position_biased_input,
            values["position_biased_input"],
        ),
    }
    if relative:
        facts["relative positions"] = ({a.max_relative_positions for a in attention}, {reach})
        if "position_buckets" in values:
            buckets = {a.position_buckets for a in attention}
            facts["buckets"] = (buckets, {values["position_buckets"]})
            shared = {a.share_att_key for a in attention}
            facts["shared keys"] = (shared, {values["share_att_key"]})
    return facts


def _read_deberta(config: Mapping[str, Any]) -> dict[str, Any]:
    kinds = config.get("pos_att_type")
    if isinstance(kinds, str):
        return {**config, "pos_att_type": [kind.strip() for kind in kinds.lower().split("|")]}
    return dict(config)


ENCODERS: Final[dict[str, Encoder]] = {
    "bert": Encoder(
        config_class="BertConfig",
        model_class="BertForTokenClassification",
        keys=_BERT,
        neutral=_BERT_NEUTRAL,
        # the pooler, the pretraining heads, and a buffer that old versions saved
        unused=("bert.pooler.", "cls.", "bert.embeddings.position_ids"),
        facts=_bert_facts,
        spell=lambda values: {**values, "pad_token_id": None},
    ),
    "roberta": Encoder(
        config_class="RobertaConfig",
        model_class="RobertaForTokenClassification",
        keys={**_BERT, "pad_token_id": ("count", 1)},
        neutral=_BERT_NEUTRAL,
        unused=("roberta.pooler.", "lm_head.", "roberta.embeddings.position_ids"),
        facts=_bert_facts,
        padding=True,
    ),
    "modernbert": Encoder(
        config_class="ModernBertConfig",
        model_class="ModernBertForTokenClassification",
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
        unused=("decoder.",),
        facts=_modernbert_facts,
        read=_read_modernbert,
        spell=lambda values: {**_spell_modernbert(values), "pad_token_id": None},
    ),
    "deberta": Encoder(
        config_class="DebertaConfig",
        model_class="DebertaForTokenClassification",
        keys=_DEBERTA,
        neutral=_DEBERTA_NEUTRAL,
        unused=("lm_predictions.", "cls.", "pooler.", "deberta.embeddings.position_ids"),
        facts=_deberta_facts,
        read=_read_deberta,
    ),
    "deberta-v2": Encoder(
        config_class="DebertaV2Config",
        model_class="DebertaV2ForTokenClassification",
        keys={
            **_DEBERTA,
            "position_buckets": ("bound", -1),
            "share_att_key": ("flag", False),
            "norm_rel_ebd": ("norm", "none"),
        },
        neutral=_DEBERTA_NEUTRAL,
        unused=(
            *("lm_predictions.", "mask_predictions.", "cls.", "pooler."),
            "deberta.embeddings.position_ids",
        ),
        facts=_deberta_facts,
        read=_read_deberta,
    ),
}


def limits(checkpoint: Checkpoint) -> tuple[int, int]:
    """Rows of an encoder's embedding, and its longest record in tokens.

    Raises:
        UnsupportedError, CheckpointError: as :func:`read_encoder_config`.
    """
    config = read_encoder_config(checkpoint.config)
    return config.vocab, config.max_tokens


def load_encoder(checkpoint: Checkpoint) -> Reference:
    """Build transformers' own encoder in float32, as the reference of the proof.

    Raises:
        UnsupportedError, CheckpointError: as :func:`read_encoder_config`; also when tensors are
            missing or left over.
        ProofError: when the module does not hold what the normalised config says.
    """
    model = encoder_model(checkpoint)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(input_ids=ids).logits
        return result

    return Reference(model.base_model, logits)


def encoder_model(checkpoint: Checkpoint) -> Any:
    """The torch model, filled; see :func:`load_encoder`."""
    config = read_encoder_config(checkpoint.config)
    row = ENCODERS[config.model_type]
    labels = head_of_kind(checkpoint, CLASSIFIER).logits
    _check_shapes(config, labels, checkpoint.tensors)
    model = _build(config, labels)
    fill(model, checkpoint.tensors)
    refuse_unused(checkpoint.tensors, lambda name: name.startswith(row.unused))
    facts = row.facts(model, config.values)
    wrong = {name: pair for name, pair in facts.items() if pair[0] != pair[1]}
    if wrong:
        listed = "; ".join(f"{name}: transformers {a}, ours {b}" for name, (a, b) in wrong.items())
        raise ProofError(
            f"transformers built another model than config.json describes: {listed}; "
            "please report this with the config.json"
        )
    return model


def _build(config: EncoderConfig, labels: int) -> Any:
    import transformers

    row = ENCODERS[config.model_type]
    hf_config = getattr(transformers, row.config_class)(
        **row.spell(config.values), num_labels=labels, attn_implementation="eager"
    )
    return getattr(transformers, row.model_class)(hf_config).eval()


def _check_shapes(config: EncoderConfig, labels: int, tensors: Tensors) -> None:
    """Compare every shape before memory is taken: a config.json can claim terabytes.

    Raises:
        CheckpointError: when a tensor is missing or has another shape.
    """
    layers = config.values["num_hidden_layers"]
    if layers > len(tensors.info):
        raise CheckpointError(
            f"config.json claims {layers} layers, {tensors.root} has {len(tensors.info)} tensors"
        )
    with torch.device("meta"):
        model = _build(config, labels)
    for name, parameter in model.named_parameters():
        found = tensors.shape(name)
        if found != tuple(parameter.shape):
            raise CheckpointError(
                f"{tensors.where(name)} has shape {list(found)}, config.json implies "
                f"{list(parameter.shape)}"
            )


def head_of_kind(checkpoint: Checkpoint, kind: str) -> Head:
    """The checkpoint's head.

    Raises:
        UnsupportedError: when it is of another kind.
    """
    head = find_head(checkpoint.tensors)
    if head is None or head.kind != kind:
        found = "none" if head is None else head.kind
        raise UnsupportedError(
            f"a {checkpoint.config.get('model_type')} token classifier has a head of kind {kind}, "
            f"this checkpoint has {found}; optimum cannot export it"
        )
    return head

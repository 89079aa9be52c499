"""Encoders with a token-classification head: transformers' own, as reference and to be traced.

In: an open checkpoint. Out: the torch model in float32, built from the normalised configuration
and the checkpoint's own tensors, so that no key of ``config.json`` reaches transformers; what its
modules then hold is compared with ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from prm_edge_runtime.errors import CheckpointError, ProofError, UnsupportedError

from .checkpoint import Checkpoint, Tensors
from .encoder_config import EncoderConfig, layer_type, read_encoder_config
from .head_kinds import CLASSIFIER
from .heads import Head, find_head
from .reference import Reference, fill, refuse_unused


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """One row: transformers' classes, and the tensors that no score needs.

    ``facts``: what the built modules hold, and what they should. ``spell``: keyword arguments for
    the installed transformers from the values.
    """

    config_class: str
    model_class: str
    unused: tuple[str, ...]  # prefixes; every other tensor must be used
    facts: Callable[[Any, Mapping[str, Any]], dict[str, tuple[object, object]]]
    spell: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


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
        "layer_types": [layer_type(i, n) for i in range(values["num_hidden_layers"])],
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


ENCODERS: Final[dict[str, Encoder]] = {
    "bert": Encoder(
        config_class="BertConfig",
        model_class="BertForTokenClassification",
        # the pooler, the pretraining heads, and a buffer that old versions saved
        unused=("bert.pooler.", "cls.", "bert.embeddings.position_ids"),
        facts=_bert_facts,
        spell=lambda values: {**values, "pad_token_id": None},
    ),
    "roberta": Encoder(
        config_class="RobertaConfig",
        model_class="RobertaForTokenClassification",
        unused=("roberta.pooler.", "lm_head.", "roberta.embeddings.position_ids"),
        facts=_bert_facts,
    ),
    "modernbert": Encoder(
        config_class="ModernBertConfig",
        model_class="ModernBertForTokenClassification",
        unused=("decoder.",),
        facts=_modernbert_facts,
        spell=lambda values: {**_spell_modernbert(values), "pad_token_id": None},
    ),
    "deberta": Encoder(
        config_class="DebertaConfig",
        model_class="DebertaForTokenClassification",
        unused=("lm_predictions.", "cls.", "pooler.", "deberta.embeddings.position_ids"),
        facts=_deberta_facts,
    ),
    "deberta-v2": Encoder(
        config_class="DebertaV2Config",
        model_class="DebertaV2ForTokenClassification",
        unused=(
            *("lm_predictions.", "mask_predictions.", "cls.", "pooler."),
            "deberta.embeddings.position_ids",
        ),
        facts=_deberta_facts,
    ),
}


def load_encoder(checkpoint: Checkpoint) -> Reference:
    """Build transformers' own encoder in float32, as the reference of the proof.

    Raises:
        UnsupportedError, CheckpointError: as :func:`read_encoder_config`; also when tensors are
            missing or left over.
        ProofError: when the module does not hold what the normalised config says.
    """
    model = encoder_model(checkpoint)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
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

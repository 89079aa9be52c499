"""The reference: transformers' own modules in float32, built from whitelisted values only.

Decoders run a layer at a time (:mod:`.quantization.layers`), encoders whole.

The config object is made from the normalised config, never from the checkpoint's file, so that no
key of it can run code or be misread by one transformers version; what the modules then really
hold (epsilon, rotary frequencies, windows, activation) is compared with ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from prm_edge_runtime.errors import CheckpointError, ProofError

from .checkpoint import Tensors
from .heads import UNUSED_PREFIX, Head, Layer
from .model_config import DecoderConfig
from .rope import inverse_frequencies

# Tensors that checkpoints carry and the score never sees. Anything else unused is an error.
KNOWN_UNUSED: Final = ("lm_head.weight",)
KNOWN_UNUSED_ENDINGS: Final = (".rotary_emb.inv_freq",)

# model_type -> how transformers' classes for it begin
CLASSES: Final = {
    "gemma2": "Gemma2",
    "llama": "Llama",
    "mistral": "Mistral",
    "phi3": "Phi3",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}


class Reference:
    """A loaded reference model: ids and read positions in, logits out."""

    def __init__(self, backbone: Any, logits: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.backbone: Final = backbone
        self._logits = logits

    def run(self, ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run one record. (T,), (N,) -> (N, C)"""
        with torch.inference_mode():
            logits = self._logits(torch.from_numpy(ids)[None, :])  # (1, T, C)
            picked: NDArray[np.float32] = logits[0, torch.from_numpy(reads)].numpy()
        return picked


def unused_by_decoders(name: str) -> bool:
    """Whether a decoder's checkpoint may carry this tensor without any score needing it."""
    return (
        name in KNOWN_UNUSED
        or name.endswith(KNOWN_UNUSED_ENDINGS)
        or name.startswith(UNUSED_PREFIX)
    )


def refuse_unused(
    tensors: Tensors, known_unused: Callable[[str], bool] = unused_by_decoders
) -> list[str]:
    """Return the known-unused tensors; every other tensor must have been read.

    Raises:
        CheckpointError: naming the tensors that nothing used.
    """
    unused = [name for name in tensors if name not in tensors.used]
    known = [name for name in unused if known_unused(name)]
    unknown = sorted(set(unused) - set(known))
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors of the checkpoint would not be used, first "
            f"{', '.join(unknown[:4])}: this is not the architecture its config.json says"
        )
    return known


def load_classifier(config: DecoderConfig, head: Head, tensors: Tensors) -> Any:
    """Build transformers' own token classifier, which has a linear head, and fill it.

    Raises:
        CheckpointError: when tensors are missing or have another shape.
    """
    model = _class(config, "ForTokenClassification")(_hf_config(config, head)).eval()
    fill(model, tensors, optional=("score.bias",))
    return model


def load_layer_model(config: DecoderConfig, head: Head) -> Any:
    """Build transformers' module with one layer, unfilled, to run a model layer by layer.

    Raises:
        ProofError: when the module does not hold what the normalised config says.
    """
    single = replace(config, layers=1, vocab=1)
    backbone = _class(config, "Model")(_hf_config(single, head)).eval()
    check_same(backbone, single)
    if config.gemma and not hasattr(backbone.embed_tokens, "scalar_embed_scale"):
        # transformers 4 scales whatever a model is given by the root of this, every layer's stream
        backbone.config.hidden_size = 1
    return backbone


def _class(config: DecoderConfig, ending: str) -> Any:
    import transformers

    return getattr(transformers, CLASSES[config.model_type] + ending)


def _hf_config(config: DecoderConfig, head: Head) -> Any:
    return _class(config, "Config")(**_config_values(config, head))


def load_tops(head: Head, tensors: Tensors) -> list[torch.nn.Module]:
    """The head, and what names errors beside it, as modules, filled."""
    tops: list[torch.nn.Module] = [_load_affine(head.layers, tensors)]
    if head.naming is not None:
        tops.append(_load_affine((head.naming.layer,), tensors))
    return tops


def _load_affine(layers: Sequence[Layer], tensors: Tensors) -> torch.nn.Sequential:
    modules: list[torch.nn.Module] = []
    for layer in layers:
        linear = torch.nn.Linear(layer.inputs, layer.outputs, bias=layer.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(layer.read(tensors))
            bias = layer.read_bias(tensors)
            if bias is not None:
                linear.bias.copy_(bias)
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def fill(model: torch.nn.Module, tensors: Tensors, optional: tuple[str, ...] = ()) -> None:
    """Copy every parameter from the checkpoint; an ``optional`` one it lacks becomes zero.

    Raises:
        CheckpointError: when a tensor is missing or has another shape.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in optional and name not in tensors:
                parameter.zero_()
                continue
            parameter.copy_(tensors.torch(name, tuple(parameter.shape)))


def _config_values(config: DecoderConfig, head: Head) -> dict[str, Any]:
    """Keyword arguments for transformers' config class, in the installed version's spelling."""
    import transformers

    values: dict[str, Any] = {
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.eps,
        "max_position_embeddings": config.max_positions,
        "hidden_act": "silu",
        "num_labels": head.logits,
        "attn_implementation": "eager",
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if config.model_type in ("gemma2", "llama", "qwen3"):
        values["attention_bias"] = config.o_bias
    if config.model_type == "llama":
        values["mlp_bias"] = config.mlp_bias
    elif config.model_type in ("mistral", "phi3"):
        values["sliding_window"] = config.window
    elif config.model_type == "gemma2":
        del values["hidden_act"]
        values |= {
            "hidden_activation": config.activation,
            "attn_logit_softcapping": config.softcap,
            "query_pre_attn_scalar": round(config.attention_scale**-2),
            # a window that never cuts is as long as the longest text
            "sliding_window": config.window or config.max_positions,
            "layer_types": [
                "full_attention" if layer in config.full_layers else "sliding_attention"
                for layer in range(config.layers)
            ],
        }
    else:
        values["use_sliding_window"] = False
    scaling = {"rope_type": config.rope.kind, **config.rope.parameters}
    if int(transformers.__version__.split(".")[0]) >= 5:
        values["rope_parameters"] = {"rope_theta": config.rope.theta, **scaling}
    else:
        values["rope_theta"] = config.rope.theta
        values["rope_scaling"] = None if config.rope.kind == "default" else scaling
    return values


def check_same(backbone: Any, config: DecoderConfig) -> None:
    """Compare what the reference's modules really hold with the normalised config.

    Raises:
        ProofError: naming every value that differs.
    """
    inverse, attention = inverse_frequencies(config.rope, config.head_dim, config.max_positions)
    layers = list(backbone.layers)
    first = layers[0]
    norms = [
        backbone.norm,
        *(getattr(x, name) for x in layers for name in NORMS if hasattr(x, name)),
    ]
    head_norms = [getattr(x.self_attn, f"{p}_norm", None) for x in layers for p in "qk"]
    norms += [norm for norm in head_norms if norm is not None]
    pairs: dict[str, tuple[object, object]] = {
        "layers": (len(layers), config.layers),
        "head size": (first.self_attn.head_dim, config.head_dim),
        **_projections(first, config),
        "attention scale": (round(first.self_attn.scaling, 9), round(config.attention_scale, 9)),
        "cap of scores": (getattr(first.self_attn, "attn_logit_softcapping", None), config.softcap),
        "output bias": (first.self_attn.o_proj.bias is not None, config.o_bias),
        "rms_norm_eps": (
            {n.eps if config.gemma else n.variance_epsilon for n in norms},
            {config.eps},
        ),
        "norms": (len(norms), 1 + len(layers) * (4 if config.gemma else 2 + 2 * config.qk_norm)),
        "embedding scale": (
            float(getattr(backbone.embed_tokens, "scalar_embed_scale", config.embedding_scale)),
            config.embedding_scale,
        ),
        "activation": (
            float(_activation(first.mlp)(torch.ones(()))),
            float(ACTIVATIONS[config.activation](torch.ones(()))),
        ),
        "norms of heads": ({norm is not None for norm in head_norms}, {config.qk_norm}),
        "sliding windows": (
            _windows(backbone, layers),
            [config.layer_window(layer) for layer in range(config.layers)],
        ),
        "rotary factor": (float(backbone.rotary_emb.attention_scaling), float(attention)),
        "rotary frequencies": (
            bool(torch.allclose(backbone.rotary_emb.inv_freq, inverse, rtol=1e-6, atol=0)),
            True,
        ),
    }
    wrong = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if wrong:
        listed = "; ".join(f"{name}: transformers {a}, ours {b}" for name, (a, b) in wrong.items())
        raise ProofError(
            f"transformers built another model than config.json describes: {listed}; "
            "please report this with the config.json"
        )


NORMS: Final = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
ACTIVATIONS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "silu": torch.nn.functional.silu,
    "gelu_pytorch_tanh": torch.nn.GELU(approximate="tanh"),
}


def _activation(mlp: Any) -> Any:
    return getattr(mlp, "act_fn", None) or mlp.activation_fn


def _projections(layer: Any, config: DecoderConfig) -> dict[str, tuple[object, object]]:
    if config.fused:
        packed, gates = layer.self_attn.qkv_proj, layer.mlp.gate_up_proj
        return {
            "packed width": (packed.out_features, config.qkv_width),
            "gate width": (gates.out_features, 2 * config.intermediate),
            "query bias": (packed.bias is not None, config.qkv_bias),
            "mlp bias": (gates.bias is not None, config.mlp_bias),
        }
    attention = layer.self_attn
    return {
        "query width": (attention.q_proj.out_features, config.heads * config.head_dim),
        "key width": (attention.k_proj.out_features, config.kv_heads * config.head_dim),
        "query bias": (attention.q_proj.bias is not None, config.qkv_bias),
        "mlp bias": (layer.mlp.gate_proj.bias is not None, config.mlp_bias),
    }


def _windows(backbone: Any, layers: list[Any]) -> list[object]:
    """What each layer's window is: Mistral and Phi-3 ask the config, the others each layer."""
    if backbone.config.model_type in ("mistral", "phi3"):
        return [backbone.config.sliding_window] * len(layers)
    windows = [getattr(layer.self_attn, "sliding_window", None) for layer in layers]
    limit = backbone.config.max_position_embeddings
    return [None if window is None or window >= limit else window for window in windows]

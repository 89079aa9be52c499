"""Export token classifiers through optimum's ONNX exporter: encoders, and a second opinion.

In: an open checkpoint. Out: a ``stateless`` graph (:mod:`prm_edge_runtime.contract`), which sees a
record whole. The model is built here from whitelisted values and the checkpoint's own tensors, so
that no key of ``config.json`` reaches optimum or transformers. Imports optimum inside functions.
A new encoder is one row of :data:`ENCODERS`. Axes: B rows, S tokens, N read positions, C logits.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from onnx import numpy_helper

from prm_edge_runtime import ort
from prm_edge_runtime.errors import (
    CheckpointError,
    ExportDependencyError,
    ExportError,
    ProofError,
    UnsupportedError,
)

from .checkpoint import Checkpoint
from .graph import DATA_NAME
from .heads import CLASSIFIER, LINEAR, Head, find_head
from .model_config import ARCHITECTURES, MAX_SIZE, read_config
from .reference import Reference, check_same, fill, load_classifier, refuse_unused
from .weights import WeightFile

logger = logging.getLogger("prm_edge")

TASK: Final = "token-classification"
DECODERS: Final = ("qwen2",)  # what optimum-onnx 0.1.0 exports for the task; it refuses llama
# optimum's own check, of logits: finer than the proof's budget, which is for probabilities.
TOLERANCE: Final = 1e-4
# ... and on another shape than the one it traces (2 x 16), so that no size is baked in.
CHECKED_ROWS: Final = 1
CHECKED_TOKENS: Final = 23
ACTIVATIONS: Final = ("gelu", "gelu_new", "relu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """One row: transformers' classes, and the tensors that no score needs."""

    config_class: str
    model_class: str
    unused: tuple[str, ...]  # prefixes; every other tensor must be used


ENCODERS: Final[dict[str, Encoder]] = {
    "bert": Encoder(
        config_class="BertConfig",
        model_class="BertForTokenClassification",
        # the pooler, the pretraining heads, and a buffer that old versions saved
        unused=("bert.pooler.", "cls.", "bert.embeddings.position_ids"),
    ),
}
SUPPORTED: Final = " and ".join(sorted({*ENCODERS, *DECODERS}))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """A BERT-like encoder: sizes, epsilon and activation."""

    model_type: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    max_positions: int
    token_types: int
    eps: float
    activation: str


# our name -> (key of config.json, value where a config.json leaves it out: transformers' own)
_SIZES: Final[dict[str, tuple[str, int | None]]] = {
    "vocab": ("vocab_size", None),
    "hidden": ("hidden_size", None),
    "intermediate": ("intermediate_size", None),
    "layers": ("num_hidden_layers", None),
    "heads": ("num_attention_heads", None),
    "max_positions": ("max_position_embeddings", 512),
    "token_types": ("type_vocab_size", 2),
}
# keys that would change the arithmetic -> the values under which they do not
_NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "pruned_heads": (None, {}),
}


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
            f"backend exports {SUPPORTED} token classifiers"
        )
    odd = [
        f"{key} {config[key]!r}"
        for key, allowed in _NEUTRAL.items()
        if config.get(key) not in allowed
    ]
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        odd.append(f"hidden_act {activation!r} (only {', '.join(ACTIVATIONS)})")
    if odd:
        raise UnsupportedError(
            f"config.json of this {model_type} is not supported: {'; '.join(odd)}"
        )
    values = {name: config.get(key, default) for name, (key, default) in _SIZES.items()}
    eps = config.get("layer_norm_eps", 1e-12)
    wrong = [
        f"{_SIZES[name][0]} must be a whole number from 1 to {MAX_SIZE}, got {value!r}"
        for name, value in values.items()
        if type(value) is not int or not 0 < value <= MAX_SIZE
    ]
    if type(eps) not in (int, float) or not 0 <= eps < 1:
        wrong.append(f"layer_norm_eps must be in [0, 1), got {eps!r}")
    if not wrong and values["hidden"] % values["heads"]:
        wrong.append(
            f"hidden_size {values['hidden']} is no multiple of num_attention_heads "
            f"{values['heads']}"
        )
    if wrong:
        raise CheckpointError(f"config.json: {'; '.join(wrong)}")
    return EncoderConfig(model_type=model_type, eps=float(eps), activation=activation, **values)


def limits(checkpoint: Checkpoint) -> tuple[int, int]:
    """Rows of an encoder's embedding, and its longest record in tokens.

    Raises:
        UnsupportedError, CheckpointError: as :func:`read_encoder_config`.
    """
    config = read_encoder_config(checkpoint.config)
    return config.vocab, config.max_positions


def load_encoder(checkpoint: Checkpoint) -> Reference:
    """Build transformers' own encoder in float32, as the reference of the proof.

    Raises:
        UnsupportedError, CheckpointError: as :func:`read_encoder_config`; also when tensors are
            missing or left over.
        ProofError: when the module does not hold what the normalised config says.
    """
    model = _encoder_model(checkpoint)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(input_ids=ids).logits
        return result

    return Reference(model.base_model, logits)


def _encoder_model(checkpoint: Checkpoint) -> Any:
    import transformers

    config = read_encoder_config(checkpoint.config)
    row = ENCODERS[config.model_type]
    hf_config = getattr(transformers, row.config_class)(
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_positions,
        type_vocab_size=config.token_types,
        layer_norm_eps=config.eps,
        hidden_act=config.activation,
        num_labels=_head(checkpoint, CLASSIFIER).logits,
        attn_implementation="eager",
        pad_token_id=None,
    )
    model = getattr(transformers, row.model_class)(hf_config).eval()
    fill(model, checkpoint.tensors)
    refuse_unused(checkpoint.tensors, lambda name: name.startswith(row.unused))
    _check_encoder(model.base_model, config)
    return model


def _head(checkpoint: Checkpoint, kind: str) -> Head:
    head = find_head(checkpoint.tensors)
    if head is None or head.kind != kind:
        found = "none" if head is None else head.kind
        raise UnsupportedError(
            f"a {checkpoint.config.get('model_type')} token classifier has a head of kind {kind}, "
            f"this checkpoint has {found}; optimum cannot export it"
        )
    return head


def _check_encoder(body: Any, config: EncoderConfig) -> None:
    """Compare what the modules really hold with the normalised config; see ``check_same``."""
    probe = torch.linspace(-3, 3, 7)
    expected = {
        "gelu": torch.nn.functional.gelu,
        "gelu_new": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "relu": torch.relu,
    }[config.activation]
    layers = list(body.encoder.layer)
    norms = [module for module in body.modules() if isinstance(module, torch.nn.LayerNorm)]
    attention = [layer.attention.self for layer in layers]
    pairs: dict[str, tuple[object, object]] = {
        "layers": (len(layers), config.layers),
        "attention heads": ({a.num_attention_heads for a in attention}, {config.heads}),
        "layer_norm_eps": ({norm.eps for norm in norms}, {config.eps}),
        "causal": ({bool(getattr(a, "is_decoder", False)) for a in attention}, {False}),
        "activation": (
            {
                torch.allclose(layer.intermediate.intermediate_act_fn(probe), expected(probe))
                for layer in layers
            },
            {True},
        ),
    }
    wrong = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if wrong:
        listed = "; ".join(f"{name}: transformers {a}, ours {b}" for name, (a, b) in wrong.items())
        raise ProofError(
            f"transformers built another model than config.json describes: {listed}; "
            "please report this with the config.json"
        )


def _model(checkpoint: Checkpoint) -> Any:
    """The torch model that optimum traces, from whitelisted values and the checkpoint's tensors."""
    if checkpoint.config.get("model_type") not in DECODERS:
        return _encoder_model(checkpoint)
    head = _head(checkpoint, LINEAR)
    config = read_config(checkpoint.config)
    model = load_classifier(config, head, checkpoint.tensors)
    check_same(model.model, config)
    return model


def check_supported(model_type: object) -> None:
    """Say at once, before any work, what optimum exports.

    Raises:
        UnsupportedError: for another ``model_type``.
    """
    if model_type in ARCHITECTURES and model_type not in DECODERS:
        raise UnsupportedError(
            f"optimum-onnx does not export {model_type} as a token classifier, only {SUPPORTED}; "
            "use --backend native"
        )
    if model_type not in (*ENCODERS, *DECODERS):
        raise UnsupportedError(
            f"model_type {model_type!r} is not supported: the native backend exports "
            f"{' and '.join(sorted(ARCHITECTURES))}, the optimum backend {SUPPORTED} "
            "token classifiers"
        )


def export_stateless(checkpoint: Checkpoint, graph_path: Path) -> None:
    """Write the checkpoint's ``stateless`` graph, and ``model.onnx.data`` beside it.

    Raises:
        ExportDependencyError: when optimum-onnx is not installed or cannot be imported.
        UnsupportedError, CheckpointError: when the checkpoint cannot be exported this way.
        ProofError: when optimum's own validation finds a difference, or warns about anything.
        ExportError: when optimum fails.
    """
    model_type = checkpoint.config.get("model_type")
    check_supported(model_type)
    trace, validate, tasks = _load_optimum()
    model = _model(checkpoint)
    config = tasks.get_exporter_config_constructor(
        "onnx", model_type=model_type, task=TASK, library_name="transformers"
    )(model.config)
    with tempfile.TemporaryDirectory(prefix=".optimum-", dir=graph_path.parent) as folder:
        traced = Path(folder) / graph_path.name
        with _listening() as heard:
            try:
                _, outputs = trace(model, config, traced, device="cpu")
            except Exception as error:  # torch and optimum raise many unrelated types
                raise ExportError(
                    f"optimum cannot export this {model_type} checkpoint: {error!r}"
                ) from error
            try:
                _validate(validate, model, config, traced, outputs)
            except Exception as error:  # the same
                raise ProofError(
                    f"optimum's own validation of the exported graph failed: {error}"
                ) from error
        if heard:
            raise ProofError(f"optimum's export raised a warning: {'; '.join(heard)}")
        del model
        _move(traced, graph_path)


def _validate(validate: Any, model: Any, config: Any, traced: Path, outputs: list[str]) -> None:
    tokens = min(CHECKED_TOKENS, model.config.max_position_embeddings)
    validate(
        config,
        model,
        traced,
        outputs,
        atol=TOLERANCE,
        input_shapes={"batch_size": CHECKED_ROWS, "sequence_length": tokens},
        use_subprocess=False,
    )


def _load_optimum() -> tuple[Any, Any, Any]:
    """optimum's functions that trace and that validate, and its table of tasks."""
    ort.load_onnxruntime()  # first: optimum imports onnxruntime, whose telemetry must be off
    try:
        from optimum.exporters.onnx import export
        from optimum.exporters.onnx.convert import validate_model_outputs
        from optimum.exporters.tasks import TasksManager
    except ImportError as error:
        raise ExportDependencyError(
            f"the optimum backend cannot be loaded ({error}); it needs optimum-onnx 0.1.0 and "
            "transformers < 4.58, best in an environment of their own: "
            "pip install 'prm-edge[export,optimum]'"
        ) from error
    return export, validate_model_outputs, TasksManager


class _Collector(logging.Handler):
    """Keeps what optimum would print."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage().strip())


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect optimum's warnings in place of its own handlers, which print to stderr.

    Python warnings are dropped: torch deprecates the tracer that optimum 0.1.0 uses and warns of
    every size it cannot prove dynamic, which the validation and the proof check on real texts.
    """
    theirs = logging.getLogger("optimum")
    collector, handlers = _Collector(), theirs.handlers[:]
    theirs.handlers = [collector]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield collector.messages
    finally:
        theirs.handlers = handlers
        for message in collector.messages:
            logger.warning("optimum: %s", message)


def _move(traced: Path, graph_path: Path) -> None:
    """Rewrite the graph with its weights in ``model.onnx.data``, aligned so they can be mapped."""
    model = onnx.load(traced)
    with WeightFile(graph_path.with_name(DATA_NAME)) as weights:
        for tensor in model.graph.initializer:
            tensor.CopyFrom(weights.add(tensor.name, numpy_helper.to_array(tensor)))
    graph_path.write_bytes(model.SerializeToString(deterministic=True))

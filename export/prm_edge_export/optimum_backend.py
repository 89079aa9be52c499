"""Export token classifiers through optimum's ONNX exporter: encoders, and a second opinion.

In: an open checkpoint. Out: a ``stateless`` graph (:mod:`prm_edge_runtime.contract`), which sees a
record whole. The model is built here from whitelisted values and the checkpoint's own tensors, so
that no key of ``config.json`` reaches optimum or transformers. Imports optimum inside functions.
Axes: B rows, S tokens, N read positions, C logits.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import numpy_helper

from prm_edge_runtime import ort
from prm_edge_runtime.errors import (
    ExportDependencyError,
    ExportError,
    ProofError,
    UnsupportedError,
)

from .checkpoint import Checkpoint
from .encoders import ENCODERS, encoder_model, head_of_kind
from .graph import DATA_NAME
from .head_kinds import LINEAR
from .model_config import ARCHITECTURES, read_config
from .reference import check_same, load_classifier
from .weights import WeightFile

logger = logging.getLogger("prm_edge")

TASK: Final = "token-classification"
DECODERS: Final = ("qwen2",)  # what optimum-onnx 0.1.0 exports for the task; it refuses llama
# optimum's own check, of logits: finer than the proof's budget, which is for probabilities.
TOLERANCE: Final = 1e-4
# ... and on another shape than the one it traces (2 x 16), so that no size is baked in.
CHECKED_ROWS: Final = 1
CHECKED_TOKENS: Final = 23
SUPPORTED: Final = ", ".join(sorted({*ENCODERS, *DECODERS}))


def _model(checkpoint: Checkpoint) -> Any:
    """The torch model that optimum traces, from whitelisted values and the checkpoint's tensors."""
    if checkpoint.config.get("model_type") not in DECODERS:
        return encoder_model(checkpoint)
    head = head_of_kind(checkpoint, LINEAR)
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

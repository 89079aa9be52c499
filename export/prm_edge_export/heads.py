"""The heads that sit on a decoder's final norm: which tensors they are, and their graph.

A head is float32 always. Shapes: N read positions, H hidden size, C logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from prm_edge_runtime.errors import CheckpointError

from .checkpoint import Tensors

LINEAR: Final = "linear"
MLP: Final = "mlp"
VALUE: Final = "value"  # one number, TRL's ValueHead
ROWS: Final = "rows"  # rows of the vocabulary's output layer
CLASSIFIER: Final = "classifier"  # an encoder's; the optimum backend alone exports it

OUTPUT: Final = "lm_head.weight"
EMBEDDING: Final = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One affine layer: tensor names and sizes; ``bias`` is None when the checkpoint has none.

    ``rows``: the rows of the weight that are the layer, in this order; None for all of them.
    """

    weight: str
    bias: str | None
    inputs: int
    outputs: int
    rows: tuple[int, ...] | None = None

    def read(self, tensors: Tensors) -> torch.Tensor:
        """The weight, float32 (outputs, inputs).

        Raises:
            CheckpointError: when it is missing, has another shape, or is not finite.
        """
        if self.rows is not None:
            weight: torch.Tensor = tensors.rows(self.weight, self.rows, self.inputs)
        else:
            weight = tensors.torch(self.weight, (self.outputs, self.inputs))
        return weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """``mlp``: two layers with ReLU between them. All others: one layer."""

    kind: str
    layers: tuple[Layer, ...]

    @property
    def logits(self) -> int:
        """C, the number of logits per read position."""
        return self.layers[-1].outputs


def find_head(tensors: Tensors) -> Head | None:
    """Recognise the head by its tensor names; None when there is none that is known.

    Raises:
        CheckpointError: when the tensors of a head do not fit each other.
    """
    names = {name for name in tensors if name.startswith(("score.", "classifier.", "v_head."))}
    if names == {"classifier.weight", "classifier.bias"}:
        return Head(kind=CLASSIFIER, layers=(_layer(tensors, "classifier"),))
    if names in ({"score.weight"}, {"score.weight", "score.bias"}):
        return Head(kind=LINEAR, layers=(_layer(tensors, "score"),))
    if names == {"score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"}:
        first, second = _layer(tensors, "score.0"), _layer(tensors, "score.2")
        if first.outputs != second.inputs:
            raise CheckpointError(
                f"score.0.weight gives {first.outputs} values, score.2.weight takes "
                f"{second.inputs}; the checkpoint is damaged"
            )
        return Head(kind=MLP, layers=(first, second))
    if names == {"v_head.summary.weight", "v_head.summary.bias"}:
        value = _layer(tensors, "v_head.summary")
        if value.outputs != 1:
            raise CheckpointError(
                f"v_head.summary.weight gives {value.outputs} values, a value head gives 1"
            )
        return Head(kind=VALUE, layers=(value,))
    return None


def vocabulary_rows(tensors: Tensors, rows: tuple[int, ...], tied: bool) -> Head:
    """The head of a language model that answers with one of a few tokens.

    ``tied``: whether config.json says that the output layer is the embedding.

    Raises:
        CheckpointError: when it has no output layer, two that differ, or lacks a row.
    """
    weight = EMBEDDING if tied and OUTPUT not in tensors else OUTPUT
    shape = tensors.shape(weight)
    if len(shape) != 2 or not all(0 <= row < shape[0] for row in rows):
        raise CheckpointError(
            f"{tensors.where(weight)} of shape {list(shape)} lacks one of the rows {list(rows)}, "
            "which the recipe reads; use the tokenizer the model was trained with"
        )
    layer = Layer(weight=weight, bias=None, inputs=shape[1], outputs=len(rows), rows=rows)
    if tied and weight == OUTPUT:
        embedding = tensors.rows(EMBEDDING, rows, shape[1])
        if not torch.equal(layer.read(tensors), embedding):
            raise CheckpointError(
                f"config.json ties {OUTPUT} to {EMBEDDING}, but the checkpoint has both and they "
                "differ; correct tie_word_embeddings"
            )
    return Head(kind=ROWS, layers=(layer,))


def _layer(tensors: Tensors, prefix: str) -> Layer:
    shape = tensors.shape(f"{prefix}.weight")
    if len(shape) != 2:
        where = tensors.where(f"{prefix}.weight")
        raise CheckpointError(f"{where} has shape {list(shape)}, expected rank 2")
    bias = f"{prefix}.bias"
    return Layer(
        weight=f"{prefix}.weight",
        bias=bias if bias in tensors else None,
        inputs=shape[1],
        outputs=shape[0],
    )

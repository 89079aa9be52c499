"""The heads that sit on a decoder's final norm: which tensors they are, and their graph.

A head is float32 always. Shapes: N read positions, H hidden size, C logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prm_edge_runtime.errors import CheckpointError

from .checkpoint import Tensors

LINEAR: Final = "linear"
MLP: Final = "mlp"
CLASSIFIER: Final = "classifier"  # an encoder's; the optimum backend alone exports it


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One affine layer: tensor names and sizes; ``bias`` is None when the checkpoint has none."""

    weight: str
    bias: str | None
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """``linear``, ``classifier``: one layer. ``mlp``: two layers with ReLU between them."""

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
    names = {name for name in tensors if name.startswith(("score.", "classifier."))}
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
    return None


def _layer(tensors: Tensors, prefix: str) -> Layer:
    shape = tensors.shape(f"{prefix}.weight")
    if len(shape) != 2:
        raise CheckpointError(f"tensor '{prefix}.weight' has shape {list(shape)}, expected rank 2")
    bias = f"{prefix}.bias"
    return Layer(
        weight=f"{prefix}.weight",
        bias=bias if bias in tensors else None,
        inputs=shape[1],
        outputs=shape[0],
    )

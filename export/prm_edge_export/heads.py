"""The heads that sit on a decoder's final norm: which tensors they are, and their graph.

A head is float32 always. Shapes: N read positions, H hidden size, C logits, K kinds of error, E
members.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from prm_edge_runtime.errors import CheckpointError

from .checkpoint import REWARD_NAME, Tensors
from .head_kinds import (
    CLASSES,
    CLASSIFIER,
    ENSEMBLE,
    LINEAR,
    MEAN_ROWS,
    MLP,
    ROWS,
    TRAJECTORY,
    VALUE,
)

OUTPUT: Final = "lm_head.weight"
EMBEDDING: Final = "model.embed_tokens.weight"
TILE: Final = 2  # rows that Llemma's output layer repeats
ENSEMBLE_LAYERS: Final = ("nn1", "nn2", "nn_out")
MEMBER_FOLDS: Final = ("members_of_one", "members")
# frozen copies that training compares with (ActPRM); no score needs them
UNUSED_PREFIX: Final = "score.reg_model."


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One affine layer: tensor names and sizes; ``bias`` is None when the checkpoint has none.

    ``rows``: the rows of the weight that are the layer, in this order; None for all of them.
    ``fold``: how the stored tensors become the layer, a key of :data:`FOLDS`. ``members``: E.
    """

    weight: str
    bias: str | None
    inputs: int
    outputs: int
    rows: tuple[int, ...] | None = None
    fold: str = "none"
    members: int = 1

    def read(self, tensors: Tensors) -> torch.Tensor:
        """The weight, float32 (outputs, inputs).

        Raises:
            CheckpointError: when it is missing, has another shape, or is not finite.
        """
        return FOLDS[self.fold](self, tensors)

    def read_bias(self, tensors: Tensors) -> torch.Tensor | None:
        """The bias, float32 (outputs,); None when there is none.

        Raises:
            CheckpointError: as :meth:`read`.
        """
        if self.bias is None:
            return None
        shape: tuple[int, ...] = (self.outputs,)
        if self.fold in MEMBER_FOLDS:
            shape = (self.members, self.outputs // self.members)
        return tensors.torch(self.bias, shape).reshape(-1)


def _whole(layer: Layer, tensors: Tensors) -> torch.Tensor:
    if layer.rows is not None:
        return tensors.rows(layer.weight, layer.rows, layer.inputs)
    return tensors.torch(layer.weight, (layer.outputs, layer.inputs))


def _mean(layer: Layer, tensors: Tensors) -> torch.Tensor:
    """The mean over the vocabulary of its logits is one row, since few rows are repeated."""
    shape = tensors.shape(layer.weight)
    tile = tensors.torch(layer.weight, (shape[0], layer.inputs), range(TILE))
    return tile.double().mean(dim=0, keepdim=True).float()


def _members(layer: Layer, tensors: Tensors) -> torch.Tensor:
    blocks = _stacked(layer, tensors, layer.inputs // layer.members)
    whole = torch.zeros(layer.outputs, layer.inputs)
    for index, block in enumerate(blocks):
        rows, columns = block.shape
        whole[index * rows : (index + 1) * rows, index * columns : (index + 1) * columns] = block
    return whole


def _members_of_one(layer: Layer, tensors: Tensors) -> torch.Tensor:
    return torch.cat(list(_stacked(layer, tensors, layer.inputs)))


def _stacked(layer: Layer, tensors: Tensors, inputs: int) -> torch.Tensor:
    # stored as (E, in, out)
    shape = (layer.members, inputs, layer.outputs // layer.members)
    return tensors.torch(layer.weight, shape).transpose(1, 2)


# how the stored tensors become one matrix (outputs, inputs)
FOLDS: Final[dict[str, Callable[[Layer, Tensors], torch.Tensor]]] = {
    "none": _whole,
    "mean": _mean,  # the mean of a tiled output layer's rows
    "members_of_one": _members_of_one,  # members that read the same vector, below each other
    "members": _members,  # members that read a vector each, on the diagonal
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """A second head, which reads what the first reads: one output for each of ``names``."""

    layer: Layer
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """``mlp`` and ``ensemble``: layers with ReLU between them. All others: one layer.

    ``naming``: what names errors beside it, None where nothing does.
    """

    kind: str
    layers: tuple[Layer, ...]
    naming: Naming | None = None

    @property
    def logits(self) -> int:
        """C, the number of logits per read position."""
        return self.layers[-1].outputs

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the K outputs beside the logits; empty where nothing names errors."""
        return () if self.naming is None else self.naming.names


# a head of one layer, by the name of its tensors -> its kind, how many numbers it gives (None:
# any), whether it must have a bias
SINGLE: Final[dict[str, tuple[str, int | None, bool]]] = {
    "classifier": (CLASSIFIER, None, True),
    "score": (LINEAR, None, False),
    "v_head.summary": (VALUE, 1, True),
    "score_head": (CLASSES, 3, False),
    REWARD_NAME: (TRAJECTORY, 1, True),
}
PREFIXES: Final = ("score.", "classifier.", "v_head.", "score_head.", f"{REWARD_NAME}.")


def find_head(tensors: Tensors) -> Head | None:
    """Recognise the head by its tensor names; None when there is none that is known.

    Raises:
        CheckpointError: when the tensors of a head do not fit each other.
    """
    names = {n for n in tensors if n.startswith(PREFIXES) and not n.startswith(UNUSED_PREFIX)}
    for prefix, (kind, outputs, bias) in SINGLE.items():
        weight, both = {f"{prefix}.weight"}, {f"{prefix}.weight", f"{prefix}.bias"}
        if names != both and (bias or names != weight):
            continue
        layer = _layer(tensors, prefix)
        if outputs is not None and layer.outputs != outputs:
            raise CheckpointError(
                f"{layer.weight} gives {layer.outputs} values, a {kind} head gives {outputs}"
            )
        return Head(kind=kind, layers=(layer,))
    if names == {"score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"}:
        first, second = _layer(tensors, "score.0"), _layer(tensors, "score.2")
        if first.outputs != second.inputs:
            raise CheckpointError(
                f"score.0.weight gives {first.outputs} values, score.2.weight takes "
                f"{second.inputs}; the checkpoint is damaged"
            )
        return Head(kind=MLP, layers=(first, second))
    parts = [f"score.model.{part}" for part in ENSEMBLE_LAYERS]
    if names == {f"{part}.{what}" for part in parts for what in ("weight", "bias")}:
        return _ensemble(tensors, parts)
    return None if names else _tiled_output(tensors)


def _ensemble(tensors: Tensors, parts: list[str]) -> Head:
    """ActPRM's members side by side: the first layers read one vector, later ones their own."""
    layers: list[Layer] = []
    for part in parts:
        shape = tensors.shape(f"{part}.weight")
        if len(shape) != 3:
            raise CheckpointError(
                f"tensor '{part}.weight' has shape {list(shape)}, expected rank 3"
            )
        members, inputs, outputs = shape
        if layers and (layers[-1].members, layers[-1].outputs) != (members, members * inputs):
            raise CheckpointError(
                f"{layers[-1].weight} and {part}.weight do not fit each other; the checkpoint is "
                "damaged"
            )
        layers.append(
            Layer(
                weight=f"{part}.weight",
                bias=f"{part}.bias",
                inputs=members * inputs if layers else inputs,
                outputs=members * outputs,
                fold="members" if layers else "members_of_one",
                members=members,
            )
        )
    last = layers[-1]
    if last.outputs != last.members:
        raise CheckpointError(
            f"{last.weight} gives {last.outputs // last.members} values for each member, an "
            "ensemble head gives 1"
        )
    return Head(kind=ENSEMBLE, layers=tuple(layers))


def _tiled_output(tensors: Tensors) -> Head | None:
    """Llemma's head, which its authors stored as an output layer that repeats two rows."""
    shape = tensors.shape(OUTPUT) if OUTPUT in tensors else ()
    if len(shape) != 2 or shape[0] < 2 * TILE or shape[0] % TILE:
        return None
    # four rows first: an output layer is large, and any other model's are not alike
    first = tensors.rows(OUTPUT, tuple(range(2 * TILE)), shape[1])
    if not torch.equal(first[:TILE], first[TILE:]):
        return None
    whole = tensors.torch(OUTPUT, (shape[0], shape[1])).reshape(-1, TILE, shape[1])
    if not bool((whole == whole[0]).all()) or not bool(whole[0].any()):
        return None
    layer = Layer(weight=OUTPUT, bias=None, inputs=shape[1], outputs=1, fold="mean")
    return Head(kind=MEAN_ROWS, layers=(layer,))


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

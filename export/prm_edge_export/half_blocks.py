"""The graph in half precision with its linears in 4-bit and 8-bit blocks, for CUDA.

In: config, weights, folds, a calibration and its plan. Out: ``model.onnx`` and its data; and, from
such a graph, one in float32 with the weights that its blocks stand for, to check it with where
there is no GPU. K inputs, N outputs, G blocks, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from prm_edge_runtime import contract

from .checkpoint import Tensors
from .graph import DATA_NAME, GRAPH_NAME, MICROSOFT, DecoderBuilder, Weight
from .half import FORMATS, Format, HalfBuilder, WidenedBuilder
from .heads import Head
from .model_config import DecoderConfig
from .quantization.calibration import Calibration
from .quantization.choose import Plan
from .quantization.embedding import embed_in_int8
from .quantization.kinds import UNITS, layer_prefix
from .quantization.weight_only import FORMS
from .ranges import Folds
from .weights import WeightFile

_ROWS: Final = 4096  # of the embedding that are restored at once


def build_blocks(
    config: DecoderConfig,
    head: Head,
    tensors: Tensors,
    folder: Path,
    *,
    form: str,
    folds: Folds,
    calibration: Calibration,
    plan: Plan,
    max_tokens: int,
) -> None:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``folder``, over those of another plan.

    Raises:
        CheckpointError: when a tensor is missing or has another shape than the config implies.
        UnsupportedError: when a value is beyond the range of ``form``, a half precision.
    """
    kinds = {
        layer_prefix(layer) + name: kind
        for (layer, unit), kind in plan.items()
        for name in next(u.graph for u in UNITS if u.name == unit)
    }

    def builder(weights: WeightFile) -> DecoderBuilder:
        return BlocksBuilder(
            config, tensors, weights, FORMATS[form], folds, calibration.stored, kinds
        )

    _write(builder, head, folder, max_tokens)


def widen_blocks(
    config: DecoderConfig,
    head: Head,
    tensors: Tensors,
    packaged: Path,
    folder: Path,
    *,
    form: str,
    folds: Folds,
    max_tokens: int,
) -> None:
    """Write a float32 graph that does what the one in ``packaged`` does, from the bytes there."""
    blocks = PackagedBlocks(packaged)

    def builder(weights: WeightFile) -> DecoderBuilder:
        return WidenedBlocksBuilder(config, tensors, weights, FORMATS[form], folds, blocks)

    _write(builder, head, folder, max_tokens)


def _write(
    builder_of: Callable[[WeightFile], DecoderBuilder], head: Head, folder: Path, max_tokens: int
) -> None:
    for name in (GRAPH_NAME, DATA_NAME):
        (folder / name).unlink(missing_ok=True)
    with WeightFile(folder / DATA_NAME) as weights:
        builder = builder_of(weights)
        builder.build(head, max_tokens, lambda done, total: None)
        model = builder.model(head)
    (folder / GRAPH_NAME).write_bytes(model.SerializeToString(deterministic=True))


class BlocksBuilder(HalfBuilder):
    """Products of half precision activations with blocks; the embedding in int8 rows."""

    def __init__(
        self,
        config: DecoderConfig,
        tensors: Tensors,
        weights: WeightFile,
        form: Format,
        folds: Folds,
        stored: Mapping[str, Path],
        kinds: Mapping[str, str],
    ) -> None:
        super().__init__(config, tensors, weights, form, folds)
        self._files, self._kinds = stored, kinds

    def _embed(self) -> str:
        with self._in_float32():  # as the stream is
            return embed_in_int8(self)

    def _linear(self, name: str, source: str, weight: Weight, bias: Any = None) -> str:
        """As MatMulNBits: no zero points and no bias in it, which the fused kernel does without."""
        kind = self._kinds[name]
        form = FORMS[kind]
        with np.load(self._files[name]) as stored:
            blocks, scales = stored[kind], stored[f"{kind}_scales"]
            inputs = int(stored["inputs"])
        out = self.node(
            "MatMulNBits",
            [
                source,
                DecoderBuilder.constant(self, f"{name}.blocks", blocks),
                self.constant(f"{name}.scales", scales),
            ],
            [name],
            MICROSOFT,
            K=inputs,
            N=len(blocks),
            bits=form.bits,
            block_size=form.block,
        )
        if bias is None:
            return out
        return self.node("Add", [out, self.constant(f"{name}.bias", bias)], [f"{name}.biased"])


class WidenedBlocksBuilder(WidenedBuilder):
    """Plain float32 products with the weights that the blocks of a packaged graph stand for."""

    def __init__(
        self,
        config: DecoderConfig,
        tensors: Tensors,
        weights: WeightFile,
        form: Format,
        folds: Folds,
        packaged: PackagedBlocks,
    ) -> None:
        super().__init__(config, tensors, weights, form, folds)
        self._packaged = packaged

    def _embed(self) -> str:
        shape = (self.config.vocab, self.config.hidden)
        with self._in_float32():
            table = DecoderBuilder.rows(
                self, "embedding", shape, np.float32, self._packaged.embedding()
            )
            return self.node("Gather", [table, contract.INPUT_IDS.name], ["embedded"], axis=0)

    def _linear(self, name: str, source: str, weight: Weight, bias: Any = None) -> str:
        return super()._linear(name, source, lambda: self._packaged.weight(name), bias)


class PackagedBlocks:
    """The weights of a graph that :func:`build_blocks` wrote, read when they are needed."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / DATA_NAME
        graph = onnx.load(str(folder / GRAPH_NAME), load_external_data=False).graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._products = {
            node.output[0]: {a.name: a.i for a in node.attribute}
            for node in graph.node
            if node.op_type == "MatMulNBits"
        }

    def weight(self, name: str) -> NDArray[np.float32]:
        """What the blocks of a product stand for, in float32. -> (N, K)"""
        given = self._products[name]
        blocks, bits = self._array(f"{name}.blocks"), given["bits"]
        if bits == 4:  # two in a byte, the first one low
            blocks = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:2], -1)
        scales = self._array(f"{name}.scales").astype(np.float32)
        integers = blocks.astype(np.float32) - np.float32(1 << (bits - 1))
        wide = integers * scales.reshape(*blocks.shape[:2], 1)
        result: NDArray[np.float32] = wide.reshape(len(blocks), -1)[:, : given["K"]]
        return result

    def embedding(self) -> Iterator[NDArray[np.float32]]:
        """The rows of the embedding, some at a time. -> (rows, H)"""
        values, scales = self._array("embedding"), self._array("embedding.scales")
        for start in range(0, len(values), _ROWS):
            rows = slice(start, start + _ROWS)
            yield values[rows].astype(np.float32) * scales[rows]

    def _array(self, name: str) -> NDArray[Any]:
        tensor = self._tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        place = {entry.key: entry.value for entry in tensor.external_data}
        found: NDArray[Any] = np.memmap(
            self._data,
            dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type),
            mode="r",
            offset=int(place["offset"]),
            shape=tuple(tensor.dims),
        )
        return found

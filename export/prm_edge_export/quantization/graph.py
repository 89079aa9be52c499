"""The ``decoder`` graph with quantized linears: the float32 graph with other products.

In: a calibration and a plan. Out: ``model.onnx`` and its data. Axes: B rows, S new tokens,
M = B * S, K inputs, N outputs, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from prm_edge_runtime import contract

from ..checkpoint import Tensors
from ..graph import DATA_NAME, GRAPH_NAME, MICROSOFT, DecoderBuilder
from ..heads import EMBEDDING, Head
from ..model_config import DecoderConfig
from ..weights import WeightFile
from .calibration import Calibration
from .choose import Plan
from .kinds import BLOCKS, FP32, INT8, UNITS, layer_prefix
from .weights import BLOCK, LEVELS, round_blocks

_ZERO: Final = 128
_SMALLEST: Final = 1e-30  # of a scale: a row of zeros has one too
_ROWS_AT_ONCE: Final = 8192


def build_quantized(
    config: DecoderConfig,
    head: Head,
    tensors: Tensors,
    folder: Path,
    calibration: Calibration,
    plan: Plan,
    *,
    max_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``folder``, over those of another plan."""
    for name in (GRAPH_NAME, DATA_NAME):
        (folder / name).unlink(missing_ok=True)
    kinds = {
        layer_prefix(layer) + name: kind
        for (layer, unit), kind in plan.items()
        for name in next(u.graph for u in UNITS if u.name == unit)
    }
    with WeightFile(folder / DATA_NAME) as weights:
        builder = QuantizedBuilder(config, tensors, weights, calibration, kinds)
        builder.build(head, max_tokens, progress)
        model = builder.model(head)
    (folder / GRAPH_NAME).write_bytes(model.SerializeToString(deterministic=True))


class QuantizedBuilder(DecoderBuilder):
    """Reads folded tensors, and writes each linear in the kind its plan says."""

    def __init__(
        self,
        config: DecoderConfig,
        tensors: Tensors,
        weights: WeightFile,
        calibration: Calibration,
        kinds: Mapping[str, str],
    ) -> None:
        super().__init__(config, tensors, weights)
        self._calibration = calibration
        self._kinds = kinds
        self._rounded: dict[str, tuple[str, str]] = {}  # values -> as uint8, scales
        self._shared: set[str] = set()

    def read(self, name: str, *shape: int) -> NDArray[np.float32]:
        array = super().read(name, *shape)
        fold = self._calibration.folds.get(name)
        return array if fold is None else fold.apply(array)

    def _embed(self) -> str:
        """Rows of int8, each with its scale.

        ::

            input_ids -+-> Gather(int8 (V,H)) -> Cast -+
                       |                               * -> (B,S,H)
                       +-> Gather(scales (V,1)) -------+
        """
        table = super().read(EMBEDDING, self.config.vocab, self.config.hidden)
        values = np.empty(table.shape, dtype=np.int8)
        scales = np.empty((len(table), 1), dtype=np.float32)
        for start in range(0, len(table), _ROWS_AT_ONCE):  # no second table in float32
            rows = table[start : start + _ROWS_AT_ONCE]
            scale = np.maximum(abs(rows).max(axis=1, keepdims=True) / LEVELS, _SMALLEST)
            scales[start : start + _ROWS_AT_ONCE] = scale
            values[start : start + _ROWS_AT_ONCE] = np.rint(rows / scale)
        ids = contract.INPUT_IDS.name
        picked = self.node(
            "Gather", [self.constant("embedding", values), ids], ["embedded.int8"], axis=0
        )
        floats = self.node("Cast", [picked], ["embedded.float"], to=TensorProto.FLOAT)
        scale = self.node(
            "Gather", [self.constant("embedding.scales", scales), ids], ["embedded.scale"], axis=0
        )
        return self.node("Mul", [floats, scale], ["embedded"])

    def _linear(self, name: str, source: str, weight: NDArray[Any], bias: Any = None) -> str:
        kind = self._kinds[name]
        if kind == FP32:
            return super()._linear(name, source, weight, bias)
        out = {INT8: self._int8, BLOCKS: self._blocks}[kind](name, source, weight)
        if bias is None:
            return out
        return self.node("Add", [out, self.constant(f"{name}.bias", bias)], [f"{name}.biased"])

    def _int8(self, name: str, source: str, weight: NDArray[Any]) -> str:
        """Integers times integers, then both scales.

        ::

            source (B,S,K) -> rounded (M,K) -> MatMulIntegerToFloat -> (M,N) -> * -> (B,S,N)
                                  scale (M,1) ---------------------------------^
        """
        rounded, scale = self._rounded_rows(source, weight.shape[1])
        with np.load(self._calibration.channels[name]) as kept:
            values = self.constant(f"{name}.int8", kept["values"])
            scales = self.constant(f"{name}.scales", kept["scales"])
        one = self._once("one", np.array(1.0, dtype=np.float32))
        zero = self._once("zero", np.array(_ZERO, dtype=np.uint8))
        product = self.node(
            "MatMulIntegerToFloat",
            [rounded, values, one, scales, zero],
            [f"{name}.product"],
            MICROSOFT,
        )
        scaled = self.node("Mul", [product, scale], [f"{name}.scaled"])
        return self.node("Reshape", [scaled, self._token_axes()], [name])

    def _rounded_rows(self, source: str, inputs: int) -> tuple[str, str]:
        """uint8 around 128 with a scale per token, made once for all that read the same values.

        ::

            source (B,S,K) -> Reshape -> rows (M,K) -+-> QuantizeLinear(axis=0) -> (M,K)
                                                     |         ^ scale (M,)
                                                     +-> Abs -> max -> / 127 ----> (M,1)
        """
        if source in self._rounded:
            return self._rounded[source]
        flat = self._once(f"rows_of_{inputs}", np.array([-1, inputs], dtype=np.int64))
        rows = self.node("Reshape", [source, flat], [f"{source}.rows"])
        sizes = self.node("Abs", [rows], [f"{source}.sizes"])
        largest = self.node("ReduceMax", [sizes], [f"{source}.largest"], axes=[1], keepdims=1)
        step = self._once("step", np.array(1 / LEVELS, dtype=np.float32))
        raw = self.node("Mul", [largest, step], [f"{source}.raw_scale"])
        smallest = self._once("smallest", np.array(_SMALLEST, dtype=np.float32))
        scale = self.node("Max", [raw, smallest], [f"{source}.scale"])
        line = self._once("line", np.array([-1], dtype=np.int64))
        per_row = self.node("Reshape", [scale, line], [f"{source}.row_scale"])
        rounded = self.node(
            "QuantizeLinear", [rows, per_row, self._zeros(per_row)], [f"{source}.uint8"], axis=0
        )
        self._rounded[source] = (rounded, scale)
        return rounded, scale

    def _zeros(self, per_row: str) -> str:
        """A zero point for each row, as QuantizeLinear wants them; the same everywhere. -> (M,)"""
        if "zeros" not in self._shared:
            self._shared.add("zeros")
            shape = self.node("Shape", [per_row], ["rows.shape"])
            value = helper.make_tensor("zero", TensorProto.UINT8, [1], [_ZERO])
            self.node("ConstantOfShape", [shape], ["zeros"], value=value)
        return "zeros"

    def _token_axes(self) -> str:
        """The shape (B, S, -1)."""
        if "token_axes" not in self._shared:
            self._shared.add("token_axes")
            shape = self.node("Shape", [contract.INPUT_IDS.name], ["ids.shape"])
            rest = self.constant("rest", np.array([-1], dtype=np.int64))
            self.node("Concat", [shape, rest], ["token_axes"], axis=0)
        return "token_axes"

    def _once(self, name: str, array: NDArray[Any]) -> str:
        if name in self._shared:
            return name
        self._shared.add(name)
        return self.constant(name, array)

    def _blocks(self, name: str, source: str, weight: NDArray[Any]) -> str:
        """Weights in 8-bit blocks; the operator rounds activations in blocks too."""
        outputs, inputs = weight.shape
        blocks = round_blocks(torch.from_numpy(np.ascontiguousarray(weight)))
        return self.node(
            "MatMulNBits",
            [
                source,
                self.constant(f"{name}.blocks", blocks.values),
                self.constant(f"{name}.scales", blocks.scales.reshape(-1)),
            ],
            [name],
            MICROSOFT,
            K=inputs,
            N=outputs,
            bits=8,
            block_size=BLOCK,
            accuracy_level=4,
        )

"""The ``decoder`` graph with quantized linears: the float32 graph with other products.

In: a calibration and a plan. Out: ``model.onnx`` and its data. Axes: B rows, S new tokens,
M = B * S, K inputs, N outputs, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from prm_edge_runtime import contract

from ..checkpoint import Tensors
from ..graph import DATA_NAME, GRAPH_NAME, MICROSOFT, DecoderBuilder, Weight
from ..heads import Head
from ..model_config import DecoderConfig
from ..weights import WeightFile
from .calibration import Calibration
from .choose import Plan
from .embedding import SMALLEST, embed_in_int8
from .kinds import FP32, INT4, INT8, INT8X2, UNITS, layer_prefix
from .weights import BLOCKS4, LEVELS, SECOND

Stored = Mapping[str, NDArray[Any]]  # what calibration wrote of one product

_ZERO: Final = 128


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
        return embed_in_int8(self)

    def _linear(self, name: str, source: str, weight: Weight, bias: Any = None) -> str:
        kind = self._kinds[name]
        if kind == FP32:
            return super()._linear(name, source, weight, bias)
        emit = EMITTERS[kind]
        with np.load(self._calibration.stored[name]) as stored:
            out = emit(self, name, source, stored)
        if bias is None:
            return out
        return self.node("Add", [out, self.constant(f"{name}.bias", bias)], [f"{name}.biased"])

    def _int8(self, name: str, source: str, stored: Stored) -> str:
        """Integers times integers, then both scales.

        ::

            source (B,S,K) -> rounded (M,K) -> MatMulIntegerToFloat -> (M,N) -> * -> (B,S,N)
                                  scale (M,1) ---------------------------------^
        """
        rounded, scale = self._rounded_rows(source, len(stored["int8"]))
        product = self._product(name, rounded, stored)
        scaled = self.node("Mul", [product, scale], [f"{name}.scaled"])
        return self._by_token(name, scaled, len(stored["int8_scales"]))

    def _int8_twice(self, name: str, source: str, stored: Stored) -> str:
        """The same for what rounding left of the activations too, in one product of 2M rows.

        ::

            source -+-> rounded (M,K) ------------+-> Concat (2M,K) -> product -> Split -+-> + -> *
                    +-> error -> rounded (M,K) ---+                                      +-> /254
        """
        inputs = len(stored["int8"])
        _, scale = self._rounded_rows(source, inputs)
        product = self._product(name, self._rounded_twice(source, inputs), stored)
        first, second = f"{name}.first", f"{name}.second"
        self.node("Split", [product], [first, second], axis=0)
        finer = self._once("finer", np.array(1 / SECOND, dtype=np.float32))
        small = self.node("Mul", [second, finer], [f"{name}.small"])
        total = self.node("Add", [first, small], [f"{name}.total"])
        scaled = self.node("Mul", [total, scale], [f"{name}.scaled"])
        return self._by_token(name, scaled, len(stored["int8_scales"]))

    def _by_token(self, name: str, rows: str, outputs: int) -> str:
        """(M, N) -> (B, S, N), said outright: nothing infers the N of a Reshape to -1.

        GroupQueryAttention takes an N that is not known for 0, and gives outputs of that width;
        onnxruntime passes over the error that follows, onnxruntime-web does not open the graph.
        """
        axes = [*contract.INPUT_IDS.axes, outputs]
        self.shapes.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, axes))
        return self.node("Reshape", [rows, self._token_axes()], [name])

    def _product(self, name: str, rounded: str, stored: Stored) -> str:
        return self.node(
            "MatMulIntegerToFloat",
            [
                rounded,
                self.constant(f"{name}.int8", stored["int8"]),
                self._once("one", np.array(1.0, dtype=np.float32)),
                self.constant(f"{name}.scales", stored["int8_scales"]),
                self._once("zero", np.array(_ZERO, dtype=np.uint8)),
            ],
            [f"{name}.product"],
            MICROSOFT,
        )

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
        smallest = self._once("smallest", np.array(SMALLEST, dtype=np.float32))
        scale = self.node("Max", [raw, smallest], [f"{source}.scale"])
        line = self._once("line", np.array([-1], dtype=np.int64))
        per_row = self.node("Reshape", [scale, line], [f"{source}.row_scale"])
        rounded = self.node(
            "QuantizeLinear", [rows, per_row, self._zeros(per_row)], [f"{source}.uint8"], axis=0
        )
        self._rounded[source] = (rounded, scale)
        return rounded, scale

    def _rounded_twice(self, source: str, inputs: int) -> str:
        """Rounded values above their rounded errors, 254 times as fine. -> uint8 (2M, K)"""
        name = f"{source}.both"
        if name in self._shared:
            return name
        self._shared.add(name)
        rounded, _ = self._rounded_rows(source, inputs)
        per_row = f"{source}.row_scale"
        zeros = self._zeros(per_row)
        back = self.node(
            "DequantizeLinear", [rounded, per_row, zeros], [f"{source}.restored"], axis=0
        )
        error = self.node("Sub", [f"{source}.rows", back], [f"{source}.error"])
        finer = self._once("finer", np.array(1 / SECOND, dtype=np.float32))
        fine_scale = self.node("Mul", [per_row, finer], [f"{source}.fine_scale"])
        fine = self.node("QuantizeLinear", [error, fine_scale, zeros], [f"{source}.fine"], axis=0)
        return self.node("Concat", [rounded, fine], [name], axis=0)

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

    def _blocks4(self, name: str, source: str, stored: Stored) -> str:
        """Weights in blocks; the operator rounds activations to 8 bits in blocks too."""
        outputs = len(stored["blocks"])
        return self.node(
            "MatMulNBits",
            [
                source,
                self.constant(f"{name}.blocks", stored["blocks"]),
                self.constant(f"{name}.scales", stored["block_scales"].reshape(-1)),
            ],
            [name],
            MICROSOFT,
            K=len(stored["int8"]),
            N=outputs,
            bits=BLOCKS4.bits,
            block_size=BLOCKS4.block,
            accuracy_level=4,
        )


# kind -> how its product is written
EMITTERS: Final[dict[str, Callable[[QuantizedBuilder, str, str, Stored], str]]] = {
    INT8: QuantizedBuilder._int8,
    INT8X2: QuantizedBuilder._int8_twice,
    INT4: QuantizedBuilder._blocks4,
}

"""The ``decoder`` graph in half precision, for a GPU: float16 or bfloat16, its head in float32.

In: config, weights and folds. Out: ``model.onnx`` and its data; for bfloat16, of which the CPU has
no kernels, also a float32 graph that does the same roundings. H hidden, N read positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from prm_edge_runtime import contract
from prm_edge_runtime.errors import UnsupportedError

from .checkpoint import Tensors
from .graph import DATA_NAME, GRAPH_NAME, DecoderBuilder
from .heads import EMBEDDING, Head
from .model_config import DecoderConfig
from .quantization.kinds import layer_prefix
from .ranges import Folds
from .weights import WeightFile

FP16: Final = "fp16"
BF16: Final = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A half precision: numpy's and ONNX's name for it, and the type of the cache."""

    dtype: Any
    element: int
    cache: str


FORMATS: Final = {
    FP16: Format(dtype=np.float16, element=TensorProto.FLOAT16, cache=contract.FLOAT16),
    BF16: Format(dtype=ml_dtypes.bfloat16, element=TensorProto.BFLOAT16, cache=contract.BFLOAT16),
}
# what only moves values, and need not be rounded again
_MOVES: Final = ("Reshape", "Split", "Gather")


def build_half(
    config: DecoderConfig,
    head: Head,
    tensors: Tensors,
    folder: Path,
    *,
    precision: str,
    folds: Folds,
    max_tokens: int,
    widened: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``folder``.

    ``widened``: the same weights and roundings, computed in float32 and for the CPU.

    Raises:
        CheckpointError: when a tensor is missing or has another shape than the config implies.
        UnsupportedError: when a weight is beyond the precision's range.
    """
    kind = WidenedBuilder if widened else HalfBuilder
    with WeightFile(folder / DATA_NAME) as weights:
        builder = kind(config, tensors, weights, FORMATS[precision], folds)
        builder.build(head, max_tokens, progress)
        model = builder.model(head)
    (folder / GRAPH_NAME).write_bytes(model.SerializeToString(deterministic=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What a tensor's rows from ``first`` on are multiplied with: a power of two."""

    factor: float
    first: int = 0

    def apply(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply, exactly. (N,) or (N, K)"""
        scaled = array.copy()
        scaled[self.first :] *= np.float32(self.factor)
        result: NDArray[np.float32] = scaled
        return result


def scales(config: DecoderConfig, folds: Folds) -> dict[str, Scale]:
    """Which tensors take folds up.

    ::

        embedding / s      v / a -> attention -> o * a / s      up / b -> * gate -> down * b / s

    s, of the whole stream, goes out again in the norms: they divide by its size (and its eps is
    folded too, see :class:`HalfBuilder`).
    """
    found: dict[str, Scale] = {}
    stream = 2.0**-folds.stream
    if folds.stream:
        found[EMBEDDING] = Scale(factor=stream)
    q_and_k = (config.heads + config.kv_heads) * config.head_dim
    for layer in range(config.layers):
        attention, mlp = f"{layer_prefix(layer)}self_attn.", f"{layer_prefix(layer)}mlp."
        value, product = 2.0 ** folds.values.get(layer, 0), 2.0 ** folds.products.get(layer, 0)
        found[f"{attention}o_proj.weight"] = Scale(factor=value * stream)
        found[f"{mlp}down_proj.weight"] = Scale(factor=product * stream)
        for name in (f"{attention}o_proj.bias", f"{mlp}down_proj.bias"):
            found[name] = Scale(factor=stream)
        if config.fused:
            found[f"{attention}qkv_proj.weight"] = Scale(factor=1 / value, first=q_and_k)
            found[f"{mlp}gate_up_proj.weight"] = Scale(
                factor=1 / product, first=config.intermediate
            )
        for what in ("weight", "bias"):
            found[f"{attention}v_proj.{what}"] = Scale(factor=1 / value)
            found[f"{mlp}up_proj.{what}"] = Scale(factor=1 / product)
    return {name: scale for name, scale in found.items() if scale.factor != 1.0}


class HalfBuilder(DecoderBuilder):
    """Everything up to the read positions in half precision; final norm and head in float32."""

    def __init__(
        self,
        config: DecoderConfig,
        tensors: Tensors,
        weights: WeightFile,
        form: Format,
        folds: Folds,
    ) -> None:
        # the stream is smaller by 2^stream: so is its size, and eps is added to its square
        super().__init__(replace(config, eps=config.eps * 4.0**-folds.stream), tensors, weights)
        self._head_eps = config.eps
        self._form = form
        self._scales: Mapping[str, Scale] = scales(config, folds)
        self._half = True

    def read(self, name: str, *shape: int) -> NDArray[np.float32]:
        array = super().read(name, *shape)
        scale = self._scales.get(name)
        return array if scale is None else scale.apply(array)

    def constant(self, name: str, array: NDArray[Any]) -> str:
        return super().constant(name, self._stored(name, array))

    def rows(
        self, name: str, shape: tuple[int, ...], dtype: Any, blocks: Iterable[NDArray[Any]]
    ) -> str:
        scale = self._scales.get(EMBEDDING, Scale(factor=1.0))
        stored = (self._stored(name, scale.apply(block)) for block in blocks)
        return super().rows(name, shape, self._stored(name, np.zeros(1, dtype)).dtype, stored)

    def _stored(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        return self._rounded(name, array)

    def _rounded(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if not self._half or array.dtype != np.float32:
            return array
        with np.errstate(over="ignore"):
            rounded = array.astype(self._form.dtype)
        if not np.isfinite(rounded.astype(np.float32)).all():
            raise UnsupportedError(
                f"{name} holds the weight {float(abs(array).max()):.3g}, beyond float16's largest, "
                "65504: use --precision bf16"
            )
        return rounded

    def _normed_heads(self, prefix: str, packed: str) -> list[str]:
        folded, self.config = self.config, replace(self.config, eps=self._head_eps)
        try:
            return super()._normed_heads(prefix, packed)
        finally:
            self.config = folded

    def _picked(self, stream: str) -> str:
        picked = super()._picked(stream)
        self._half = False
        return self._widened(picked)

    def _widened(self, picked: str) -> str:
        return self.node("Cast", [picked], [f"{picked}.float"], to=TensorProto.FLOAT)

    @property
    def cache_type(self) -> str:
        return self._form.cache


class WidenedBuilder(HalfBuilder):
    """The same graph in float32: weights and what passes between nodes are rounded as there.

    Not rounded as on a GPU: what a node holds inside (a fused kernel may round there, and rotary
    embedding does), and keys and values in the cache.
    """

    def node(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> str:
        if not self._half or op in _MOVES:
            return super().node(op, inputs, outputs, domain, **attributes)
        # the cache is the graph's output
        wide = [f"{n}.wide" if n and not n.startswith("present.") else n for n in outputs]
        super().node(op, inputs, wide, domain, **attributes)
        for before, after in zip(wide, outputs, strict=True):
            if before != after:
                super().node("Cast", [before], [f"{after}.half"], to=self._form.element)
                super().node("Cast", [f"{after}.half"], [after], to=TensorProto.FLOAT)
        return outputs[0]

    def _stored(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        rounded = self._rounded(name, array)
        return rounded.astype(np.float32) if rounded.dtype == self._form.dtype else rounded

    def _widened(self, picked: str) -> str:
        return picked

    @property
    def cache_type(self) -> str:
        return contract.FLOAT

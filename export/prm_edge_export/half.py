"""The ``decoder`` graph in half precision, for a GPU: linears and attention in float16 or bfloat16,
residual stream, norms and head in float32.

In: config, weights and folds. Out: ``model.onnx`` and its data; for bfloat16, of which the CPU has
no kernels, also a float32 graph that does the same roundings. H hidden, N read positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
from .ranges import ATTENTION, MLP, PRODUCT, VALUES, Folds
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

        embedding / e -> * e -> stream                    in float32: * e, * u, * w and the stream
        v / a -> attention -> o * a / u -> * u -> + stream
        up / b -> * gate -> down * b / w -> * w -> + stream
    """
    found: dict[str, Scale] = {EMBEDDING: Scale(factor=2.0**-folds.embedding)}
    q_and_k = (config.heads + config.kv_heads) * config.head_dim
    for layer in range(config.layers):
        attention, mlp = f"{layer_prefix(layer)}self_attn.", f"{layer_prefix(layer)}mlp."
        value, product = 2.0 ** folds.of(VALUES, layer), 2.0 ** folds.of(PRODUCT, layer)
        for name, inner, outer in (
            (f"{attention}o_proj", value, folds.of(ATTENTION, layer)),
            (f"{mlp}down_proj", product, folds.of(MLP, layer)),
        ):
            found[f"{name}.weight"] = Scale(factor=inner * 2.0**-outer)
            found[f"{name}.bias"] = Scale(factor=2.0**-outer)
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
    """Linears and attention in half precision; residual stream, its norms and head in float32.

    ::

        embedding -> Cast --------------------------------------------+--> x (float32)
        x -> norm (float32) -> Cast -> qkv, attention, o -> Cast -> (* 2^u) -> + -> x
    """

    def __init__(
        self,
        config: DecoderConfig,
        tensors: Tensors,
        weights: WeightFile,
        form: Format,
        folds: Folds,
    ) -> None:
        super().__init__(config, tensors, weights)
        self._form = form
        self._scales: Mapping[str, Scale] = scales(config, folds)
        self._embedding_bits = folds.embedding
        # projection -> bits that what it gives is smaller by
        self._bits = {
            f"{layer_prefix(layer)}{name}": bits
            for name, part in (("self_attn.o", ATTENTION), ("mlp.down", MLP))
            for layer, bits in folds.parts.get(part, {}).items()
        }
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

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        """Whatever is built inside stays in float32."""
        before, self._half = self._half, False
        try:
            yield
        finally:
            self._half = before

    def _embed(self) -> str:
        return self._widened(super()._embed(), self._embedding_bits)

    def _projection(
        self, prefix: str, part: str, source: str, sizes: tuple[int, int], has_bias: bool
    ) -> str:
        out = super()._projection(prefix, part, source, sizes, has_bias)
        if part not in ("o", "down"):
            return out
        return self._widened(out, self._bits.get(f"{prefix}.{part}", 0))

    def _norm(self, name: str, tensor: str, stream: str, update: str) -> tuple[str, str]:
        if not self._half:
            return super()._norm(name, tensor, stream, update)
        with self._in_float32():
            normed, total = super()._norm(name, tensor, stream, update)
        return self._narrowed(normed), total

    def _after(self, name: str, update: str) -> str:
        with self._in_float32():
            return super()._after(name, update)

    def _last(self, stream: str, update: str) -> str:
        self._half = False  # from here on
        return super()._last(stream, update)

    def _widened(self, value: str, bits: int) -> str:
        """From half precision to the float32 that it stands for, 2^bits as large."""
        wide = self._to_float32(value)
        if not bits:
            return wide
        with self._in_float32():
            factor = self.constant(f"{value}.factor", np.array(2.0**bits, dtype=np.float32))
            return self.node("Mul", [wide, factor], [f"{value}.unfolded"])

    def _to_float32(self, value: str) -> str:
        return self.node("Cast", [value], [f"{value}.float"], to=TensorProto.FLOAT)

    def _narrowed(self, value: str) -> str:
        return self.node("Cast", [value], [f"{value}.half"], to=self._form.element)

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
                self._round(before, after)
        return outputs[0]

    def _round(self, before: str, after: str) -> None:
        super().node("Cast", [before], [f"{after}.half"], to=self._form.element)
        super().node("Cast", [f"{after}.half"], [after], to=TensorProto.FLOAT)

    def _stored(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        rounded = self._rounded(name, array)
        return rounded.astype(np.float32) if rounded.dtype == self._form.dtype else rounded

    def _to_float32(self, value: str) -> str:
        return value

    def _narrowed(self, value: str) -> str:
        rounded = f"{value}.rounded"
        self._round(value, rounded)
        return rounded

    @property
    def cache_type(self) -> str:
        return contract.FLOAT

"""The shapes of models that benchmarks build with random weights, and these weights."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from prm_edge_export.head_kinds import LINEAR
from prm_edge_export.heads import Head, Layer
from prm_edge_export.model_config import DecoderConfig, read_config
from prm_edge_export.quantization.kinds import layer_prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a Qwen2: its layers, and the vocabulary where somebody counts it."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int = 151936

    def config(self, vocab: int | None = None) -> dict[str, Any]:
        """As transformers names it."""
        return {
            "vocab_size": vocab or self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        }

    def decoder(self, vocab: int | None = None) -> DecoderConfig:
        """As the exporter reads it."""
        return read_config({**self.config(vocab), "model_type": "qwen2"})

    @property
    def head(self) -> Head:
        """Two classes, without a bias."""
        top = Layer(weight="score.weight", bias=None, inputs=self.hidden, outputs=2)
        return Head(kind=LINEAR, layers=(top,))

    @property
    def parameters(self) -> int:
        """Of the linears of all layers, which is what a token multiplies with."""
        kv = self.hidden // self.heads * self.kv_heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * kv
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def tensors(self, parts: Sequence[str], layer: int = 0) -> list[tuple[str, tuple[int, int]]]:
        """The weights of modules of a layer, and their shapes (N, K)."""
        kv = self.hidden // self.heads * self.kv_heads
        outputs = {"k_proj": kv, "v_proj": kv}
        outputs |= dict.fromkeys(("gate_proj", "up_proj"), self.intermediate)
        found = []
        for part in parts:
            last = part.rpartition(".")[2]
            inputs = self.intermediate if last == "down_proj" else self.hidden
            size = (outputs.get(last, self.hidden), inputs)
            found.append((f"{layer_prefix(layer)}{part}.weight", size))
        return found

    def flops(self, lengths: Sequence[int]) -> float:
        """Of whole records: linears, and causal attention."""
        linears = 2 * self.parameters * sum(lengths)
        return linears + sum(2 * self.layers * self.hidden * n * n for n in lengths)


SHAPES: Final = {
    "0.5b": Shape(hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2),
    "1.5b": Shape(hidden=1536, intermediate=8960, layers=28, heads=12, kv_heads=2),
    "7b": Shape(hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4, vocab=152064),
    "tiny": Shape(hidden=128, intermediate=384, layers=4, heads=4, kv_heads=2),
}
_BLOCK: Final = 4096  # rows of an embedding at once


class RandomTensors:
    """Stands in for a checkpoint: any tensor, made when it is read.

    All layers have the same weights, so that a shape of billions takes seconds to make; no time
    depends on it. ``replaced``: what some of them are instead, by the names of layer 0.
    """

    def __init__(self, replaced: dict[str, torch.Tensor] | None = None) -> None:
        self._replaced = replaced or {}

    def torch(
        self, name: str, shape: tuple[int, ...], rows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """In float32."""
        name = re.sub(r"\.layers\.\d+\.", ".layers.0.", name)
        whole = self._replaced[name] if name in self._replaced else _made(name, shape)
        return whole if rows is None else whole[rows[0] : rows[-1] + 1]

    def numpy(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The same."""
        found: NDArray[np.float32] = self.torch(name, shape).numpy()
        return found

    def row_blocks(self, name: str, shape: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
        """A matrix, some rows at a time."""
        for start in range(0, shape[0], _BLOCK):
            yield self.torch(name, shape)[start : start + _BLOCK].numpy()


@functools.lru_cache(maxsize=16)
def _made(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    if name.endswith("bias"):
        return 0.1 * torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) / shape[-1] ** 0.5


@torch.no_grad()
def torch_model(
    shape: Shape, tensors: RandomTensors, vocab: int, device: str, dtype: torch.dtype
) -> Any:
    """transformers' token classifier with these tensors, made where it runs, with SDPA."""
    from transformers import Qwen2Config, Qwen2ForTokenClassification

    config = Qwen2Config(**shape.config(vocab), num_labels=2)
    with torch.device(device):
        model = Qwen2ForTokenClassification._from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    for name, parameter in model.named_parameters():
        if name == "score.bias":
            parameter.zero_()
            continue
        parameter.copy_(tensors.torch(name, tuple(parameter.shape)))
    return model.eval()

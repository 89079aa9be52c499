"""Exact rotations that spread outliers, folded into the tensors as they are read.

In: the tensors of a decoder of RMS norms. Out: tensors of the same model in another basis, whose
activations have no single large channels for 8 bits to lose the small ones beside.

::

    residual stream  x -> x R           R orthogonal (H, H): R1 of QuaRot and SpinQuant
    embedding E -> E R      o, down W -> R^T W      norm gains g -> 1, into what reads the norm
    q, k, v, gate, up, heads W -> (W g) R
    per value head   v rows W -> S^T W, o columns W -> W S       S orthogonal (D, D): R2

An RMS norm's size does not change under R, so all is exact but for rounding: products are taken in
float64. A rotation before down, or between q and k, could not be folded (arXiv:2404.00456,
arXiv:2405.16406). O outputs, H hidden size, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from ..checkpoint import Tensors
from ..heads import EMBEDDING, Head
from ..model_config import DecoderConfig

_SEED: Final = 576
_NORMS: Final = ("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight")
# of a head's first layer: those whose tensor is one matrix over the stream
_PLAIN_FOLDS: Final = ("none", "mean")
# The large ones, and along which axis parts of them do not meet: turned at once, their copies in
# float64 would take gigabytes.
_APART: Final = {"gate_proj.weight": 0, "up_proj.weight": 0, "down_proj.weight": 1}
_PART: Final = 2048  # rows or columns


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rotation:
    """An orthogonal matrix: signs, then a small dense one beside a Hadamard matrix of 2^k.

    ``signs`` (N,); ``outer`` (A, A), the Hadamard matrix of some of the bits; ``inner`` (B, B),
    that of the others beside a dense one of N's odd part; N = A B; all float64.
    """

    signs: torch.Tensor
    outer: torch.Tensor
    inner: torch.Tensor

    @classmethod
    def of(cls, size: int, seed: int = _SEED) -> Rotation:
        """A seeded one."""
        generator = torch.Generator().manual_seed(seed)
        odd = size // (size & -size)
        signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
        random = torch.randn(odd, odd, generator=generator, dtype=torch.float64)
        bits = (size // odd).bit_length() - 1
        dense = torch.linalg.qr(random)[0].contiguous()
        inner = torch.kron(_hadamard(bits // 2), dense)
        return cls(signs=signs, outer=_hadamard(bits - bits // 2), inner=inner)

    def columns(self, matrix: torch.Tensor) -> torch.Tensor:
        """Multiply with it from the right. (..., N) -> (..., N)"""
        signed = matrix.double() * self.signs
        split: torch.Tensor = torch.unflatten(signed, -1, (len(self.outer), len(self.inner)))
        return (self.outer @ (split @ self.inner)).flatten(-2)

    def rows(self, matrix: torch.Tensor) -> torch.Tensor:
        """Multiply with its transpose from the left. (N, ...) -> (N, ...)"""
        return self.columns(matrix.double().movedim(0, -1)).movedim(-1, 0)


def _hadamard(bits: int) -> torch.Tensor:
    """Sylvester's, orthogonal. -> (2^bits, 2^bits)"""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) * 0.5**0.5
    for _ in range(bits):
        matrix = torch.kron(step, matrix)
    return matrix


def can_rotate(config: DecoderConfig, head: Head) -> bool:
    """Whether every tensor that touches the stream is one that is known how to rotate."""
    first = head.layers[0]
    return (
        not config.gemma
        and not config.fused
        and first.weight != EMBEDDING
        and first.inputs == config.hidden
        and first.fold in _PLAIN_FOLDS
    )


class RotatedTensors(Tensors):
    """The tensors of a decoder, each rotated when it is read."""

    def __init__(self, base: Tensors, config: DecoderConfig, head: Head) -> None:
        self.root, self.info, self.used = base.root, base.info, base.used
        self._base = base
        self._config = config
        # what reads the final norm
        self._heads = {head.layers[0].weight}
        self._heads |= {head.naming.layer.weight} if head.naming else set()
        self._stream = Rotation.of(config.hidden)
        self._value = Rotation.of(config.head_dim)
        # ending of a name -> what becomes of the tensor
        self._ways: dict[str, Callable[[str, torch.Tensor], torch.Tensor]] = {
            "embed_tokens.weight": lambda name, w: self._stream.columns(w),
            "q_proj.weight": self._from_norm,
            "k_proj.weight": self._from_norm,
            "v_proj.weight": lambda name, w: self._value_rows(self._from_norm(name, w)),
            "v_proj.bias": lambda name, b: self._value_rows(b),
            "gate_proj.weight": self._from_norm,
            "up_proj.weight": self._from_norm,
            "o_proj.weight": lambda name, w: self._stream.rows(self._value_columns(w)),
            "o_proj.bias": lambda name, b: self._stream.rows(b),
            "down_proj.weight": lambda name, w: self._stream.rows(w),
            "down_proj.bias": lambda name, b: self._stream.rows(b),
            **dict.fromkeys(_NORMS, lambda name, gain: torch.ones_like(gain)),
        }

    def turn(self, stream: torch.Tensor) -> torch.Tensor:
        """The residual stream in this basis. (..., H)"""
        return self._stream.columns(stream).float()

    def where(self, name: str) -> str:
        """A tensor and its file, for messages."""
        return self._base.where(name)

    def _from_norm(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Of a linear that reads a norm: its gain and the stream's rotation. (O, H)"""
        layer, part, *_ = name.rsplit(".", 3)
        norm = "input_layernorm" if part == "self_attn" else "post_attention_layernorm"
        gain = self._base.torch(f"{layer}.{norm}.weight", (self._config.hidden,))
        return self._stream.columns(weight.double() * gain)

    def _value_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Each value head's outputs. (G * D, ...)"""
        heads = torch.unflatten(values, 0, (-1, self._config.head_dim)).movedim(1, 0)
        return self._value.rows(heads).movedim(0, 1).flatten(0, 1)

    def _value_columns(self, weight: torch.Tensor) -> torch.Tensor:
        """What reads them, head by head. (O, heads * D)"""
        return self._value.columns(torch.unflatten(weight, 1, (-1, self._config.head_dim))).flatten(
            1
        )

    def torch(
        self, name: str, shape: tuple[int, ...], rows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Read a rotated tensor; see :meth:`Tensors.torch`."""
        tensor = self._base.torch(name, shape, rows)
        if name in self._heads:
            gain = self._base.torch("model.norm.weight", (self._config.hidden,))
            return self._stream.columns(tensor.double() * gain).float().contiguous()
        way = next((way for end, way in self._ways.items() if name.endswith(end)), None)
        if way is None:
            return tensor
        axis = next((axis for end, axis in _APART.items() if name.endswith(end)), None)
        if axis is None:
            return way(name, tensor).float().contiguous()
        turned = torch.empty_like(tensor)
        parts = (torch.split(each, _PART, axis) for each in (tensor, turned))
        for before, after in zip(*parts, strict=True):
            after.copy_(way(name, before))
        return turned

    def close(self) -> None:
        """Nothing of its own is open."""

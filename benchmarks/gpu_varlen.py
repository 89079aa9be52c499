"""Torch without padding: solutions of any length behind one another in one row, each attending to
itself alone, through `torch.nn.attention.varlen` (torch 2.10 and later, CUDA, 16-bit).

On a CPU, where that kernel does not exist, every solution goes through SDPA by itself: slower, the
same numbers, and enough to test the packing.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from gpu_cases import Record, Torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME: Final = "packed_varlen"


class Varlen(Torch):
    """`Torch` whose `many` computes no padding; what else it does is not measured with it."""

    def __init__(self, model: Any, device: str) -> None:
        super().__init__(model, device)
        self.bounds = torch.zeros(1, dtype=torch.int32)  # (solutions + 1,), on the device
        self.longest = 0
        AttentionInterface.register(NAME, self._attend)
        # a name without a mask function of its own: transformers makes no mask
        self.model.set_attn_implementation(NAME)

    @torch.inference_mode()
    def many(self, records: Sequence[Record], rows: int = 16) -> list[NDArray[np.float32]]:
        """Logits of records, `rows` of them in one packed row. -> (N, C) each"""
        found: list[NDArray[np.float32]] = []
        for start in range(0, len(records), rows):
            chosen = records[start : start + rows]
            lengths = [len(one.ids) for one in chosen]
            begins = np.concatenate(([0], np.cumsum(lengths)))
            self.bounds = torch.as_tensor(begins, dtype=torch.int32, device=self.device)
            self.longest = max(lengths)
            ids = self._ids(np.concatenate([one.ids for one in chosen]))[None]
            positions = self._ids(np.concatenate([np.arange(n) for n in lengths]))[None]
            logits = self.model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
            reads = [self._ids(one.reads + at) for one, at in zip(chosen, begins, strict=False)]
            found += [logits[at].float().cpu().numpy() for at in reads]
        return found

    def _attend(
        self, module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any,
        scaling: float | None = None, **_: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        """What transformers asks for: (1, N, T, D) and K and V of fewer heads -> (1, T, N, D)."""
        if mask is not None:
            raise RuntimeError("transformers made a mask: solutions would see one another")
        if q.device.type != "cuda":
            return self._one_by_one(q, k, v, scaling), None
        shared = q.shape[1] // k.shape[1]
        if shared > 1:  # the kernel takes fewer heads only from torch 2.11 on
            k, v = (t.repeat_interleave(shared, dim=1) for t in (k, v))
        flat = [t[0].transpose(0, 1).contiguous() for t in (q, k, v)]
        bounds, longest = self.bounds, self.longest
        out = _varlen(*flat, bounds, bounds, longest, longest, **_causal(), scale=scaling)
        return out[None], None

    def _one_by_one(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        parts = [
            scaled_dot_product_attention(
                *(t[:, :, a:b] for t in (q, k, v)),
                is_causal=True,
                scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            for a, b in itertools.pairwise(self.bounds.tolist())
        ]
        return torch.cat(parts, dim=2).transpose(1, 2)


def _varlen(*tensors: Any, **options: Any) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(*tensors, **options)
    assert isinstance(out, torch.Tensor)  # a pair only where more is asked for
    return out


def _causal() -> dict[str, Any]:
    """How this torch's kernel is told to be causal: 2.10 has a flag, later ones a window."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    return {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}

"""Quantize one weight matrix: per channel, with error compensation, or in blocks.

In: float32 weights (N outputs, K inputs). Out: integers with their scales, symmetric around zero.
Imports torch. T rows of activations; G = K / BLOCK blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

LEVELS: Final = 127  # int8 and uint8 around 128, symmetric
SECOND: Final = 254  # the second pass's steps in one of the first, whose error is at most a half
BLOCK: Final = 32
MAX_COMPENSATED: Final = 4096  # inputs together; the Hessian of more takes gigabytes
SHARES: Final = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.74)  # of the largest weight of a block
ROWS: Final = 4096  # outputs that are worked on at once
_DAMPING: Final = 0.01
_SOLVED_WHOLE: Final = 256
_CHUNK: Final = 128  # columns whose errors are spread at once
_TINY: Final = 1e-30  # a scale is never zero


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Channels:
    """int8 (N, K) with one scale per output (N,)."""

    values: torch.Tensor
    scales: torch.Tensor

    def restored(self) -> torch.Tensor:
        """The matrix these integers stand for. -> (N, K)"""
        return self.values.float() * self.scales[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockForm:
    """Weights of MatMulNBits: so many bits, inputs in a block, integers from lowest to highest."""

    bits: int
    block: int
    lowest: int
    highest: int

    @property
    def zero(self) -> int:
        """What stands for 0 among unsigned integers."""
        return 1 << (self.bits - 1)


BLOCKS8: Final = BlockForm(bits=8, block=BLOCK, lowest=-LEVELS, highest=LEVELS)
BLOCKS4: Final = BlockForm(bits=4, block=128, lowest=-8, highest=7)
# what onnxruntime's one-kernel CUDA products take: blocks of 32 and no zero points
CUDA4: Final = BlockForm(bits=4, block=32, lowest=-8, highest=7)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """Unsigned around ``form.zero`` (N, G, block) with one scale per block (N, G)."""

    values: torch.Tensor
    scales: torch.Tensor
    form: BlockForm = BLOCKS8

    def restored(self, inputs: int) -> torch.Tensor:
        """The matrix these integers stand for. -> (N, K)"""
        scaled = (self.values.float() - self.form.zero) * self.scales[:, :, None]
        return scaled.flatten(1)[:, :inputs]

    def packed(self) -> torch.Tensor:
        """As MatMulNBits takes them: of 4 bits two in a byte, the first one low."""
        if self.form.bits == 8:
            return self.values
        return self.values[..., ::2] | (self.values[..., 1::2] << 4)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compensation:
    """What GPTQ takes from the inputs' second moments: the order of columns and its factor."""

    order: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def of(cls, hessian: torch.Tensor) -> Compensation:
        """``hessian``: X^T X (K, K)."""
        dead = hessian.diagonal() <= 0
        order = torch.argsort(hessian.diagonal(), descending=True)
        hessian = hessian[order][:, order].double()
        diagonal = hessian.diagonal()
        diagonal += _DAMPING * diagonal.mean() + dead[order]
        # GPTQ's factor U, with U^T U = H^-1, is the inverse of the upper R in H = R R^T: that is
        # Cholesky's L of H read backwards, half the work of inverting H and factoring again.
        inverse = inverse_of_lower(torch.linalg.cholesky(hessian.flip(0, 1)))
        return cls(order=order, factor=inverse.flip(0, 1).float())


def inverse_of_lower(lower: torch.Tensor) -> torch.Tensor:
    """Of a lower triangular matrix (K, K), by halves: a third of the work of solving for it whole.

    ::

        A 0  inverse     A^-1           0
        B C           -C^-1 B A^-1    C^-1
    """
    size = len(lower)
    if size <= _SOLVED_WHOLE:
        one = torch.eye(size, dtype=lower.dtype)
        solved: torch.Tensor = torch.linalg.solve_triangular(lower, one, upper=False)
        return solved
    half = size // 2
    inverse = torch.zeros_like(lower)
    first, last = inverse[:half, :half], inverse[half:, half:]
    first.copy_(inverse_of_lower(lower[:half, :half]))
    last.copy_(inverse_of_lower(lower[half:, half:]))
    torch.matmul(last, lower[half:, :half] @ first, out=inverse[half:, :half]).neg_()
    return inverse


def channel_scales(weight: torch.Tensor) -> torch.Tensor:
    """One scale per output, so that its largest weight becomes 127. (N, K) -> (N,)"""
    return (weight.abs().amax(dim=1) / LEVELS).clamp(min=_TINY)


def round_channels(weight: torch.Tensor) -> Channels:
    """Round to the nearest integer. (N, K)"""
    scales = channel_scales(weight)
    values = (weight / scales[:, None]).round().clamp(-LEVELS, LEVELS)
    return Channels(values=values.to(torch.int8), scales=scales)


def compensate(
    weight: torch.Tensor,
    scales: torch.Tensor,
    how: Compensation,
    limits: tuple[int, int] = (-LEVELS, LEVELS),
) -> torch.Tensor:
    """Round column by column and let the columns still to come make up for each error.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323) with the columns of the largest inputs first.
    ``scales``: of each weight (N, K). -> integers (N, K)
    """
    order, factor = how.order, how.factor
    # Transposed: what one column of the weight needs then lies together, five times as fast.
    left, scales = weight.T[order], scales.T[order]
    values = torch.empty_like(left)
    for start in range(0, len(left), _CHUNK):
        end = min(start + _CHUNK, len(left))
        chunk, inner = left[start:end], factor[start:end, start:end]
        errors = torch.empty_like(chunk)
        for at in range(end - start):
            column, scale = chunk[at], scales[start + at]
            rounded = torch.div(column, scale, out=values[start + at]).round_().clamp_(*limits)
            error = torch.addcmul(column, rounded, scale, value=-1, out=errors[at])
            error /= inner[at, at]
            chunk[at + 1 :].addr_(inner[at, at + 1 :], error, alpha=-1)
        left[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    restored = torch.empty_like(values)
    restored[order] = values
    return restored.T


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """What rounding knows of a linear's inputs: GPTQ's factors, and their mean squares.

    For plain rounding nothing: no factors, None.
    """

    hows: Sequence[Compensation] = ()
    sizes: torch.Tensor | None = None

    @classmethod
    def of(cls, hessian: Sequence[torch.Tensor]) -> Inputs:
        """``hessian``: their second moments (K, K), or the blocks on its diagonal; none known."""
        if not hessian:
            return cls()
        return cls(
            hows=[Compensation.of(square) for square in hessian],
            sizes=torch.cat([square.diagonal() for square in hessian]),
        )


def quantize_channels(weight: torch.Tensor, inputs: Inputs) -> Channels:
    """int8 of a weight (N, K).

    Here and below some rows are worked on at a time: rows do not meet, and each copy of a large
    weight takes gigabytes.
    """
    scales = channel_scales(weight)
    values = torch.empty(weight.shape, dtype=torch.int8)
    for start in range(0, len(weight), ROWS):
        rows, each = weight[start : start + ROWS], scales[start : start + ROWS, None]
        values[start : start + ROWS] = _integers(
            rows, each.expand(rows.shape), inputs.hows, (-LEVELS, LEVELS)
        )
    return Channels(values=values, scales=scales)


def quantize_blocks(
    weight: torch.Tensor,
    inputs: Inputs,
    form: BlockForm,
    scale_type: torch.dtype = torch.float32,
) -> Blocks:
    """Blocks of a weight (N, K), with scales that ``scale_type`` holds."""

    def rounded(scales: torch.Tensor) -> torch.Tensor:
        least = torch.finfo(scale_type).tiny * torch.finfo(scale_type).eps  # above zero, that is
        kept = torch.where(scales.abs() < least, scales.sign() * least, scales)
        return kept.to(scale_type).float()

    parts = [
        _blocks(rows, inputs.hows, form, rounded(SCALES[form.bits](rows, form, inputs.sizes)))
        for rows in torch.split(weight, ROWS)
    ]
    return Blocks(
        values=torch.cat([part.values for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        form=form,
    )


def _blocks(
    weight: torch.Tensor, hows: Sequence[Compensation], form: BlockForm, per_block: torch.Tensor
) -> Blocks:
    each = per_block.repeat_interleave(form.block, dim=1)[:, : weight.shape[1]]
    integers = _integers(weight, each, hows, (form.lowest, form.highest))
    return Blocks(
        values=(_in_blocks(integers, form.block) + form.zero).to(torch.uint8),
        scales=per_block,
        form=form,
    )


def _integers(
    weight: torch.Tensor,
    scales: torch.Tensor,
    hows: Sequence[Compensation],
    limits: tuple[int, int],
) -> torch.Tensor:
    if not hows:
        return (weight / scales).round().clamp(*limits)
    widths = [len(how.order) for how in hows]
    columns = zip(torch.split(weight, widths, 1), torch.split(scales, widths, 1), hows, strict=True)
    return torch.cat([compensate(part, each, how, limits) for part, each, how in columns], dim=1)


def block_scales(
    weight: torch.Tensor, form: BlockForm = BLOCKS8, sizes: torch.Tensor | None = None
) -> torch.Tensor:
    """One scale per block, so that its largest weight becomes 127. (N, K) -> (N, G)"""
    return (_in_blocks(weight, form.block).abs().amax(dim=2) / form.highest).clamp(min=_TINY)


def least_error_scales(
    weight: torch.Tensor, form: BlockForm, sizes: torch.Tensor | None
) -> torch.Tensor:
    """One scale per block, of several the one with the least error. (N, K) -> (N, G)

    The weight that is largest in size becomes the lowest integer, of which there is one more, so
    that scales have either sign; cutting it off a little may serve the others better. ``sizes``:
    the inputs' mean squares, by which errors count.
    """
    blocks = _in_blocks(weight, form.block)
    weights = torch.ones(weight.shape[1]) if sizes is None else sizes
    counted = _in_blocks(weights[None] / weights.mean().clamp(min=_TINY) + _DAMPING, form.block)
    largest = blocks.gather(2, blocks.abs().argmax(dim=2, keepdim=True))
    largest = torch.where(largest == 0, torch.full_like(largest, _TINY), largest)
    best, least = torch.empty_like(largest), torch.full_like(largest, torch.inf)
    for share in SHARES:
        scales = largest * (share / form.lowest)
        error = (blocks / scales).round_().clamp_(form.lowest, form.highest).mul_(scales)
        error = error.sub_(blocks).square_().mul_(counted).sum(dim=2, keepdim=True)
        best = torch.where(error < least, scales, best)
        least = torch.minimum(error, least)
    return best.squeeze(2)


# bits -> how the scales of blocks are found
SCALES: Final = {8: block_scales, 4: least_error_scales}


def round_blocks(weight: torch.Tensor, form: BlockForm) -> Blocks:
    """Round to the nearest integer, each block's largest weight to the lowest. (N, K)"""
    blocks = _in_blocks(weight, form.block)
    largest = blocks.gather(2, blocks.abs().argmax(dim=2, keepdim=True))
    scales = torch.where(largest == 0, torch.full_like(largest, _TINY), largest) / form.lowest
    values = (blocks / scales).round_().clamp_(form.lowest, form.highest) + form.zero
    return Blocks(values=values.to(torch.uint8), scales=scales.squeeze(2), form=form)


def round_tokens(rows: torch.Tensor) -> torch.Tensor:
    """What per-token int8 leaves of activations. (..., K)"""
    scales = (rows.abs().amax(dim=-1, keepdim=True) / LEVELS).clamp(min=_TINY)
    return (rows / scales).round() * scales


def round_tokens_twice(rows: torch.Tensor) -> torch.Tensor:
    """What is left when the error of the first rounding is rounded and added too. (..., K)"""
    once = round_tokens(rows)
    scales = (rows.abs().amax(dim=-1, keepdim=True) / LEVELS).clamp(min=_TINY) / SECOND
    return once + ((rows - once) / scales).round() * scales


def round_token_blocks(rows: torch.Tensor, block: int) -> torch.Tensor:
    """What int8 in blocks leaves of activations, as MatMulNBits rounds them. (..., K)"""
    return round_tokens(_in_blocks(rows, block)).flatten(-2)[..., : rows.shape[-1]]


def _in_blocks(values: torch.Tensor, block: int = BLOCK) -> torch.Tensor:
    """Cut the last axis in blocks; zeros fill the last one. (..., K) -> (..., G, block)"""
    missing = -values.shape[-1] % block
    padded = torch.nn.functional.pad(values, (0, missing))
    return padded.reshape(*padded.shape[:-1], -1, block)

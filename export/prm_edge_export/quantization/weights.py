"""Quantize one weight matrix: per channel, with error compensation, or in blocks.

In: float32 weights (N outputs, K inputs). Out: integers with their scales, symmetric around zero.
Imports torch. T rows of activations; G = K / BLOCK blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

LEVELS: Final = 127  # int8 and uint8 around 128, symmetric
SECOND: Final = 254  # the second pass's steps in one of the first, whose error is at most a half
BLOCK: Final = 32
MAX_COMPENSATED: Final = 4096  # inputs; beyond, the Hessian of one layer takes gigabytes
ROWS: Final = 4096  # outputs that are worked on at once
_DAMPING: Final = 0.01
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """uint8 around 128 (N, G, BLOCK) with one scale per block (N, G), as MatMulNBits takes them."""

    values: torch.Tensor
    scales: torch.Tensor

    def restored(self, inputs: int) -> torch.Tensor:
        """The matrix these integers stand for. -> (N, K)"""
        scaled = (self.values.float() - 128) * self.scales[:, :, None]
        return scaled.flatten(1)[:, :inputs]


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
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return cls(order=order, factor=torch.linalg.cholesky(inverse, upper=True).float())


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
    left, scales = weight[:, order].clone(), scales[:, order]
    values = torch.empty_like(left)
    for start in range(0, left.shape[1], _CHUNK):
        end = min(start + _CHUNK, left.shape[1])
        chunk, inner = left[:, start:end], factor[start:end, start:end]
        errors = torch.empty_like(chunk)
        for at in range(end - start):
            column, scale = chunk[:, at], scales[:, start + at]
            rounded = (column / scale).round().clamp(*limits)
            values[:, start + at] = rounded
            errors[:, at] = (column - rounded * scale) / inner[at, at]
            chunk[:, at + 1 :] -= errors[:, at : at + 1] * inner[at, at + 1 :]
        left[:, end:] -= errors @ factor[start:end, end:]
    restored = torch.empty_like(values)
    restored[:, order] = values
    return restored


def quantize(weight: torch.Tensor, hessian: torch.Tensor | None) -> tuple[Channels, Blocks]:
    """Both forms of a weight; compensated where the inputs' second moments are given. (N, K)

    Some rows at a time: rows do not meet, and each copy of a large weight takes gigabytes.
    """
    how = None if hessian is None else Compensation.of(hessian)
    parts = [_quantize(rows, how) for rows in torch.split(weight, ROWS)]
    return (
        Channels(
            values=torch.cat([channels.values for channels, _ in parts]),
            scales=torch.cat([channels.scales for channels, _ in parts]),
        ),
        Blocks(
            values=torch.cat([blocks.values for _, blocks in parts]),
            scales=torch.cat([blocks.scales for _, blocks in parts]),
        ),
    )


def _quantize(weight: torch.Tensor, how: Compensation | None) -> tuple[Channels, Blocks]:
    per_channel = channel_scales(weight)
    per_block = block_scales(weight)
    outputs, inputs = weight.shape
    scales = torch.cat(
        [
            per_channel[:, None].expand(outputs, inputs),
            per_block.repeat_interleave(BLOCK, dim=1)[:, :inputs],
        ]
    )
    twice = torch.cat([weight, weight])  # rows do not meet, so both forms are one matrix
    if how is None:
        values = (twice / scales).round().clamp(-LEVELS, LEVELS)
    else:
        values = compensate(twice, scales, how)
    in_channels, in_blocks = torch.split(values, outputs)
    return (
        Channels(values=in_channels.to(torch.int8), scales=per_channel),
        Blocks(values=(_in_blocks(in_blocks) + 128).to(torch.uint8), scales=per_block),
    )


def block_scales(weight: torch.Tensor) -> torch.Tensor:
    """One scale per block, so that its largest weight becomes 127. (N, K) -> (N, G)"""
    return (_in_blocks(weight).abs().amax(dim=2) / LEVELS).clamp(min=_TINY)


def round_tokens(rows: torch.Tensor) -> torch.Tensor:
    """What per-token int8 leaves of activations. (..., K)"""
    scales = (rows.abs().amax(dim=-1, keepdim=True) / LEVELS).clamp(min=_TINY)
    return (rows / scales).round() * scales


def round_tokens_twice(rows: torch.Tensor) -> torch.Tensor:
    """What is left when the error of the first rounding is rounded and added too. (..., K)"""
    once = round_tokens(rows)
    scales = (rows.abs().amax(dim=-1, keepdim=True) / LEVELS).clamp(min=_TINY) / SECOND
    return once + ((rows - once) / scales).round() * scales


def round_token_blocks(rows: torch.Tensor) -> torch.Tensor:
    """What int8 in blocks of 32 leaves of activations, as MatMulNBits rounds them. (..., K)"""
    return round_tokens(_in_blocks(rows)).flatten(-2)[..., : rows.shape[-1]]


def _in_blocks(values: torch.Tensor) -> torch.Tensor:
    """Cut the last axis in blocks; zeros fill the last one. (..., K) -> (..., G, BLOCK)"""
    missing = -values.shape[-1] % BLOCK
    padded = torch.nn.functional.pad(values, (0, missing))
    return padded.reshape(*padded.shape[:-1], -1, BLOCK)

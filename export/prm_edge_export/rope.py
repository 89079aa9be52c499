"""Rotary embeddings: read the scaling in either spelling, compute the frequencies.

Old checkpoints keep ``rope_theta`` and ``rope_scaling`` apart; transformers 5 keeps both in
``rope_parameters`` (its MIGRATION_GUIDE_V5.md). The formulas are those of transformers'
``modeling_rope_utils.py``; the result is compared bit by bit with the loaded reference's buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from prm_edge_runtime.errors import CheckpointError, UnsupportedError

DEFAULT_THETA: Final = 10000.0
# rope type -> the keys that its formula reads; any other key that is not None is refused
KEYS: Final[dict[str, frozenset[str]]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset(
        {
            "factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
            "original_max_position_embeddings",
        }
    ),
}
REQUIRED: Final[dict[str, frozenset[str]]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": KEYS["llama3"],
    "yarn": frozenset({"factor"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """``parameters``: the keys of the scaling's formula, without theta and type."""

    theta: float
    kind: str
    parameters: Mapping[str, float | bool]


def read_rope(config: Mapping[str, Any]) -> Rope:
    """Read the rotary embedding of a ``config.json`` in the old or the new spelling.

    Raises:
        CheckpointError: when the two spellings contradict each other, or a key is malformed.
        UnsupportedError: for a scaling that is not implemented, by name.
    """
    new = config.get("rope_parameters")
    old = config.get("rope_scaling")
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{name} must be an object or null, got {type(value).__name__}")
    scaling: dict[str, Any] = dict(new or old or {})
    if any(isinstance(value, dict) for value in scaling.values()):
        raise UnsupportedError("rope_parameters per layer type are not supported for this model")
    theta = _agreed("rope_theta", scaling.pop("rope_theta", None), config.get("rope_theta"))
    if new and old:
        for key in sorted(new.keys() & old.keys()):
            _agreed(f"rope_scaling.{key}", new[key], old[key])
    kind = _agreed("rope_type", scaling.pop("rope_type", None), scaling.pop("type", None))
    kind = str(kind or "default")
    if kind not in KEYS:
        raise UnsupportedError(
            f"rope scaling {kind!r} is not supported (supported: {', '.join(sorted(KEYS))})"
        )
    partial = scaling.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        raise UnsupportedError(f"partial_rotary_factor {partial} is not supported, only 1")
    parameters = {key: value for key, value in scaling.items() if value is not None}
    _check_parameters(kind, parameters)
    return Rope(theta=_number("rope_theta", theta, DEFAULT_THETA), kind=kind, parameters=parameters)


def _agreed(key: str, first: Any, second: Any) -> Any:
    if first is not None and second is not None and first != second:
        raise CheckpointError(
            f"config.json gives {key} twice, as {first!r} and as {second!r}; keep the right one"
        )
    return second if first is None else first


def _number(key: str, value: Any, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
        raise CheckpointError(f"config.json: {key} must be a positive number, got {value!r}")
    return float(value)


def _check_parameters(kind: str, parameters: dict[str, Any]) -> None:
    unknown = sorted(parameters.keys() - KEYS[kind])
    # The original length is written by transformers 5 whatever the type; only two formulas read it.
    unknown = [key for key in unknown if key != "original_max_position_embeddings"]
    if unknown:
        raise UnsupportedError(f"rope scaling {kind!r} has the unknown key {unknown[0]!r}")
    missing = sorted(REQUIRED[kind] - parameters.keys())
    if missing:
        raise CheckpointError(f"rope scaling {kind!r} lacks the key {missing[0]!r}")
    for key, value in parameters.items():
        if key != "truncate":
            _number(f"rope {key}", value, 0.0)


def inverse_frequencies(
    rope: Rope, head_dim: int, max_positions: int
) -> tuple[torch.Tensor, float]:
    """Inverse frequencies float32 (head_dim / 2,) and the factor on cos and sin."""
    return _FORMULAS[rope.kind](rope, head_dim, max_positions)


def _default(rope: Rope, head_dim: int, max_positions: int) -> tuple[torch.Tensor, float]:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    return 1.0 / (rope.theta**exponents), 1.0


def _linear(rope: Rope, head_dim: int, max_positions: int) -> tuple[torch.Tensor, float]:
    inverse, factor = _default(rope, head_dim, max_positions)
    return inverse / rope.parameters["factor"], factor


def _llama3(rope: Rope, head_dim: int, max_positions: int) -> tuple[torch.Tensor, float]:
    inverse, attention = _default(rope, head_dim, max_positions)
    factor = rope.parameters["factor"]
    low = rope.parameters["low_freq_factor"]
    high = rope.parameters["high_freq_factor"]
    length = rope.parameters["original_max_position_embeddings"]
    wavelength = 2 * math.pi / inverse
    scaled = torch.where(wavelength > length / low, inverse / factor, inverse)
    smooth = (length / wavelength - low) / (high - low)
    smoothed = (1 - smooth) * scaled / factor + smooth * scaled
    medium = ~(wavelength < length / high) * ~(wavelength > length / low)
    return torch.where(medium, smoothed, scaled), attention


def _yarn(rope: Rope, head_dim: int, max_positions: int) -> tuple[torch.Tensor, float]:
    parameters = rope.parameters
    factor = parameters["factor"]
    length = parameters.get("original_max_position_embeddings") or max_positions

    def dimension(rotations: float) -> float:
        return (head_dim * math.log(length / (rotations * 2 * math.pi))) / (
            2 * math.log(rope.theta)
        )

    low = dimension(parameters.get("beta_fast") or 32)
    high = dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)
    keep = 1 - torch.clamp(ramp, 0, 1)
    frequencies = rope.theta ** (torch.arange(0, head_dim, 2).to(torch.float32) / head_dim)
    inverse = 1.0 / (factor * frequencies) * (1 - keep) + 1.0 / frequencies * keep
    return inverse, _yarn_attention(parameters, factor)


def _yarn_attention(parameters: Mapping[str, float | bool], factor: float) -> float:
    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    mscale, mscale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and mscale_all:
        return float(scale(mscale) / scale(mscale_all))
    return scale(1.0)


_FORMULAS: Final[dict[str, Callable[[Rope, int, int], tuple[torch.Tensor, float]]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def cos_sin(
    inverse: torch.Tensor, attention: float, positions: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Tables of cosines and sines, both float32 (positions, head_dim / 2)."""
    # float32 product, as in the reference: its rounding is part of the model
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), inverse)
    return (angles.cos() * attention).numpy(), (angles.sin() * attention).numpy()

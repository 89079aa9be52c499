"""Choose a kind for every linear: within an allowed error, at the least cost.

In: the measured errors of every kind. Out: one kind per linear. Imports nothing but the kinds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .calibration import Measured
from .kinds import BLOCKS, COSTS, FP32, INT8, KINDS, LEAST_INT8, MOST_FP32

Plan = Mapping[tuple[int, str], str]  # (layer, unit) -> kind


def cheapest(units: Sequence[Measured]) -> dict[tuple[int, str], str]:
    """Everything in the cheapest kind."""
    return {(unit.layer, unit.unit): KINDS[0] for unit in units}


def total_error(units: Sequence[Measured], plan: Plan) -> float:
    """What the units' errors add up to: they are independent, so their squares add."""
    return sum(unit.errors[plan[unit.layer, unit.unit]] for unit in units)


def cost(units: Sequence[Measured], plan: Plan) -> float:
    """Time of one token, in multiply-adds of int8."""
    return sum(unit.multiply_adds * COSTS[plan[unit.layer, unit.unit]] for unit in units)


def choose(units: Sequence[Measured], allowed: float) -> dict[tuple[int, str], str]:
    """Begin with the cheapest kinds; pay where a unit of time removes the most error.

    At least ``LEAST_INT8`` of the multiply-adds stay int8, in one pass as long as ``allowed`` can
    be reached so, and at most ``MOST_FP32`` become float32. When ``allowed`` cannot be reached at
    all, the result is as precise as it gets.
    """
    plan = cheapest(units)
    left = total_error(units, plan)
    total = sum(unit.multiply_adds for unit in units)
    # multiply-adds that may still leave int8 in one pass, int8 altogether, and become float32
    room = {
        INT8: (1 - LEAST_INT8) * total,
        BLOCKS: (1 - LEAST_INT8) * total,
        FP32: MOST_FP32 * total,
    }
    while left > allowed:
        best: tuple[float, Measured, str] | None = None
        for unit in units:
            now = plan[unit.layer, unit.unit]
            for kind in KINDS[KINDS.index(now) + 1 :]:
                gain = unit.errors[now] - unit.errors[kind]
                taken = _leaves(unit, now, kind)
                if gain <= 0 or any(room[which] < size for which, size in taken.items()):
                    continue
                worth = gain / (unit.multiply_adds * (COSTS[kind] - COSTS[now]))
                if best is None or worth > best[0]:
                    best = (worth, unit, kind)
        if best is None and room[INT8] < math.inf:
            room[INT8] = math.inf  # not to be reached in one pass
            continue
        if best is None:
            break
        _, unit, kind = best
        for which, size in _leaves(unit, plan[unit.layer, unit.unit], kind).items():
            room[which] -= size
        left -= unit.errors[plan[unit.layer, unit.unit]] - unit.errors[kind]
        plan[unit.layer, unit.unit] = kind
    return plan


def _leaves(unit: Measured, now: str, kind: str) -> dict[str, int]:
    """The room that a change of kind takes."""
    taken = {}
    if now == INT8:
        taken[INT8] = unit.multiply_adds
    if kind in (BLOCKS, FP32) and now not in (BLOCKS, FP32):
        taken[BLOCKS] = unit.multiply_adds
    if kind == FP32:
        taken[FP32] = unit.multiply_adds
    return taken


def shares(units: Sequence[Measured], plan: Plan) -> dict[str, float]:
    """Each kind's share of the multiply-adds."""
    total = sum(unit.multiply_adds for unit in units)
    found = dict.fromkeys(KINDS, 0.0)
    for unit in units:
        found[plan[unit.layer, unit.unit]] += unit.multiply_adds / total
    return found

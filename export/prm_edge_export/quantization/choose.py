"""Choose a kind for every linear: within an allowed error, at the least cost.

In: the measured errors of every kind. Out: one kind per linear. Imports nothing but the kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .calibration import Measured
from .kinds import FP32, INT8_MENU, Menu

Plan = Mapping[tuple[int, str], str]  # (layer, unit) -> kind


def cheapest(units: Sequence[Measured], menu: Menu = INT8_MENU) -> dict[tuple[int, str], str]:
    """Everything in the cheapest kind."""
    return {(unit.layer, unit.unit): menu.kinds[0] for unit in units}


def total_error(units: Sequence[Measured], plan: Plan) -> float:
    """What the units' errors add up to: they are independent, so their squares add."""
    return sum(unit.errors[plan[unit.layer, unit.unit]] for unit in units)


def cost(units: Sequence[Measured], plan: Plan, menu: Menu = INT8_MENU) -> float:
    """What one token costs, in multiply-adds of the cheapest kind."""
    return sum(unit.multiply_adds * menu.costs[plan[unit.layer, unit.unit]] for unit in units)


def choose(
    units: Sequence[Measured], allowed: float, menu: Menu = INT8_MENU
) -> dict[tuple[int, str], str]:
    """Begin with the cheapest kind; pay where a unit of cost removes the most error.

    The menu says how many multiply-adds stay in it at least, and how many become float32 at most;
    where ``allowed`` cannot be reached so, its kind ``twice`` counts as the first one too. When it
    cannot be reached at all, the result is as precise as it gets.
    """
    kinds, costs = menu.kinds, menu.costs
    firsts = {kinds[0]}
    plan = cheapest(units, menu)
    left = total_error(units, plan)
    total = sum(unit.multiply_adds for unit in units)
    # multiply-adds that may still leave the first kind, and that may still become float32
    room = {kinds[0]: (1 - menu.least) * total, FP32: menu.most_fp32 * total}
    while left > allowed:
        best: tuple[float, Measured, str] | None = None
        for unit in units:
            now = plan[unit.layer, unit.unit]
            for kind in kinds[kinds.index(now) + 1 :]:
                gain = unit.errors[now] - unit.errors[kind]
                taken = _leaves(unit, now, kind, firsts, kinds[0])
                if gain <= 0 or any(room[which] < size for which, size in taken.items()):
                    continue
                worth = gain / (unit.multiply_adds * (costs[kind] - costs[now]))
                if best is None or worth > best[0]:
                    best = (worth, unit, kind)
        if best is None and menu.twice is not None and menu.twice not in firsts:
            firsts.add(menu.twice)
            back = (u for u in units if plan[u.layer, u.unit] == menu.twice)
            room[kinds[0]] += sum(unit.multiply_adds for unit in back)
            continue
        if best is None:
            break
        _, unit, kind = best
        for which, size in _leaves(
            unit, plan[unit.layer, unit.unit], kind, firsts, kinds[0]
        ).items():
            room[which] -= size
        left -= unit.errors[plan[unit.layer, unit.unit]] - unit.errors[kind]
        plan[unit.layer, unit.unit] = kind
    return plan


def _leaves(unit: Measured, now: str, kind: str, firsts: set[str], first: str) -> dict[str, int]:
    """The room that a change of kind takes: out of the first ones, and into float32."""
    taken = {}
    if now in firsts and kind not in firsts:
        taken[first] = unit.multiply_adds
    if kind == FP32:
        taken[FP32] = unit.multiply_adds
    return taken


def shares(units: Sequence[Measured], plan: Plan, menu: Menu = INT8_MENU) -> dict[str, float]:
    """Each kind's share of the multiply-adds."""
    total = sum(unit.multiply_adds for unit in units)
    found = dict.fromkeys(menu.kinds, 0.0)
    for unit in units:
        found[plan[unit.layer, unit.unit]] += unit.multiply_adds / total
    return found

"""The plan that is kept is the cheapest of those tried that meet the target, and the last built."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch", reason="needs the export extra")

from hypothesis import given, settings
from hypothesis import strategies as st

from prm_edge_export.quantization import choose, search
from prm_edge_export.quantization.calibration import Calibration, Measured
from prm_edge_export.quantization.kinds import UNITS


def a_model(seed: int) -> Calibration:
    """12 layers whose linears lose very unlike amounts in int8, and a tenth of that in int8x2."""
    rng = random.Random(seed)
    units = []
    for layer in range(12):
        for unit in UNITS:
            lost = 10 ** rng.uniform(-5, -3)
            units.append(
                Measured(
                    layer=layer,
                    unit=unit.name,
                    multiply_adds=rng.choice((1000, 3000)),
                    strength=None,
                    compensated=True,
                    errors={"int8": lost, "int8x2": lost / 10, "fp32": 0.0},
                )
            )
    return Calibration(units=units)


@given(
    seed=st.integers(0, 1000),
    steepness=st.floats(0.15, 1.0),
    aim=st.floats(0.1, 2.0),
    noise=st.floats(0, 0.1),
)
@settings(max_examples=60, deadline=None)
def test_find_plan_keeps_the_cheapest_that_meets_the_target(
    seed: int, steepness: float, aim: float, noise: float
) -> None:
    calibration, rng = a_model(seed), random.Random(seed)
    everything = choose.total_error(calibration.units, choose.cheapest(calibration.units))
    built: list[tuple[choose.Plan, search.Drift]] = []

    def build(plan: choose.Plan) -> search.Drift:
        known = [drift for other, drift in built if other == plan]
        share = choose.total_error(calibration.units, plan) / everything
        off = share**steepness / aim * (1 + noise * rng.uniform(-1, 1))
        drift = (
            known[0] if known else search.Drift(mean_dp=0.0, rel_rms=search.TARGET_REL_RMS * off)
        )
        built.append((plan, drift))
        return drift

    lines: list[str] = []
    plan, drift = search.find_plan(calibration, build, lines.append)
    targets = search.targets_of(calibration.menu)
    assert built[-1] == (plan, drift)  # what lies in the folder is what is returned
    assert len(lines) <= search.TRIES
    met = [other for other, found in built if found.of(targets) <= 1]
    cost = {id(other): choose.cost(calibration.units, other) for other, _ in built}
    if met:
        assert drift.of(targets) <= 1
        assert choose.cost(calibration.units, plan) == min(cost[id(other)] for other in met)
    else:
        assert drift.of(targets) == min(found.of(targets) for _, found in built)


def test_find_plan_comes_back_from_too_strict_a_plan() -> None:
    """Drift that falls faster than the root of the errors: the second plan is far too good."""
    calibration = a_model(5)
    everything = choose.total_error(calibration.units, choose.cheapest(calibration.units))
    costs: list[float] = []

    def build(plan: choose.Plan) -> search.Drift:
        costs.append(choose.cost(calibration.units, plan))
        share = choose.total_error(calibration.units, plan) / everything
        return search.Drift(mean_dp=0.0, rel_rms=search.TARGET_REL_RMS * 1.5 * share**2)

    plan, _ = search.find_plan(calibration, build, lambda line: None)
    assert choose.cost(calibration.units, plan) < 0.97 * costs[1]

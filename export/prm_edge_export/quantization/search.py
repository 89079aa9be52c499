"""Calibrate, then build the cheapest graph whose measured drift stays within the target.

In: what an export decided, and the records of the proof. Out: the graph in its folder, the
reference's outputs for these records, and what was chosen. Drift is measured with the shipped
engine, on solutions that neither calibration nor proof uses, as one of scores alone. N reads, C
logits, W outputs of all heads.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prm_edge_runtime import scoring
from prm_edge_runtime.encoding import Encoded
from prm_edge_runtime.engine import open_engine
from prm_edge_runtime.manifest import DECODER, Prefix, Variant
from prm_edge_runtime.recipe import Score

from ..checkpoint import Tensors
from ..graph import GRAPH_NAME
from ..heads import Head
from ..model_config import DecoderConfig
from ..pace import paced
from . import choose
from .calibration import SAMPLED_LAYERS, Calibration, calibrate, compare_bases
from .graph import build_quantized
from .kinds import INT4, Menu
from .layers import LayerRunner, StoredReference
from .rotation import RotatedTensors, can_rotate
from .texts import Solutions

Say = Callable[[str], None]

# What the plan aims at, on its own solutions, so that the budget is met on those of the proof
TARGET_MEAN_DP: Final = 0.006
TARGET_REL_RMS: Final = 0.045  # 1.4 times what torch bf16 shows on the trained SmolLM2
INT4_TARGETS: Final = (0.02, 0.16)
TRIES: Final = 5
PREFIX_NAME: Final = "prefix.f32"
COMPARED: Final = 16  # solutions on which two bases are compared
_STRICTER: Final = 0.9  # aim a little below what the last measurement says is needed
_WORTH_A_TRY: Final = 0.05  # of the cost: a plan cheaper by less is not looked for
WORST_SHOWN: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Distance of a graph from the reference on the plan's solutions."""

    mean_dp: float
    rel_rms: float

    def of(self, targets: tuple[float, float]) -> float:
        """1 where the worse of both figures just meets its target."""
        return max(self.mean_dp / targets[0], self.rel_rms / targets[1])


def targets_of(menu: Menu) -> tuple[float, float]:
    """Mean |dp| and relative RMS that a plan aims at; who asks for one gets the other with it."""
    own = INT4_TARGETS if menu.precision == INT4 else (TARGET_MEAN_DP, TARGET_REL_RMS)
    return own if menu.drift is None else (menu.drift, own[1] * menu.drift / own[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """What was built: the reference's answers, the plan for the report, the worst linears."""

    reference: StoredReference
    report: dict[str, Any]
    worst: list[str]
    opening: tuple[int, ...]  # the tokens whose keys and values are in PREFIX_NAME


def build_within_target(
    config: DecoderConfig,
    head: Head,
    tensors: Tensors,
    score: Score,
    folder: Path,
    solutions: Solutions,
    verification: Sequence[Encoded],
    *,
    opening: NDArray[np.int64],
    max_tokens: int,
    say: Say,
    menu: Menu,
) -> Quantized:
    """Write ``model.onnx``, its data and the cache of the ``opening`` into ``folder``.

    When no plan meets the target the most precise one that was tried stays; the proof decides.

    Raises:
        CheckpointError: when a tensor is missing, has another shape or is not finite.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    searched = solutions.search
    if config.window is not None:
        opening = opening[:0]  # a window moves on, and leaves these tokens behind
    try:
        rotated = can_rotate(config, head) and _rotation_helps(
            config, head, tensors, solutions.calibration, opening, scratch, say, menu
        )
        turned = RotatedTensors(tensors, config, head) if rotated else tensors
        runner = LayerRunner(config, head, turned, opening, scratch=scratch)
        calibration = calibrate(
            runner,
            LayerRunner(config, head, tensors, scratch=scratch, beside=runner),
            config,
            solutions.calibration,
            [*searched, *verification],
            scratch,
            paced("calibration", say),
            menu=menu,
        )
        del runner  # and its layer, before the whole graph is run
        if len(opening):
            np.concatenate(calibration.opening).astype("<f4").tofile(folder / PREFIX_NAME)
        variant = trial_variant(config, menu, tuple(opening.tolist()))

        def build(plan: choose.Plan) -> Drift:
            build_quantized(config, head, turned, folder, calibration, plan, max_tokens=max_tokens)
            return drift_of(folder, variant, head, score, searched, calibration.outputs)

        plan, drift = find_plan(calibration, build, say)
    finally:
        shutil.rmtree(scratch)
    return Quantized(
        reference=StoredReference(verification, calibration.outputs[len(searched) :]),
        report={
            "rotated": rotated,
            "opening_tokens": len(opening),
            **report_of(calibration, plan, drift, solutions),
        },
        worst=worst_of(calibration, plan),
        opening=tuple(opening.tolist()),
    )


def _rotation_helps(
    config: DecoderConfig,
    head: Head,
    tensors: Tensors,
    records: Sequence[Encoded],
    opening: NDArray[np.int64],
    scratch: Path,
    say: Say,
    menu: Menu,
) -> bool:
    """Whether it loses less in the rotated basis; smoothing and compensation have a say."""
    few = records[:: max(1, len(records) // COMPARED)]
    turned = RotatedTensors(tensors, config, head)
    plain = LayerRunner(config, head, tensors, opening, scratch=scratch)
    other = LayerRunner(config, head, turned, opening, scratch=scratch, beside=plain)
    trained, rotated = compare_bases(
        plain, other, turned.turn, config, few, paced("basis", say), menu=menu
    )
    say(
        f"basis: {menu.kinds[0]} loses {trained:.3g} as trained, {rotated:.3g} rotated "
        f"in {min(SAMPLED_LAYERS, config.layers)} layers"
    )
    return rotated < trained


def find_plan(
    calibration: Calibration, build: Callable[[choose.Plan], Drift], say: Say
) -> tuple[choose.Plan, Drift]:
    """Build plans until one meets the target, then look for a cheaper one that does too.

    Drift grows with about the root of the summed errors; how far that holds, each try tells. When
    none meets the target, the most precise one that was tried stays.
    """
    units, menu = calibration.units, calibration.menu
    targets = targets_of(menu)
    plan: choose.Plan = choose.cheapest(units, menu)
    tried: list[Tried] = []
    while True:
        drift = build(plan)
        tried.append(
            Tried(
                plan=plan,
                drift=drift,
                off=drift.of(targets),
                error=choose.total_error(units, plan),
                cost=_relative_cost(calibration, plan),
            )
        )
        say(
            f"plan {len(tried)}: {choose.shares(units, plan, menu)[menu.kinds[0]]:.0%} "
            f"{menu.kinds[0]}, relative cost {tried[-1].cost:.2f}, mean |dp| {drift.mean_dp:.4f}, "
            f"relative RMS {drift.rel_rms:.4f} on its own solutions"
        )
        allowed = _allowed_next(tried)
        if allowed is None or len(tried) == TRIES:
            break
        following = choose.choose(units, allowed, menu)
        if any(following == one.plan for one in tried):
            break
        plan = following
    met = [one for one in tried if one.off <= 1]
    best = min(met, key=lambda one: one.cost) if met else min(tried, key=lambda one: one.off)
    if best.plan is not plan:
        build(best.plan)
    return best.plan, best.drift


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A plan that was built. ``off``: its drift, 1 where it just meets the target."""

    plan: choose.Plan
    drift: Drift
    off: float
    error: float
    cost: float


def _allowed_next(tried: Sequence[Tried]) -> float | None:
    """The summed errors that the next plan may have; None when looking on is not worth it."""
    met = [one for one in tried if one.off <= 1]
    if not met:
        return tried[-1].error * (_STRICTER / tried[-1].off) ** 2
    # the cheapest that meets the target, and the dearest that does not
    best = min(met, key=lambda one: one.cost)
    missed = [one for one in tried if one.off > 1 and one.cost < best.cost]
    if not missed:
        return None
    last = max(missed, key=lambda one: one.cost)
    if best.cost <= last.cost * (1 + _WORTH_A_TRY):
        return None
    return math.sqrt(best.error * last.error)


def trial_variant(config: DecoderConfig, menu: Menu, opening: tuple[int, ...] = ()) -> Variant:
    """The graph that is tried, for the engine on the CPU."""
    return Variant(
        name="plan",
        device="cpu",
        precision=menu.precision,
        interface=DECODER,
        graph=GRAPH_NAME,
        files=(),
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        proof={},
        prefix=Prefix(file=PREFIX_NAME, ids=opening) if opening else None,
    )


def drift_of(
    folder: Path,
    variant: Variant,
    head: Head,
    score: Score,
    records: Sequence[Encoded],
    outputs: Sequence[NDArray[np.float32]],
) -> Drift:
    """How far a folder's graph is from the reference's ``outputs`` (N, W), first the records'."""
    engine = open_engine(
        folder / GRAPH_NAME, variant, logits=head.logits, kinds=len(head.kinds), threads=0
    )
    got = [engine.run(record.ids, record.reads) for record in records]
    found = np.concatenate([each[:, : head.logits] for each in got])
    expected = np.concatenate([each[:, : head.logits] for each in outputs[: len(records)]])
    spread = max(float(np.sqrt(np.mean((expected - expected.mean(axis=0)) ** 2))), 1e-30)
    differences = scoring.scores_from_logits(found, score) - scoring.scores_from_logits(
        expected, score
    )
    return Drift(
        mean_dp=float(abs(differences).mean()),
        rel_rms=float(np.sqrt(np.mean((found - expected) ** 2))) / spread,
    )


def _relative_cost(calibration: Calibration, plan: choose.Plan) -> float:
    units, menu = calibration.units, calibration.menu
    everything = choose.cost(units, choose.cheapest(units, menu), menu)
    return choose.cost(units, plan, menu) / everything


def report_of(
    calibration: Calibration, plan: choose.Plan, drift: Drift, solutions: Solutions
) -> dict[str, Any]:
    menu = calibration.menu
    shares = choose.shares(calibration.units, plan, menu)
    targets = targets_of(menu)
    return {
        "shares": {kind: round(share, 4) for kind, share in shares.items()},
        "cost": round(_relative_cost(calibration, plan), 4),
        "cost_of": menu.cost_of,
        "kind_costs": dict(menu.costs),
        "drift": {"mean_abs_dp": drift.mean_dp, "logit_rel_rms": drift.rel_rms},
        "target": {"mean_abs_dp": targets[0], "logit_rel_rms": targets[1]},
        "solutions": {
            "calibration": len(solutions.calibration),
            "search": len(solutions.search),
            **solutions.hashes,
        },
        "linears": [
            {
                "layer": unit.layer,
                "linear": unit.unit,
                "kind": plan[unit.layer, unit.unit],
                "smoothing": unit.strength,
                "compensated": unit.compensated,
                "errors": {kind: float(f"{error:.3g}") for kind, error in unit.errors.items()},
            }
            for unit in calibration.units
        ],
    }


def worst_of(calibration: Calibration, plan: choose.Plan) -> list[str]:
    """The linears that lose most, as lines of a table."""
    total = max(choose.total_error(calibration.units, plan), 1e-30)
    lost = sorted(
        ((u.errors[plan[u.layer, u.unit]], u) for u in calibration.units), key=lambda x: -x[0]
    )[:WORST_SHOWN]
    return [
        f"  layer {unit.layer:3d}  {unit.unit:8}  {plan[unit.layer, unit.unit]:7} "
        f"{error / total:6.1%} of the plan's error"
        for error, unit in lost
    ]

"""What the linears of a layer read, and what a rounded weight does to the layer's output.

In: the reference, a layer at a time, and its streams. Out: second moments and samples of inputs,
relative errors. T tokens, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from . import weights
from .kinds import UNITS, Unit
from .layers import Batch, LayerRunner, hooked

Rounding = Callable[[torch.Tensor], torch.Tensor]  # of activations

JUDGED_TOKENS: Final = 1024  # on which a kind's error is measured
_SAMPLED_TOKENS: Final = 512  # on which strengths are compared


@dataclass(slots=True, kw_only=True, eq=False)
class Seen:
    """What a unit read, summed up as it passed by; the rows themselves would take gigabytes.

    ``hessian``: their second moments (K, K), where K is large only blocks on the diagonal.
    ``sample`` (T, K).
    """

    largest: torch.Tensor
    hessian: list[torch.Tensor]
    sample: list[torch.Tensor]

    def add(self, rows: torch.Tensor, first: int, step: int) -> None:
        """Take in rows (T, K), and each ``step``-th of them from ``first`` on into the sample."""
        torch.maximum(self.largest, rows.abs().amax(dim=0), out=self.largest)
        parts = torch.split(rows, weights.MAX_COMPENSATED, dim=1)
        for square, part in zip(self.hessian, parts, strict=True):
            square.addmm_(part.T, part)
        self.sample.append(rows[first::step])


def run_and_catch(
    runner: LayerRunner, batches: Sequence[Batch]
) -> tuple[dict[str, Seen], torch.Tensor]:
    """Move the streams on. -> what each unit read; the streams' norms at the sampled tokens"""
    seen = {}
    for unit in UNITS:
        width = runner.layer.get_submodule(unit.parts[0]).in_features
        moments = [
            torch.zeros(len(part), len(part))
            for part in torch.split(torch.zeros(width), weights.MAX_COMPENSATED)
        ]
        seen[unit.name] = Seen(largest=torch.zeros(width), hessian=moments, sample=[])
    total = sum(int(batch.valid.sum()) for batch in batches)
    step = max(1, total // _SAMPLED_TOKENS)
    norms, passed = [], 0
    for batch in batches:
        first = -passed % step

        def catch(unit: Unit, valid: torch.Tensor, first: int) -> Callable[[torch.Tensor], None]:
            return lambda value: seen[unit.name].add(value[valid], first, step)

        with hooked(runner.layer, {u.parts[0]: catch(u, batch.valid, first) for u in UNITS}):
            stream = runner.forward(batch.stream)
        batch.stream = stream
        norms.append(stream[batch.valid][first::step].norm(dim=1))
        passed += int(batch.valid.sum())
    return seen, torch.cat(norms)


def weights_of(layer: Any, unit: Unit) -> list[torch.Tensor]:
    return [layer.get_submodule(part).weight for part in unit.parts]


def first_tokens(batches: Sequence[Batch], tokens: int) -> list[int]:
    """Batches from all over the lengths, with about this many tokens together."""
    total = sum(int(batch.valid.sum()) for batch in batches)
    step = max(1, total // tokens)
    return list(range(min(step // 2, len(batches) - 1), len(batches), step))


def error_of(
    runner: LayerRunner,
    unit: Unit,
    weight: torch.Tensor,
    rounding: Rounding,
    batches: Sequence[Batch],
    before: Mapping[int, torch.Tensor],
    after: Mapping[int, torch.Tensor],
) -> float:
    """What the layer's output loses when this unit alone has this weight and rounds its inputs."""
    modules = [runner.layer.get_submodule(part) for part in unit.parts]
    kept = [module.weight.clone() for module in modules]
    total, tokens = 0.0, 0
    try:
        for module, part in zip(modules, torch.split(weight, [len(w) for w in kept]), strict=True):
            module.weight.copy_(part)
        with hooked(runner.layer, dict.fromkeys(unit.parts, rounding)):
            for at in before:
                valid = batches[at].valid
                change = (runner.forward(before[at]) - after[at])[valid]
                relative = change.norm(dim=1) / after[at][valid].norm(dim=1).clamp(min=1e-8)
                total += float((relative**2).sum())
                tokens += len(relative)
    finally:
        for module, original in zip(modules, kept, strict=True):
            module.weight.copy_(original)
    return total / max(tokens, 1)

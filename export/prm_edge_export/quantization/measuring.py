"""What the linears of a layer read, and what a rounded weight does to the layer's output.

In: the reference, a layer at a time, and its streams. Out: second moments and samples of inputs,
relative errors. T tokens, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from . import weights
from .kinds import UNITS, Unit
from .layers import Batch, LayerRunner, hooked, replayed

Rounding = Callable[[torch.Tensor], torch.Tensor]  # of activations

JUDGED_TOKENS: Final = 1024  # about so many, on which a kind's error is measured
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


class Judge:
    """What a rounded weight does to the output of the loaded layer, on some of the tokens.

    Made before the streams move on past the layer, and settled when its weights are what they
    shall be but for rounding. Whole records, from all over the lengths.
    """

    def __init__(self, runner: LayerRunner, batches: Sequence[Batch]) -> None:
        self._runner = runner
        # streams (B, T, H), and where tokens are (B, T)
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._after: list[torch.Tensor] = []  # (B, T, H)
        self._given: dict[str, list[Any]] = {}  # module -> what it gives, for each of them
        total = sum(int(batch.valid.sum()) for batch in batches)
        records = sum(len(batch.records) for batch in batches)
        step = min(records, -(-total // JUDGED_TOKENS))
        passed = -(step // 2)
        for batch in batches:
            rows = list(range(-passed % step, len(batch.records), step))
            if rows:
                width = int(batch.valid[rows].sum(dim=1).max())
                self._before.append((batch.stream[rows, :width], batch.valid[rows, :width]))
            passed += len(batch.records)

    def settle(self) -> None:
        """Run the layer as it is now: what rounding is compared with."""
        layer = self._runner.layer
        names = sorted({name for unit in UNITS for name in unit.before})
        self._given = {name: [] for name in names}
        handles = [
            layer.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: self._given[name].append(output)
            )
            for name in names
        ]
        try:
            self._after = [self._runner.forward(stream) for stream, _ in self._before]
        finally:
            for handle in handles:
                handle.remove()

    def error_of(self, unit: Unit, weight: torch.Tensor, rounding: Rounding) -> float:
        """What the output loses when this unit alone has this weight and rounds its inputs.

        Modules that come before the unit give what they gave.
        """
        layer = self._runner.layer
        modules = [layer.get_submodule(part) for part in unit.parts]
        kept = [module.weight.clone() for module in modules]
        total, tokens = 0.0, 0
        parts = torch.split(weight, [len(own) for own in kept])
        try:
            for module, part in zip(modules, parts, strict=True):
                module.weight.copy_(part)
            with (
                hooked(layer, dict.fromkeys(unit.parts, rounding)),
                replayed(layer, {name: self._given[name] for name in unit.before}),
            ):
                for (stream, valid), after in zip(self._before, self._after, strict=True):
                    change = (self._runner.forward(stream) - after)[valid]
                    relative = change.norm(dim=1) / after[valid].norm(dim=1).clamp(min=1e-8)
                    total += float((relative**2).sum())
                    tokens += len(relative)
        finally:
            for module, original in zip(modules, kept, strict=True):
                module.weight.copy_(original)
        return total / max(tokens, 1)

"""The proof: the packaged variant, run by the shipped runtime, against torch in float32.

In: a scorer on the staged package, the reference, real worked solutions. Out: a report, and an
error when the budget is exceeded. Probabilities alone can hide errors (a head with tiny logits
puts every score near 0.5), so the relative error of the logits has a budget too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from prm_edge_runtime import Scorer, kinds, scoring
from prm_edge_runtime.encoding import RecipeEncoder
from prm_edge_runtime.errors import CheckpointError, ProofError
from prm_edge_runtime.recipe import Recipe

from .tokenization import WHOLE_JOINT


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a precision may lose: figures with their limits, and the |dp| any self-test allows.

    ``kinds_at_most`` and so on: where errors are named too. ``texts``: the bundled
    solutions it is proven on; flips of a few in a hundred need many.
    """

    at_most: dict[str, float]
    at_least: dict[str, float]
    kinds_at_most: dict[str, float]
    kinds_at_least: dict[str, float]
    tolerance: float
    kinds_tolerance: float
    texts: tuple[str, ...]


BUDGETS: Final[dict[str, Budget]] = {
    "fp32": Budget(
        at_most={"max_abs_dp": 1e-4, "logit_rel_rms": 1e-3},
        at_least={},
        kinds_at_most={"kinds_max_abs_dp": 1e-4},
        kinds_at_least={"kinds_agreement": 0.99},
        tolerance=1e-3,
        kinds_tolerance=1e-3,
        texts=("verification.jsonl",),
    ),
    "fp16": Budget(
        at_most={"max_abs_dp": 5e-3, "logit_rel_rms": 2e-2},
        at_least={"first_error_agreement": 0.98},
        kinds_at_most={"kinds_max_abs_dp": 1e-2},
        kinds_at_least={"kinds_agreement": 0.98},
        tolerance=1e-2,
        kinds_tolerance=2e-2,
        texts=("verification.jsonl",),
    ),
    # torch's own bfloat16 loses 0.013 to 0.058 of the logits' spread; on SmolLM2 0.036, and 97.2%
    # of first errors agree; with a float32 stream 0.019 and 98.6%: benchmarks/README.md
    "bf16": Budget(
        at_most={"mean_abs_dp": 0.01, "logit_rel_rms": 0.05},
        at_least={"first_error_agreement": 0.98},
        kinds_at_most={"kinds_mean_abs_dp": 0.03},
        kinds_at_least={"kinds_agreement": 0.95},
        tolerance=0.05,
        kinds_tolerance=0.15,
        texts=("verification.jsonl", "verification_int8.jsonl"),
    ),
    "int8": Budget(
        at_most={"mean_abs_dp": 0.01, "logit_rel_rms": 0.1},
        at_least={"first_error_agreement": 0.98},
        kinds_at_most={"kinds_mean_abs_dp": 0.03},
        kinds_at_least={"kinds_agreement": 0.95},
        tolerance=0.05,
        kinds_tolerance=0.15,
        texts=("verification.jsonl", "verification_int8.jsonl"),
    ),
    "int4": Budget(
        at_most={"mean_abs_dp": 0.03, "logit_rel_rms": 0.25},
        at_least={"first_error_agreement": 0.95},
        kinds_at_most={"kinds_mean_abs_dp": 0.08},
        kinds_at_least={"kinds_agreement": 0.9},
        tolerance=0.15,
        kinds_tolerance=0.3,
        texts=("verification.jsonl", "verification_int8.jsonl"),
    ),
}
WORST_SHOWN: Final = 5


class Reference(Protocol):
    """What the proof needs of :class:`.reference.Reference`."""

    def run(self, ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        """(T,), (N,) -> (N, W): C logits, then what a head that names errors gives"""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One worked solution; ``label``: first wrong step, -1 for none, None when nobody knows."""

    problem: str
    steps: tuple[str, ...]
    label: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One solution, scored by both: shapes (N, C) for logits, (N,) for scores.

    ``reference_kinds``, ``package_kinds``: probabilities of the kinds of error, (N, kinds); None
    where the package names none.
    """

    text: Text
    reference_logits: NDArray[np.float64]
    package_logits: NDArray[np.float64]
    reference_scores: NDArray[np.float64]
    package_scores: NDArray[np.float64]
    reference_kinds: NDArray[np.float64] | None = None
    package_kinds: NDArray[np.float64] | None = None


def load_texts(
    path: Path | None, bundled: Sequence[str] = BUDGETS["fp32"].texts
) -> tuple[list[Text], str]:
    """Read worked solutions (``bundled`` files when ``path`` is None); also their SHA-256.

    Raises:
        CheckpointError: when the file cannot be read, or a line is not a worked solution.
    """
    data = Path(str(files("prm_edge_export"))) / "data"
    sources = [data / name for name in bundled] if path is None else [path]
    source = ", ".join(map(str, sources))
    try:
        raw = b"".join(file.read_bytes() for file in sources)
        lines = [line for line in raw.decode("utf-8-sig").split("\n") if line.strip()]
        texts = [_text(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"verification texts {source} cannot be read ({error!r}); each line must be a JSON "
            'object {"problem": ..., "steps": [...]}, with "label" optional'
        ) from error
    if not texts:
        raise CheckpointError(f"verification texts {source} hold no worked solution")
    return texts, hashlib.sha256(raw).hexdigest()


def as_whole(text: Text) -> Text:
    """The same solution as one step, for recipes that score whole solutions."""
    label = None if text.label is None else min(text.label, 0)
    return Text(problem=text.problem, steps=(WHOLE_JOINT.join(text.steps),), label=label)


def texts_for(
    recipe: Recipe, path: Path | None, bundled: Sequence[str] = BUDGETS["fp32"].texts
) -> tuple[list[Text], str]:
    """:func:`load_texts`, as the recipe takes them.

    Raises:
        CheckpointError: as :func:`load_texts`.
    """
    texts, digest = load_texts(path, bundled)
    whole = recipe.split.separator is None
    return [as_whole(text) if whole else text for text in texts], digest


def _text(data: Any) -> Text:
    steps, label = data["steps"], data.get("label")
    if not isinstance(data["problem"], str) or not isinstance(steps, list) or not steps:
        raise TypeError("problem must be a string and steps a list that is not empty")
    if any(not isinstance(step, str) for step in steps):
        raise TypeError("every step must be a string")
    return Text(
        problem=data["problem"],
        steps=tuple(steps),
        label=label if isinstance(label, int) else None,
    )


def compare(
    scorer: Scorer,
    encoder: RecipeEncoder,
    reference: Reference,
    texts: Iterable[Text],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Compared]:
    """Score every text with the package and with torch.

    Raises:
        ProofError: when either returns numbers that are none.
    """
    expected: list[tuple[Text, NDArray[np.float32]]] = []
    for text in texts:
        encoded = encoder.encode(text.problem, text.steps)
        if len(encoded.ids) > scorer.max_tokens:
            continue
        rows = reference.run(encoded.ids, encoded.reads)
        if not np.isfinite(rows).all():
            raise ProofError(
                f"torch itself returns logits that are not finite for {text.problem[:40]!r}; "
                "the checkpoint is damaged"
            )
        expected.append((text, rows))
        progress(len(expected))
    # Only now the package: onnxruntime's threads spin between runs and would slow torch's down.
    results = [_compared(scorer, text, rows) for text, rows in expected]
    if not results:
        raise ProofError(
            f"every verification text is longer than the model's {scorer.max_tokens} tokens; "
            "give shorter ones with --verify"
        )
    return results


def _compared(scorer: Scorer, text: Text, reference: NDArray[np.float32]) -> Compared:
    scored = scorer.score(text.problem, text.steps)
    recipe, names = scorer.recipe, scorer.package.manifest.error_kinds
    logits, outputs = reference[:, : recipe.logits], reference[:, recipe.logits :]
    named = scored.kinds is not None and len(text.steps) > 0
    return Compared(
        text=text,
        reference_logits=logits.astype(np.float64),
        package_logits=np.array(scored.logits, dtype=np.float64),
        reference_scores=scoring.scores_from_logits(logits, recipe.score),
        package_scores=np.array(scored.scores, dtype=np.float64),
        reference_kinds=kinds.probabilities(outputs, names) if named else None,
        package_kinds=np.array(scored.kinds.probabilities, dtype=np.float64)
        if scored.kinds is not None and named
        else None,
    )


def measure(results: Sequence[Compared], threshold: float) -> dict[str, float | int]:
    """The figures of the proof; see the README for what each means."""
    differences = np.concatenate([abs(r.reference_scores - r.package_scores) for r in results])
    reference = np.concatenate([r.reference_logits for r in results])
    error = np.concatenate([r.package_logits for r in results]) - reference
    # around the mean: a constant that every logit shares must not make errors look small
    spread = float(np.sqrt(np.mean((reference - reference.mean(axis=0)) ** 2)))
    first = [
        (
            scoring.first_error(r.reference_scores.tolist(), threshold),
            scoring.first_error(r.package_scores.tolist(), threshold),
        )
        for r in results
    ]
    flips = sum(
        int(((r.reference_scores < threshold) != (r.package_scores < threshold)).sum())
        for r in results
    )
    figures: dict[str, float | int] = {
        "solutions": len(results),
        "steps": len(differences),
        "max_abs_dp": float(differences.max()),
        "mean_abs_dp": float(differences.mean()),
        "logit_std": spread,
        "logit_rel_rms": float(np.sqrt(np.mean(error**2))) / max(spread, 1e-30),
        "step_flip_rate": flips / len(differences),
        "first_error_agreement": sum(a == b for a, b in first) / len(first),
    }
    labelled = [
        (r, pair) for r, pair in zip(results, first, strict=True) if r.text.label is not None
    ]
    if labelled:
        labels = [r.text.label or 0 for r, _ in labelled]
        figures["f1_torch"] = f1(labels, [pair[0] for _, pair in labelled])
        figures["f1_package"] = f1(labels, [pair[1] for _, pair in labelled])
    return figures | _kinds_figures(results)


def _kinds_figures(results: Sequence[Compared]) -> dict[str, float | int]:
    """The distance of the kinds' probabilities, at every step; empty where none are named."""
    pairs = [
        (r.reference_kinds, r.package_kinds)
        for r in results
        if r.reference_kinds is not None and r.package_kinds is not None
    ]
    if not pairs:
        return {}
    reference, package = (np.concatenate(side) for side in zip(*pairs, strict=True))
    differences = abs(reference - package)
    same = reference.argmax(axis=1) == package.argmax(axis=1)
    return {
        "kinds_max_abs_dp": float(differences.max()),
        "kinds_mean_abs_dp": float(differences.max(axis=1).mean()),
        "kinds_agreement": float(same.mean()),
    }


def lines(figures: dict[str, float | int]) -> list[str]:
    """The figures as the user is told."""
    said = [
        f"proof: max |dp| {figures['max_abs_dp']:.2e}, relative RMS of logits "
        f"{figures['logit_rel_rms']:.2e} over {figures['steps']} steps "
        f"of {figures['solutions']} solutions"
    ]
    if "kinds_agreement" in figures:
        said.append(
            f"proof of the kinds of error: max |dp| {figures['kinds_max_abs_dp']:.2e}, the same "
            f"kind at {figures['kinds_agreement']:.2%} of the steps"
        )
    return said


def f1(labels: Sequence[int], found: Sequence[int | None]) -> float:
    """ProcessBench's F1: harmonic mean of the accuracies on wrong and on clean solutions."""
    pairs = [
        (label, -1 if index is None else index) for label, index in zip(labels, found, strict=True)
    ]
    accuracies = []
    for wanted in (True, False):
        group = [label == index for label, index in pairs if (label >= 0) == wanted]
        accuracies.append(sum(group) / len(group) if group else 0.0)
    total = sum(accuracies)
    return 2 * accuracies[0] * accuracies[1] / total if total else 0.0


def check_budget(
    figures: dict[str, float | int], results: Sequence[Compared], precision: str
) -> str | None:
    """What is over budget, as one text with the worst steps; None when everything is within."""
    budget = BUDGETS[precision]
    at_most, at_least = budget.at_most, budget.at_least
    if any(r.reference_kinds is not None for r in results):
        at_most, at_least = at_most | budget.kinds_at_most, at_least | budget.kinds_at_least
    over = [
        f"{name} {figures[name]:.3g} > {limit:g}"
        for name, limit in at_most.items()
        if not figures[name] <= limit
    ]
    over += [
        f"{name} {figures[name]:.3g} < {limit:g}"
        for name, limit in at_least.items()
        if not figures[name] >= limit
    ]
    if not over:
        return None
    worst = sorted(
        (
            (abs(r.reference_scores[i] - r.package_scores[i]), r, i)
            for r in results
            for i in range(len(r.reference_scores))
        ),
        key=lambda item: -item[0],
    )[:WORST_SHOWN]
    rows = [
        f"  |dp| {dp:.6f}  torch {r.reference_scores[i]:.6f}  package {r.package_scores[i]:.6f}  "
        f"step {i} of {r.text.problem[:40]!r}"
        for dp, r, i in worst
    ]
    return f"over the {precision} budget: {', '.join(over)}; worst steps:\n" + "\n".join(rows)


def summary(
    figures: dict[str, float | int], limits: dict[str, float], drift: bool
) -> dict[str, Any]:
    """The flat proof that the manifest keeps for a variant."""
    return {
        **{key: round(v, 9) if isinstance(v, float) else v for key, v in figures.items()},
        **limits,
        "allowed_drift": drift,
    }

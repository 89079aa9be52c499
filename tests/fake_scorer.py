"""A scorer without a model, to test what surrounds one: a step that is a number scores that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import cast

from prm_edge_runtime import results
from prm_edge_runtime.encoding import check_steps, check_text
from prm_edge_runtime.errors import EngineError
from prm_edge_runtime.manifest import FileEntry, Manifest, Scalar, Variant
from prm_edge_runtime.package import Package
from prm_edge_runtime.prefixes import PrefixCounters
from prm_edge_runtime.reading import Reading
from prm_edge_runtime.recipe import Recipe, Score, Slot, Split, Text, Tokens
from prm_edge_runtime.results import SCORED, TOO_LONG, Ranking, StepScores
from prm_edge_runtime.scorer import Scorer

RECIPE = Recipe(
    family="trl",
    encode="separate",
    prompt=(Slot(name="problem"),),
    between=(),
    step=(Slot(name="step"), Tokens(ids=(198, 199), text="\n\n", read=-1)),
    split=Split(separator="\n\n"),
    logits=2,
    score=Score(kind="softmax", good=1),
    aggregates=("last", "mean", "min", "prod", "softmin"),
    aggregate="min",
    label_meaning="local",
)
DIFFERENCE = Recipe(
    family="pure",
    encode="joint",
    prompt=(Text(text="Q: "), Slot(name="problem")),
    between=(Text(text="\n"),),
    step=(Slot(name="step"), Tokens(ids=(198,), text="\n", read=0)),
    split=Split(separator="\n\n"),
    logits=2,
    score=Score(kind="difference", good=1, bad=0),
    aggregates=("min", "softmin"),
    aggregate="softmin",
    label_meaning="until_first_error",
)
RAW = Recipe(
    family="raw",
    encode="joint",
    prompt=(Slot(name="problem"),),
    between=(),
    step=(Slot(name="step"), Tokens(ids=(7,), text="ки", read=0)),
    split=Split(separator="\n"),
    logits=1,
    score=Score(kind="raw"),
    aggregates=("min",),
    aggregate="min",
    label_meaning="on_path",
)
DIGEST = "0123456789ab" + "0" * 52
# of a step's two kinds of error: the first where its last character is an odd digit
KINDS = ((0.25, 0.75), (0.9, 0.1))
NAMES = ("none", "sign", "slip")
LONG = "too long"  # a step that gets no score
BROKEN = "broken"  # a step on which the model fails


def manifest(
    recipe: Recipe = RECIPE,
    *,
    provenance: dict[str, Scalar] | None = None,
    proof: dict[str, Scalar] | None = None,
    error_kinds: tuple[str, ...] = (),
) -> Manifest:
    """A manifest of one variant."""
    entry = FileEntry(size=1_500_000, sha256="a" * 64)
    return Manifest(
        name="fake",
        recipe=recipe,
        max_tokens=1024,
        thresholds={"default": recipe.default_threshold},
        variants=(
            Variant(
                name="cpu-fp32",
                device="cpu",
                precision="fp32",
                interface="decoder",
                graph="cpu-fp32/model.onnx",
                files=("cpu-fp32/model.onnx",),
                layers=2,
                kv_heads=1,
                head_dim=8,
                proof={"max_dp": 1.5e-6} if proof is None else proof,
            ),
        ),
        files={"tokenizer.json": entry, "selftest.json": entry, "cpu-fp32/model.onnx": entry},
        provenance=provenance or {},
        error_kinds=error_kinds,
    )


class FakeScorer:
    """Has what jobs and commands use of a :class:`Scorer`."""

    variant = "cpu-fp32"
    device = "cpu"
    prefix_cache = PrefixCounters()

    def __init__(
        self,
        recipe: Recipe = RECIPE,
        *,
        source: str = "argument",
        provenance: dict[str, Scalar] | None = None,
        seconds: float = 0.0,
        error_kinds: tuple[str, ...] = (),
    ) -> None:
        self.recipe = recipe
        self.source = source
        self.threshold = recipe.default_threshold
        self.package = Package(
            root=Path("fake"),
            manifest=manifest(recipe, provenance=provenance, error_kinds=error_kinds),
            digest=DIGEST,
        )
        self._reading = Reading(recipe=recipe, error_kinds=error_kinds)
        self._seconds = seconds

    def prepare(self, problem: str, steps: Sequence[str]) -> tuple[str, Sequence[str]]:
        return problem, steps

    def score_prepared(self, prepared: Sequence[tuple[str, Sequence[str]]]) -> list[StepScores]:
        return [self.score(problem, steps) for problem, steps in prepared]

    def score(
        self, problem: str, steps: Sequence[str], *, on_too_long: str = "error"
    ) -> StepScores:
        assert on_too_long == "null" or LONG not in steps
        time.sleep(self._seconds)
        check_text(problem, "problem")
        checked = check_steps(steps)
        if BROKEN in checked:
            raise EngineError("the model returned a logit that is not finite")
        cut = checked.index(LONG) if LONG in checked else len(checked)
        scores = [_score(step) if index < cut else None for index, step in enumerate(checked)]
        return StepScores(
            scores=tuple(scores),
            status=tuple(TOO_LONG if score is None else SCORED for score in scores),
            threshold=self.threshold,
            n_tokens=len(problem) + sum(map(len, checked)),
            n_tokens_run=0,
            aggregates=self.recipe.aggregates,
            default_aggregate=self.recipe.aggregate,
            logits=(None,) * len(scores),
            kinds=self._reading.step_kinds(
                [None if s is None else KINDS[step[-1:] in "13579"] for s, step in
                 zip(scores, checked, strict=True)]
            ),
        )  # fmt: skip

    def score_many(
        self, items: Sequence[tuple[str, Sequence[str]]], *, on_too_long: str = "error"
    ) -> list[StepScores]:
        return [self.score(*item, on_too_long=on_too_long) for item in items]

    def rank(
        self,
        problem: str,
        candidates: Sequence[Sequence[str]],
        by: str | None = None,
        *,
        on_too_long: str = "error",
    ) -> Ranking:
        scored = tuple(self.score(problem, steps, on_too_long=on_too_long) for steps in candidates)
        return results.rank(scored, by or self.recipe.aggregate)

    def split(self, response: str) -> list[str]:
        check_text(response, "response")
        pieces = response.split(self.recipe.split.separator)
        return [piece.strip() for piece in pieces if piece.strip()]

    def __enter__(self) -> FakeScorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


def _score(step: str) -> float:
    try:
        return min(max(float(step), -1.0), 1.0)
    except ValueError:
        return 0.75


def fake_scorer(
    recipe: Recipe = RECIPE,
    *,
    source: str = "argument",
    provenance: dict[str, Scalar] | None = None,
    seconds: float = 0.0,
    error_kinds: tuple[str, ...] = (),
) -> Scorer:
    """A fake, typed as the real one. ``error_kinds``: none, or :data:`NAMES`."""
    fake = FakeScorer(
        recipe, source=source, provenance=provenance, seconds=seconds, error_kinds=error_kinds
    )
    return cast(Scorer, fake)

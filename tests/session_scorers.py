"""Scorers for tests of sessions: one graph under several recipes, with every token counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prm_edge_runtime import Scorer
from prm_edge_runtime.engine import DecoderEngine, Engine
from prm_edge_runtime.package import open_package
from prm_edge_runtime.recipe import Recipe, Slot, Text, Tokens

# Every precision whose runs must be exact; what is added here goes through all of these tests.
PACKAGES: dict[str, Path] = {"fp32": Path(__file__).parent / "packages" / "v1"}

BOS = Tokens(ids=(0,), text="<|begin|>")
NEWLINE = Tokens(ids=(200,), text="\n", read=0)
PROBLEM, STEP = Slot(name="problem"), Slot(name="step")

# what is changed in the recipe of the frozen package
RECIPES: dict[str, dict[str, Any]] = {
    "separate": {},
    "joint": {
        "encode": "joint",
        "prompt": (Text(text="Solve"), BOS, Text(text="So, step by step: ")),
        "between": (Text(text=" then "),),
        "step": (Text(text="Step"), STEP, NEWLINE),
    },
    "problem-joins-the-first-step": {
        "encode": "joint",
        "prompt": (BOS, Text(text="Q: "), PROBLEM, Text(text=" A: ")),
        "step": (STEP, NEWLINE),
    },
    "tail-after-the-read": {
        "encode": "joint",
        "step": (STEP, Tokens(ids=(200, 0), text="\n<|begin|>", read=0), Text(text=" was that")),
        "between": (Text(text=" right? Next: "),),
    },
    "no-prompt-tokens": {"encode": "joint", "prompt": (PROBLEM,)},
    "sections": {
        "encode": "sections",
        "prompt": (BOS, PROBLEM, Text(text="\n")),
        "between": (Text(text=" so "), Text(text="x")),
        "step": (Text(text=" = "), STEP, NEWLINE, Text(text=" apples")),
    },
    # forced verdicts: the problem shares a turn with the first step, and every turn is trimmed
    "trimmed": {
        "encode": "trimmed",
        "prompt": (BOS, Text(text="\n"), PROBLEM, Text(text=" ")),
        "between": (BOS, Text(text=" ")),
        "step": (
            Slot(name="step", strip=True),
            Tokens(ids=(0, 200, 0), text="<|begin|>\n<|begin|>", read=1),
            Text(text=" + "),
        ),
    },
}
# what the tests are run over: a precision and a recipe
KINDS = [f"{precision} {recipe}" for precision in PACKAGES for recipe in RECIPES]
# the score is read before the text of the step, so a step needs the text of the one before
LATE: dict[str, Any] = {"step": (NEWLINE, STEP)}


def recipe_of(package: Path, changes: dict[str, Any]) -> Recipe:
    recipe = dataclasses.replace(open_package(package).manifest.recipe, **changes)
    if not any(isinstance(part, Slot) for part in recipe.prompt):
        recipe = dataclasses.replace(recipe, prompt=(PROBLEM, *recipe.prompt))
    return recipe


def make(
    package: Path,
    changes: dict[str, Any] | None = None,
    *,
    prefix_cache_mb: float = 0,
    **manifest: Any,
) -> Scorer:
    """The package under a changed recipe or manifest, not through the disk."""
    opened = open_package(package)
    changed = dataclasses.replace(
        opened.manifest, recipe=recipe_of(package, changes or {}), **manifest
    )
    return Scorer.from_package(
        dataclasses.replace(opened, manifest=changed),
        changed.variants[0],
        threads=1,
        prefix_cache_mb=prefix_cache_mb,
    )


def with_engine(package: Path, engine: Engine, **manifest: Any) -> Scorer:
    opened = open_package(package)
    changed = dataclasses.replace(opened.manifest, **manifest)
    return Scorer(
        dataclasses.replace(opened, manifest=changed), changed.variants[0], engine, "argument"
    )


def make_kind(kind: str, **options: Any) -> Scorer:
    precision, recipe = kind.split(" ")
    return make(PACKAGES[precision], RECIPES[recipe], **options)


class Counter:
    """How many tokens really go through the graph, those that only fill a tile left out."""

    def __init__(self, scorer: Scorer) -> None:
        engine = scorer._engine
        assert isinstance(engine, DecoderEngine)
        self.tokens = 0
        self.runs = 0
        extend, run_rows = engine.extend, engine.run_rows

        def counted_extend(cache: Any, past: int, ids: Any, reads: Any) -> Any:
            self.tokens += len(ids)
            self.runs += 1
            return extend(cache, past, ids, reads)

        def counted_rows(rows: Any) -> Any:
            self.tokens += sum(len(ids) for ids, _ in rows)
            self.runs += 1
            return run_rows(rows)

        engine.extend = counted_extend  # type: ignore[method-assign]
        engine.run_rows = counted_rows  # type: ignore[method-assign]


class Bidirectional:
    """An encoder: every score depends on the whole record."""

    causal = False

    def run(self, ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        whole = float(np.sin(ids * np.arange(1, len(ids) + 1)).sum())
        return np.array([[whole, np.cos(read)] for read in reads], dtype=np.float32).reshape(-1, 2)

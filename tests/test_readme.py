"""The README's examples run as they stand."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from prm_edge_runtime import Scorer, recipe

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_readme_embedding_example_runs(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = [block for block in blocks("python") if "Scorer.load()" in block]
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    monkeypatch.setenv("PRM_EDGE_PACKAGE", str(tiny_package))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(example, "README.md", "exec"), {})
    lines = said.getvalue().splitlines()
    assert lines[-1] == "['first step', 'second step']"
    assert len(lines) == 6


def test_readme_sessions_example_runs(tiny_package: Path) -> None:
    (example,) = [block for block in blocks("python") if "scorer.session(" in block]
    said = io.StringIO()
    with Scorer.load(tiny_package) as scorer, contextlib.redirect_stdout(said):
        exec(compile(example, "README.md", "exec"), {"scorer": scorer, "problem": "Solve 2x = 1."})
    assert said.getvalue().endswith("True\n")


def test_readme_names_every_word_of_a_recipe() -> None:
    for word in (*recipe.ENCODINGS, *recipe.SCORE_KINDS, *recipe.LABEL_MEANINGS, *recipe.SLOTS):
        assert f"`{word}`" in README, word


def test_readme_names_every_command() -> None:
    from prm_edge.cli import cli

    for name in cli.commands:
        assert f"prm-edge {name}" in README, name

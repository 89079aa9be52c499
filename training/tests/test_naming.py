"""The layer that names errors: its file, its names, and how its figures are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prm_edge.error_words import WORDS
from training import kinds
from training.evaluate import kinds as kinds_row
from training.generator import ERRORS, Line, Solution
from training.kinds import KINDS_NAME, load_kinds, save_kinds
from training.naming import Naming, load_name, measured
from training.report import table

CHECKPOINT = Path(__file__).parents[1] / "checkpoint"


def test_file_holds_the_layer_and_its_names(tmp_path: Path) -> None:
    weight = torch.randn(len(ERRORS), 8)
    save_kinds(weight, tmp_path / KINDS_NAME)
    with safe_open(tmp_path / KINDS_NAME, framework="pt") as file:
        assert json.loads(file.metadata()["names"]) == list(ERRORS)
    read, names = load_kinds(tmp_path / KINDS_NAME)
    assert torch.equal(read, weight)
    assert names == list(ERRORS)
    with pytest.raises(ValueError, match=f"2 rows for {len(ERRORS)} names"):
        save_kinds(weight[:2], tmp_path / KINDS_NAME)


def test_older_file_gets_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(len(ERRORS), 8)
    save_file({"weight": weight}, tmp_path / KINDS_NAME)
    monkeypatch.setattr("sys.argv", ["kinds", str(tmp_path)])
    kinds.main()
    with safe_open(tmp_path / KINDS_NAME, framework="pt") as file:
        assert json.loads(file.metadata()["names"]) == list(ERRORS)
    assert torch.equal(load_file(tmp_path / KINDS_NAME)["weight"], weight)
    assert [path.name for path in tmp_path.iterdir()] == [KINDS_NAME]


def test_every_error_has_words() -> None:
    assert set(ERRORS) - {"none"} == WORDS.keys()


def test_checkpoint_names_errors_as_its_package_does() -> None:
    from prm_edge_runtime import Scorer

    problem = "Solve for x: 5 - 2(x - 3) = 1."
    steps = ["5 - 2x + 6 = 1", "2 + 2 = 9", "-2x = 3", "x = 700"]
    name = load_name(CHECKPOINT)
    assert name is not None
    with Scorer.load(threads=1) as scorer:
        assert list(name(problem, steps)) == list(scorer.score(problem, steps).error_kinds or ())


def test_checkpoint_without_the_layer_names_nothing(tmp_path: Path) -> None:
    assert load_name(tmp_path) is None


def solution(*lines: tuple[str, bool, str]) -> Solution:
    made = tuple(Line(text, good, error) for text, good, error in lines)
    return Solution(problem="p", lines=made, template="t")


def test_measured_counts_flagged_wrong_lines_alone() -> None:
    solutions = [
        solution(("a", True, "none"), ("b", False, "sign"), ("c", False, "slip")),
        solution(("d", False, "sign"), ("e", False, "none"), ("f", False, "sign")),
    ]
    told = {"a": "slip", "b": "sign", "c": None, "d": "slip", "e": "slip", "f": "sign"}
    naming = measured(lambda problem, steps: [told[step] for step in steps], solutions)
    assert naming.pairs == (("sign", "sign"), ("sign", "slip"), ("sign", "sign"))
    assert naming.right.value == pytest.approx(2 / 3)
    assert naming.majority == ("sign", 1.0)
    assert naming.confusion() == [("sign", 3, 2, "slip 1")]
    row = kinds_row(naming)
    assert row.name.endswith("(always sign: 1.000)")
    assert (row.cases, row.target, row.reached) == (3, "-", None)
    assert " | - | - | 0.667 [" in table([row])[-1]


def test_naming_of_nothing_is_no_number() -> None:
    naming = Naming(())
    assert naming.majority == ("-", 0.0)
    assert str(naming.right).startswith("nan")
    assert naming.confusion() == []

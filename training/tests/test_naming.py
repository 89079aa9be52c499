"""The layer that names errors: its file, its names, and how its figures are counted."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from prm_edge.error_words import WORDS
from training import kinds
from training.batches import encode
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


def test_layer_is_fitted_anew_on_a_finished_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    states = torch.randn(400, 8)
    truth = torch.randn(len(ERRORS), 8)
    drawn = (states @ truth.t()).argmax(1)
    monkeypatch.setattr(kinds, "flagged", lambda *given: (states, drawn))
    monkeypatch.setattr(kinds, "RealMixture", lambda data: None)
    monkeypatch.setattr(kinds, "Stream", lambda *given: None)
    shutil.copytree(CHECKPOINT, tmp_path / "c")
    save_kinds(torch.zeros(len(ERRORS), 8), tmp_path / "c" / KINDS_NAME)
    scores = (tmp_path / "c" / "model.safetensors").read_bytes()
    arguments = ["kinds", str(tmp_path / "c"), "--solutions", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    kinds.main()
    weight, names = load_kinds(tmp_path / "c" / KINDS_NAME)
    assert (states @ weight.t()).argmax(1).eq(drawn).float().mean() > 0.9
    assert names == list(ERRORS)
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == scores
    save_file({"weight": weight}, tmp_path / "c" / KINDS_NAME, metadata={"names": '["a"]'})
    with pytest.raises(ValueError, match=r"names \['a'\], the generator"):
        kinds.main()


def test_only_flagged_wrong_lines_are_fitted_on() -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    wrong = Line("x = 9", False, "slip", 4)
    rows = [
        encode(tokenizer, Solution("Solve for x: 2x = 6", (line,), "test"), 320)
        for line in (Line("x = 3", True, "none", -1), wrong)
    ]
    states, found = kinds.flagged(CHECKPOINT, rows)
    assert found.tolist() == [ERRORS.index("slip")]
    assert states.shape == (1, 160)


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

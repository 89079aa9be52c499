"""``--expect``: scores recorded where the model was trained catch a recipe that is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
from torch_reference import torch_scores

from prm_edge_export import families
from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_runtime.errors import ProofError
from prm_edge_runtime.golden import write_golden
from prm_edge_runtime.recipe import Recipe, Tokens

RECORDS = [
    ("Solve 2x + 3 = 11.", ["2x = 8", "x = 4"]),
    ("How much do 20 apples cost?", ["20 / 12 * 3 = 5", "So the answer is \\boxed{5}"]),
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return checkpoints.trl_llama(tmp_path / "tiny")


@pytest.fixture
def golden(checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "golden.jsonl"
    scored = [(p, steps, torch_scores(checkpoint, p, steps, "\n")) for p, steps in RECORDS]
    write_golden(path, scored, dtype="float32", source="transformers alone")
    return path


def run(checkpoint: Path, golden: Path, **options: Any) -> dict[str, Any]:
    options.setdefault("separator", "\n")
    result = export(
        ExportOptions(
            checkpoint=checkpoint, out=checkpoint.parent / "pkg", expect=golden, **options
        )
    )
    return dict(result.report["proof"])


def test_expect_agrees_with_the_right_recipe(checkpoint: Path, golden: Path) -> None:
    proof = run(checkpoint, golden)
    assert proof["expect_records"] == len(RECORDS)
    assert proof["expect_max_abs_dp"] < 1e-5


@pytest.mark.parametrize("separator", ["\n\n", " ", ".\n"])
def test_expect_catches_a_wrong_separator(separator: str, checkpoint: Path, golden: Path) -> None:
    with pytest.raises(ProofError, match=r"does not give the scores of .*check --recipe"):
        run(checkpoint, golden, separator=separator)
    assert not (checkpoint.parent / "pkg").exists()


def test_expect_catches_swapped_labels(checkpoint: Path, golden: Path) -> None:
    with pytest.raises(ProofError, match=r"does not give the scores of .*--good-label"):
        run(checkpoint, golden, good_label=0)


def test_expect_catches_a_read_that_is_off_by_one(
    checkpoint: Path, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe that reads one token early, and a reference that shares its mistake."""
    row = families.FAMILIES["trl"]

    def early(request: families.Request) -> Recipe:
        # "," is encoded before the separator, and the score is read there
        recipe = row.build(request)
        slot, separator = recipe.step
        assert isinstance(separator, Tokens)
        comma = tuple(request.tokenizer(",", add_special_tokens=False)["input_ids"])
        both = Tokens(ids=comma + separator.ids, text=",\n", read=0)
        return replace(recipe, step=(slot, both))

    def reference(tokenizer: Any, recipe: Recipe, problem: str, steps: Any) -> Any:
        ids, reads = row.reference(tokenizer, recipe, problem, steps)
        return ids[: reads[-1]] if reads else ids, [read - 1 for read in reads]

    wrong = replace(row, build=early, reference=reference)
    monkeypatch.setitem(families.FAMILIES, "trl", wrong)
    with pytest.raises(ProofError, match="does not give the scores of"):
        run(checkpoint, golden)


def test_expect_catches_another_checkpoint(golden: Path, tmp_path: Path) -> None:
    other = checkpoints.trl_llama(tmp_path / "other", seed=77)
    with pytest.raises(ProofError, match="whether this is the checkpoint that was recorded"):
        run(other, golden)


def test_expect_catches_another_tokenisation(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text(
        '{"problem": "p", "steps": ["s"], "scores": [0.5], "dtype": "float32", '
        '"recorder": "hand", "n_tokens": 99}\n'
    )
    with pytest.raises(ProofError, match="has 99 tokens where it was recorded and"):
        run(checkpoint, path)


def test_expect_refuses_a_record_beyond_the_limit(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    write_golden(path, [("p", ["1 + 1 " * 400], [0.5])], dtype="float32", source="hand")
    with pytest.raises(ProofError, match="is longer than the 512 tokens"):
        run(checkpoint, path)


def test_expect_says_what_is_wrong_with_the_file(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ProofError, match="cannot be read"):
        run(checkpoint, tmp_path / "missing.jsonl")

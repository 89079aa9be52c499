"""Best of N over candidates, over records that share a problem, and over scores that are there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_scorer import DIFFERENCE, fake_scorer
from score_command import assert_one_sentence, rows

from prm_edge.cli import cli, given

DATA = Path(os.environ.get("PRM_EDGE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
BON = DATA / "bon_gsm8k_dev.jsonl.gz"


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "load_scorer", lambda *a, **k: fake_scorer())


def rank(*arguments: object, records: list[Any] | None = None) -> Result:
    text = "".join(json.dumps(row) + "\n" for row in records or [])
    return CliRunner().invoke(cli, ["rank", *map(str, arguments)], input=text)


@pytest.fixture
def ranked(tmp_path: Path) -> Any:
    def run(records: list[Any], *arguments: object) -> list[dict[str, Any]]:
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in records))
        result = rank(path, *arguments)
        assert result.exit_code == 0, result.stderr
        return rows(result.stdout)

    return run


def test_rank_of_candidates_is_what_score_says(ranked: Any) -> None:
    (row,) = ranked([{"id": 7, "problem": "p", "candidates": [["0.4"], ["0.9", "0.8"]]}], "-m", "x")
    assert row["id"] == 7
    assert (row["order"], row["best"], row["best_sound"], row["by"]) == ([1, 0], 1, 1, "min")
    assert [item["aggregate"] for item in row["candidates"]] == [0.4, 0.8]
    assert row["candidates"][0] == {"aggregate": 0.4, "verdict": "flawed", "first_error": 0}


def test_rank_of_records_that_share_a_problem(ranked: Any) -> None:
    records = [
        {"id": "a", "problem": "p", "steps": ["x"], "scores": [0.2]},
        {"id": "b", "problem": "q", "steps": ["x"], "scores": [0.9]},
        {"id": "c", "problem": "p", "steps": ["x"], "scores": [0.6]},
    ]
    first, second = ranked(records)
    assert [item["id"] for item in first["candidates"]] == ["a", "c"]
    assert (first["problem"], first["best"]) == ("p", 1)
    assert (second["problem"], second["best"]) == ("q", 0)
    (one,) = ranked([{**row, "problem_id": 3} for row in records])
    assert one["order"] == [1, 2, 0]
    assert len(ranked([{**row, "k": i} for i, row in enumerate(records)], "--group-by", "k")) == 3


def test_rank_of_scores_alone(ranked: Any) -> None:
    records = [{"problem_id": 1, "prm": {"c": [0.5]}}, {"problem_id": 1, "prm": {"c": [0.7]}}]
    (row,) = ranked(records, "--scores-key", "prm.c")
    assert (row["problem_id"], row["best"]) == ("1", 1)
    (row,) = ranked([{"problem_id": 1, "a.b": [0.1]}], "--scores-key", "a.b")
    assert row["best"] == 0


def test_rank_reads_what_score_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prm_edge.cli import score as score_module

    monkeypatch.setattr(score_module, "load_scorer", lambda *a, **k: fake_scorer())
    source, out = tmp_path / "in.jsonl", tmp_path / "scored.jsonl"
    records: list[Any] = [{"id": 1, "problem": "p", "candidates": [["0.3"], ["0.8"]]}, {"x": 1}]
    source.write_text("".join(json.dumps(row) + "\n" for row in records))
    arguments = ["score", str(source), "-o", str(out), "--threshold", "0.9"]
    assert CliRunner().invoke(cli, arguments).exit_code == 3
    result = rank(out)
    assert result.exit_code == 3
    assert "1 record without scores; left out" in result.stderr
    (row,) = rows(result.stdout)
    # judged by the threshold that they were scored with
    assert (row["best"], row["best_sound"], row["threshold"]) == (1, None, 0.9)


def test_rank_keeps_the_order_of_ties_and_puts_nulls_last(ranked: Any) -> None:
    scores = [[None], [0.5], [], [0.5]]
    (row,) = ranked([{"problem": "p", "scores": item} for item in scores])
    assert row["order"] == [1, 3, 0, 2]


def test_rank_writes_a_file(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"problem": "p", "scores": [1], "final_answer_correct": true}\n' * 2)
    result = rank(source, "-o", out)
    assert result.exit_code == 0
    assert "right: best 1.0000, at random 1.0000, at most 1.0000" in result.stderr
    assert len(rows(out.read_text())) == 1
    assert rank(source, "-o", out, "--quiet").exit_code == 2
    assert rank(source, "-o", out, "--overwrite", "--quiet").stderr == ""
    source.write_text('{"problem": "p", "steps": ["0.5"]}\n')
    assert rank(source, "-m", "x", "--quiet").stderr == ""


def test_rank_refuses_scores_judged_by_several_thresholds(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"scores": [1], "threshold": 0.5}\n{"scores": [1], "threshold": 0.7}\n')
    result = rank(path)
    assert result.exit_code == 2
    assert "were judged by several thresholds (0.5, 0.7): give one with --thr" in result.stderr
    assert rank(path, "--threshold", 0.6).exit_code == 0


@pytest.mark.parametrize(
    ("record", "arguments", "code", "message"),
    [
        ({"problem": "p", "steps": []}, [], 2, "carry no 'scores': name their key with --scores"),
        ({"problem": "p", "scores": [1]}, ["-m", "x", "--scores-key", "scores"], 2, "give one"),
        ({"problem": "p", "scores": [1]}, ["--by", "max"], 2, "aggregate 'max' is not defined"),
        ({"scores": ["a"]}, [], 1, r"line 1: scores\[0\] must be a number or null, got a string"),
        ({"scores": [1e9]}, [], 1, r"line 1: scores\[0\] is no score: 1000000000.0"),
        ({"scores": 3}, ["--scores-key", "scores"], 1, "line 1: scores must be a list of numbers"),
        ({"x": {"y": 1}}, ["--scores-key", "x.z"], 1, "no scores under 'x.z' .there: y."),
        ({"scores": [1], "problem_id": []}, [], 1, "problem_id must be a string or a number"),
        (
            {"problem": "p", "steps": ["a", "b"], "scores": [1]},
            [],
            1,
            "scores has 1 entries for 2 steps; one score for each step is needed",
        ),
    ],
)
def test_rank_refuses(
    tmp_path: Path, record: dict[str, Any], arguments: list[str], code: int, message: str
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(record))
    result = rank(path, *arguments)
    assert result.exit_code == code, result.stderr
    assert_one_sentence(result.stderr.splitlines(keepends=True)[-1], message)


def test_rank_refuses_an_aggregate_that_the_recipe_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(given, "load_scorer", lambda *a, **k: fake_scorer(DIFFERENCE))
    path = tmp_path / "in.jsonl"
    path.write_text('{"problem": "p", "candidates": [["1"]]}')
    result = rank(path, "-m", "x", "--by", "prod")
    assert result.exit_code == 2
    assert "'prod' is not defined for this recipe" in result.stderr


@pytest.mark.skipif(not BON.is_file(), reason="needs the best-of-N data beside the repository")
def test_rank_of_published_scores_gives_the_published_accuracies() -> None:
    for by, right in {"min": 0.8833, "last": 0.9167, "mean": 0.8667, "prod": 0.8833}.items():
        result = rank(BON, "--scores-key", "prm_scores.qwen_prm", "--by", by)
        assert result.exit_code == 0
        assert f"60 problems, 1920 candidates, by {by}; right: best {right}," in result.stderr
        assert len(rows(result.stdout)) == 60

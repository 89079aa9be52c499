"""What is written reads back: by our reader, by TRL's rules, by ProcessBench's, by pyarrow."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_scorer import LONG, fake_scorer
from score_command import assert_one_sentence, rows

from prm_edge.cli import cli
from prm_edge.cli import score as score_module
from prm_edge.records import read_labelled
from prm_edge.solutions import Solution, Truth
from prm_edge.writers import form_named, to_parquet
from prm_edge_runtime.errors import ConfigError


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_module, "load_scorer", lambda *a, **k: fake_scorer())


RECORDS: list[dict[str, Any]] = [
    {"id": "a", "problem": "p", "steps": ["0.9", "0.2"], "generator": "g", "label": 1,
     "final_answer_correct": False, "source": "s"},
    {"id": 2, "problem": "p", "steps": ["0.9"]},
    {"problem": "p", "steps": ["0.9", LONG]},
    {"problem": "p", "response": "0.9\n\n0.8"},
    {"id": "\ud800", "problem": "p", "candidates": [["0.9"], ["0.1", "0.8"]], "labels": [-1, 0],
     "source": ["no text"]},
    {"problem": "p", "steps": 3},
]  # fmt: skip


def score(tmp_path: Path, *arguments: str, records: list[Any] | None = None) -> Result:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in records or RECORDS))
    return CliRunner().invoke(cli, ["score", str(source), *arguments])


def test_trl_form(tmp_path: Path) -> None:
    result = score(tmp_path, "--form", "trl")
    assert result.exit_code == 3
    found = rows(result.stdout)
    assert (found[0]["prompt"], found[0]["completions"]) == ("p", ["0.9", "0.2"])
    assert found[0]["labels"] == [True, False]
    assert "step 1 has no score (too_long), and a label of TRL" in found[2]["error"]["message"]
    assert found[3]["completions"] == ["0.9", "0.8"]
    assert "the form trl has no place for candidates" in found[4]["error"]["message"]
    record, (truth,) = read_labelled(found[0])
    assert record == Solution(id="a", problem="p", steps=("0.9", "0.2"))
    assert truth == Truth(ratings=(1, -1))


def test_processbench_form(tmp_path: Path) -> None:
    found = rows(score(tmp_path, "--form", "processbench").stdout)
    assert found[0] == {
        "id": "a", "problem": "p", "steps": ["0.9", "0.2"], "label": 1, "generator": "g",
        "final_answer_correct": False, "package": "0123456789ab", "variant": "cpu-fp32",
    }  # fmt: skip
    assert [row["label"] for row in found[:4]] == [1, -1, None, -1]
    assert "processbench has no place for candidates" in found[4]["error"]["message"]
    assert read_labelled(found[1])[1] == (Truth(label=-1),)


def test_text_goes_with_the_scores(tmp_path: Path) -> None:
    found = rows(score(tmp_path, "--text").stdout)
    assert found[0]["problem"] == "p"
    assert found[0]["steps"] == ["0.9", "0.2"]
    assert (found[0]["label"], found[0]["final_answer_correct"]) == (1, False)
    assert [item["steps"] for item in found[4]["candidates"]] == [["0.9"], ["0.1", "0.8"]]
    assert found[4]["labels"] == [-1, 0]
    assert found[0]["scores"] == [0.9, 0.2]


def test_parquet_form(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out.parquet"
    for text in ([], ["--text"]):
        result = score(tmp_path, "--form", "parquet", "-o", str(out), "--overwrite", *text)
        assert result.exit_code == 3, result.stderr
        found = pq.read_table(out).to_pylist(maps_as_pydicts="strict")
        assert [row["id"] for row in found] == ["a", "2", None, None, "\\ud800", None]
        assert found[0]["scores"] == [0.9, 0.2]
        assert found[0]["aggregate"]["min"] == 0.2
        assert found[2]["scores"] == [0.9, None]
        assert found[4]["candidates"][1]["first_error"] == 0
        assert found[5]["error"]["line"] == 6
        assert found[0]["label"] == (1 if text else None)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.jsonl", "out.parquet"]


def test_parquet_form_reads_back_as_input(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "out.parquet"
    assert score(tmp_path, "--form", "parquet", "--text", "-o", str(out)).exit_code == 3
    result = CliRunner().invoke(cli, ["score", str(out)])
    found = rows(result.stdout)
    assert found[0]["scores"] == [0.9, 0.2]


def test_parquet_form_takes_labels_of_any_kind(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out.parquet"
    odd = [{"problem": "p", "steps": [], "label": value} for value in ("x", 2**70, [1], True, 3)]
    odd += [{"problem": "p", "steps": [], "final_answer_correct": "yes"}]
    assert (
        score(tmp_path, "--form", "parquet", "--text", "-o", str(out), records=odd).exit_code == 0
    )
    assert [row["label"] for row in pq.read_table(out).to_pylist()] == [None] * 4 + [3, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--form", "xml"], "there is no output form 'xml'; use one of native, trl, processbench"),
        (["--form", "parquet"], "it needs an input file and -o OUT"),
        (["--form", "trl", "--text"], "--text goes with the native form; trl has the text anyway"),
    ],
)
def test_score_refuses_a_form(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = score(tmp_path, *arguments)
    assert result.exit_code == 2
    assert_one_sentence(result.stderr, message)


def test_parquet_form_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="Parquet needs the extra parquet"):
        to_parquet(tmp_path / "a", tmp_path / "b")
    # before anything is scored
    result = score(tmp_path, "--form", "parquet", "-o", str(tmp_path / "out.parquet"))
    assert result.exit_code == 2
    assert_one_sentence(result.stderr, "Parquet needs the extra parquet")


def test_form_named_knows_every_form() -> None:
    assert form_named("native").convert is None


def test_formats_lists_everything() -> None:
    result = CliRunner().invoke(cli, ["formats"])
    assert result.exit_code == 0
    for word in ("math-shepherd", "ProcessBench", "neutral is good", "64 MiB", "1000 times"):
        assert word in result.stdout or word == "math-shepherd"
    data = json.loads(CliRunner().invoke(cli, ["formats", "--json"]).stdout)
    assert {item["name"] for item in data["records"]} >= {"steps", "math-shepherd", "messages"}
    assert data["limits"]["line_bytes"] == 64 * 1024 * 1024

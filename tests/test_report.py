"""The page holds what was scored, whatever its text is, and loads nothing."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_scorer import LONG, fake_scorer

from prm_edge import report as report_module
from prm_edge.cli import cli, given
from prm_edge.cli import score as score_module
from prm_edge_runtime.results import STATUSES

HOSTILE = '</script><script>alert(1)</script><!-- __DATA__ __TITLE__ "&lt; \u2028 \U0001f600'


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "load_scorer", lambda *a, **k: fake_scorer())
    monkeypatch.setattr(score_module, "load_scorer", lambda *a, **k: fake_scorer())


class Page(HTMLParser):
    """The parts of a page that tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def report(path: Path, *arguments: str) -> Result:
    out = path.with_name("report.html")
    return CliRunner().invoke(cli, ["report", str(path), "-o", str(out), *arguments])


def page(path: Path, *arguments: str) -> tuple[Page, dict[str, Any], str]:
    result = report(path, "--overwrite", *arguments)
    assert result.exit_code == 0, result.stderr
    text = path.with_name("report.html").read_text(encoding="utf-8")
    parsed = Page(text)
    return parsed, json.loads(parsed.scripts[0]), text


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_report_shows_what_score_wrote(tmp_path: Path) -> None:
    source = written(
        tmp_path / "in.jsonl",
        [
            {"id": "a", "problem": "p", "steps": ["0.9", "0.2"], "label": 0},
            {"id": "b", "problem": "q", "candidates": [["0.3"], ["0.8", LONG]], "labels": [0, -1]},
            {"id": "c", "problem": "r", "response": "0.9\n\n0.7"},
        ],
    )
    scored = tmp_path / "scored.jsonl"
    made = CliRunner().invoke(cli, ["score", str(source), "--text", "-o", str(scored)])
    assert made.exit_code == 0, made.stderr
    _, data, text = page(scored, "--title", "A & B")
    first, second, third = data["groups"]
    assert first == {
        "q": "p",
        "items": [{"n": "a", "s": ["0.9", "0.2"], "p": [0.9, 0.2], "v": "flawed", "e": 1, "l": 0,
                   "a": None, "b": False}],
    }  # fmt: skip
    assert [item["n"] for item in second["items"]] == ["b[0]", "b[1]"]
    assert [(item["v"], item["l"], item["b"]) for item in second["items"]] == [
        ("flawed", 0, True),
        ("unknown", -1, False),
    ]
    assert second["items"][1]["p"] == [0.8, None]
    assert second["items"][1]["w"] == ["", report_module.REASONS["too_long"]]
    assert "w" not in second["items"][0]
    assert third["items"][0]["s"] == ["0.9", "0.7"]
    assert "<title>A &amp; B</title>" in text
    assert "4 solutions: 1 sound, 2 flawed, 1 unknown." in text


def test_report_says_what_is_known_beside_a_score(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "problem": "p",
            "steps": ["a", "b", "c", "d"],
            "scores": [0.5, 0.5, None, None],
            "status": ["scored", "windowed", "out_of_domain", "elsewhere"],
            "redundancy": [0.25, 0.98765, None, None],
            "error_kinds": ["sign", None, None, None],
        },
        {"problem": "q", "steps": ["a", "b"], "scores": [0.5, None], "status": "of another file"},
        {"problem": "r", "steps": ["a"], "scores": [0.5]},
    ]
    _, data, text = page(written(tmp_path / "in.jsonl", rows))
    first, second, third = (group["items"][0] for group in data["groups"])
    reasons = report_module.REASONS
    assert first["w"] == ["", reasons["windowed"], reasons["out_of_domain"], "elsewhere"]
    assert first["r"] == [0.25, 0.9877, None, None]
    assert first["k"] == ["looks like a lost or flipped sign", None, None, None]
    assert second["w"] == ["", report_module.NO_REASON]
    assert not {"k", "r"} & second.keys()
    assert not {"k", "w", "r"} & third.keys()
    # and the page shows them
    assert "item.k[index]" in text
    assert "item.w[index]" in text
    assert "redundancy ${item.r[index]" in text


def test_report_has_a_sentence_for_every_status() -> None:
    assert set(report_module.REASONS) == set(STATUSES)


def test_report_with_a_package_tells_what_score_would_write(tmp_path: Path) -> None:
    row = {"problem": "p", "steps": ["0.9", LONG]}
    _, data, _ = page(written(tmp_path / "in.jsonl", [row]), "-m", "any")
    assert data["groups"][0]["items"][0]["w"] == ["", report_module.REASONS["too_long"]]


def test_report_keeps_hostile_text_as_text(tmp_path: Path) -> None:
    source = written(
        tmp_path / "in.jsonl",
        [{"id": HOSTILE, "problem": HOSTILE, "steps": [HOSTILE], "scores": [0.5]}],
    )
    parsed, data, text = page(source, "--title", HOSTILE)
    assert len(parsed.scripts) == 2
    assert data["groups"][0]["q"] == HOSTILE
    assert data["groups"][0]["items"][0]["s"] == [HOSTILE]
    assert text.count("alert(1)") == 5  # two of the title, three in the data
    assert "<script>alert" not in text


def test_report_loads_nothing(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [{"problem": "p", "steps": ["a"], "scores": [0.5]}])
    parsed, _, text = page(source)
    assert not re.search(r"https?://|@import|url\(", text)
    assert not [tag for tag, attributes in parsed.tags if {"src", "href"} & attributes.keys()]
    policy = next(a["content"] for t, a in parsed.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_report_names_everything_for_those_who_cannot_see_it(tmp_path: Path) -> None:
    rows = [{"problem": "p", "steps": ["a", "b"], "scores": [0.5, 0.1], "label": 1}] * 3
    parsed, _, text = page(written(tmp_path / "in.jsonl", rows))
    assert ("html", {"lang": "en"}) in parsed.tags
    for tag, attributes in parsed.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    labels = len(re.findall(r"<label>", text))
    assert labels == sum(tag in ("select", "input") for tag, _ in parsed.tags)
    assert text.count("<figure>") == 2


def test_report_of_scores_outside_probabilities(tmp_path: Path) -> None:
    rows = [{"problem": "p", "steps": ["a", "b"], "scores": [-3, 7.5], "label": -1}]
    _, data, text = page(written(tmp_path / "in.jsonl", rows), "--threshold", "0")
    assert (data["low"], data["high"]) == (-3.0, 7.5)
    assert text.count("<figure>") == 1  # no reliability where scores are no probabilities


def test_report_of_2000_solutions_is_small(tmp_path: Path) -> None:
    step = "x" * 150
    rows = [
        {"id": i, "problem": f"{i} " + "y" * 240, "steps": [step] * 8, "scores": [0.123456] * 8}
        for i in range(2000)
    ]
    source = written(tmp_path / "in.jsonl", rows)
    start_s = time.monotonic()
    page(source)
    assert time.monotonic() - start_s < 60
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


def test_report_says_what_it_does_not_show(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"problem": "p", "steps": ["a"], "scores": [0.5]},
        {"error": {"type": "InputError", "message": "m", "line": 2}},
    ]
    result = report(written(tmp_path / "in.jsonl", rows))
    assert result.exit_code == 3  # as score: finished, and some records failed
    assert b"<html" in (tmp_path / "report.html").read_bytes()
    assert "1 record could not be scored; not shown" in result.stderr


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"id": "a", "scores": [0.5]}], [], "a has scores and no steps to show: score with --te"),
        ([], ["--scores-key", "scores"], "there are no scored solutions to show"),
        ([{"scores": [1]}], ["--by", "max"], "aggregate 'max' is not defined"),
        ([{"scores": [1], "steps": ["a"], "status": []}], [], "status has 0 entries for 1 scores"),
        ([{"scores": [1], "status": [3]}], [], "status[0] must be a string, got int"),
        ([{"scores": [1], "redundancy": 2}], [], "redundancy must be a list of numbers, got a num"),
        ([{"scores": [1], "error_kinds": [2]}], [], "error_kinds must be a list of names, null"),
        ([{"scores": [1], "error_kinds": []}], [], "error_kinds has 0 entries for 1 scores"),
        ([{"scores": [1], "redundancy": [1, 2]}], [], "redundancy has 2 entries for 1 scores"),
    ],
)
def test_report_refuses(
    tmp_path: Path, rows: list[dict[str, Any]], arguments: list[str], message: str
) -> None:
    result = report(written(tmp_path / "in.jsonl", rows), *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert not (tmp_path / "report.html").exists()


def test_report_refuses_to_replace_a_file(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [{"problem": "p", "steps": ["a"], "scores": [0.5]}])
    assert report(source).exit_code == 0
    result = report(source)
    assert result.exit_code == 2
    assert "exists; give --overwrite" in result.stderr

"""``prm-edge score`` on what users really feed it: pipes, bad lines, full and taken places."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_scorer import BROKEN, DIFFERENCE, fake_scorer
from score_command import BAD, GOOD, NOTICE, assert_one_sentence, left_in, posix, rows

from prm_edge.cli import cli
from prm_edge.cli import score as score_module
from prm_edge_runtime.domain import Domain, units
from prm_edge_runtime.errors import PackageNotFoundError
from prm_edge_runtime.scorer import Scorer


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "tiny_package" not in request.fixturenames:
        use(monkeypatch, fake_scorer())


def use(monkeypatch: pytest.MonkeyPatch, scorer: Scorer) -> None:
    monkeypatch.setattr(score_module, "load_scorer", lambda *a, **k: scorer)


def score(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, ["score", *map(str, arguments)], input=stdin)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(GOOD * 2)
    return path


# --- what goes in ---


def test_score_reads_a_file_and_names_the_package(good: Path) -> None:
    good.write_text(GOOD)
    result = score(good)
    assert (result.exit_code, result.stderr) == (0, NOTICE)
    (row,) = rows(result.stdout)
    assert (row["id"], row["scores"], row["verdict"]) == ("a", [0.9], "sound")


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_score_reads_stdin(arguments: list[str]) -> None:
    result = score(*arguments, stdin=GOOD)
    assert result.exit_code == 0
    assert len(rows(result.stdout)) == 1


def test_score_reads_bom_crlf_and_a_last_line_without_newline() -> None:
    text = "\ufeff" + GOOD.replace("\n", "\r\n") + "\r\n" + GOOD.rstrip()
    result = score(stdin=text.encode())
    assert result.exit_code == 0
    assert [row["scores"] for row in rows(result.stdout)] == [[0.9], [0.9]]


@pytest.mark.parametrize("text", ["", "\n", "\r\n \n"])
def test_score_of_an_empty_file_writes_nothing(text: str) -> None:
    result = score(stdin=text)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == NOTICE + "prm-edge: the input holds no records\n"


def test_score_goes_on_after_a_bad_line_and_exits_3() -> None:
    result = score(stdin=GOOD + "\n" + BAD + '{"problem": "p"}\n' + GOOD)
    assert result.exit_code == 3
    found = rows(result.stdout)
    assert [("error" in row) for row in found] == [False, True, True, False]
    assert [row["error"]["line"] for row in found[1:3]] == [3, 4]
    assert "2 of 4 records could not be scored; the first, line 3: steps must be a list" in (
        result.stderr
    )


def guarded(known: str) -> Scorer:
    with Scorer.load() as plain:
        domain = Domain(known=frozenset(units(known)), max_unknown=0.2)
        variant = plain.package.variant(plain.variant)
        return Scorer(plain.package, variant, plain._open_engine(), "embedded", domain)


def test_score_says_once_how_many_are_out_of_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records = [
        {"problem": "x + 1 = 2", "steps": ["x = 1"]},
        {"problem": "x + 1 = 2", "steps": ["hence Ω 1", "x = 1"]},
        {"problem": "x + 1 = 2", "candidates": [["x = 1"], ["hence Ω 1"]]},
    ]
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    use(monkeypatch, guarded("+ ="))
    whole = score(source, "-o", out)
    said = (
        "prm-edge: outside what the built-in model was trained on: 2 of 3 records, whose scores "
        "are null (out_of_domain); --force scores them\n"
    )
    assert whole.exit_code == 0
    assert whole.stderr.endswith(said)
    lines = out.read_bytes().splitlines(keepends=True)
    assert [b"out_of_domain" in line for line in lines] == [False, True, True]
    # those that an earlier run wrote are counted too
    out.unlink()
    use(monkeypatch, guarded("+ ="))
    score(source, "-o", out, "--resume")
    job = out.with_name("out.jsonl.job.json")
    begun = json.loads(job.read_text())
    del begun["finished"]
    job.write_text(json.dumps(begun))
    out.rename(out.with_name("out.jsonl.partial")).write_bytes(b"".join(lines[:2]))
    use(monkeypatch, guarded("+ ="))
    resumed = score(source, "-o", out, "--resume")
    assert "going on after 2 records" in resumed.stderr
    assert resumed.stderr.endswith(said)
    assert out.read_bytes() == b"".join(lines)


def test_score_survives_binary_garbage() -> None:
    result = score(stdin=bytes(range(256)) * 20)
    assert result.exit_code == 3
    assert len(rows(result.stdout)) == 20 + 1
    assert result.stderr.count("\n") == 2


def test_score_reports_what_the_model_refuses() -> None:
    result = score(stdin=json.dumps({"problem": "p", "steps": [BROKEN]}))
    assert result.exit_code == 3
    assert rows(result.stdout)[0]["error"]["type"] == "EngineError"


def test_score_tells_of_duplicate_ids_and_scores_them() -> None:
    result = score(stdin=GOOD * 3)
    assert result.exit_code == 0
    assert len(rows(result.stdout)) == 3
    assert "2 records have an id that occurred before (the first is 'a'); all" in result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "the input '.*missing.jsonl' does not exist; name a file, or - for"),
        (".", "the input '.*' is a folder; name a file of JSON lines in it"),
    ],
)
def test_score_refuses_an_input_that_is_no_file(tmp_path: Path, name: str, message: str) -> None:
    result = score(tmp_path / name)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert_one_sentence(result.stderr, message)


@posix
def test_score_refuses_an_unreadable_input(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    result = score(loop)
    assert result.exit_code == 2
    assert_one_sentence(result.stderr, "cannot be read: ")


# --- options ---


def test_score_takes_a_threshold_and_an_aggregate() -> None:
    text = '{"problem": "p", "candidates": [["0.9", "0.6"], ["0.8", "0.8"]]}'
    result = score("--threshold", 0.7, "--by", "mean", stdin=text)
    (row,) = rows(result.stdout)
    assert (row["threshold"], row["by"], row["best_sound"]) == (0.7, "mean", 1)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--by", "prod", "'prod' is not defined"), ("--threshold", "2", "threshold 2.0 is outside")],
)
def test_score_refuses_an_impossible_option_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, good: Path, option: str, value: str, message: str
) -> None:
    use(monkeypatch, fake_scorer(DIFFERENCE))
    result = score(good, option, value, "--quiet", "-o", good.parent / "out.jsonl")
    assert result.exit_code == 2
    assert_one_sentence(result.stderr, message)
    assert left_in(good.parent) == ["in.jsonl"]


def test_score_says_which_package_is_not_there(monkeypatch: pytest.MonkeyPatch, good: Path) -> None:
    monkeypatch.undo()
    result = score(good, "-m", good.parent / "no-package")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert_one_sentence(result.stderr, "no-package")


def test_score_hands_its_options_to_the_scorer(monkeypatch: pytest.MonkeyPatch, good: Path) -> None:
    asked: dict[str, Any] = {}

    def load(path: str | None, **options: Any) -> Scorer:
        asked.update(options, path=path)
        raise PackageNotFoundError("enough")

    monkeypatch.undo()
    monkeypatch.setattr(Scorer, "load", load)
    given = ["-m", "pkg", "--device", "cpu", "--variant", "v", "--threads", "2"]
    assert score(good, *given).exit_code == 2
    assert asked == {"path": "pkg", "device": "cpu", "variant": "v", "threads": 2, "force": False,
                     "prefix_cache_mb": 0}  # fmt: skip
    assert score(good).exit_code == 2
    assert asked == {"path": None, "device": None, "variant": None, "threads": None, "force": False,
                     "prefix_cache_mb": 0}  # fmt: skip


def test_score_quiet_says_only_what_went_wrong() -> None:
    assert score("--quiet", stdin=GOOD * 2).stderr == ""
    assert score("--quiet", stdin="").stderr == ""
    assert score("--quiet", stdin=BAD).stderr.startswith("prm-edge: 1 of 1 record could not")


@pytest.mark.parametrize(
    ("source", "said"),
    [("PRM_EDGE_PACKAGE", "named by PRM_EDGE_PACKAGE"), ("embedded", "the built-in package")],
)
def test_score_says_who_chose_the_package(
    monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    use(monkeypatch, fake_scorer(source=source))
    assert said in score(stdin=GOOD).stderr


def test_score_repeats_the_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, fake_scorer(provenance={"notice": "random weights"}))
    assert "prm-edge: NOTICE: random weights" in score(stdin=GOOD).stderr


# --- what comes out ---


def test_score_writes_a_file(good: Path) -> None:
    out = good.parent / "out.jsonl"
    result = score(good, "-o", out)
    assert (result.exit_code, result.stdout) == (0, "")
    assert len(rows(out.read_text())) == 2
    assert left_in(good.parent) == ["in.jsonl", "out.jsonl"]


def test_score_writes_a_file_with_failed_records_too(good: Path) -> None:
    out = good.parent / "out.jsonl"
    assert score("-o", out, stdin=GOOD + BAD).exit_code == 3
    assert len(rows(out.read_text())) == 2


def test_score_refuses_to_replace_a_file_unless_told(good: Path) -> None:
    out = good.parent / "out.jsonl"
    out.write_text("precious")
    result = score(good, "-o", out)
    assert result.exit_code == 2
    assert_one_sentence(result.stderr, "the output '.*' exists; give --overwrite to replace it")
    assert out.read_text() == "precious"
    assert score(good, "-o", out, "--overwrite").exit_code == 0
    assert len(rows(out.read_text())) == 2


@posix
def test_score_replaces_the_file_behind_a_link_and_keeps_its_mode(good: Path) -> None:
    real, link = good.parent / "real.jsonl", good.parent / "link.jsonl"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    assert score(good, "-o", link, "--overwrite").exit_code == 0
    assert link.is_symlink()
    assert len(rows(real.read_text())) == 2
    assert real.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_score_refuses_to_write_over_its_input(good: Path, overwrite: list[str]) -> None:
    link = good.parent / "link.jsonl"
    os.link(good, link)
    for out in (good, link):
        result = score(good, "-o", out, *overwrite)
        assert result.exit_code == 2
        assert_one_sentence(result.stderr, "is the input too; name another file")
    assert good.read_text() == GOOD * 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "is a folder; name a file in it"),
        ("no/out.jsonl", "cannot be written: No such"),
    ],
)
def test_score_refuses_an_impossible_place(good: Path, name: str, message: str) -> None:
    result = score(good, "-o", good.parent / name)
    assert result.exit_code == 2
    assert_one_sentence(result.stderr, message)


@posix
def test_score_writes_to_a_device_without_replacing_it(good: Path) -> None:
    assert score(good, "-o", os.devnull).exit_code == 0
    assert not Path(os.devnull).is_file()


def test_score_leaves_the_old_file_when_it_fails(
    monkeypatch: pytest.MonkeyPatch, good: Path
) -> None:
    def fail(line: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prm_edge.jobs.OutputLine.to_json", fail)
    out = good.parent / "out.jsonl"
    out.write_text("precious")
    result = score(good, "-o", out, "--overwrite", "--quiet")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: No space left on device; nothing was written\n",
    )
    assert out.read_text() == "precious"
    assert left_in(good.parent) == ["in.jsonl", "out.jsonl"]


# --- with a real package ---


def test_score_runs_a_real_package(tiny_package: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    hostile = [
        {"id": 1, "problem": "1 + 1?", "steps": ["1 + 1 = 2"]},
        {"id": 2, "problem": "1 + 1?", "steps": ["x = 1"] * 10_000},
        {"id": 3, "problem": "1 + 1?", "steps": ["y" * 1_000_000]},
        {"id": 4, "problem": "1 + 1?", "candidates": [["a"], ["b", "c"]]},
        {"id": 5, "problem": "", "response": ""},
        {"id": 6, "problem": "", "steps": ["", "\n", "\x00", "ü\u2028\U0001f600"]},
        {"id": 7, "problem": "1 + 1?"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in hostile))
    result = score(path, "-m", tiny_package, "--device", "cpu")
    assert result.exit_code == 3
    found = rows(result.stdout)
    assert [row["id"] for row in found] == [1, 2, 3, 4, 5, 6, 7]
    assert [("error" in row) for row in found] == [False] * 6 + [True]
    assert len(found[0]["scores"]) == 1
    assert len(found[1]["scores"]) == 10_000
    assert found[1]["status"][-1] == "too_long"
    assert found[2]["scores"] == [None]
    assert found[3]["order"]
    assert found[4]["verdict"] == "unknown"
    assert len(found[5]["scores"]) == 4
    assert result.stderr.startswith("prm-edge: scoring with ")

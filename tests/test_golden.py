"""golden.jsonl is written whole or not at all, and read strictly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from prm_edge_runtime.errors import InputError
from prm_edge_runtime.golden import GoldenRecord, read_golden, write_golden, write_records

LINE: dict[str, Any] = {
    "problem": "2+2?",
    "steps": ["It is 4.", ""],
    "scores": [0.9, 0.25],
    "dtype": "float32",
    "recorder": "a test",
    "n_tokens": 12,
}


def write(folder: Path, *lines: object) -> Path:
    path = folder / "golden.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def test_write_golden_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    items = [("2+2?", ["It is 4.", ""], [0.9, 1]), ("a\u2028b \U0001f40d", ["\u05d0\n"], [1e-30])]
    assert write_golden(path, items, dtype="bfloat16", source="a test") == 2
    assert read_golden(path) == [
        GoldenRecord(
            problem=problem,
            steps=tuple(steps),
            scores=tuple(scores),
            dtype="bfloat16",
            recorder="a test",
            n_tokens=None,
        )
        for problem, steps, scores in items
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["golden.jsonl"]


def test_write_golden_keeps_every_bit_of_a_score(tmp_path: Path) -> None:
    score = 0.1 + 0.2
    write_golden(tmp_path / "g", [("p", ["s"], [score])], dtype="float32", source="a test")
    assert read_golden(tmp_path / "g")[0].scores == (score,)


@pytest.mark.parametrize(
    ("steps", "scores", "message"),
    [
        (["a", "b"], [0.5], "record 0: has 1 scores for 2 steps; record one score per step"),
        (["a"], [float("nan")], r"record 0\.scores\[0\]: must be finite, got nan"),
        (["a"], [float("inf")], r"record 0\.scores\[0\]: must be finite, got inf"),
        ([], [], "record 0: has no steps"),
        (["\ud800"], [0.5], r"record 0\.steps: holds a lone surrogate"),
    ],
)
def test_write_golden_refuses_what_cannot_be_compared(
    tmp_path: Path, steps: list[str], scores: list[float], message: str
) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text("kept")
    with pytest.raises(InputError, match=message):
        write_golden(path, [("p", steps, scores)], dtype="float32", source="a test")
    assert path.read_text() == "kept"


def test_write_golden_refuses_an_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"record 0\.dtype: must be one of float32, .* 'fp32'"):
        write_golden(tmp_path / "g", [("p", ["s"], [0.5])], dtype="fp32", source="a test")


def test_write_golden_refuses_no_records(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no record; give one or more"):
        write_golden(tmp_path / "g", [], dtype="float32", source="a test")


def test_write_records_leaves_nothing_when_it_cannot_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prm_edge_runtime.golden.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_records(tmp_path / "golden.jsonl", [GoldenRecord.from_dict(LINE, where="here")])
    assert list(tmp_path.iterdir()) == []


def test_read_golden_skips_blank_lines_and_accepts_bom_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    text = json.dumps(LINE)
    path.write_bytes(f"\ufeff{text}\r\n\r\n{text}\r\n".encode())
    assert len(read_golden(path)) == 2


def test_read_golden_takes_a_missing_token_count(tmp_path: Path) -> None:
    lines = [{**LINE, "n_tokens": None}, {k: v for k, v in LINE.items() if k != "n_tokens"}]
    assert [record.n_tokens for record in read_golden(write(tmp_path, *lines))] == [None, None]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: must be an object, got a list"),
        ("[" * 100_000, "line 2: not JSON"),
        ('{"problem": NaN}', "line 2: not JSON: NaN is not a finite number"),
        ('{"dtype": 1, "dtype": 2}', "line 2: not JSON: key 'dtype' appears twice"),
        ({**LINE, "extra": 1}, "line 2: unknown key 'extra'"),
        ({**LINE, "problem": 3}, r"line 2\.problem: must be a string, got an integer"),
        ({**LINE, "steps": "It is 4."}, r"line 2\.steps: must be a list, got a string"),
        ({**LINE, "steps": ["a", 1]}, r"line 2\.steps: must hold only strings"),
        ({**LINE, "scores": [0.5, "1"]}, r"line 2\.scores: must hold only numbers"),
        ({**LINE, "scores": [True, 0.5]}, r"line 2\.scores: must hold only numbers"),
        ({**LINE, "scores": [0.5]}, "line 2: has 1 scores for 2 steps"),
        ({**LINE, "scores": [10**400, 1]}, r"line 2\.scores\[0\]: must be finite"),
        ({**LINE, "steps": [], "scores": []}, "line 2: has no steps"),
        ({**LINE, "dtype": "int8"}, r"line 2\.dtype: must be one of float32, .*got 'int8'"),
        ({**LINE, "n_tokens": 0}, r"line 2\.n_tokens: must be at least 1, got 0"),
        ({**LINE, "problem": "\ud800"}, r"line 2\.problem: holds a lone surrogate"),
        ({"steps": []}, "4 problems"),
    ],
)
def test_read_golden_names_the_line_that_is_wrong(
    tmp_path: Path, line: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_golden(write(tmp_path, LINE, line, LINE))


def test_read_golden_reports_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    with pytest.raises(InputError, match=re.escape(f"golden scores {path} cannot be read (No ")):
        read_golden(path)


def test_read_golden_reports_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_bytes(b'{"problem": "\xff"}')
    with pytest.raises(InputError, match=r"are not UTF-8 text \(byte 13\)"):
        read_golden(path)


def test_read_golden_reports_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hold no record; record some with prm_edge"):
        read_golden(write(tmp_path, "", "  "))

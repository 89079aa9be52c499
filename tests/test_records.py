"""Records are recognised by their keys, and no bytes at all can crash the reader."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prm_edge import records
from prm_edge.records import (
    MAX_DIGITS,
    SCHEMAS,
    Line,
    decode_line,
    read_lines,
    read_record,
)
from prm_edge.solutions import Candidates, Record, Response, Solution
from prm_edge_runtime.errors import InputError, InputTypeError


def line(data: bytes | str) -> Line:
    raw = data.encode() if isinstance(data, str) else data
    return Line(number=1, data=raw, n_bytes=len(raw))


def cut(data: bytes) -> list[tuple[int, bytes]]:
    return [(item.number, item.data) for item in read_lines(io.BytesIO(data))]


PROCESSBENCH = {
    "id": "gsm8k-0",
    "generator": "Qwen2-7B-Instruct",
    "problem": "p",
    "steps": ["a", "b"],
    "final_answer_correct": True,
    "label": -1,
}
# schema -> a record of it and what is read
EXAMPLES: list[tuple[str, dict[str, Any], Record]] = [
    (
        "steps",
        {"id": 7, "problem": "p", "steps": ["a", ""], "other": [1]},
        Solution(id=7, problem="p", steps=("a", "")),
    ),
    ("steps", PROCESSBENCH, Solution(id="gsm8k-0", problem="p", steps=("a", "b"))),
    ("response", {"problem": "p", "response": "r"}, Response(id=None, problem="p", response="r")),
    (
        "candidates",
        {"id": None, "problem": "p", "candidates": [["a"], []]},
        Candidates(id=None, problem="p", candidates=(("a",), ())),
    ),
    (
        "trl",
        {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]},
        Solution(id=None, problem="p", steps=("a", "b")),
    ),
]


@pytest.mark.parametrize(("schema", "data", "expected"), EXAMPLES)
def test_read_record_reads_every_schema(
    schema: str, data: dict[str, Any], expected: Record
) -> None:
    assert read_record(decode_line(line(json.dumps(data)))) == expected
    assert schema in {row.name for row in SCHEMAS}


def test_read_record_takes_null_for_absent() -> None:
    data = {"problem": "p", "steps": ["a"], "response": None, "candidates": None}
    assert read_record(data) == Solution(id=None, problem="p", steps=("a",))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"problem": "p"}, InputError, r"no schema fits .*\('problem'\); use problem and steps"),
        ({}, InputError, r"no schema fits the keys of the record \(none\)"),
        ({"problem": "p", "steps": None}, InputError, "no schema fits"),
        ({f"k{i}": 1 for i in range(9)}, InputError, r"'k7', \.\.\.\)"),
        ({"k" * 1000: 1}, InputError, r"'k{40}'\.\.\."),
        (
            {"problem": "p", "steps": [], "response": "r"},
            InputError,
            "ambiguous: it has 'problem' \\+ 'steps', and 'problem' \\+ 'response'",
        ),
        ({"problem": 1, "steps": []}, InputTypeError, "problem must be a string"),
        ({"problem": "p", "response": ["r"]}, InputTypeError, "response must be a string"),
        ({"prompt": [], "completions": []}, InputTypeError, "prompt must be a string"),
        (
            {"problem": "p", "steps": "a\n\nb"},
            InputTypeError,
            "steps must be a list of strings, got a string; .* the key 'response'",
        ),
        ({"problem": "p", "steps": {}}, InputTypeError, "got an object"),
        ({"problem": "p", "steps": 3}, InputTypeError, "got a number"),
        ({"problem": "p", "steps": False}, InputTypeError, "got true or false"),
        ({"problem": "p", "steps": ["a", 2]}, InputTypeError, r"steps\[1\] must be a string"),
        ({"problem": "p", "steps": ["a", None]}, InputTypeError, r"steps\[1\] must be a string"),
        ({"problem": "p", "steps": ["\ud800"]}, InputError, r"steps\[0\] holds a lone surrogate"),
        ({"problem": "\udfff", "steps": []}, InputError, "problem holds a lone surrogate"),
        ({"prompt": "p", "completions": "ab"}, InputTypeError, "completions must be a list"),
        ({"problem": "p", "candidates": "ab"}, InputTypeError, "list of lists of steps, got a str"),
        (
            {"problem": "p", "candidates": [["a"], "b"]},
            InputTypeError,
            r"candidates\[1\] must be a list of strings, got a string",
        ),
        (
            {"problem": "p", "candidates": [["a"], [0]]},
            InputTypeError,
            r"candidates\[1\]\[0\] must",
        ),
        ({"id": [1], "problem": "p", "steps": []}, InputTypeError, "id must be .*, got a list"),
        ({"id": 1e999, "problem": "p", "steps": []}, InputError, "id is a number too large"),
    ],
)
def test_read_record_refuses(data: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        read_record(data)
    assert caught.type is error


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "not JSON: .* at character 2"),
        (b"{} {}", "not JSON: Extra data at character 4"),
        (b"'a'", "not JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' occurs twice"),
        (b'{"x": {"b": 2, "b": 1}}', "the key 'b' occurs twice"),
        (b'{"a": ' + b"9" * (MAX_DIGITS + 1) + b"}", f"has {MAX_DIGITS + 1} digits; at most"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff at offset 7; save the file as UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": "\n"}', "not JSON: Invalid control character"),
        (b"\x1f\x8b\x08\x00", "a gzip stream begins in the middle"),
        ('{"a": 1}'.encode("utf-16"), "it is UTF-16: save the file as UTF-8"),
        (b"\x00\x01\x02", "not JSON"),
    ],
)
def test_decode_line_refuses(raw: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_line(line(raw))


@pytest.mark.parametrize(
    ("raw", "found"), [("[]", "a list"), ('"a"', "a string"), ("1", "a number"), ("null", "null")]
)
def test_decode_line_refuses_what_is_no_object(raw: str, found: str) -> None:
    with pytest.raises(InputTypeError, match=rf"must be a JSON object, got {found}; .*jq -c"):
        decode_line(line(raw))


def test_decode_line_reads_the_longest_integer() -> None:
    assert decode_line(line(b'{"id": -' + b"9" * (MAX_DIGITS - 1) + b"}"))["id"] < 0


def test_read_lines_drops_bom_crlf_and_blank_lines() -> None:
    data = b"\xef\xbb\xbf{}\r\n\r\n  \t\n{1}\n\xef\xbb\xbf{2}"
    assert cut(data) == [(1, b"{}"), (4, b"{1}"), (5, b"{2}")]


@pytest.mark.parametrize("data", [b"", b"\n\n", b" ", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_read_lines_finds_nothing_in_blank_files(data: bytes) -> None:
    assert cut(data) == []


def test_read_lines_skips_the_rest_of_an_endless_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 10)
    monkeypatch.setattr(records, "CHUNK_BYTES", 4)
    stream = io.BytesIO(b"0123456789\n" + b"x" * 33 + b"\nok\n" + b"y" * 11)
    found = list(read_lines(stream))
    assert [(item.number, item.data, item.n_bytes) for item in found] == [
        (1, b"0123456789", 10),
        (2, b"", 34),
        (3, b"ok", 2),
        (4, b"", 11),
    ]
    with pytest.raises(InputError, match="the line has 34 bytes; a record may have at most 10"):
        decode_line(found[1])


def test_read_lines_holds_no_more_than_one_line() -> None:
    class Endless(io.RawIOBase):
        """Never ends, and notes the largest piece that was asked for."""

        largest = 0
        left = records.MAX_LINE_BYTES * 3

        def readable(self) -> bool:
            return True

        def readline(self, size: int | None = -1, /) -> bytes:
            asked = min(size or 0, self.left)
            self.largest = max(self.largest, asked)
            self.left -= asked
            return b"x" * asked

    endless = Endless()
    (found,) = read_lines(endless)  # type: ignore[arg-type]  # has all that is used
    assert (found.data, found.n_bytes) == (b"", records.MAX_LINE_BYTES * 3)
    assert endless.largest == records.MAX_LINE_BYTES + 1


keys = st.sampled_from(
    ["id", "problem", "steps", "response", "candidates", "prompt", "completions", "labels"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=2)
)
slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines differ


def refusal(call: Callable[[], object]) -> str:
    """The message of the only error that a bad record may raise, or nothing."""
    try:
        call()
    except InputError as error:
        return str(error)
    return ""


@slow
@given(st.dictionaries(keys, values, max_size=5))
def test_read_record_raises_nothing_but_input_errors(data: dict[str, Any]) -> None:
    assert len(refusal(lambda: read_record(data))) < 1000


@slow
@given(st.binary(max_size=300))
def test_decode_line_raises_nothing_but_input_errors(raw: bytes) -> None:
    for item in read_lines(io.BytesIO(raw)):
        assert "\n" not in refusal(partial(decode_line, item))

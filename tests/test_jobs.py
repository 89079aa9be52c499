"""A stream of records becomes a stream of output lines, whatever is in it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from fake_scorer import BROKEN, DIFFERENCE, LONG, RAW, fake_scorer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session_scorers import Counter, make

from prm_edge import batches, jobs
from prm_edge.duplicates import DuplicateIds
from prm_edge.jobs import OutputLine, rounded, score_records
from prm_edge.records import read_lines
from prm_edge_runtime.errors import ConfigError, PackageIntegrityError
from prm_edge_runtime.results import StepScores
from prm_edge_runtime.scorer import Scorer


def run(*rows: object, scorer: Scorer | None = None, **options: Any) -> list[OutputLine]:
    raw = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    stream = io.BytesIO(b"\n".join(raw))
    return list(score_records(scorer or fake_scorer(), read_lines(stream), **options))


def one(row: object, **options: Any) -> dict[str, Any]:
    (line,) = run(row, **options)
    data: dict[str, Any] = json.loads(line.to_json())
    return data


def test_score_records_writes_every_key() -> None:
    assert one({"id": "a", "problem": "p", "steps": ["0.9", "0.25", "0.8"]}) == {
        "id": "a",
        "scores": [0.9, 0.25, 0.8],
        "verdict": "flawed",
        "first_error": 1,
        "aggregate": {
            "last": 0.8,
            "mean": 0.65,
            "min": 0.25,
            "prod": 0.18,
            "softmin": pytest.approx(0.2532, abs=1e-3),
        },
        "threshold": 0.5,
        "status": ["scored", "scored", "scored"],
        "n_tokens": 11,
        "package": "0123456789ab",
        "variant": "cpu-fp32",
    }


def test_score_records_writes_null_for_a_step_without_score() -> None:
    data = one({"problem": "p", "steps": ["0.9", LONG, "0.9"]})
    assert data["scores"] == [0.9, None, None]
    assert data["status"] == ["scored", "too_long", "too_long"]
    assert (data["verdict"], data["first_error"]) == ("unknown", None)
    assert set(data["aggregate"].values()) == {None}


def test_score_records_says_what_to_do_with_long_ones(tiny_package: Path) -> None:
    steps = [f"step {n}: {n} apples" for n in range(9)]
    rows = [{"problem": "p", "steps": steps}, {"problem": "p", "candidates": [steps, steps[:1]]}]
    with make(tiny_package, max_tokens=60) as scorer:
        null, compared = (json.loads(line.to_json()) for line in run(*rows, scorer=scorer))
        assert set(null["status"]) == {"scored", "too_long"}
        assert [score is None for score in null["scores"]] == [
            status == "too_long" for status in null["status"]
        ]
        assert compared["candidates"][0]["status"] == null["status"]
        (window,) = run(rows[0], scorer=scorer, on_too_long="window")
        assert set(window.data["status"]) == {"scored", "windowed"}
        assert None not in window.data["scores"]
        (error,) = run(rows[0], scorer=scorer, on_too_long="error")
        assert "beyond the 60" in (error.error or "")
    with pytest.raises(ConfigError, match="on_too_long must be one of error, null, window"):
        score_records(fake_scorer(), [], on_too_long="cut")


def test_score_records_scores_a_batch_together(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[object] = [{"problem": "p", "steps": [f"{n}", "x"]} for n in range(9)]
    rows += [{"problem": "p", "response": "a\n\nb"}, b"{", {"problem": "p", "candidates": [["a"]]}]
    with make(tiny_package) as scorer:
        counter = Counter(scorer)
        alone = run(*rows, scorer=scorer)
        tokens, runs = counter.tokens, counter.runs
        monkeypatch.setattr(batches, "BATCH_RECORDS", 4)
        together = run(*rows, scorer=scorer, ahead=True)
    assert [line.to_json() for line in together] == [line.to_json() for line in alone]
    assert counter.tokens - tokens <= tokens  # nothing is run again one by one
    assert counter.runs - runs < runs


def test_score_records_in_batches_keeps_errors_apart() -> None:
    rows = [{"problem": "p", "steps": [step]} for step in ("0.9", BROKEN, "0.8")]
    lines = run(*rows, ahead=True)
    assert [line.error is None for line in lines] == [True, False, True]
    assert lines[2].data["scores"] == [0.8]


def test_score_records_reads_no_more_than_a_batch() -> None:
    pulled = 0

    def endless() -> Any:
        nonlocal pulled
        while True:
            pulled += 1
            yield from read_lines(io.BytesIO(b'{"problem": "p", "steps": ["0.9"]}'))

    assert next(score_records(fake_scorer(), endless(), ahead=True)).error is None
    # one batch is scored, some wait, one is in the hand of the thread that reads
    assert batches.BATCH_RECORDS <= pulled <= batches.BATCH_RECORDS * (jobs.BATCHES_AHEAD + 3)


def test_score_records_scores_no_steps_as_unknown() -> None:
    data = one({"problem": "p", "steps": []})
    assert (data["scores"], data["verdict"], data["first_error"]) == ([], "unknown", None)


def test_score_records_writes_the_steps_of_a_response() -> None:
    data = one({"problem": "p", "response": "0.9\n\n 0.8 \n\n"})
    assert data["steps"] == ["0.9", "0.8"]
    assert data["scores"] == [0.9, 0.8]


def test_score_records_compares_candidates() -> None:
    row = {"problem": "p", "candidates": [["0.9", "0.4"], ["0.7", "0.6"], [LONG]]}
    data = one(row)
    assert data["order"] == [1, 0, 2]
    assert (data["best"], data["best_sound"], data["by"]) == (1, 1, "min")
    assert data["threshold"] == 0.5
    assert [candidate["verdict"] for candidate in data["candidates"]] == [
        "flawed",
        "sound",
        "unknown",
    ]
    assert set(data["candidates"][0]) == {
        "scores", "verdict", "first_error", "aggregate", "status", "n_tokens",
    }  # fmt: skip
    assert one(row, by="mean")["by"] == "mean"


def test_score_records_puts_the_threshold_in_place_of_the_packages() -> None:
    row = {"problem": "p", "steps": ["0.9", "0.6"]}
    assert one(row)["first_error"] is None
    data = one(row, threshold=0.7)
    assert (data["threshold"], data["first_error"], data["verdict"]) == (0.7, 1, "flawed")
    ranked = {"problem": "p", "candidates": [["0.9", "0.6"], ["0.9", "0.8"]]}
    assert one(ranked, threshold=0.7)["best_sound"] == 1
    assert one(ranked, threshold=0.95)["best_sound"] is None
    assert one(ranked, threshold=0.95)["threshold"] == 0.95


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_score_records_refuses_a_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"outside the scores of this package, .* from 0 to 1"):
        score_records(fake_scorer(), [], threshold=threshold)


def test_score_records_knows_other_ranges() -> None:
    assert one({"problem": "p", "steps": ["-0.5"]}, scorer=fake_scorer(DIFFERENCE), threshold=-0.9)
    assert one({"problem": "p", "steps": ["1"]}, scorer=fake_scorer(RAW), threshold=-7)
    with pytest.raises(ConfigError, match="threshold inf is outside"):
        score_records(fake_scorer(RAW), [], threshold=float("inf"))


def test_score_records_refuses_an_unknown_aggregate_before_the_first_record() -> None:
    with pytest.raises(ConfigError, match="'prod' is not defined for this recipe"):
        score_records(fake_scorer(DIFFERENCE), [], by="prod")


def test_score_records_goes_on_after_a_bad_line() -> None:
    lines = run(
        {"problem": "p", "steps": ["0.9"]},
        b"",
        b"{",
        {"id": "x", "problem": "p", "steps": "0.9"},
        {"id": [], "problem": "p", "steps": []},
        {"id": 5, "problem": "p", "steps": [BROKEN]},
        {"problem": "p", "steps": ["0.8"]},
    )
    assert [line.number for line in lines] == [1, 3, 4, 5, 6, 7]
    assert [line.error is None for line in lines] == [True, False, False, False, False, True]
    data = [json.loads(line.to_json()) for line in lines]
    assert data[1]["error"]["type"] == "InputError"
    assert set(data[1]) == {"error"}
    assert data[2]["id"] == "x"
    assert data[2]["error"]["type"] == "InputTypeError"
    assert data[2]["error"]["line"] == 4
    assert "'response'" in data[2]["error"]["message"]
    assert "id" not in data[3]
    assert (data[4]["id"], data[4]["error"]["type"]) == (5, "EngineError")
    assert data[5]["scores"] == [0.8]


def test_score_records_stops_when_the_package_is_at_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(problem: str, steps: list[str], *, on_too_long: str) -> StepScores:
        raise PackageIntegrityError("model.onnx.data changed")

    scorer = fake_scorer()
    monkeypatch.setattr(scorer, "score", fail)
    with pytest.raises(PackageIntegrityError, match="changed"):
        run({"problem": "p", "steps": ["a"]}, scorer=scorer)


def test_score_records_scores_when_asked_not_before() -> None:
    def endless() -> Any:
        number = 0
        while True:
            number += 1
            yield from read_lines(io.BytesIO(b'{"problem": "p", "steps": ["0.9"]}'))

    lines = score_records(fake_scorer(), endless())
    assert [next(lines).error for _ in range(3)] == [None] * 3


def test_score_records_echoes_any_scalar_id() -> None:
    ids = ["", "ü\u2028\ud800", 0, -1.5, False, 10**600]
    lines = run(*({"id": i, "problem": "p", "steps": []} for i in ids))
    assert [json.loads(line.to_json())["id"] for line in lines] == ids


def test_score_records_scores_a_megabyte_and_ten_thousand_steps() -> None:
    lines = run(
        {"problem": "p", "steps": ["x" * 1_000_000]}, {"problem": "p", "steps": ["0.9"] * 10_000}
    )
    assert [len(line.data["scores"]) for line in lines] == [1, 10_000]


@pytest.mark.parametrize(
    ("score", "written"), [(None, "null"), (-1e-9, "0.0"), (0.12345678, "0.123457"), (1, "1.0")]
)
def test_rounded_has_six_decimals_and_no_negative_zero(score: float | None, written: str) -> None:
    assert json.dumps(rounded(score)) == written


def test_duplicate_ids_are_counted_as_json() -> None:
    ids = DuplicateIds()
    for identity in ("1", 1, True, 1.0, None, None, "1", "\ud800", "\ud800"):
        ids.add(identity)
    assert (ids.count, ids.first) == (2, "1")


def test_duplicate_ids_remember_only_so_many() -> None:
    ids = DuplicateIds(limit=2)
    for identity in (1, 2, 3, 3, 1):
        ids.add(identity)
    assert (ids.count, ids.first) == (1, 1)


pieces = st.sampled_from(
    [
        b'{"problem": "p", "steps": ["0.9", "0.1"]}',
        b'{"id": 1, "problem": "p", "response": "a\\n\\nb"}',
        b'{"problem": "p", "candidates": [["1"], []]}',
        b'{"problem": "\\ud800", "steps": []}',
        b'{"id": 1e999}',
        b"[" * 3000,
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"\x0b",
        b"\x00",
        b"\x85",
    ]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(pieces | st.binary(max_size=40), max_size=12).map(b"".join))
def test_score_records_gives_one_line_for_every_line_that_is_not_blank(raw: bytes) -> None:
    lines = list(score_records(fake_scorer(), read_lines(io.BytesIO(raw))))
    ahead = list(score_records(fake_scorer(), read_lines(io.BytesIO(raw)), ahead=True))
    assert [line.to_json() for line in ahead] == [line.to_json() for line in lines]
    bare = [part.removeprefix(b"\xef\xbb\xbf").strip() for part in raw.split(b"\n")]
    assert [line.number for line in lines] == [n for n, part in enumerate(bare, 1) if part]
    for line in lines:
        written = line.to_json()
        assert written.count(b"\n") == 1
        assert written.isascii()
        assert ("error" in json.loads(written)) == (line.error is not None)

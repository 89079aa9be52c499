"""``prm-edge bench`` measures and says what it measured; no figure is judged here either."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from prm_edge import bench
from prm_edge.cli import cli
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import EngineError

QUICK = ("--seconds", "0", "--lengths", "20,40", "--threads", "1")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def found(tiny_package: Path) -> dict[str, Any]:
    result = run(tiny_package, *QUICK, "--starts", "2", "--json")
    assert result.exit_code == 0, result.output
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def test_bench_measures_records_of_the_lengths_asked_for(
    found: dict[str, Any], tiny_package: Path
) -> None:
    short, long = found["records"]
    assert short["tokens"] <= 20 < long["tokens"] <= 40
    for row in (short, long):
        assert row["runs"] == bench.LEAST_RUNS
        assert 0 < row["fastest_s"] <= row["median_s"] <= row["slowest_s"]
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["median_s"], rel=0.05)
    # what is timed are real records: the scorer counts the same tokens
    with Scorer.load(tiny_package) as scorer:
        for record, row in zip(bench.records(scorer, (20, 40)), (short, long), strict=True):
            assert scorer.score(record.problem, record.steps).n_tokens == row["tokens"]


def test_bench_measures_a_session(found: dict[str, Any]) -> None:
    session = found["session"]
    assert session["incremental"] is True
    assert session["tokens"] == found["records"][-1]["tokens"]
    assert session["runs"] == bench.LEAST_RUNS * session["steps"]
    assert 0 < session["tokens_run_per_step"] <= session["tokens"] / session["steps"]


def test_bench_starts_fresh_processes(found: dict[str, Any]) -> None:
    cold = found["cold_start"]
    assert cold["starts"] == 2
    assert 0 < cold["first_score_s"] < cold["total_s"]
    assert cold["load_s"] < cold["total_s"]
    if sys.platform.startswith("linux"):
        assert cold["resident_before_bytes"] <= cold["resident_loaded_bytes"] <= cold["peak_bytes"]
        assert cold["mapped_loaded_bytes"] < cold["resident_loaded_bytes"]


def test_bench_prints_a_table(tiny_package: Path) -> None:
    result = run(tiny_package, *QUICK, "--starts", "0")
    assert result.exit_code == 0, result.output
    first, *lines = result.stdout.splitlines()
    assert first.startswith("v1 (cpu-fp32, ")
    assert [line.split()[0] for line in lines] == ["variant", "17", "35", "session"]
    assert "tokens/s" in lines[1]


def test_bench_measures_the_built_in_package_by_default() -> None:
    result = run("--seconds", "0", "--lengths", "64", "--starts", "1")
    assert result.exit_code == 0, result.output
    assert "the built-in package" in result.stdout
    assert "to the first score, in a fresh process (median of 1" in result.stdout


@pytest.mark.parametrize("lengths", ["", "0", "64,", "a", "-5", str(1 << 21)])
def test_bench_refuses_lengths(lengths: str, tiny_package: Path) -> None:
    result = run(tiny_package, "--lengths", lengths)
    assert result.exit_code == 2
    assert "is no list of numbers of tokens, as in 64,256,1024" in result.stderr


def test_bench_without_room_for_a_step_measures_no_record(tiny_package: Path) -> None:
    result = run(tiny_package, "--lengths", "1", "--starts", "0", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["records"], figures["session"]) == ([], None)


def test_bench_takes_no_record_beyond_the_limit(tiny_package: Path) -> None:
    with Scorer.load(tiny_package) as scorer:
        (record,) = bench.records(scorer, (1 << 20,))
        assert scorer.max_tokens / 2 < record.tokens <= scorer.max_tokens


def test_bench_says_what_a_process_that_failed_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"ended with 1: .*there is no package at .*nowhere"):
        bench.cold_start({"path": str(tmp_path / "nowhere")}, 1)


def test_bench_repeats_within_its_budget() -> None:
    took = bench.repeat(lambda: None, 60)
    assert took.runs == bench.MOST_RUNS
    calls: list[None] = []
    took = bench.repeat(lambda: calls.append(None), 0)
    assert (took.runs, len(calls)) == (bench.LEAST_RUNS, bench.LEAST_RUNS + 1)


def test_bench_reads_memory_where_the_system_tells(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\nRssFile:\t 512 kB\nVmX:\t1\n")
    assert bench.memory(status) == {"peak": 2 << 20, "resident": 1 << 20, "mapped": 512 << 10}
    assert set(bench.memory(tmp_path / "absent")) <= {"peak"}

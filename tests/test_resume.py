"""A job may be killed at any instant: what is finished later is what one run would have written."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import job_process
import pytest
from click.testing import CliRunner, Result
from fake_scorer import fake_scorer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from score_command import BAD, GOOD, assert_one_sentence, left_in, posix, rows

from prm_edge.cli import cli
from prm_edge.cli import score as score_module
from prm_edge.journal import Journal
from prm_edge_runtime.errors import ConfigError

KILLS = int(os.environ.get("PRM_EDGE_TEST_KILLS", "3"))


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_module, "load_scorer", lambda *a, **k: fake_scorer())


def score(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["score", *map(str, arguments)], input=stdin)


def records(count: int) -> str:
    lines = []
    for number in range(count):
        steps = [f"{(number * 7 + step) % 100 / 100}" for step in range(number % 5)]
        lines.append(json.dumps({"id": number, "problem": f"p{number}", "steps": steps}))
        if number % 11 == 3:
            lines.append("{broken")
    return "\n".join(lines) + "\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(records(40))
    return path


@pytest.fixture
def whole(source: Path) -> bytes:
    """What one run writes."""
    out = source.parent / "whole.jsonl"
    assert score(source, "-o", out).exit_code == 3
    data = out.read_bytes()
    out.unlink()
    return data


def unfinished(source: Path, partial: bytes) -> Path:
    """An output as a killed run leaves it."""
    out = source.parent / "out.jsonl"
    assert score(source, "-o", out, "--resume").exit_code == 3
    description = json.loads((out.parent / "out.jsonl.job.json").read_text())
    del description["finished"]
    (out.parent / "out.jsonl.job.json").write_text(json.dumps(description))
    out.unlink()
    (out.parent / "out.jsonl.partial").write_bytes(partial)
    return out


# --- killed ---


@posix
def test_resume_after_kills_at_random_instants_writes_the_same_bytes(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(records(400))
    assert score(source, "-o", tmp_path / "whole.jsonl").exit_code == 3
    chance = random.Random(8)
    for _ in range(KILLS):
        process = job_process.start("score", source, "-o", out, "--resume", seconds=0.002)
        # from before the first import to the middle of the job
        time.sleep(chance.uniform(0.05, 0.9))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            break  # it was quicker than we
    process = job_process.start("score", source, "-o", out, "--resume")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 3, stderr
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # all that went wrong is told, not only what this run saw
    assert b"37 of 437 records could not be scored; the first, line 5:" in stderr


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_resume_from_every_torn_place(source: Path, whole: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(whole)))
    # what a file system may leave behind the last synced byte after the power went
    junk = data.draw(st.sampled_from([b"", b"\x00" * 100, b"\x00" * 100 + b"\n", b'{"id": 3}']))
    out = unfinished(source, whole[:cut] + junk)
    result = score(source, "-o", out, "--resume")
    assert result.exit_code == 3, result.stderr
    assert out.read_bytes() == whole
    assert not Path(f"{out}.partial").exists()
    out.unlink()
    Path(f"{out}.job.json").unlink()


def test_resume_says_where_it_goes_on(source: Path, whole: bytes) -> None:
    head = b"".join(whole.splitlines(keepends=True)[:7])
    result = score(source, "-o", unfinished(source, head + b'{"id": 7, "sco'), "--resume")
    assert "prm-edge: going on after 7 records\n" in result.stderr


def test_resume_of_a_finished_job_does_nothing(source: Path, whole: bytes) -> None:
    out = source.parent / "out.jsonl"
    assert score(source, "-o", out, "--resume").exit_code == 3
    before = out.stat().st_mtime_ns
    result = score(source, "-o", out, "--resume")
    assert result.exit_code == 3
    assert "out.jsonl is complete: nothing to do" in result.stderr
    assert "4 of 44 records could not be scored\n" in result.stderr
    assert out.stat().st_mtime_ns == before
    assert left_in(out.parent) == ["in.jsonl", "out.jsonl", "out.jsonl.job.json"]


def test_resume_without_anything_to_go_on_begins(source: Path, whole: bytes) -> None:
    out = source.parent / "out.jsonl"
    assert score(source, "-o", out, "--resume").exit_code == 3
    assert out.read_bytes() == whole


def test_resume_after_the_last_line_and_before_the_rename(source: Path, whole: bytes) -> None:
    out = unfinished(source, whole)
    assert score(source, "-o", out, "--resume").exit_code == 3
    assert out.read_bytes() == whole


def test_resume_after_the_rename(source: Path, whole: bytes) -> None:
    out = source.parent / "out.jsonl"
    assert score(source, "-o", out, "--resume").exit_code == 3
    Path(f"{out}.partial").write_bytes(whole)  # a Parquet file is put there before this goes
    assert "nothing to do" in score(source, "-o", out, "--resume").stderr
    assert not Path(f"{out}.partial").exists()


# --- refused ---


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["--threshold", "0.7"], "--threshold was null and is 0.7"),
        (["--by", "mean"], '--by was null and is "mean"'),
        (["--text"], "--text was false and is true"),
        (["--form", "trl"], '--form was "native" and is "trl"'),
        (["--shard", "1/2"], '--shard was null and is "1/2"'),
    ],
)
def test_resume_refuses_other_options(
    source: Path, whole: bytes, options: list[str], changed: str
) -> None:
    out = unfinished(source, whole[:500])
    result = score(source, "-o", out, "--resume", *options)
    assert result.exit_code == 2
    assert changed in result.stderr
    assert Path(f"{out}.partial").read_bytes() == whole[:500]


def test_resume_refuses_another_input(source: Path, whole: bytes) -> None:
    out = unfinished(source, whole[:500])
    source.write_text(records(41))
    result = score(source, "-o", out, "--resume")
    assert result.exit_code == 2
    assert "input (SHA-256) was " in result.stderr
    assert "input (records) was 44 and is 45" in result.stderr


def test_resume_refuses_another_package(
    monkeypatch: pytest.MonkeyPatch, source: Path, whole: bytes
) -> None:
    out = unfinished(source, whole[:500])
    other = fake_scorer()
    monkeypatch.setattr(other, "package", other.package.__class__(
        root=other.package.root, manifest=other.package.manifest, digest="f" * 64
    ))  # fmt: skip
    monkeypatch.setattr(other, "variant", "cpu-int8", raising=False)
    monkeypatch.setattr(score_module, "load_scorer", lambda *a, **k: other)
    result = score(source, "-o", out, "--resume")
    assert result.exit_code == 2
    assert 'package was "0123456789ab0000000...' in result.stderr
    assert 'variant was "cpu-fp32" and is "cpu-int8"' in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "--overwrite"], "give one of them"),
        (["--resume"], "--resume needs an input file and an output file"),
    ],
)
def test_resume_refuses_what_it_cannot_mean(
    source: Path, arguments: list[str], message: str
) -> None:
    result = score(source, *arguments)
    assert result.exit_code == 2
    assert_one_sentence(result.stderr, message)


def test_resume_refuses_a_pipe(source: Path) -> None:
    result = score("-", "-o", source.parent / "out.jsonl", "--resume", stdin=GOOD)
    assert result.exit_code == 2
    assert_one_sentence(result.stderr, "what comes from a pipe cannot be read again")


def test_score_refuses_to_forget_an_unfinished_job(source: Path, whole: bytes) -> None:
    out = unfinished(source, whole[:500])
    result = score(source, "-o", out)
    assert result.exit_code == 2
    assert "an unfinished job left 'out.jsonl.partial' beside the output: go on" in result.stderr
    assert score(source, "-o", out, "--overwrite").exit_code == 3
    assert out.read_bytes() == whole
    assert left_in(out.parent) == ["in.jsonl", "out.jsonl"]


def test_score_refuses_a_partial_of_which_nothing_is_known(source: Path) -> None:
    out = source.parent / "out.jsonl"
    Path(f"{out}.partial").write_text("precious\n")
    for resume in ([], ["--resume"]):
        result = score(source, "-o", out, *resume)
        assert result.exit_code == 2
        assert "'out.jsonl.partial' lies beside the output without 'out.jsonl.job" in result.stderr
    assert Path(f"{out}.partial").read_text() == "precious\n"


@pytest.mark.parametrize("text", ["{", "[]", '{"job": 1}', "{}"])
def test_resume_refuses_a_description_it_did_not_write(source: Path, text: str) -> None:
    out = source.parent / "out.jsonl"
    Path(f"{out}.job.json").write_text(text)
    result = score(source, "-o", out, "--resume")
    assert result.exit_code == 2
    assert "'out.jsonl.job.json' is not what prm-edge wrote" in result.stderr
    assert score(source, "-o", out, "--overwrite").exit_code == 3


@posix
def test_resume_refuses_a_description_it_cannot_read(source: Path) -> None:
    out = source.parent / "out.jsonl"
    Path(f"{out}.job.json").mkdir()
    result = score(source, "-o", out, "--resume")
    assert result.exit_code == 2
    assert "'out.jsonl.job.json' cannot be read: Is a directory" in result.stderr


def test_resume_refuses_an_output_that_the_job_did_not_write(source: Path) -> None:
    out = source.parent / "out.jsonl"
    assert score(source, "-o", out, "--resume").exit_code == 3
    out.write_text("another program's\n")
    result = score(source, "-o", out, "--resume")
    assert result.exit_code == 2
    assert "is not what the job beside it wrote" in result.stderr
    Path(f"{out}.job.json").unlink()
    result = score(source, "-o", out, "--resume")
    assert "exists; it is complete, or another program's: give --overwrite" in result.stderr
    assert out.read_text() == "another program's\n"


def test_resume_refuses_more_records_than_the_input_has(source: Path, whole: bytes) -> None:
    out = unfinished(source, whole * 2)
    result = score(source, "-o", out, "--resume")
    assert result.exit_code == 1
    assert "'out.jsonl.partial' holds more records than the input" in result.stderr


def test_score_notices_an_input_that_shrinks(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    from prm_edge import inputs

    whole = inputs.survey

    def then_cut(stream: Any, name: str) -> Any:
        found = whole(stream, name)
        source.write_text(records(5))
        return found

    monkeypatch.setattr(inputs, "survey", then_cut)
    out = source.parent / "out.jsonl"
    result = score(source, "-o", out)
    assert result.exit_code == 1
    assert "the input ended after 6 of 44 records: it changed while it was read" in result.stderr
    assert not out.exists()


@posix
def test_journal_says_why_it_cannot_write(tmp_path: Path) -> None:
    journal = Journal(tmp_path / ("x" * 246), {}, resume=False, overwrite=False)
    with pytest.raises(ConfigError, match="cannot be written: File name too long"), journal:
        pass


@posix
def test_journal_refuses_a_second_writer(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, {}, resume=True, overwrite=False):
        second = Journal(out, {}, resume=True, overwrite=False)
        with pytest.raises(ConfigError, match="another process is writing"), second:
            pass


@posix
def test_journal_notices_that_its_file_was_finished_by_another(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    journal = Journal(out, {}, resume=True, overwrite=False)
    locked = journal._lock

    def finished_meanwhile() -> None:
        os.replace(journal.partial, out)
        locked()

    journal._lock = finished_meanwhile  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="another process is writing"), journal:
        pass


# --- the disk is full ---


def test_resume_after_the_disk_was_full(
    monkeypatch: pytest.MonkeyPatch, source: Path, whole: bytes
) -> None:
    out, real, room = source.parent / "out.jsonl", os.write, [700]

    def small_disk(handle: int, data: Any) -> int:
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        taken = min(len(data), room[0])
        room[0] -= taken
        return real(handle, bytes(data[:taken]))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", small_disk)
        result = score(source, "-o", out, "--text")
    assert result.exit_code == 1
    assert "No space left on device; " in result.stderr
    assert re.search(
        rf"\d+ records are kept, go on with: .* {source} --out {out} --text --resume",
        result.stderr,
    )
    # what was torn is gone: every line is whole
    assert Path(f"{out}.partial").read_bytes().endswith(b"\n")
    assert score(source, "-o", out, "--text", "--resume").exit_code == 3
    assert len(rows(out.read_text())) == 44


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_resume_after_a_small_file_system_was_full(
    tmp_path: Path, small_disk: Path, source: Path
) -> None:
    source.write_text(records(1000))
    assert score(source, "-o", tmp_path / "whole.jsonl").exit_code == 3
    out = small_disk / "out.jsonl"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 8192)
    result = score(source, "-o", out)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    result = score(source, "-o", out, "--resume")
    assert result.exit_code == 3, result.stderr
    assert "going on after " in result.stderr
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


# --- shards ---


@pytest.mark.parametrize("count", [1, 3, 10])
def test_shards_put_together_are_the_whole(source: Path, count: int) -> None:
    source.write_text(records(7))
    whole, parts = score(source).stdout.encode(), []
    for number in range(1, count + 1):
        out = source.parent / f"out.{number}.jsonl"
        assert score(source, "-o", out, "--shard", f"{number}/{count}").exit_code in (0, 3)
        parts.append(out.read_bytes())
    assert b"".join(parts) == whole
    sizes = [part.count(b"\n") for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_shard_refuses_what_is_no_part(source: Path, shard: str) -> None:
    result = score(source, "--shard", shard)
    assert result.exit_code == 2
    assert "is not I/N with I from 1 to N" in result.stderr


def test_shard_refuses_a_pipe() -> None:
    result = score("--shard", "1/2", stdin=GOOD)
    assert result.exit_code == 2
    assert_one_sentence(result.stderr, "--shard counts the records first, so it needs a file")


# --- what is said meanwhile ---


def test_log_json_is_one_object_a_line(source: Path) -> None:
    result = score(source, "--log-json", "-o", source.parent / "out.jsonl")
    said = rows(result.stderr)
    assert [item["event"] for item in said] == ["start", "end", "problem"]
    assert said[0]["package"].startswith("0123456789ab")
    end = said[1]
    assert (end["records"], end["total"], end["failed"]) == (44, 44, 4)
    assert end["tokens_per_s"] > 0
    assert said[2]["message"].startswith("4 of 44 records could not be scored")


def test_log_json_reports_progress(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    monkeypatch.setattr("prm_edge.cli.progress.LOG_S", 0.0)
    said = rows(score(source, "--log-json").stderr)
    progress = [item for item in said if item["event"] == "progress"]
    assert [item["records"] for item in progress] == list(range(1, 45))
    assert progress[0]["eta_s"] is None
    assert progress[-1]["eta_s"] == 0
    assert progress[20]["eta_s"] == pytest.approx(
        (44 - 21) / progress[20]["records_per_s"], rel=0.1, abs=0.1
    )


def test_score_from_a_pipe_to_a_file_leaves_nothing_when_it_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(line: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prm_edge.jobs.OutputLine.to_json", fail)
    result = score("-", "-o", tmp_path / "out.jsonl", stdin=GOOD + BAD)
    assert result.exit_code == 1
    assert left_in(tmp_path) == []

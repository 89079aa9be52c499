"""``prm-edge score`` as a process: pipes that close, signals, terminals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from score_command import GOOD, NOTICE, assert_one_sentence, left_in, posix, rows

TESTS = Path(__file__).parent
# runs the command in a process of its own, with a fake in the place of the model
DRIVER = (
    "import signal, sys, prm_edge.cli.score as s, fake_scorer\n"
    # whoever started the tests may have told them to ignore it
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "seconds = float(sys.argv.pop(1))\n"
    "s.load_scorer = lambda *a, **k: fake_scorer.fake_scorer(seconds=seconds)\n"
    "from prm_edge.cli import main\n"
    "main()\n"
)


def start(
    *arguments: object, seconds: float = 0.0, shell: tuple[str, ...] = (), **streams: Any
) -> subprocess.Popen[bytes]:
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [*shell, sys.executable, "-c", DRIVER, str(seconds), "score", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(GOOD * 2)
    return path


@posix
def test_score_asks_for_input_when_stdin_is_a_terminal() -> None:
    import pty

    ours, theirs = pty.openpty()
    process = start(stdin=theirs)
    _, stderr = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 2
    assert_one_sentence(stderr.decode(), "no input: name a file of JSON lines, pipe one in")


@posix
def test_score_asks_for_input_when_stdin_is_closed() -> None:
    process = start("-", shell=("sh", "-c", 'exec "$0" "$@" <&-'))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert_one_sentence(stderr.decode(), "no input: name a file")


@posix
def test_score_asks_for_output_when_stdout_is_closed(good: Path) -> None:
    process = start(good, shell=("sh", "-c", 'exec "$0" "$@" >&-'))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert_one_sentence(stderr.decode(), "no output: stdout is closed; name a file with -o")


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(GOOD * 20_000)
    return path


@posix
@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_score_is_quiet_when_the_reader_goes(endless: Path, quiet: list[str]) -> None:
    process = start(endless, *quiet)
    assert process.stdout
    assert process.stderr
    assert json.loads(process.stdout.readline())["id"] == "a"
    process.stdout.close()
    stderr = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert stderr == ("" if quiet else NOTICE)


@posix
def test_score_writes_each_record_at_once() -> None:
    process = start("--quiet", stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    for number in range(3):
        process.stdin.write(f'{{"id": {number}, "problem": "p", "steps": []}}\n'.encode())
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == number
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 0


@posix
def test_score_refuses_redirected_input_as_output(good: Path) -> None:
    with good.open("rb") as stdin:
        process = start("-o", good, "--overwrite", stdin=stdin)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert_one_sentence(stderr.decode(), "is the input too")
    assert good.read_text() == GOOD * 2


@posix
@pytest.mark.parametrize("old", [None, "precious"])
def test_score_interrupted_leaves_the_old_file(endless: Path, old: str | None) -> None:
    out = endless.parent / "out.jsonl"
    if old is not None:
        out.write_text(old)
    process = start(endless, "-o", out, "--overwrite", seconds=0.01)
    assert process.stderr
    assert process.stderr.readline().startswith(b"prm-edge: scoring with")
    wait_for_results(endless.parent)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    said = stderr.decode()
    assert_one_sentence(said, rf"\d+ records are kept, go on with: .* {out} .*--resume")
    # the record in hand was finished: every line is whole, and as many as it says
    partial = Path(f"{out}.partial").read_bytes()
    kept = re.search(r"(\d+) records are kept", said)
    assert kept is not None
    assert partial.endswith(b"\n")
    assert partial.count(b"\n") == int(kept[1]) > 0
    unfinished = ["in.jsonl", "out.jsonl.job.json", "out.jsonl.partial"]
    assert left_in(endless.parent) == sorted([*unfinished, *(["out.jsonl"] if old else [])])
    if old is not None:
        assert out.read_text() == old


def wait_for_results(folder: Path) -> None:
    deadline_s = time.monotonic() + 60
    while not any(path.stat().st_size for path in folder.glob("*.partial")):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    import pty

    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


@posix
@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_score_shows_progress_on_a_terminal_only(
    good: Path, terminal: tuple[int, int], quiet: list[str]
) -> None:
    ours, theirs = terminal
    process = start(good, *quiet, stderr=theirs)
    stdout, _ = process.communicate(timeout=60)
    os.write(theirs, b"END")
    os.close(theirs)
    said = b""
    while not said.endswith(b"END"):
        said += os.read(ours, 4096)
    assert len(rows(stdout.decode())) == 2
    assert (b"\r1/2 records" in said) is (not quiet)
    assert b"records" not in stdout

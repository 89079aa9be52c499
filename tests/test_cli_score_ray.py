"""``prm-edge score --engine ray`` up to where a cluster is needed, and what is said at its end."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from score_command import BAD, GOOD, assert_one_sentence

pytest.importorskip("pyarrow", reason="needs the parquet extra")

from prm_edge.cli import cli
from prm_edge.ray import cluster, run
from prm_edge.ray.run import Outcome, Request
from prm_edge_runtime.errors import ClusterError

Call = Callable[..., Result]


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text(GOOD + BAD)

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["score", *arguments], prog_name="prm-edge")

    return call


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-", "-o", "out"], "the ray engine reads files, a folder or a pattern"),
        (["in.jsonl"], "the ray engine writes a folder of parts; name it with -o FOLDER"),
        (["in.jsonl", "-o", "out", "--shard", "1/2"], "--shard shares a file out among machines"),
        (["in.jsonl", "-o", "out", "--resume", "--overwrite"], "give one of them"),
    ],
)
def test_score_ray_refuses_what_cannot_be(score: Call, arguments: list[str], said: str) -> None:
    done = score("--engine", "ray", *arguments)
    assert done.exit_code == 2
    assert_one_sentence(done.stderr, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gone.jsonl", "-o", "out"], "the input 'gone.jsonl' does not exist"),
        (["in.jsonl", "-o", "in.jsonl"], "the output 'in.jsonl' is the input too"),
        ([".", "-o", "out"], "lie in each other"),
        (["in.jsonl", "-o", "."], "lie in each other"),
        (["in.jsonl", "-o", "out", "--form", "none"], "there is no output form 'none'"),
        (["in.jsonl", "-o", "out", "--device", "cuda"], "needs --gpus-per-worker"),
        (["in.jsonl", "-o", "out", "-m", "gone"], "gone"),
    ],
)
def test_score_ray_refuses_before_a_cluster_is_there(
    score: Call, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load_ray", lambda: None)
    done = score("--engine", "ray", *arguments)
    assert done.exit_code == 2
    assert_one_sentence(done.stderr, said)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "option", [["--num-workers", "2"], ["--package-on-nodes"], ["--address", "auto"]]
)
def test_score_here_refuses_what_is_about_a_cluster(score: Call, option: list[str]) -> None:
    done = score("in.jsonl", *option)
    assert done.exit_code == 2
    assert_one_sentence(done.stderr, f"{option[0]} is about a cluster; give --engine ray too")


@pytest.mark.usefixtures("no_ray")
def test_score_ray_says_which_extra_is_missing(score: Call) -> None:
    done = score("in.jsonl", "-o", "out", "--engine", "ray")
    assert done.exit_code == 2
    assert_one_sentence(done.stderr, r"needs the extra ray .*: pip install 'prm-edge\[ray\]'")


OUTCOME = Outcome(
    records=4, failed=1, out_of_domain=0, n_tokens=9, parts=2, first_failure="line 2: x",
    repeated_ids=1,
)  # fmt: skip


def answer(monkeypatch: pytest.MonkeyPatch, result: Any) -> list[Request]:
    asked: list[Request] = []

    def score_files(request: Request, say: Any) -> Outcome:
        asked.append(request)
        say("start", "scoring with x")
        if isinstance(result, BaseException):
            raise result
        return result  # type: ignore[no-any-return]

    monkeypatch.setattr(run, "score_files", score_files)
    return asked


def test_score_ray_passes_on_what_was_asked(score: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    (asked,) = [answer(monkeypatch, OUTCOME)]
    done = score(
        "in.jsonl", "-o", "out", "--engine", "ray", "--num-workers", "3", "--gpus-per-worker",
        "0.5", "--memory-per-worker", "2", "--address", "auto", "--package-on-nodes", "--text",
        "--part-records", "7", "--by", "min", "-m", "pkg",
    )  # fmt: skip
    assert done.exit_code == 3
    assert done.stderr == (
        "prm-edge: scoring with x\n"
        "prm-edge: 1 of 4 records could not be scored; the first, line 2: x\n"
        "prm-edge: 1 record has an id that occurred before; all of them were scored\n"
    )
    (request,) = asked
    assert (request.num_workers, request.gpus_per_worker, request.memory_gb) == (3, 0.5, 2.0)
    assert (request.address, request.package_on_nodes, request.part_records) == ("auto", True, 7)
    assert (request.options.by, request.options.text, request.package) == ("min", True, "pkg")
    assert not request.quiet


def test_score_ray_says_how_to_go_on(score: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, ClusterError("the workers died"))
    done = score("in.jsonl", "-o", "out", "--engine", "ray")
    assert done.exit_code == 1
    assert_one_sentence(done.stderr.splitlines(keepends=True)[-1], "workers died; nothing was")
    Path("out/_prm_edge").mkdir(parents=True)
    Path("out/_prm_edge/part-00000-000000.json").write_text("{}")
    answer(monkeypatch, KeyboardInterrupt())
    done = score("in.jsonl", "-o", "out", "--engine", "ray", "--num-workers", "2")
    assert done.exit_code == 130
    command = "prm-edge score in.jsonl --out out --engine ray --num-workers 2 --resume"
    assert done.stderr.endswith(f"interrupted; 1 part is kept, go on with: {command}\n")


def test_score_ray_speaks_json(score: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    (asked,) = [answer(monkeypatch, OUTCOME)]
    done = score("in.jsonl", "-o", "out", "--engine", "ray", "--log-json")
    events = {event["event"]: event for event in map(json.loads, done.stderr.splitlines())}
    assert (events["end"]["records"], events["end"]["parts"]) == (4, 2)
    assert asked[0].quiet


def test_address_of_a_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from prm_edge_runtime.errors import ConfigError

    monkeypatch.setattr(cluster, "load_ray", lambda: None)
    with (
        pytest.raises(ConfigError, match=r"ray:// is the address of a Ray client.*ray job submit"),
        cluster.connected("ray://head:10001", quiet=True),
    ):
        pass


def test_address_where_nobody_listens_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ray:
        @staticmethod
        def is_initialized() -> bool:
            return False

        @staticmethod
        def init(**options: Any) -> None:
            raise ConnectionError("first line\nno such cluster")

    monkeypatch.setattr(cluster, "load_ray", Ray)
    said = r"no Ray cluster can be reached at 127\.0\.0\.1:1: Connection refused"
    with pytest.raises(ClusterError, match=said), cluster.connected("127.0.0.1:1", quiet=True):
        pass
    with (
        pytest.raises(ClusterError, match=r"reached at auto: no such cluster"),
        cluster.connected("auto", quiet=True),
    ):
        pass


def test_worker_fits_by_what_is_scarce() -> None:
    worker = cluster.Worker(cpus=2, gpus=0.5, memory_bytes=10)
    assert worker.fits({"CPU": 9.0, "GPU": 2.0, "memory": 25.0}) == 2
    assert worker.fits({"CPU": 9.0, "memory": 25.0}) == 0
    assert str(worker) == "2 CPUs, 0.5 GPUs, 0.0 GB of memory"


class _RayError(Exception):
    """As Ray wraps what was raised on a node."""

    def __init__(self, text: str, cause: Exception | None = None) -> None:
        super().__init__(text)
        self.cause = cause


class _ActorDiedError(_RayError):
    pass


class _FakeRay:
    class exceptions:  # noqa: N801 - as in ray
        RayError = _RayError
        RayActorError = _ActorDiedError
        OutOfMemoryError = WorkerCrashedError = NodeDiedError = _ActorDiedError


def test_error_of_a_node_is_one_sentence() -> None:
    from prm_edge_runtime.errors import ConfigError

    def said(error: Exception) -> Any:
        return cluster.translated(_FakeRay, error)

    own = ConfigError("what is wrong")
    assert said(_RayError("long\ntrace", own)) is own
    wrapped = RuntimeError("Ray Data")
    wrapped.__cause__ = _RayError("long\ntrace", own)
    assert said(wrapped) is own
    with pytest.raises(ClusterError, match=r"cannot import prm-edge: install the same on every"):
        raise said(_RayError("x", ModuleNotFoundError("No module named 'prm_edge'")))
    with pytest.raises(ClusterError, match=r"a worker died more than 8 times, .*\(it is gone\)"):
        raise said(_ActorDiedError("The actor died\nit is gone"))
    with pytest.raises(ClusterError, match=r"the Ray job failed: the disk is full"):
        raise said(_RayError("trace", OSError("the disk is full")))

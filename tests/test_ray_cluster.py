"""Real clusters on this machine: the local engine's bytes, whatever dies: ``make test-ray``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.data", reason="needs the ray extra")

import ray_cluster

from prm_edge.inputs import read_source
from prm_edge.jobs import score_records
from prm_edge.ray import cluster as ray_module
from prm_edge.ray import score_dataset
from prm_edge.ray.run import Outcome, Request, score_files
from prm_edge.ray.worker import Options
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import ClusterError, ConfigError, PackageNotFoundError

pytestmark = [
    pytest.mark.ray,
    # Ray and pandas deprecate each other's ways; ours are checked elsewhere
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def two() -> Iterator[Any]:
    """A cluster of two nodes of one CPU."""
    with ray_cluster.started(2) as cluster:
        yield cluster


def local(package: Path, *files: Path, **options: Any) -> bytes:
    """What the local engine writes of some files, one after the other."""
    found = []
    with Scorer.load(package) as scorer:
        for file in files:
            with file.open("rb") as stream:
                lines = read_source(stream, file.name)
                found += [x.to_json() for x in score_records(scorer, lines, ahead=True, **options)]
    return b"".join(found)


def parts(out: Path) -> list[Path]:
    return sorted(out.glob("part-*"))


def whole(out: Path) -> bytes:
    return b"".join(path.read_bytes() for path in parts(out))


def score(package: Path, source: Path, out: Path, **more: Any) -> Outcome:
    request = Request(input=str(source), out=str(out), package=str(package), quiet=True, **more)
    return score_files(request, lambda *a, **k: None)


def test_command_writes_the_bytes_of_the_local_engine(
    two: Any, tiny_package: Path, tmp_path: Path
) -> None:
    source = ray_cluster.write_records(tmp_path / "in.jsonl", 300)
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "prm_edge", "score", source, "-o", out, "-m", tiny_package,
        "--engine", "ray", "--address", two.address, "--num-workers", "2",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 3, done.stderr
    assert whole(out) == local(tiny_package, source)
    assert "records could not be scored; the first, line " in done.stderr
    assert done.stdout == ""
    job = json.loads((out / "_prm_edge" / "job.json").read_bytes())
    assert job["finished"]["records"] == job["job"]["input (records)"]
    # and once more: nothing is left to do
    before = [(path.name, path.stat().st_mtime_ns) for path in parts(out)]
    again = subprocess.run(
        [*command, "--resume"], capture_output=True, text=True, timeout=300, check=False
    )
    assert (again.returncode, "is complete: nothing to do" in again.stderr) == (3, True)
    assert [(path.name, path.stat().st_mtime_ns) for path in parts(out)] == before


def test_resume_does_the_missing_parts_only(two: Any, tiny_package: Path, tmp_path: Path) -> None:
    source = ray_cluster.write_records(tmp_path / "in.jsonl", 200)
    out, options = tmp_path / "out", {"num_workers": 2, "part_records": 20}
    first = score(tiny_package, source, out, **options)
    found = parts(out)
    found[3].unlink()
    found[5].write_bytes(b"")
    (out / "_prm_edge" / f"{found[7].stem}.json").unlink()
    kept = {path: path.stat().st_mtime_ns for n, path in enumerate(found) if n not in (3, 5, 7)}
    assert score(tiny_package, source, out, resume=True, **options) == first
    assert whole(out) == local(tiny_package, source)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    with source.open("ab") as stream:
        stream.write(b'{"problem": "p", "steps": []}\n')
    with pytest.raises(ConfigError, match=r"is another one: input \(SHA-256\) was"):
        score(tiny_package, source, out, resume=True, **options)


def test_killed_worker_costs_nothing(two: Any, tiny_package: Path, tmp_path: Path) -> None:
    source = ray_cluster.write_records(tmp_path / "in.jsonl", 1200)
    out = tmp_path / "out"

    def under_way() -> bool:
        return len(parts(out)) >= 4 and len(ray_cluster.workers(two)) == 2

    with ray_cluster.meanwhile(under_way, lambda: ray_cluster.kill_one(two)) as killed:
        outcome = score(tiny_package, source, out, num_workers=2, part_records=40)
    assert killed, "the job was over before a worker could be killed"
    assert outcome.records == sum(1 for line in whole(out).splitlines())
    assert whole(out) == local(tiny_package, source)


def test_lost_node_costs_nothing(tiny_package: Path, tmp_path: Path, two: Any) -> None:
    lost = ray_cluster.add_node(two)
    source = ray_cluster.write_records(tmp_path / "in.jsonl", 1200)
    out = tmp_path / "out"

    def under_way() -> bool:
        return len(parts(out)) >= 4 and lost in ray_cluster.workers(two).values()

    with ray_cluster.meanwhile(
        under_way, lambda: two.remove_node(lost, allow_graceful=False)
    ) as gone:
        score(tiny_package, source, out, num_workers=3, part_records=40)
    assert gone, "the job was over before the node could be removed"
    assert whole(out) == local(tiny_package, source)


def test_added_node_gets_work(two: Any, tiny_package: Path, tmp_path: Path) -> None:
    source = ray_cluster.write_records(tmp_path / "in.jsonl", 2400)
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "prm_edge", "score", source, "-o", out, "-m", tiny_package,
        "--engine", "ray", "--address", two.address, "--part-records", "40", "--quiet",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    added, worked = None, False
    try:
        while process.poll() is None:
            if added is None and len(parts(out)) >= 4:
                with ray_cluster.held(two):
                    added = ray_cluster.add_node(two)
                    # else a fast machine is done before a worker has started there
                    until = time.monotonic() + 60
                    while not worked and time.monotonic() < until:
                        worked = added in ray_cluster.workers(two).values()
                        time.sleep(0.1)
            time.sleep(0.1)
        assert process.returncode == 3, process.stderr and process.stderr.read()
        assert added is not None, "the job was over before a node was added"
        assert worked, "the node that was added got no worker"
        assert whole(out) == local(tiny_package, source)
    finally:
        process.kill()
        process.communicate()
        if added is not None:
            two.remove_node(added)


def test_many_files_of_every_kind_are_scored_each_as_alone(
    two: Any, tiny_package: Path, tmp_path: Path
) -> None:
    import gzip

    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "in"
    folder.mkdir()
    plain = ray_cluster.write_records(folder / "a.jsonl", 70)
    packed = folder / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    table = pyarrow.table({"problem": ["p", "q"] * 20, "steps": [["x = 1"], None] * 20})
    pyarrow.parquet.write_table(table, folder / "c.parquet")
    (folder / "d.json").write_text('[{"problem": "p", "steps": ["x"]}, 3]')
    files = sorted(folder.iterdir())
    out, options = tmp_path / "out", {"text": True, "by": "min"}
    outcome = score(
        tiny_package, folder, out, num_workers=2, part_records=30, options=Options(**options)
    )
    assert whole(out) == local(tiny_package, *files, **options)
    assert outcome.first_failure is not None
    assert outcome.first_failure.startswith(f"{plain}, line 4: ")
    assert outcome.repeated_ids > 0


def test_rows_of_a_dataset_are_scored(two: Any, tiny_package: Path, tmp_path: Path) -> None:
    import pyarrow.parquet
    import ray

    source = ray_cluster.write_records(tmp_path / "in.jsonl", 200, hostile=False)
    scored = score_dataset(
        ray.data.read_json(str(source)), tiny_package, num_workers=2, batch_rows=50
    )
    scored.write_parquet(str(tmp_path / "out"))
    rows = {row["id"]: row for row in pyarrow.parquet.read_table(tmp_path / "out").to_pylist()}
    expected = [json.loads(line) for line in local(tiny_package, source).splitlines()]
    assert len(rows) == len(expected) == 200
    for line in expected:
        assert {key: rows[line["id"]][key] for key in line} == line
        assert rows[line["id"]]["error"] is None


def test_package_missing_on_a_node_is_one_sentence(
    two: Any, tiny_package: Path, tmp_path: Path
) -> None:
    source = ray_cluster.write_records(tmp_path / "in.jsonl", 5)
    moved = tmp_path / "pkg"
    shutil.copytree(tiny_package, moved)
    with pytest.raises(PackageNotFoundError, match=r"'.*/gone' is not on node .*; put it at that"):
        score(tmp_path / "gone", source, tmp_path / "out", package_on_nodes=True)
    outcome = score(moved, source, tmp_path / "out", package_on_nodes=True)
    assert outcome.records == 5


def test_worker_that_fits_nowhere_is_one_sentence(
    two: Any, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_module, "OWN_START_S", 1.0)
    monkeypatch.setattr(ray_module, "PATIENCE_S", 0.5)
    source = ray_cluster.write_records(tmp_path / "in.jsonl", 5)
    with pytest.raises(ClusterError, match=r"has room for one worker \(1 CPU, 9000\.0 GB of mem"):
        score(tiny_package, source, tmp_path / "out", memory_gb=9000.0)
    with pytest.raises(ClusterError, match=r"\(1 CPU, 2 GPUs, .*the cluster has 2 nodes \(1 CPU"):
        score(tmp_path / "pkg", source, tmp_path / "o", gpus_per_worker=2, package_on_nodes=True)


def test_options_that_do_not_fit_are_refused_by_a_worker(
    two: Any, tiny_package: Path, tmp_path: Path
) -> None:
    source = ray_cluster.write_records(tmp_path / "in.jsonl", 5)
    with pytest.raises(ConfigError, match=r"threshold 7\.0 is outside the scores"):
        score(tiny_package, source, tmp_path / "out", options=Options(threshold=7.0))
    assert not parts(tmp_path / "out")


def test_cluster_out_of_reach_is_one_sentence(tiny_package: Path, tmp_path: Path) -> None:
    source = ray_cluster.write_records(tmp_path / "in.jsonl", 5)
    command = [
        sys.executable, "-m", "prm_edge", "score", source, "-o", tmp_path / "out", "-m",
        tiny_package, "--engine", "ray", "--address", "127.0.0.1:1", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: no Ray cluster can be reached at 127.0.0.1:1: Connection refused; nothing was "
        "written\n"
    )


def test_statistics_of_ray_and_onnxruntime_are_off(two: Any, tiny_package: Path) -> None:
    import ray

    code = (
        "import os; os.environ.pop('RAY_USAGE_STATS_ENABLED', None)\n"
        "from prm_edge.ray.cluster import load_ray; load_ray()\n"
        "from ray._common.usage import usage_lib; print(usage_lib.usage_stats_enabled())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

    def on_a_node(package: str) -> str | None:
        with Scorer.load(package) as scorer:
            scorer.score("Solve 2x = 4", ["x = 2"])
            return os.environ.get("ORT_DISABLE_TELEMETRY")

    assert ray.get(ray.remote(on_a_node).remote(str(tiny_package))) == "1"

"""What a worker does, without ray: the bytes of the local engine, from the right package."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_scorer import BROKEN, fake_scorer

pytest.importorskip("pyarrow", reason="needs the parquet extra")

import pyarrow
import pyarrow.parquet

from prm_edge.jobs import score_records
from prm_edge.ray import ScoreRows, packages, worker
from prm_edge.ray.folder import Summary
from prm_edge.ray.packages import NODE, SHIPPED, URI, Source, chunks_of, find_source, on_this_node
from prm_edge.ray.parts import cut, to_table
from prm_edge.ray.places import Place, find_place
from prm_edge.ray.worker import (
    MEMORY_BASE,
    MEMORY_UNKNOWN,
    Options,
    PartScorer,
    Setup,
    introduce,
    load,
    memory_of,
    run_on,
)
from prm_edge.records import read_lines
from prm_edge_runtime import Scorer
from prm_edge_runtime.choice import EMBEDDED
from prm_edge_runtime.errors import (
    ConfigError,
    PackageIntegrityError,
    PackageNotFoundError,
    VariantError,
)
from prm_edge_runtime.package import open_package

TEXT = b"""\
{"id": 1, "problem": "Solve 2x = 4", "steps": ["x = 2", "done"]}
{"id": 1, "problem": "Solve 2x = 4", "response": "x = 2\\nso x = 2"}

{"problem": "p", "candidates": [["a"], ["b", "c"]]}
{"id": "\\ud800", "problem": "p", "steps": "no list"}
{"id": 2, "problem": "p", "steps": [], "label": -1}
not json
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))


def as_is(piece: bytes) -> Iterator[bytes]:
    yield piece


def shipped(package: Path) -> Source:
    source, opened = find_source(package, on_nodes=False)
    assert opened is not None
    files: dict[str, tuple[Any, ...]] = {}
    for name, chunk in chunks_of(opened):
        files[name] = (*files.get(name, ()), chunk)
    return dataclasses.replace(source, files=files)


def setup(package: Path, **changes: Any) -> Setup:
    return dataclasses.replace(Setup(source=shipped(package), device="cpu"), **changes)


def lines() -> Any:
    return list(read_lines(io.BytesIO(TEXT)))


@pytest.mark.parametrize("options", [{}, {"text": True, "by": "min"}, {"form": "trl"}])
@pytest.mark.parametrize("batch_tokens", [1, 16_384])
def test_part_scorer_writes_the_bytes_of_the_local_engine(
    tiny_package: Path, options: dict[str, Any], batch_tokens: int
) -> None:
    asked = setup(tiny_package, options=Options(**options), batch_tokens=batch_tokens, ids=True)
    scored = PartScorer(asked, as_is)
    found = [row for part in cut(lines(), 0, 2) for row in scored(to_table(part)).to_pylist()]
    with Scorer.load(tiny_package) as scorer:
        local = [line.to_json() for line in score_records(scorer, lines(), **options)]
    assert b"".join(row["data"] for row in found) == b"".join(local)
    told = [Summary.from_json(row["summary"]) for row in found]
    assert [one.part for one in told] == [0, 1, 2]
    assert [one.records for one in told] == [2, 2, 2]
    assert sum(one.failed for one in told) == sum(b'"error"' in line for line in local)
    assert [one.size for one in told] == [len(row["data"]) for row in found]
    assert told[0].ids[0] == told[0].ids[1]
    failure = told[1].first_failure or ""
    assert "line 4: the form trl" in failure if "form" in options else "line 5: steps" in failure


def test_part_scorer_writes_parquet(tiny_package: Path) -> None:
    scored = PartScorer(setup(tiny_package, options=Options(form="parquet")), as_is)
    (part,) = cut(lines(), 0, 100)
    (row,) = scored(to_table(part)).to_pylist()
    table = pyarrow.parquet.read_table(io.BytesIO(row["data"]))
    assert table.column("id").to_pylist()[:2] == ["1", "1"]
    assert table.num_rows == Summary.from_json(row["summary"]).records == 6


def test_part_scorer_says_what_is_wrong_when_it_is_called(tiny_package: Path) -> None:
    scored = PartScorer(setup(tiny_package, options=Options(by="nonsense")), as_is)
    with pytest.raises(ConfigError, match="nonsense"):
        scored(to_table(next(cut(lines(), 0, 2))))


def test_load_refuses_a_node_that_differs(tiny_package: Path) -> None:
    facts = introduce(setup(tiny_package), as_is)["facts"]
    with load(setup(tiny_package, expected=facts), as_is) as scorer:
        assert scorer.package.digest == facts.package
    other = dataclasses.replace(facts, onnxruntime="1.0")
    with pytest.raises(ConfigError, match=r"would give other scores: onnxruntime 1\.0 elsewhere"):
        load(setup(tiny_package, expected=other), as_is)
    source = Source(kind=EMBEDDED, place="the built-in package", digest="0" * 64)
    with pytest.raises(ConfigError, match=r"has the digest 0{12} where the job was started and"):
        load(Setup(source=source, device="cpu"), as_is)


def test_built_in_package_keeps_its_domain_on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    source, opened = find_source(None, on_nodes=False)
    assert (source.kind, opened is not None) == (EMBEDDED, True)
    monkeypatch.setenv("PRM_EDGE_PACKAGE", "/somewhere/else")  # of the node: it does not count
    with load(Setup(source=source, device="cpu"), as_is) as scorer:
        assert scorer.source == EMBEDDED
        assert scorer.outside("Prove the Riemann hypothesis.", ["It is obvious."]) is not None


def test_package_is_fetched_once_and_verified(tiny_package: Path) -> None:
    source, fetched = shipped(tiny_package), []

    def fetch(piece: bytes) -> Iterator[bytes]:
        fetched.append(piece)
        yield piece

    first = on_this_node(source, fetch)
    assert first is not None
    n_fetched = len(fetched)
    assert n_fetched == len(source.files)
    assert on_this_node(source, fetch) == first
    assert len(fetched) == n_fetched
    assert open_package(first, verify="full").digest == source.digest
    assert os.stat(Path(first).parent).st_mode & 0o077 == 0
    Path(first, "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(PackageIntegrityError, match="tokenizer"):
        load(Setup(source=source, device="cpu"), fetch)


def test_package_half_fetched_is_fetched_again(tiny_package: Path) -> None:
    source = shipped(tiny_package)

    def full(piece: bytes) -> Iterator[bytes]:
        yield piece[:10]
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match=r"cannot be put into .*No space left .*; set TMPDIR"):
        on_this_node(source, full)
    assert on_this_node(source, as_is) is not None


def test_package_comes_from_a_uri(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "store" / "pkg"
    shutil.copytree(tiny_package, copied)

    def place(text: str) -> Place:
        here = find_place(str(tmp_path / text.removeprefix("s3://")))
        return dataclasses.replace(here, shown=text, local=False)

    monkeypatch.setattr(packages, "find_place", place)
    source, opened = find_source("s3://store/pkg", on_nodes=False)
    assert (source.kind, opened) == (URI, None)
    with load(Setup(source=source, device="cpu"), as_is) as scorer:
        assert scorer.package.digest == open_package(tiny_package).digest
    missing = Source(kind=URI, place="s3://store/none")
    with pytest.raises(PackageNotFoundError, match=r"there is no package at 's3://store/none'"):
        on_this_node(missing, as_is)


def test_package_on_every_node_is_looked_for_there(tiny_package: Path) -> None:
    source, opened = find_source(tiny_package, on_nodes=True)
    assert (source.kind, opened) == (NODE, None)
    assert on_this_node(source, as_is) == str(tiny_package)
    gone = Source(kind=NODE, place="/nowhere/pkg")
    with pytest.raises(PackageNotFoundError, match=r"'/nowhere/pkg' is not on node .*; put it at"):
        on_this_node(gone, as_is)
    with pytest.raises(PackageNotFoundError, match="nowhere"):
        find_source("/nowhere/pkg", on_nodes=False)


def test_private_folder_is_nobody_elses(tmp_path: Path) -> None:
    found = packages.private_folder()
    assert packages.private_folder() == found
    found.chmod(0o777)
    with pytest.raises(ConfigError, match=r"is not a folder that only this user can write to"):
        packages.private_folder()


def test_run_on_decides_device_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRM_EDGE_THREADS", raising=False)
    assert run_on(None, None, 0.0) == ("cpu", 1)
    assert run_on(None, 4, 0.5) == ("cuda", 4)
    monkeypatch.setenv("PRM_EDGE_THREADS", "2")
    assert run_on("cpu", None, 0.0) == ("cpu", 2)
    with pytest.raises(ConfigError, match=r"--device cuda needs --gpus-per-worker"):
        run_on("cuda", None, 0.0)
    with pytest.raises(ConfigError, match=r"--device cpu leaves the GPUs"):
        run_on("cpu", None, 1.0)
    with pytest.raises(ConfigError, match=r"threads 0 means every core"):
        run_on(None, 0, 0.0)


def test_memory_of_a_worker_follows_its_variant(tiny_package: Path) -> None:
    package = open_package(tiny_package)
    known = memory_of(package, device="cpu", variant=None, gigabytes=None)
    weights = sum(package.manifest.files[path].size
                  for path in package.manifest.variants[0].files)  # fmt: skip
    assert known == MEMORY_BASE + 2 * weights
    assert memory_of(None, device="cpu", variant=None, gigabytes=None) == MEMORY_UNKNOWN
    assert memory_of(package, device="cpu", variant=None, gigabytes=1.5) == 1_500_000_000
    with pytest.raises(VariantError, match="cuda"):
        memory_of(package, device="cuda", variant=None, gigabytes=None)


def score_rows(rows: list[dict[str, Any]], scorer: Any, **options: Any) -> Any:
    score = ScoreRows.__new__(ScoreRows)
    source = Source(kind=SHIPPED, place="x")
    score._setup = Setup(source=source, device="cpu", options=Options(**options))
    score._error = None
    score._scorer = scorer
    names = {name: None for row in rows for name in row}
    return score(pyarrow.Table.from_pylist([{**names, **row} for row in rows]))


def test_score_rows_adds_its_columns_and_keeps_the_others() -> None:
    rows = [
        {"id": "a", "problem": "p", "steps": ["0.9", "0.2"], "mine": b"\xff"},
        {"id": "b", "problem": "p", "response": "0.9\n\n0.8"},
        {"id": "c", "problem": "p", "candidates": [["0.4"], ["0.7"]]},
        {"id": "d", "problem": "p", "steps": [BROKEN]},
        {"id": "e", "problem": None, "steps": ["0.9"]},
    ]
    table = score_rows(rows, fake_scorer())
    a, b, c, d, e = table.to_pylist()
    assert (a["mine"], a["scores"], a["first_error"]) == (b"\xff", [0.9, 0.2], 1)
    assert a["aggregate"]["min"] == 0.2
    assert (b["scored_steps"], b["scores"], b["steps"]) == (["0.9", "0.8"], [0.9, 0.8], None)
    assert (c["best"], [x["scores"] for x in c["scored_candidates"]]) == (1, [[0.4], [0.7]])
    assert d["error"]["type"] == "EngineError"
    assert (e["error"]["type"], e["scores"], e["id"]) == ("InputError", None, "e")
    assert [row["error"] for row in (a, b, c)] == [None] * 3
    alone = score_rows(rows[:1], fake_scorer())  # blocks go together: one schema
    assert set(alone.schema.names) - {"mine"} <= set(table.schema.names)
    assert alone.schema.field("aggregate") == table.schema.field("aggregate")


def test_score_rows_gives_what_the_command_writes(tiny_package: Path) -> None:
    rows = [{"problem": "Solve 2x = 4", "steps": ["x = 2", "done"], "id": n} for n in range(3)]
    with Scorer.load(tiny_package) as scorer:
        found = score_rows(rows, scorer).to_pylist()
        text = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        local = [x.data for x in score_records(scorer, read_lines(io.BytesIO(text)))]
    for row, line in zip(found, local, strict=True):
        assert {key: row[key] for key in line} == line


def test_score_rows_refuses_a_name_twice() -> None:
    rows = [{"problem": "p", "steps": ["0.9"], "scores": [1.0]}]
    with pytest.raises(ConfigError, match=r"has the column 'scores' already.*rename or"):
        score_rows(rows, fake_scorer())


def test_score_rows_says_what_is_wrong_when_it_is_called(tiny_package: Path) -> None:
    rows = pyarrow.Table.from_pylist([{"problem": "p", "steps": ["a"]}])
    score = ScoreRows(setup(tiny_package, variant="none"), as_is)
    with pytest.raises(VariantError, match="none"):
        score(rows)


def test_worker_needs_no_ray() -> None:
    assert "ray" not in vars(worker)

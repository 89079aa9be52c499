"""The folder of parts: what is there is there whole, and an unfinished job is known. No ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the parquet extra")

from prm_edge.journal import locked
from prm_edge.ray.folder import ABOUT, Folder, Summary, missing_parts, sha256, write_whole
from prm_edge.ray.places import Place, find_place
from prm_edge_runtime.errors import ConfigError

JOB: dict[str, Any] = {"input (SHA-256)": "a" * 64, "--by": None}


def summary(file: int = 0, part: int = 0, data: bytes = b"x\n", **more: Any) -> Summary:
    known: dict[str, Any] = {
        "records": 1, "failed": 0, "out_of_domain": 0, "n_tokens": 3, "first_failure": None,
        "ids": ("ab",),
    }  # fmt: skip
    return Summary(file=file, part=part, size=len(data), sha256=sha256(data), **{**known, **more})


def remote(out: Path) -> Place:
    """The folder as if it lay in a store of objects."""
    here = find_place(str(out))
    return Place(filesystem=here.filesystem, path=here.path, shown="s3://b/out", local=False)


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    out = tmp_path / "out"
    place = find_place(str(out)) if request.param == "local" else remote(out)
    return Folder(place, ".jsonl")


def begin(folder: Folder, job: dict[str, Any] = JOB, **options: bool) -> Any:
    given = {"resume": False, "overwrite": False, **options}
    with folder.owned():
        return folder.begin(job, **given)


def names(folder: Folder) -> list[str]:
    return sorted(path.name for path in Path(folder.place.path).iterdir())


def test_summary_is_read_back() -> None:
    assert Summary.from_json(summary(first_failure="lone \ud800").to_json()) == summary(
        first_failure="lone \ud800"
    )


def test_folder_goes_on_with_the_parts_that_are_whole(folder: Folder) -> None:
    assert begin(folder) == {}
    done = [summary(part=part, data=b"%d\n" % part) for part in range(4)]
    for one in done:
        folder.write_part(one, b"%d\n" % one.part)
    assert folder.count_parts() == 4
    out = Path(folder.place.path)
    (out / "part-00000-000001.jsonl").write_bytes(b"")  # cut short
    (out / "part-00000-000002.jsonl").unlink()
    (out / ABOUT / "part-00000-000003.json").write_text('{"file": 0, "par')  # torn
    assert begin(folder, resume=True) == {(0, 0): done[0]}


def test_folder_forgets_a_part_that_was_not_told_of(folder: Folder) -> None:
    begin(folder)
    Path(folder.place.child("part-00000-000000.jsonl")).write_bytes(b"x\n")
    assert begin(folder, resume=True) == {}
    folder.write_part(summary(), b"x\n")  # again, over it
    assert begin(folder, resume=True) == {(0, 0): summary()}


def test_folder_refuses_another_job(folder: Folder) -> None:
    begin(folder)
    with pytest.raises(ConfigError, match=r"is another one: --by was null and is \"min\"; give"):
        begin(folder, {**JOB, "--by": "min"}, resume=True)


@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_folder_refuses_parts_that_are_there(folder: Folder, state: str) -> None:
    begin(folder)
    folder.write_part(summary(), b"x\n")
    if state == "finished":
        folder.finish(JOB, 1, 0)
    with pytest.raises(ConfigError, match=rf"holds the parts of a job, {state}: go on with it"):
        begin(folder)
    (Path(folder.place.path) / "mine.txt").write_text("kept")
    assert begin(folder, {**JOB, "--by": "min"}, overwrite=True) == {}
    assert names(folder) == [ABOUT, "mine.txt"]
    assert folder.count_parts() == 0
    job = json.loads(Path(folder.place.child(f"{ABOUT}/job.json")).read_bytes())
    assert job == {"job": {**JOB, "--by": "min"}}


def test_folder_refuses_what_is_not_its_own(folder: Folder) -> None:
    out = Path(folder.place.path)
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ConfigError, match=r"holds something else; name an empty one"):
            begin(folder, **options)
    assert (out / "mine.txt").read_text() == "kept"


def test_folder_refuses_a_damaged_description(folder: Folder) -> None:
    begin(folder)
    Path(folder.place.child(f"{ABOUT}/job.json")).write_text('{"job": 1}')
    with pytest.raises(ConfigError, match=r"job\.json in .* is not what prm-edge wrote"):
        begin(folder, resume=True)


def test_folder_refuses_a_file(folder: Folder) -> None:
    Path(folder.place.path).write_text("mine")
    with pytest.raises(ConfigError, match=r"is a file; the ray engine writes a folder of parts"):
        begin(folder)
    assert Path(folder.place.path).read_text() == "mine"


def test_folder_has_one_owner_on_a_machine(tmp_path: Path) -> None:
    folder = Folder(find_place(str(tmp_path / "out")), ".jsonl")
    with (
        folder.owned(),
        pytest.raises(ConfigError, match=r"another process is writing '.*out' now"),
        folder.owned(),
    ):
        pass
    with locked(tmp_path / "lock", "x"):
        pass


def test_folder_says_where_it_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = Folder(find_place(str(tmp_path / "file" / "out")), ".jsonl")
    with pytest.raises(ConfigError, match=r"cannot be written: Not a directory"), folder.owned():
        pass


def test_write_whole_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_whole(tmp_path / "taken", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_missing_parts_finds_every_hole() -> None:
    def some(*numbers: int, records: int = 1) -> Any:
        return {(0, n): summary(part=n, records=records) for n in numbers}

    assert missing_parts(some(0, 1, 2), (3,)) is None
    assert missing_parts({}, (0,)) is None
    assert missing_parts(some(0, 1), (3,)) == "2 of the 3 records of input file 0 were written"
    assert missing_parts(some(0, 2), (2,)) is not None
    assert missing_parts(some(0, 1, records=2), (3,)) is not None
    assert missing_parts(some(0), (1, 1)) == "0 of the 1 records of input file 1 were written"

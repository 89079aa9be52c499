"""Parts of input files: nothing lost, nothing twice, whatever the lines are. Needs no ray."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pyarrow", reason="needs the parquet extra")

from pyarrow.fs import LocalFileSystem

from prm_edge.inputs import Survey
from prm_edge.ray import parts
from prm_edge.ray.parts import (
    Part,
    Surveyed,
    cut,
    from_rows,
    part_key,
    part_name,
    read_parts,
    records_per_part,
    survey_file,
    to_table,
)
from prm_edge.ray.places import find_files, find_place
from prm_edge.records import Line
from prm_edge_runtime.errors import ConfigError, InputError

HERE = LocalFileSystem()


def lines(*sizes: int) -> list[Line]:
    return [Line(number=n, data=b"x" * size, n_bytes=size) for n, size in enumerate(sizes, 1)]


@given(sizes=st.lists(st.integers(1, 50), max_size=60), records=st.integers(1, 9))
def test_cut_keeps_every_line_once_and_in_order(sizes: list[int], records: int) -> None:
    given_lines = lines(*sizes)
    found = list(cut(given_lines, 3, records))
    assert [line for part in found for line in part.lines] == given_lines
    assert [part.number for part in found] == list(range(len(found)))
    assert all(0 < len(part.lines) <= records and part.file == 3 for part in found)


def test_cut_ends_a_part_at_so_much_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 10)
    assert [len(part.lines) for part in cut(lines(4, 4, 4, 30, 1), 0, 100)] == [3, 1, 1]


def test_cut_refuses_more_parts_than_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_PARTS", 2)
    with pytest.raises(ConfigError, match=r"more than 2 parts of 1 records; give a larger --part"):
        list(cut(lines(1, 1, 1), 0, 1))


@given(file=st.integers(0, 99_999), number=st.integers(0, 999_999))
def test_part_name_is_read_back(file: int, number: int) -> None:
    assert part_key(part_name((file, number))) == (file, number)


@given(a=st.tuples(st.integers(0, 99_999), st.integers(0, 999_999)),
       b=st.tuples(st.integers(0, 99_999), st.integers(0, 999_999)))  # fmt: skip
def test_part_names_sort_as_the_parts_do(a: tuple[int, int], b: tuple[int, int]) -> None:
    assert (part_name(a) < part_name(b)) == (a < b)


@pytest.mark.parametrize("name", ["", "part", "part-0-0", "part-00000-00000x", "x-00000-000000"])
def test_part_key_knows_other_names(name: str) -> None:
    assert part_key(name) is None


def test_records_per_part_depends_on_the_input_alone() -> None:
    assert records_per_part(10, 7) == 7
    assert records_per_part(10, None) == parts.FEWEST_RECORDS
    assert records_per_part(100_000, None) == 196
    assert records_per_part(10**9, None) == parts.MOST_RECORDS


@settings(deadline=None)  # the first loads pyarrow
@given(
    st.lists(
        st.builds(Line, number=st.integers(1), data=st.binary(), n_bytes=st.integers(0)),
        min_size=1,
    ).filter(lambda found: all(line.number < 2**62 and line.n_bytes < 2**62 for line in found))
)
def test_part_survives_arrow(found: list[Line]) -> None:
    part = Part(file=2, number=5, lines=tuple(found))
    assert from_rows(to_table(part).to_pylist()) == [part]


@pytest.mark.parametrize("packed", [False, True])
def test_read_parts_numbers_lines_as_the_file_does(packed: bool, tmp_path: Path) -> None:
    text = b'{"a": 1}\n\n  \r\nnot json\n\xff\n'
    path = tmp_path / "in.jsonl"
    path.write_bytes(gzip.compress(text) if packed else text)
    found = list(read_parts(HERE, str(path), 0, 2))
    numbers = [[line.number for line in part.lines] for part in found]
    assert numbers == [[1, 4], [5]]
    assert survey_file(HERE, str(path)).records == 3


def test_read_parts_says_when_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the input '.*gone' cannot be read"):
        survey_file(HERE, str(tmp_path / "gone"))


def test_surveyed_is_the_hash_of_its_file_or_of_all_in_order() -> None:
    one, other = (Survey(sha256=c * 64, n_bytes=1, records=n) for c, n in (("a", 3), ("b", 4)))
    assert Surveyed(names=("x",), files=(one,)).sha256 == "a" * 64
    both = Surveyed(names=("x", "y"), files=(one, other))
    swapped = Surveyed(names=("y", "x"), files=(other, one))
    assert both.records == 7
    assert len({both.sha256, swapped.sha256, "a" * 64}) == 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl.gz", "c.parquet", "notes.txt", "_x.jsonl", ".y.jsonl"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.json.zst").write_bytes(b"")
    (tmp_path / "_prm_edge").mkdir()
    (tmp_path / "_prm_edge" / "job.json").write_text(json.dumps({}))
    return tmp_path


def test_find_files_takes_the_records_of_a_folder(folder: Path) -> None:
    place, found = find_files(str(folder))
    assert place.local
    names = ["a.jsonl.gz", "b.jsonl", "c.parquet", "deep/d.json.zst"]
    assert [str(Path(path).relative_to(folder)) for path in found] == names
    assert find_files(f"file://{folder}")[1] == found


def test_find_files_takes_what_is_named_and_what_matches(folder: Path) -> None:
    assert find_files(str(folder / "notes.txt"))[1] == (str(folder / "notes.txt"),)
    assert find_files(str(folder / "*.jsonl"))[1] == (str(folder / "b.jsonl"),)


def test_find_files_says_what_is_not_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist; name a file, a folder or a pattern"):
        find_files(str(folder / "gone"))
    with pytest.raises(ConfigError, match=r"matches no file"):
        find_files(str(folder / "*.csv"))
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"is a folder without files named \.jsonl"):
        find_files(str(folder / "empty"))


def test_find_place_knows_uris_from_paths(tmp_path: Path) -> None:
    assert find_place("a/b").local
    with pytest.raises(ConfigError, match=r"'nosuch://x/y' cannot be reached: .*pyarrow opens s3"):
        find_place("nosuch://x/y")
    mock = find_place("mock://x/y")  # a filesystem in memory, of pyarrow itself
    assert (mock.local, mock.child("z")) == (False, "y/z")
    with pytest.raises(ConfigError, match=r"does not exist"):
        find_files("mock://x/y")

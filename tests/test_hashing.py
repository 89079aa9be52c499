"""Large files are hashed once, until they change; a broken memory only costs time."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from package_builder import DATA_NAME, write_package

from prm_edge_runtime import hashing
from prm_edge_runtime import package as package_module
from prm_edge_runtime.errors import PackageIntegrityError
from prm_edge_runtime.hashing import HashMemory, cache_folder, hash_file
from prm_edge_runtime.manifest import FileEntry
from prm_edge_runtime.package import open_package

DATA = f"cpu-fp32/{DATA_NAME}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "SETTLED_NS", -(10**18))  # files of this very moment count
    monkeypatch.setattr(package_module, "SMALL_FILE_BYTES", 200)  # the weights are large
    return tmp_path / "cache" / "prm-edge" / "verified.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_package(tmp_path / "pkg")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Call it for the names hashed since the last call."""
    names: list[str] = []

    def spy(path: Path) -> FileEntry:
        names.append(path.name)
        return hash_file(path)

    def take() -> list[str]:
        taken = [name for name in names if name == DATA_NAME]
        names.clear()
        return taken

    monkeypatch.setattr(package_module, "hash_file", spy)
    return take


def touch_later(path: Path) -> None:
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))


# ---- hashing


@pytest.mark.parametrize("size", [0, 1, hashing.CHUNK_BYTES, hashing.CHUNK_BYTES + 1])
def test_hash_file_gives_size_and_digest(tmp_path: Path, size: int) -> None:
    content = b"\x07" * size
    (tmp_path / "file").write_bytes(content)
    expected = FileEntry(size=size, sha256=hashlib.sha256(content).hexdigest())
    assert hash_file(tmp_path / "file") == expected


# ---- remembering


def test_large_files_are_hashed_once(root: Path, hashed: Callable[[], list[str]]) -> None:
    open_package(root)
    assert hashed() == [DATA_NAME]
    open_package(root)
    assert hashed() == []


def test_small_files_are_hashed_every_time(root: Path, cache: Path) -> None:
    open_package(root)
    path = root / "tokenizer.json"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"none", b"evil"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(PackageIntegrityError, match=r"tokenizer.json has the SHA-256"):
        open_package(root)


def test_full_hashes_what_is_remembered(root: Path, hashed: Callable[[], list[str]]) -> None:
    open_package(root)
    open_package(root, verify="full")
    assert hashed() == [DATA_NAME] * 2


def test_a_changed_mtime_hashes_again(root: Path, hashed: Callable[[], list[str]]) -> None:
    open_package(root)
    touch_later(root / DATA)
    open_package(root)
    assert hashed() == [DATA_NAME] * 2


def test_changed_content_is_found(root: Path) -> None:
    open_package(root)
    (root / DATA).write_bytes(b"\1" * 256)
    with pytest.raises(PackageIntegrityError, match=f"{DATA} has the SHA-256"):
        open_package(root)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no time of change")
def test_changed_content_is_found_even_when_the_mtime_is_set_back(root: Path) -> None:
    open_package(root)
    before = (root / DATA).stat()
    (root / DATA).write_bytes(b"\1" * 256)
    os.utime(root / DATA, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(PackageIntegrityError, match=f"{DATA} has the SHA-256"):
        open_package(root)


def test_a_replaced_file_is_hashed_again(root: Path) -> None:
    open_package(root)
    before = (root / DATA).stat()
    (root / "new").write_bytes(b"\1" * 256)
    os.utime(root / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(root / "new", root / DATA)
    with pytest.raises(PackageIntegrityError, match=f"{DATA} has the SHA-256"):
        open_package(root)


def test_a_wrong_hash_is_not_remembered(root: Path) -> None:
    (root / DATA).write_bytes(b"\1" * 256)
    for _ in range(2):
        with pytest.raises(PackageIntegrityError, match=f"{DATA} has the SHA-256"):
            open_package(root)


def test_another_expected_hash_is_not_what_was_remembered(root: Path) -> None:
    open_package(root)
    text = (root / "prm_edge.json").read_text(encoding="utf-8")
    right = hash_file(root / DATA).sha256
    (root / "prm_edge.json").write_text(text.replace(right, "0" * 64), encoding="utf-8")
    with pytest.raises(PackageIntegrityError, match=f"{DATA} has the SHA-256 {right} instead of"):
        open_package(root)


def test_a_file_changed_just_now_is_not_remembered(
    root: Path, hashed: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "SETTLED_NS", 10**15)
    open_package(root)
    open_package(root)
    assert hashed() == [DATA_NAME] * 2


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(root: Path) -> None:
    path = root / DATA
    entry, before = hash_file(path), path.stat()
    touch_later(path)
    memory = HashMemory()
    memory.remember(path, entry, before)
    assert not memory.knows(path, entry)


def test_a_missing_file_is_neither_known_nor_remembered(root: Path) -> None:
    path = root / DATA
    entry, before = hash_file(path), path.stat()
    path.unlink()
    memory = HashMemory()
    memory.remember(path, entry, before)
    assert not memory.knows(path, entry)


def test_the_memory_forgets_the_oldest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "MAX_REMEMBERED", 2)
    paths = [root / DATA, root / "tokenizer.json", root / "selftest.json"]
    memory = HashMemory()
    for path in paths:
        memory.remember(path, hash_file(path), path.stat())
    memory.save()
    again = HashMemory()
    assert [again.knows(path, hash_file(path)) for path in paths] == [False, True, True]


# ---- a memory that does not work


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"version": 2, "verified": ["x"]}',
        b'{"version": 1, "verified": {"x": 1}}',
        b'{"version": 1, "verified": [1, null]}',
    ],
    ids=lambda content: repr(content)[:20],
)
def test_a_broken_memory_only_hashes_again(
    root: Path, cache: Path, content: bytes, hashed: Callable[[], list[str]]
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    open_package(root)
    assert hashed() == [DATA_NAME]
    assert json.loads(cache.read_bytes())["version"] == 1  # and it is repaired
    open_package(root)
    assert hashed() == []


def test_a_memory_that_cannot_be_written_only_hashes_again(
    root: Path, cache: Path, hashed: Callable[[], list[str]]
) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_bytes(b"a file where the folder would be")
    for _ in range(2):
        open_package(root)
        assert hashed() == [DATA_NAME]


def test_a_memory_on_a_full_disk_leaves_no_rubbish(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    open_package(root)
    assert list(cache.parent.iterdir()) == []


def test_a_memory_without_a_place_only_hashes_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, hashed: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("LOCALAPPDATA", "")
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_folder() is None
    for _ in range(2):
        open_package(root)
        assert hashed() == [DATA_NAME]


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_cache_folder_ignores_a_relative_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("LOCALAPPDATA", "relative")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/someone"))
    assert cache_folder() == Path("/home/someone/.cache/prm-edge")

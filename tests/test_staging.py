"""Hidden siblings belong to one living process, and names change in one step."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import sys
from pathlib import Path

import pytest
from writing import abandon, names_beside, raising, write

from prm_edge_export import staging
from prm_edge_export.staging import Staging, exchange, replace_folder, sweep
from prm_edge_runtime.package import open_package


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # it would take most of the time
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "exports" / "pkg"


# ---- siblings of dead and living processes


def test_the_next_export_removes_what_a_dead_one_left(out: Path) -> None:
    left = abandon(out)
    assert (left / "half").exists()
    write(out)
    assert names_beside(out) == ["pkg"]


def test_an_export_leaves_living_ones_and_other_outputs_alone(out: Path) -> None:
    out.parent.mkdir()
    living = Staging(out)
    other = abandon(out.with_name("other"))
    longer = abandon(out.with_name("pkg.tmp-b"))
    (out.parent / ".pkg.tmp-notahash").mkdir()
    (out.parent / ".pkg.tmp-01234567").mkdir()  # no lock: not one of ours
    write(out)
    assert living.path.is_dir()
    living.remove()
    living.remove()
    assert other.is_dir()
    assert longer.is_dir()
    assert len(names_beside(out)) == 7


def test_sweep_puts_back_a_package_that_was_moved_aside(
    out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = write(out)
    left = abandon(out)
    out.rename(left.with_name(left.name + ".old"))
    sweep(out)
    assert open_package(out) == before
    assert names_beside(out) == ["pkg"]
    assert "put back" in caplog.text


def test_sweep_removes_an_old_package_that_was_replaced(out: Path) -> None:
    before = write(out)
    left = abandon(out)
    shutil.copytree(out, left.with_name(left.name + ".old"))
    sweep(out)
    assert open_package(out) == before
    assert names_beside(out) == ["pkg"]


def test_sweep_passes_over_a_lock_that_it_may_not_open(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = abandon(out)
    monkeypatch.setattr(os, "open", raising(PermissionError(errno.EACCES, "Permission denied")))
    sweep(out)
    assert left.exists()


def test_staging_works_where_the_filesystem_has_no_locks(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", raising(OSError(errno.ENOLCK, "No locks")))
    left = abandon(out)
    write(out)
    assert left.exists()  # nobody can tell whether its owner lives
    assert open_package(out).manifest.name == "tiny"


def test_staging_takes_another_name_when_its_lock_is_taken(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.parent.mkdir()
    answers = iter([False, True])
    monkeypatch.setattr(staging, "_try_lock", lambda handle: next(answers))
    Staging(out).remove()
    answers = iter([True, True])
    stat = os.fstat
    swept = [OSError(errno.ENOENT, "swept away")]

    def forget_the_first(handle: int) -> os.stat_result:
        if swept:
            raise swept.pop()
        return stat(handle)

    monkeypatch.setattr(os, "fstat", forget_the_first)
    Staging(out).remove()
    assert not swept
    assert next(answers, None) is None
    monkeypatch.setattr(os, "fstat", stat)
    tokens = iter(["0" * 8, "0" * 8, "1" * 8])
    answers = iter([True, True])
    monkeypatch.setattr(secrets, "token_hex", lambda size: next(tokens))
    one, two = Staging(out), Staging(out)
    assert one.path != two.path
    one.remove()
    two.remove()


def test_staging_gives_up_its_lock_when_the_folder_cannot_be_made(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.parent.mkdir()
    monkeypatch.setattr(Path, "mkdir", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        Staging(out)
    assert names_beside(out) == []


def test_a_staging_folder_that_cannot_be_removed_is_reported(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out.parent.mkdir()
    folder = Staging(out)
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
    folder.remove()
    assert "could not be removed; remove it by hand" in caplog.text


# ---- one step


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux exchanges names")
def test_exchange_swaps_two_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name, encoding="utf-8")
    assert exchange(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / "name").read_text(encoding="utf-8") == "two"
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "one", tmp_path / "three")


def test_exchange_is_not_tried_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert not exchange(tmp_path, tmp_path)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not exchange(tmp_path, tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP])
def test_replace_folder_works_where_the_filesystem_cannot_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    class Library:
        @staticmethod
        def renameat2(*arguments: object) -> int:
            ctypes.set_errno(code)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library)
    (tmp_path / "new").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "new" / "file").touch()
    replace_folder(tmp_path / "new", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").exists()


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path: Path) -> None:
    staging.fsync_folder(tmp_path / "missing")

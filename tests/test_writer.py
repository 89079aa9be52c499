"""Writing packages: all of it or nothing, whatever happens in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from package_builder import (
    DATA_NAME,
    SHARED_FILES,
    tiny_manifest,
    tiny_variant,
    write_package,
    write_variant,
)
from writing import CHILD, fill, names_beside, raising, run_child, write

from prm_edge_export import writer
from prm_edge_export.package_files import UNFINISHED_MARK
from prm_edge_export.writer import PackageWriter
from prm_edge_runtime.errors import ExportError
from prm_edge_runtime.package import Package, check_files, open_package

DATA = f"cpu-fp32/{DATA_NAME}"
MODES = ("new", "overwrite", "overwrite-without-exchange", "add")


@pytest.fixture(autouse=True)
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inodes in the order in which they were synced; the real call would take most of the time."""
    inodes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: inodes.append(os.fstat(handle).st_ino))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return inodes


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "exports" / "pkg"


# ---- a new package


def test_writer_writes_a_package_that_opens(out: Path) -> None:
    package = write(out, ("cpu-fp32", "cpu-int8"))
    assert package == open_package(out, verify="full")
    assert package.root == out
    assert sorted(package.manifest.files) == [
        "cpu-fp32/model.onnx",
        DATA,
        "cpu-int8/model.onnx",
        f"cpu-int8/{DATA_NAME}",
        "selftest.json",
        "tokenizer.json",
    ]
    assert package.variant("cpu-int8").files == ("cpu-int8/model.onnx", f"cpu-int8/{DATA_NAME}")
    assert (out / "README.md").read_bytes() == SHARED_FILES["README.md"]
    assert names_beside(out) == ["pkg"]


@pytest.mark.parametrize("add", [False, True])
def test_writer_syncs_every_file_and_folder_before_it_renames(
    out: Path, synced: list[int], monkeypatch: pytest.MonkeyPatch, add: bool
) -> None:
    if add:
        write(out)
        synced.clear()
    rename = os.rename

    def rename_synced(source: Path, target: Path) -> None:
        below = [source, *source.rglob("*")]
        unsynced = [path.name for path in below if path.stat().st_ino not in synced]
        assert unsynced == ([UNFINISHED_MARK] if add else [])
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_synced)
    write(out, ("cpu-int8",), add=add)
    assert synced[-1] == (out if add else out.parent).stat().st_ino


def test_writer_hides_its_staging_beside_the_output(out: Path) -> None:
    with PackageWriter(out) as open_writer:
        assert open_writer.staging.parent == out.parent
        assert open_writer.staging.name.startswith(".pkg.tmp-")
        assert not out.exists()


def test_writer_gives_the_usual_permissions(out: Path) -> None:
    write(out)
    (out.parent / "plain").mkdir()
    assert out.stat().st_mode == (out.parent / "plain").stat().st_mode


def test_writer_lists_every_file_but_the_manifest_and_the_card(out: Path) -> None:
    with PackageWriter(out) as open_writer:
        fill(open_writer)
        open_writer.write_bytes("licenses/base/LICENSE", b"Apache-2.0")
        package = open_writer.finish(tiny_manifest())
    assert package.read_bytes("licenses/base/LICENSE") == b"Apache-2.0"


def test_writer_follows_a_linked_output(out: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(out, target_is_directory=True)
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert open_package(out).manifest.name == "tiny"
    write(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()


def test_writer_removes_its_staging_when_nothing_was_finished(out: Path) -> None:
    with PackageWriter(out) as open_writer:
        fill(open_writer)
    assert names_beside(out) == []


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_writer_removes_its_staging_on_any_exception(out: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write(out, also=raising(error))
    assert names_beside(out) == []


def test_writer_must_be_opened(out: Path) -> None:
    with pytest.raises(ExportError, match="is not open: use it in a with statement"):
        PackageWriter(out).variant_dir("cpu-fp32")


def test_writer_finishes_once(out: Path) -> None:
    with PackageWriter(out) as open_writer:
        fill(open_writer)
        open_writer.finish(tiny_manifest())
        with pytest.raises(ExportError, match="was finished already: open a new PackageWriter"):
            open_writer.finish(tiny_manifest())
    assert open_package(out).manifest.name == "tiny"


@pytest.mark.parametrize("name", ["../up", "CPU", "default", ""])
def test_variant_dir_refuses_an_impossible_name(out: Path, name: str) -> None:
    open_writer = PackageWriter(out)
    with open_writer, pytest.raises(ExportError, match="cannot be used: it must be 1 to 63 of a-z"):
        open_writer.variant_dir(name)


def test_finish_refuses_a_manifest_that_would_not_load(out: Path) -> None:
    manifest = tiny_manifest(thresholds={"default": 0.5, "gpu": 0.5})
    with pytest.raises(ExportError, match=r"does not verify, so nothing was changed.*'gpu' is no"):
        write(out, manifest=manifest)
    assert names_beside(out) == []


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), b"bytes"])
@pytest.mark.parametrize("add", [False, True])
def test_finish_refuses_a_figure_that_json_does_not_have(out: Path, figure: Any, add: bool) -> None:
    if add:
        write(out)
    variant = tiny_variant("cpu-int8", proof={"max_dp": figure})
    with pytest.raises(ExportError, match=r"'tiny' holds a value that JSON does not have \("):
        write(out, ("cpu-int8",), manifest=tiny_manifest(variants=(variant,)), add=add)
    assert names_beside(out) == (["pkg"] if add else [])


def test_finish_refuses_a_missing_graph(out: Path) -> None:
    manifest = tiny_manifest(("cpu-fp32", "cpu-int8"))
    with pytest.raises(ExportError, match=r"'cpu-int8/model.onnx' is not among the files"):
        write(out, manifest=manifest)


def test_finish_refuses_external_data_elsewhere(out: Path) -> None:
    def lead_outside(open_writer: PackageWriter) -> None:
        write_variant(open_writer.staging / "cpu-fp32", location="../outside.bin")

    with pytest.raises(ExportError, match=r"reads external data from '../outside.bin', which"):
        write(out, also=lead_outside)


def test_finish_refuses_links_and_odd_names(out: Path) -> None:
    with PackageWriter(out) as open_writer:
        fill(open_writer)
        (open_writer.staging / "odd\nname").touch()
        with pytest.raises(ExportError, match="holds a control character; packages hold none such"):
            open_writer.finish(tiny_manifest())
        (open_writer.staging / "odd\nname").unlink()
        for kind in ("file", "folder", "pipe"):
            odd = open_writer.staging / "cpu-fp32" / kind
            if kind == "pipe":
                os.mkfifo(odd)
            else:
                odd.symlink_to("model.onnx" if kind == "file" else "../cpu-fp32")
            with pytest.raises(ExportError, match=f"cpu-fp32/{kind} is a link or a special file"):
                open_writer.finish(tiny_manifest())
            odd.unlink()
        open_writer.finish(tiny_manifest())


# ---- faults


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [DATA, "tokenizer.json", "cpu-fp32/model.onnx"])
def test_a_byte_that_changes_on_the_disk_is_found(
    out: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def corrupt_then_open(path: Path, **options: str) -> Package:
        flip(path / name)
        return open_package(path, **options)

    monkeypatch.setattr(writer, "open_package", corrupt_then_open)
    with pytest.raises(ExportError, match=rf"does not verify.*{name} has the SHA-256"):
        write(out)
    assert names_beside(out) == []


def test_a_byte_that_changes_on_the_disk_is_found_when_adding(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write(out)

    def corrupt_then_check(root: Path, files: Any, **options: Any) -> None:
        flip(root / "cpu-int8" / DATA_NAME)
        check_files(root, files, **options)

    monkeypatch.setattr(writer, "check_files", corrupt_then_check)
    with pytest.raises(ExportError, match=rf"cpu-int8/{DATA_NAME} has the SHA-256"):
        write(out, ("cpu-int8",), add=True)
    assert open_package(out, verify="full") == before
    assert names_beside(out) == ["pkg"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("mode", ["new", "overwrite", "add"])
def test_a_full_disk_changes_nothing(
    out: Path, monkeypatch: pytest.MonkeyPatch, code: int, mode: str
) -> None:
    before = write(out) if mode != "new" else None
    monkeypatch.setattr(writer, "write_synced", raising(OSError(code, os.strerror(code))))
    with pytest.raises(ExportError, match=r"no space left while writing .* nothing was changed"):
        write(out, ("cpu-int8",), overwrite=mode == "overwrite", add=mode == "add")
    assert names_beside(out) == ([] if mode == "new" else ["pkg"])
    if before is not None:
        assert open_package(out, verify="full") == before


def test_a_full_disk_is_reported_wherever_the_caller_meets_it(out: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ExportError, match=r"no space left while writing the package for .*pkg"):
        write(out, also=raising(full))
    assert names_beside(out) == []


def test_another_fault_of_the_caller_stays_as_it_is(out: Path) -> None:
    with pytest.raises(PermissionError):
        write(out, also=raising(PermissionError(errno.EACCES, "Permission denied")))


def test_a_disk_that_really_refuses_to_write_changes_nothing(out: Path, tmp_path: Path) -> None:
    source = write_package(tmp_path / "source")
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "import writer_child\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))\n"
        "writer_child.export(Path(sys.argv[1]), Path(sys.argv[2]), ['cpu-fp32'],\n"
        "                    overwrite=False, add=False)\n"
    )
    assert (source / "prm_edge.json").stat().st_size > 300  # the last thing that is written
    done = run_child("-c", code, str(source), str(out))
    assert done.returncode == 1
    assert "prm_edge_runtime.errors.ExportError: no space left while writing" in done.stderr
    assert names_beside(out) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("mode", MODES)
def test_killed_at_any_file_operation(tmp_path: Path, mode: str) -> None:
    source = write_package(tmp_path / "source", ("cpu-fp32", "cpu-int8"))
    (tmp_path / "place").mkdir()
    done = run_child(str(CHILD), mode, str(source), str(tmp_path / "place"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30  # so many places to be killed at


def test_a_failing_rename_changes_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "rename", raising(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(ExportError, match=r"cannot put the package at .*Input/output error .*noth"):
        write(out)
    assert names_beside(out) == []


def test_an_output_that_cannot_be_written_is_reported_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"cannot write beside .*file/pkg: .*: give a folder"):
        write(tmp_path / "file" / "pkg")
    monkeypatch.setattr(Path, "mkdir", raising(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(ExportError, match="Permission denied: give a folder that can be written"):
        write(tmp_path / "pkg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]

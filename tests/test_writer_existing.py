"""Writing where a package is already: replace it, or add a variant to it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from package_builder import (
    DATA_NAME,
    SHARED_FILES,
    tiny_manifest,
    tiny_recipe,
    write_variant,
)
from writing import fill, names_beside, raising, write

from prm_edge_export import staging
from prm_edge_export.package_files import UNFINISHED_MARK
from prm_edge_export.writer import PackageWriter
from prm_edge_runtime.errors import ExportError
from prm_edge_runtime.package import open_package

DATA = f"cpu-fp32/{DATA_NAME}"


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # it would take most of the time
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "exports" / "pkg"


# ---- an output that exists


def test_overwrite_and_add_exclude_each_other(out: Path) -> None:
    with pytest.raises(ExportError, match="overwrite and add exclude each other"):
        write(out, overwrite=True, add=True)


def test_an_existing_output_is_refused_before_any_work(out: Path) -> None:
    before = write(out)
    with pytest.raises(
        ExportError, match=r"pkg exists: choose another folder, --overwrite .*--add to add"
    ):
        PackageWriter(out).__enter__()
    assert open_package(out) == before
    assert names_beside(out) == ["pkg"]


def test_an_output_that_appears_meanwhile_is_refused(out: Path) -> None:
    def appear(open_writer: PackageWriter) -> None:
        out.mkdir()
        (out / "thesis.tex").touch()

    with pytest.raises(ExportError, match=r"pkg exists: choose another"):
        write(out, also=appear)
    assert names_beside(out) == ["pkg"]
    assert (out / "thesis.tex").exists()


@pytest.mark.parametrize("with_exchange", [True, False])
def test_overwrite_replaces_a_package(
    out: Path, monkeypatch: pytest.MonkeyPatch, with_exchange: bool
) -> None:
    if not with_exchange:
        monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    write(out, ("cpu-fp32",))
    package = write(out, ("cpu-int8",), overwrite=True)
    assert open_package(out, verify="full") == package
    assert not (out / "cpu-fp32").exists()
    assert names_beside(out) == ["pkg"]


def test_overwrite_replaces_an_empty_folder(out: Path) -> None:
    out.mkdir(parents=True)
    write(out, overwrite=True)
    assert open_package(out).manifest.name == "tiny"


def test_overwrite_writes_where_nothing_is(out: Path) -> None:
    write(out, overwrite=True)
    assert open_package(out).manifest.name == "tiny"


def test_overwrite_replaces_a_damaged_package(out: Path) -> None:
    write(out)
    (out / DATA).write_bytes(b"")
    (out / "tokenizer.json").unlink()
    assert write(out, overwrite=True) == open_package(out, verify="full")


def test_overwrite_never_deletes_other_files(out: Path) -> None:
    write(out)
    for number in range(7):
        (out / f"notes{number}.txt").touch()
    with pytest.raises(
        ExportError, match=r"not part of a package: notes0.txt, .*notes4.txt and 2 more: --overw"
    ):
        write(out, overwrite=True)
    assert open_package(out).manifest.name == "tiny"


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format_version": 2}'])
def test_overwrite_leaves_what_it_cannot_read(out: Path, content: bytes) -> None:
    write(out)
    (out / "prm_edge.json").write_bytes(content)
    with pytest.raises(ExportError, match=r"holds files that are not part of a package: README"):
        write(out, overwrite=True)
    assert (out / DATA).exists()


def test_overwrite_leaves_a_folder_of_other_things(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "thesis.tex").touch()
    (out / "link").symlink_to(out.parent, target_is_directory=True)
    with pytest.raises(ExportError, match=r"not part of a package: link, thesis.tex: --overwrite"):
        write(out, overwrite=True)
    assert (out / "thesis.tex").exists()


def test_overwrite_leaves_a_file(out: Path) -> None:
    out.parent.mkdir()
    out.write_bytes(b"mine")
    with pytest.raises(ExportError, match="is a file: --overwrite replaces only a package or an"):
        write(out, overwrite=True)
    assert out.read_bytes() == b"mine"


def test_overwrite_leaves_a_mount_point(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.mkdir(parents=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(ExportError, match="is a mount point, which cannot be replaced"):
        write(out, overwrite=True)


def test_overwrite_checks_again_before_it_replaces(out: Path) -> None:
    before = write(out)
    with pytest.raises(ExportError, match=r"not part of a package: notes.txt"):
        write(out, overwrite=True, also=lambda _: (out / "notes.txt").touch())
    assert open_package(out) == before


def test_overwrite_keeps_the_old_package_when_the_exchange_fails(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write(out)
    monkeypatch.setattr(staging, "exchange", raising(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(ExportError, match=r"cannot put the package at .*nothing was changed"):
        write(out, ("cpu-int8",), overwrite=True)
    assert open_package(out, verify="full") == before
    assert names_beside(out) == ["pkg"]


def test_overwrite_puts_the_old_package_back_when_the_second_rename_fails(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write(out)
    monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    rename = os.rename

    def fail_to_put_in_place(source: Path, target: Path) -> None:
        if target == out and not source.name.endswith(".old"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_to_put_in_place)
    with pytest.raises(ExportError, match="Input/output error"):
        write(out, ("cpu-int8",), overwrite=True)
    assert open_package(out, verify="full") == before
    assert names_beside(out) == ["pkg"]


# ---- adding a variant


def test_add_keeps_what_there_is(out: Path) -> None:
    write(out)
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with PackageWriter(out, add=True) as open_writer:
        write_variant(open_writer.variant_dir("cuda-fp16"))
        package = open_writer.finish(
            tiny_manifest(
                ("cuda-fp16",),
                name="other",
                thresholds={"default": 0.9, "cuda-fp16": 0.25},
                provenance={"checkpoint": "elsewhere", "exported_by": "me"},
            )
        )
    assert package == open_package(out, verify="full")
    manifest = package.manifest
    assert [variant.name for variant in manifest.variants] == ["cpu-fp32", "cuda-fp16"]
    assert manifest.name == "tiny"
    assert manifest.thresholds == {"default": 0.5, "cuda-fp16": 0.25}
    assert manifest.provenance == {**tiny_manifest().provenance, "exported_by": "me"}
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert not list(out.rglob(UNFINISHED_MARK))
    assert names_beside(out) == ["pkg"]


def test_add_replaces_the_model_card_and_takes_new_files(out: Path) -> None:
    write(out)
    with PackageWriter(out, add=True) as open_writer:
        fill(open_writer, ("cuda-fp16",))
        open_writer.write_bytes("README.md", b"# now with CUDA")
        open_writer.write_bytes("cuda-fp16/report.json", b"{}")
        open_writer.write_bytes("NOTICE", b"thanks")
        package = open_writer.finish(tiny_manifest(("cuda-fp16",)))
    assert (out / "README.md").read_bytes() == b"# now with CUDA"
    assert open_package(out).read_bytes("NOTICE") == b"thanks"
    assert "cuda-fp16/report.json" in package.variant("cuda-fp16").files


def test_add_warns_when_the_model_card_stays(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(out)
    replace = os.replace

    def fail_for_the_card(source: Path, target: Path) -> None:
        if target.name == "README.md":
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_card)
    package = write(out, ("cpu-int8",), add=True)
    assert open_package(out, verify="full") == package
    assert "the old README.md stays" in caplog.text


def test_add_needs_a_package(out: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot add a variant to .*: there is no package at"):
        write(out, add=True)
    write(out)
    (out / DATA).unlink()
    with pytest.raises(ExportError, match=r"is damaged: .*--add needs a package that is there"):
        write(out, ("cpu-int8",), add=True)


def test_add_refuses_a_variant_that_is_there_before_any_work(out: Path) -> None:
    write(out)
    with (
        PackageWriter(out, add=True) as open_writer,
        pytest.raises(ExportError, match=r"has a variant 'cpu-fp32' already \(it has cpu-fp32"),
    ):
        open_writer.variant_dir("cpu-fp32")


def test_add_lists_what_differs(out: Path) -> None:
    write(out)
    recipe = tiny_recipe(aggregate="mean", label_meaning="on_path")
    provenance = {"weights_sha256": "1" * 64}
    expected = (
        r"(?s)recipe.aggregate is 'mean', there 'min'; recipe.label_meaning is 'on_path', there "
        r"'local'; max_tokens is 64, there 128; provenance weights_sha256 is '1+', there '0+'; "
        r"tokenizer.json has other content: export to another folder"
    )
    with PackageWriter(out, add=True) as open_writer:
        fill(open_writer, ("cpu-int8",))
        open_writer.write_bytes("tokenizer.json", b"other")
        with pytest.raises(ExportError, match=expected):
            open_writer.check_addable(
                variant="cpu-int8",
                recipe=recipe,
                max_tokens=64,
                tokenizer=b"other",
                provenance=provenance,
            )
        with pytest.raises(ExportError, match=expected):
            open_writer.finish(
                tiny_manifest(("cpu-int8",), recipe=recipe, max_tokens=64, provenance=provenance)
            )
    assert open_package(out, verify="full").manifest.max_tokens == 128


def test_check_addable_passes_the_same_model_and_any_new_package(out: Path, tmp_path: Path) -> None:
    write(out)
    for place, add in ((out, True), (tmp_path / "new", False)):
        with PackageWriter(place, add=add) as open_writer:
            open_writer.check_addable(
                variant="cuda-fp16",
                recipe=tiny_recipe(),
                max_tokens=128,
                tokenizer=SHARED_FILES["tokenizer.json"],
                provenance={"weights_sha256": "0" * 64, "checkpoint": "moved/elsewhere"},
            )


def test_add_refuses_changed_shared_files(out: Path) -> None:
    before = write(out)

    def change(open_writer: PackageWriter) -> None:
        open_writer.write_bytes("selftest.json", b"{}")

    with pytest.raises(ExportError, match=r"selftest.json has other content"):
        write(out, ("cpu-int8",), add=True, also=change)
    assert open_package(out) == before


def test_two_adds_at_the_same_time_both_count(out: Path) -> None:
    write(out)
    with PackageWriter(out, add=True) as one, PackageWriter(out, add=True) as two:
        fill(one, ("cpu-int8",))
        fill(two, ("cuda-fp16",))
        one.finish(tiny_manifest(("cpu-int8",)))
        two.finish(tiny_manifest(("cuda-fp16",)))
    names = [variant.name for variant in open_package(out, verify="full").manifest.variants]
    assert names == ["cpu-fp32", "cpu-int8", "cuda-fp16"]


def test_two_adds_of_one_variant_do_not_mix(out: Path) -> None:
    write(out)
    with PackageWriter(out, add=True) as one, PackageWriter(out, add=True) as two:
        fill(one, ("cpu-int8",))
        fill(two, ("cpu-int8",))
        package = one.finish(tiny_manifest(("cpu-int8",)))
        with pytest.raises(ExportError, match="has a variant 'cpu-int8' already"):
            two.finish(tiny_manifest(("cpu-int8",)))
    assert open_package(out, verify="full") == package


def test_add_leaves_a_folder_that_is_not_its_own(out: Path) -> None:
    before = write(out)
    (out / "cpu-int8").mkdir()
    (out / "cpu-int8" / "thesis.tex").touch()
    with pytest.raises(ExportError, match=r"cpu-int8 exists and is not what was to be added: move"):
        write(out, ("cpu-int8",), add=True)
    assert (out / "cpu-int8" / "thesis.tex").exists()
    assert open_package(out, verify="full") == before


def test_add_never_clears_a_folder_of_the_package(out: Path) -> None:
    before = write(out)
    (out / "cpu-fp32" / UNFINISHED_MARK).touch()  # killed right after its manifest was in place

    def write_into(open_writer: PackageWriter) -> None:
        open_writer.write_bytes("cpu-fp32/more.bin", b"more")

    with pytest.raises(ExportError, match=r"cpu-fp32 exists and is not what was to be added"):
        write(out, ("cpu-int8",), add=True, also=write_into)
    assert open_package(out, verify="full") == before
    assert not (out / "cpu-int8").exists()
    write(out, ("cpu-int8",), overwrite=True)  # and the mark is no file of the user's


def test_add_replaces_what_a_killed_add_left(out: Path) -> None:
    write(out)
    (out / "cpu-int8").mkdir()
    (out / "cpu-int8" / "half").touch()
    (out / "cpu-int8" / UNFINISHED_MARK).touch()
    package = write(out, ("cpu-int8",), add=True)
    assert open_package(out, verify="full") == package
    assert not (out / "cpu-int8" / "half").exists()


def test_overwrite_removes_what_a_killed_add_left(out: Path) -> None:
    write(out)
    write_variant(out / "cpu-int8")
    (out / "cpu-int8" / UNFINISHED_MARK).touch()
    write(out, overwrite=True)
    assert not (out / "cpu-int8").exists()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_add_takes_back_what_it_moved_when_the_manifest_cannot_be_replaced(
    out: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = write(out)
    monkeypatch.setattr(os, "replace", raising(error))
    with pytest.raises((ExportError, KeyboardInterrupt)):
        write(out, ("cpu-int8",), add=True)
    assert open_package(out, verify="full") == before
    assert not (out / "cpu-int8").exists()
    assert names_beside(out) == ["pkg"]


def test_add_keeps_the_variant_when_it_is_interrupted_after_the_manifest(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(out)
    replace = os.replace

    def replace_then_interrupt(source: Path, target: Path) -> None:
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(out, ("cpu-int8",), add=True)
    monkeypatch.undo()
    assert len(open_package(out, verify="full").manifest.variants) == 2

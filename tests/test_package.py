"""Opening packages: every way a folder can be wrong has its own message."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from package_builder import (
    DATA_NAME,
    edit_manifest,
    seal,
    tiny_manifest,
    tiny_model,
    tiny_variant,
    write_package,
    write_variant,
)

from prm_edge_runtime import package as package_module
from prm_edge_runtime.errors import (
    ConfigError,
    PackageFormatError,
    PackageIntegrityError,
    PackageNotFoundError,
    VariantError,
)
from prm_edge_runtime.manifest import PRECISIONS, FileEntry
from prm_edge_runtime.package import (
    PREFERRED,
    VERIFY_MODES,
    check_files,
    choose_variant,
    open_package,
)

GRAPH = "cpu-fp32/model.onnx"
DATA = f"cpu-fp32/{DATA_NAME}"
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX links and pipes")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("LOCALAPPDATA", str(folder))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_package(tmp_path / "pkg")


# ---- packages that open


@pytest.mark.parametrize("verify", VERIFY_MODES)
def test_open_package_reads_a_valid_package(root: Path, verify: str) -> None:
    package = open_package(root, verify=verify)
    assert package.root == root
    assert package.manifest.name == "tiny"
    assert package.digest == hashlib.sha256((root / "prm_edge.json").read_bytes()).hexdigest()
    assert package.short == package.digest[:12]
    assert package.path(GRAPH).read_bytes() == tiny_model().SerializeToString()
    assert package.variant("cpu-fp32").precision == "fp32"
    assert package.read_bytes("selftest.json") == b'{"cases": []}\n'


def test_open_package_keeps_its_root_when_the_working_folder_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    package = open_package("pkg")
    monkeypatch.chdir("/")
    assert package.path(GRAPH).is_file()


def test_open_package_ignores_files_it_does_not_list(root: Path) -> None:
    (root / "notes.txt").write_text("mine", encoding="utf-8")
    (root / "README.md").write_text("# edited", encoding="utf-8")
    (root / ".cache").mkdir()
    assert open_package(root).manifest.name == "tiny"


def test_open_package_does_without_a_model_card(root: Path) -> None:
    (root / "README.md").unlink()
    assert open_package(root).manifest.name == "tiny"


def test_open_package_reads_weights_inside_the_graph(tmp_path: Path) -> None:
    root = write_package(tmp_path / "pkg", location=None)
    assert open_package(root).manifest.name == "tiny"


@posix_only
def test_open_package_reads_a_hub_cache_where_every_file_is_a_link(
    root: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    blobs = tmp_path / "hub" / "blobs"
    blobs.mkdir(parents=True)
    files = [path for path in root.rglob("*") if path.is_file()]
    for number, path in enumerate(files):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    package = open_package(snapshot, verify="full")
    assert package.read_bytes("tokenizer.json") == (root / "tokenizer.json").read_bytes()
    blob = package.path(DATA).resolve()
    content = bytearray(blob.read_bytes())
    content[0] ^= 1
    blob.write_bytes(content)
    with pytest.raises(PackageIntegrityError, match="has the SHA-256"):
        open_package(snapshot)
    blob.unlink()
    with pytest.raises(
        PackageIntegrityError, match=rf"{DATA_NAME} is a link to a file that is missing"
    ):
        open_package(snapshot)


@posix_only
def test_open_package_reads_a_linked_folder(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert open_package(tmp_path / "link").manifest.name == "tiny"


def test_open_package_reads_hard_links(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for path in [path for path in root.rglob("*") if path.is_file()]:
        target = other / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    assert open_package(other, verify="full").digest == open_package(root).digest


# ---- no package at the path


def test_open_package_refuses_an_unknown_verify_mode(root: Path) -> None:
    with pytest.raises(ConfigError, match="verify must be one of auto, full, sizes; got 'no'"):
        open_package(root, verify="no")


@pytest.mark.parametrize("path", ["", "no/such/folder"])
def test_open_package_reports_a_missing_path(path: str) -> None:
    with pytest.raises(PackageNotFoundError, match=rf"no package at '{path}': .* does not exist"):
        open_package(path)


def test_open_package_reports_a_path_that_cannot_be_read() -> None:
    with pytest.raises(PackageNotFoundError, match="the path cannot be read: embedded null"):
        open_package("a\x00b")
    with pytest.raises(PackageNotFoundError, match="the path cannot be read"):
        open_package("a" * 5000)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("prm_edge.json", "give the folder that it is in"),
        ("pkg.tar.gz", "unpack it and give the folder"),
        ("model.onnx", "give the folder that holds prm_edge.json"),
    ],
)
def test_open_package_reports_a_file(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(PackageNotFoundError, match=f"is a file, and a package is a folder: {hint}"):
        open_package(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        ([], "is not a package: it is empty"),
        (["config.json", "model.safetensors"], "looks like a checkpoint: export it first: prm-edg"),
        (["adapter_config.json"], "looks like a LoRA adapter: merge it into its base model"),
        (["model.onnx"], "only a graph, which does not say how to score"),
        (["notes.txt"], "it has no prm_edge.json: give the folder that prm-edge export wrote"),
    ],
)
def test_open_package_says_what_a_folder_looks_like(
    tmp_path: Path, names: list[str], hint: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with pytest.raises(PackageNotFoundError, match=hint):
        open_package(folder)


@pytest.mark.parametrize("inner", ["pkg", "snapshots/abc"])
def test_open_package_points_to_a_package_inside(tmp_path: Path, inner: str) -> None:
    write_package(tmp_path / "outer" / inner)
    with pytest.raises(PackageNotFoundError, match=rf"but .*{inner} has: open that"):
        open_package(tmp_path / "outer")


def test_open_package_reports_an_unreadable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PackageNotFoundError, match="cannot be listed: Permission denied"):
        open_package(tmp_path)


def test_open_package_reports_an_unreadable_manifest(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(package_module, "open", refuse, raising=False)
    with pytest.raises(PackageNotFoundError, match=r"prm_edge.json cannot be read: Permission"):
        open_package(root)


# ---- a manifest that cannot be used


def test_open_package_names_the_manifest_in_format_errors(root: Path) -> None:
    edit_manifest(root, format_version=2)
    with pytest.raises(
        PackageFormatError, match=r"pkg/prm_edge.json has format version 2; this prm-edge reads"
    ):
        open_package(root)
    edit_manifest(root, format_version=1, sha512={})
    with pytest.raises(PackageFormatError, match=r"pkg/prm_edge.json cannot be used: .* 'sha512'"):
        open_package(root)


@posix_only
def test_open_package_does_not_wait_on_a_pipe(root: Path) -> None:
    (root / "prm_edge.json").unlink()
    os.mkfifo(root / "prm_edge.json")
    with pytest.raises(PackageFormatError, match="is not a regular file"):
        open_package(root)


@posix_only
def test_open_package_reports_a_dangling_manifest(root: Path) -> None:
    (root / "prm_edge.json").unlink()
    (root / "prm_edge.json").symlink_to("nowhere")
    with pytest.raises(PackageIntegrityError, match=r"prm_edge.json is a link to a file that is"):
        open_package(root)


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "cpu-fp32/../../outside"])
def test_open_package_refuses_a_path_that_leads_outside(root: Path, path: str) -> None:
    data = json.loads((root / "prm_edge.json").read_bytes())
    edit_manifest(root, files={**data["files"], path: {"size": 0, "sha256": "0" * 64}})
    with pytest.raises(PackageFormatError, match=r"the path .* (is absolute|leads outside)"):
        open_package(root)


# ---- files that are not what the manifest says


@pytest.mark.parametrize("verify", VERIFY_MODES)
@pytest.mark.parametrize("name", [GRAPH, DATA, "tokenizer.json", "selftest.json"])
def test_open_package_reports_a_missing_file(root: Path, name: str, verify: str) -> None:
    (root / name).unlink()
    with pytest.raises(
        PackageIntegrityError, match=rf"pkg is damaged: {name} is missing: copy or download"
    ):
        open_package(root, verify=verify)


@pytest.mark.parametrize("verify", VERIFY_MODES)
def test_open_package_reports_truncated_weights(root: Path, verify: str) -> None:
    (root / DATA).write_bytes(b"\0" * 100)
    with pytest.raises(
        PackageIntegrityError, match=rf"{DATA} is truncated: it has 100 bytes instead of 256"
    ):
        open_package(root, verify=verify)


@pytest.mark.parametrize("verify", VERIFY_MODES)
def test_open_package_reports_a_file_that_grew(root: Path, verify: str) -> None:
    with open(root / DATA, "ab") as file:
        file.write(b"x")
    with pytest.raises(PackageIntegrityError, match="too long: it has 257 bytes instead of 256"):
        open_package(root, verify=verify)


@pytest.mark.parametrize("verify", ["auto", "full"])
@pytest.mark.parametrize("name", [GRAPH, DATA, "tokenizer.json", "selftest.json"])
def test_open_package_reports_one_flipped_bit(root: Path, name: str, verify: str) -> None:
    content = bytearray((root / name).read_bytes())
    content[len(content) // 2] ^= 1
    (root / name).write_bytes(content)
    with pytest.raises(
        PackageIntegrityError, match=rf"{name} has the SHA-256 [0-9a-f]{{64}} instead of"
    ):
        open_package(root, verify=verify)


def test_open_package_hashes_nothing_with_sizes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / DATA).write_bytes(b"\1" * 256)
    monkeypatch.delattr(package_module, "hash_file")
    assert open_package(root, verify="sizes").manifest.name == "tiny"


def test_open_package_reports_a_git_lfs_pointer(root: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 256\n"
    (root / DATA).write_text(pointer, encoding="utf-8")
    with pytest.raises(PackageIntegrityError, match=r"only a Git LFS pointer \(run git lfs pull\)"):
        open_package(root)


def test_open_package_reports_a_folder_in_the_place_of_a_file(root: Path) -> None:
    (root / DATA).unlink()
    (root / DATA).mkdir()
    with pytest.raises(PackageIntegrityError, match=f"{DATA} is not a regular file"):
        open_package(root)


@posix_only
def test_open_package_does_not_wait_on_a_pipe_in_the_place_of_a_file(root: Path) -> None:
    (root / DATA).unlink()
    os.mkfifo(root / DATA)
    with pytest.raises(PackageIntegrityError, match=f"{DATA} is not a regular file"):
        open_package(root)


@posix_only
def test_open_package_reports_a_link_to_itself(root: Path) -> None:
    (root / DATA).unlink()
    (root / DATA).symlink_to(DATA_NAME)
    with pytest.raises(PackageIntegrityError, match=f"{DATA} cannot be read"):
        open_package(root)


def test_open_package_lists_every_damaged_file(root: Path) -> None:
    (root / DATA).unlink()
    (root / "tokenizer.json").write_bytes(b"")
    with pytest.raises(
        PackageIntegrityError, match=r"(?s)model.onnx.data is missing\n.*tokenizer.json is trunc"
    ):
        open_package(root)


def test_check_files_reports_a_file_that_vanishes_while_it_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(path: Path) -> FileEntry:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(package_module, "hash_file", vanish)
    manifest = open_package(root, verify="sizes").manifest
    with pytest.raises(PackageIntegrityError, match=r"cannot be read \(Input/output error\)"):
        check_files(root, manifest.files, verify="full")


# ---- graphs that read elsewhere


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("../outside.bin", r"'../outside.bin', which leads outside the package"),
        ("/etc/passwd", "which is absolute"),
        ("C:\\weights", "which holds a backslash"),
        ("c:weights", "which holds a colon"),
        ("sub/weights.bin", "which is not beside the graph"),
        ("*/_ORT_MEM_ADDR_/*", "which is not beside the graph"),  # a raw address for onnxruntime
        ("./model.onnx.data", "which has an empty part or a single dot"),
        ("", "'', which is empty"),
        ("other.bin", r"'other.bin', which is not among the files of variant 'cpu-fp32'"),
    ],
)
@pytest.mark.parametrize("verify", VERIFY_MODES)
def test_open_package_refuses_external_data_elsewhere(
    tmp_path: Path, location: str, reason: str, verify: str
) -> None:
    (tmp_path / "outside.bin").write_bytes(b"\0" * 256)
    root = write_package(tmp_path / "pkg", location=location)
    with pytest.raises(
        PackageIntegrityError, match=f"model.onnx reads external data from.*{reason}"
    ):
        open_package(root, verify=verify)


def test_open_package_refuses_external_data_of_another_variant(tmp_path: Path) -> None:
    root = write_package(tmp_path / "pkg", ("cpu-fp32", "cpu-int8"))
    write_variant(root / "cpu-int8", location="../cpu-fp32/model.onnx.data")
    seal(root, tiny_manifest(("cpu-fp32", "cpu-int8")))
    with pytest.raises(PackageIntegrityError, match="which leads outside the package"):
        open_package(root)


def test_open_package_refuses_a_graph_that_is_none(root: Path) -> None:
    (root / GRAPH).write_bytes(b"not a graph at all")
    seal(root, tiny_manifest())
    with pytest.raises(PackageFormatError, match=r"cpu-fp32/model.onnx is not an ONNX model"):
        open_package(root)


def test_open_package_refuses_an_empty_graph(root: Path) -> None:
    (root / GRAPH).write_bytes(b"")
    seal(root, tiny_manifest())
    with pytest.raises(PackageFormatError, match="not an ONNX model: the file is empty"):
        open_package(root)


def test_open_package_reports_a_graph_it_cannot_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *, where: str) -> frozenset[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(package_module, "external_locations", refuse)
    with pytest.raises(PackageIntegrityError, match=r"model.onnx cannot be read: Permission"):
        open_package(root, verify="sizes")


# ---- reading files of an open package


def test_read_bytes_verifies_again(root: Path) -> None:
    package = open_package(root)
    (root / "tokenizer.json").write_bytes(b'{"model": "evil"}\n')
    with pytest.raises(PackageIntegrityError, match=r"tokenizer.json no longer has the SHA-256"):
        package.read_bytes("tokenizer.json")
    (root / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(PackageIntegrityError, match=r"tokenizer.json no longer has its 18 bytes"):
        package.read_bytes("tokenizer.json")
    (root / "tokenizer.json").unlink()
    with pytest.raises(PackageIntegrityError, match=r"tokenizer.json cannot be read: No such file"):
        package.read_bytes("tokenizer.json")


@pytest.mark.parametrize("name", ["README.md", "prm_edge.json", "../pkg/tokenizer.json"])
def test_package_gives_only_listed_files(root: Path, name: str) -> None:
    package = open_package(root)
    with pytest.raises(PackageIntegrityError, match=r"is not listed in .*prm_edge.json: only"):
        package.path(name)
    with pytest.raises(PackageIntegrityError, match=r"is not listed in .*prm_edge.json: only"):
        package.read_bytes(name)


def test_package_names_its_variants(tmp_path: Path) -> None:
    package = open_package(write_package(tmp_path / "pkg", ("cpu-int8", "cuda-fp16")))
    with pytest.raises(VariantError, match="no variant 'int8'; it has cpu-int8, cuda-fp16"):
        package.variant("int8")


# ---- choosing a variant


@pytest.mark.parametrize(
    ("names", "device", "best"),
    [
        (("cpu-fp32", "cpu-int4", "cpu-int8"), "cpu", "cpu-int8"),
        (("cpu-fp32", "cpu-int4"), "cpu", "cpu-int4"),
        (("cuda-fp16", "cpu-fp32"), "cpu", "cpu-fp32"),
        (("cuda-fp32", "cuda-int4", "cuda-bf16", "cuda-fp16"), "cuda", "cuda-fp16"),
        (("cuda-fp32", "cuda-int4", "cuda-bf16"), "cuda", "cuda-bf16"),
        (("cuda-fp32", "cuda-int4"), "cuda", "cuda-int4"),
        (("cpu-int8", "cuda-fp32"), "cuda", "cuda-fp32"),
        (("cpu-int8-b", "cpu-int8-a"), "cpu", "cpu-int8-b"),  # the first of equals
    ],
)
def test_choose_variant_takes_the_best_for_the_device(
    names: tuple[str, ...], device: str, best: str
) -> None:
    assert choose_variant(tiny_manifest(names), device=device, name=None).name == best


def test_choose_variant_ranks_every_precision() -> None:
    assert all(sorted(order) == sorted(PRECISIONS) for order in PREFERRED.values())


def test_choose_variant_takes_the_one_named() -> None:
    manifest = tiny_manifest(("cpu-int8", "cpu-fp32"))
    assert choose_variant(manifest, device="cpu", name="cpu-fp32") == tiny_variant("cpu-fp32")


def test_choose_variant_says_what_there_is() -> None:
    with pytest.raises(
        VariantError, match=r"no variant for cuda, only cpu-int8: .*device='cpu'.* --target"
    ):
        choose_variant(tiny_manifest(("cpu-int8",)), device="cuda", name=None)


def test_choose_variant_checks_fp16_on_the_cpu_when_both_are_named() -> None:
    manifest = tiny_manifest(("cuda-fp16", "cuda-bf16"))
    chosen = choose_variant(manifest, device="cpu", name="cuda-fp16")
    assert (chosen.name, chosen.device) == ("cuda-fp16", "cpu")
    with pytest.raises(VariantError, match="'cuda-bf16' runs on cuda, and the device is cpu"):
        choose_variant(manifest, device="cpu", name="cuda-bf16")
    with pytest.raises(
        VariantError, match=r"no variant for cpu, only cuda-fp16, cuda-bf16: .*--add"
    ):
        choose_variant(manifest, device="cpu", name=None)


def test_choose_variant_refuses_one_for_another_device() -> None:
    manifest = tiny_manifest(("cpu-int8", "cuda-fp16"))
    with pytest.raises(
        VariantError, match=r"'cpu-int8' runs on cpu, and the device is cuda; .* cuda: cuda-fp16:"
    ):
        choose_variant(manifest, device="cuda", name="cpu-int8")
    with pytest.raises(VariantError, match=r"variants for cuda: none: pass device='cpu'"):
        choose_variant(tiny_manifest(("cpu-int8",)), device="cuda", name="cpu-int8")


def test_choose_variant_lists_what_there_is() -> None:
    with pytest.raises(VariantError, match="has no variant 'x'; it has cpu-fp32"):
        choose_variant(tiny_manifest(), device="cpu", name="x")


@pytest.mark.parametrize("device", ["auto", "gpu", ""])
def test_choose_variant_refuses_an_unknown_device(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device must be one of cpu, cuda; got '{device}'"):
        choose_variant(tiny_manifest(), device=device, name=None)


# ---- what a lean installation may import


def test_opening_a_package_imports_nothing_heavy(root: Path) -> None:
    code = (
        "import sys\n"
        "from prm_edge_runtime.package import open_package\n"
        f"open_package({str(root)!r})\n"
        "heavy = {'onnx', 'google.protobuf', 'onnxruntime', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

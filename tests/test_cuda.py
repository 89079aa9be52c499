"""What is missing for CUDA is named, with what to install."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import types
from pathlib import Path, PurePosixPath

import pytest

from prm_edge_runtime import cuda


def runtime(version: str = "13.0") -> types.SimpleNamespace:
    return types.SimpleNamespace(__version__="9.9", cuda_version=version)


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(cuda, "_version", named.get)


def test_clash_names_both_builds_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
    said = cuda.clash() or ""
    assert "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are both installed" in said
    assert "pip uninstall onnxruntime onnxruntime-gpu" in said


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_gpu"])
def test_clash_is_none_with_one_build(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, **{name: "1.32.0"})
    assert cuda.clash() is None


def test_installed_builds_are_those_of_this_environment() -> None:
    assert cuda.installed_builds()
    assert cuda.clash() is None


@pytest.mark.parametrize(("text", "major"), [("13.0", 13), ("12.8", 12), ("", None), (None, None)])
def test_wanted_major(text: str, major: int | None) -> None:
    assert cuda.wanted_major(runtime(text)) == major


def test_preload_keeps_stdout_clean(capfd: pytest.CaptureFixture[str]) -> None:
    def preload() -> None:
        print("Failed to load libcublas.so.13")

    said = cuda.preload(types.SimpleNamespace(preload_dlls=preload))
    assert said == "Failed to load libcublas.so.13\n"
    assert capfd.readouterr() == ("", "")


def test_missing_libraries_are_those_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(cuda, "_loads", lambda name: name.startswith("libcudart"))
    assert cuda.missing_libraries(13) == [
        "libcuda.so.1", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10",
    ]  # fmt: skip
    monkeypatch.setattr(cuda, "_loads", lambda name: True)
    assert cuda.missing_libraries(12) == []


@pytest.mark.parametrize(("platform", "major"), [("win32", 13), ("linux", None), ("linux", 99)])
def test_missing_libraries_judges_only_what_it_knows(
    platform: str, major: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(cuda, "_loads", lambda name: False)
    assert cuda.missing_libraries(major) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of Linux libraries")
def test_loads_asks_the_system() -> None:
    assert cuda._loads("libc.so.6")
    assert not cuda._loads("libno-such-library.so.99")


@pytest.mark.parametrize(
    ("driver", "wanted", "said"),
    [
        (12, "13.0", r"wants CUDA 13, .* runs CUDA 12 at most: install driver 580 or newer, or run "
                     r"pip install 'prm-edge\[gpu\]' 'onnxruntime-gpu>=1\.23,<1\.27'$"),
        (11, "13.0", r"runs CUDA 11 at most: install driver 580 or newer$"),
        (11, "12.8", r"runs CUDA 11 at most: install driver 525 or newer$"),
        (13, "14.0", r"runs CUDA 13 at most: update it$"),
    ],
)  # fmt: skip
def test_problem_is_a_driver_that_is_too_old(
    driver: int, wanted: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "missing_libraries", lambda major: [])
    monkeypatch.setattr(cuda, "driver_major", lambda: driver)
    assert re.search(said, cuda.problem(runtime(wanted)) or "")


@pytest.mark.parametrize(
    ("driver", "wanted"), [(13, "13.0"), (13, "12.8"), (None, "13.0"), (12, "")]
)
def test_problem_is_none_where_nothing_is_known_to_be_wrong(
    driver: int | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "missing_libraries", lambda major: [])
    monkeypatch.setattr(cuda, "driver_major", lambda: driver)
    assert cuda.problem(runtime(wanted)) is None


DRIVER = """
int cuDriverGetVersion(int *version) { *version = VERSION; return STATUS; }
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="needs cc on Linux"
)
@pytest.mark.parametrize(
    ("version", "status", "major"),
    [(12080, 0, 12), (13000, 0, 13), (0, 0, None), (12080, 34, None)],
)
def test_driver_major_asks_the_driver(
    version: int, status: int, major: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
    source.write_text(DRIVER)
    defined = [f"-DVERSION={version}", f"-DSTATUS={status}"]
    subprocess.run(["cc", "-shared", "-fPIC", *defined, source, "-o", library], check=True)
    monkeypatch.setattr(cuda, "LINUX_DRIVER", str(library))
    assert cuda.driver_major() == major


def test_driver_major_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LINUX_DRIVER", "libno-such-library.so.1")
    assert cuda.driver_major() is None
    monkeypatch.setattr(cuda, "LINUX_DRIVER", "libc.so.6")  # a library that knows no such function
    assert cuda.driver_major() is None
    monkeypatch.setattr(sys, "platform", "win32")
    assert cuda.driver_major() is None


def test_explain_says_what_pip_can_mend_and_what_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "nvidia_packages", lambda: {"nvidia-cublas": "12.1"})
    both = cuda.explain(runtime(), ["libcuda.so.1", "libcublas.so.13"])
    assert "wants CUDA 13" in both
    assert "cannot load libcuda.so.1, libcublas.so.13; installed: nvidia-cublas 12.1" in both
    assert "NVIDIA's driver, which comes with the system, not pip: install it, 580 or" in both
    assert "pip install 'prm-edge[gpu]'" in both
    monkeypatch.setattr(cuda, "nvidia_packages", dict)
    driver = cuda.explain(runtime(), ["libcuda.so.1"])
    assert "none of pip's nvidia packages" in driver
    assert "pip install" not in driver


def test_explain_has_a_damaged_package_installed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = {
        "nvidia-cublas": ["nvidia/cu13/lib/libcublas.so.13", "nvidia/cu13/lib/libcublasLt.so.13"],
        "nvidia-curand": None,  # an installation without a list of files
        "nvidia-cudnn-cu13": ["nvidia/cudnn/lib/libcudnn.so.9"],
    }
    files = {
        name: paths and [PurePosixPath(path) for path in paths] for name, paths in lists.items()
    }
    monkeypatch.setattr(cuda, "nvidia_packages", lambda: dict.fromkeys(lists, "13.0"))
    monkeypatch.setattr(cuda.metadata, "files", files.get)
    said = cuda.explain(runtime(), ["libcublas.so.13", "libcublasLt.so.13"])
    assert "pip install --force-reinstall --no-deps nvidia-cublas==13.0, whose" in said
    assert "prm-edge[gpu]" not in said
    said = cuda.explain(runtime(), ["libcublas.so.13", "libcurand.so.10"])
    assert "--no-deps nvidia-cublas==13.0, whose" in said
    assert said.endswith("run pip install 'prm-edge[gpu]', whose libraries are for CUDA 13")


def test_nvidia_packages_are_named_so() -> None:
    assert all(name.startswith("nvidia-") for name in cuda.nvidia_packages())

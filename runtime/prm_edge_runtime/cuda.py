"""What CUDA needs on this machine, what is there, and what to install.

onnxruntime-gpu brings its provider and nothing below it: CUDA's and cuDNN's libraries come from
pip's nvidia packages or the system, the driver from the system. Missing ones are found here, by
name, before onnxruntime is asked for a session that it would open on the CPU. Imports nothing but
the standard library; onnxruntime is handed in.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import sys
from importlib import metadata
from typing import Any, Final

GPU_COMMAND: Final = "pip install 'prm-edge[gpu]'"
MEND_BOTH: Final = (
    f"run pip uninstall onnxruntime onnxruntime-gpu, then {GPU_COMMAND} "
    "(or 'prm-edge[cpu]' for the CPU alone)"
)
BUILDS: Final = ("onnxruntime", "onnxruntime-gpu")
# CUDA major -> what libonnxruntime_providers_cuda cannot be loaded without, on Linux. 13: what
# readelf -d says of the 1.31.1 wheel, which loads cuFFT and cuDNN only where a graph needs them;
# 12: the requirements in onnxruntime's documentation.
LINUX_LIBRARIES: Final = {
    12: (
        "libcudart.so.12",
        "libcublasLt.so.12",
        "libcublas.so.12",
        "libcufft.so.11",
        "libcurand.so.10",
        "libcudnn.so.9",
    ),
    13: ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"),
}
LINUX_DRIVER: Final = "libcuda.so.1"
# CUDA major -> the oldest driver that runs it, and how to get an onnxruntime that wants no more
DRIVERS: Final = {12: 525, 13: 580}
OLDER: Final = {13: f"{GPU_COMMAND} 'onnxruntime-gpu>=1.23,<1.27'"}


def installed_builds() -> dict[str, str]:
    """The distributions of onnxruntime that are installed: name -> version."""
    return {name: version for name in BUILDS if (version := _version(name)) is not None}


def clash() -> str | None:
    """What is wrong when both builds are installed, which share one folder; None if not."""
    builds = installed_builds()
    if len(builds) < len(BUILDS):
        return None
    named = " and ".join(f"{name} {version}" for name, version in builds.items())
    return f"{named} are both installed and overwrite each other's files; {MEND_BOTH}"


def wanted_major(runtime: Any) -> int | None:
    """The CUDA major version that this onnxruntime was built for; None if for none."""
    text = str(getattr(runtime, "cuda_version", "") or "").split(".")[0]
    return int(text) if text.isdigit() else None


def preload(runtime: Any) -> str:
    """Load CUDA's libraries from pip's nvidia packages; return what onnxruntime said about it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it misses, and a library never does
        runtime.preload_dlls()
    return said.getvalue()


def missing_libraries(major: int | None) -> list[str]:
    """Names of the libraries of CUDA and cuDNN that cannot be loaded; empty off Linux."""
    if not sys.platform.startswith("linux") or major not in LINUX_LIBRARIES:
        return []
    wanted = (LINUX_DRIVER, *LINUX_LIBRARIES[major])
    return [name for name in wanted if not _loads(name)]


def driver_major() -> int | None:
    """The newest CUDA that the driver runs, 12 or 13 say; None where no driver tells."""
    if not sys.platform.startswith("linux"):
        return None
    version = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL(LINUX_DRIVER).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed or version.value < 1000 else version.value // 1000


def problem(runtime: Any) -> str | None:
    """Why CUDA cannot work here, and what to do; None where nothing is known to be wrong.

    Libraries that are missing, or a driver that is older than this onnxruntime's CUDA.
    """
    wanted = wanted_major(runtime)
    missing = missing_libraries(wanted)
    if missing:
        return explain(runtime, missing)
    driver = driver_major()
    if driver is None or wanted is None or driver >= wanted:
        return None
    newer = f"install driver {DRIVERS[wanted]} or newer" if wanted in DRIVERS else "update it"
    older = f", or run {OLDER[wanted]}" if wanted in OLDER and driver == wanted - 1 else ""
    return (
        f"onnxruntime {runtime.__version__} wants CUDA {wanted}, and NVIDIA's driver here runs "
        f"CUDA {driver} at most: {newer}{older}"
    )


def failure(error: str) -> str | None:
    """What CUDA itself reported in onnxruntime's error, and what to look at; None if it did not."""
    found = re.search(
        r"Invalid device ID: \d+, must be between 0 .*? and (\d+) \(exclusive\)", error
    )
    if found is not None:
        return f"CUDA sees {found[1]} GPUs, numbered from 0; choose one with gpu="
    found = re.search(r"CUDA failure (\d+): (.*?) *;", error)
    if found is None:
        return None
    return (
        f"CUDA failed: {found[2]} (failure {found[1]}); nvidia-smi shows the GPUs and who uses "
        "them, CUDA_VISIBLE_DEVICES may hide them; or pass device='cpu'"
    )


def nvidia_packages() -> dict[str, str]:
    """pip's packages of NVIDIA libraries that are installed: name -> version."""
    found = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name.startswith("nvidia-"):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def explain(runtime: Any, missing: list[str]) -> str:
    """Say which libraries are missing, which CUDA is wanted, what is there, and what to do."""
    major = wanted_major(runtime)
    packages = nvidia_packages()
    there = ", ".join(f"{n} {v}" for n, v in packages.items()) or "none of pip's nvidia packages"
    parts = [
        f"onnxruntime {runtime.__version__} wants CUDA {major} and cuDNN 9, and cannot load "
        f"{', '.join(missing)}; installed: {there}"
    ]
    if LINUX_DRIVER in missing:
        newer = f", {DRIVERS[major]} or newer" if major in DRIVERS else ""
        parts.append(
            f"{LINUX_DRIVER} is NVIDIA's driver, which comes with the system, not pip: install "
            f"it{newer}, or pass device='cpu'"
        )
    owners = {name: _owner(name) for name in missing if name != LINUX_DRIVER}
    damaged = sorted({owner for owner in owners.values() if owner is not None})
    if damaged:  # pip would take them for installed
        parts.append(
            f"run pip install --force-reinstall --no-deps {' '.join(damaged)}, whose libraries are "
            "gone or do not load"
        )
    if None in owners.values():
        parts.append(f"run {GPU_COMMAND}, whose libraries are for CUDA {major}")
    return "; ".join(parts)


def _owner(library: str) -> str | None:
    """Which of pip's nvidia packages brought a library, by its own list of files."""
    for name, version in nvidia_packages().items():
        try:
            files = metadata.files(name) or ()
        except metadata.PackageNotFoundError:
            continue
        if any(file.name == library for file in files):
            return f"{name}=={version}"
    return None


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

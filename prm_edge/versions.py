"""Which versions decide what a score is. Imports nothing but the standard library."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

ONNXRUNTIMES: Final = ("onnxruntime", "onnxruntime-gpu")


def onnxruntime_version() -> str | None:
    """The version of the onnxruntime that is installed, None without one; nothing is loaded."""
    for name in ONNXRUNTIMES:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None

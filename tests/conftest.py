"""Fixtures: a tiny real package, exported once per run from a tiny random checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
V1_PACKAGE = HERE / "packages" / "v1"

# Nothing in the tests may depend on the developer's environment.
for variable in ("PRM_EDGE_PACKAGE", "PRM_EDGE_DEVICE", "PRM_EDGE_THREADS"):
    os.environ.pop(variable, None)
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models are slower on many threads, and far slower when the machine is busy.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PRM_EDGE_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    # the cache of verified hashes must not outlive the run
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_package() -> Path:
    """The frozen package of format version 1: needs no torch."""
    return V1_PACKAGE

"""What an import loads, seen from a fresh process, and what the packages offer."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

PUBLIC = [
    "CudaOptions",
    "PrmEdgeError",
    "Ranking",
    "Recipe",
    "Scorer",
    "Session",
    "StepScores",
    "__version__",
    "add_many",
]
HEAVY = [
    *["onnx", "onnxruntime", "optimum", "safetensors", "torch", "transformers"],
    *["prometheus_client", "pyarrow", "ray", "starlette", "uvicorn"],
]


def _loaded_by(statement: str, folder: Path) -> set[str]:
    """Top-level modules in a fresh process after one statement, run away from the repository."""
    code = (
        f"{statement}\n"
        "import json, sys\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("package", ["prm_edge", "prm_edge_runtime"])
def test_imports_library_loads_nothing_heavy(package: str, tmp_path: Path) -> None:
    loaded = _loaded_by(f"import {package}", tmp_path)
    assert loaded & {*HEAVY, "click", "prm_edge_export"} == set()


def test_imports_scorer_loads_nothing_heavy(tmp_path: Path) -> None:
    # the public name is there, whether the package resolves it early or late
    loaded = _loaded_by("from prm_edge import Scorer; Scorer.load", tmp_path)
    assert loaded & {*HEAVY, "click", "prm_edge_export"} == set()
    assert {"numpy", "prm_edge_runtime"} <= loaded


def test_imports_command_line_loads_nothing_heavy(tmp_path: Path) -> None:
    loaded = _loaded_by("import prm_edge.cli", tmp_path)
    assert loaded & set(HEAVY) == set()
    assert "click" in loaded


def test_imports_what_scores_on_a_cluster_loads_nothing_of_it(tmp_path: Path) -> None:
    loaded = _loaded_by("import prm_edge.ray.run", tmp_path)
    assert loaded & {*HEAVY, "click"} == set()


def test_imports_exporter_from_anywhere(tmp_path: Path) -> None:
    assert "prm_edge_export" in _loaded_by("import prm_edge_export", tmp_path)
    assert "prm_edge_export" in _loaded_by("import prm_edge_export", Path(__file__).parent.parent)


@pytest.mark.parametrize("package", ["prm_edge", "prm_edge_runtime"])
def test_imports_public_names_are_exact(package: str) -> None:
    module = importlib.import_module(package)
    offered = list(module.__all__)
    assert offered == sorted(offered) == PUBLIC
    here = {
        name
        for name in dir(module)
        if not name.startswith("_") and not inspect.ismodule(getattr(module, name))
    }
    assert here | {"__version__"} == set(PUBLIC)
    assert all(getattr(module, name) is not None for name in offered)


def test_imports_prm_edge_offers_the_runtimes_own_objects() -> None:
    import prm_edge
    import prm_edge_runtime

    for name in PUBLIC:
        assert getattr(prm_edge, name) is getattr(prm_edge_runtime, name)

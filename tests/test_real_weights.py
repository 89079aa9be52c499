"""Real weights and real tokenizers, exported and compared with transformers record by record.

Needs the folders that ``python benchmarks/real_checkpoints.py OUT`` makes:
PRM_EDGE_TEST_CHECKPOINTS=OUT pytest -m real_weights. With PRM_EDGE_TEST_DATA they are scored on
ProcessBench's solutions, else on the bundled ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.real_weights

ROOT = Path(__file__).parents[1]
CHECKPOINTS = os.environ.get("PRM_EDGE_TEST_CHECKPOINTS", "")
DATA = os.environ.get("PRM_EDGE_TEST_DATA", "")
BUNDLED = ROOT / "export" / "prm_edge_export" / "data" / "verification.jsonl"
NAMES = ("smollm2-135m-trl", "qwen2-random-trl", "qwen2-random-mathprm")
RECORDS = 12


def solutions() -> Path:
    """Real solutions where there are any, else the ones the exporter bundles."""
    return Path(DATA) / "processbench_gsm8k.jsonl.gz" if DATA else BUNDLED


def checkpoint(name: str) -> Path:
    """The checkpoint's folder, or a skip that says how to get it."""
    if not CHECKPOINTS:
        pytest.skip("PRM_EDGE_TEST_CHECKPOINTS names no folder of checkpoints")
    folder = Path(CHECKPOINTS) / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"no {name} there; make it with benchmarks/real_checkpoints.py")
    return folder


def fidelity(package: Path, folder: Path) -> dict[str, Any]:
    """Run the benchmark as a user would; its exit status is part of the result."""
    command = [sys.executable, str(ROOT / "benchmarks" / "fidelity.py"), "--json"]
    command += ["--package", str(package), "--checkpoint", str(folder)]
    command += ["--data", str(solutions()), "--limit", str(RECORDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures | {"returncode": done.returncode}


@pytest.mark.parametrize("name", NAMES)
def test_export_of_real_checkpoint_matches_transformers(name: str, tmp_path: Path) -> None:
    from prm_edge_export.pipeline import ExportOptions, export

    folder = checkpoint(name)
    separator = None if name.endswith("mathprm") else "\n"
    package = tmp_path / "package"
    export(ExportOptions(checkpoint=folder, out=package, separator=separator))

    figures = fidelity(package, folder)

    assert figures["returncode"] == 0
    assert figures["records"] == RECORDS
    assert figures["max_abs_dp"] <= 1e-4
    assert figures["logit_rel_rms"] <= 1e-4
    assert figures["logit_std"] >= 1.0  # small logits would hide errors
    assert figures["token_counts_differ"] == 0
    assert figures["first_error_agreement"] == 1.0

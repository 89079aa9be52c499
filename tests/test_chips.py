"""The same scores on another processor: the self-test under qemu's Haswell, which has no VNNI.

Needs qemu-x86_64 (Debian: qemu-user) on an x86-64 Linux; `make test-chips` runs it.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import prm_edge_runtime
from prm_edge_runtime.manifest import SELFTEST_NAME
from prm_edge_runtime.package import open_package
from prm_edge_runtime.scorer import Scorer
from prm_edge_runtime.selftest import load_cases

HASWELL = ("qemu-x86_64", "-cpu", "Haswell-v4")
TOLERANCE = {"fp32": 1e-4, "int8": 0.0}  # int8 is made of whole numbers: exact on every x86
CHILD = """
import json, sys
from prm_edge_runtime.manifest import SELFTEST_NAME
from prm_edge_runtime.scorer import Scorer
from prm_edge_runtime.selftest import load_cases
with Scorer.load(sys.argv[1], device="cpu", variant=sys.argv[2], threads=1) as scorer:
    cases = load_cases(scorer.package.read_bytes(SELFTEST_NAME))
    print(json.dumps([scorer.score(c.problem, c.steps).scores for c in cases]))
"""
PACKAGES = Path(__file__).parent / "packages"
RUNTIME = Path(prm_edge_runtime.__file__).parents[1]
EMBEDDED = Path(__file__).parents[1] / "runtime" / "prm_edge_runtime" / "default_package"

pytestmark = [
    pytest.mark.chips,
    pytest.mark.skipif(shutil.which(HASWELL[0]) is None, reason="needs qemu-x86_64"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates x86-64 on x86-64"),
]


def variants() -> list[tuple[Path, str]]:
    return [
        (root, variant.name)
        for root in (*sorted(PACKAGES.iterdir()), EMBEDDED)
        for variant in open_package(root).manifest.variants
    ]


def emulated(root: Path, variant: str) -> list[list[float]]:
    # the interpreter itself: qemu does not follow a virtual environment's link to find packages
    python = Path(sys.executable).resolve()
    done = subprocess.run(
        [*HASWELL, str(python), "-c", CHILD, str(root), variant],
        # an editable install is an import hook that the child does not have
        env={"PYTHONPATH": ":".join([str(RUNTIME), *filter(None, sys.path)]), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scores: list[list[float]] = json.loads(done.stdout)
    return scores


@pytest.mark.parametrize(
    ("root", "variant"), variants(), ids=[f"{root.name}-{name}" for root, name in variants()]
)
def test_scores_on_a_processor_without_vnni(root: Path, variant: str) -> None:
    there = emulated(root, variant)
    with Scorer.load(root, device="cpu", variant=variant, threads=1) as scorer:
        precision = scorer.package.variant(variant).precision
        cases = load_cases(scorer.package.read_bytes(SELFTEST_NAME))
        here = [scorer.score(case.problem, case.steps).scores for case in cases]
    differences = [
        abs((a or 0.0) - b) for x, y in zip(here, there, strict=True)
        for a, b in zip(x, y, strict=True)
    ]  # fmt: skip
    assert differences
    assert max(differences) <= TOLERANCE[precision]

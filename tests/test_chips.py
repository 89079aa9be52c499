"""The same scores on other processors, emulated: x86 without VNNI, and 64-bit Arm.

Needs an x86-64 Linux with qemu-user (Debian), and for Arm the folder that tests/make_arm64.sh
makes; `make test-chips` does both.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prm_edge_runtime
from prm_edge_runtime.manifest import SELFTEST_NAME
from prm_edge_runtime.package import open_package
from prm_edge_runtime.scorer import Scorer
from prm_edge_runtime.selftest import load_cases

CHILD = """
import json, sys
from prm_edge_runtime.manifest import SELFTEST_NAME
from prm_edge_runtime.scorer import Scorer
from prm_edge_runtime.selftest import load_cases
with Scorer.load(sys.argv[1], device="cpu", variant=sys.argv[2], threads=1, force=True) as scorer:
    cases = load_cases(scorer.package.read_bytes(SELFTEST_NAME))
    print(json.dumps([scorer.score(c.problem, c.steps).scores for c in cases]))
"""
HERE = Path(__file__).parents[1]
PACKAGES = Path(__file__).parent / "packages"
RUNTIME = Path(prm_edge_runtime.__file__).parents[1]
EMBEDDED = HERE / "runtime" / "prm_edge_runtime" / "default_package"
ARM64 = Path(os.environ.get("PRM_EDGE_ARM64", HERE / ".venv-arm64"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """How a program runs on it, where its libraries are, and how far scores may be off.

    ``largest`` and ``mean``: of |difference| from this machine's scores, by precision.
    """

    command: tuple[str, ...]
    path: tuple[str, ...]
    root: str
    largest: dict[str, float]
    mean: dict[str, float]


# int8 products are made of whole numbers and exact everywhere. What lies between them is not: float
# kernels of other processors differ in the last bit, which now and then rounds an activation to the
# other side. So int8 scores have the export's own budget for drift.
CHIPS = {
    "haswell": Chip(
        # the interpreter itself: qemu does not follow a virtual environment's link to its packages
        command=("qemu-x86_64", "-cpu", "Haswell-v4", str(Path(sys.executable).resolve())),
        path=tuple(filter(None, sys.path)),
        root="",
        largest={"fp32": 1e-4, "fp16": 5e-3},
        mean={"int8": 0.01},
    ),
    "arm64": Chip(
        command=("qemu-aarch64", "-cpu", "max", str(ARM64 / "root/usr/bin/python3.11")),
        path=(str(ARM64 / "site"),),
        root=str(ARM64 / "root"),
        largest={"fp32": 1e-4, "fp16": 5e-3},
        mean={"int8": 0.01},
    ),
}

pytestmark = [
    pytest.mark.chips,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates from x86-64"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a variant of each precision that the CPU runs."""
    pytest.importorskip("torch", reason="needs the export extra")
    import checkpoints
    from int8_packages import SOLUTIONS, VERIFIED, export_int8, write_texts

    from prm_edge_export.options import ExportOptions
    from prm_edge_export.pipeline import export

    root = tmp_path_factory.mktemp("chips")
    checkpoint, out = checkpoints.trl_llama(root / "tiny"), root / "tiny-prm"
    export_int8(checkpoint, out)
    half = ExportOptions(
        checkpoint=checkpoint,
        out=out,
        target="cuda",
        separator="\n",
        add=True,
        calibration=write_texts(root / "c.jsonl", SOLUTIONS),
        verify=write_texts(root / "v.jsonl", VERIFIED),
    )
    export(half)
    return out


PRODUCTS = """
import json
import numpy as np
from prm_edge_runtime import ort
saturates = ort.products_saturate()
runtime = ort.load_onnxruntime()
exact = []
for rows in (1, 2, 13):
    values = np.random.default_rng(rows).integers(200, 256, (rows, 16)).astype(np.uint8)
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = runtime.InferenceSession(ort._PROBE, options, providers=["CPUExecutionProvider"])
    wanted = values.astype(np.int64) @ np.full((16, 32), 127)
    exact.append(bool((session.run(None, {"a": values})[0] == wanted).all()))
print(json.dumps([saturates, exact]))
"""


@pytest.mark.parametrize(("chip", "saturates"), [("haswell", True), ("arm64", False)])
def test_products_are_exact_once_the_option_is_set(chip: str, saturates: bool) -> None:
    assert run(CHIPS[chip], PRODUCTS) == [saturates, [True] * 3]


def run(chip: Chip, code: str, *arguments: str) -> list[Any]:
    if shutil.which(chip.command[0]) is None:
        pytest.skip(f"needs {chip.command[0]} (Debian: qemu-user)")
    if not Path(chip.command[-1]).exists():
        pytest.skip(f"needs {chip.command[-1]}: tests/make_arm64.sh makes it")
    done = subprocess.run(
        [*chip.command, "-c", code, *arguments],
        # an editable install is an import hook that the child does not have
        env={
            "PYTHONPATH": ":".join([str(RUNTIME), *chip.path]),
            "PATH": "/usr/bin",
            **({"QEMU_LD_PREFIX": chip.root} if chip.root else {}),
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # onnxruntime says on stdout that it does not know the processor
    answer: list[Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def compare(chip: Chip, root: Path, variant: str) -> None:
    there = run(chip, CHILD, str(root), variant)
    with Scorer.load(root, device="cpu", variant=variant, threads=1, force=True) as scorer:
        precision = scorer.package.variant(variant).precision
        cases = load_cases(scorer.package.read_bytes(SELFTEST_NAME))
        here = [scorer.score(case.problem, case.steps).scores for case in cases]
    assert [len(x) for x in here] == [len(x) for x in there]
    a, b = (np.concatenate([np.array(x, dtype=float) for x in found]) for found in (here, there))
    differences = abs(a - b)
    print(f"{variant}: largest {differences.max():.2g}, mean {differences.mean():.2g}")
    assert differences.max() <= chip.largest.get(precision, 1.0)
    assert differences.mean() <= chip.mean.get(precision, 1.0)


VARIANTS = [
    (root, variant.name)
    for root in (*sorted(PACKAGES.iterdir()), EMBEDDED)
    for variant in open_package(root).manifest.variants
]


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(("root", "variant"), VARIANTS, ids=[f"{r.name}-{v}" for r, v in VARIANTS])
def test_scores_on_another_processor(chip: str, root: Path, variant: str) -> None:
    compare(CHIPS[chip], root, variant)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("variant", ["cpu-int8", "cuda-fp16"])
def test_tiny_scores_on_another_processor(chip: str, variant: str, tiny: Path) -> None:
    compare(CHIPS[chip], tiny, variant)

"""The wheel as a user gets it: built, installed with only ``[cpu]``, run away from the repository.

Needs a package index, so it has a marker; ``make test`` runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from prm_edge_runtime import Scorer
from prm_edge_runtime.version import __version__

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "prm_edge": "prm_edge",
    "prm_edge_export": "export/prm_edge_export",
    "prm_edge_runtime": "runtime/prm_edge_runtime",
}
NOT_INSTALLED = ["onnx", "optimum", "safetensors", "torch", "transformers"]
# the newest that the checks are pinned to, and the oldest supported
ONNXRUNTIMES = {
    "newest": ["-c", str(ROOT / "constraints.txt")],
    "oldest": ["onnxruntime==1.23.0"],
}
PROBLEM = "Mara has 48 apples and gives a quarter away. How many are left?"
STEPS = ["A quarter of 48 is 12.", "48 - 12 = 36", "She has 36 apples left."]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment that holds the wheel and what it asks for."""

    folder: Path
    outside: Path  # an empty folder to run in

    def executable(self, name: str) -> str:
        windows = os.name == "nt"
        return str(self.folder / ("Scripts" if windows else "bin") / (name + ".exe" * windows))

    def run(
        self, name: str, *arguments: str, cwd: Path | None = None, expect: int = 0
    ) -> subprocess.CompletedProcess[str]:
        hidden = ("PYTHON", "PRM_EDGE_", "VIRTUAL_ENV", "COVERAGE_", "COV_")
        done = subprocess.run(
            [self.executable(name), *arguments],
            cwd=cwd or self.outside,
            env={key: value for key, value in os.environ.items() if not key.startswith(hidden)},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
        return done

    def python(self, code: str, cwd: Path | None = None) -> str:
        return self.run("python", "-c", code, cwd=cwd).stdout.strip()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: what earlier builds left in the checkout must not get in."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", str(source)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    [built] = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="session", params=ONNXRUNTIMES)
def environment(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    folder = tmp_path_factory.mktemp("venv")
    made = Environment(folder=folder, outside=tmp_path_factory.mktemp("outside"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", made.executable("python")]
    done = subprocess.run(
        [*pip, "install", "--quiet", f"{wheel}[cpu]", *ONNXRUNTIMES[request.param]],
        cwd=made.outside,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return made


def test_wheel_holds_every_file_and_nothing_else(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in inside} == {
        *FOLDERS,
        f"prm_edge-{__version__}.dist-info",
    }
    for package, folder in FOLDERS.items():
        expected = {
            f"{package}/{file.relative_to(ROOT / folder).as_posix()}"
            for file in (ROOT / folder).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        assert f"{package}/py.typed" in expected
        assert {name for name in inside if name.startswith(f"{package}/")} == expected


def test_wheel_needs_no_torch(environment: Environment) -> None:
    code = (
        "import json, sys; from importlib.util import find_spec; "
        f"print(json.dumps([n for n in {NOT_INSTALLED} if find_spec(n)]))"
    )
    assert json.loads(environment.python(code)) == []


def test_wheel_says_its_version(environment: Environment) -> None:
    assert environment.run("prm-edge", "--version").stdout == f"prm-edge {__version__}\n"


@pytest.mark.parametrize("package", FOLDERS)
def test_wheel_imports_from_anywhere(environment: Environment, package: str) -> None:
    code = f"import {package}; print({package}.__file__)"
    elsewhere = Path(environment.python(code))
    assert environment.folder.resolve() in elsewhere.resolve().parents
    # the repository's own folders must not hide an installed package, only stand in for it
    assert Path(environment.python(code, cwd=ROOT)).name == "__init__.py"


def test_wheel_scores(environment: Environment, tiny_package: Path) -> None:
    record = json.dumps({"id": "a", "problem": PROBLEM, "steps": STEPS})
    (environment.outside / "in.jsonl").write_text(record + "\n", encoding="utf-8")
    done = environment.run("prm-edge", "score", "in.jsonl", "-m", str(tiny_package.resolve()))
    [line] = done.stdout.splitlines()
    result = json.loads(line)
    with Scorer.load(tiny_package, device="cpu") as scorer:
        expected = scorer.score(PROBLEM, STEPS)
    assert result["id"] == "a"
    assert result["variant"] == "cpu-fp32"
    assert result["scores"] == pytest.approx(expected.scores, abs=1e-4)
    assert result["status"] == list(expected.status)


def test_wheel_scores_in_python(environment: Environment, tiny_package: Path) -> None:
    code = (
        "from prm_edge import Scorer; import json; "
        f"r = Scorer.load({str(tiny_package.resolve())!r}, self_test=True)"
        f".score({PROBLEM!r}, {STEPS!r}); print(json.dumps(r.scores))"
    )
    scores = json.loads(environment.python(code))
    assert len(scores) == len(STEPS)
    assert all(isinstance(score, float) for score in scores)


def test_wheel_export_names_the_extra_it_needs(environment: Environment) -> None:
    checkpoint = environment.outside / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "config.json").write_text("{}", encoding="utf-8")
    done = environment.run("prm-edge", "export", "checkpoint", expect=1)
    assert "prm-edge[export]" in done.stderr
    assert "Traceback" not in done.stderr


def test_wheel_serve_names_the_extra_it_needs(environment: Environment) -> None:
    done = environment.run("prm-edge", "serve", expect=1)
    assert "prm-edge[serve]" in done.stderr
    assert "Traceback" not in done.stderr

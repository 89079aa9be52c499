"""``prm-edge doctor`` says what is there, and ends with 1 when something is wrong."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from prm_edge.cli import cli
from prm_edge.cli import doctor as doctor_module
from prm_edge.cli.doctor import cpu_flags, processor
from prm_edge_runtime import cuda, ort
from prm_edge_runtime.errors import RuntimeMissingError
from prm_edge_runtime.hashing import hash_file
from prm_edge_runtime.scorer import Scorer


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["doctor", *map(str, arguments)])


def findings(result: Result) -> dict[str, tuple[str, str]]:
    return {item["name"]: (item["state"], item["text"]) for item in json.loads(result.stdout)}


def test_doctor_finds_this_machine_well(tiny_package: Path) -> None:
    result = doctor(tiny_package, "--json")
    assert result.exit_code == 0, result.output
    found = findings(result)
    assert found["telemetry"] == ("ok", "off")
    assert "on cpu, named by -m" in found["package"][1]
    assert found["self-test"][0] == "ok"
    assert "largest difference" in found["self-test"][1]
    assert "tokens per second" in found["speed"][1]
    state, text = found["placement"]
    assert (state, "CPUExecutionProvider" in text) in (("ok", True), ("-", False))


def test_doctor_checks_the_built_in_package_by_default() -> None:
    result = doctor()
    assert result.exit_code == 0, result.output
    assert "the built-in package" in result.stdout
    assert result.stdout.count("\n") == 10


def test_doctor_finds_scores_that_do_not_come_out(tiny_package: Path, tmp_path: Path) -> None:
    """A self-test with another score in it, its hash made good: the scores must tell."""
    package = tmp_path / "package"
    shutil.copytree(tiny_package, package)
    test = package / "selftest.json"
    data = json.loads(test.read_text("utf-8"))
    data["cases"][0]["scores"][0] = abs(data["cases"][0]["scores"][0] - 0.5)
    test.write_text(json.dumps(data), encoding="utf-8")
    manifest = json.loads((package / "prm_edge.json").read_text("utf-8"))
    entry = hash_file(test)
    manifest["files"]["selftest.json"] = {"size": entry.size, "sha256": entry.sha256}
    (package / "prm_edge.json").write_text(json.dumps(manifest), encoding="utf-8")
    result = doctor(package, "--json")
    assert result.exit_code == 1
    state, text = findings(result)["self-test"]
    assert state == "WRONG"
    assert "does not reproduce the model" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["no-such-folder"], "no-such-folder"), (["--device", "cuda"], "cuda")],
)
def test_doctor_says_why_a_package_cannot_run(arguments: list[str], said: str) -> None:
    result = doctor(*arguments, "--json")
    assert result.exit_code == 1
    state, text = findings(result)["package"]
    assert state == "WRONG"
    assert said in text


def test_doctor_finds_two_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_version", lambda name: "1.0")
    result = doctor("--json")
    assert result.exit_code == 1
    assert findings(result)["installation"][0] == "WRONG"


def test_doctor_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeMissingError("onnxruntime cannot be imported; install one")

    monkeypatch.setattr(ort, "load_onnxruntime", missing)
    result = doctor("--json")
    assert result.exit_code == 1
    assert findings(result)["onnxruntime"][0] == "WRONG"


@pytest.mark.parametrize(
    ("missing", "state", "said"),
    [([], "ok", "load"), (["libcublas.so.13"], "WRONG", "cannot load libcublas.so.13")],
)
def test_doctor_looks_for_the_libraries_of_cuda(
    missing: list[str], state: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ort.load_onnxruntime()
    monkeypatch.setattr(real, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(real, "preload_dlls", lambda: None)
    monkeypatch.setattr(cuda, "missing_libraries", lambda major: missing)
    monkeypatch.setattr(cuda, "driver_major", lambda: None)
    found = {finding.name: finding for finding in doctor_module.machine()}
    assert found["CUDA"].state == state
    assert said in found["CUDA"].text


def test_doctor_finds_nodes_on_another_provider(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Any = {"CPUExecutionProvider": 80, "OtherExecutionProvider": 2}
    monkeypatch.setattr(ort, "nodes_by_provider", lambda path, device: counts)
    found = findings(doctor(tiny_package, "--json"))
    assert found["placement"] == (
        "WRONG",
        "80 nodes on CPUExecutionProvider, 2 nodes on OtherExecutionProvider",
    )
    with Scorer.load(tiny_package) as scorer:
        monkeypatch.setattr(ort, "nodes_by_provider", lambda path, device: {})
        assert doctor_module._placement(scorer)[0] == "-"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 avx512_vnni\n", {"fpu", "avx2", "avx512_vnni"}),
        ("Features\t: fp asimddp\n", {"fp", "asimddp"}),
        ("nothing of the kind\n", None),
    ],
)
def test_cpu_flags_reads_what_linux_says(
    text: str, flags: set[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    assert cpu_flags(tmp_path / "cpuinfo") == flags
    assert cpu_flags(tmp_path / "absent") is None


def test_processor_admits_what_it_cannot_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "not known here" in processor()

"""``prm-edge export`` hands its options on and prints what comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from prm_edge.cli import cli
from prm_edge.cli.export import unescape
from prm_edge_runtime.errors import ProofError

Report = Callable[[str], None]


def export(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, arguments)])


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for ``prm_edge_export.pipeline``; ``calls`` holds what was asked of it."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def run(options: SimpleNamespace, report: Report) -> SimpleNamespace:
        calls.append(("export", vars(options)))
        report("looking")
        return SimpleNamespace(out=Path("out"), report={"max_dp": 0.0})

    def preview(options: SimpleNamespace) -> list[str]:
        calls.append(("preview", vars(options)))
        return ["one", "two"]

    fake = SimpleNamespace(ExportOptions=SimpleNamespace, export=run, preview=preview)
    monkeypatch.setitem(sys.modules, "prm_edge_export.pipeline", fake)
    monkeypatch.setattr("prm_edge_export.pipeline", fake, raising=False)
    fake.calls = calls
    return fake


def test_export_hands_on_its_defaults(pipeline: SimpleNamespace) -> None:
    result = export("ckpt")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "out\n", "looking\n")
    assert pipeline.calls == [
        (
            "export",
            {
                "checkpoint": Path("ckpt"),
                "out": None,
                "recipe": None,
                "revision": None,
                "base": None,
                "separator": None,
                "good_label": None,
                "target": "cpu",
                "precision": "auto",
                "backend": "auto",
                "calibration": None,
                "drift": None,
                "verify": None,
                "expect": None,
                "add": False,
                "allow_drift": False,
                "trust_tokenizer_file": False,
                "ignore_limits": False,
                "label_meaning": None,
                "notice": None,
                "overwrite": False,
            },
        )
    ]


def test_export_hands_on_every_option(pipeline: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = export(
        "ckpt", "pkg", "--recipe", "trl", "--separator", r"\n\n", "--good-label", 1, "--target",
        "cpu", "--precision", "fp32", "--backend", "native", "--verify", file, "--expect", file,
        "--calibration", file, "--drift", 0.004,
        "--label-meaning", "local", "--notice", "n", "--add", "--allow-drift",
        "--trust-tokenizer-file", "--overwrite", "--json", "--revision", "v1", "--base", "b",
    )  # fmt: skip
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"out": "out", "report": {"max_dp": 0.0}}
    asked = pipeline.calls[0][1]
    assert (asked["out"], asked["recipe"], asked["separator"]) == (Path("pkg"), "trl", "\n\n")
    assert (asked["revision"], asked["base"]) == ("v1", "b")
    assert (asked["good_label"], asked["target"], asked["precision"]) == (1, "cpu", "fp32")
    assert (asked["backend"], asked["verify"], asked["expect"]) == ("native", file, file)
    assert (asked["calibration"], asked["drift"]) == (file, 0.004)
    assert asked["add"]
    assert asked["allow_drift"]
    assert (asked["label_meaning"], asked["notice"]) == ("local", "n")
    assert asked["trust_tokenizer_file"]
    assert asked["overwrite"]


def test_export_previews_without_exporting(pipeline: SimpleNamespace) -> None:
    assert export("ckpt", "--preview").stdout == "one\ntwo\n"
    assert json.loads(export("ckpt", "--preview", "--json").stdout) == {"preview": ["one", "two"]}
    assert [name for name, _ in pipeline.calls] == ["preview", "preview"]


@pytest.mark.parametrize(("module", "extra"), [("torch", "export"), ("optimum.x", "optimum")])
def test_export_says_how_to_install_what_it_needs(
    pipeline: SimpleNamespace, module: str, extra: str
) -> None:
    name = module.partition(".")[0]
    pipeline.export = raising(ModuleNotFoundError(f"No module named {module!r}", name=module))
    result = export("ckpt")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: exporting needs {name}, which is not installed: pip install 'prm-edge[{extra}]'\n"
    )


def test_export_hides_no_other_missing_module(pipeline: SimpleNamespace) -> None:
    pipeline.export = raising(ModuleNotFoundError("No module named 'x'", name="x"))
    assert isinstance(export("ckpt").exception, ModuleNotFoundError)


def test_export_passes_an_error_on(pipeline: SimpleNamespace) -> None:
    pipeline.export = raising(ProofError("max |dp| 0.2 is over the budget"))
    result = export("ckpt")
    assert (result.exit_code, result.stderr) == (1, "Error: max |dp| 0.2 is over the budget\n")


def raising(error: Exception) -> Callable[..., None]:
    def run(*arguments: object) -> None:
        raise error

    return run


def test_export_says_how_to_install_what_its_modules_need() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # as if it were not installed
        "from prm_edge.cli import main\n"
        "sys.argv[1:] = ['export', 'ckpt']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: exporting needs torch, which is not installed: pip install 'prm-edge[export]'\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [[], ["ckpt", "--precision", "fp8"], ["ckpt", "--good-label", "-1"], ["ckpt", "--expect", "x"]],
)
def test_export_refuses_wrong_usage(arguments: list[str]) -> None:
    assert export(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(r"\n\n", "\n\n"), ("\n", "\n"), (r"\\n", r"\n"), (r"\t\r", "\t\r"), (r"\x ки", r"\x ки")],
)
def test_unescape_reads_what_shells_hand_on(typed: str, meant: str) -> None:
    assert unescape(typed) == meant

"""Errors become exit codes and one sentence; starting up loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from prm_edge.cli import cli
from prm_edge.cli.group import PrmEdgeGroup
from prm_edge_runtime import errors
from prm_edge_runtime.version import __version__


def run_raising(error: BaseException) -> tuple[int, str]:
    @click.group(cls=PrmEdgeGroup)
    def group() -> None:
        pass

    @group.command()
    def fail() -> None:
        raise error

    result = CliRunner().invoke(group, ["fail"])
    assert result.stdout == ""
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("what"), 2),
        (errors.PackageNotFoundError("what"), 2),
        (errors.VariantError("what"), 2),
        (errors.PackageFormatError("what"), 1),
        (errors.PackageIntegrityError("what"), 1),
        (errors.RuntimeMissingError("what"), 1),
        (errors.DeviceError("what"), 1),
        (errors.InputTypeError("what"), 1),
        (errors.ProofError("what"), 1),
        (errors.ExportDependencyError("what"), 1),
        (errors.PrmEdgeError("what"), 1),
        (OSError(28, "No space left on device"), 1),
        (OSError("what"), 1),
        (OSError(), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_group_turns_an_error_into_one_sentence(error: BaseException, code: int) -> None:
    found, stderr = run_raising(error)
    assert found == code
    assert stderr.startswith("Error: ")
    assert stderr.count("\n") == 1


def test_group_names_the_file_that_the_system_complains_of() -> None:
    _, stderr = run_raising(PermissionError(13, "Permission denied", "there"))
    assert stderr == "Error: Permission denied: there\n"


def test_group_lets_a_bug_show_itself() -> None:
    @click.group(cls=PrmEdgeGroup)
    def group() -> None:
        pass

    @group.command()
    def fail() -> None:
        raise ZeroDivisionError

    assert isinstance(CliRunner().invoke(group, ["fail"]).exception, ZeroDivisionError)


def test_cli_tells_its_version() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"prm-edge {__version__}\n")


@pytest.mark.parametrize("arguments", [["nonsense"], ["score", "--nonsense"], ["try"]])
def test_cli_exits_2_on_wrong_usage(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_module_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "prm_edge", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"prm-edge {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["export", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from prm_edge.cli import cli\n"
        f"cli({arguments!r}, standalone_mode=False)\n"
        "heavy = {'onnxruntime', 'torch', 'transformers', 'onnx', 'prm_edge_export'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("LOADED []\n")

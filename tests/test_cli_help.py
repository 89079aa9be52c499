"""What ``--help`` says is stored in ``goldens/help``, so that every change of it is seen.

Regenerate with: PRM_EDGE_REGENERATE_HELP=1 python -m pytest tests/test_cli_help.py
"""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from prm_edge.cli import cli

GOLDENS = Path(__file__).parent / "goldens" / "help"
REGENERATE = "PRM_EDGE_REGENERATE_HELP"
COMMANDS = ["prm-edge", *sorted(cli.commands)]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_the_golden(name: str) -> None:
    arguments = [] if name == "prm-edge" else [name]
    result = CliRunner().invoke(
        cli, [*arguments, "--help"], prog_name="prm-edge", terminal_width=80
    )
    assert result.exit_code == 0
    golden = GOLDENS / f"{name}.txt"
    if os.environ.get(REGENERATE):
        golden.write_text(result.stdout, encoding="utf-8")
    assert result.stdout == golden.read_text(encoding="utf-8"), f"meant so? see {__file__}"


def test_every_golden_has_a_command() -> None:
    assert sorted(path.stem for path in GOLDENS.glob("*.txt")) == sorted(COMMANDS)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_is_explained(name: str) -> None:
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name

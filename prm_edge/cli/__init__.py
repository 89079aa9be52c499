"""The command line ``prm-edge``: a skin over the library.

A command parses its options and makes one call; :mod:`.group` turns errors into exit codes. At
import it needs click and nothing heavy, so that ``--help`` and shell completion are instant.
"""

from __future__ import annotations

import click

from prm_edge_runtime.version import __version__

from .bench import bench_command
from .calibrate import calibrate_command
from .demo import demo_command
from .doctor import doctor_command
from .evaluate import eval_command
from .export import export_command
from .formats import formats_command
from .group import PrmEdgeGroup
from .inspect import inspect_command
from .rank import rank_command
from .recipes import recipes_command
from .report import report_command
from .score import score_command
from .serve import serve_command
from .try_lines import try_command

__all__ = ["cli", "main"]


@click.group(cls=PrmEdgeGroup)
@click.version_option(__version__, prog_name="prm-edge", message="%(prog)s %(version)s")
def cli() -> None:
    """Score the steps of worked solutions with a process reward model, without torch.

    A package is a folder made by `prm-edge export`. Results go to stdout, everything else to
    stderr.

    \b
    Exit codes: 0 done, 1 did not finish, 2 wrong usage,
                3 finished, but some records failed, 130 interrupted.
    """


for command in (
    score_command,
    rank_command,
    eval_command,
    calibrate_command,
    report_command,
    demo_command,
    try_command,
    export_command,
    formats_command,
    inspect_command,
    recipes_command,
    doctor_command,
    bench_command,
    serve_command,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit."""
    cli(prog_name="prm-edge")

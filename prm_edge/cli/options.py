"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from prm_edge_runtime.scorer import Scorer

F = TypeVar("F", bound=Callable[..., Any])


def package_option(command: F) -> F:
    """Add ``-m PACKAGE``."""
    return click.option(
        "-m",
        "--package",
        metavar="PACKAGE",
        type=click.Path(),
        help="Package folder. Default: PRM_EDGE_PACKAGE, else the built-in one.",
    )(command)


def engine_options(command: F) -> F:
    """Add the options that say how a package is run."""
    options = (
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            help="Where to run; cuda never falls back. Default: PRM_EDGE_DEVICE, else auto.",
        ),
        click.option(
            "--variant",
            metavar="NAME",
            help="Variant of the package. Default: best for the device.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=0),
            help="CPU threads, 0 for every core. Default: PRM_EDGE_THREADS, else every core.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def force_option(command: F) -> F:
    """Add ``--force``."""
    return click.option(
        "--force",
        is_flag=True,
        help="With the built-in package, score what is plainly outside its domain too.",
    )(command)


def load_scorer(
    package: str | None,
    *,
    device: str | None = None,
    variant: str | None = None,
    threads: int | None = None,
    force: bool = False,
) -> Scorer:
    """Load a package as the options say; the heavy imports happen here."""
    from prm_edge_runtime.scorer import Scorer

    return Scorer.load(package, device=device, variant=variant, threads=threads, force=force)

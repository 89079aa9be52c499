"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from prm_edge_runtime.scorer import Scorer

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Part ``number`` (from 1) of ``count`` parts of about the same number of records."""

    number: int
    count: int

    def part(self, records: int) -> tuple[int, int]:
        """The first record of this part, and the first behind it."""
        return records * (self.number - 1) // self.count, records * self.number // self.count

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class ShardType(click.ParamType):  # type: ignore[type-arg]  # generic in click 8.5 only
    """``I/N``, the I-th part of N."""

    name = "shard"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Shard:
        """Read it, or end with a usage error."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", str(value))
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{value!r} is not I/N with I from 1 to N, as in 2/8", param, ctx)
        return Shard(number=int(found[1]), count=int(found[2]))


SHARD: Final = ShardType()


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


def scores_key_option(command: F) -> F:
    """Add ``--scores-key KEY``."""
    return click.option(
        "--scores-key",
        metavar="KEY",
        help="Key of the scores, as prm_scores.NAME. Default: scores.",
    )(command)


def group_option(said: str) -> Callable[[F], F]:
    """Add ``--group-by KEY``; ``said``: what becomes of records with the same value."""
    return click.option(
        "--group-by",
        metavar="KEY",
        default="problem_id",
        show_default=True,
        help=f"Records with the same value {said}; without it the same problem text.",
    )


def threshold_option(said: str = "") -> Callable[[F], F]:
    """Add ``--threshold``; ``said``: what it is otherwise."""
    return click.option("--threshold", type=float, help=f"A lower score is an error.{said}")


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
    prefix_cache_mb: float = 0,
) -> Scorer:
    """Load a package as the options say; the heavy imports happen here."""
    from prm_edge_runtime.scorer import Scorer

    return Scorer.load(
        package,
        device=device,
        variant=variant,
        threads=threads,
        force=force,
        prefix_cache_mb=prefix_cache_mb,
    )

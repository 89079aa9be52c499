"""Samples for the commands that take a file with scores, or a package to score it with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from .describe import name_package
from .options import load_scorer
from .streams import open_input

if TYPE_CHECKING:
    from prm_edge.samples import Sample
    from prm_edge_runtime.scorer import Scorer

NO_RECIPE_THRESHOLD = 0.5  # of scores of which nothing else is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The samples of one file. ``threshold``: what they are judged by.

    ``failed``: records that say they could not be scored. ``by``: the aggregate to order by.
    """

    samples: list[Sample]
    failed: int
    threshold: float
    by: str


@contextmanager
def scorer_if_named(
    package: str | None,
    device: str | None,
    variant: str | None,
    threads: int | None,
    *,
    quiet: bool = False,
) -> Iterator[Scorer | None]:
    """The package that ``-m`` names, or none."""
    if package is None:
        yield None
        return
    with load_scorer(package, device=device, variant=variant, threads=threads) as scorer:
        if not quiet:
            click.echo(f"prm-edge: scoring with {name_package(scorer)}", err=True)
        yield scorer


def read_given(
    file: str | None,
    *,
    scorer: Scorer | None,
    scores_key: str | None,
    group_key: str,
    threshold: float | None = None,
) -> Given:
    """Read one file; the scores in it are used unless a package was named.

    ``threshold``: the user's; without it what the scores were judged by, else 0.5.

    Raises:
        ConfigError: when there are neither scores nor a package, both were asked for, or the
            scores were judged by several thresholds.
        InputError: for a record that cannot be read; it names the line.
    """
    from prm_edge.inputs import read_source
    from prm_edge.samples import SCORES, carries_scores, read_samples
    from prm_edge_runtime.errors import ConfigError

    if scorer is not None and scores_key is not None:
        raise ConfigError("-m scores the records anew and --scores-key reads scores; give one")
    with open_input(file) as stream:
        lines = read_source(stream, file or "")
        if scorer is None and scores_key is None:
            carried, lines = carries_scores(lines)
            if not carried:
                raise ConfigError(
                    f"the records of {file or 'stdin'!r} carry no 'scores': name their key with "
                    "--scores-key, or a package with -m that scores them"
                )
            scores_key = SCORES
        found = list(read_samples(lines, scores_key=scores_key, scorer=scorer, group_key=group_key))
    samples = [sample for sample in found if sample is not None]
    said = {sample.threshold for sample in samples if sample.threshold is not None}
    if threshold is None and len(said) > 1:
        shown = ", ".join(f"{value:g}" for value in sorted(said)[:4])
        raise ConfigError(
            f"the scores of {file or 'stdin'!r} were judged by several thresholds ({shown}): give "
            "one with --threshold"
        )
    if threshold is None:
        threshold = said.pop() if said else NO_RECIPE_THRESHOLD
    return Given(
        samples=samples,
        failed=len(found) - len(samples),
        threshold=threshold,
        by="min" if scorer is None else scorer.recipe.aggregate,
    )

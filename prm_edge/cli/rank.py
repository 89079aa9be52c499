"""``prm-edge rank``: the best of several solutions of each problem."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from .given import read_given, scorer_if_named
from .group import RECORDS_FAILED
from .options import (
    engine_options,
    group_option,
    package_option,
    scores_key_option,
    threshold_option,
)
from .streams import STANDARD, open_input, open_output
from .words import some

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prm_edge.samples import Sample


@click.command("rank", short_help="Choose the best of several solutions of each problem.")
@click.argument("file", metavar="[FILE|-]", required=False, type=click.Path())
@package_option
@click.option(
    "-o", "--out", default=STANDARD, metavar="OUT", type=click.Path(), help="File to write."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@scores_key_option
@group_option("are candidates of one problem")
@click.option("--by", metavar="AGGREGATE", help="Orders candidates. Default: the recipe's, or min.")
@threshold_option()
@click.option("--quiet", is_flag=True, help="Say nothing on stderr but what went wrong.")
@engine_options
def rank_command(
    file: str | None,
    package: str | None,
    out: str,
    overwrite: bool,
    scores_key: str | None,
    group_by: str,
    by: str | None,
    threshold: float | None,
    quiet: bool,
    device: str | None,
    variant: str | None,
    threads: int | None,
) -> None:
    """Rank the candidates of each problem in FILE: best of N.

    Candidates are the entries of a record's "candidates", or the records that share a problem.
    Records that carry scores are ranked by these, without a model; with -m they are scored first.
    Every problem gives one line; where the answers are known, stderr says how many of the best
    are right.
    """
    from prm_edge.evaluation import best_of_n
    from prm_edge.samples import ALL_AGGREGATES, by_problem
    from prm_edge_runtime import scoring

    if by is not None:
        scoring.aggregate((), by, ALL_AGGREGATES)  # refuse before any work is done
    with scorer_if_named(package, device, variant, threads, quiet=quiet) as scorer:
        if scorer is not None and by is not None:
            scoring.aggregate((), by, scorer.recipe.aggregates)
        given = read_given(
            file,
            scorer=scorer,
            scores_key=scores_key,
            group_key=group_by,
            threshold=threshold,
        )
    by = given.by if by is None else by
    threshold = given.threshold
    groups = by_problem(given.samples)
    with open_input(file) as source, open_output(out, source=source, overwrite=overwrite) as sink:
        for group in groups.values():
            line = json.dumps(rank_group(group, by, threshold), allow_nan=False)
            sink.write(line.encode("ascii") + b"\n")
    found = best_of_n(given.samples, threshold, aggregates=(by,))
    if not quiet:
        said = f"prm-edge: {len(groups)} problems, {len(given.samples)} candidates, by {by}"
        if found is not None:
            said += (
                f"; right: best {found[by]:.4f}, at random {found['pass_at_1']:.4f}, "
                f"at most {found['oracle']:.4f}"
            )
        click.echo(said, err=True)
    if given.failed:
        click.echo(f"prm-edge: {some(given.failed, 'record')} without scores; left out", err=True)
        raise click.exceptions.Exit(RECORDS_FAILED)


def rank_group(group: Sequence[Sample], by: str, threshold: float) -> dict[str, Any]:
    """One line of output: the candidates of one problem, compared."""
    from prm_edge.jobs import rounded
    from prm_edge.samples import as_result
    from prm_edge_runtime import results

    ranking = results.rank(tuple(as_result(s, threshold, by) for s in group), by)
    first = group[0]
    named = {} if first.candidate is None or first.id is None else {"id": first.id}
    return {
        **named,
        **({"problem": first.problem} if first.problem else {"problem_id": first.group}),
        "candidates": [
            {
                **({"id": sample.id} if sample.candidate is None else {}),
                "aggregate": rounded(result.aggregate(by)),
                "verdict": result.verdict,
                "first_error": result.first_error,
            }
            for sample, result in zip(group, ranking.candidates, strict=True)
        ],
        "order": list(ranking.order),
        "best": ranking.best,
        "best_sound": ranking.best_sound,
        "by": by,
        "threshold": threshold,
    }

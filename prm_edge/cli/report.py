"""``prm-edge report``: a page to look at scored solutions."""

from __future__ import annotations

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
from .streams import open_input, open_output
from .words import some


@click.command("report", short_help="Make a page to look at scored solutions.")
@click.argument("file", metavar="[FILE|-]", required=False, type=click.Path())
@package_option
@click.option(
    "-o", "--out", required=True, metavar="OUT", type=click.Path(), help="HTML file to write."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@scores_key_option
@group_option("stand side by side")
@click.option("--by", metavar="AGGREGATE", help="Chooses the best candidate.")
@threshold_option()
@click.option("--title", default="Scored solutions", show_default=True, help="Of the page.")
@engine_options
def report_command(
    file: str | None,
    package: str | None,
    out: str,
    overwrite: bool,
    scores_key: str | None,
    group_by: str,
    by: str | None,
    threshold: float | None,
    title: str,
    device: str | None,
    variant: str | None,
    threads: int | None,
) -> None:
    """Make one HTML page from the scored solutions in FILE, as score --text writes them.

    Every step is shaded by its score, the first error marked, candidates of one problem side by
    side. The page needs no network and no other file; it filters, sorts and searches.
    """
    from prm_edge.report import render
    from prm_edge.samples import ALL_AGGREGATES
    from prm_edge_runtime import scoring

    if by is not None:
        scoring.aggregate((), by, ALL_AGGREGATES)  # refuse before any work is done
    with scorer_if_named(package, device, variant, threads) as scorer:
        given = read_given(
            file,
            scorer=scorer,
            scores_key=scores_key,
            group_key=group_by,
            threshold=threshold,
        )
    page = render(
        given.samples,
        title=title,
        threshold=given.threshold,
        by=given.by if by is None else by,
    )
    with open_input(file) as source, open_output(out, source=source, overwrite=overwrite) as sink:
        sink.write(page)
    if given.failed:
        without = some(given.failed, "record")
        click.echo(f"prm-edge: {without} could not be scored; not shown", err=True)
        raise click.exceptions.Exit(RECORDS_FAILED)

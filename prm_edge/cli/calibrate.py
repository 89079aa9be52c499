"""``prm-edge calibrate``: threshold, temperature and unsure band of one variant of a package."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import click

from .describe import name_package
from .given import read_given
from .options import engine_options, json_option, load_scorer


@click.command("calibrate", short_help="Fit threshold and certainty to labelled steps.")
@click.argument("package", metavar="PACKAGE", type=click.Path())
@click.argument("labelled", metavar="LABELLED", type=click.Path())
@click.option(
    "--accuracy",
    type=click.FloatRange(min=0.5, max=1.0),
    default=0.95,
    show_default=True,
    help="Share of steps outside the unsure band that must be judged rightly.",
)
@click.option(
    "--neutral",
    type=click.Choice(["good", "bad"]),
    default="good",
    show_default=True,
    help="What a neutral rating counts as.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@engine_options
@json_option
def calibrate_command(
    package: str,
    labelled: str,
    accuracy: float,
    neutral: str,
    dry_run: bool,
    device: str | None,
    variant: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Fit PACKAGE to the labelled solutions of LABELLED, which it was not trained on.

    Half of the problems are fitted to, the other half measures the result. Written into the
    package, for the variant that ran: the threshold, which verdicts use from then on; the
    temperature, by which score writes probabilities; the band in which score --unsure says
    unknown; and what they were fitted on.
    """
    from prm_edge.calibration import fit, write_fit
    from prm_edge.evaluation import load_sklearn_metrics

    load_sklearn_metrics()  # before the work
    with load_scorer(package, device=device, variant=variant, threads=threads) as scorer:
        click.echo(f"prm-edge: scoring with {name_package(scorer)}", err=True)
        given = read_given(labelled, scorer=scorer, scores_key=None, group_key="problem_id")
        found = fit(
            given.samples,
            before=scorer.threshold,
            bounds=scorer.recipe.score.range,
            accuracy=accuracy,
            neutral_is_good=neutral == "good",
        )
        fitted = {
            "data": Path(labelled).name,
            "data_sha256": hashlib.sha256(Path(labelled).read_bytes()).hexdigest(),
            "neutral": neutral,
            **found.calibration.fitted,
        }
        found = dataclasses.replace(
            found, calibration=dataclasses.replace(found.calibration, fitted=fitted)
        )
        if not dry_run:
            write_fit(scorer.package, scorer.variant, found)
        data = {
            "variant": scorer.variant,
            "written": not dry_run,
            "threshold": found.threshold,
            **found.calibration.to_dict(),
        }
    click.echo(json.dumps(data, indent=2) if as_json else "\n".join(as_text(data)))


def as_text(data: dict[str, Any]) -> list[str]:
    """The fit for people."""
    fitted = data["fitted"]
    band = "none" if data["unsure"] is None else "{:.4g} to {:.4g}".format(*data["unsure"])
    lines = [
        f"variant {data['variant']}, fitted to {fitted['steps']} steps of {fitted['data']}",
        f"  threshold    {fitted['threshold_before']:.4g} -> {data['threshold']:.4g}",
        f"  temperature  {data['temperature']}",
        f"  unsure       {band}",
        f"on the other {fitted['held_out_steps']} steps, before -> after",
        f"  F1 of first errors  {_share(fitted['f1_before'])} -> {_share(fitted['f1_after'])}",
        f"  steps judged right  {_share(fitted['step_accuracy_before'])} -> "
        f"{_share(fitted['step_accuracy_after'])}",
    ]
    if "ece_before" in fitted:
        lines.append(
            f"  calibration error   {fitted['ece_before']:.4f} -> {fitted['ece_after']:.4f}"
        )
    if "sure_share" in fitted:
        lines.append(
            f"  outside the band    {_share(fitted['sure_share'])} of the steps, "
            f"{_share(fitted['sure_accuracy'])} of them judged right"
        )
    return [*lines, "written into the package" if data["written"] else "nothing was written"]


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value * 100:.1f}%"

"""``prm-edge eval``: how good the scores of labelled solutions are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from .given import Given, read_given, scorer_if_named
from .group import RECORDS_FAILED
from .options import (
    engine_options,
    group_option,
    json_option,
    package_option,
    scores_key_option,
    threshold_option,
)
from .words import some

if TYPE_CHECKING:
    from prm_edge_runtime.scorer import Scorer

SHOWN_CHANGES = 20


@click.command("eval", short_help="Measure scores against labels.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@package_option
@scores_key_option
@threshold_option(" Default: the package's.")
@click.option(
    "--tune", metavar="FILE", type=click.Path(), help="Take the threshold with the best F1 there."
)
@click.option(
    "--neutral",
    type=click.Choice(["good", "bad"]),
    default="good",
    show_default=True,
    help="What a neutral rating counts as.",
)
@group_option("are of one problem")
@click.option(
    "--versus", metavar="NAME", help="Compare with another variant, or another key of scores."
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0, max=100_000),
    default=1000,
    show_default=True,
    help="Draws of problems for the intervals; 0 for none.",
)
@engine_options
@json_option
def eval_command(
    files: tuple[str, ...],
    package: str | None,
    scores_key: str | None,
    threshold: float | None,
    tune: str | None,
    neutral: str,
    group_by: str,
    versus: str | None,
    bootstrap: int,
    device: str | None,
    variant: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how well scores find the errors of labelled solutions.

    ProcessBench's protocol (F1 of the accuracies on erroneous and on right solutions) beside the
    majority's answer, AUC over steps, PRMBench by class, calibration, and best of N against
    chance and oracle, each where the labels allow it. Intervals hold 95% of the draws of problems.

    Records that carry scores are taken as they are; with -m they are scored first.
    """
    from prm_edge import evaluation
    from prm_edge_runtime.errors import ConfigError

    evaluation.load_sklearn_metrics()  # before the work
    if threshold is not None and tune is not None:
        raise ConfigError("--threshold is given and --tune finds one; give one of them")
    good = neutral == "good"

    def read(file: str, scorer: Scorer | None, key: str | None) -> Given:
        return read_given(
            file, scorer=scorer, scores_key=key, group_key=group_by, threshold=threshold
        )

    with scorer_if_named(package, device, variant, threads) as scorer:
        if tune is not None:
            tuned = evaluation.tune_threshold(
                read(tune, scorer, scores_key).samples, neutral_is_good=good
            )
            if tuned is None:
                raise ConfigError(
                    f"--tune needs erroneous and right solutions; {tune!r} does not have both"
                )
            threshold = tuned
        read_files = [(file, read(file, scorer, scores_key)) for file in files]
    figures = {
        file: evaluation.evaluate(
            given.samples, given.threshold, neutral_is_good=good, bootstrap=bootstrap
        )
        for file, given in read_files
    }
    data: dict[str, Any] = {"files": figures, "average": average(list(figures.values()))}
    if versus is not None:
        data["versus"] = {}
        other_variant = versus if package is not None else None
        with scorer_if_named(package, device, other_variant, threads) as other:
            for file, given in read_files:
                second = read(file, other, versus if other is None else None)
                data["versus"][file] = evaluation.compare(
                    given.samples,
                    second.samples,
                    given.threshold,
                    second.threshold,
                )
    failed = {file: given.failed for file, given in read_files if given.failed}
    data["left_out"] = failed
    click.echo(json.dumps(data, indent=2) if as_json else "\n".join(as_text(data)))
    for file, count in failed.items():
        left = some(count, "record")
        click.echo(f"prm-edge: {left} of {file} without scores; left out", err=True)
    if failed:
        raise click.exceptions.Exit(RECORDS_FAILED)


def average(figures: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The mean over files of what is averaged by convention."""
    found: dict[str, float | None] = {}
    for part, key in (("processbench", "f1"), ("steps", "auc")):
        values = [item[part][key] for item in figures if item[part] and item[part][key] is not None]
        found[key] = sum(values) / len(values) if values else None
    return found


def as_text(data: Mapping[str, Any]) -> list[str]:
    """The figures for people."""
    lines: list[str] = []
    for file, figures in data["files"].items():
        lines += [*([""] if lines else []), *_file_lines(file, figures)]
    if len(data["files"]) > 1:
        average = data["average"]
        lines += ["", f"average of {len(data['files'])} files: F1 {_percent(average['f1'])}, "
                  f"AUC {_number(average['auc'])}"]  # fmt: skip
    for file, found in data.get("versus", {}).items():
        lines += ["", *_versus_lines(file, found)]
    return lines


def _file_lines(file: str, figures: Mapping[str, Any]) -> list[str]:
    lines = [f"{file}: {figures['solutions']} solutions, threshold {figures['threshold']:g}"]
    if figures["unscored"]:
        lines.append(
            f"  no score      {figures['unscored']} solutions have steps without one; a first "
            "error that this hides counts as missed"
        )
    if bench := figures["processbench"]:
        lines += [
            f"  first error   F1 {_percent(bench['f1'])}{_interval(bench.get('f1_interval'))}, "
            f"erroneous {_percent(bench['accuracy_erroneous'])} of {bench['n_erroneous']}, "
            f"right {_percent(bench['accuracy_right'])} of {bench['n_right']}",
            f"  exactly so    {_percent(bench['accuracy'])}; always "
            f"{'none' if bench['majority_label'] < 0 else bench['majority_label']} would be "
            f"{_percent(bench['majority_accuracy'])}, F1 {_percent(bench['majority_f1'])}",
        ]
    if steps := figures["steps"]:
        lines.append(
            f"  steps         AUC {_number(steps['auc'])}{_interval(steps.get('auc_interval'), 3)},"
            f" {steps['n']} steps, {steps['n_good']} of them good"
        )
        if "ece" in steps:
            lines.append(f"  calibration   ECE {steps['ece']:.3f}")
            lines += [
                f"    {row['from']:.1f} to {row['to']:.1f}  {row['n']:7} steps, mean score "
                f"{_number(row['mean_score'])}, good {_number(row['share_good'])}"
                for row in steps["reliability"]
                if row["n"]
            ]
    if best := figures["best_of_n"]:
        lines.append(
            f"  best of N     {best['problems']} problems, {best['candidates']} candidates: "
            f"at random {best['pass_at_1']:.4f}, oracle {best['oracle']:.4f}"
        )
        for by in ("last", "mean", "min", "prod", "softmin"):
            lines.append(f"    by {by:8} {best[by]:.4f}{_interval(best.get(f'{by}_interval'), 4)}")
    if not any(figures[part] for part in ("processbench", "steps", "best_of_n", "classes")):
        lines.append("  nothing to measure: the records have no labels")
    for row in figures["classes"]:
        lines.append(
            f"  class {row['class']:32} PRM score {_percent(row['prm_score'])}, F1 good "
            f"{_percent(row['f1_good'])}, F1 bad {_percent(row['f1_bad'])}, {row['n']} solutions"
        )
    return lines


def _versus_lines(file: str, found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{file}, compared: {found['verdict_changed']} of {found['n']} verdicts and "
        f"{found['first_error_changed']} first errors differ; largest difference of a score "
        f"{found['max_difference']:.4f}"
    ]
    for item in found["changed"][:SHOWN_CHANGES]:
        lines.append(
            f"  {item['record']}: {_verdict(item['verdict'], item['first_error'])}, then "
            f"{_verdict(item['other_verdict'], item['other_first_error'])}"
        )
    if len(found["changed"]) > SHOWN_CHANGES:
        lines.append(f"  and {len(found['changed']) - SHOWN_CHANGES} more; --json lists all")
    return lines


def _verdict(verdict: str, first_error: int | None) -> str:
    return verdict if first_error is None else f"{verdict} at step {first_error + 1}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value * 100:.1f}%"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _interval(value: Sequence[float] | None, digits: int | None = None) -> str:
    if value is None:
        return ""
    if digits is None:
        return f" ({value[0] * 100:.1f} to {value[1] * 100:.1f})"
    return f" ({value[0]:.{digits}f} to {value[1]:.{digits}f})"

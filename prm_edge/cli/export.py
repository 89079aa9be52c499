"""``prm-edge export``: a skin over ``prm_edge_export``, which is imported only when it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import click

from prm_edge_runtime.errors import ExportDependencyError

from .options import json_option

# module -> the extra that brings it
EXTRAS: Final = {
    "huggingface_hub": "export",
    "jinja2": "export",
    "onnx": "export",
    "optimum": "optimum",
    "safetensors": "export",
    "torch": "export",
    "transformers": "export",
}
ESCAPES: Final = {r"\n": "\n", r"\r": "\r", r"\t": "\t", r"\\": "\\"}
FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("export", short_help="Turn a trained torch checkpoint into a package.")
@click.argument("checkpoint", metavar="CHECKPOINT", type=click.Path(path_type=Path))
@click.argument("out", metavar="[OUT]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    metavar="RECIPE",
    help="A built-in recipe (`prm-edge recipes` lists them), or a .toml file of your own. "
    "Default: found from the checkpoint.",
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
@click.option(
    "--base", metavar="BASE", help="Base of a LoRA adapter. Default: the one that it names."
)
@click.option(
    "--separator", metavar="TEXT", help=r"Step separator of a TRL checkpoint; \n is a newline."
)
@click.option("--good-label", type=click.IntRange(min=0), help="Index of the label of a good step.")
@click.option(
    "--target",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Device that the variant is for.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "int8", "int4", "fp16", "bf16"]),
    default="auto",
    show_default=True,
    help="Precision: fp32, int8 or int4 for cpu (auto: fp32); fp16, bf16 or int4 for cuda (auto: "
    "fp16 where the model's values fit, else bf16).",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "native", "optimum"]),
    default="auto",
    show_default=True,
    help="What builds the graph.",
)
@click.option(
    "--calibration",
    metavar="FILE",
    type=FILE,
    help="Worked solutions to calibrate int8 and int4 on, and to measure the values of fp16 on.",
)
@click.option(
    "--drift",
    metavar="MEAN_DP",
    type=click.FloatRange(min=0, min_open=True),
    help="Mean |dp| that the plan of int8 or int4 aims at: less is closer to torch, and slower. "
    "Default: 0.006 and 0.02.",
)
@click.option(
    "--verify", metavar="FILE", type=FILE, help="Worked solutions to prove the package on."
)
@click.option("--expect", metavar="GOLDEN", type=FILE, help="Scores recorded where it was trained.")
@click.option(
    "--label-meaning",
    type=click.Choice(["local", "on_path", "until_first_error"]),
    help="What the labels it was trained on say. Default: the recipe's.",
)
@click.option("--notice", metavar="TEXT", help="What every user of the package is told.")
@click.option("--preview", is_flag=True, help="Show one encoded example and write nothing.")
@click.option("--add", is_flag=True, help="Add a variant to the package at OUT.")
@click.option(
    "--allow-drift", is_flag=True, help="Write a package that fails its proof; it says so."
)
@click.option(
    "--trust-tokenizer-file",
    is_flag=True,
    help="Take tokenizer.json where AutoTokenizer encodes differently.",
)
@click.option(
    "--ignore-limits", is_flag=True, help="Go on where memory or disk seem too small for it."
)
@click.option("--overwrite", is_flag=True, help="Replace the package at OUT.")
@json_option
def export_command(
    checkpoint: Path,
    out: Path | None,
    recipe: str | None,
    revision: str | None,
    base: str | None,
    separator: str | None,
    good_label: int | None,
    target: str,
    precision: str,
    backend: str,
    calibration: Path | None,
    drift: float | None,
    verify: Path | None,
    expect: Path | None,
    label_meaning: str | None,
    notice: str | None,
    preview: bool,
    add: bool,
    allow_drift: bool,
    trust_tokenizer_file: bool,
    ignore_limits: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Turn the trained torch checkpoint CHECKPOINT into the package OUT.

    CHECKPOINT is a folder, or the id of a model on the Hugging Face hub (ORG/NAME). A LoRA
    adapter is merged into its base. The package is run against torch before it is written; over
    budget, nothing is. OUT is ./NAME-prm if it is not given.
    Needs: pip install 'prm-edge[export]'
    """
    with naming_the_extra():
        from prm_edge_export import pipeline

        options = pipeline.ExportOptions(
            checkpoint=checkpoint,
            out=out,
            recipe=recipe,
            revision=revision,
            base=base,
            separator=None if separator is None else unescape(separator),
            good_label=good_label,
            target=target,
            precision=precision,
            backend=backend,
            calibration=calibration,
            drift=drift,
            verify=verify,
            expect=expect,
            label_meaning=label_meaning,
            notice=notice,
            add=add,
            allow_drift=allow_drift,
            trust_tokenizer_file=trust_tokenizer_file,
            ignore_limits=ignore_limits,
            overwrite=overwrite,
        )
        if preview:
            lines = pipeline.preview(options)
            click.echo(json.dumps({"preview": lines}) if as_json else "\n".join(lines))
            return
        result = pipeline.export(options, partial(click.echo, err=True))
    if as_json:
        click.echo(json.dumps({"out": str(result.out), "report": result.report}, indent=2))
    else:
        click.echo(click.format_filename(result.out))


@contextmanager
def naming_the_extra() -> Iterator[None]:
    """Turn the import of a module that an extra provides into advice.

    Raises:
        ExportDependencyError: naming the extra to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        raise ExportDependencyError(
            f"exporting needs {module}, which is not installed: "
            f"pip install 'prm-edge[{EXTRAS[module]}]'"
        ) from error


def unescape(text: str) -> str:
    r"""Turn ``\n``, ``\r``, ``\t`` and ``\\``, which shells hand on, into what they mean."""
    return re.sub(r"\\[nrt\\]", lambda match: ESCAPES[match[0]], text)

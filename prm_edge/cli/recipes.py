"""``prm-edge recipes``: the built-in recipes, and any of them as a file to begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .export import naming_the_extra, unescape
from .group import Misuse
from .options import json_option

if TYPE_CHECKING:
    from prm_edge_export.families import Family


@click.command("recipes", short_help="List the built-in recipes, or print one as TOML.")
@click.argument("name", metavar="[NAME]", required=False)
@click.option(
    "--checkpoint",
    metavar="CHECKPOINT",
    type=click.Path(path_type=Path),
    help="Print it as this checkpoint has it: its chat template, its token ids.",
)
@click.option(
    "--separator", metavar="TEXT", help=r"With --checkpoint: as for export; \n is a newline."
)
@json_option
def recipes_command(
    name: str | None, checkpoint: Path | None, separator: str | None, as_json: bool
) -> None:
    """List the recipes that `prm-edge export --recipe` knows, or print one as TOML.

    What is printed is a file for --recipe: change it, and export a reward model of your own.
    --checkpoint needs: pip install 'prm-edge[export]'
    """
    if separator is not None and checkpoint is None:
        raise Misuse("--separator is one of a checkpoint's; name it with --checkpoint")
    with naming_the_extra():
        from prm_edge_export.families import FAMILIES
        from prm_edge_export.recipe_toml import family_data, recipe_data, to_toml

        if name is None:
            if checkpoint is not None:
                raise Misuse("--checkpoint needs the NAME of a recipe")
            families = list(FAMILIES.values())
            click.echo(json.dumps([_row(f) for f in families]) if as_json else _table(families))
            return
        if name not in FAMILIES:
            raise Misuse(f"{name!r} is not one of the recipes: {', '.join(FAMILIES)}")
        family = FAMILIES[name]
        if checkpoint is None:
            data, source = family_data(family), "built in"
        else:
            from prm_edge_export.pipeline import ExportOptions, planned

            options = ExportOptions(
                checkpoint=checkpoint,
                recipe=name,
                separator=None if separator is None else unescape(separator),
            )
            plan = planned(options)
            data, source = recipe_data(plan.recipe, plan.family), f"as {options.name} has it"
    if as_json:
        click.echo(json.dumps({**_row(family), "recipe": data}, ensure_ascii=False))
    else:
        click.echo(
            to_toml(data, (f"{family.title}, {source}: for prm-edge export --recipe",)), nl=False
        )


def _row(family: Family) -> dict[str, object]:
    return {
        "name": family.name,
        "title": family.title,
        "detected": family.detected,
        "heads": list(family.heads),
        "separator": family.separator,
    }


def _table(families: list[Family]) -> str:
    width = max(len(family.name) for family in families)
    return "\n".join(
        f"{family.name:{width}}  {'detected' if family.detected else 'named   '}  {family.title}"
        for family in families
    )

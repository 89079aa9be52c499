"""``prm-edge inspect``: what a package holds and whether it is intact; what a checkpoint is."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from prm_edge.error_words import all_in_words
from prm_edge_runtime.kinds import known_kinds

from .describe import notice, package_bytes, recipe_lines, size
from .export import naming_the_extra, unescape
from .group import Failure, Misuse
from .options import json_option

if TYPE_CHECKING:
    from prm_edge_runtime.manifest import Manifest, Variant
    from prm_edge_runtime.package import Package

MANIFEST: Final = "prm_edge.json"
CHECKPOINT_FILES: Final = ("config.json", "adapter_config.json")
INTEGRITY: Final = {
    "full": "every file has the size and SHA-256 of the manifest",
    "auto": "every file has the size and SHA-256 of the manifest "
    "(large ones hashed when they last changed; --verify full hashes them again)",
    "sizes": "every file has the size of the manifest; hashes were NOT compared",
}


@click.command("inspect", short_help="Show what a package or a checkpoint is.")
@click.argument("path", metavar="[PATH]", required=False, type=click.Path())
@click.option(
    "--verify",
    type=click.Choice(list(INTEGRITY)[::-1]),
    default="auto",
    show_default=True,
    help="Package. sizes: compare sizes. auto: hash too, large files once. full: hash everything.",
)
@click.option("--recipe", metavar="RECIPE", help="Checkpoint: as for export.")
@click.option("--revision", metavar="REV", help="Checkpoint: as for export.")
@click.option("--base", metavar="BASE", help="Checkpoint: as for export.")
@click.option("--separator", metavar="TEXT", help="Checkpoint: as for export.")
@json_option
def inspect_command(
    path: str | None,
    verify: str,
    recipe: str | None,
    revision: str | None,
    base: str | None,
    separator: str | None,
    as_json: bool,
) -> None:
    """Show what a package holds: recipe, variants, proof, thresholds, limits, provenance.

    Its files are compared with the manifest first; a damaged package ends with exit code 1.
    Without PATH: PRM_EDGE_PACKAGE, else the built-in one.

    Where PATH is a checkpoint (a folder or a hub id, as for export), show what was detected and
    why; one that cannot be exported as it is ends with the reason and exit code 1.
    """
    if path is None:
        from prm_edge_runtime.choice import package_path

        path = str(package_path(None)[0])
    if is_checkpoint(Path(path)):
        _inspect_checkpoint(Path(path), recipe, revision, base, separator, as_json)
        return
    if given := [name for name in (recipe, revision, base, separator) if name is not None]:
        raise Misuse(
            "--recipe, --revision, --base and --separator are for checkpoints, "
            f"{path} is none; leave out {given[0]!r}"
        )
    from prm_edge_runtime.package import open_package

    opened = open_package(path, verify=verify)
    if as_json:
        click.echo(json.dumps(as_data(opened, verify), indent=2))
    else:
        click.echo("\n".join(as_text(opened, verify)))


def is_checkpoint(path: Path) -> bool:
    """Whether PATH is a checkpoint's folder, or an id of the hub, and no package."""
    if (path / MANIFEST).exists():
        return False
    if path.exists():
        return any((path / name).is_file() for name in CHECKPOINT_FILES)
    return not path.is_absolute() and len(path.parts) == 2 and path.parts[0] not in (".", "..")


def _inspect_checkpoint(
    path: Path,
    recipe: str | None,
    revision: str | None,
    base: str | None,
    separator: str | None,
    as_json: bool,
) -> None:
    with naming_the_extra():
        from prm_edge_export.inspection import inspect_checkpoint
        from prm_edge_export.options import ExportOptions

        options = ExportOptions(
            checkpoint=path,
            recipe=recipe,
            revision=revision,
            base=base,
            separator=None if separator is None else unescape(separator),
        )
        found = inspect_checkpoint(options, partial(click.echo, err=True))
    if as_json:
        data = {
            "path": str(path),
            "facts": found.facts,
            "decisions": list(found.decisions),
            "recipe": None if found.recipe is None else found.recipe.to_dict(),
            "refusal": found.refusal,
        }
        click.echo(json.dumps(data, indent=2))
    else:
        lines = _section(f"checkpoint {path}", list(found.facts.items()))[1:]
        if found.recipe is not None:
            lines += ["", "decided", *(f"  {reason}" for reason in found.decisions)]
            lines += _section("recipe", recipe_lines(found.recipe))
        click.echo("\n".join(lines))
    if found.refusal is not None:
        raise Failure(f"it cannot be exported as it is: {found.refusal}")


def as_data(package: Package, verify: str) -> dict[str, object]:
    """Everything there is to say, for programs."""
    manifest = package.manifest
    return {
        "path": str(package.root),
        "digest": package.digest,
        "verified": verify,
        "size_bytes": package_bytes(manifest),
        "notice": notice(manifest),
        "manifest": manifest.to_dict(),
    }


def as_text(package: Package, verify: str) -> list[str]:
    """Everything there is to say, line by line."""
    manifest = package.manifest
    lines = [
        f"{manifest.name}  {package.short}  {size(package_bytes(manifest))}",
        *(["", f"NOTICE: {text}"] if (text := notice(manifest)) is not None else []),
        *_section("recipe", recipe_lines(manifest.recipe)),
    ]
    if manifest.error_kinds:
        words = all_in_words(known_kinds(manifest.error_kinds))
        lines += _section("kinds of error that it names", list(words.items()))
    for variant in manifest.variants:
        lines += _variant(manifest, variant)
    thresholds = [(key, f"{value:g}") for key, value in manifest.thresholds.items()]
    lines += _section("thresholds (a lower score is an error)", thresholds)
    for name, fitted in manifest.calibration.items():
        facts = {**fitted.to_dict(), **fitted.fitted}
        del facts["fitted"]
        pairs = [(key, _value(value)) for key, value in facts.items()]
        lines += _section(f"calibration of {name}", pairs)
    lines += _section("limits", [("max_tokens", str(manifest.max_tokens))])
    lines += _section("provenance", [(k, _value(v)) for k, v in manifest.provenance.items()])
    lines += _section("files", [(str(len(manifest.files)), INTEGRITY[verify])])
    return lines


def _variant(manifest: Manifest, variant: Variant) -> list[str]:
    n_bytes = sum(manifest.files[path].size for path in variant.files)
    graph = variant.interface
    if variant.layers:
        cache = f"{variant.layers} layers x {variant.kv_heads} heads x {variant.head_dim}"
        graph = f"{variant.interface}, cache of {cache}"
    pairs = [
        ("runs on", f"{variant.device}, {variant.precision}"),
        ("graph", graph),
        ("size", size(n_bytes)),
        *((f"proof: {key}", _value(value)) for key, value in variant.proof.items()),
    ]
    lines = _section(f"variant {variant.name}", pairs)
    if variant.proof.get("allowed_drift"):
        lines.append(
            "  WARNING: exported with --allow-drift: the scores of this variant differ from "
            "torch's by more than the budget."
        )
    return lines


def _section(title: str, pairs: list[tuple[str, str]]) -> list[str]:
    width = max((len(key) for key, _ in pairs), default=0)
    return ["", title, *(f"  {key:{width}}  {value}" for key, value in pairs)]


def _value(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(map(_value, value))
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)

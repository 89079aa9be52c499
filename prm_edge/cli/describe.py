"""Packages and recipes in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from prm_edge_runtime.recipe import Part, Recipe, Slot, Tag, Text, Tokens

if TYPE_CHECKING:
    from prm_edge_runtime.manifest import Manifest
    from prm_edge_runtime.scorer import Scorer

SOURCES: Final = {
    "argument": "named by -m",
    "PRM_EDGE_PACKAGE": "named by PRM_EDGE_PACKAGE",
    "embedded": "the built-in package; choose another with -m",
}
NOTICE: Final = "notice"  # key of the provenance: what its maker wants every user to know
LABEL_MEANINGS: Final = {
    "local": "a good step follows from the problem and the steps before it",
    "on_path": "a good step can still lead to a right answer",
    "until_first_error": "good up to the first error; scores after it are undefined",
}
FORMULAS: Final = {
    "softmax": "softmax of {logits} logits, the probability of entry {good}",
    "difference": "softmax of {logits} logits, entry {good} minus entry {bad}",
    "classes": "softmax of {logits} logits, the sum of entries {valid}",
    "sigmoid": "sigmoid of one logit",
    "mean_sigmoid": "mean of the sigmoids of {logits} logits",
    "raw": "one logit as it is",
}
ENCODINGS: Final = {
    "joint": "neighbouring text is encoded as one string",
    "sections": "text is encoded as one string within the prompt and within each step",
    "separate": "every part is encoded on its own",
    "trimmed": "neighbouring text is encoded as one string, without whitespace at its ends",
}


def name_package(scorer: Scorer) -> str:
    """Which package runs, where, and who chose it."""
    package = scorer.package
    source = SOURCES.get(scorer.source, scorer.source)
    return (
        f"{package.manifest.name} ({scorer.variant}, {package.short}) on {scorer.device}, {source}"
    )


def notice(manifest: Manifest) -> str | None:
    """What the maker of the package wants every user to know, if anything."""
    value = manifest.provenance.get(NOTICE)
    return str(value) if value is not None else None


def say_notice(manifest: Manifest) -> None:
    """Repeat the package's notice on stderr."""
    if (text := notice(manifest)) is not None:
        click.echo(f"prm-edge: NOTICE: {text}", err=True)


def size(n_bytes: int) -> str:
    """A size for people: three digits or so, decimal units."""
    value = float(n_bytes)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def package_bytes(manifest: Manifest, variant: str | None = None) -> int:
    """Bytes of every file of a package, or of one variant and what all variants share."""
    others = {
        path for entry in manifest.variants if variant not in (None, entry.name)
        for path in entry.files
    }  # fmt: skip
    return sum(entry.size for path, entry in manifest.files.items() if path not in others)


def recipe_lines(recipe: Recipe) -> list[tuple[str, str]]:
    """A recipe as (what, in words) pairs."""
    score = recipe.score
    bounds = score.range
    formula = FORMULAS[score.kind].format(
        logits=recipe.logits,
        good=score.good,
        bad=score.bad,
        valid=" and ".join(map(str, score.valid)),
    )
    if score.redundant is not None:
        formula += f"; redundancy is entry {score.redundant}"
    cut = recipe.split.separator
    between = _parts(recipe.between) or "nothing"
    return [
        ("family", recipe.family),
        ("before the steps", _parts(recipe.prompt)),
        ("each step", _parts(recipe.step)),
        ("between steps", between),
        ("encoding", ENCODINGS[recipe.encode]),
        ("read at", _read(recipe)),
        ("score", formula),
        ("range", "unbounded" if bounds is None else f"{bounds[0]:g} to {bounds[1]:g}"),
        ("meaning", LABEL_MEANINGS[recipe.label_meaning]),
        ("aggregates", f"{', '.join(recipe.aggregates)}; its own is {recipe.aggregate}"),
        ("a response is cut at", "nothing: it is one step" if cut is None else repr(cut)),
    ]


def _parts(parts: tuple[Part, ...]) -> str:
    return " ".join(_part(part) for part in parts)


def _part(part: Part) -> str:
    if isinstance(part, Slot):
        return f"<{part.name.upper()}>"
    if isinstance(part, Text):
        return repr(part.text)
    if isinstance(part, Tag):
        return f"{part.text!r} {list(part.ids)}"
    return f"{part.text!r} {list(part.ids)}"


def _read(recipe: Recipe) -> str:
    # every valid recipe has exactly one
    tag = next((part for part in recipe.step if isinstance(part, Tag)), None)
    if tag is not None:
        return (
            f"token {tag.id}, the first of {list(tag.ids)} that {tag.text!r} becomes after each "
            "step, one score per step"
            if tag.then
            else f"token {tag.id}, which {tag.text!r} becomes after each step, one score per step"
        )
    part, read = next(
        (part, part.read)
        for part in recipe.step
        if isinstance(part, Tokens | Slot) and part.read is not None
    )
    if isinstance(part, Slot):
        which = "the last token" if read == -1 else f"token {read} from the end"
        return f"{which} of each step, one score per step"
    which = "" if len(part.ids) == 1 else f", number {read % len(part.ids) + 1} of it"
    return f"token {part.ids[read]} of {part.text!r}{which}, one score per step"

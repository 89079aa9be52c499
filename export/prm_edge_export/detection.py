"""Decide which family a checkpoint belongs to, and say why.

In: what ``--recipe`` names, if anything, and what is known of the checkpoint: its config, its head
and its added tokens. Out: a family, or a refusal that names what there is. Reads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prm_edge_runtime.errors import CheckpointError, ConfigError, UnsupportedError

from .checkpoint import Checkpoint
from .families import FAMILIES, Family
from .head_kinds import ROWS
from .heads import Head
from .own_recipe import SUFFIX, read_recipe_file
from .refusals import refuse_headless


def choose_family(
    asked: str | None,
    checkpoint: Checkpoint,
    head: Head | None,
    added: Mapping[str, int],
    reasons: list[str],
) -> Family:
    """The family asked for, else the one that suits the checkpoint's head.

    Raises:
        CheckpointError: when the family asked for needs another head.
        ConfigError: when there is no such family.
        UnsupportedError: when the checkpoint is of no family that is known.
    """
    kind = ROWS if head is None else head.kind
    if asked is not None:
        family = _chosen(asked)
        if kind not in family.heads:
            raise CheckpointError(
                f"recipe {family.name!r} needs a head of kind {' or '.join(family.heads)}, the "
                f"checkpoint has {kind if head else 'none of its own'}; leave --recipe out to "
                "have it detected"
            )
        _check_model_type(checkpoint, family)
        reasons.append(f"recipe: {family.name} ({family.title}), as asked")
        return family
    if head is None:
        refuse_headless(
            architecture(checkpoint), [f.name for f in FAMILIES.values() if kind in f.heads]
        )
    if architecture(checkpoint).endswith("ForSequenceClassification"):
        raise UnsupportedError(
            f"architecture {architecture(checkpoint)} has no per-step head that is known: a "
            "sequence classifier scores whole texts, not steps"
        )
    family = _detected(checkpoint.config.get("model_type"), kind, added)
    _check_model_type(checkpoint, family)
    others = [f.name for f in FAMILIES.values() if kind in f.heads and f is not family]
    also = f"; for {' or '.join(others)} pass --recipe" if others else ""
    reasons.append(f"recipe: {family.name} ({family.title}), from the head{also}")
    return family


def _chosen(recipe: str) -> Family:
    """The family that ``--recipe`` names: a built-in one, or a file."""
    if recipe in FAMILIES:
        return FAMILIES[recipe]
    if recipe.endswith(SUFFIX):
        return read_recipe_file(Path(recipe))
    raise ConfigError(
        f"--recipe {recipe!r} is neither one of {', '.join(FAMILIES)} nor a {SUFFIX} file"
    )


def architecture(checkpoint: Checkpoint) -> str:
    """The architecture that the checkpoint's config names first."""
    architectures = checkpoint.config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else "unnamed"


def _detected(model_type: object, kind: str, added: Mapping[str, int]) -> Family:
    """The family with this head that suits best; else any with it, to be refused by name."""
    fit = [f for f in FAMILIES.values() if f.detected and kind in f.heads]
    suited = [
        f
        for f in fit
        if set(f.marks) <= added.keys() and (not f.model_types or model_type in f.model_types)
    ]
    return max(suited, key=lambda f: len(f.marks)) if suited else fit[0]


def _check_model_type(checkpoint: Checkpoint, family: Family) -> None:
    model_type = checkpoint.config.get("model_type")
    if family.model_types and model_type not in family.model_types:
        raise UnsupportedError(
            f"recipe {family.name!r} is known for model_type {' and '.join(family.model_types)}, "
            f"this checkpoint has {model_type!r}: another family with a head of the same kind"
        )

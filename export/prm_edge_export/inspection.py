"""Say what a checkpoint is, whether or not it can be exported as it stands.

In: export options. Out: facts, the decisions an export would take with their reasons, and what it
would be refused for. No weights are read but their names and shapes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from prm_edge_runtime.errors import ExportError, RecipeError
from prm_edge_runtime.recipe import Recipe

from . import gpu_memory
from .adapters import AdaptedCheckpoint
from .checkpoint import Checkpoint
from .half import FP16
from .options import INT4, ExportOptions
from .plan import INT8_MODEL_TYPES, make_plan
from .sources import open_checkpoint
from .tokenizer_files import read_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """``facts``: what is there. ``decisions``: what an export would decide, and why.

    ``recipe`` is None, and ``refusal`` says why, where an export would be refused.
    """

    facts: dict[str, str]
    decisions: tuple[str, ...]
    recipe: Recipe | None
    refusal: str | None


def inspect_checkpoint(
    options: ExportOptions, say: Callable[[str], None] = lambda line: None
) -> Inspection:
    """Look at a checkpoint.

    Raises:
        ExportError: when it cannot be opened at all.
    """
    with open_checkpoint(
        options.checkpoint, revision=options.revision, base=options.base, say=say
    ) as checkpoint:
        facts = _facts(checkpoint)
        try:
            plan = make_plan(options, checkpoint)
        except (ExportError, RecipeError) as error:
            return Inspection(facts=facts, decisions=(), recipe=None, refusal=str(error))
        facts["longest record"] = f"{plan.max_tokens} tokens"
        if plan.decoder is not None:
            for precision in (
                FP16,
                *([INT4] if plan.decoder.model_type in INT8_MODEL_TYPES else ()),
            ):
                needs = gpu_memory.estimate(
                    plan.decoder, precision, tokens=min(plan.max_tokens, gpu_memory.USUAL_TOKENS)
                )
                facts[f"as cuda-{precision}"] = needs.line()
        return Inspection(facts=facts, decisions=plan.reasons, recipe=plan.recipe, refusal=None)


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    config, info = checkpoint.config, checkpoint.tensors.info
    types = Counter(entry.dtype for entry in info.values())
    parameters = sum(math.prod(entry.shape) for entry in info.values())
    named = config.get("architectures")
    facts = {
        "architecture": str(named[0]) if isinstance(named, list) and named else "unnamed",
        "model_type": str(config.get("model_type")),
        "weights": f"{len(info)} tensors, {parameters:,} numbers, in "
        f"{', '.join(sorted({entry.file for entry in info.values()}))}",
        "stored as": ", ".join(f"{dtype} ({count})" for dtype, count in types.most_common()),
    }
    for key, name in (("hub", "hub id"), ("revision", "commit")):
        if key in checkpoint.origin:
            facts[name] = checkpoint.origin[key]
    if isinstance(checkpoint, AdaptedCheckpoint):
        base, revision = checkpoint.origin["base"], checkpoint.origin.get("base_revision")
        facts["adapter"] = (
            f"LoRA of rank {checkpoint.adapter.rank} for {checkpoint.adapter.task or 'any task'}, "
            f"changes {len(checkpoint.tensors.changed)} tensors"
        )
        facts["base"] = f"{base} at {revision}" if revision else base
    try:
        files = read_tokenizer(checkpoint.tokenizer_folder)
    except ExportError as error:
        facts["tokenizer"] = f"cannot be used: {error}"
    else:
        template = "a chat template" if files.chat_template else "no chat template"
        facts["tokenizer"] = f"{files.size} ids, {len(files.added)} added tokens, {template}"
    return facts

"""The model card of a package: ``README.md`` with Hugging Face front matter."""

from __future__ import annotations

from prm_edge_runtime.kinds import judges_every_step, known_kinds
from prm_edge_runtime.manifest import Manifest
from prm_edge_runtime.recipe import Part, Recipe, Slot, Tag, Tokens


def template_words(recipe: Recipe) -> str:
    """The layout of one record in one line, the read position marked with ``<-- read``."""

    def word(part: Part) -> str:
        if isinstance(part, Slot):
            return "{" + part.name + "}"
        shown = part.text.encode("unicode_escape").decode("ascii")
        read = isinstance(part, Tag) or (isinstance(part, Tokens) and part.read is not None)
        return shown + ("  <-- read" if read else "")

    return "".join(word(part) for part in (*recipe.prompt, *recipe.step))


def _kinds(manifest: Manifest) -> list[str]:
    names = known_kinds(manifest.error_kinds)
    if not names:
        return []
    which = "each step" if judges_every_step(manifest.recipe.label_meaning) else "the first step"
    agreed = ", ".join(
        f"{v.proof['kinds_agreement']:.1%} of the steps ({v.name})"
        for v in manifest.variants
        if isinstance(v.proof.get("kinds_agreement"), float)
    )
    return [
        f"- names the kind of error of {which} below the threshold: "
        f"{', '.join(f'`{name}`' for name in names)}; the same as torch's at {agreed}"
    ]


def model_card(manifest: Manifest, license_name: str | None) -> str:
    """Markdown text of the card. ``license_name``: as the checkpoint's own card spells it."""
    recipe = manifest.recipe
    front = ["---", "library_name: prm-edge"]
    if license_name:
        front.append(f"license: {license_name}")
    front += [
        "tags:",
        "- process-reward-model",
        "- onnx",
        "pipeline_tag: token-classification",
        "---",
    ]
    rows = [
        f"| {v.name} | {v.proof.get('max_abs_dp')} | {v.proof.get('mean_abs_dp')} | "
        f"{v.proof.get('logit_rel_rms')} | {v.proof.get('steps')} |"
        for v in manifest.variants
    ]
    lines = [
        *front,
        "",
        f"# {manifest.name}",
        "",
        "A process reward model, exported with prm-edge. Score steps with:",
        "",
        "```sh",
        f"prm-edge score solutions.jsonl -m {manifest.name}",
        "```",
        "",
        f"- recipe: `{recipe.family}`, score `{recipe.score.kind}`, labels mean "
        f"`{recipe.label_meaning}`",
        f"- one record: `{template_words(recipe)}`",
        f"- limit: {manifest.max_tokens} tokens",
        *_kinds(manifest),
        "",
        "| variant | max abs dp | mean abs dp | rel. RMS of logits | steps |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Differences are those of the package, run by prm-edge's runtime, from transformers in "
        "float32.",
    ]
    return "\n".join(lines) + "\n"

"""Reward models that are understood and not exported, each refused by name with the reason.

Recognised by config.json, by the names of tensors and added tokens, and by the published name
where the hub id or config.json says it; never by a file's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from prm_edge_runtime.errors import UnsupportedError

from .checkpoint import Checkpoint

# the checkpoint, and the added tokens of its tokenizer
Shows = Callable[[Checkpoint, Mapping[str, int]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One kind: what it is called, how it shows, and why it is not exported."""

    name: str
    shows: Shows
    reason: str


def _called(*names: str) -> Shows:
    """Whether it goes by one of these published names, of whatever size and owner."""

    def shows(checkpoint: Checkpoint, added: Mapping[str, int]) -> bool:
        said = (checkpoint.origin.get("hub"), checkpoint.config.get("_name_or_path"))
        own = [str(name).rstrip("/").split("/")[-1].lower() for name in said if name]
        return any(name.startswith(names) for name in own)

    return shows


def _sees(checkpoint: Checkpoint, added: Mapping[str, int]) -> bool:
    config = checkpoint.config
    kind = str(config.get("model_type", ""))
    return "vision_config" in config or kind.startswith("internvl") or kind.endswith("_vl")


def _adds(*tokens: str) -> Shows:
    return lambda checkpoint, added: set(tokens) <= added.keys()


REFUSALS: Final = (
    Refusal(
        name="a generative PRM (such as ThinkPRM, GenPRM and R-PRM)",
        shows=_called("thinkprm", "genprm", "r-prm"),
        reason="it writes its verdict as text, and a package is scored in one run that writes none",
    ),
    Refusal(
        name="an implicit PRM (such as EurusPRM and ImplicitPRM)",
        shows=_called("eurusprm", "implicitprm"),
        reason="its score compares the log-probabilities of two language models, and a package "
        "holds one model without its vocabulary's output layer",
    ),
    Refusal(
        name="a per-prefix PRM (Universal-PRM)",
        shows=_called("universal-prm"),
        reason="it reads each step at an end token put behind it, so that every step needs a run "
        "of its own, and a package is scored in one run",
    ),
    Refusal(
        name="a vision model (such as VisualPRM)",
        shows=_sees,
        reason="its steps are judged from images, and a package scores text alone",
    ),
    Refusal(
        name="a Gemma 3 model",
        shows=lambda checkpoint, added: str(checkpoint.config.get("model_type")) == "gemma3_text",
        reason="its layers turn by two rotary embeddings, where the graph builds one; Gemma 2 is "
        "exported",
    ),
    Refusal(
        name="a two-pass PRM (PathFinder-PRM)",
        shows=_adds("<+>", "<->", "<extra>"),
        reason="its second pass depends on verdicts of the first, two runs for each step, and a "
        "package is scored in one run",
    ),
)


def refuse_known(checkpoint: Checkpoint, added: Mapping[str, int]) -> None:
    """Refuse what is known not to be exportable.

    Raises:
        UnsupportedError: naming the kind of model and the reason.
    """
    for refusal in REFUSALS:
        if refusal.shows(checkpoint, added):
            raise UnsupportedError(
                f"{checkpoint.root} is {refusal.name}, which is not exported: {refusal.reason}"
            )


def refuse_headless(architecture: str, recipes: list[str]) -> NoReturn:
    """Refuse a checkpoint without a head that was not named by ``--recipe``.

    Raises:
        UnsupportedError: always.
    """
    if architecture.endswith("ForCausalLM"):
        raise UnsupportedError(
            f"architecture {architecture} is a language model and has no per-step head of its own: "
            f"if it is one of the PRMs that answer with a token, pass --recipe "
            f"{' or '.join(recipes)}; generative PRMs (ThinkPRM, GenPRM, R-PRM) write their "
            "verdict as text, implicit ones (EurusPRM) need a second model, and Universal-PRM one "
            "pass for each step's prefix: none of these is exported"
        )
    hint = (
        "a sequence classifier scores whole texts, not steps"
        if "SequenceClassification" in architecture
        else "expected score.weight, classifier.weight, score.0/score.2, v_head.summary, "
        "score_head.weight, score.model.nn1/nn2/nn_out or reward_head.pt"
    )
    raise UnsupportedError(
        f"architecture {architecture} has no per-step head that is known: {hint}; see "
        "`prm-edge export --help` for the families that export"
    )

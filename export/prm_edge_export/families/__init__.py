"""The families of PRMs: how each is recognised, and the recipe it was trained with.

A new family is one row of :data:`FAMILIES` and one golden. Sources of templates and formulas
stand beside each builder. The recipe is checked against transformers' own tokenizer and template
on real texts before a package is written (:mod:`prm_edge_export.tokenization`).
"""

from __future__ import annotations

from typing import Final

from .chat import (
    QWEN_SYSTEM,
    QWEN_TAG,
    build_actprm,
    build_qwen,
    build_reasonflux,
    chat_reference,
)
from .family import ASK, Family, Request, encode_plain, good_index
from .reasoneval import build_reasoneval, reasoneval_reference
from .separated import build_pure, build_trl, trl_reference
from .value import (
    PQM_TAG,
    build_llemma,
    build_pqm,
    build_skywork,
    build_trajectory,
    llemma_reference,
    pqm_reference,
    skywork_reference,
    trajectory_reference,
)
from .verdicts import (
    PSA_TAG,
    SHEPHERD_TAG,
    SPACED_VERDICTS,
    VERDICTS,
    VERSA_TAG,
    build_er_prm,
    build_math_psa,
    build_rlhflow,
    build_shepherd,
    build_versaprm,
    rlhflow_reference,
    shepherd_reference,
    tagged_reference,
)

__all__ = [
    "ASK",
    "FAMILIES",
    "QWEN_SYSTEM",
    "QWEN_TAG",
    "Family",
    "Request",
    "encode_plain",
    "good_index",
]

FAMILIES: Final[dict[str, Family]] = {
    family.name: family
    for family in (
        Family(
            name="trl",
            title="TRL PRMTrainer checkpoint",
            heads=("linear", "classifier"),
            detected=True,
            separator=ASK,
            build=build_trl,
            reference=trl_reference,
        ),
        Family(
            name="pure",
            title="PURE (TRL checkpoint scored by p(good) - p(bad))",
            heads=("linear",),
            detected=False,
            separator="\n",
            build=build_pure,
            reference=trl_reference,
        ),
        Family(
            name="qwen2.5-math-prm",
            title="Qwen2.5-Math-PRM",
            heads=("mlp",),
            detected=True,
            separator=None,
            build=build_qwen,
            reference=chat_reference(QWEN_SYSTEM),
        ),
        Family(
            name="reasonflux-prm",
            title="ReasonFlux-PRM (Qwen2.5-Math-PRM head, the template's own system message)",
            heads=("mlp",),
            detected=False,
            separator=None,
            build=build_reasonflux,
            reference=chat_reference(None),
        ),
        Family(
            name="skywork-o1-prm",
            title="Skywork-o1-Open-PRM",
            heads=("value",),
            model_types=("qwen2",),
            detected=True,
            separator=None,
            good=0,
            build=build_skywork,
            reference=skywork_reference,
        ),
        Family(
            name="pqm",
            title="PQM",
            heads=("value",),
            model_types=("llama", "mistral", "qwen2"),
            marks=(PQM_TAG,),
            detected=True,
            separator=None,
            good=0,
            build=build_pqm,
            reference=pqm_reference,
        ),
        *(
            Family(
                name=name,
                title=title,
                heads=("classes",),
                model_types=(model_type,),
                detected=True,
                separator=None,
                good=0,
                build=build_reasoneval(name),
                reference=reasoneval_reference(name),
            )
            for name, title, model_type in (
                ("reasoneval-7b", "ReasonEval-7B", "mistral"),
                ("reasoneval-34b", "ReasonEval-34B", "llama"),
            )
        ),
        Family(
            name="actprm",
            title="ActPRM",
            heads=("ensemble",),
            model_types=("qwen2",),
            detected=True,
            separator=None,
            good=0,
            build=build_actprm,
            reference=chat_reference(QWEN_SYSTEM),
        ),
        Family(
            name="llemma",
            title="Llemma easy-to-hard",
            heads=("mean_rows",),
            model_types=("llama",),
            detected=True,
            separator=None,
            good=0,
            build=build_llemma,
            reference=llemma_reference,
        ),
        Family(
            name="reasonflux-prm-1.5b",
            title="ReasonFlux-PRM-1.5B, one score for a whole solution",
            heads=("trajectory",),
            model_types=("qwen2",),
            detected=True,
            separator=None,
            good=0,
            max_tokens=2048,
            build=build_trajectory,
            reference=trajectory_reference,
        ),
        Family(
            name="math-shepherd",
            title="Math-Shepherd",
            heads=("rows",),
            model_types=("llama", "mistral"),
            detected=False,
            separator=None,
            good=0,
            verdicts=VERDICTS,
            build=build_shepherd,
            reference=shepherd_reference,
        ),
        *(
            Family(
                name=name,
                title=title,
                heads=("rows",),
                model_types=("llama",),
                detected=False,
                separator=None,
                good=0,
                verdicts=VERDICTS,
                build=build_rlhflow(name, split),
                reference=rlhflow_reference,
            )
            for name, title, split in (
                ("rlhflow-deepseek", "RLHFlow Llama3.1-8B-PRM-Deepseek-Data", "\n\n"),
                ("rlhflow-mistral", "RLHFlow Llama3.1-8B-PRM-Mistral-Data", "ки\n"),
            )
        ),
        Family(
            name="er-prm",
            title="ER-PRM",
            heads=("rows",),
            model_types=("llama",),
            detected=False,
            separator=None,
            good=0,
            verdicts=SPACED_VERDICTS,
            build=build_er_prm,
            reference=tagged_reference(" ", SHEPHERD_TAG, ""),
        ),
        Family(
            name="versaprm",
            title="VersaPRM",
            heads=("rows",),
            model_types=("llama", "qwen2"),
            detected=False,
            separator=None,
            good=1,
            verdicts=VERDICTS[::-1],
            build=build_versaprm,
            reference=tagged_reference(" \n\n", VERSA_TAG, ""),
        ),
        Family(
            name="math-psa",
            title="Math-psa",
            heads=("rows",),
            model_types=("qwen2",),
            detected=False,
            separator=None,
            good=0,
            verdicts=SPACED_VERDICTS,
            build=build_math_psa,
            reference=tagged_reference(" ", PSA_TAG, " "),
        ),
    )
}

"""ReasonEval: three classes, read at a step's own tokens (GAIR-NLP/ReasonEval, codes/examples.py).

The authors put the pad token between steps, encode once, take every pad token out again and count
where it was. With ReasonEval-7B the pad token is the bos token too, so that one more falls out:
its scores are those of the last token but one of each step, those of the 34B of the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError
from prm_edge_runtime.recipe import (
    Recipe,
    Score,
    Slot,
    Split,
    Text,
    allowed_aggregates,
)

from .family import Request, checked, encode_plain, leading

QUESTION: Final = "Question:\n"
ANSWER: Final = "\nAnswer:\nLet's think step by step.\n"
# family -> where it reads, and whether its pad token is its bos token
RULES: Final[dict[str, tuple[int, bool]]] = {
    "reasoneval-7b": (-2, True),
    "reasoneval-34b": (-1, False),
}


def build_reasoneval(family: str) -> Callable[[Request], Recipe]:
    """The recipe of one of the two models, which read differently."""

    def build(request: Request) -> Recipe:
        read, pad_is_bos = RULES[family]
        bos, pad = request.tokenizer.bos_token_id, request.tokenizer.pad_token_id
        opening = leading(request)
        if not opening or pad is None or (pad == bos) != pad_is_bos:
            raise CheckpointError(
                f"{family} needs a tokenizer that puts its bos_token before a text, with a "
                f"pad_token that is {'the same' if pad_is_bos else 'another'} token; this one has "
                f"bos_token {request.tokenizer.bos_token!r}, pad_token "
                f"{request.tokenizer.pad_token!r}: use the tokenizer of the PRM's own repository"
            )
        # [negative, neutral, positive]: a neutral step is valid, and redundant
        score = Score(kind="classes", valid=(1, 2), redundant=1)
        return checked(
            Recipe(
                family=family,
                encode="sections",
                prompt=(*opening, Text(text=QUESTION), Slot(name="problem"), Text(text=ANSWER)),
                between=(),
                step=(Slot(name="step", read=read),),
                split=Split(separator="\n"),
                logits=request.logits,
                score=score,
                aggregates=allowed_aggregates(score),
                aggregate="min",
                label_meaning="until_first_error",
            )
        )

    return build


def reasoneval_reference(
    family: str,
) -> Callable[[Any, Recipe, str, Sequence[str]], tuple[list[int], list[int]]]:
    """The authors' get_results up to the model; a step without tokens has no read position."""
    pad_is_bos = RULES[family][1]

    def encode(
        tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
    ) -> tuple[list[int], list[int]]:
        separator = str(tokenizer.pad_token)
        text = QUESTION + problem + ANSWER + separator + "".join(s + separator for s in steps)
        wanted = encode_plain(tokenizer, separator)[-1]
        ids: list[int] = [int(tokenizer.bos_token_id)] if pad_is_bos else []
        reads: list[int] = []
        gaps: list[int] = []
        for index, token in enumerate(int(i) for i in tokenizer(text)["input_ids"]):
            if token == wanted:
                reads.append(index - 1 - len(reads))
                gaps.append(index)
            else:
                ids.append(token)
        skipped = 2 if pad_is_bos else 1
        kept = [reads[at] for at in range(skipped, len(reads)) if gaps[at] > gaps[at - 1] + 1]
        return ids[: kept[-1] + 1] if kept else ids, kept

    return encode

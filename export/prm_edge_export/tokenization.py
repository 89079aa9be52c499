"""Prove that the recipe encodes exactly as the family was trained, with transformers as judge.

In: a recipe, our encoder, transformers' tokenizer, texts. Out: how many records agreed, id for id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from prm_edge_runtime.encoding import RecipeEncoder
from prm_edge_runtime.errors import InputError, ProofError

from .families import Family
from .tokenizer_files import TokenizerFiles

Record = tuple[str, Sequence[str]]
WHOLE_JOINT: Final = "\n\n"  # between the steps of a record where a whole solution is one step

# Where tokenizers and templates like to differ: blanks at the ends, nothing at all, odd scripts.
PROBES: Final[tuple[Record, ...]] = (
    ("What is 2 + 2?", ["2 + 2 = 4", "So the answer is 4."]),
    ("\n\n  Leading and trailing blanks \n", ["\n\nstarts with newlines", "ends with them\n\n"]),
    ("", ["", " ", "after an empty and a blank step"]),
    (
        "Größe in m²: ½ · 3 ≤ π?",
        ["∀x ∈ ℝ: x² ≥ 0 ✓", "数学は楽しい。", "שלום 12", "👩‍🏫 says 3−1=2"],
    ),
    ("Tabs\tand\r\nreturns", ["\\frac{1}{2}\\times 18 = 9", "def f(x):\n    return x  # 4 spaces"]),
)


def check_tokenization(
    family: Family,
    encoder: RecipeEncoder,
    tokenizer: Any,
    files: TokenizerFiles,
    records: Iterable[Record],
) -> int:
    """Compare ids and read positions on every record; return how many were compared.

    Records that spell an added token are left out: there the two differ on purpose, since the
    runtime never lets text become one.

    Raises:
        ProofError: at the first difference, naming the record and the position.
    """
    compared = 0
    for problem, steps in _plain([*PROBES, *records], files):
        if encoder.recipe.split.separator is None:
            steps = [WHOLE_JOINT.join(steps)]
        expected, reads = family.reference(tokenizer, encoder.recipe, problem, steps)
        try:
            encoded = encoder.encode(problem, steps)
        except InputError:
            if len(reads) == len(steps):
                raise
            continue  # transformers too finds no place to read some step
        ours = encoded.ids.tolist()
        if ours != expected or encoded.reads.tolist() != reads:
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, expected, strict=False)) if a != b),
                min(len(ours), len(expected)),
            )
            raise ProofError(
                f"recipe {family.name} does not encode the problem {problem[:40]!r} as "
                f"transformers does: from position {at} ours are {ours[at : at + 4]}, "
                f"transformers' {expected[at : at + 4]}; reads {encoded.reads.tolist()[:4]} and "
                f"{reads[:4]}"
            )
        compared += 1
    return compared


def _plain(records: Iterable[Record], files: TokenizerFiles) -> Iterator[Record]:
    for problem, steps in records:
        text = "\0".join((problem, *steps))
        if not any(content in text for content in files.added):
            yield problem, steps

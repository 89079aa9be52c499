"""The worked solutions that int8 is calibrated and planned on, apart from those of the proof.

In: the user's file or the bundled ones. Out: encoded records and hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prm_edge_runtime.encoding import Encoded, RecipeEncoder
from prm_edge_runtime.errors import CheckpointError

from ..proof import Text, texts_for

CALIBRATION: Final = "calibration.jsonl"
SEARCH: Final = "search.jsonl"
FEWEST: Final = 8
# Each plan that is tried runs all of the plan's solutions. So many multiply-adds at most, but so
# many solutions all the same: the whole set up to 900 million weights, a third of it for a 7B.
SEARCHED_WORK: Final = 5e12
SEARCHED_FEWEST: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Solutions:
    """Encoded solutions to calibrate on and to choose the plan with; hashes of the files."""

    calibration: list[Encoded]
    search: list[Encoded]
    hashes: dict[str, str]


def load_solutions(
    path: Path | None,
    encoder: RecipeEncoder,
    max_tokens: int,
    verification: Sequence[Text],
    multiply_adds: int,
) -> Solutions:
    """Read and encode both sets; ``path`` is the user's calibration file.

    ``multiply_adds``: of the model, per token.

    Raises:
        CheckpointError: when there are too few, one is too long, or one is verified on.
    """
    calibration, calibration_sha256 = texts_for(encoder.recipe, path, (CALIBRATION,))
    search, search_sha256 = texts_for(encoder.recipe, None, (SEARCH,))
    where = str(path) if path else "the bundled calibration texts"
    if len(calibration) < FEWEST:
        raise CheckpointError(
            f"{where} hold {len(calibration)} worked solutions, int8 needs at least {FEWEST} to "
            "calibrate on; give more with --calibration"
        )
    refuse_shared(calibration, verification, where, "the verification texts", "--calibration")
    refuse_shared(search, verification, "the plan's texts", "the verification texts", "--verify")
    refuse_shared(calibration, search, where, "the plan's texts", "--calibration")
    encoded = [encoder.encode(text.problem, text.steps) for text in calibration]
    for text, record in zip(calibration, encoded, strict=True):
        if len(record.ids) > max_tokens:
            raise CheckpointError(
                f"{where}: {text.problem[:40]!r} has {len(record.ids)} tokens, the model takes "
                f"{max_tokens}; give shorter solutions with --calibration"
            )
    searched = [encoder.encode(text.problem, text.steps) for text in search]
    searched = [record for record in searched if len(record.ids) <= max_tokens]
    if not searched:
        raise CheckpointError(
            f"every solution that the plan is chosen with is longer than the model's {max_tokens} "
            "tokens; export with --precision fp32"
        )
    return Solutions(
        calibration=encoded,
        search=thinned(searched, multiply_adds),
        hashes={"calibration_texts": calibration_sha256, "search_texts": search_sha256},
    )


def thinned(records: list[Encoded], multiply_adds: int) -> list[Encoded]:
    """Some of the records, from all over them, where all would take a large model too long."""
    tokens = sum(len(record.ids) for record in records)
    affordable = int(len(records) * SEARCHED_WORK / (tokens * multiply_adds))
    count = min(len(records), max(affordable, SEARCHED_FEWEST))
    return [records[at * len(records) // count] for at in range(count)]


def refuse_shared(
    one: Sequence[Text], other: Sequence[Text], what: str, there: str, option: str
) -> None:
    """Refuse solutions that are in two sets of which one judges what the other made.

    Raises:
        CheckpointError: naming the first of them and the option that gives them.
    """
    known = {(text.problem, text.steps) for text in other}
    shared = [text for text in one if (text.problem, text.steps) in known]
    if shared:
        raise CheckpointError(
            f"{len(shared)} solutions of {what} are also among {there}, first "
            f"{shared[0].problem[:40]!r}: a model must be judged on texts it was not fitted to; "
            f"take them out of the file of {option}"
        )

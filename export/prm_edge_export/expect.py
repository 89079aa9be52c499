"""Compare a package with scores recorded where the model was trained.

The proof's blind spot is the recipe: reference and package share it. Golden scores share neither
recipe nor tokenisation with us, so a wrong separator, a read one token off or swapped labels show.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import InputError, ProofError
from prm_edge_runtime.golden import GoldenRecord, read_golden

# dtype of the weights that gave the golden scores -> largest (max, mean) |dp| that is no surprise.
# bf16 cards differ from fp32 reruns by up to 0.04 at 7B.
TOLERANCES: Final[dict[str, tuple[float, float]]] = {
    "float64": (1e-3, 1e-4),
    "float32": (1e-3, 1e-4),
    "float16": (2e-2, 5e-3),
    "bfloat16": (1e-1, 2e-2),
}


def check_expected(scorer: Scorer, path: Path) -> dict[str, float | int]:
    """Score every golden record with the package; return the figures.

    Raises:
        ProofError: when they differ by more than the recording's precision explains.
    """
    try:
        records = read_golden(path)
    except InputError as error:
        raise ProofError(str(error)) from error
    by_dtype: dict[str, list[float]] = {}
    for index, record in enumerate(records):
        by_dtype.setdefault(record.dtype, []).extend(_differences(scorer, record, index, path))
    differences = [d for group in by_dtype.values() for d in group]
    for dtype, group in by_dtype.items():
        _judge(group, dtype, path)
    return {
        "expect_records": len(records),
        "expect_max_abs_dp": max(differences, default=0.0),
        "expect_mean_abs_dp": sum(differences) / max(len(differences), 1),
    }


def _differences(scorer: Scorer, record: GoldenRecord, index: int, path: Path) -> list[float]:
    result = scorer.score(record.problem, record.steps, on_too_long="null")
    where = f"record {index} of {path.name} ({record.problem[:40]!r})"
    if record.n_tokens is not None and record.n_tokens != result.n_tokens:
        raise ProofError(
            f"{where} has {record.n_tokens} tokens where it was recorded and {result.n_tokens} "
            "here: the template, separator or tokenizer differs; check --recipe and --separator"
        )
    if None in result.scores:
        raise ProofError(f"{where} is longer than the {scorer.max_tokens} tokens of the model")
    return [
        abs(expected - got)
        for expected, got in zip(record.scores, result.scores, strict=True)
        if got is not None
    ]


def _judge(differences: Sequence[float], dtype: str, path: Path) -> None:
    largest, mean = max(differences), sum(differences) / len(differences)
    limit, mean_limit = TOLERANCES[dtype]
    if largest > limit or mean > mean_limit:
        raise ProofError(
            f"the package does not give the scores of {path} ({dtype}): |dp| max {largest:.4f} "
            f"(allowed {limit:g}), mean {mean:.4f} (allowed {mean_limit:g}) over "
            f"{len(differences)} steps; check --recipe, --separator and --good-label, or whether "
            "this is the checkpoint that was recorded"
        )

"""Export every family with published tokenizers and compare real solutions with its authors' way.

Usage: python benchmarks/families.py TOKENIZERS --data DATA [--records 200] [--only NAME ...]

Weights are small and random: the scores mean nothing. What is compared is everything else, from
text to score: the package as it ships against the authors' own inference procedure, rewritten in
plain torch and transformers (tests/torch_reference.py), which shares nothing with prm-edge. A
family that its checkpoint shows is exported by detection alone, the others with --recipe.
Exit status 1 when a score is further than --max-dp from the authors'.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import family_cases  # noqa: E402  # a folder of the repository, found above
import numpy as np  # noqa: E402

from prm_edge_export.options import ExportOptions  # noqa: E402
from prm_edge_export.pipeline import export  # noqa: E402
from prm_edge_runtime import Scorer  # noqa: E402
from prm_edge_runtime.errors import InputError  # noqa: E402

PROVEN = 8
HEADER = (
    "| family | tokenizer | named | solutions | refused | too long | steps | max \\|dp\\| "
    "| mean \\|dp\\| | scores | their std |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What one family's solutions gave."""

    solutions: int
    refused: int
    too_long: int
    scores: np.ndarray
    differences: np.ndarray


def compare(name: str, tokenizers: Path, data: Path, records: int) -> Compared:
    """Export one family, and score until ``records`` solutions were compared."""
    ours: list[float] = []
    theirs: list[float] = []
    solutions = refused = too_long = 0
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, options = family_cases.make(name, Path(scratch), tokenizers)
        # the exporter's own proof on a few; all that counts here comes after it
        proof = Path(scratch) / "proof.jsonl"
        few = family_cases.real_records(data, PROVEN)
        proof.write_text(
            "".join(json.dumps({"problem": p, "steps": s}) + "\n" for p, s in few), "utf-8"
        )
        asked = ExportOptions(
            checkpoint=checkpoint, out=Path(scratch) / "package", verify=proof, **options
        )
        with Scorer.load(export(asked).out, self_test=True) as scorer:
            assert scorer.recipe.family == name
            for problem, given in family_cases.real_records(data, 2 * records):
                whole = scorer.recipe.split.separator is None
                steps = ["\n\n".join(given)] if whole else given
                try:
                    scores = scorer.score(problem, steps).scores
                except InputError as error:
                    print(f"  {name}: {error}", file=sys.stderr)
                    refused += 1
                    continue
                if None in scores:
                    too_long += 1
                    continue
                expected = family_cases.judged(name, checkpoint, problem, steps)
                if len(expected) != len(scores):
                    raise SystemExit(f"{name}: {len(expected)} scores for {len(scores)} steps")
                ours += [float(score) for score in scores if score is not None]
                theirs += expected
                solutions += 1
                if solutions == records:
                    break
    return Compared(
        solutions=solutions,
        refused=refused,
        too_long=too_long,
        scores=np.array(theirs),
        differences=np.abs(np.array(ours) - np.array(theirs)),
    )


def row(name: str, result: Compared) -> str:
    case = family_cases.CASES[name]
    return (
        f"| `{name}` | {case.published} | {'yes' if case.recipe else 'no'} | {result.solutions} "
        f"| {result.refused} | {result.too_long} | {len(result.scores)} "
        f"| {result.differences.max():.1e} | {result.differences.mean():.1e} "
        f"| {result.scores.min():.3f} to {result.scores.max():.3f} | {result.scores.std():.2f} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("tokenizers", type=Path, help="of python tests/real_tokenizers.py fetch")
    parser.add_argument("--data", type=Path, required=True, help="folder with processbench_*.gz")
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--only", action="append", choices=tuple(family_cases.CASES))
    parser.add_argument("--max-dp", type=float, default=1e-4)
    options = parser.parse_args(arguments)
    worst = 0.0
    print(HEADER, flush=True)
    for name in options.only or family_cases.CASES:
        result = compare(name, options.tokenizers, options.data, options.records)
        print(row(name, result), flush=True)
        if result.solutions < options.records:
            print(f"{name}: only {result.solutions} solutions were compared", file=sys.stderr)
            return 1
        worst = max(worst, float(result.differences.max()))
    print(f"\nlargest |dp| {worst:.1e}, allowed {options.max_dp:g}")
    return int(not worst <= options.max_dp)


if __name__ == "__main__":
    sys.exit(main())

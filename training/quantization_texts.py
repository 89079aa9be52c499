"""Write the worked solutions that int8 is calibrated, planned and verified on.

    python -m training.quantization_texts export/prm_edge_export/data

Solutions of the generator, from the part of its wordings that no training uses; no problem is in
two files or in ``verification.jsonl``, which was written by hand. ``calibration.jsonl`` also takes
those of ``handwritten.jsonl`` beside this file. Seeded; a generator that has changed since writes
other files, and the hashes in later reports say so.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from training.generator import FAMILIES, Context, Solution, draw

# file -> (seed, solutions of each family)
FILES: Final = {
    "calibration.jsonl": (61, 5),
    "search.jsonl": (62, 8),
    "verification_int8.jsonl": (63, 48),
}
# one line each, or problems that repeat
LEFT_OUT: Final = ("fact",)
FEWEST_STEPS: Final = 3


def solutions(seed: int, each: int, taken: set[str]) -> list[dict[str, Any]]:
    """Solutions of every family, about half of them wrong somewhere."""
    context = Context(random.Random(seed), "heldout")
    found = []
    for family in (name for name in FAMILIES if name not in LEFT_OUT):
        count = 0
        while count < each:
            rate = 0.0 if count % 2 else 0.4
            solution = draw(context, family, rate)
            if len(solution.lines) < FEWEST_STEPS or solution.problem in taken:
                continue
            taken.add(solution.problem)
            found.append(record(f"{family}-{seed}-{count}", solution))
            count += 1
    return found


def record(name: str, solution: Solution) -> dict[str, Any]:
    """One line of a file."""
    return {
        "id": name,
        "problem": solution.problem,
        "steps": [line.text for line in solution.lines],
        "label": solution.first_error,
    }


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    handwritten = Path(__file__).with_name("handwritten.jsonl").read_text(encoding="utf-8")
    own = [json.loads(line) for line in handwritten.splitlines()]
    verified = (folder / "verification.jsonl").read_text(encoding="utf-8").splitlines()
    taken = {json.loads(line)["problem"] for line in verified} | {item["problem"] for item in own}
    for name, (seed, each) in FILES.items():
        items = solutions(seed, each, taken)
        if name == "calibration.jsonl":
            items = own + items
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
        (folder / name).write_text("".join(lines), encoding="utf-8")
        print(name, len(items), sum(len(item["steps"]) for item in items))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

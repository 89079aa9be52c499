"""Labelled solutions that the SmolLM2 model is trained on, and those it never sees.

In: the data folder. Out: `Solution`s whose lines are right (True), wrong (False) or unlabelled.
Labels mean "until the first error": nothing after a wrong line is labelled.

* GSM8K model solutions know only whether the final answer is right. A right one's lines count as
  right. In a wrong one the first line that is wrong is where an annotated sum is false, or whose
  result no right solution of the same problem ever reaches; a problem without a right solution
  gives false sums only. This is a guess, and it is sometimes wrong.
* PRM800K's ratings are people's.
* Stories, sentences and sums of the generator have exact labels.

No problem of ProcessBench, PRMBench or the best-of-n set is trained on. Imports the generator
and `training.real` only.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..generator import Context, Line, Solution, draw
from ..generator.algebra import AlgebraError, true_chain, value
from ..real import canonical, read, side_of

MEASURED = ("processbench_gsm8k", "processbench_math_dev", "prmbench_dev", "bon_gsm8k_dev")
SHARES = {"gsm8k": 0.58, "prm800k": 0.22, "generator": 0.20}
FAMILIES = ("story", "sentences", "evaluation")  # of the generator: words and numbers
HELD_TENTHS = 1  # of the GSM8K problems: the threshold is chosen on them
_ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
_ANSWER = re.compile(r"A:\s*(.+)")
_ANSWERS = ("The answer is {}.", "The answer is \\(\\boxed{{{}}}\\).", "So the answer is {}.")


def plain(problem: str) -> str:
    """A problem's text, however it is spaced and cased."""
    return re.sub(r"\W+", " ", problem).strip().lower()


def measured_problems(data: Path) -> set[str]:
    """The problems of the sets that scores are measured on."""
    return {
        plain(record["problem"]) for name in MEASURED for record in read(data / f"{name}.jsonl.gz")
    }


def results(step: str) -> list[str] | None:
    """What the annotated sums of a line come to; None where one of them is false."""
    found = []
    for left, right in _ANNOTATION.findall(step):
        try:
            if not true_chain(f"{canonical(left)}={canonical(right)}"):
                return None
            found.append(str(value(canonical(right))))
        except AlgebraError:
            continue
    return found


def label_lines(record: dict[str, Any], reached: set[str]) -> list[bool | None]:
    """Which lines are right, as far as the final answer and the right solutions tell.

    ``reached``: what lines of right solutions of this problem come to; empty where there is none.
    """
    if record["final_answer_correct"]:
        return [None if results(step) is None else True for step in record["steps"]]
    labels: list[bool | None] = []
    for step in record["steps"]:
        if False in labels:
            labels.append(None)
            continue
        found = results(step)
        if found is None:
            labels.append(False)
        elif _ANSWER.match(step):
            labels.append(False)  # every line was right as far as is known, the answer is not
        elif not found or not reached:
            labels.append(None)
        else:
            labels.append(all(result in reached for result in found))
    return labels


def gsm8k(records: Iterable[dict[str, Any]], rng: random.Random) -> list[Solution]:
    """Solutions of models with the labels of :func:`label_lines`, annotations taken out."""
    by_problem = defaultdict(list)
    for record in records:
        by_problem[record["problem"]].append(record)
    out = []
    for problem, group in by_problem.items():
        right = [r for r in group if r["final_answer_correct"]]
        reached = {x for r in right for step in r["steps"] for x in results(step) or ()}
        for record in group:
            labels = label_lines(record, reached)
            lines = []
            for step, label in zip(record["steps"], labels, strict=True):
                text = " ".join(_ANNOTATION.sub("", step).split())
                answer = _ANSWER.match(text)
                if answer:
                    text = rng.choice(_ANSWERS).format(answer[1])
                lines.append(Line(text, label, "slip" if label is False else "none"))
            if any(label is not None for label in labels):
                out.append(Solution(" ".join(problem.split()), tuple(lines), "gsm8k"))
    return out


def prm800k(records: Iterable[dict[str, Any]]) -> list[Solution]:
    """People's ratings, up to the first error."""
    out = []
    for record in records:
        first = record["label"]
        lines = []
        for index, step in enumerate(record["steps"]):
            good = None if 0 <= first < index else index != first
            lines.append(Line(step, good, "none" if good is not False else "slip"))
        out.append(Solution(record["problem"], tuple(lines), "prm800k"))
    return out


def real_solutions(data: Path, split: str) -> dict[str, list[Solution]]:
    """Real solutions of one split, by source; the held-out split has GSM8K problems only."""
    kept_out = measured_problems(data)
    rng = random.Random(1)

    def ours(record: dict[str, Any]) -> bool:
        return plain(record["problem"]) not in kept_out

    lines = [
        record
        for record in read(data / "gsm8k_model_solutions.jsonl.gz")
        if ours(record) and side_of(record["problem"], HELD_TENTHS) == split
    ]
    found = {"gsm8k": gsm8k(lines, rng)}
    if split == "train":
        found["prm800k"] = prm800k(filter(ours, read(data / "prm800k_val.jsonl.gz")))
    return found


def mixture(data: Path, seed: int) -> Iterator[Solution]:
    """An endless stream: each real set in a new order each time it has been through."""
    rng = random.Random(seed)
    context = Context(rng)
    real = real_solutions(data, "train")
    waiting: dict[str, list[Solution]] = {name: [] for name in real}
    while True:
        name = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if name == "generator":
            yield draw(context, rng.choice(FAMILIES), rng.choice((0.0, 0.2, 0.4)))
            continue
        if not waiting[name]:
            waiting[name] = rng.sample(real[name], len(real[name]))
        yield waiting[name].pop()


def main() -> None:
    """Write the held-out solutions with a known first error, one JSON object a line."""
    parser = argparse.ArgumentParser(description="Held-out GSM8K solutions, to fit a threshold to.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    held = real_solutions(args.data, "heldout")["gsm8k"]
    with args.out.open("w", encoding="utf-8") as out:
        for solution in held:
            goods = [line.good for line in solution.lines]
            if solution.first_error < 0 and None in goods:
                continue  # wrong somewhere, nobody knows where
            record = {
                "problem": solution.problem,
                "steps": [line.text for line in solution.lines],
                "label": solution.first_error,
            }
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

"""What running each token once is worth: sessions and candidates, beside transformers.

    python benchmarks/reuse.py --package PACKAGE --checkpoint CHECKPOINT

The checkpoint is the one that the package was exported from: a Llama or Qwen2 token classifier
trained with TRL. Every way scores the same texts in this process, in turns, in fp32 on one thread.
Times are CPU seconds, which other work on the machine disturbs least: a time is the median of its
rounds, a ratio the median of the rounds' ratios to the first way.
Scores are compared too: those of prm-edge must be equal to the bit, or this exits with status 1.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROBLEM_TOKENS = 150
STEP_TOKENS = 30
SESSION_STEPS = 12
LONG_TOKENS = 1000
BEAM, BEAM_DEPTH = 4, 8
CANDIDATES = (8, 32)
CANDIDATE_TOKENS = (40, 120, 400)
SENTENCE = (
    "the sum of both sides is then so we subtract and multiply by a number of apples which gives "
    "x y + - = ( ) because each ticket costs less than half of what was left after paying for it"
)
WORDS = SENTENCE.split()

Scores = list[list[float]]
Ways = dict[str, Callable[[], Scores]]


class Torch:
    """transformers, with the bookkeeping of a cache written by hand."""

    def __init__(self, checkpoint: Path, separator: str) -> None:
        import torch
        from transformers import AutoModelForTokenClassification, AutoTokenizer, DynamicCache

        torch.set_num_threads(1)
        self.torch, self.new_cache = torch, DynamicCache
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model = AutoModelForTokenClassification.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()
        self.separator = self.tokens(separator)

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(self, problem: str) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [*([] if bos is None else [bos]), *self.tokens(problem)]

    def steps(self, steps: list[str]) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        reads = []
        for step in steps:
            ids += [*self.tokens(step), *self.separator]
            reads.append(len(ids) - 1)
        return ids, reads

    def run(self, ids: list[int], reads: list[int], cache: Any = None) -> list[float]:
        with self.torch.inference_mode():
            hidden = self.model.model(
                input_ids=self.torch.tensor([ids]),
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state
            scores = self.model.score(hidden[0, reads]).softmax(-1)[:, 1]
        return [float(score) for score in scores]

    def score(self, problem: str, steps: list[str]) -> list[float]:
        prompt = self.prompt(problem)
        ids, reads = self.steps(steps)
        return self.run(prompt + ids, [len(prompt) + read for read in reads])


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: ways to do the same work, the first of which is the measure for the others."""

    name: str
    ways: Ways
    rounds: int


def text(rng: random.Random, reference: Torch, tokens: int) -> str:
    """Random words and numbers that nobody else has, of about so many tokens."""
    words = [rng.choice(WORDS).capitalize()]
    while len(reference.tokens(" ".join(words))) < tokens - 2:
        words.append(rng.choice([*WORDS, str(rng.randrange(1000))]))
    return " ".join(words) + "."


def session_case(
    rng: random.Random, scorer: Any, reference: Torch, rounds: int
) -> tuple[Case, Case]:
    """A solution that grows by one step at a time; and its last step on its own."""
    problem = text(rng, reference, PROBLEM_TOKENS)
    steps = [text(rng, reference, STEP_TOKENS) for _ in range(SESSION_STEPS)]

    def live() -> Scores:
        with scorer.session(problem) as session:
            for step in steps:
                session.add(step)
            return [list(session.scores)]

    def again(score: Callable[[str, list[str]], list[float]]) -> Callable[[], Scores]:
        return lambda: [[score(problem, steps[: n + 1])[-1] for n in range(len(steps))]]

    def by_hand() -> Scores:
        cache = reference.new_cache()
        before = reference.prompt(problem)
        scores = []
        for step in steps:
            ids, reads = reference.steps([step])
            scores += reference.run(before + ids, [len(before) + reads[0]], cache)
            before = []
        return [scores]

    def edge(problem: str, steps: list[str]) -> list[float]:
        return list(scorer.score(problem, steps).scores)

    growing: Ways = {
        "one full pass": lambda: [edge(problem, steps)],
        "session": live,
        "re-scoring": again(edge),
        "transformers, by hand": by_hand,
        "transformers, re-scoring": again(reference.score),
    }
    many = [text(rng, reference, STEP_TOKENS) for _ in range(LONG_TOKENS // STEP_TOKENS - 4)]
    last = text(rng, reference, STEP_TOKENS)
    session = scorer.session(problem)
    for step in many:
        session.add(step)

    late: Ways = {
        "one full pass": lambda: [edge(problem, [*many, last])[-1:]],
        "session": lambda: [session.peek([last])],
    }
    name = f"{SESSION_STEPS} steps of {STEP_TOKENS} tokens"
    return (
        Case(name=name, ways=growing, rounds=rounds),
        Case(name=f"one more step after {session.n_tokens} tokens", ways=late, rounds=rounds),
    )


def best_of_case(
    rng: random.Random, scorer: Any, reference: Torch, count: int, tokens: int, rounds: int
) -> Case:
    """Candidates of one problem that have nothing else in common."""
    problem = text(rng, reference, PROBLEM_TOKENS)
    candidates = [
        [text(rng, reference, STEP_TOKENS + tokens % STEP_TOKENS)]
        + [text(rng, reference, STEP_TOKENS) for _ in range(tokens // STEP_TOKENS - 1)]
        for _ in range(count)
    ]

    def by_hand() -> Scores:
        cache = reference.new_cache()
        prompt = reference.prompt(problem)
        reference.run(prompt, [0], cache)
        found = []
        for candidate in candidates:
            ids, reads = reference.steps(candidate)
            found.append(reference.run(ids, reads, cache))
            cache.crop(-len(ids))
        return found

    ways: Ways = {
        "separate calls": lambda: [list(scorer.score(problem, c).scores) for c in candidates],
        "rank": lambda: [list(c.scores) for c in scorer.rank(problem, candidates).candidates],
        "transformers, by hand": by_hand,
        "transformers, separate": lambda: [reference.score(problem, c) for c in candidates],
    }
    return Case(name=f"best of {count}, {tokens} tokens each", ways=ways, rounds=rounds)


def beam_case(rng: random.Random, scorer: Any, reference: Torch, rounds: int) -> Case:
    """A tree search: each of the best solutions tries several steps, and the best of all go on."""
    from prm_edge import add_many

    problem = text(rng, reference, PROBLEM_TOKENS)
    tries = [
        [text(rng, reference, STEP_TOKENS) for _ in range(BEAM * BEAM)] for _ in range(BEAM_DEPTH)
    ]

    def best(scores: list[float]) -> list[int]:
        return sorted(range(len(scores)), key=lambda index: -scores[index])[:BEAM]

    def live() -> Scores:
        beam = [scorer.session(problem)]
        for steps in tries:
            forks = [session.fork() for session in beam for _ in range(BEAM)]
            found = add_many(list(zip(forks, steps, strict=False)))
            beam = [forks[index] for index in best(found)]
        return [list(session.scores) for session in beam]

    def again() -> Scores:
        beam: list[list[str]] = [[]]
        for steps in tries:
            paths = [path for path in beam for _ in range(BEAM)]
            paths = [[*path, step] for path, step in zip(paths, steps, strict=False)]
            results = [scorer.score(problem, path).scores for path in paths]
            chosen = best([scores[-1] for scores in results])
            beam = [paths[index] for index in chosen]
        return [list(results[index]) for index in chosen]

    return Case(
        name=f"beam of {BEAM}, {BEAM} tries each, depth {BEAM_DEPTH}",
        ways={"re-scoring": again, "forks and add_many": live},
        rounds=rounds,
    )


def measure(case: Case) -> tuple[list[str], float, bool]:
    """Rows of the table, the largest difference from transformers, and whether bits agree."""
    times: dict[str, list[float]] = {name: [] for name in case.ways}
    scores: dict[str, Scores] = {}
    for turn in range(case.rounds):
        names = list(case.ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            scores[name] = case.ways[name]()
            times[name].append(time.process_time() - start)
    first = next(iter(case.ways))
    rows = []
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, times[first], strict=True))
        seconds = statistics.median(taken)
        rows.append(f"| {case.name} | {name} | {seconds:.3f} | {ratio:.2f} | {case.rounds} |")
    flat = {name: [s for row in found for s in row] for name, found in scores.items()}
    away = max(abs(a - b) for one in flat.values() for a, b in zip(one, flat[first], strict=True))
    exact = all(flat[name] == flat[first] for name in flat if "transformers" not in name)
    return rows, away, exact


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--separator", default="\n", help="step separator it was trained with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="REGEX", help="rows to measure")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    from prm_edge import Scorer

    scorer = Scorer.load(arguments.package, device="cpu", threads=1)
    reference = Torch(arguments.checkpoint, arguments.separator)
    rng = random.Random(7)
    warm = text(rng, reference, PROBLEM_TOKENS)
    scorer.score(warm, [warm])
    reference.score(warm, [warm])

    cases = list(session_case(rng, scorer, reference, arguments.rounds))
    for count in CANDIDATES:
        for tokens in CANDIDATE_TOKENS:
            cases.append(best_of_case(rng, scorer, reference, count, tokens, arguments.rounds))
    cases.append(beam_case(rng, scorer, reference, arguments.rounds))
    print("| work | how | CPU time (s) | ratio | rounds |\n|---|---|---:|---:|---:|", flush=True)
    far, exact = 0.0, True
    for case in cases:
        if not re.search(arguments.only, case.name):
            continue
        rows, away, same = measure(case)
        print("\n".join(rows), flush=True)
        far, exact = max(far, away), exact and same
    print(f"\nprm-edge's own ways differ by exactly 0: {exact}; transformers by at most {far:.1e}")
    raise SystemExit(0 if exact else 1)


if __name__ == "__main__":
    main()

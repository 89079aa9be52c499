"""What running each token once is worth: sessions and candidates, beside transformers.

    python benchmarks/reuse.py --package PACKAGE --checkpoint CHECKPOINT [--plot COST.png]

The checkpoint is the one that the package was exported from: a Llama or Qwen2 token classifier
trained with TRL. Every way scores the same texts in this process, in turns, in fp32 on one thread.
Times are CPU seconds, which other work on the machine disturbs least: a time is the median of its
rounds, a ratio the median of the rounds' ratios to the first way.
Scores are compared too: those of prm-edge must be equal to the bit, or this exits with status 1.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import re
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

PROBLEM_TOKENS = 150
STEP_TOKENS = 30
SESSION_STEPS = 12
LONG_TOKENS = 1000
BEAM, BEAM_DEPTH = 4, 8
LENGTHS = (100, 200, 400, 800, 1600)  # of what stands before one more step
THREADS = 16
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

    def again(score: Callable[[str, list[str]], list[float]]) -> Callable[[], Scores]:
        def search() -> Scores:
            beam: list[list[str]] = [[]]
            for steps in tries:
                paths = [path for path in beam for _ in range(BEAM)]
                paths = [[*path, step] for path, step in zip(paths, steps, strict=False)]
                results = [score(problem, path) for path in paths]
                chosen = best([scores[-1] for scores in results])
                beam = [paths[index] for index in chosen]
            return [results[index] for index in chosen]

        return search

    def by_hand() -> Scores:
        prompt = reference.prompt(problem)
        cache = reference.new_cache()
        reference.run(prompt, [0], cache)
        beam: list[tuple[Any, list[float]]] = [(cache, [])]
        for steps in tries:
            forks = [
                (copy.deepcopy(cache), list(scores)) for cache, scores in beam for _ in range(BEAM)
            ]
            for (cache, scores), step in zip(forks, steps, strict=False):
                ids, reads = reference.steps([step])
                scores += reference.run(ids, reads, cache)
            beam = [forks[index] for index in best([scores[-1] for _, scores in forks])]
        return [scores for _, scores in beam]

    ways: Ways = {
        "re-scoring": again(lambda p, s: list(scorer.score(p, s).scores)),
        "forks and add_many": live,
        "transformers, by hand": by_hand,
        "transformers, re-scoring": again(reference.score),
    }
    name = f"beam of {BEAM}, {BEAM} tries each, depth {BEAM_DEPTH}"
    return Case(name=name, ways=ways, rounds=rounds)


def length_case(
    rng: random.Random, scorer: Any, reference: Torch, tokens: int, rounds: int
) -> Case:
    """One more step after so many tokens."""
    problem = text(rng, reference, min(tokens, PROBLEM_TOKENS) - STEP_TOKENS // 2)
    session = scorer.session(problem)
    steps: list[str] = []
    while not steps or session.n_tokens < tokens:
        steps.append(text(rng, reference, STEP_TOKENS))
        session.add(steps[-1])
    last = text(rng, reference, STEP_TOKENS)
    cache = reference.new_cache()
    ids, _ = reference.steps(steps)
    reference.run(reference.prompt(problem) + ids, [0], cache)

    def by_hand() -> Scores:
        ids, reads = reference.steps([last])
        found = reference.run(ids, reads, cache)
        cache.crop(-len(ids))
        return [found]

    ways: Ways = {
        "one full pass": lambda: [list(scorer.score(problem, [*steps, last]).scores)[-1:]],
        "session": lambda: [session.peek([last])],
        "transformers, by hand": by_hand,
        "transformers, re-scoring": lambda: [reference.score(problem, [*steps, last])[-1:]],
    }
    return Case(name=f"a step after {session.n_tokens} tokens", ways=ways, rounds=rounds)


def many_case(rng: random.Random, scorer: Any, reference: Torch, tokens: int, rounds: int) -> Case:
    """Records that have nothing in common, about a third of their tokens apart in length."""
    items = [
        (text(rng, reference, tokens // 2), [text(rng, reference, tokens // 2 + rng.randrange(5))])
        for _ in range(32)
    ]
    ways: Ways = {
        "one by one": lambda: [list(scorer.score(*item).scores) for item in items],
        "score_many": lambda: [list(found.scores) for found in scorer.score_many(items)],
    }
    return Case(name=f"32 records of about {tokens} tokens", ways=ways, rounds=rounds)


def prefix_case(
    rng: random.Random, scorer: Any, cached: Any, reference: Torch, rounds: int
) -> Case:
    """The same problem in calls of their own."""
    problem = text(rng, reference, PROBLEM_TOKENS)
    items = [[text(rng, reference, STEP_TOKENS)] for _ in range(8)]
    ways: Ways = {
        "no prefix cache": lambda: [list(scorer.score(problem, s).scores) for s in items],
        "prefix cache of 64 MB": lambda: [list(cached.score(problem, s).scores) for s in items],
    }
    # once only: a second round would find everything
    return Case(name="8 calls, one problem", ways=ways, rounds=1)


def threads_case(rng: random.Random, scorer: Any, reference: Torch, rounds: int) -> Case:
    """The same work by one thread and by many at once."""
    work = [
        (text(rng, reference, STEP_TOKENS), [text(rng, reference, STEP_TOKENS) for _ in range(3)])
        for _ in range(THREADS)
    ]

    def at_once() -> Scores:
        found: list[list[float]] = [[]] * len(work)

        def one(index: int) -> None:
            with scorer.session(work[index][0]) as session:
                for step in work[index][1]:
                    session.add(step)
                found[index] = list(session.scores)

        threads = [threading.Thread(target=one, args=(index,)) for index in range(len(work))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def in_turn() -> Scores:
        found = []
        for problem, steps in work:
            with scorer.session(problem) as session:
                for step in steps:
                    session.add(step)
                found.append(list(session.scores))
        return found

    ways: Ways = {"one thread": in_turn, f"{THREADS} threads": at_once}
    return Case(name=f"{THREADS} sessions of 3 steps", ways=ways, rounds=rounds)


def plot(medians: dict[str, dict[str, float]], lengths: dict[str, int], out: Path) -> None:
    """Cost of one more step against the length of what stands before it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for way in next(iter(medians.values())):
        points = sorted((lengths[name], found[way]) for name, found in medians.items())
        axes.plot(*zip(*points, strict=True), marker="o", label=way)
    axes.set(
        xlabel="tokens before the step",
        ylabel="CPU time of one more step (s)",
        title=f"One more step of {STEP_TOKENS} tokens, fp32, one thread",
        yscale="log",
    )
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def measure(case: Case) -> tuple[dict[str, float], list[str], float, bool]:
    """Median times, rows of the table, the largest difference, and whether our own bits agree."""
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
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, times[first], strict=True))
        rows.append(f"| {case.name} | {name} | {medians[name]:.3f} | {ratio:.2f} | {case.rounds} |")
    flat = {name: [s for row in found for s in row] for name, found in scores.items()}
    away = max(abs(a - b) for one in flat.values() for a, b in zip(one, flat[first], strict=True))
    exact = all(flat[name] == flat[first] for name in flat if "transformers" not in name)
    return medians, rows, away, exact


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--separator", default="\n", help="step separator it was trained with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="REGEX", help="works to measure")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="cost against length; matplotlib")
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

    # name -> how to make it, so that only what is measured is made
    rounds = arguments.rounds
    makers: dict[str, Callable[[], list[Case]]] = {
        "session": lambda: list(session_case(rng, scorer, reference, rounds)),
        **{
            f"best of {count}, {tokens}": partial(
                lambda c, t: [best_of_case(rng, scorer, reference, c, t, rounds)], count, tokens
            )
            for count in CANDIDATES
            for tokens in CANDIDATE_TOKENS
        },
        "beam": lambda: [beam_case(rng, scorer, reference, rounds)],
        "many": lambda: [many_case(rng, scorer, reference, n, rounds) for n in (16, 32, 64, 128)],
        "prefix": lambda: [
            prefix_case(
                rng,
                scorer,
                Scorer.load(arguments.package, device="cpu", threads=1, prefix_cache_mb=64),
                reference,
                rounds,
            )
        ],
        "threads": lambda: [threads_case(rng, scorer, reference, rounds)],
        "length": lambda: [length_case(rng, scorer, reference, n, rounds) for n in LENGTHS],
    }
    print("| work | how | CPU time (s) | ratio | rounds |\n|---|---|---:|---:|---:|", flush=True)
    far, exact = 0.0, True
    by_length: dict[str, dict[str, float]] = {}
    for name, make in makers.items():
        if not re.search(arguments.only, name):
            continue
        for case in make():
            medians, rows, away, same = measure(case)
            print("\n".join(rows), flush=True)
            far, exact = max(far, away), exact and same
            if name == "length":
                by_length[case.name] = medians
    if arguments.plot and by_length:
        lengths = {name: int(name.split()[3]) for name in by_length}
        plot(by_length, lengths, arguments.plot)
    print(f"\nprm-edge's own ways differ by exactly 0: {exact}; transformers by at most {far:.1e}")
    raise SystemExit(0 if exact else 1)


if __name__ == "__main__":
    main()

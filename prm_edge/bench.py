"""Measure a package on this machine: cold start and memory in fresh processes, speed in this one.

In: a loaded scorer, or the options to load one. Out: figures, each a median beside what it is the
median of. Records are made of the package's own stored cases, so that no text is needed. Memory is
what the system says: Linux tells mapped files apart, macOS the peak alone, others nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from prm_edge_runtime.scorer import Scorer

LENGTHS: Final = (64, 256, 1024)  # tokens of a record
LEAST_RUNS: Final = 3
MOST_RUNS: Final = 50
# /proc/self/status -> what we call it
MEMORY: Final = {"VmRSS": "resident", "RssFile": "mapped", "VmHWM": "peak"}
CHILD: Final = "from prm_edge.bench import child; child()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A solution of about a wanted length."""

    problem: str
    steps: tuple[str, ...]
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of several runs of the same work."""

    median_s: float
    fastest_s: float
    slowest_s: float
    runs: int


def timing(seconds: Sequence[float]) -> Timing:
    """Sum up what was measured."""
    return Timing(
        median_s=statistics.median(seconds),
        fastest_s=min(seconds),
        slowest_s=max(seconds),
        runs=len(seconds),
    )


def repeat(work: Callable[[], object], budget_s: float) -> Timing:
    """Time ``work`` again and again: at least 3 times, at most 50, about ``budget_s`` in all.

    Once before, unmeasured: the first run allocates what the others find.
    """
    work()
    seconds: list[float] = []
    while len(seconds) < LEAST_RUNS or (sum(seconds) < budget_s and len(seconds) < MOST_RUNS):
        start_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start_s)
    return timing(seconds)


def records(scorer: Scorer, lengths: Sequence[int]) -> list[Record]:
    """The stored cases' steps over and over, up to each length that the package takes.

    A length too short for the problem and one step is left out.
    """
    from prm_edge_runtime.encoding import RecipeEncoder
    from prm_edge_runtime.manifest import SELFTEST_NAME, TOKENIZER_NAME
    from prm_edge_runtime.selftest import load_cases

    encoder = RecipeEncoder(scorer.package.read_bytes(TOKENIZER_NAME), scorer.recipe)
    cases = [c for c in load_cases(scorer.package.read_bytes(SELFTEST_NAME)) if c.steps]
    problem = cases[0].problem
    steps = [step for case in cases for step in case.steps if step.strip()]
    whole = scorer.recipe.split.separator is None  # a solution is one step

    def made(count: int) -> Record:
        taken = [steps[at % len(steps)] for at in range(count)]
        given = ("\n".join(taken),) if whole else tuple(taken)
        tokens = len(encoder.encode(problem, given).ids)
        return Record(problem=problem, steps=given, tokens=tokens)

    found: dict[int, Record] = {}
    for length in sorted({min(length, scorer.max_tokens) for length in lengths}):
        # a step has a token at least; the most steps whose record is no longer than the length
        most = bisect_right(range(1, length + 1), length, key=lambda count: made(count).tokens)
        if most:
            found[most] = made(most)
    return list(found.values())


def speed(scorer: Scorer, lengths: Sequence[int], budget_s: float) -> list[dict[str, Any]]:
    """Tokens per second of whole records, by length."""
    rows = []
    for record in records(scorer, lengths):
        took = repeat(lambda r=record: scorer.score(r.problem, r.steps), budget_s)  # type: ignore[misc]
        rows.append(
            {
                "tokens": record.tokens,
                "steps": len(record.steps),
                "tokens_per_s": round(record.tokens / took.median_s, 1),
                **_rounded(took),
            }
        )
    return rows


def session_steps(scorer: Scorer, record: Record, budget_s: float) -> dict[str, Any]:
    """Seconds until the score of each step of a session that goes through a record.

    At most 20 steps, as a learner writes them.
    """
    steps = record.steps[:20]
    seconds: list[float] = []
    starts: list[float] = []
    tokens = n_run = 0
    incremental = True
    for turn in count():
        start_s = time.perf_counter()
        with scorer.session(record.problem) as session:
            started_s = time.perf_counter() - start_s
            prompt = session.n_tokens_run
            added = []
            for step in steps:
                start_s = time.perf_counter()
                session.add(step)
                added.append(time.perf_counter() - start_s)
            tokens, incremental = session.n_tokens, session.incremental
            n_run = session.n_tokens_run - prompt
        if turn == 0:
            continue  # the first run allocates
        starts.append(started_s)
        seconds += added
        if turn >= LEAST_RUNS and (sum(seconds) >= budget_s or turn >= MOST_RUNS):
            break
    return {
        "incremental": incremental,
        "steps": len(steps),
        "tokens": tokens,
        "tokens_run_per_step": round(n_run / len(steps), 1),
        "start_s": round(statistics.median(starts), 6),
        **_rounded(timing(seconds)),
    }


def cold_start(options: dict[str, Any], starts: int) -> dict[str, Any]:
    """Start fresh processes that load the package and score one stored case.

    ``options``: those of :meth:`Scorer.load`. The disk's cache is as it is: the first process may
    have found less in it than the others.

    Raises:
        PrmEdgeError: when a process fails, with what it said.
    """
    from prm_edge_runtime.errors import EngineError

    rows = []
    for _ in range(starts):
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            input=json.dumps(options),
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise EngineError(
                f"the process that was to load the package ended with {done.returncode}: {said}"
            )
        row = json.loads(done.stdout.splitlines()[-1])
        row["import_s"] = row.pop("imported_at") - began  # the interpreter's own start with it
        row["total_s"] = row["import_s"] + row["load_s"] + row["first_score_s"]
        rows.append(row)
    medians = {
        key: _median([row[key] for row in rows]) for key in rows[0] if rows[0][key] is not None
    }
    return {"starts": starts, "first_total_s": round(rows[0]["total_s"], 4), **medians}


def child() -> None:
    """In a fresh process: options on stdin, figures on stdout."""
    options = json.load(sys.stdin)
    from prm_edge_runtime.manifest import SELFTEST_NAME
    from prm_edge_runtime.scorer import Scorer
    from prm_edge_runtime.selftest import load_cases

    imported_at, imported_s = time.time(), time.perf_counter()
    before = memory()
    with Scorer.load(**options) as scorer:
        loaded_s = time.perf_counter()
        loaded = memory()
        case = next(c for c in load_cases(scorer.package.read_bytes(SELFTEST_NAME)) if c.steps)
        scorer.score(case.problem, case.steps)
        scored_s = time.perf_counter()
        scored = memory()
    figures = {
        "imported_at": imported_at,
        "load_s": loaded_s - imported_s,
        "first_score_s": scored_s - loaded_s,
        "resident_before_bytes": before.get("resident"),
        "resident_loaded_bytes": loaded.get("resident"),
        "mapped_loaded_bytes": loaded.get("mapped"),
        "resident_scored_bytes": scored.get("resident"),
        "peak_bytes": scored.get("peak"),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def memory(source: Path = Path("/proc/self/status")) -> dict[str, int]:
    """This process's memory in bytes, as far as the system tells; see :data:`MEMORY`."""
    try:
        lines = source.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return _peak_alone()
    found = {}
    for line in lines:
        key, _, value = line.partition(":")
        if key in MEMORY and value.split()[-1:] == ["kB"]:
            found[MEMORY[key]] = 1024 * int(value.split()[0])
    return found


def _peak_alone() -> dict[str, int]:
    if sys.platform == "win32":
        return {}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak": peak if sys.platform == "darwin" else 1024 * peak}


def measure(
    scorer: Scorer,
    options: dict[str, Any],
    *,
    lengths: Sequence[int] = LENGTHS,
    budget_s: float,
    starts: int,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Everything that ``prm-edge bench`` prints."""
    say("cold start")
    cold = cold_start(options, starts) if starts else None
    say("whole records")
    rows = speed(scorer, lengths, budget_s)
    say("a session")
    longest = records(scorer, lengths)[-1:]
    weights = [
        scorer.package.manifest.files[path].size
        for path in scorer.package.variant(scorer.variant).files
    ]
    return {
        "package": scorer.package.manifest.name,
        "digest": scorer.package.short,
        "variant": scorer.variant,
        "device": scorer.device,
        "variant_bytes": sum(weights),
        "cores": os.cpu_count(),
        "cold_start": cold,
        "records": rows,
        "session": session_steps(scorer, longest[0], budget_s) if longest else None,
    }


def _median(values: Sequence[float]) -> float | int:
    middle = statistics.median(values)
    return int(middle) if all(isinstance(value, int) for value in values) else round(middle, 4)


def _rounded(took: Timing) -> dict[str, float | int]:
    return {
        "median_s": round(took.median_s, 6),
        "fastest_s": round(took.fastest_s, 6),
        "slowest_s": round(took.slowest_s, 6),
        "runs": took.runs,
    }

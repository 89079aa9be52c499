"""What a run costs by its length: the measurement behind runtime/prm_edge_runtime/plan.py.

    python benchmarks/plan.py --package PACKAGE

For each length: CPU time of one row, and of several rows in one run over that of as many runs.
Then long records through their cache in pieces, over one run. Medians of paired rounds, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROWS = (2, 4, 8)
LENGTHS = (8, 16, 24, 32, 48, 64, 128)
LONG = (512, 1000)
MAX_TOKENS = 1024  # of one run


def ratio(one: Callable[[], object], other: Callable[[], object], rounds: int) -> float:
    """How much longer the other takes, in turns."""
    ratios = []
    for turn in range(rounds + 1):
        times = {}
        for way in (one, other) if turn % 2 else (other, one):
            start = time.process_time()
            way()
            times[way] = time.process_time() - start
        ratios.append(times[other] / times[one])
    return statistics.median(ratios[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    from prm_edge import Scorer
    from prm_edge_runtime.engine import RUN_TOKENS, DecoderEngine

    scorer = Scorer.load(arguments.package, device="cpu", threads=1)
    engine = scorer._engine
    assert isinstance(engine, DecoderEngine)
    rng = np.random.default_rng(0)

    def row(length: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(2, 300, length), np.array([length - 1])

    print(f"| tokens | {' | '.join(f'{count} rows' for count in ROWS)} | {ROWS[-1]}, by T + 8 |")
    print("|---:|" + "---:|" * (len(ROWS) + 1))
    for length in LENGTHS:
        cells = []
        for count in ROWS:
            if count * length > MAX_TOKENS:
                cells.append("")
                continue
            rows = [row(length) for _ in range(count)]
            found = ratio(
                lambda r=rows: [engine.run_rows([one]) for one in r],
                lambda r=rows: engine.run_rows(r),
                arguments.rounds,
            )
            cells.append(f"{found:.2f}")
        model = (8 + ROWS[-1] * length) / (ROWS[-1] * (8 + length))
        print(f"| {length} | {' | '.join(cells)} | {model:.2f} |", flush=True)
    print(f"\n| tokens | in pieces of {RUN_TOKENS}, over one run |\n|---:|---:|")
    for length in LONG:
        if length <= scorer.max_tokens:
            one = row(length)
            pieces = ratio(
                lambda r=one: engine.run_rows([r]), lambda r=one: engine.run(*r), arguments.rounds
            )
            print(f"| {length} | {pieces:.2f} |", flush=True)


if __name__ == "__main__":
    main()

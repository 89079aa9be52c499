"""How long, and at what price: measured seconds of one core for each step, and the arithmetic.

    python benchmarks/sizing.py RECORDS [-m PACKAGE] [--records 100] [--steps 1e6 1e9]
        [--cores 64] [--price-per-core-hour 0.04]

RECORDS: JSON lines as ``prm-edge score`` reads them, gzipped or not; the first ``--records`` are
scored on one thread after a warm-up, all that the job does counted, in processor time. What a
cluster of so many cores takes is that, times the steps, over the cores and over the share of the
time that they score (``--busy``).
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

from prm_edge import Scorer
from prm_edge.inputs import read_source
from prm_edge.jobs import score_records

HOUR_S = 3600.0


def measure(path: Path, package: str | None, records: int) -> dict[str, float]:
    with Scorer.load(package, device="cpu", threads=1, force=True) as scorer:
        with path.open("rb") as stream:
            lines = list(islice(read_source(stream, path.name), records))
        list(score_records(scorer, lines[:5], ahead=True))
        start = time.process_time()
        found = list(score_records(scorer, lines, ahead=True))
        seconds = time.process_time() - start
    steps = sum(len(line.data.get("scores", ())) for line in found)
    tokens = sum(line.n_tokens for line in found)
    return {"records": len(found), "steps": steps, "tokens": tokens, "seconds": seconds}


def clock(seconds: float) -> str:
    for unit, size in (("days", 24 * HOUR_S), ("hours", HOUR_S), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("input", type=Path)
    parser.add_argument("-m", "--package")
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--steps", type=float, nargs="+", default=[1e6, 1e9])
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--busy", type=float, default=0.9)
    parser.add_argument("--price-per-core-hour", type=float, default=0.04)
    given = parser.parse_args()
    found = measure(given.input, given.package, given.records)
    per_step = found["seconds"] / found["steps"]
    print(
        f"{found['records']:.0f} records, {found['steps']:.0f} steps, {found['tokens']:.0f} tokens "
        f"in {found['seconds']:.2f} s of one core: {found['tokens'] / found['seconds']:.0f} "
        f"tokens/s, {found['tokens'] / found['steps']:.1f} tokens a step, {1e3 * per_step:.2f} ms "
        "of a core a step"
    )
    for steps in given.steps:
        core_hours = steps * per_step / HOUR_S / given.busy
        print(
            f"{steps:.0e} steps: {steps:.0e} x {1e3 * per_step:.2f} ms / {given.busy} = "
            f"{core_hours:,.1f} core-hours; {given.cores} cores: "
            f"{clock(core_hours * HOUR_S / given.cores)}; "
            f"{core_hours * given.price_per_core_hour:,.2f} at {given.price_per_core_hour} an hour"
        )


if __name__ == "__main__":
    main()

"""What a job costs beyond the engine: memory that does not grow, and the share of time.

    python benchmarks/jobs.py memory  [-m PACKAGE] [--records 200000]
    python benchmarks/jobs.py overhead [-m PACKAGE] [--records 200]

``memory``: peak resident memory of ``prm-edge score`` on many short records against 2,000, each in
a process of its own; ``--stub`` puts the engine away, so that only the job is left (for a slow
machine). ``overhead``: wall and processor time of a whole run in this process against the time
spent in the scorer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHILD = """
import resource, sys
import prm_edge_runtime.engine as engine
if sys.argv.pop(1) == "stub":
    import numpy as np
    def run(self, ids, reads):
        return np.zeros((len(reads), self._logits), dtype=np.float32)
    engine.DecoderEngine.run = run
from prm_edge.cli import cli
try:
    cli(sys.argv[1:], standalone_mode=True)
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def write_records(path: Path, count: int, steps: int) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            made = [f"{number} + {step} = {number + step}" for step in range(steps)]
            record = {"id": f"r{number}", "problem": f"Add to {number}.", "steps": made}
            stream.write(json.dumps(record) + "\n")


def peak_kib(source: Path, out: Path, package: list[str], stub: bool) -> int:
    arguments = ["score", str(source), "-o", str(out), "--quiet", *package]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "stub" if stub else "real", *arguments],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(done.stderr.split()[-1])


def memory(package: list[str], records: int, stub: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        peaks = {}
        for count in (2000, records):
            source = Path(folder) / f"{count}.jsonl"
            write_records(source, count, 2)
            peaks[count] = peak_kib(source, Path(folder) / f"{count}.out", package, stub) / 1024
            print(f"{count} records: {peaks[count]:.1f} MiB")
        print(f"difference: {peaks[records] - peaks[2000]:.1f} MiB")


def overhead(package: list[str], records: int, steps: int) -> None:
    from prm_edge.cli import cli, score
    from prm_edge_runtime.scorer import Scorer

    spent = {"wall": 0.0, "cpu": 0.0}
    inside: list[bool] = []  # one of them may call another

    def timed(method: Any) -> Any:
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            if inside:
                return method(self, *arguments, **options)
            inside.append(True)
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return method(self, *arguments, **options)
            finally:
                inside.clear()
                spent["wall"] += time.perf_counter() - wall
                spent["cpu"] += time.thread_time() - cpu

        return call

    for name in ("score", "score_many", "rank"):
        setattr(Scorer, name, timed(getattr(Scorer, name)))
    loaded = Scorer.load(*package[1:])
    close, Scorer.close = Scorer.close, lambda self: None  # type: ignore[method-assign]
    score.load_scorer = lambda *a, **k: loaded  # what loading costs is not what a job costs
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        for count in (1, records):  # the first for the imports
            write_records(source, count, steps)
            spent.update(wall=0.0, cpu=0.0)
            wall, cpu = time.perf_counter(), time.process_time()
            arguments = ["score", str(source), "-o", str(Path(folder) / f"{count}.out"), "--quiet"]
            cli(arguments, standalone_mode=False)
            whole = (time.perf_counter() - wall, time.process_time() - cpu)
    close(loaded)
    beyond = (whole[0] - spent["wall"], whole[1] - spent["cpu"])
    print(
        f"{records} records of {steps} steps: engine {spent['wall']:.2f} s wall, "
        f"{spent['cpu']:.2f} s processor; beyond it {beyond[0]:.2f} s wall "
        f"({beyond[0] / spent['wall']:.1%}), {beyond[1]:.2f} s processor "
        f"({beyond[1] / spent['cpu']:.1%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["memory", "overhead"])
    parser.add_argument("-m", "--package")
    parser.add_argument("--records", type=int)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--stub", action="store_true")
    arguments = parser.parse_args()
    package = [] if arguments.package is None else ["-m", arguments.package]
    if arguments.what == "memory":
        memory(package, arguments.records or 200_000, arguments.stub)
    else:
        overhead(package, arguments.records or 200, arguments.steps)


if __name__ == "__main__":
    main()

"""Kill a job of a real package at random instants, resume it, compare with one run.

    python benchmarks/kills.py INPUT [--kills 30] [-m PACKAGE]

Every kill is a SIGKILL at an instant drawn from the length of a whole run. Prints how many records
each run added, and fails unless the output is the same to the byte and every kill hit.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(source: Path, out: Path, package: str | None) -> list[str]:
    named = [] if package is None else ["-m", package]
    arguments = ["score", str(source), "-o", str(out), "--resume", "--quiet", *named]
    return [sys.executable, "-m", "prm_edge", *arguments]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("-m", "--package")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, out = Path(folder) / "whole.jsonl", Path(folder) / "out.jsonl"
        start_s = time.monotonic()
        subprocess.run(command(arguments.input, whole, arguments.package), check=True)
        whole_s = time.monotonic() - start_s
        partial = out.with_name(out.name + ".partial")
        killed = 0
        while killed < arguments.kills:
            before = lines(partial)
            process = subprocess.Popen(command(arguments.input, out, arguments.package))
            # early enough that some of the work is left for the next
            time.sleep(chance.uniform(0, min(whole_s, 2.5 * whole_s / arguments.kills + 2)))
            process.send_signal(signal.SIGKILL)
            if process.wait() == 0:
                print("the job was done before every kill: begin again")
                out.unlink(missing_ok=True)
                out.with_name(out.name + ".job.json").unlink(missing_ok=True)
                continue
            if process.returncode != -signal.SIGKILL:
                sys.exit("a run failed by itself: see above")
            killed += 1
            print(f"kill {killed}: {before} records, then {lines(partial)}")
        subprocess.run(command(arguments.input, out, arguments.package), check=True)
        same = out.read_bytes() == whole.read_bytes()
        print(f"{killed} kills, one run takes {whole_s:.1f} s, identical to the byte: {same}")
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()

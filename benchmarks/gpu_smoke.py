"""Does CUDA work here, are its scores torch's, and how fast is a first run? About five minutes.

    python benchmarks/gpu_smoke.py [--device cpu] [--json OUT]

Installs nothing. Needs a checkout, prm-edge with its extras gpu and export, and torch (its CUDA
build for a speed beside it). It makes a random model of 0.4 billion parameters, exports it for
CUDA in fp16, bf16 and int4 (the proof runs on the GPU), lets `prm-edge doctor` look at each,
compares 40 records with torch in float32 and sessions with CUDA graphs with those without, and
times a session's step, a solution and 32 ragged ones. The table comes last. Exit status 1 when
anything is wrong; without a GPU it says so in one sentence.
``--device cpu`` runs the same road on the CPU with a small model, to test the script itself.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gpu_cases import (
    Torch,
    cases,
    largest_dp,
    machine,
    make_checkpoint,
    median_s,
    no_gpu,
    record,
    step_case,
    step_ids,
)
from gpu_package import some_texts
from shapes import SHAPES

from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_export.proof import BUDGETS
from prm_edge_runtime import CudaOptions, Scorer

SHAPE_OF: Final = {"cuda": SHAPES["0.5b"], "cpu": SHAPES["tiny"]}
# what the export makes, by device: (target, precision)
MADE: Final = {
    "cuda": (("cpu", "fp32"), ("cuda", "fp16"), ("cuda", "bf16"), ("cuda", "int4")),
    "cpu": (("cpu", "fp32"), ("cuda", "fp16"), ("cuda", "int4")),
}
VERIFIED: Final = 30
COMPARED: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Of one engine: seconds."""

    name: str
    step_s: float
    solution_s: float
    many_s: float


def build(root: Path, device: str) -> tuple[Path, Path, list[str]]:
    """Checkpoint, package, and the names of its variants."""
    given = SHAPE_OF[device].config()
    del given["vocab_size"]  # its tokenizer's
    checkpoint, out = make_checkpoint(root / "model", **given), root / "package"
    verify = some_texts(root / "verify.jsonl", VERIFIED)
    for index, (target, precision) in enumerate(MADE[device]):
        options = ExportOptions(
            checkpoint=checkpoint,
            out=out,
            separator="\n",
            target=target,
            precision=precision,
            verify=verify,
            add=index > 0,
            # of 30 solutions one at the threshold is 3%; the comparison below judges
            allow_drift=precision in ("bf16", "int4"),
        )
        report = export(options).report
        proof = report["proof"]
        print(
            f"exported {report['variant']}: max |dp| {proof['max_abs_dp']:.2e}; checked on "
            f"{proof.get('checked', 'the graph itself, on the CPU')}",
            flush=True,
        )
    return checkpoint, out, [f"{target}-{precision}" for target, precision in MADE[device]]


def doctor(package: Path, variant: str, device: str) -> bool:
    """Run prm-edge doctor as a user would."""
    command = [sys.executable, "-m", "prm_edge", "doctor", str(package)]
    done = subprocess.run([*command, "--device", device, "--variant", variant], check=False)
    return done.returncode == 0


def compare(scorer: Scorer, reference: Torch, precision: str) -> bool:
    """Scores, sessions, forks and batches against torch in float32."""
    rng = random.Random(1)
    records = [
        record(scorer, rng, prompt=rng.randint(10, 80), steps=[rng.randint(5, 60)] * 4)
        for _ in range(COMPARED)
    ]
    largest, mean = largest_dp(scorer, reference, records)
    alone = [scorer.score(one.problem, one.steps).scores for one in records]
    together = scorer.score_many([(one.problem, one.steps) for one in records])
    batch = max(_apart(a, b.scores) for a, b in zip(alone, together, strict=True))
    sessions = 0.0
    for one, scores in zip(records[:10], alone, strict=False):
        session = scorer.session(one.problem)
        session.add(one.steps[0])
        fork = session.fork()
        got = [fork.add(step) for step in one.steps[1:]]
        session.peek([one.steps[-1]])
        sessions = max(sessions, _apart(scores[1:], got))
    most = BUDGETS[precision].at_most.get("max_abs_dp", float("inf"))
    usual = BUDGETS[precision].at_most.get("mean_abs_dp", float("inf"))
    good = (
        largest <= most and mean <= usual and max(batch, sessions) <= BUDGETS[precision].tolerance
    )
    print(
        f"{'ok' if good else 'WRONG'}  {scorer.variant} on {scorer.device}: against torch float32 "
        f"max |dp| {largest:.2e}, mean {mean:.2e}; batch against one by one {batch:.2e}; sessions "
        f"and forks against one pass {sessions:.2e}",
        flush=True,
    )
    return good


def _apart(one: Any, other: Any) -> float:
    return float(np.abs(np.array(one, dtype=float) - np.array(other, dtype=float)).max())


def compare_graphs(package: Path, variant: str) -> bool:
    """Sessions whose steps are replayed as CUDA graphs against sessions as they are."""
    rng = random.Random(4)
    plain = Scorer.load(package, device="cuda", variant=variant)
    graphs = Scorer.load(package, device="cuda", variant=variant, cuda=CudaOptions(graphs=True))
    largest = 0.0
    with plain, graphs:
        for _ in range(10):
            one = record(plain, rng, prompt=rng.randint(10, 300), steps=[rng.randint(3, 60)] * 8)
            expected = plain.score(one.problem, one.steps).scores
            session = graphs.session(one.problem)
            found = [session.add(step) for step in one.steps[:5]]
            fork = session.fork()  # another's keys and values are laid into the same memory
            found += [fork.add(step) for step in one.steps[5:]]
            session.undo(2)
            again = [session.add(step) for step in one.steps[3:]]
            largest = max(largest, _apart(expected, found), _apart(expected[3:], again))
        tolerance = BUDGETS[plain.package.variant(variant).precision].tolerance
    good = largest <= tolerance
    print(
        f"{'ok' if good else 'WRONG'}  {variant} with graphs=True: sessions, forks and undo "
        f"against one pass without {largest:.2e}",
        flush=True,
    )
    return good


def timed(scorer: Scorer, rounds: int, name: str = "") -> Row:
    """prm-edge's row."""
    given = cases(scorer)
    pairs = [(r.problem, r.steps) for r in given.many]
    return Row(
        name=f"prm-edge {scorer.variant} on {scorer.device}{name}",
        step_s=median_s(step_case(scorer, given.long), rounds),
        solution_s=median_s(lambda: scorer.score(given.one.problem, given.one.steps), rounds),
        many_s=median_s(lambda: scorer.score_many(pairs), rounds),
    )


def timed_torch(model: Torch, name: str, scorer: Scorer, rounds: int) -> Row:
    """The same for torch."""
    given = cases(scorer)
    return Row(
        name=name,
        step_s=median_s(model.stepper(*step_ids(given.long)), rounds),
        solution_s=median_s(lambda: model.solution(given.one), rounds),
        many_s=median_s(lambda: model.many(given.many), rounds),
    )


def table(rows: list[Row], scorer: Scorer) -> str:
    """Markdown."""
    given = cases(scorer)
    one, many = given.one, given.many
    context, step = step_ids(given.long)
    lengths = [len(r.ids) for r in many]
    tokens = sum(lengths)
    lines = [
        f"| | step of {len(step)} tokens at {len(context)}, ms "
        f"| solution of {len(one.ids)} tokens, ms "
        f"| {len(many)} solutions of {min(lengths)} to {max(lengths)} tokens, tokens/s |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row.name} | {1000 * row.step_s:.2f} | {1000 * row.solution_s:.2f} | "
        f"{tokens / row.many_s:,.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    device: str = arguments.device
    started = time.perf_counter()
    if device == "cuda":
        reason = no_gpu()
        if reason is not None:
            print(f"no GPU that onnxruntime can use here: {reason}", file=sys.stderr)
            return 1
    print(machine(device), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, package, variants = build(Path(folder), device)
        measured = [name for name in variants if name.startswith("cuda")]
        looked = [doctor(package, name, device) for name in measured]  # every one, even so
        good = all(looked)
        reference = Torch.of(checkpoint, "cpu", torch.float32)
        rows = []
        for name in measured if device == "cuda" else variants:
            with Scorer.load(package, device=device, variant=name) as scorer:
                good &= compare(scorer, reference, scorer.package.variant(name).precision)
                rows.append(timed(scorer, arguments.rounds))
            if device == "cuda":
                good &= compare_graphs(package, name)
                graphs = CudaOptions(graphs=True)
                with Scorer.load(package, device=device, variant=name, cuda=graphs) as scorer:
                    rows.append(timed(scorer, arguments.rounds, ", graphs"))
        with Scorer.load(package, device="cpu", variant="cpu-fp32") as scorer:
            if device == "cpu":
                rows.append(timed_torch(reference, "torch fp32 on cpu", scorer, arguments.rounds))
            elif torch.cuda.is_available():
                model = Torch.of(checkpoint, "cuda", torch.bfloat16)
                name = "torch bf16 eager, SDPA, on cuda"
                rows.append(timed_torch(model, name, scorer, arguments.rounds))
            shape = SHAPE_OF[device]
            print(
                f"\n{machine(device)}; random weights, {shape.layers} layers of "
                f"{shape.hidden}; {time.perf_counter() - started:.0f} s so far"
            )
            print(table(rows, scorer))
    if arguments.json:
        found = {
            "machine": machine(device),
            "good": good,
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print("all good" if good else "something is WRONG, see above")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

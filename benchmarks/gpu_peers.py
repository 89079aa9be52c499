"""How fast is prm-edge on a GPU beside torch, how near to what the card can do, in what memory?

    python benchmarks/gpu_peers.py [--shapes 0.5b 1.5b 7b] [--minutes 10] [--json OUT]

Made for one run of ten minutes on a GPU machine; installs nothing. Packages of each shape are
written on the spot in fp16, bf16 and int4, with random weights (a small vocabulary: no score
depends on it) that are the same in all layers, so that a 7B takes as long as writing it, and their
scores are compared with torch's in float32 (int4: of the weights that its blocks stand for).
Timed, medians: one solution of 512 tokens; 32 of 256 to 768; best of 16 candidates of 120 tokens
after a problem of 400; a session's step of 30 tokens at 1,000 of context, as it is and as a CUDA
graph; a whole session of 20 steps of 30. Beside it torch in bf16 with SDPA, eager and compiled; its
sessions and its best of 16 keep keys and values by hand; and the 32 solutions without padding,
through torch's attention for variable lengths (`gpu_varlen.py`). tokens/s as a share of the card's
bf16 peak and of its copy bandwidth, both measured here. Cold start and memory are those of a
process of their own, files compared by size as at every start but the first. What will not fit
into the time any more is left out, with the reason; the table comes last.

``--device cpu`` runs it with a tiny shape on the CPU, to test the script itself; bf16, graphs and
torch.compile are left out there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gpu_cases import (
    Cases,
    Torch,
    cases,
    largest_dp,
    machine,
    make_checkpoint,
    median_s,
    no_gpu,
    session_case,
    step_case,
    step_ids,
)
from gpu_clock import Clock
from gpu_package import (
    PRECISIONS,
    TOLERANCE,
    add_variant,
    empty_package,
    record_selftest,
    remove_variant,
    vocabulary,
    what_it_holds,
)
from gpu_varlen import Varlen
from shapes import SHAPES, RandomTensors, torch_model

from prm_edge_runtime import CudaOptions, Scorer

COMPARED: Final = 12
VARLEN_TOLERANCE: Final = 0.1  # relative RMS of logits in bf16, of two orders of the same sums
COLD: Final = """
import sys, time
from prm_edge_runtime import Scorer
scorer = Scorer.load(sys.argv[1], device=sys.argv[2], variant=sys.argv[3], verify="sizes")
scorer.score("Solve 2x + 3 = 11.", ["2x = 8", "x = 4"])
print("ready", flush=True)
sys.stdin.readline()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Seconds of each case; what could not be measured is None."""

    shape: str
    name: str
    many_s: float
    solution_s: float | None = None
    best_s: float | None = None
    step_s: float | None = None
    session_s: float | None = None
    best_apart_s: float | None = None  # the same candidates without sharing the problem
    graph_step_s: float | None = None
    max_dp: float | None = None
    cold_s: float | None = None
    gpu_mb: int | None = None
    weight_bytes: float = 2.0  # of a weight, which a step has to read


def timed(shape: str, scorer: Scorer, given: Cases, reference: Torch, rounds: int) -> Row:
    """prm-edge's row.

    Raises:
        RuntimeError: when its scores are not torch's.
    """
    largest, _ = largest_dp(scorer, reference, given.many[:COMPARED])
    if not largest <= TOLERANCE:
        raise RuntimeError(f"scores differ from torch's by up to {largest:.3g}: WRONG, not timed")
    many = [(r.problem, r.steps) for r in given.many]
    best = [r.steps for r in given.best]
    apart = [(r.problem, r.steps) for r in given.best]
    cold, memory = cold_start(scorer)
    return Row(
        shape=shape,
        name=f"prm-edge {scorer.variant} on {scorer.device}",
        solution_s=median_s(lambda: scorer.score(given.one.problem, given.one.steps), rounds),
        many_s=median_s(lambda: scorer.score_many(many), rounds),
        best_s=median_s(lambda: scorer.rank(given.best[0].problem, best), rounds),
        step_s=median_s(step_case(scorer, given.long), rounds),
        session_s=median_s(session_case(scorer, given.session), max(1, rounds // 3)),
        best_apart_s=median_s(lambda: [scorer.score(*pair) for pair in apart], rounds),
        max_dp=largest,
        cold_s=cold,
        gpu_mb=memory,
        weight_bytes=0.5625 if scorer.variant.endswith("int4") else 2.0,
    )


def timed_torch(shape: str, name: str, model: Torch, given: Cases, rounds: int) -> Row:
    """The same for torch; what shares the problem is the KV cache, managed by hand."""
    return Row(
        shape=shape,
        name=name,
        solution_s=median_s(lambda: model.solution(given.one), rounds),
        many_s=median_s(lambda: model.many(given.many), rounds),
        best_s=median_s(lambda: model.best_of(given.best), rounds),
        step_s=median_s(model.stepper(*step_ids(given.long)), rounds),
        session_s=median_s(lambda: model.session(given.session), max(1, rounds // 3)),
        best_apart_s=median_s(lambda: model.many(given.best), rounds),
    )


def timed_varlen(
    shape: str, name: str, model: Varlen, padded: Torch, given: Cases, rounds: int
) -> Row:
    """torch without padding, which is for solutions of many lengths alone.

    Raises:
        RuntimeError: when its logits are not those of the padded rows.
    """
    ours, theirs = (np.concatenate(one.many(given.many)) for one in (model, padded))
    error = float(np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std())
    if not error <= VARLEN_TOLERANCE:
        raise RuntimeError(f"logits are not padded torch's, relative RMS {error:.3g}: WRONG")
    return Row(shape=shape, name=name, many_s=median_s(lambda: model.many(given.many), rounds))


def cold_start(scorer: Scorer) -> tuple[float, int | None]:
    """Seconds from the start of a process to its first score, and the GPU memory it then holds."""
    command = [sys.executable, "-c", COLD, str(scorer.package.root), scorer.device, scorer.variant]
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        said = "".join(iter(child.stdout.readline, "ready\n"))
        seconds = time.perf_counter() - start
        memory = gpu_mb(child.pid) if scorer.device == "cuda" else None
        child.communicate("\n")
    if child.returncode:
        raise RuntimeError(f"the process of the cold start failed: {said}")
    return seconds, memory


def gpu_mb(process: int) -> int | None:
    """What nvidia-smi says a process holds; None where it says nothing."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    found = dict(line.split(", ") for line in done.stdout.splitlines() if ", " in line)
    return int(found[str(process)]) if found.get(str(process), "").isdigit() else None


def peaks(device: str) -> tuple[float, float]:
    """Multiply-add FLOP/s in bf16, and bytes/s of a copy (read and written), as torch has them."""
    size = 8192 if device == "cuda" else 512
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    b = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    source = torch.empty(2**28 if device == "cuda" else 2**22, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)

    def waiting(run: Callable[[], object]) -> Callable[[], object]:
        def call() -> None:
            for _ in range(10):
                run()
            if device == "cuda":
                torch.cuda.synchronize()

        return call

    products = median_s(waiting(lambda: torch.mm(a, b)), 5) / 10
    copies = median_s(waiting(lambda: target.copy_(source)), 5) / 10
    return 2 * size**3 / products, 2 * source.numel() * source.element_size() / copies


def run_variant(
    name: str, package: Path, precision: str, device: str, rounds: int, clock: Clock
) -> tuple[Row | None, Cases | None]:
    """One variant of a shape: written, compared, timed, taken away again."""
    shape = SHAPES[name]
    size = shape.parameters / 1e9
    variant = clock.run(
        f"{name} {precision} written",
        f"write {precision}",
        size,
        lambda: add_variant(package, shape, precision),
    )
    if variant is None:
        return None, None

    def measure() -> tuple[Row, Cases]:
        held = what_it_holds(package, variant, shape)
        place = device if has_torch(device) else "cpu"
        model = torch_model(shape, held, vocabulary(package), place, torch.float32)
        reference = Torch(model, place)
        record_selftest(package, variant, reference)
        with Scorer.load(package, device=device, variant=variant, verify="sizes") as scorer:
            given = cases(scorer)
            return timed(name, scorer, given, reference, rounds), given

    def graphs() -> float:
        options = CudaOptions(graphs=True)
        with Scorer.load(
            package, device=device, variant=variant, verify="sizes", cuda=options
        ) as scorer:
            return median_s(step_case(scorer, cases(scorer).long), rounds)

    found = clock.run(f"{name} {precision} timed", "time", size, measure)
    row, given = found or (None, None)
    if row is not None and device == "cuda":
        step = clock.run(f"{name} {precision} with graphs", "graphs", size, graphs)
        row = replace(row, graph_step_s=step)
    remove_variant(package, variant)
    return row, given


def run_shape(
    name: str, package: Path, device: str, rounds: int, clock: Clock
) -> tuple[list[Row], Cases | None]:
    """Every engine on one shape."""
    rows: list[Row] = []
    given: Cases | None = None
    for precision in PRECISIONS if device == "cuda" else ("fp16", "int4"):
        row, made = run_variant(name, package, precision, device, rounds, clock)
        given = given or made
        rows += [row] if row is not None else []
    if given is None or not has_torch(device):
        return rows, given
    shape, cases_given = SHAPES[name], given
    for compiled, label in ((False, "eager"), (True, "compiled")):
        if compiled and device == "cpu":
            continue
        what = f"torch bf16 {label}, SDPA, on {device}"

        def measure(compiled: bool = compiled, what: str = what) -> Row:
            model = torch_model(shape, RandomTensors(), vocabulary(package), device, torch.bfloat16)
            peer = Torch(model, device, compiled=compiled)
            return timed_torch(name, what, peer, cases_given, rounds)

        timed_row = clock.run(f"{name} {what}", label, shape.parameters / 1e9, measure)
        rows += [timed_row] if timed_row is not None else []
    without = f"torch bf16 eager, variable length, on {device}"

    def unpadded() -> Row:
        made = [
            torch_model(shape, RandomTensors(), vocabulary(package), device, torch.bfloat16)
            for _ in range(2)
        ]
        models = Varlen(made[0], device), Torch(made[1], device)
        return timed_varlen(name, without, *models, cases_given, rounds)

    timed_row = clock.run(f"{name} {without}", "varlen", shape.parameters / 1e9, unpadded)
    return rows + ([timed_row] if timed_row is not None else []), given


def has_torch(device: str) -> bool:
    """Whether this torch computes there."""
    return device == "cpu" or torch.cuda.is_available()


def table(rows: Sequence[Row], given: Cases, flops: float, bandwidth: float) -> str:
    """Markdown."""
    lengths = [len(r.ids) for r in given.many]
    context, step = step_ids(given.long)
    lines = [
        f"| shape | engine | {len(given.one.ids)} tokens, ms | {len(lengths)} of {min(lengths)} to "
        f"{max(lengths)}, tokens/s | of peak | best of {len(given.best)}, ms | not sharing, ms "
        f"| step of {len(step)} at {len(context)}, ms | of bandwidth | as a graph, ms "
        f"| session of {len(given.session.steps)} steps, ms | max dp | cold start, s "
        "| GPU memory, MB |",
        "|---|---|" + "---:|" * 12,
    ]
    for row in rows:
        shape = SHAPES[row.shape]
        # the floor of a step is reading every weight once
        floor = row.weight_bytes * shape.parameters / bandwidth
        of_floor = None if row.step_s is None else floor / row.step_s
        peak = shape.flops(lengths) / row.many_s / flops
        lines.append(
            f"| {row.shape} | {row.name} | {_shown(row.solution_s, 1000)} "
            f"| {sum(lengths) / row.many_s:,.0f} | {peak:.0%} "
            f"| {_shown(row.best_s, 1000)} | {_shown(row.best_apart_s, 1000)} "
            f"| {_shown(row.step_s, 1000)} | {_shown(of_floor, 1, '.0%')} "
            f"| {_shown(row.graph_step_s, 1000)} | {_shown(row.session_s, 1000)} "
            f"| {_shown(row.max_dp, 1, '.1e')} "
            f"| {_shown(row.cold_s, 1)} | {row.gpu_mb or '-'} |"
        )
    return "\n".join(lines)


def _shown(value: float | None, factor: float, form: str = ".2f") -> str:
    return "-" if value is None else format(factor * value, form)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    device: str = arguments.device
    # half a minute is left for the end
    clock = Clock(time.monotonic() + 60 * arguments.minutes - 30)
    if device == "cuda":
        reason = no_gpu()
        if reason is not None:
            print(f"no GPU that onnxruntime can use here: {reason}", file=sys.stderr)
            return 1
    if not has_torch(device):
        print("this build of torch has no CUDA: its rows and both peaks are missing", flush=True)
    shapes = arguments.shapes or (["0.5b", "1.5b", "7b"] if device == "cuda" else ["tiny"])
    flops, bandwidth = peaks(device) if has_torch(device) else (float("nan"), float("nan"))
    rows: list[Row] = []
    given: Cases | None = None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tiny = make_checkpoint(root / "tiny", max_position_embeddings=2048)
        package = empty_package(root, tiny)
        for shape in shapes:
            found, made = run_shape(shape, package, device, arguments.rounds, clock)
            rows += found
            given = given or made
    if given is None:
        print("nothing could be measured, see above", file=sys.stderr)
        return 1
    for line in clock.skipped:
        print(f"left out: {line}")
    print(f"\n{machine(device)}; measured {flops / 1e12:.1f} TFLOP/s bf16, copies at "
          f"{bandwidth / 1e12:.3f} TB/s")  # fmt: skip
    print(table(rows, given, flops, bandwidth))
    if arguments.json:
        report: dict[str, Any] = {
            "machine": machine(device),
            "bf16_flops": flops,
            "bandwidth": bandwidth,
            "left_out": clock.skipped,
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    wrong = ("WRONG", "SelfTestError")
    return 1 if any(word in line for line in clock.skipped for word in wrong) else 0


if __name__ == "__main__":
    sys.exit(main())

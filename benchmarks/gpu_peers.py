"""How fast is prm-edge on a GPU beside torch, how near to what the card can do, in how much memory?

    python benchmarks/gpu_peers.py [--shapes 0.5b 1.5b 7b] [--device cpu] [--json OUT]

Made for one run of ten minutes on a GPU machine; installs nothing. Each shape is built on the spot
with random weights (a small vocabulary: no score depends on it), exported for CUDA and compared
with torch. Timed, medians: one solution of 512 tokens; 32 of 256 to 768; best of 16 candidates of
120 tokens after a problem of 400; a session's step of 30 tokens at 1,000 of context. Beside it
torch in bf16 with SDPA, eager and compiled, and eager with the KV cache managed by hand. tokens/s
as a share of the card's bf16 peak and of its copy bandwidth, both measured here. Cold start and
memory are those of a process of their own. The table comes last.

``--device cpu`` runs it with a tiny shape on the CPU, to test the script itself; torch.compile is
left out there.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from gpu_cases import (
    Record,
    Torch,
    largest_dp,
    make_checkpoint,
    median_s,
    record,
    step_case,
    step_ids,
)
from gpu_smoke import TEXTS, machine, no_gpu

from prm_edge_export.pipeline import export
from prm_edge_export.plan import PRECISIONS, ExportOptions
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import ExportError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of Qwen2.5's layers, without its vocabulary."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int

    def config(self) -> dict[str, Any]:
        """As transformers names it."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 2048,
        }

    @property
    def parameters(self) -> int:
        """Of the linears of all layers, which is what a token multiplies with."""
        kv = self.hidden // self.heads * self.kv_heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * kv
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def flops(self, lengths: Sequence[int]) -> float:
        """Of whole records: linears, and causal attention."""
        linears = 2 * self.parameters * sum(lengths)
        return linears + sum(2 * self.layers * self.hidden * n * n for n in lengths)


SHAPES: Final = {
    "0.5b": Shape(hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2),
    "1.5b": Shape(hidden=1536, intermediate=8960, layers=28, heads=12, kv_heads=2),
    "7b": Shape(hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4),
    "tiny": Shape(hidden=128, intermediate=384, layers=4, heads=4, kv_heads=2),
}
TEXTS_USED: Final = 8
COMPARED: Final = 12
CANDIDATES: Final = 16
COLD: Final = """
import sys, time
from prm_edge_runtime import Scorer
scorer = Scorer.load(sys.argv[1], device=sys.argv[2], variant=sys.argv[3])
scorer.score("Solve 2x + 3 = 11.", ["2x = 8", "x = 4"])
print("ready", flush=True)
sys.stdin.readline()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Seconds of each case; what could not be measured is None."""

    shape: str
    name: str
    solution_s: float
    many_s: float
    best_s: float
    step_s: float
    max_dp: float | None = None
    best_apart_s: float | None = None  # the same candidates without sharing the problem
    cold_s: float | None = None
    gpu_mb: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """The records of every case."""

    one: Record
    many: list[Record]
    best: list[Record]
    long: Record


def cases(scorer: Scorer) -> Cases:
    """Made by prm-edge's encoder, for everybody."""
    rng = random.Random(3)
    many = [record(scorer, rng, prompt=100, steps=[rng.randint(13, 55)] * 12) for _ in range(32)]
    first = record(scorer, rng, prompt=400, steps=[24] * 5)
    best = [first]
    for _ in range(CANDIDATES - 1):
        steps = record(scorer, rng, prompt=1, steps=[24] * 5).steps
        encoded = scorer._encoder.encode(first.problem, steps)
        best.append(
            Record(problem=first.problem, steps=steps, ids=encoded.ids, reads=encoded.reads)
        )
    return Cases(
        one=record(scorer, rng, prompt=112, steps=[40] * 10),
        many=many,
        best=best,
        long=record(scorer, rng, prompt=400, steps=[60] * 10 + [30]),
    )


def timed(shape: str, scorer: Scorer, given: Cases, reference: Torch, rounds: int) -> Row:
    """prm-edge's row."""
    many = [(r.problem, r.steps) for r in given.many]
    best = [r.steps for r in given.best]
    apart = [(r.problem, r.steps) for r in given.best]
    largest, _ = largest_dp(scorer, reference, given.many[:COMPARED])
    cold, memory = cold_start(scorer)
    return Row(
        shape=shape,
        name=f"prm-edge {scorer.variant} on {scorer.device}",
        solution_s=median_s(lambda: scorer.score(given.one.problem, given.one.steps), rounds),
        many_s=median_s(lambda: scorer.score_many(many), rounds),
        best_s=median_s(lambda: scorer.rank(given.best[0].problem, best), rounds),
        step_s=median_s(step_case(scorer, given.long), rounds),
        max_dp=largest,
        best_apart_s=median_s(lambda: [scorer.score(*pair) for pair in apart], rounds),
        cold_s=cold,
        gpu_mb=memory,
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
        best_apart_s=median_s(lambda: model.many(given.best), rounds),
    )


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


def build(root: Path, shape: Shape, device: str) -> tuple[Path, Path, list[str]]:
    """A checkpoint in bf16, its package, and the variants that could be made."""
    torch.set_default_dtype(torch.bfloat16)  # 7B in float32 would be 28 GB on disk
    try:
        checkpoint = make_checkpoint(root / "model", **shape.config())
    finally:
        torch.set_default_dtype(torch.float32)
    lines = TEXTS.read_text(encoding="utf-8").splitlines(keepends=True)
    (root / "verify.jsonl").write_text("".join(lines[:TEXTS_USED]), encoding="utf-8")
    names: list[str] = []
    for precision in PRECISIONS["cuda"] if device == "cuda" else ("fp16",):
        try:
            report = export(
                ExportOptions(
                    checkpoint=checkpoint,
                    out=root / "package",
                    separator="\n",
                    target="cuda",
                    precision=precision,
                    verify=root / "verify.jsonl",
                    add=bool(names),
                    allow_drift=True,  # of eight solutions; the row has the drift
                )
            ).report
        except ExportError as error:
            print(f"cuda-{precision} could not be made: {error}", flush=True)
            continue
        names.append(report["variant"])
        print(f"exported {names[-1]}", flush=True)
    return checkpoint, root / "package", names


def run_shape(name: str, device: str, rounds: int) -> tuple[list[Row], Cases]:
    """Every engine on one shape."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, package, variants = build(Path(folder), SHAPES[name], device)
        given: Cases | None = None
        has_torch = device == "cpu" or torch.cuda.is_available()
        reference = Torch(checkpoint, device if has_torch else "cpu", torch.float32)
        for variant in variants:
            with Scorer.load(package, device=device, variant=variant) as scorer:
                given = given or cases(scorer)
                rows.append(timed(name, scorer, given, reference, rounds))
            print(rows[-1], flush=True)
        if given is None:
            raise RuntimeError("no variant could be made")
        del reference
        if not has_torch:
            print("this build of torch has no CUDA: its rows are missing", flush=True)
            return rows, given
        engines = [(False, "eager"), (True, "compiled")]
        for compiled, label in engines if device == "cuda" else engines[:1]:
            model = Torch(checkpoint, device, torch.bfloat16, compiled=compiled)
            what = f"torch bf16 {label}, SDPA, on {device}"
            try:
                rows.append(timed_torch(name, what, model, given, rounds))
                print(rows[-1], flush=True)
            except Exception as error:  # a compiler is not everywhere
                print(f"{what} failed: {type(error).__name__}: {str(error)[:200]}", flush=True)
            del model
    return rows, given


def table(rows: Sequence[Row], given: Cases, flops: float, bandwidth: float) -> str:
    """Markdown."""
    lengths = [len(r.ids) for r in given.many]
    lines = [
        "| shape | engine | one solution, ms | 32 ragged, tokens/s | of peak | best of 16, ms "
        "| not sharing, ms | step, ms | of bandwidth | max dp | cold start, s | GPU memory, MB |",
        "|---|---|" + "---:|" * 10,
    ]
    for row in rows:
        shape = SHAPES[row.shape]
        # the floor of a step is reading every weight once, in 16 bits
        floor = 2 * shape.parameters / bandwidth
        peak = shape.flops(lengths) / row.many_s / flops
        lines.append(
            f"| {row.shape} | {row.name} | {1000 * row.solution_s:.2f} "
            f"| {sum(lengths) / row.many_s:,.0f} | {peak:.0%} "
            f"| {1000 * row.best_s:.2f} | {_shown(row.best_apart_s, 1000)} "
            f"| {1000 * row.step_s:.2f} | {floor / row.step_s:.0%} "
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
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    device: str = arguments.device
    if device == "cuda":
        reason = no_gpu()
        if reason is not None:
            print(f"no GPU that onnxruntime can use here: {reason}", file=sys.stderr)
            return 1
    shapes = arguments.shapes or (["0.5b", "1.5b", "7b"] if device == "cuda" else ["tiny"])
    has_torch = device == "cpu" or torch.cuda.is_available()
    flops, bandwidth = peaks(device) if has_torch else (float("nan"), float("nan"))
    rows: list[Row] = []
    given: Cases | None = None
    for shape in shapes:
        found, given = run_shape(shape, device, arguments.rounds)
        rows += found
    assert given is not None  # there is at least one shape
    print(f"\n{machine(device)}; measured {flops / 1e12:.1f} TFLOP/s bf16, copies at "
          f"{bandwidth / 1e12:.3f} TB/s")  # fmt: skip
    print(table(rows, given, flops, bandwidth))
    if arguments.json:
        report = {"machine": machine(device), "bf16_flops": flops, "bandwidth": bandwidth,
                  "rows": [asdict(row) for row in rows]}  # fmt: skip
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

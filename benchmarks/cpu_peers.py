"""How fast is int8 on a CPU beside other engines, and how far from torch in float32?

    python benchmarks/gguf_files.py FILE.gguf GGUF      # or a shape: qwen2.5-0.5b
    python benchmarks/cpu_peers.py --package PKG --checkpoint CKPT \\
        --gguf GGUF/Q8_0.gguf --gguf GGUF/Q4_0.gguf --stock ONNX
    python benchmarks/cpu_peers.py --shape qwen2.5-0.5b --report PKG/cpu-int8/report.json
    python benchmarks/cpu_peers.py --shape qwen2.5-1.5b --report PKG/cpu-int8/report.json \\
        --gguf GGUF15/Q8_0.gguf --engines 'bf16|int8|Q8_0'

One run: the same tokens, one thread each, engines in turns, medians of the rounds in CPU time (a
machine may be shared); only ratios are worth quoting. PKG has CPU variants (cpu-fp32, cpu-int8) of
CKPT, a merged checkpoint; drift is measured on the solutions of ``--records``. With ``--shape``
weights are random, so there is no drift, and each linear gets a kind so that the shares are those
of a plan that passed on real weights. ONNX is a folder that stock optimum wrote: ``model.onnx`` and
``model_quantized.onnx`` of the backbone (``optimum-cli export onnx --task feature-extraction``,
``optimum-cli onnxruntime quantize --avx512_vnni``), since optimum refuses Llama with a token
classification head. An engine that is not installed is said to be missing. All engines are open at
once, since they take turns; ``--engines`` opens only some, where all do not fit into memory.
"""

from __future__ import annotations

import argparse
import functools
import gc
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from cpu_engines import (
    Openers,
    Run,
    llama_engines,
    openvino_engines,
    packaged,
    random_fp32,
    random_int8,
    rounded,
    stock_engines,
    torch_engine,
)
from fidelity import TrlReference, read_records
from numpy.typing import NDArray
from shapes import SHAPES, RandomTensors, torch_model

from prm_edge_export.quantization.kinds import KINDS
from prm_edge_runtime.package import open_package

TEXTS: Final = Path(__file__).parents[1] / "export/prm_edge_export/data/verification.jsonl"
MODELS: Final = {"qwen2.5-0.5b": SHAPES["0.5b"], "qwen2.5-1.5b": SHAPES["1.5b"]}
TRUTH: Final = "torch fp32"  # of the drift
BASE: Final = "torch bf16"  # of the ratios


@dataclass(slots=True, kw_only=True)
class Engine:
    """One competitor; ``run`` takes ids and read positions and returns logits, or only works."""

    name: str
    run: Run
    seconds: dict[int, list[float]] = field(default_factory=dict)
    drift: tuple[float, float, float] | None = None


# --- measuring


def time_engines(
    engines: Sequence[Engine], lengths: Sequence[int], rounds: int, vocab: int
) -> None:
    """CPU seconds per pass, engines in turns; the first round only warms up."""
    rng = np.random.default_rng(0)
    for length in lengths:
        ids = rng.integers(10, vocab, length)
        reads = np.arange(29, length, 30)
        for turn in range(rounds + 1):
            for engine in engines if turn % 2 else engines[::-1]:
                start = time.process_time()
                engine.run(ids, reads)
                taken = time.process_time() - start
                if turn:
                    engine.seconds.setdefault(length, []).append(taken)


def measure_drift(engines: Sequence[Engine], rows: Sequence[Any]) -> None:
    """Relative RMS of logits, mean |dp| and flips, the first engine being the truth."""
    found: dict[str, NDArray[np.float64]] = {}
    for engine in engines:
        pieces = [engine.run(np.array(row.ids), np.array(row.reads)) for row in rows]
        if any(piece is None for piece in pieces):
            continue
        found[engine.name] = np.concatenate(pieces).astype(np.float64)
        truth = found[engines[0].name]
        error = found[engine.name] - truth
        spread = np.sqrt(np.mean((truth - truth.mean(axis=0)) ** 2))
        good = [1 / (1 + np.exp(x[:, 0] - x[:, 1])) for x in (truth, found[engine.name])]
        engine.drift = (
            float(np.sqrt(np.mean(error**2)) / spread),
            float(abs(good[0] - good[1]).mean()),
            float(((good[0] < 0.5) != (good[1] < 0.5)).mean()),
        )


def table(engines: Sequence[Engine], lengths: Sequence[int]) -> list[str]:
    """Markdown: tokens per CPU second and the ratio to torch bf16, and drift where there is any."""
    base = next(engine for engine in engines if engine.name == BASE)
    head = "".join(f" {n} tokens: tokens/s | x torch bf16 |" for n in lengths)
    lines = [f"| engine |{head} rel. RMS | mean \\|dp\\| | flips |"]
    lines.append("|---|" + "---:|---:|" * len(lengths) + "---:|---:|---:|")
    for engine in engines:
        cells = []
        for length in lengths:
            mine, other = (statistics.median(e.seconds[length]) for e in (engine, base))
            cells.append(f"{length / mine:.0f} | {other / mine:.2f}")
        drift = engine.drift
        cells += ["-"] * 3 if drift is None else [f"{drift[0]:.4f}", f"{drift[1]:.4f}"]
        cells += [] if drift is None else [f"{drift[2]:.2%}"]
        lines.append(f"| {engine.name} | " + " | ".join(cells) + " |")
    return lines


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    found.add_argument("--package", type=Path, help="with CPU variants")
    found.add_argument("--checkpoint", type=Path, help="that it was made from")
    found.add_argument("--stock", type=Path, help="folder of stock optimum's files")
    found.add_argument("--separator", default="\n")
    found.add_argument("--shape", choices=list(MODELS))
    found.add_argument("--report", type=Path, help="whose plan a random shape follows")
    found.add_argument("--gguf", type=Path, action="append", default=[], help="for llama.cpp")
    found.add_argument("--engines", type=_pattern, help="a pattern; only those it is found in")
    found.add_argument("--tokens", type=int, nargs="+", default=[64, 384, 1536])
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--records", type=Path, default=TEXTS)
    found.add_argument("--limit", type=int, help="records to measure drift on")
    return found


def open_engines(
    model: Any, own: Openers, options: argparse.Namespace, needed: set[str]
) -> list[Engine]:
    """Those that are needed or asked for."""
    openers: Openers = {
        TRUTH: lambda: torch_engine(model),
        BASE: lambda: torch_engine(rounded(model)),
        **own,
        **openvino_engines(model),
        **stock_engines(options.stock, model),
        **llama_engines(options.gguf),
    }
    engines = []
    for name, opener in openers.items():
        if options.engines is None or name in needed or options.engines.search(name):
            print(f"opening {name}", file=sys.stderr, flush=True)
            engines.append(Engine(name=name, run=opener()))
    return engines


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[Any] = []
    own: Openers
    with tempfile.TemporaryDirectory() as scratch:
        if options.shape and options.report:
            shape = MODELS[options.shape]
            model = torch_model(shape, RandomTensors(), shape.vocab, "cpu", torch.float32)
            own = {
                "prm-edge fp32": lambda: random_fp32(shape, Path(scratch, "fp32")),
                "prm-edge int8": lambda: random_int8(shape, options.report, Path(scratch, "int8")),
            }
        elif options.package and options.checkpoint:
            reference = TrlReference(options.checkpoint, options.separator)
            model = reference.model
            package = open_package(options.package)
            own = {
                f"prm-edge {v.precision}": functools.partial(packaged, package, v.name)
                for v in package.manifest.variants
                if v.device == "cpu"
            }
            records = read_records(options.records, options.limit)
            rows = [reference.encode(record.problem, record.steps) for record in records]
        else:
            parser().error("give --package and --checkpoint, or --shape and --report")
        vocab = model.config.vocab_size
        engines = open_engines(model, own, options, {BASE, TRUTH} if rows else {BASE})
        del model  # a shape's weights are gone unless an engine reads them
        gc.collect()
        time_engines(engines, options.tokens, options.rounds, vocab)
        if rows:
            measure_drift(engines, rows)
            print(f"drift: {sum(len(row.reads) for row in rows)} steps of {len(rows)} solutions")
    print("\n".join(table(engines, options.tokens)))
    print(f"kinds of linears: {', '.join(KINDS)}; CPU time of one thread; {options.rounds} rounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())

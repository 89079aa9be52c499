"""How fast is int8 on a CPU beside other engines, and how far from torch in float32?

    python benchmarks/gguf_files.py FILE.gguf GGUF      # or a shape: qwen2.5-0.5b
    python benchmarks/cpu_peers.py --package PKG --checkpoint CKPT \\
        --gguf GGUF/Q8_0.gguf --gguf GGUF/Q4_0.gguf --stock ONNX
    python benchmarks/cpu_peers.py --shape qwen2.5-0.5b --report PKG/cpu-int8/report.json

One run: the same tokens, one thread each, engines in turns, medians of the rounds in CPU time (a
machine may be shared); only ratios are worth quoting. PKG has CPU variants (cpu-fp32, cpu-int8) of
CKPT, a merged checkpoint; drift is measured on the solutions of ``--records``. With ``--shape``
weights are random, so there is no drift, and each linear gets a kind so that the shares are those
of a plan that passed on real weights. ONNX is a folder that stock optimum wrote: ``model.onnx`` and
``model_quantized.onnx`` of the backbone (``optimum-cli export onnx --task feature-extraction``,
``optimum-cli onnxruntime quantize --avx512_vnni``), since optimum refuses Llama with a token
classification head. An engine that is not installed is said to be missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from fidelity import TrlReference, read_records
from numpy.typing import NDArray
from shapes import SHAPES, RandomTensors, Shape, torch_model

from prm_edge_export.graph import build_decoder
from prm_edge_export.model_config import DecoderConfig
from prm_edge_export.quantization.calibration import Calibration
from prm_edge_export.quantization.graph import build_quantized
from prm_edge_export.quantization.kinds import KINDS, UNITS, layer_prefix
from prm_edge_export.quantization.weights import Inputs, quantize_channels
from prm_edge_runtime.engine import DecoderEngine, open_engine
from prm_edge_runtime.manifest import DECODER, Variant
from prm_edge_runtime.package import Package, open_package

TEXTS: Final = Path(__file__).parents[1] / "export/prm_edge_export/data/verification.jsonl"
MODELS: Final = {"qwen2.5-0.5b": SHAPES["0.5b"], "qwen2.5-1.5b": SHAPES["1.5b"]}
# sizes of the blocks in which OpenVINO rounds activations; 0 is off
OPENVINO_GROUPS: Final = (32, 128)
Run = Callable[[NDArray[np.int64], NDArray[np.int64]], Any]


@dataclass(slots=True, kw_only=True)
class Engine:
    """One competitor; ``run`` takes ids and read positions and returns logits, or only works."""

    name: str
    run: Run
    seconds: dict[int, list[float]] = field(default_factory=dict)
    drift: tuple[float, float, float] | None = None


def packaged(package: Package, variant: str) -> Engine:
    """A variant of a package in the shipped engine."""
    chosen = package.variant(variant)
    engine = open_engine(package.path(chosen.graph), chosen, logits=2, threads=1)
    opening = chosen.prefix.ids if chosen.prefix else ()

    def run(ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        ids = ids.copy()
        ids[: len(opening)] = opening  # as every record of its recipe begins
        return engine.run(ids, reads)

    return Engine(name=f"prm-edge {chosen.precision}", run=run)


def ours(name: str, graph: Path, config: DecoderConfig) -> Engine:
    """A decoder graph of random weights in the shipped engine."""
    variant = Variant(
        name=name,
        device="cpu",
        precision="int8",
        interface=DECODER,
        graph=graph.name,
        files=(),
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        proof={},
    )
    engine = open_engine(graph, variant, logits=2, threads=1)
    assert isinstance(engine, DecoderEngine)
    return Engine(name=f"prm-edge {name}", run=engine.run)


def torch_engine(model: Any, name: str) -> Engine:
    """transformers' token classifier as it is."""

    def run(ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0]
        found: NDArray[np.float32] = logits[torch.from_numpy(reads)].float().numpy()
        return found

    return Engine(name=f"torch {name}", run=run)


def openvino_engines(model: Any) -> list[Engine]:
    """OpenVINO on the traced model: float32, bf16, and 8-bit weights with dynamic quantization,
    what is between the products in either."""
    try:
        import openvino  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        print("missing: OpenVINO (pip install openvino)")
        return []

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            # transformers takes a mask of four axes as it is; its own maker cannot be traced
            size = ids.shape[1]
            mask = torch.full((size, size), torch.finfo(torch.float32).min).triu(1)[None, None]
            out: torch.Tensor = self.model(
                input_ids=ids, attention_mask=mask, use_cache=False
            ).logits
            return out

    with torch.inference_mode():
        traced = openvino.convert_model(
            Logits().eval(), example_input=torch.ones(1, 24, dtype=torch.int64)
        )
    ways: dict[str, dict[str, Any]] = {
        "f32": {"INFERENCE_PRECISION_HINT": "f32"},
        "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    }
    models = dict.fromkeys(ways, traced)
    try:
        import nncf  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        print("missing: OpenVINO int8 (pip install nncf)")
    else:
        for group, between in itertools.product(OPENVINO_GROUPS, ("bf16", "f32")):
            name = f"int8 weights, dynamic groups of {group}, {between} between"
            ways[name] = {
                "INFERENCE_PRECISION_HINT": between,
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
            }
            models[name] = nncf.compress_weights(
                traced.clone(), mode=nncf.CompressWeightsMode.INT8_SYM
            )
    engines = []
    for precision, way in ways.items():
        settings = {**way, "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(models[precision], "CPU", settings)

        def run(
            ids: NDArray[np.int64], reads: NDArray[np.int64], compiled: Any = compiled
        ) -> NDArray[np.float32]:
            found: NDArray[np.float32] = compiled([ids[None]])[0][0][reads]
            return found

        engines.append(Engine(name=f"OpenVINO {precision}", run=run))
    return engines


def stock_engines(folder: Path | None, model: Any) -> list[Engine]:
    """The backbone as stock optimum exports and quantizes it, its head in torch."""
    if folder is None:
        print("missing: stock optimum (give --stock)")
        return []
    import onnxruntime

    engines = []
    for name, file in (("fp32", "model.onnx"), ("dynamic int8", "model_quantized.onnx")):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            folder / file, options, providers=["CPUExecutionProvider"]
        )
        inputs = {value.name for value in session.get_inputs()}

        def run(
            ids: NDArray[np.int64],
            reads: NDArray[np.int64],
            session: Any = session,
            inputs: Any = inputs,
        ) -> NDArray[np.float32]:
            row = ids[None]
            feeds = {
                "input_ids": row,
                "attention_mask": np.ones_like(row),
                "position_ids": np.arange(row.shape[1])[None],
            }
            (hidden,) = session.run(
                ["last_hidden_state"], {k: v for k, v in feeds.items() if k in inputs}
            )
            with torch.inference_mode():
                found: NDArray[np.float32] = model.score(torch.from_numpy(hidden[0, reads])).numpy()
            return found

        engines.append(Engine(name=f"optimum {name}", run=run))
    return engines


def llama_engines(files: Sequence[Path]) -> list[Engine]:
    """llama.cpp on GGUF files: prompt processing only, and no head, so without drift."""
    try:
        import llama_cpp  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        print("missing: llama-cpp-python (it builds from source); trying xllamacpp's wheel")
        return [_xllamacpp_engine(file) for file in files]
    engines = []
    for file in files:
        model = llama_cpp.Llama(
            str(file), n_ctx=2048, n_batch=2048, n_ubatch=512, n_threads=1, n_threads_batch=1,
            flash_attn=True, verbose=False,
        )  # fmt: skip

        def run(ids: NDArray[np.int64], reads: NDArray[np.int64], model: Any = model) -> None:
            model.reset()
            model.eval(ids.tolist())

        engines.append(Engine(name=f"llama.cpp {file.stem}", run=run))
    return engines


def _xllamacpp_engine(file: Path) -> Engine:
    import xllamacpp  # type: ignore[import-not-found,unused-ignore]

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = params.n_batch = 2048
    params.n_parallel = params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.verbosity = -1
    print(f"llama.cpp in xllamacpp: {xllamacpp.get_system_info()}")
    server = xllamacpp.Server(params)

    def run(ids: NDArray[np.int64], reads: NDArray[np.int64]) -> None:
        server.handle_completions({"prompt": ids.tolist(), "n_predict": 0, "cache_prompt": False})

    return Engine(name=f"llama.cpp {file.stem}", run=run)


# --- random weights in a real shape


def plan_like(report: Path, layers: int) -> dict[tuple[int, str], str]:
    """Kinds for another number of layers: those of the report, by place in the model."""
    linears = json.loads(report.read_text())["plan"]["linears"]
    kinds = {(item["layer"], item["linear"]): item["kind"] for item in linears}
    known = 1 + max(layer for layer, _ in kinds)
    return {
        (layer, unit.name): kinds[layer * known // layers, unit.name]
        for layer in range(layers)
        for unit in UNITS
    }


def random_graphs(shape: Shape, report: Path, folder: Path) -> tuple[Any, DecoderConfig]:
    """Write fp32 and int8 graphs of random weights; return transformers' model and our config."""
    config, tensors = shape.decoder(), RandomTensors()
    calibration = Calibration()
    for unit in UNITS:
        weight = torch.cat([tensors.torch(*named) for named in shape.tensors(unit.parts)])
        channels = quantize_channels(weight, Inputs())
        count = len(unit.graph)
        for at, name in enumerate(unit.graph):
            path = folder / f"{name}.npz"
            np.savez(
                path,
                int8=channels.values.chunk(count)[at].T.contiguous().numpy(),
                int8_scales=channels.scales.chunk(count)[at].numpy(),
            )
            for layer in range(shape.layers):
                calibration.stored[layer_prefix(layer) + name] = path
    for name in ("fp32", "int8"):
        (folder / name).mkdir()
    given: Any = tensors  # stands in for a checkpoint's
    build_decoder(config, shape.head, given, folder / "fp32", max_tokens=2048)
    plan = plan_like(report, config.layers)
    build_quantized(config, shape.head, given, folder / "int8", calibration, plan, max_tokens=2048)
    return torch_model(shape, tensors, shape.vocab, "cpu", torch.float32), config


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
    base = next(engine for engine in engines if engine.name == "torch bf16")
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--package", type=Path, help="with CPU variants")
    parser.add_argument("--checkpoint", type=Path, help="that it was made from")
    parser.add_argument("--stock", type=Path, help="folder of stock optimum's files")
    parser.add_argument("--separator", default="\n")
    parser.add_argument("--shape", choices=list(MODELS))
    parser.add_argument("--report", type=Path, help="whose plan a random shape follows")
    parser.add_argument("--gguf", type=Path, action="append", default=[], help="for llama.cpp")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 384, 1536])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=Path, default=TEXTS)
    parser.add_argument("--limit", type=int, help="records to measure drift on")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        rows: list[Any] = []
        if options.shape:
            folder = Path(scratch)
            model, config = random_graphs(MODELS[options.shape], options.report, folder)
            graphs = {name: folder / name / "model.onnx" for name in ("fp32", "int8")}
            own = [ours(name, graph, config) for name, graph in graphs.items()]
        elif options.package and options.checkpoint:
            reference = TrlReference(options.checkpoint, options.separator)
            model = reference.model
            package = open_package(options.package)
            own = [
                packaged(package, v.name) for v in package.manifest.variants if v.device == "cpu"
            ]
            records = read_records(options.records, options.limit)
            rows = [reference.encode(record.problem, record.steps) for record in records]
        else:
            parser.error("give --package and --checkpoint, or --shape and --report")
        half = type(model)(model.config).to(torch.bfloat16).eval()
        half.load_state_dict({k: v.to(torch.bfloat16) for k, v in model.state_dict().items()})
        engines = [torch_engine(model, "fp32"), torch_engine(half, "bf16")]
        engines += [*own, *openvino_engines(model), *stock_engines(options.stock, model)]
        engines += llama_engines(options.gguf)
        vocab = model.config.vocab_size
        time_engines(engines, options.tokens, options.rounds, vocab)
        if rows:
            measure_drift(engines, rows)
            print(f"drift: {sum(len(row.reads) for row in rows)} steps of {len(rows)} solutions")
    print("\n".join(table(engines, options.tokens)))
    print(f"kinds of linears: {', '.join(KINDS)}; CPU time of one thread; {options.rounds} rounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())

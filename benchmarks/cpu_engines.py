"""The engines that `cpu_peers.py` measures, by name, each opened when it is asked for.

Ours on a package or on random weights in a real shape; torch, OpenVINO, stock optimum and llama.cpp
in their best settings, one thread each. A run takes ids and read positions and returns logits.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from shapes import RandomTensors, Shape

from prm_edge_export.graph import build_decoder
from prm_edge_export.model_config import DecoderConfig
from prm_edge_export.quantization.calibration import Calibration
from prm_edge_export.quantization.graph import build_quantized
from prm_edge_export.quantization.kinds import UNITS, layer_prefix
from prm_edge_export.quantization.weights import Inputs, quantize_channels
from prm_edge_runtime.engine import DecoderEngine, open_engine
from prm_edge_runtime.manifest import DECODER, Variant
from prm_edge_runtime.package import Package

# sizes of the blocks in which OpenVINO rounds activations; 0 is off
OPENVINO_GROUPS: Final = (32, 128)
Run = Callable[[NDArray[np.int64], NDArray[np.int64]], Any]
Openers = dict[str, Callable[[], Run]]


def packaged(package: Package, variant: str) -> Run:
    """A variant of a package in the shipped engine."""
    chosen = package.variant(variant)
    engine = open_engine(package.path(chosen.graph), chosen, logits=2, threads=1)
    opening = chosen.prefix.ids if chosen.prefix else ()

    def run(ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        ids = ids.copy()
        ids[: len(opening)] = opening  # as every record of its recipe begins
        return engine.run(ids, reads)

    return run


def ours(name: str, graph: Path, config: DecoderConfig) -> Run:
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
    return engine.run


def rounded(model: Any) -> Any:
    """The model once more, in bf16."""
    half = type(model)(model.config).to(torch.bfloat16).eval()
    half.load_state_dict({k: v.to(torch.bfloat16) for k, v in model.state_dict().items()})
    return half


def torch_engine(model: Any) -> Run:
    """transformers' token classifier as it is."""

    def run(ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0]
        found: NDArray[np.float32] = logits[torch.from_numpy(reads)].float().numpy()
        return found

    return run


def openvino_engines(model: Any) -> Openers:
    """OpenVINO on the traced model: float32, bf16, and 8-bit weights with dynamic quantization,
    what is between the products in either."""
    try:
        import openvino  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        print("missing: OpenVINO (pip install openvino)")
        return {}

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

    @functools.cache
    def traced() -> Any:
        with torch.inference_mode():
            example = torch.ones(1, 24, dtype=torch.int64)
            return openvino.convert_model(Logits().eval(), example_input=example)

    @functools.cache
    def eight_bits() -> Any:
        return nncf.compress_weights(traced().clone(), mode=nncf.CompressWeightsMode.INT8_SYM)

    ways: dict[str, dict[str, Any]] = {
        "f32": {"INFERENCE_PRECISION_HINT": "f32"},
        "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    }
    models: dict[str, Callable[[], Any]] = dict.fromkeys(ways, traced)
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
            models[name] = eight_bits

    def compiled(precision: str) -> Run:
        settings = {**ways[precision], "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        engine = openvino.Core().compile_model(models[precision](), "CPU", settings)

        def run(ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
            found: NDArray[np.float32] = engine([ids[None]])[0][0][reads]
            return found

        return run

    return {f"OpenVINO {name}": functools.partial(compiled, name) for name in ways}


def stock_engines(folder: Path | None, model: Any) -> Openers:
    """The backbone as stock optimum exports and quantizes it, its head in torch."""
    if folder is None:
        print("missing: stock optimum (give --stock)")
        return {}
    import onnxruntime

    def opened(file: str) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            folder / file, options, providers=["CPUExecutionProvider"]
        )
        inputs = {value.name for value in session.get_inputs()}

        def run(ids: NDArray[np.int64], reads: NDArray[np.int64]) -> NDArray[np.float32]:
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

        return run

    files = {"fp32": "model.onnx", "dynamic int8": "model_quantized.onnx"}
    return {f"optimum {name}": functools.partial(opened, file) for name, file in files.items()}


def llama_engines(files: Sequence[Path]) -> Openers:
    """llama.cpp on GGUF files: prompt processing only, and no head, so without drift."""
    try:
        import llama_cpp  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        print("missing: llama-cpp-python (it builds from source); trying xllamacpp's wheel")
        return {f"llama.cpp {file.stem}": functools.partial(_xllamacpp, file) for file in files}

    def opened(file: Path) -> Run:
        model = llama_cpp.Llama(
            str(file), n_ctx=2048, n_batch=2048, n_ubatch=512, n_threads=1, n_threads_batch=1,
            flash_attn=True, verbose=False,
        )  # fmt: skip

        def run(ids: NDArray[np.int64], reads: NDArray[np.int64]) -> None:
            model.reset()
            model.eval(ids.tolist())

        return run

    return {f"llama.cpp {file.stem}": functools.partial(opened, file) for file in files}


def _xllamacpp(file: Path) -> Run:
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

    return run


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


def random_fp32(shape: Shape, folder: Path) -> Run:
    """A graph of random weights in float32, opened."""
    folder.mkdir()
    given: Any = RandomTensors()  # stands in for a checkpoint's
    build_decoder(shape.decoder(), shape.head, given, folder, max_tokens=2048)
    return ours("fp32", folder / "model.onnx", shape.decoder())


def random_int8(shape: Shape, report: Path, folder: Path) -> Run:
    """A graph of the same weights with the plan of a report, opened."""
    folder.mkdir()
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
    given: Any = tensors  # stands in for a checkpoint's
    plan = plan_like(report, config.layers)
    build_quantized(config, shape.head, given, folder, calibration, plan, max_tokens=2048)
    return ours("int8", folder / "model.onnx", config)

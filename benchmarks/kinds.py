"""What one multiply-add costs in each kind of linear: the table COSTS of the int8 plan.

Usage: python benchmarks/kinds.py [--tokens 384] [--rounds 15]

One thread; the least CPU time of the rounds, the kinds in turns; graphs as the exporter writes
them, with the rounding of activations included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from onnx import TensorProto, helper

from prm_edge_export.graph import IR_VERSION, MICROSOFT, OPSET
from prm_edge_export.quantization.calibration import Calibration
from prm_edge_export.quantization.graph import QuantizedBuilder
from prm_edge_export.quantization.kinds import KINDS
from prm_edge_export.quantization.weights import Inputs, quantize_channels
from prm_edge_export.weights import WeightFile
from prm_edge_runtime.ort import open_session

# inputs, outputs: qkv, o, gate and up, down of SmolLM2-135M; gate and up, down of Qwen2.5-0.5B
SHAPES: Final = ((576, 960), (576, 576), (576, 1536), (1536, 576), (896, 4864), (4864, 896))


def make_session(folder: Path, kind: str, weight: torch.Tensor) -> Any:
    """One linear (N, K) of a kind, from (B, S, K) to (B, S, N)."""
    outputs, inputs = weight.shape
    channels = quantize_channels(weight, Inputs())
    stored = folder / "stored.npz"
    np.savez(
        stored,
        int8=channels.values.T.contiguous().numpy(),
        int8_scales=channels.scales.numpy(),
    )
    calibration = Calibration(stored={"linear": stored})
    with WeightFile(folder / "model.onnx.data") as weights:
        nothing: Any = None  # neither a config nor a checkpoint is needed for one linear
        builder = QuantizedBuilder(nothing, nothing, weights, calibration, {"linear": kind})
        builder._linear("linear", "source", weight.numpy())
    axes = ["B", "S"]
    graph = helper.make_graph(
        builder.nodes,
        "linear",
        [
            helper.make_tensor_value_info("source", TensorProto.FLOAT, [*axes, inputs]),
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, axes),
        ],
        [helper.make_tensor_value_info("linear", TensorProto.FLOAT, [*axes, outputs])],
        builder.initializers,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return open_session(path, device="cpu", threads=1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    print("| inputs | outputs | int8, GOP/s |", *(f" {kind} |" for kind in KINDS))
    print("|---|---|---|" + "---|" * len(KINDS))
    for inputs, outputs in SHAPES:
        weight = torch.randn(outputs, inputs) / inputs**0.5
        feeds = {
            "source": np.random.default_rng(0)
            .standard_normal((1, options.tokens, inputs))
            .astype(np.float32),
            "input_ids": np.zeros((1, options.tokens), dtype=np.int64),
        }
        with tempfile.TemporaryDirectory() as scratch:
            sessions = {}
            for kind in KINDS:
                folder = Path(scratch) / kind
                folder.mkdir()
                sessions[kind] = make_session(folder, kind, weight)
            least = dict.fromkeys(KINDS, float("inf"))
            for _ in range(options.rounds):
                for kind, session in sessions.items():
                    named = {item.name for item in session.get_inputs()}
                    given = {name: value for name, value in feeds.items() if name in named}
                    start = time.process_time()
                    session.run(None, given)
                    least[kind] = min(least[kind], time.process_time() - start)
        speed = 2 * inputs * outputs * options.tokens / least["int8"] / 1e9
        ratios = " | ".join(f"{least[kind] / least['int8']:.2f}" for kind in KINDS)
        print(f"| {inputs} | {outputs} | {speed:.0f} | {ratios} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

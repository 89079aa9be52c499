"""Every node of our graphs has a kernel of its type in onnxruntime-gpu's CUDA library.

Read from the library's own symbols, so no GPU is needed; whether a kernel is right is not seen
here. `make test-gpu-wheel` downloads the wheel; PRM_EDGE_GPU_WHEEL is the folder it is unpacked in.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import onnx
import pytest
from test_export_cuda import export_half, plant

from prm_edge_runtime import memory

HERE = Path(__file__).parents[1]
WHEEL = Path(os.environ.get("PRM_EDGE_GPU_WHEEL", HERE / ".venv-gpu-wheel" / "site"))
LIBRARY = WHEEL / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
CORE, CONTRIB = "N11onnxruntime4cuda", "N11onnxruntime7contrib4cuda"
TYPES = {1: "f", 3: "a", 10: "NS_9MLFloat16E", 16: "NS_8BFloat16E", 6: "i", 7: "l"}
# op -> how C++ names the type of its kernel, {0} for the element type; no {0}: for any type
KERNELS = {
    "Add": CORE + "3AddI{0}EE",
    "Cast": CORE + "4CastI{0}EE",
    "Concat": CORE + "6ConcatE",
    "ConstantOfShape": CORE + "15ConstantOfShapeE",
    "FastGelu": CONTRIB + "8FastGeluI{0}EE",
    "Gather": CORE + "6GatherE",
    "Gemm": CORE + "4GemmI{0}EE",
    "MatMulNBits": CONTRIB + "11MatMulNBitsI{0}EE",
    "MatMul": CORE + "6MatMulI{0}EE",
    "Mul": CORE + "3MulI{0}EE",
    "QuickGelu": CONTRIB + "9QuickGeluI{0}EE",
    "Relu": CORE + "4ReluI{0}EE",
    "Reshape": CORE + "7ReshapeE",
    "Slice": CORE + "5SliceILb1EEE",
    "Split": CORE + "10Split_2_13E",
}
# whose names depend on more than the element type
NORMS = {
    1: CORE + "9LayerNormIfffLb1EEE",
    10: CORE + "9LayerNormINS_9MLFloat16EfS2_Lb1EEE",
    16: CORE + "9LayerNormINS_8BFloat16EfS2_Lb1EEE",
}
SKIP = CONTRIB + "13SkipLayerNormI{0}Lb1EEE"
ATTENTION = CONTRIB + "19GroupQueryAttentionI{0}"  # newer ones also name the cache's type
# the kernel of this type whose epsilon, and so whose sum, is a float ("f" before "ii")
FLOAT_SUMS = "19SkipLayerNormKernelI{0}Lj256ELb1EEEvPT_S5_PKS4_S7_S7_S7_S7_fii"

pytestmark = [
    pytest.mark.gpu_wheel,
    pytest.mark.skipif(not LIBRARY.is_file(), reason=f"needs {LIBRARY}"),
]


@pytest.fixture(scope="module")
def library() -> Iterator[mmap.mmap]:
    with LIBRARY.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as found:
        yield found


def kernel(op: str, element: int) -> str:
    if op == "SimplifiedLayerNormalization":
        return NORMS[element] + "\0"
    if op == "SkipSimplifiedLayerNormalization":
        return SKIP.format(TYPES[element]) + "\0"
    if op == "GroupQueryAttention":
        return ATTENTION.format(TYPES[element])
    return KERNELS[op].format(TYPES[element]) + "\0"


def used(model: Any) -> set[tuple[str, int]]:
    """Operators with the element type that each computes in."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found = set()
    for node in model.graph.node:
        element = types[node.input[0]]
        given = {a.name: a.i for a in node.attribute}
        out = given["to"] if node.op_type == "Cast" else element
        if node.op_type == "ConstantOfShape":
            out = onnx.TensorProto.INT32
        for name in node.output:
            types[name] = out
        found.add((node.op_type, element))
    return found


PRECISIONS = {"fp16": 10, "bf16": 16}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "make",
    [
        checkpoints.trl_llama,
        checkpoints.trl_qwen2,
        checkpoints.trl_qwen3,
        checkpoints.trl_phi3,
        checkpoints.trl_gemma2,
    ],
)
def test_every_node_has_a_kernel(
    make: Callable[..., Path], precision: str, tmp_path: Path, library: mmap.mmap
) -> None:
    out = tmp_path / "p"
    export_half(
        make(tmp_path / "tiny"), out, precision=precision, allow_drift=True,
        trust_tokenizer_file=True,
    )  # fmt: skip
    model = onnx.load(out / f"cuda-{precision}" / "model.onnx", load_external_data=False)
    pairs = used(model)
    assert ("GroupQueryAttention", PRECISIONS[precision]) in pairs
    assert ("Gemm", 1) in pairs
    missing = [pair for pair in pairs if library.find(kernel(*pair).encode()) < 0]
    assert not missing


@pytest.mark.parametrize(
    "make", [checkpoints.trl_llama, checkpoints.trl_qwen2, checkpoints.trl_qwen3]
)
@pytest.mark.parametrize("planted", [{}, {"0.mlp.gate_proj.weight": 2.0**15}])
def test_every_node_of_int4_has_a_kernel(
    make: Callable[..., Path], planted: dict[str, float], tmp_path: Path, library: mmap.mmap
) -> None:
    folder = make(tmp_path / "tiny")
    if planted:  # beyond float16: activations in bfloat16
        folder = plant(folder, tmp_path / "planted", planted)
    export_half(
        folder, tmp_path / "p", precision="int4", allow_drift=True, trust_tokenizer_file=True
    )
    model = onnx.load(tmp_path / "p/cuda-int4/model.onnx", load_external_data=False)
    pairs = used(model)
    element = PRECISIONS["bf16" if planted else "fp16"]
    assert {("MatMulNBits", element), ("GroupQueryAttention", element), ("Gemm", 1)} <= pairs
    assert ("Cast", 3) in pairs  # of the embedding
    missing = [pair for pair in pairs if library.find(kernel(*pair).encode()) < 0]
    assert not missing


@pytest.mark.parametrize("half", ["6__half", "13__nv_bfloat16"])
@pytest.mark.parametrize("weight", ["N7cutlass15integer_subbyteILi4ELb0EEELNS5_", "hLN7cutlass"])
def test_the_fused_kernel_is_there_for_blocks(half: str, weight: str, library: mmap.mmap) -> None:
    name = f"24CutlassFpAIntBGemmRunnerI{half}{weight}17WeightOnlyQuantOpE2E"  # no zero points
    assert library.find(name.encode()) >= 0
    assert library.find(b"ep.cuda.fpa_intb_gemm\0") >= 0


def test_every_copy_has_a_kernel(library: mmap.mmap) -> None:
    for text in memory.GRAPHS.values():
        for pair in used(onnx.load_from_string(memory.graph_bytes(text))):
            assert library.find(kernel(*pair).encode()) >= 0, pair


@pytest.mark.parametrize("name", ["6__half", "13__nv_bfloat16"])
def test_norms_sum_in_float(name: str, library: mmap.mmap) -> None:
    # what cuda_options.STRICT_BEFORE relies on, from onnxruntime 1.27 on
    assert library.find(FLOAT_SUMS.format(name).encode()) >= 0


def test_a_kernel_that_is_not_there_is_missed(library: mmap.mmap) -> None:
    # GroupQueryAttention computes in half precision alone
    assert library.find(ATTENTION.format("f").encode()) < 0

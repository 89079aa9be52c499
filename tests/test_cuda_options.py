"""Options of the CUDA device: what onnxruntime is told, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from prm_edge_runtime.cuda_options import CudaOptions, cuda_options
from prm_edge_runtime.errors import ConfigError


def test_provider_options_are_onnxruntimes() -> None:
    assert CudaOptions().provider_options("1.31.1") == {
        "use_tf32": "0",
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "do_copy_in_default_stream": "1",
    }
    given = CudaOptions(
        gpu=3, memory_limit_mb=6000, arena="doubling", stream=2**63, copy_on_stream=False
    )
    assert given.provider_options("1.32.0") == {
        "use_tf32": "0",
        "device_id": "3",
        "arena_extend_strategy": "kNextPowerOfTwo",
        "do_copy_in_default_stream": "0",
        "gpu_mem_limit": "6000000000",
        "user_compute_stream": str(2**63),
    }


def test_int4_is_multiplied_as_it_is_unless_told_otherwise() -> None:
    assert CudaOptions().session_options("fp16") == {}
    assert CudaOptions().session_options("int4") == {
        "ep.cuda.fpa_intb_gemm": "1",
        "session.use_device_allocator_for_initializers": "1",
    }
    widened = CudaOptions(fused_int4=False).session_options("int4")
    assert widened == {"ep.cuda.fpa_intb_gemm": "0"}


@pytest.mark.parametrize(("version", "strict"), [("1.23.2", True), ("1.26", True), ("1.27", False)])
def test_norms_are_strict_where_they_overflow(version: str, strict: bool) -> None:
    options = CudaOptions().provider_options(version)
    assert ("enable_skip_layer_norm_strict_mode" in options) is strict


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"gpu": -1}, "^gpu must be a whole number from 0 to 255; got -1$"),
        ({"gpu": None}, "gpu must be"),
        ({"gpu": True}, "gpu must be .*; got True"),
        ({"gpu": 256}, "gpu must be"),
        ({"memory_limit_mb": 0}, "memory_limit_mb must be .* from 1 to 1048576, or None; got 0"),
        ({"memory_limit_mb": 1.5}, "memory_limit_mb must be"),
        ({"stream": 0}, "stream must be"),
        ({"stream": 2**64}, "stream must be"),
        ({"arena": "huge"}, "arena must be one of exact, doubling; got 'huge'"),
        ({"copy_on_stream": 1}, "copy_on_stream must be True or False; got 1"),
        ({"fused_int4": "yes"}, "fused_int4 must be True or False; got 'yes'"),
    ],
)
def test_options_refuse(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        CudaOptions(**given)


def test_options_come_from_the_argument_or_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRM_EDGE_CUDA", raising=False)
    assert cuda_options(None) == CudaOptions()
    monkeypatch.setenv(
        "PRM_EDGE_CUDA", "gpu=1, memory_limit_mb=6000,arena=doubling,copy_on_stream=0,stream=7,"
    )
    assert cuda_options(None) == CudaOptions(
        gpu=1, memory_limit_mb=6000, arena="doubling", copy_on_stream=False, stream=7
    )
    assert cuda_options(CudaOptions(gpu=2)) == CudaOptions(gpu=2)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("gpu", "PRM_EDGE_CUDA must be a list as in gpu=1.*got 'gpu'"),
        (
            "gpus=1",
            "of gpu, memory_limit_mb, arena, stream, copy_on_stream, fused_int4, graphs; got 'gpus",
        ),
        ("gpu=1,gpu=2", "got 'gpu=2'"),
        ("gpu=-1", "PRM_EDGE_CUDA: gpu must be a whole number, got '-1'"),
        ("gpu=\u0663", "gpu must be a whole number"),
        ("gpu=300", "gpu must be a whole number from 0 to 255; got 300"),
        ("copy_on_stream=yes", "PRM_EDGE_CUDA: copy_on_stream must be 0 or 1, got 'yes'"),
        ("arena=big", "arena must be one of"),
    ],
)
def test_variable_refuses(text: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRM_EDGE_CUDA", text)
    with pytest.raises(ConfigError, match=match):
        cuda_options(None)


def test_options_are_a_cuda_options() -> None:
    with pytest.raises(ConfigError, match="cuda must be a CudaOptions, got dict"):
        cuda_options({"gpu": 1})  # type: ignore[arg-type]

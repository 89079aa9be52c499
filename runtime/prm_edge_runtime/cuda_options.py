"""How CUDA is used: which GPU, how much of its memory, on which stream.

In: :class:`CudaOptions`, or ``PRM_EDGE_CUDA`` with the same names. Out: the provider options that
onnxruntime takes. Imports nothing but this package's errors.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any, Final

from .errors import ConfigError

VARIABLE: Final = "PRM_EDGE_CUDA"
# name -> onnxruntime's arena_extend_strategy
ARENAS: Final = {"exact": "kSameAsRequested", "doubling": "kNextPowerOfTwo"}
MAX_GPU: Final = 255
MAX_MB: Final = 1 << 20
# Set always. Products of the float32 head are not cut to TF32; before onnxruntime 1.27 the norm of
# a half precision stream sums its squares in half precision, and overflows, unless it is strict.
ALWAYS: Final = {"use_tf32": "0"}
STRICT_BEFORE: Final = (1, 27)  # seen in the symbols of the libraries of 1.26, 1.27 and 1.31.1
STRICT: Final = {"enable_skip_layer_norm_strict_mode": "1"}
# One kernel that multiplies 4-bit and 8-bit blocks of 32 as they are; without it runs of more than
# 16 tokens widen the weights first. Off unless asked for; onnxruntime-gpu that does not know the
# key ignores it (1.31.1 knows it, for cards of compute capability 7.5 and newer).
FUSED: Final = "ep.cuda.fpa_intb_gemm"
# It holds the weights in an order of its own; this gives the memory of the other order back.
OWN_MEMORY: Final = {"session.use_device_allocator_for_initializers": "1"}
BLOCKS: Final = "int4"  # the precision whose linears are in blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaOptions:
    """Options of the CUDA device; the defaults suit one model on one GPU.

    ``gpu``: its number. ``memory_limit_mb``: of 1,000,000 bytes, for weights and working memory
    (keys and values come on top); None for no limit. ``arena``: ``exact`` takes what is needed,
    ``doubling`` takes ever larger pieces. ``stream``: address of a CUDA stream of yours to compute
    on; None for its own. ``copy_on_stream``: whether copies wait for what is computed on it.
    ``fused_int4``: whether int4 weights are multiplied as they are; their memory then does not
    count for ``memory_limit_mb``. ``graphs``: whether short session steps are replayed as CUDA
    graphs (see :mod:`.step_graphs`); never run on a GPU yet, so off.
    """

    gpu: int = 0
    memory_limit_mb: int | None = None
    arena: str = "exact"
    stream: int | None = None
    copy_on_stream: bool = True
    fused_int4: bool = True
    graphs: bool = False

    def __post_init__(self) -> None:
        for name, value, smallest, largest, none in (
            ("gpu", self.gpu, 0, MAX_GPU, False),
            ("memory_limit_mb", self.memory_limit_mb, 1, MAX_MB, True),
            ("stream", self.stream, 1, 2**64 - 1, True),
        ):
            if value is None and none:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                refuse = True
            else:
                refuse = value > largest
            if refuse:
                raise ConfigError(
                    f"{name} must be a whole number from {smallest} to {largest}"
                    f"{', or None' if none else ''}; got {repr(value)[:40]}"
                )
        if self.arena not in ARENAS:
            raise ConfigError(f"arena must be one of {', '.join(ARENAS)}; got {self.arena!r}")
        for name in ("copy_on_stream", "fused_int4", "graphs"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name} must be True or False; got {repr(value)[:40]}")

        if self.graphs and self.stream is not None:
            raise ConfigError(
                "graphs are captured on a stream of onnxruntime's own, got stream "
                f"{self.stream}: leave one of the two out"
            )

    def provider_options(self, version: str) -> dict[str, str]:
        """What the CUDA provider of this onnxruntime takes."""
        options = {
            **ALWAYS,
            "device_id": str(self.gpu),
            "arena_extend_strategy": ARENAS[self.arena],
            "do_copy_in_default_stream": "1" if self.copy_on_stream else "0",
        }
        if _release(version) < STRICT_BEFORE:
            options |= STRICT
        if self.memory_limit_mb is not None:
            options["gpu_mem_limit"] = str(self.memory_limit_mb * 1_000_000)
        if self.stream is not None:
            options["user_compute_stream"] = str(self.stream)
        if self.graphs:
            options["enable_cuda_graph"] = "1"
        return options

    def session_options(self, precision: str) -> dict[str, str]:
        """What a session of a variant of this precision is told besides."""
        if precision != BLOCKS:
            return {}
        return {FUSED: "1", **OWN_MEMORY} if self.fused_int4 else {FUSED: "0"}


def cuda_options(given: CudaOptions | None) -> CudaOptions:
    """The argument, else ``PRM_EDGE_CUDA`` (``gpu=1,memory_limit_mb=6000``), else the defaults.

    Raises:
        ConfigError: when the variable names no option, or an impossible value.
    """
    if given is not None:
        if not isinstance(given, CudaOptions):
            raise ConfigError(f"cuda must be a CudaOptions, got {type(given).__name__}")
        return given
    known = {field.name: field.type for field in fields(CudaOptions)}
    found: dict[str, Any] = {}
    for part in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        name, equals, text = part.partition("=")
        if not equals or name not in known or name in found:
            raise ConfigError(
                f"{VARIABLE} must be a list as in gpu=1,memory_limit_mb=6000, each once, of "
                f"{', '.join(known)}; got {part[:40]!r}"
            )
        found[name] = _value(name, text, str(known[name]))
    return CudaOptions(**found)


def _value(name: str, text: str, kind: str) -> Any:
    if kind == "str":
        return text
    if kind == "bool":
        if text not in ("0", "1"):
            raise ConfigError(f"{VARIABLE}: {name} must be 0 or 1, got {text[:40]!r}")
        return text == "1"
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{VARIABLE}: {name} must be a whole number, got {text[:40]!r}")
    return int(text[:30])


def _release(version: str) -> tuple[int, int]:
    major, minor = [*version.split("."), "0"][:2]
    return int(major), int(minor)

"""Checkpoints whose weights are quantized already, each kind refused by name.

Recognised by config.json, by the small file that a tool leaves, and by the names and types of
tensors: what says it is named in the refusal. Imports nothing but the runtime's errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prm_edge_runtime.errors import UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One row: its name, and what gives it away.

    ``methods``: ``quant_method`` of config.json. ``files``: what its tool leaves. ``endings``: of
    tensor names. ``dtypes``: of tensors, in safetensors' and in torch's spelling.
    """

    name: str
    methods: tuple[str, ...]
    files: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()


KINDS: Final = (
    Kind(
        name="fp8",
        methods=("fp8", "fbgemm_fp8", "finegrained_fp8"),
        endings=(".weight_scale_inv",),
        dtypes=("F8_E4M3", "F8_E5M2", "torch.float8_e4m3fn", "torch.float8_e5m2"),
    ),
    Kind(name="GPTQ", methods=("gptq",), files=("quantize_config.json",), endings=(".g_idx",)),
    Kind(
        name="AWQ",
        methods=("awq",),
        files=("quant_config.json",),
        endings=(".qweight", ".qzeros"),  # GPTQ's too, which has .g_idx besides
    ),
    Kind(
        name="bitsandbytes",
        methods=("bitsandbytes",),
        endings=(".SCB", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4"),
    ),
    Kind(
        name="compressed-tensors",
        methods=("compressed-tensors", "compressed_tensors"),
        endings=(".weight_packed",),
    ),
)


def refuse_quantized_config(root: Path, config: Mapping[str, Any]) -> None:
    """Refuse what config.json or a file beside it calls quantized.

    Raises:
        UnsupportedError: naming the kind and what says so.
    """
    settings = config.get("quantization_config")
    if settings:
        method = _method(settings)
        name = next((kind.name for kind in KINDS if method in kind.methods), method)
        _refuse(root, name, f"config.json has a quantization_config of method {method!r}")
    for kind in KINDS:
        for file in kind.files:
            if (root / file).is_file():
                _refuse(root, kind.name, f"it holds {file}")


def refuse_quantized_tensors(root: Path, tensors: Iterator[tuple[str, str, str]]) -> None:
    """Refuse weights that were quantized whatever config.json says.

    ``tensors``: (file, name, dtype) of each.

    Raises:
        UnsupportedError: naming the kind, the file and the tensor.
    """
    found = list(tensors)
    for kind in KINDS:
        for file, name, dtype in found:
            if name.endswith(kind.endings) or dtype in kind.dtypes:
                _refuse(root, kind.name, f"{file} holds the tensor {name!r} of type {dtype}")


def _method(settings: Any) -> str:
    if not isinstance(settings, dict):
        return str(settings)
    if any(settings.get(key) for key in ("load_in_4bit", "load_in_8bit")):
        return "bitsandbytes"  # old ones name no method
    return str(settings.get("quant_method", "unknown"))


def _refuse(root: Path, name: str, reason: str) -> None:
    raise UnsupportedError(
        f"{root} is quantized already ({name}: {reason}); export the unquantized checkpoint that "
        "it was made from"
    )

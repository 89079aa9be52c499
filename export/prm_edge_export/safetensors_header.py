"""Say what is wrong with a safetensors file that the library refuses: which tensor, which number.

The library's own reason names neither. Nothing is decided here: the file is refused already.
Format: 8 bytes of length (little endian), that many bytes of JSON, then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, Final

MAX_HEADER_BYTES: Final = 100_000_000  # the library's own limit
BITS: Final[dict[str, int]] = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "F8_E4M3", "F8_E5M2", "I8", "U8"), 8),
}


def explain(path: Path) -> str | None:
    """What is wrong with the file, in words; None when that cannot be told."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if len(start) < 8:
                return f"it has {size} bytes, fewer than a header's length takes"
            length = struct.unpack("<Q", start)[0]
            if length > min(size - 8, MAX_HEADER_BYTES):
                return f"its header claims {length} bytes, the whole file has {size}"
            header = json.loads(file.read(length))
        return _wrong_tensor(header, size - 8 - length)
    except (OSError, ValueError, TypeError, RecursionError, AttributeError):
        return None


def _wrong_tensor(header: dict[str, Any], held: int) -> str | None:
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, dtype = entry.get("shape"), entry.get("dtype")
        start, end = entry.get("data_offsets")
        if dtype in BITS and math.prod(shape) * BITS[dtype] // 8 != end - start:
            return (
                f"tensor {name!r} of shape {shape} and type {dtype} needs "
                f"{math.prod(shape) * BITS[dtype] // 8} bytes, its header gives it {end - start}"
            )
        if not 0 <= start <= end <= held:
            return (
                f"tensor {name!r} lies at bytes {start} to {end} of the data, of which the file "
                f"holds {held}"
            )
    return None

"""What ``prm_edge.json`` is made of: names, limits and the smaller records, as data.

Imports nothing but the standard library; :mod:`manifest` reads them, :mod:`manifest_rules` judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MANIFEST_NAME: Final = "prm_edge.json"
TOKENIZER_NAME: Final = "tokenizer.json"
SELFTEST_NAME: Final = "selftest.json"
CARD_NAME: Final = "README.md"
GRAPH_SUFFIX: Final = ".onnx"

DEVICES: Final = ("cpu", "cuda")
PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8", "int4")
DECODER: Final = "decoder"
STATELESS: Final = "stateless"
INTERFACES: Final = (DECODER, STATELESS)
DEFAULT: Final = "default"  # the key of ``thresholds`` that every package has

REQUIRED_FILES: Final = (TOKENIZER_NAME, SELFTEST_NAME)
# the manifest cannot hold its own hash, and people edit the model card
UNLISTED_FILES: Final = (MANIFEST_NAME, CARD_NAME)
MAX_INTEGER: Final = 2**63 - 1
MAX_CACHE_SIZE: Final = 2**16  # of layers, heads and head size: far above any model

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the package: ``size`` in bytes, ``sha256`` as 64 lowercase hex digits."""

    size: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return {"size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Keys and values of the tokens that every record begins with, computed at export.

    ``ids``: these tokens. ``file``: beside the graph, little-endian float32 of the shape (2 *
    layers, kv_heads, ids, head_dim), a layer's keys before its values; they lie in the cache as if
    the graph had run the ids, which it never does.
    """

    file: str
    ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"file": self.file, "ids": list(self.ids)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One graph of the package, for one device and precision.

    ``graph`` and ``files`` are posix paths relative to the package, all below ``NAME/``; ``files``
    holds the graph and its external data. ``layers``, ``kv_heads``, ``head_dim``: shape of the
    key-value cache, all 0 for a ``stateless`` graph. ``proof``: the fidelity figures measured at
    export, flat; ``allowed_drift`` is true when the exporter was told to ignore its budget.
    ``prefix``: what the cache begins with; the key is absent when there is none.
    """

    name: str
    device: str
    precision: str
    interface: str
    graph: str
    files: tuple[str, ...]
    layers: int
    kv_heads: int
    head_dim: int
    proof: Mapping[str, Scalar]
    prefix: Prefix | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "precision": self.precision,
            "interface": self.interface,
            "graph": self.graph,
            "files": list(self.files),
            "layers": self.layers,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "proof": dict(self.proof),
            **({} if self.prefix is None else {"prefix": self.prefix.to_dict()}),
        }

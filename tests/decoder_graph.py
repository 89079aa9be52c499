"""The decoder graph of a package, run directly through the graph contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prm_edge_runtime import contract
from prm_edge_runtime.ort import open_session
from prm_edge_runtime.package import open_package


class Graph:
    """The decoder graph of a package, run by its contract's names."""

    def __init__(self, package: Path) -> None:
        self.variant = open_package(package).manifest.variants[0]
        self.session = open_session(package / self.variant.graph, device="cpu", threads=1)
        self.parts = [
            (layer, part) for layer in range(self.variant.layers) for part in ("key", "value")
        ]

    def empty(self, rows: int = 1) -> dict[str, Any]:
        shape = (rows, self.variant.kv_heads, 0, self.variant.head_dim)
        return {contract.past_name(*at): np.zeros(shape, np.float32) for at in self.parts}

    def run(
        self, ids: Any, reads: list[int], lengths: list[int], past: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """(B, S), flat reads, tokens per row with the cache counted -> logits, the new cache"""
        rows = np.atleast_2d(ids)
        total = past[contract.past_name(0, "key")].shape[2] + rows.shape[1]
        feeds = {
            "input_ids": rows.astype(np.int64),
            "reads": np.array(reads, dtype=np.int64),
            "last_token": np.array(lengths, dtype=np.int32) - 1,
            "total_tokens": np.array(total, dtype=np.int32),
            **past,
        }
        names = ["logits", *(contract.present_name(*at) for at in self.parts)]
        logits, *present = self.session.run(names, feeds)
        cache = {contract.past_name(*at): v for at, v in zip(self.parts, present, strict=True)}
        return logits, cache

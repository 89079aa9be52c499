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


IDS = np.random.default_rng(0).integers(2, 200, 96)


def check_two_chunks(graph: Graph, cut: int) -> None:
    """A run cut in two over the cache gives the numbers of one run, to the bit."""
    whole, _ = graph.run(IDS, list(range(96)), [96], graph.empty())
    first, cache = graph.run(IDS[:cut], list(range(cut)), [cut], graph.empty())
    second, _ = graph.run(IDS[cut:], list(range(96 - cut)), [96], cache)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)


def check_many_chunks(graph: Graph) -> None:
    """The same in chunks of 6 tokens."""
    whole, _ = graph.run(IDS, list(range(96)), [96], graph.empty())
    cache, pieces = graph.empty(), []
    for start in range(0, 96, 6):
        logits, cache = graph.run(IDS[start : start + 6], list(range(6)), [start + 6], cache)
        pieces.append(logits)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def check_padded_rows(graph: Graph) -> None:
    """Rows padded on the right give the numbers of separate runs, to the bit."""
    lengths = [96, 50, 18]
    padded = np.zeros((3, 96), dtype=np.int64)
    for row, length in enumerate(lengths):
        padded[row, :length] = IDS[:length]
    reads = [row * 96 + at for row, length in enumerate(lengths) for at in range(length)]
    together, _ = graph.run(padded, reads, lengths, graph.empty(3))
    alone = [graph.run(IDS[:n], list(range(n)), [n], graph.empty())[0] for n in lengths]
    np.testing.assert_array_equal(together, np.concatenate(alone))

"""The graph contract promises more than the engine uses: cached chunks, and padded batches."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from decoder_graph import Graph

from prm_edge_runtime import contract
from prm_edge_runtime.engine import DecoderEngine, open_engine
from prm_edge_runtime.package import open_package

IDS = np.random.default_rng(0).integers(2, 200, 96)


@pytest.fixture(scope="module")
def graph(tiny_package: Path) -> Graph:
    return Graph(tiny_package)


# no chunk has a length of 1 modulo engine.TILE: see there
@pytest.mark.parametrize("cut", [2, 15, 16, 18, 40, 62, 64, 94])
def test_graph_in_two_chunks_is_exact(graph: Graph, cut: int) -> None:
    whole, _ = graph.run(IDS, list(range(96)), [96], graph.empty())
    first, cache = graph.run(IDS[:cut], list(range(cut)), [cut], graph.empty())
    second, _ = graph.run(IDS[cut:], list(range(96 - cut)), [96], cache)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)


def test_graph_in_many_chunks_is_exact(graph: Graph) -> None:
    whole, _ = graph.run(IDS, list(range(96)), [96], graph.empty())
    cache, pieces = graph.empty(), []
    for start in range(0, 96, 6):
        logits, cache = graph.run(IDS[start : start + 6], list(range(6)), [start + 6], cache)
        pieces.append(logits)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_graph_with_rows_padded_on_the_right_is_exact(graph: Graph) -> None:
    lengths = [96, 50, 18]
    padded = np.zeros((3, 96), dtype=np.int64)
    for row, length in enumerate(lengths):
        padded[row, :length] = IDS[:length]
    reads = [row * 96 + at for row, length in enumerate(lengths) for at in range(length)]
    together, _ = graph.run(padded, reads, lengths, graph.empty(3))
    alone = [graph.run(IDS[:n], list(range(n)), [n], graph.empty())[0] for n in lengths]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_graph_in_place_is_exact_and_only_appends(tiny_package: Path) -> None:
    variant = open_package(tiny_package).manifest.variants[0]
    engine = open_engine(tiny_package / variant.graph, variant, logits=2, threads=1)
    assert isinstance(engine, DecoderEngine)
    whole = engine.run(IDS, np.arange(96))
    cache = engine.new_cache(200)
    cache[:] = 7.0  # nothing beyond the tokens may count
    pieces = []
    for start, stop in itertools.pairwise([0, 2, 34, 50, 96]):
        held = cache.copy()
        pieces.append(engine.extend(cache, start, IDS[start:stop], np.arange(stop - start)))
        assert (cache[:, :, :, :start] == held[:, :, :, :start]).all()
        assert (cache[:, :, :, stop:] == 7.0).all()
        assert (cache[:, :, :, start:stop] != 7.0).all()
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_graph_without_reads_still_fills_the_cache(graph: Graph) -> None:
    logits, cache = graph.run(IDS[:32], [], [32], graph.empty())
    assert logits.shape == (0, 2)
    assert cache[contract.past_name(0, "key")].shape[2] == 32
    whole, _ = graph.run(IDS, [95], [96], graph.empty())
    last, _ = graph.run(IDS[32:], [63], [96], cache)
    np.testing.assert_array_equal(last, whole)

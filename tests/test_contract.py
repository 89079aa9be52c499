"""The graph contract promises more than the engine uses: cached chunks, and padded batches."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from decoder_graph import IDS, Graph, check_many_chunks, check_padded_rows, check_two_chunks

from prm_edge_runtime import contract
from prm_edge_runtime.engine import DecoderEngine, open_engine
from prm_edge_runtime.package import open_package


@pytest.fixture(scope="module")
def graph(tiny_package: Path) -> Graph:
    return Graph(tiny_package)


# no chunk has a length of 1 modulo engine.TILE: see there
@pytest.mark.parametrize("cut", [2, 15, 16, 18, 40, 62, 64, 94])
def test_graph_in_two_chunks_is_exact(graph: Graph, cut: int) -> None:
    check_two_chunks(graph, cut)


def test_graph_in_many_chunks_is_exact(graph: Graph) -> None:
    check_many_chunks(graph)


def test_graph_with_rows_padded_on_the_right_is_exact(graph: Graph) -> None:
    check_padded_rows(graph)


def test_graph_in_place_is_exact_and_only_appends(tiny_package: Path) -> None:
    variant = open_package(tiny_package).manifest.variants[0]
    engine = open_engine(tiny_package / variant.graph, variant, logits=2, threads=1)
    assert isinstance(engine, DecoderEngine)
    whole = engine.run(IDS, np.arange(96))
    cache = engine.new_cache(200)
    cache.kv[:] = 7.0  # nothing beyond the tokens may count
    pieces = []
    for start, stop in itertools.pairwise([0, 2, 34, 50, 96]):
        held = cache.kv.copy()
        pieces.append(engine.extend(cache, start, IDS[start:stop], np.arange(stop - start)))
        assert (cache.kv[:, :, :, :start] == held[:, :, :, :start]).all()
        assert (cache.kv[:, :, :, stop:] == 7.0).all()
        assert (cache.kv[:, :, :, start:stop] != 7.0).all()
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_graph_without_reads_still_fills_the_cache(graph: Graph) -> None:
    logits, cache = graph.run(IDS[:32], [], [32], graph.empty())
    assert logits.shape == (0, 2)
    assert cache[contract.past_name(0, "key")].shape[2] == 32
    whole, _ = graph.run(IDS, [95], [96], graph.empty())
    last, _ = graph.run(IDS[32:], [63], [96], cache)
    np.testing.assert_array_equal(last, whole)

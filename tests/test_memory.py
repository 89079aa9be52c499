"""Keys and values on a device: the same graphs and addresses, with the CPU as the device."""

from __future__ import annotations

import base64
import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prm_edge_runtime import Scorer, contract, memory
from prm_edge_runtime.engine import DecoderEngine, open_engine
from prm_edge_runtime.errors import EngineError, PackageFormatError
from prm_edge_runtime.memory import DeviceMemory, HostMemory, Layout
from prm_edge_runtime.ort import Place, open_session
from prm_edge_runtime.package import open_package
from prm_edge_runtime.session import add_many

PLACE = Place(device="cpu")
LAYOUT = Layout(past=("a", "b"), present=("c", "d"), heads=3, head_dim=4, type=contract.FLOAT16)


def device_engine(package: Path, place: Place | None = PLACE) -> DecoderEngine:
    opened = open_package(package)
    variant = opened.manifest.variants[0]
    session = open_session(opened.path(variant.graph), device="cpu", threads=1)
    return DecoderEngine(session, variant, opened.manifest.recipe.logits, place)


def device_scorer(package: Path) -> Scorer:
    opened = open_package(package)
    return Scorer(opened, opened.manifest.variants[0], device_engine(package), "argument")


def test_graphs_are_what_onnx_makes() -> None:
    onnx = pytest.importorskip("onnx", reason="needs the export extra")
    helper, types = onnx.helper, onnx.TensorProto

    def four(name: str) -> Any:
        return helper.make_tensor_value_info(name, types.INT32, [None] * 4)

    def line(name: str, size: int = 1) -> Any:
        return helper.make_tensor_value_info(name, types.INT64, [size])

    def number(name: str, value: int) -> Any:
        return helper.make_tensor(name, types.INT64, [1], [value])

    def model(nodes: list[Any], inputs: list[Any], *constants: Any) -> bytes:
        graph = helper.make_graph(nodes, "g", inputs, [four("y")], list(constants))
        made = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
            producer_name="prm-edge",
        )
        written: bytes = made.SerializeToString(deterministic=True)
        return written

    node = helper.make_node
    expected = {
        "cut": model(
            [node("Slice", ["x", "start", "end", "axis"], ["y"])],
            [four("x"), line("start"), line("end")],
            number("axis", 2),
        ),
        "joined": model(
            [
                node("Slice", ["x", "zero", "start", "axis"], ["before"]),
                node("Slice", ["x", "end", "room", "axis"], ["after"]),
                node("Concat", ["before", "block", "after"], ["y"], axis=2),
            ],
            [four("x"), line("start"), four("block"), line("end"), line("room")],
            number("axis", 2),
            number("zero", 0),
        ),
        "cleared": model(
            [
                node(
                    "ConstantOfShape",
                    ["shape"],
                    ["y"],
                    value=helper.make_tensor("v", types.INT32, [1], [0]),
                )
            ],
            [line("shape", 4)],
        ),
    }
    found = {k: zlib.decompress(base64.b85decode(text)) for k, text in memory.GRAPHS.items()}
    assert found == expected


def test_copier_cuts_and_joins_as_numpy_does() -> None:
    copier = memory.Copier(LAYOUT, PLACE)
    value = copier.cleared(9)
    array = np.zeros((2, 3, 9, 2), dtype=np.int32)
    assert (value.numpy() == array).all()
    random = np.random.default_rng(0)
    for start, end in ((0, 9), (0, 4), (4, 9), (3, 5), (8, 9)):
        fill = random.integers(-(2**31), 2**31, (2, 3, end - start, 2), dtype=np.int32)
        block = memory.DeviceBlock(value=copier._new(end - start), nbytes=fill.nbytes)
        block.value.update_inplace(fill)
        value = copier.joined(value, start, block)
        array[:, :, start:end] = fill
        assert (value.numpy() == array).all()
        cut = copier.cut(value, start, end)
        assert (cut.value.numpy() == fill).all()
        assert cut.nbytes == fill.nbytes


def test_copier_names_a_failure() -> None:
    copier = memory.Copier(LAYOUT, PLACE)
    with pytest.raises(EngineError, match="failed to copy the keys and values of 4 tokens"):
        copier.cut(copier.cleared(3), 0, 4)  # there are only three


def test_copier_needs_whole_words() -> None:
    with pytest.raises(PackageFormatError, match="no whole words; the head size must be even"):
        memory.Copier(dataclasses.replace(LAYOUT, head_dim=3), PLACE)


def test_host_memory_refuses_bfloat16() -> None:
    layout = dataclasses.replace(LAYOUT, type=contract.BFLOAT16)
    with pytest.raises(PackageFormatError, match=r"tensor\(bfloat16\) are for a GPU"):
        HostMemory(None, layout)


def test_open_engine_takes_host_memory_on_the_cpu(tiny_package: Path) -> None:
    package = open_package(tiny_package)
    variant = package.manifest.variants[0]
    engine = open_engine(package.path(variant.graph), variant, logits=2, threads=1)
    assert isinstance(engine, DecoderEngine)
    assert isinstance(engine._memory, HostMemory)
    assert isinstance(device_engine(tiny_package)._memory, DeviceMemory)


# --- the whole road through device memory gives the bits of the other


STEPS = [f"{n} apples cost ${n}." + " So x = 4." * (n % 3) for n in range(6)]


def test_device_scores_are_those_of_the_host(tiny_package: Path) -> None:
    here, there = Scorer.load(tiny_package, threads=1), device_scorer(tiny_package)
    items = [("Solve 2x + 3 = 11.", STEPS[:n]) for n in (1, 3, 6)] + [("?", ["x = 1"])] * 2
    for a, b in zip(here.score_many(items), there.score_many(items), strict=True):
        assert a.logits == b.logits
        assert a.n_tokens_run == b.n_tokens_run
    long = "apples " * 200
    assert here.score(long, STEPS).n_tokens > here._open_decoder().limits.run_tokens
    assert here.score(long, STEPS).logits == there.score(long, STEPS).logits
    candidates = [[*STEPS[:2], "x = 1"], [*STEPS[:2], "x = 2"], ["x = 3"]]
    ranked = [scorer.rank("Solve 2x + 3 = 11.", candidates) for scorer in (here, there)]
    assert [c.logits for c in ranked[0].candidates] == [c.logits for c in ranked[1].candidates]


def test_device_sessions_fork_undo_and_grow(tiny_package: Path) -> None:
    scorer = device_scorer(tiny_package)
    whole = Scorer.load(tiny_package, threads=1).score("Solve 2x + 3 = 11.", STEPS * 3).scores
    session = scorer.session("Solve 2x + 3 = 11.")
    forks = []
    for step in STEPS * 3:  # longer than the first buffer
        forks.append(session.fork())
        session.peek(["x = 1", step])
        session.add(step)
    assert session.scores == whole
    for index, fork in reversed(list(enumerate(forks))):
        assert fork.add((STEPS * 3)[index]) == whole[index]
        assert fork.n_tokens_run < session.n_tokens / 2  # nothing was run again
    session.undo(4)
    assert add_many([(session, (STEPS * 3)[14]), (forks[15], "x = 9")])[0] == whole[14]


def test_device_prefix_cache_counts_device_bytes(tiny_package: Path) -> None:
    package = open_package(tiny_package)
    engine = device_engine(tiny_package)
    scorer = Scorer(package, package.manifest.variants[0], engine, "argument", prefix_cache_mb=10)
    first = scorer.score("Solve 2x + 3 = 11.", STEPS)
    again = scorer.score("Solve 2x + 3 = 11.", STEPS)
    assert again.logits == first.logits
    assert again.n_tokens_run == 0
    variant = package.manifest.variants[0]
    token = 2 * variant.layers * variant.kv_heads * variant.head_dim * 4
    assert scorer.prefix_cache.bytes > first.n_tokens * token


def test_device_failure_is_named(tiny_package: Path) -> None:
    engine = device_engine(tiny_package)
    ids = np.array([5, 10**6])
    with pytest.raises(EngineError, match="onnxruntime failed on a run of 2 tokens"):
        engine.run(ids, np.array([1]))
    with pytest.raises(EngineError, match="failed on a run of 2 tokens after 0"):
        engine.extend(engine.new_cache(8), 0, ids, np.array([1]))

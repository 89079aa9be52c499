"""Runs of the graph: its contract is checked at load, and no bit depends on what else is run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prm_edge_runtime import Scorer, contract
from prm_edge_runtime.engine import TILE, DecoderEngine, StatelessEngine, open_engine
from prm_edge_runtime.errors import EngineError, PackageFormatError
from prm_edge_runtime.manifest import Variant
from prm_edge_runtime.package import open_package

DECODER = Variant(
    name="cpu-fp32",
    device="cpu",
    precision="fp32",
    interface="decoder",
    graph="cpu-fp32/model.onnx",
    files=("cpu-fp32/model.onnx",),
    layers=2,
    kv_heads=3,
    head_dim=8,
    proof={},
)
STATELESS = dataclasses.replace(DECODER, interface="stateless", layers=0, kv_heads=0, head_dim=0)
INPUTS = contract.decoder_inputs(2, 3, 8)
OUTPUTS = contract.decoder_outputs(2, 3, 8)
BERT = (contract.INPUT_IDS, contract.ATTENTION_MASK, contract.TOKEN_TYPE_IDS)


class FakeSession:
    """Declares tensors and remembers its runs; logits are the token ids read, twice."""

    def __init__(
        self,
        inputs: Sequence[contract.Tensor],
        outputs: Sequence[contract.Tensor],
        returns: NDArray[Any] | Exception | None = None,
    ) -> None:
        self.inputs, self.outputs, self.returns = inputs, outputs, returns
        self.runs: list[dict[str, Any]] = []

    @staticmethod
    def _declared(tensors: Sequence[contract.Tensor]) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=t.name, type=t.type, shape=list(t.axes)) for t in tensors]

    def get_inputs(self) -> list[SimpleNamespace]:
        return self._declared(self.inputs)

    def get_outputs(self) -> list[SimpleNamespace]:
        return self._declared(self.outputs)

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[NDArray[Any]]:
        assert names == ["logits"]
        self.runs.append(feeds)
        if isinstance(self.returns, Exception):
            raise self.returns
        if self.returns is not None:
            return [self.returns]
        ids = feeds["input_ids"]
        chosen = ids[0, feeds["reads"]] if "reads" in feeds else ids
        return [np.stack([chosen, chosen], axis=-1).astype(np.float32)]


def ids_of(length: int) -> NDArray[np.int64]:
    return np.arange(100, 100 + length, dtype=np.int64)


def reads_of(*positions: int) -> NDArray[np.int64]:
    return np.array(positions, dtype=np.int64)


# --- decoder


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 18, 32, 33, 65, 129, 241])
def test_decoder_never_runs_a_tile_of_one_row(length: int) -> None:
    session = FakeSession(INPUTS, OUTPUTS)
    got = DecoderEngine(session, DECODER, 2).run(ids_of(length), reads_of(0, length - 1))
    assert got.tolist() == [[100, 100], [99 + length, 99 + length]]
    (feeds,) = session.runs
    ran = feeds["input_ids"].shape[1]
    assert ran == length + (length % TILE == 1)
    assert ran % TILE != 1
    assert feeds["input_ids"][0, :length].tolist() == ids_of(length).tolist()
    assert feeds["last_token"].tolist() == [ran - 1]
    assert feeds["total_tokens"].tolist() == ran


def test_decoder_feeds_are_the_contracts() -> None:
    session = FakeSession(INPUTS, OUTPUTS)
    DecoderEngine(session, DECODER, 2).run(ids_of(5), reads_of(4))
    types = {"int64": contract.INT64, "int32": contract.INT32, "float32": contract.FLOAT}
    fed = {name: (types[str(value.dtype)], value.ndim) for name, value in session.runs[0].items()}
    assert fed == {tensor.name: (tensor.type, len(tensor.axes)) for tensor in INPUTS}
    assert session.runs[0]["past.1.value"].shape == (1, 3, 0, 8)


def test_decoder_does_not_change_what_it_is_given() -> None:
    ids, reads = ids_of(17), reads_of(16)
    DecoderEngine(FakeSession(INPUTS, OUTPUTS), DECODER, 2).run(ids, reads)
    assert (ids.tolist(), reads.tolist()) == (ids_of(17).tolist(), [16])


def _retyped(tensors: Sequence[contract.Tensor], which: str, **changes: Any) -> list[Any]:
    return [dataclasses.replace(t, **changes) if t.name == which else t for t in tensors]


@pytest.mark.parametrize(
    ("inputs", "outputs", "named"),
    [
        (INPUTS[:-1], OUTPUTS, "past.1.value must be tensor(float) ['B', 3, 'P', 8], is nothing"),
        ((*INPUTS, contract.POSITION_IDS), OUTPUTS, "1 tensors, first unexpected tensor position_"),
        (
            _retyped(INPUTS, "reads", type=contract.INT32),
            OUTPUTS,
            "reads must be tensor(int64) ['N'], is tensor(int32) ['N']",
        ),
        (
            _retyped(INPUTS, "past.0.key", axes=("B", "P")),
            OUTPUTS,
            "past.0.key must be tensor(float) ['B', 3, 'P', 8], is tensor(float) ['B', 'P']",
        ),
        (
            _retyped(INPUTS, "past.1.key", axes=("B", 2, "P", 8)),
            OUTPUTS,
            "past.1.key must be tensor(float) ['B', 3, 'P', 8], is tensor(float) ['B', 2, 'P', 8]",
        ),
        (
            INPUTS,
            _retyped(OUTPUTS, "present.0.value", axes=("B", 3, "T", "D")),
            "present.0.value must be tensor(float) ['B', 3, 'T', 8], is tensor(float) ['B', 3, 'T'",
        ),
        (
            _retyped(INPUTS, "total_tokens", axes=(1,)),
            OUTPUTS,
            "total_tokens must be tensor(int32) [], is tensor(int32) [1]",
        ),
        (INPUTS, OUTPUTS[1:], "logits must be tensor(float) ['N', 'C'], is nothing"),
        (INPUTS, _retyped(OUTPUTS, "logits", type="tensor(float16)"), "is tensor(float16) ['N'"),
        (
            INPUTS,
            _retyped(OUTPUTS, "present.0.key", name="present.0.k"),
            "2 tensors, first unexpected tensor present.0.k; present.0.key must be",
        ),
    ],
)
def test_decoder_refuses_another_graph(inputs: Any, outputs: Any, named: str) -> None:
    match = rf"'cpu-fp32' does not follow the package format in .*{re.escape(named)}.*again"
    with pytest.raises(PackageFormatError, match=match):
        DecoderEngine(FakeSession(inputs, outputs), DECODER, 2)


def test_decoder_names_the_first_three_tensors_that_differ() -> None:
    with pytest.raises(PackageFormatError, match=r"in 4 tensors, first ") as caught:
        DecoderEngine(FakeSession(contract.decoder_inputs(2, 1, 8), OUTPUTS), DECODER, 2)
    assert str(caught.value).count("must be") == 3


def test_decoder_takes_axes_of_other_names() -> None:
    inputs = [
        dataclasses.replace(t, axes=tuple("x" if axis == "B" else axis for axis in t.axes))
        for t in INPUTS
    ]
    outputs = _retyped(OUTPUTS, "logits", axes=("N", 2))
    assert DecoderEngine(FakeSession(inputs, outputs), DECODER, 2).causal


def test_decoder_failure_says_how_long_the_run_was() -> None:
    session = FakeSession(INPUTS, OUTPUTS, RuntimeError("out of memory"))
    with pytest.raises(EngineError, match="failed on a run of 18 tokens: out of memory"):
        DecoderEngine(session, DECODER, 2).run(ids_of(17), reads_of(3))


@pytest.mark.parametrize(
    "returned",
    [
        np.zeros((1, 3), np.float32),
        np.zeros((2, 2), np.float32),
        np.zeros((1, 2), np.float64),
        np.zeros(2, np.float32),
    ],
)
def test_decoder_refuses_logits_of_another_shape(returned: NDArray[Any]) -> None:
    session = FakeSession(INPUTS, OUTPUTS, returned)
    with pytest.raises(EngineError, match=r"returned logits of shape .*expected \(1, 2\) and flo"):
        DecoderEngine(session, DECODER, 2).run(ids_of(4), reads_of(3))


# --- stateless


@pytest.mark.parametrize("optional", [(), (contract.TOKEN_TYPE_IDS,), (contract.POSITION_IDS,)])
def test_stateless_feeds_what_the_graph_asks_for(optional: tuple[contract.Tensor, ...]) -> None:
    inputs = (*contract.STATELESS_REQUIRED, *optional)
    session = FakeSession(inputs, (contract.TOKEN_LOGITS,))
    engine = StatelessEngine(session, STATELESS, 2)
    got = engine.run(ids_of(17), reads_of(3, 16))
    assert got.tolist() == [[103, 103], [116, 116]]
    assert got.flags.c_contiguous
    assert not engine.causal
    (feeds,) = session.runs
    assert set(feeds) == {tensor.name for tensor in inputs}
    assert {value.shape for value in feeds.values()} == {(1, 17)}
    assert {str(value.dtype) for value in feeds.values()} == {"int64"}
    assert feeds["attention_mask"].tolist() == [[1] * 17]
    assert feeds.get("token_type_ids", np.zeros(1)).sum() == 0
    if "position_ids" in feeds:
        assert feeds["position_ids"].tolist() == [list(range(17))]


@pytest.mark.parametrize(
    ("inputs", "outputs", "named"),
    [
        (BERT[:1], (contract.TOKEN_LOGITS,), "attention_mask"),
        ((*BERT, contract.READS), (contract.TOKEN_LOGITS,), "reads"),
        (BERT, (contract.LOGITS,), r"logits must be .*'B', 'S', 'C'\], is .*\['N', 'C'\]"),
        (BERT, (contract.TOKEN_LOGITS, contract.READS), "reads"),
        (INPUTS, OUTPUTS, "last_token"),
    ],
)
def test_stateless_refuses_another_graph(inputs: Any, outputs: Any, named: str) -> None:
    with pytest.raises(PackageFormatError, match=f"does not follow the package format.*{named}"):
        StatelessEngine(FakeSession(inputs, outputs), STATELESS, 2)


def test_stateless_failures() -> None:
    broken = FakeSession(BERT, (contract.TOKEN_LOGITS,), ValueError("odd"))
    with pytest.raises(EngineError, match="failed on a run of 9 tokens: odd"):
        StatelessEngine(broken, STATELESS, 2).run(ids_of(9), reads_of(8))
    short = FakeSession(BERT, (contract.TOKEN_LOGITS,), np.zeros((1, 8, 2), np.float32))
    with pytest.raises(EngineError, match=r"shape \(1, 8, 2\).*expected \(1, 9, 2\)"):
        StatelessEngine(short, STATELESS, 2).run(ids_of(9), reads_of(8))


# --- the frozen package, for real


def test_open_engine_checks_the_real_graph(tiny_package: Path) -> None:
    package = open_package(tiny_package)
    variant = package.variant("cpu-fp32")
    graph = package.path(variant.graph)
    assert open_engine(graph, variant, logits=2, threads=1).causal
    with pytest.raises(
        PackageFormatError, match=r"2 tensors, first unexpected tensor past\.1\.key;"
    ):
        open_engine(graph, dataclasses.replace(variant, layers=1), logits=2, threads=1)
    with pytest.raises(PackageFormatError, match="does not follow the package format"):
        open_engine(graph, dataclasses.replace(variant, interface="stateless"), logits=2, threads=1)


@pytest.mark.parametrize("shape", [{"kv_heads": 3}, {"head_dim": 9}, {"kv_heads": 10**30}])
def test_open_engine_cache_of_another_shape(shape: dict[str, int], tiny_package: Path) -> None:
    # found at load, not by the first record
    package = open_package(tiny_package)
    variant = dataclasses.replace(package.variant("cpu-fp32"), **shape)
    with pytest.raises(
        PackageFormatError, match=r"in 4 tensors, first past\.0\.key must be .*, is"
    ):
        open_engine(package.path(variant.graph), variant, logits=2, threads=1)


def test_open_engine_head_of_another_size(tiny_package: Path) -> None:
    package = open_package(tiny_package)
    variant = package.variant("cpu-fp32")
    engine = open_engine(package.path(variant.graph), variant, logits=3, threads=1)
    with pytest.raises(EngineError, match=r"shape \(1, 2\) and type float32, expected \(1, 3\)"):
        engine.run(reads_of(5, 6), reads_of(1))


def test_engine_failure_is_raised_and_not_printed(
    tiny_package: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    package = open_package(tiny_package)
    variant = package.variant("cpu-fp32")
    engine = open_engine(package.path(variant.graph), variant, logits=2, threads=1)
    with pytest.raises(EngineError, match="onnxruntime failed on a run of 2 tokens"):
        engine.run(reads_of(5, 10**6), reads_of(1))  # a token outside the vocabulary
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module", params=[1, 2])
def engine(request: pytest.FixtureRequest, tiny_package: Path) -> Any:
    package = open_package(tiny_package)
    variant = package.variant("cpu-fp32")
    return open_engine(package.path(variant.graph), variant, logits=2, threads=request.param)


LENGTHS = [1, 2, 3, 15, 16, 17, 18, 31, 32, 33, 48, 49, 64, 65, 127, 128, 129, 130, 144, 145]
LENGTHS += [255, 256, 257, 258, 384, 385, 400, 499, 511]


def test_engine_prefix_is_bit_exact(engine: Any) -> None:
    # a score must not change by a bit when later steps are appended
    ids = np.random.default_rng(0).integers(2, 363, 512)
    everywhere = np.arange(512, dtype=np.int64)
    whole = engine.run(ids, everywhere)
    assert np.abs(whole).std() > 0.5  # tiny logits would hide differences
    for length in LENGTHS:
        prefix = engine.run(ids[:length], everywhere[:length])
        assert prefix.tobytes() == whole[:length].tobytes(), f"length {length}"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17])
def test_engine_logits_do_not_depend_on_the_other_reads(engine: Any, count: int) -> None:
    ids = np.random.default_rng(1).integers(2, 363, 257)
    whole = engine.run(ids, np.arange(257, dtype=np.int64))
    some = np.sort(np.random.default_rng(count).choice(257, count, replace=False))
    assert engine.run(ids, some).tobytes() == whole[some].tobytes()


def test_engine_threads_do_not_change_a_bit(tiny_package: Path) -> None:
    package = open_package(tiny_package)
    variant = package.variant("cpu-fp32")
    ids = np.random.default_rng(2).integers(2, 363, 385)
    runs = {
        open_engine(package.path(variant.graph), variant, logits=2, threads=threads)
        .run(ids, np.arange(385, dtype=np.int64))
        .tobytes()
        for threads in (1, 2, 2, 3)
    }
    assert len(runs) == 1


def test_score_does_not_change_when_steps_are_appended(tiny_package: Path) -> None:
    scorer = Scorer.load(tiny_package)
    steps = [f"{n} apples cost ${n}." + " So x = 4." * (n % 4) for n in range(12)]
    whole = scorer.score("Solve 2x + 3 = 11.", steps)
    assert None not in whole.scores
    for count in range(1, len(steps)):
        part = scorer.score("Solve 2x + 3 = 11.", steps[:count])
        assert part.scores == whole.scores[:count]
        assert part.logits == whole.logits[:count]


# --- a graph as large as the smallest real models: other kernels, other tiles


@pytest.fixture(scope="module")
def wide_scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    pytest.importorskip("torch", reason="needs the export extra")
    import checkpoints

    from prm_edge_export.options import ExportOptions
    from prm_edge_export.pipeline import export

    folder = tmp_path_factory.mktemp("wide")
    checkpoint = checkpoints.trl_llama(
        folder / "checkpoint",
        hidden_size=192,
        intermediate_size=512,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=273,  # 1 modulo 16: the longest record is one that is padded
    )
    texts = folder / "texts.jsonl"
    texts.write_text('{"problem": "2x = 8", "steps": ["x = 5", "x = 4"], "label": 0}\n')
    export(
        ExportOptions(checkpoint=checkpoint, out=folder / "package", separator="\n", verify=texts)
    )
    return Scorer.load(folder / "package", threads=2)


def test_engine_wide_prefix_is_bit_exact(wide_scorer: Scorer) -> None:
    engine = wide_scorer._open_engine()
    ids = np.random.default_rng(3).integers(3, 256, wide_scorer.max_tokens)
    everywhere = np.arange(len(ids), dtype=np.int64)
    whole = engine.run(ids, everywhere)
    for length in (*(n for n in LENGTHS if n < len(ids)), len(ids)):
        prefix = engine.run(ids[:length], everywhere[:length])
        assert prefix.tobytes() == whole[:length].tobytes(), f"length {length}"
        last = engine.run(ids[:length], everywhere[length - 1 : length])
        assert last.tobytes() == whole[length - 1].tobytes(), f"length {length}"


def test_engine_longest_record_may_need_a_dummy_token(wide_scorer: Scorer) -> None:
    assert wide_scorer.max_tokens % TILE == 1
    fill = wide_scorer.max_tokens - wide_scorer.score("", ["a"]).n_tokens
    # one more "~" is one more token, so the two differ by it alone
    longest, longer = (
        wide_scorer.score("~" * (fill + more), ["a"], on_too_long="null") for more in (0, 1)
    )
    assert (longest.n_tokens, longer.n_tokens) == (273, 274)
    assert (longest.status, longer.status) == (("scored",), ("too_long",))

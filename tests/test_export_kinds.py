"""A second head that names errors: exported beside the first, with transformers as judge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import adapter_checkpoints
import checkpoints
import onnx
import torch
from checkpoints import KINDS, name_kinds
from int8_packages import SOLUTIONS, VERIFIED, export_int8, write_texts
from torch_reference import torch_kinds, torch_scores
from transformers import Qwen2Model

from prm_edge_export import graph, proof
from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.error_kinds import find_naming
from prm_edge_export.heads import find_head
from prm_edge_export.inspection import inspect_checkpoint
from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_export.sources import needed_files, open_checkpoint
from prm_edge_runtime import Scorer, Session, add_many
from prm_edge_runtime.engine import open_engine
from prm_edge_runtime.errors import (
    CheckpointError,
    ExportError,
    PackageFormatError,
    ProofError,
    SelfTestError,
    UnsupportedError,
)
from prm_edge_runtime.package import open_package
from prm_edge_runtime.tracks import RescoredTrack

PROBLEM, STEPS = VERIFIED[0]["problem"], VERIFIED[0]["steps"]
LOCAL = {"label_meaning": "local"}
HEAD = "error_kinds.safetensors"


def export_kinds(checkpoint: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Export with a handful of solutions; the report, with the lines that were said."""
    texts = out.parent / "texts"
    given: dict[str, Any] = {
        "separator": "\n",
        "verify": write_texts(texts / "verify.jsonl", VERIFIED),
        **options,
    }
    if given.get("target") == "cuda":
        given["calibration"] = write_texts(texts / "calibration.jsonl", SOLUTIONS)
    lines: list[str] = []
    result = export(ExportOptions(checkpoint=checkpoint, out=out, **given), lines.append)
    return {**result.report, "lines": lines}


def expected(checkpoint: Path, linear: torch.nn.Linear, problem: str, steps: list[str]) -> Any:
    """Softmax over what is no "none", by torch."""
    kept = [index for index, name in enumerate(KINDS) if name != "none"]
    outputs = torch_kinds(checkpoint, linear, problem, steps, "\n")
    return torch.softmax(outputs[:, kept], -1).numpy()


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Linear]:
    folder = checkpoints.trl_llama(tmp_path_factory.mktemp("named") / "tiny")
    return folder, name_kinds(folder, bias=True)


@pytest.fixture(scope="module")
def package(named: tuple[Path, torch.nn.Linear], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("package") / "package"
    export_kinds(named[0], out, **LOCAL)
    return out


@pytest.fixture
def scorer(package: Path) -> Iterator[Scorer]:
    with Scorer.load(package, threads=1) as loaded:
        yield loaded


# --- what comes out


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        checkpoints.trl_llama,
        checkpoints.trl_qwen2,
        checkpoints.trl_qwen3,
        checkpoints.trl_mistral,
        checkpoints.trl_phi3,
        checkpoints.trl_gemma2,
    ],
)
def test_kinds_are_torchs(make: Callable[..., Path], bias: bool, tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "tiny")
    linear = name_kinds(checkpoint, bias=bias)
    report = export_kinds(checkpoint, tmp_path / "p", trust_tokenizer_file=True, **LOCAL)
    assert report["proof"]["kinds_max_abs_dp"] < 1e-5
    assert report["proof"]["kinds_agreement"] == 1.0
    with Scorer.load(tmp_path / "p", threads=1, self_test=True) as scorer:
        assert scorer.error_kinds == ("sign", "slip", "lost term")
        result = scorer.score(PROBLEM, STEPS)
    assert result.kinds is not None
    wanted = expected(checkpoint, linear, PROBLEM, STEPS)
    assert wanted.max() > 0.5  # far from all alike
    np.testing.assert_allclose(result.kinds.probabilities, wanted, atol=1e-5)
    likeliest = [("sign", "slip", "lost term")[kind] for kind in wanted.argmax(axis=1)]
    scores = torch_scores(checkpoint, PROBLEM, STEPS, "\n")
    assert result.error_kinds == tuple(
        kind if score < 0.5 else None for kind, score in zip(likeliest, scores, strict=True)
    )


def test_head_of_two_layers_has_one_that_names_beside_it(tmp_path: Path) -> None:
    """Both read the final norm: what names errors is not behind the first one's first layer."""
    checkpoint = checkpoints.qwen_prm(tmp_path / "tiny")
    linear = name_kinds(checkpoint, bias=True)
    export_kinds(checkpoint, tmp_path / "p", separator=None)
    with Scorer.load(tmp_path / "p", threads=1) as scorer:
        kinds = scorer.score(PROBLEM, STEPS).kinds
        encoded = scorer._encoder.encode(PROBLEM, STEPS)
    backbone = Qwen2Model.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        hidden = backbone(input_ids=torch.from_numpy(encoded.ids)[None]).last_hidden_state
        outputs = linear(hidden[0, encoded.reads])[:, 1:]
    assert kinds is not None
    np.testing.assert_allclose(kinds.probabilities, torch.softmax(outputs, -1).numpy(), atol=1e-5)


def test_names_without_none_are_all_given(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    linear = name_kinds(checkpoint, ("a", "b"))
    export_kinds(checkpoint, tmp_path / "p")
    with Scorer.load(tmp_path / "p", threads=1) as scorer:
        kinds = scorer.score(PROBLEM, STEPS).kinds
        assert scorer.error_kinds == ("a", "b")
    assert kinds is not None
    wanted = torch.softmax(torch_kinds(checkpoint, linear, PROBLEM, STEPS, "\n"), -1)
    np.testing.assert_allclose(kinds.probabilities, wanted.numpy(), atol=1e-5)


QUANTIZED: dict[str, dict[str, Any]] = {
    "cpu-fp32": {},
    "cpu-int8": {"precision": "int8", "allow_drift": True},
    "cpu-int4": {"precision": "int4", "allow_drift": True},
    "cuda-fp16": {"target": "cuda", "precision": "fp16"},
    "cuda-bf16": {"target": "cuda", "precision": "bf16", "allow_drift": True},
}


def export_variant(checkpoint: Path, out: Path, name: str, **given: Any) -> dict[str, Any]:
    options = {**QUANTIZED[name], **LOCAL, **given}
    if name in ("cpu-int8", "cpu-int4"):
        return export_int8(checkpoint, out, **options)
    return export_kinds(checkpoint, out, **options)


@pytest.mark.parametrize("name", QUANTIZED)
def test_scores_are_to_the_bit_those_without_kinds(name: str, tmp_path: Path) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 200}
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny", **shape)
    export_variant(checkpoint, tmp_path / "without", name)
    name_kinds(checkpoint)
    report = export_variant(checkpoint, tmp_path / "with", name)
    assert "kinds_agreement" in report["proof"]
    # the same weights and nodes, and one product more
    graphs = [
        onnx.load(tmp_path / at / name / "model.onnx", load_external_data=False).graph
        for at in ("without", "with")
    ]
    nodes = [[node.SerializeToString(deterministic=True) for node in g.node] for g in graphs]
    assert nodes[1][: len(nodes[0])] == nodes[0]
    assert [node.op_type for node in graphs[1].node][len(nodes[0]) :] == ["Gemm"]
    weight = next(x for x in graphs[1].initializer if x.name == "naming.weight")
    assert weight.data_type == onnx.TensorProto.FLOAT  # whatever the others are
    assert [x.name for x in graphs[1].output][:2] == ["logits", "error_kinds"]
    if name == "cuda-bf16":
        return  # the CPU has no kernels for it; what it computes was proven on a float32 graph
    found = []
    for at in ("without", "with"):
        where = {"device": "cpu", "variant": name}
        with Scorer.load(tmp_path / at, threads=1, **where) as scorer:  # type: ignore[arg-type]
            found.append([scorer.score(x["problem"], x["steps"]) for x in (*VERIFIED, *SOLUTIONS)])
    assert [r.logits for r in found[0]] == [r.logits for r in found[1]]
    assert [r.scores for r in found[0]] == [r.scores for r in found[1]]
    assert all(r.kinds is None for r in found[0])
    assert all(r.kinds is not None for r in found[1])


@pytest.mark.parametrize(("name", "most"), [("cpu-int8", 0.05), ("cpu-int4", 0.3)])
def test_quantized_kinds_are_near_torchs(name: str, most: float, tmp_path: Path) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 200}
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny", **shape)
    linear = name_kinds(checkpoint, bias=True)
    report = export_variant(checkpoint, tmp_path / "p", name)
    with Scorer.load(tmp_path / "p", threads=1, self_test=True) as scorer:
        kinds = scorer.score(PROBLEM, STEPS).kinds
    assert kinds is not None
    wanted = expected(checkpoint, linear, PROBLEM, STEPS)
    assert abs(np.array(kinds.probabilities) - wanted).max() < most
    assert 0 < report["proof"]["kinds_mean_abs_dp"] < most


@pytest.mark.parametrize("rotated", [True, False])
def test_int8_names_kinds_in_any_basis(
    rotated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prm_edge_export.quantization import search

    monkeypatch.setattr(search, "_rotation_helps", lambda *given: rotated)
    shape = {"hidden_size": 128, "intermediate_size": 200}
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny", **shape)
    linear = name_kinds(checkpoint, bias=True)
    report = export_variant(
        checkpoint, tmp_path / "p", "cpu-int8", drift=1e-9
    )  # as exact as it gets
    assert report["plan"]["rotated"] == rotated
    with Scorer.load(tmp_path / "p", threads=1) as scorer:
        kinds = scorer.score(PROBLEM, STEPS).kinds
    assert kinds is not None
    wanted = expected(checkpoint, linear, PROBLEM, STEPS)
    assert abs(np.array(kinds.probabilities) - wanted).max() < 0.1


# --- every way to score carries them


SOLVED = [(item["problem"], item["steps"]) for item in (*SOLUTIONS, *VERIFIED)]


def test_score_many_and_rank_name_as_score_does(scorer: Scorer) -> None:
    alone = [scorer.score(*one) for one in SOLVED]
    assert any(kind for one in alone for kind in one.error_kinds or ())
    many = scorer.score_many(SOLVED)
    assert [one.kinds for one in many] == [one.kinds for one in alone]
    candidates = [STEPS, STEPS[:2], [*STEPS[:1], "so 6"], STEPS]
    ranked = scorer.rank(PROBLEM, candidates).candidates
    each = [scorer.score(PROBLEM, steps) for steps in candidates]
    assert [one.kinds for one in ranked] == [one.kinds for one in each]
    assert [one.error_kinds for one in ranked] == [one.error_kinds for one in each]


def test_prefix_cache_keeps_kinds(package: Path) -> None:
    with (
        Scorer.load(package, threads=1) as plain,
        Scorer.load(package, threads=1, prefix_cache_mb=8) as cached,
    ):
        first = [cached.score(*one) for one in SOLVED]
        again = [cached.score(*one) for one in SOLVED]
        wanted = [plain.score(*one) for one in SOLVED]
        assert cached.prefix_cache.hits >= len(SOLVED)
    assert sum(one.n_tokens_run for one in again) == 0  # all of it came out of the cache
    assert [one.kinds for one in first] == [one.kinds for one in wanted]
    assert [one.kinds for one in again] == [one.kinds for one in wanted]


def test_sessions_name_as_score_does(scorer: Scorer) -> None:
    steps = [*STEPS, "20 * 3 = 50", "So 7."]
    with scorer.session(PROBLEM) as session:
        assert session.error_kinds == ()
        for count, step in enumerate(steps, 1):
            whole = scorer.score(PROBLEM, steps[:count])
            peeked = session.peek_named([step, "something else"])
            assert session.peek([step]) == [peeked[0][0]]
            session.add(step)
            assert session.error_kinds == whole.error_kinds
            assert whole.error_kinds is not None
            assert peeked[0] == (whole.scores[-1], whole.error_kinds[-1])
        fork = session.fork()
        session.undo(2)
        fork.add("x = 1")
        assert session.error_kinds == scorer.score(PROBLEM, steps[:-2]).error_kinds
        assert fork.error_kinds == scorer.score(PROBLEM, [*steps, "x = 1"]).error_kinds
        add_many([(session, "a"), (fork, "b")])
        assert session.error_kinds == scorer.score(PROBLEM, [*steps[:-2], "a"]).error_kinds


def test_session_that_scores_anew_names_as_score_does(scorer: Scorer) -> None:
    steps = [*STEPS, "20 * 3 = 50"]
    track = RescoredTrack(
        PROBLEM,
        encoder=scorer._encoder,
        score=partial(scorer.score, on_too_long="null"),
        max_tokens=scorer.max_tokens,
    )
    with Session(track, reading=scorer._reading, threshold=scorer.threshold) as session:
        assert session.error_kinds == ()
        for count, step in enumerate(steps, 1):
            whole = scorer.score(PROBLEM, steps[:count])
            assert whole.error_kinds is not None
            assert session.peek_named([step]) == [(whole.scores[-1], whole.error_kinds[-1])]
            session.add(step)
            assert session.error_kinds == whole.error_kinds
        session.undo()
        assert session.error_kinds == scorer.score(PROBLEM, steps[:-1]).error_kinds


def test_first_error_alone_is_named_where_later_scores_say_nothing(
    named: tuple[Path, torch.nn.Linear], tmp_path: Path
) -> None:
    export_kinds(named[0], tmp_path / "p", label_meaning="until_first_error")
    with Scorer.load(tmp_path / "p", threads=1) as scorer:
        found = [scorer.score(*one) for one in SOLVED]
        below = [sum(score < 0.5 for score in one.scores if score is not None) for one in found]
        assert max(below) > 1
        for one, count in zip(found, below, strict=True):
            at = [index for index, kind in enumerate(one.error_kinds or ()) if kind is not None]
            assert at == ([] if count == 0 else [one.first_error])
        problem, steps = SOLVED[below.index(max(below))]
        with scorer.session(problem) as session:
            for step in steps:
                session.add(step)
            assert session.error_kinds == scorer.score(problem, steps).error_kinds
            # an error was made already: what comes next is no first one
            assert [kind for _, kind in session.peek_named(["x", "y", "z"])] == [None] * 3


def test_long_records_are_run_in_pieces_with_their_kinds(scorer: Scorer, package: Path) -> None:
    steps = [f"{n} + {n} = {2 * n}" for n in range(40)]
    result = scorer.score(PROBLEM, steps)
    assert result.n_tokens > 300  # more than one run
    assert result.kinds is not None
    short = scorer.score(PROBLEM, steps[:3])
    assert short.kinds is not None
    assert result.kinds.probabilities[:3] == short.kinds.probabilities


def test_steps_without_a_score_have_no_kind(scorer: Scorer) -> None:
    steps = [f"{n} + {n} = {2 * n}" for n in range(80)]
    result = scorer.score(PROBLEM, steps, on_too_long="null")
    assert result.scores[-1] is None
    assert result.kinds is not None
    assert [row is None for row in result.kinds.probabilities] == [s is None for s in result.scores]
    assert result.error_kinds is not None
    assert result.error_kinds[-1] is None
    windowed = scorer.score(PROBLEM, steps, on_too_long="window")
    assert windowed.kinds is not None
    assert None not in windowed.kinds.probabilities


# --- what the package says


def test_package_says_what_it_names(package: Path) -> None:
    manifest = open_package(package, verify="full").manifest
    assert manifest.error_kinds == KINDS
    report = json.loads((package / "cpu-fp32" / "report.json").read_text())
    assert set(report["proof"]) >= {"kinds_max_abs_dp", "kinds_mean_abs_dp", "kinds_agreement"}
    line = "kinds of error: sign, slip, lost term (error_kinds.weight [4, 64])"
    assert line in report["decisions"]
    card = (package / "README.md").read_text()
    assert "names the kind of error of each step below the threshold: `sign`, `slip`, `lost" in card
    assert "torch's at 100.0% of the steps (cpu-fp32)" in card
    cases = json.loads((package / "selftest.json").read_text())["cases"]
    assert all(len(case["error_kinds"]) == len(case["steps"]) for case in cases)


def test_other_names_are_other_weights(
    named: tuple[Path, torch.nn.Linear], package: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(named[0], tmp_path / "tiny")
    copy = shutil.copytree(package, tmp_path / "package")
    name_kinds(other, ("none", "sign", "slip", "another"), bias=True)
    with pytest.raises(
        ExportError, match="the kinds of error are none, sign, slip, another, there"
    ):
        export_kinds(other, copy, add=True, target="cuda", **LOCAL)
    (other / HEAD).unlink()
    with pytest.raises(
        ExportError, match=r"the kinds of error are none, there none, sign, slip, l"
    ):
        export_kinds(other, copy, add=True, target="cuda", **LOCAL)


def test_another_variant_names_the_same(
    named: tuple[Path, torch.nn.Linear], package: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(package, tmp_path / "package")
    export_kinds(named[0], copy, add=True, target="cuda", **LOCAL)
    with Scorer.load(copy, device="cpu", variant="cuda-fp16", self_test=True) as scorer:
        half = scorer.score(PROBLEM, STEPS).kinds
    with Scorer.load(copy, threads=1, variant="cpu-fp32") as scorer:
        full = scorer.score(PROBLEM, STEPS).kinds
    assert half is not None
    assert full is not None
    np.testing.assert_allclose(half.probabilities, full.probabilities, atol=1e-2)


def turn_naming(variant: Path) -> None:
    """Change the sign of every weight that names errors, in the file."""
    graph_file = onnx.load(variant / "model.onnx", load_external_data=False)
    weight = next(x for x in graph_file.graph.initializer if x.name == "naming.weight")
    place = {
        entry.key: int(entry.value) for entry in weight.external_data if entry.key != "location"
    }
    data = variant / "model.onnx.data"
    raw = bytearray(data.read_bytes())
    values = np.frombuffer(raw, np.float32, place["length"] // 4, place["offset"])
    values[:] = -values
    data.write_bytes(raw)


def refuse_turned(package: Path, name: str) -> None:
    with Scorer.load(package, threads=1, variant=name, self_test=True) as scorer:
        before = scorer.score(PROBLEM, STEPS).scores
    turn_naming(package / name)
    with Scorer.load(package, threads=1, variant=name, verify="sizes") as scorer:
        assert scorer.score(PROBLEM, STEPS).scores == before  # they are as they were
        with pytest.raises(SelfTestError, match="the probability of a kind of error is off by"):
            scorer.self_test()


def test_self_test_sees_another_head(package: Path, tmp_path: Path) -> None:
    refuse_turned(shutil.copytree(package, tmp_path / "package"), "cpu-fp32")


def test_self_test_of_int8_sees_another_head(tmp_path: Path) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 200}
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny", **shape)
    name_kinds(checkpoint)
    export_variant(checkpoint, tmp_path / "p", "cpu-int8")
    refuse_turned(tmp_path / "p", "cpu-int8")


def test_proof_sees_another_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    name_kinds(checkpoint)
    real = graph.DecoderBuilder._affine

    def turned(self: Any, name: str, layer: Any, source: str, out: str) -> str:
        made = real(self, name, layer, source, out)
        if name == "naming":  # the rows in another order
            weight = layer.read(self.tensors).numpy()[::-1]
            self.initializers[-1] = self.weights.add("naming.weight", np.ascontiguousarray(weight))
        return made

    monkeypatch.setattr(graph.DecoderBuilder, "_affine", turned)
    with pytest.raises(ProofError, match=r"kinds_max_abs_dp 0\.\d+ > 0\.0001, kinds_agreement"):
        export_kinds(checkpoint, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_every_precision_has_a_budget_for_kinds() -> None:
    for budget in proof.BUDGETS.values():
        assert {*budget.kinds_at_most} <= {"kinds_max_abs_dp", "kinds_mean_abs_dp"}
        assert {*budget.kinds_at_least} == {"kinds_agreement"}


# --- graph and manifest must agree


def test_graph_without_the_output_is_refused(package: Path, tiny_package: Path) -> None:
    opened = open_package(tiny_package)
    variant = opened.manifest.variants[0]
    with pytest.raises(PackageFormatError, match=r"error_kinds must be tensor\(float\) \['N', 4\]"):
        open_engine(opened.path(variant.graph), variant, logits=2, kinds=4, threads=1)


@pytest.mark.parametrize(
    ("kinds", "match"),
    [(0, "unexpected tensor error_kinds"), (3, r"is tensor\(float\) \['N', 4\]")],
)
def test_graph_with_another_output_is_refused(package: Path, kinds: int, match: str) -> None:
    opened = open_package(package)
    variant = opened.manifest.variants[0]
    with pytest.raises(PackageFormatError, match=match):
        open_engine(opened.path(variant.graph), variant, logits=2, kinds=kinds, threads=1)


# --- what a checkpoint may carry


def test_checkpoint_without_the_file_is_as_before(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    report = export_kinds(checkpoint, tmp_path / "p")
    assert not any("kinds" in key for key in report["proof"])
    assert "error_kinds" not in json.loads((tmp_path / "p" / "prm_edge.json").read_text())
    with Scorer.load(tmp_path / "p", threads=1) as scorer:
        assert scorer.error_kinds is None
        assert scorer.score(PROBLEM, STEPS).error_kinds is None
        with scorer.session(PROBLEM) as session:
            session.add(STEPS[0])
            assert session.error_kinds is None
            ((score, kind),) = session.peek_named([STEPS[1]])
            assert (session.peek([STEPS[1]]), kind) == ([score], None)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no names": ({"names": None}, "does not say what its 4 rows stand for; save it with metadata="),
    "one kind": ({"names": ("none", "sign")}, "must name at least two kinds of error besides 'no"),
    "a name twice": ({"names": ("a", "b", "a")}, "names 'a' twice"),
    "other width": (
        {"tensors": {"weight": torch.zeros(4, 63)}},
        "must have a row of 64 numbers, the hidden si",
    ),
    "no matrix": (
        {"tensors": {"weight": torch.zeros(64)}},
        r"has shape \[64\], and must have a row of 64",
    ),
    "other rows": ({"tensors": {"weight": torch.zeros(3, 64)}}, "holds 4 names for 3 rows"),
    "not finite": (
        {"tensors": {"weight": torch.full((4, 64), torch.nan)}},
        "holds values that are not finite",
    ),
    "whole numbers": (
        {"tensors": {"weight": torch.zeros(4, 64, dtype=torch.int64)}},
        "stored as I64, and must",
    ),
    "other tensors": (
        {"tensors": {"kernel": torch.zeros(4, 64)}},
        "must hold the tensor 'weight' and perhaps 'b",
    ),
    "more tensors": (
        {"tensors": {"weight": torch.zeros(4, 64), "scale": torch.ones(4)}},
        "must hold the tensor 'weight' and perhaps 'bias', and holds scale, weight",
    ),
    "other bias": (
        {"tensors": {"weight": torch.zeros(4, 64), "bias": torch.zeros(3)}},
        r"'error_kinds.bias' has shape \[3\], expected \[4\] as 'weight' has 4 rows",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_head_is_refused_in_one_sentence(what: str, tmp_path: Path) -> None:
    changes, match = WRONG[what]
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    name_kinds(checkpoint, **changes)
    with pytest.raises(CheckpointError, match=match) as caught:
        export_kinds(checkpoint, tmp_path / "p")
    assert HEAD in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", ["{", '"sign"', "[1, 2, 3, 4]", "null", "[" * 5000])
def test_names_that_are_none_are_refused(names: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    save_file({"weight": torch.zeros(4, 64)}, checkpoint / HEAD, metadata={"names": names})
    with pytest.raises(CheckpointError, match="must be a JSON list of texts, got"):
        export_kinds(checkpoint, tmp_path / "p")


def test_damaged_head_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    name_kinds(checkpoint)
    (checkpoint / HEAD).write_bytes((checkpoint / HEAD).read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=rf"{HEAD} cannot be read as safetensors"):
        export_kinds(checkpoint, tmp_path / "p")


def test_head_needs_a_native_decoder(tmp_path: Path) -> None:
    folder = checkpoints.trl_qwen2(tmp_path / "tiny")
    name_kinds(folder)
    match = "needs a decoder and the native backend; move it"
    with Checkpoint(folder) as checkpoint, pytest.raises(UnsupportedError, match=match):
        find_naming(checkpoint, None)


def test_tensor_of_the_weights_is_no_head(tmp_path: Path) -> None:
    folder = checkpoints.trl_llama(tmp_path / "tiny")
    tensors = checkpoints.read_tensors(folder)
    checkpoints.write_shards(folder, {**tensors, "error_kinds.weight": torch.zeros(4, 64)})
    with pytest.raises(CheckpointError, match=r"begins like the head of error_kinds\.safetensors"):
        export_kinds(folder, tmp_path / "p")


def test_inspect_says_what_a_checkpoint_names(named: tuple[Path, torch.nn.Linear]) -> None:
    found = inspect_checkpoint(ExportOptions(checkpoint=named[0], separator="\n"))
    assert any(line.startswith("kinds of error: sign, slip, lost term") for line in found.decisions)


def test_hub_checkpoint_brings_its_head() -> None:
    names = ["config.json", "model.safetensors", "tokenizer.json", HEAD, "other.safetensors"]
    assert HEAD in needed_files(names)
    assert "other.safetensors" not in needed_files(names)


def test_checkpoint_is_another_with_another_head(named: tuple[Path, torch.nn.Linear]) -> None:
    with Checkpoint(named[0]) as checkpoint:
        assert HEAD in checkpoint.identity()


# --- adapters


def test_adapter_has_its_own_head_and_not_its_bases(tmp_path: Path) -> None:
    base = adapter_checkpoints.base(tmp_path / "base")
    adapter_checkpoints.adapter(tmp_path / "lora", base)
    name_kinds(base, ("x", "y"))
    with open_checkpoint(tmp_path / "lora") as checkpoint:
        assert find_naming(checkpoint, 64) is None
        assert not any(name.startswith("error_kinds.") for name in checkpoint.tensors)
        assert HEAD not in checkpoint.identity()
    shutil.copy(base / "config.json", tmp_path / "lora" / "config.json")
    linear = name_kinds(tmp_path / "lora")
    (tmp_path / "lora" / "config.json").unlink()
    with open_checkpoint(tmp_path / "lora") as checkpoint:
        naming = find_naming(checkpoint, 64)
        assert naming is not None
        assert naming.names == KINDS
        assert torch.equal(naming.layer.read(checkpoint.tensors), linear.weight)
        assert HEAD in checkpoint.identity()
        assert find_head(checkpoint.tensors) is not None
    report = export_kinds(tmp_path / "lora", tmp_path / "p", **LOCAL)
    assert report["proof"]["kinds_agreement"] == 1.0

"""The optimum backend: encoders end to end, and Qwen2 as a second opinion on the native graph.

Tests marked ``optimum`` need optimum-onnx 0.1.0 and so transformers < 4.58.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import encoder_checkpoints
import numpy as np
import onnx
import pytest
import torch
from encoder_checkpoints import SEPARATOR

from prm_edge_export import optimum_backend, proof
from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.optimum_backend import export_stateless
from prm_edge_export.pipeline import ExportOptions
from prm_edge_export.pipeline import export as run
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import (
    ExportDependencyError,
    ExportError,
    ProofError,
    UnsupportedError,
)

Test = Callable[..., None]

TEXTS: list[tuple[str, list[str]]] = [
    ("What is 2 + 2?", ["2 + 2 = 4", "So the answer is 4."]),
    ("", ["", "  ", "after an empty and a blank step"]),
    ("Größe in m²: ½ · 3 ≤ π?", ["數学 שלום 👩\u200d🏫", "e\u0301 and é", "\u0000\u0007"]),
    ("A shop sells 12 apples", ["12 / 20 = 0.6 ; and more ; " * 4, "x" * 120, "= 3 dollars"]),
]


def _installed() -> bool:
    try:
        return importlib.util.find_spec("optimum.exporters.onnx") is not None
    except ModuleNotFoundError:
        return False


def needs_optimum(test: Test) -> Test:
    skip = pytest.mark.skipif(not _installed(), reason="needs the optimum extra (optimum-onnx)")
    return pytest.mark.optimum(skip(test))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # models this small lose more to waiting for each other's threads than they gain
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def verify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "verify.jsonl"
    lines = [json.dumps({"problem": problem, "steps": steps}) for problem, steps in TEXTS]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_checkpoints.bert(tmp_path_factory.mktemp("checkpoint") / "bert")


@pytest.fixture(scope="module")
def package(bert: Path, verify: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("package") / "bert-prm"
    return export(bert, out, verify=verify)


def export(checkpoint: Path, out: Path, **options: Any) -> Path:
    options = {"separator": SEPARATOR, **options}
    return run(ExportOptions(checkpoint=checkpoint, out=out, **options)).out


def scores(package: Path) -> list[tuple[float | None, ...]]:
    with Scorer.load(package) as scorer:
        return [scorer.score(problem, steps).scores for problem, steps in TEXTS]


# --- Qwen2: a second opinion on the native graph


@needs_optimum
def test_optimum_agrees_with_the_native_graph(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_qwen2(tmp_path / "qwen2")
    options = {"checkpoint": checkpoint, "separator": "\n"}
    native = run(ExportOptions(out=tmp_path / "native", **options)).out
    result = run(ExportOptions(out=tmp_path / "optimum", backend="optimum", **options))
    assert result.report["proof"]["max_abs_dp"] <= 1e-4
    assert result.report["provenance"]["backend"] == "optimum"
    texts, _ = proof.load_texts(None)
    assert len(texts) > 20
    with Scorer.load(native) as one, Scorer.load(result.out) as two:
        assert (two.package.manifest.variants[0].interface, two.variant) == (
            "stateless",
            one.variant,
        )
        compared = 0
        for text in texts:
            a, b = (
                scorer.score(text.problem, text.steps, on_too_long="null") for scorer in (one, two)
            )
            if b.n_tokens > two.max_tokens:
                continue  # a causal graph scores the beginning, a stateless one nothing
            np.testing.assert_allclose(a.scores, b.scores, rtol=0, atol=1e-4)
            np.testing.assert_allclose(a.logits, b.logits, rtol=1e-3, atol=1e-3)
            compared += len(a.scores)
    assert compared > 100


def test_optimum_refuses_llama_by_name(tmp_path: Path, verify: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "llama", bos=False)
    with pytest.raises(UnsupportedError, match=r"does not export llama .* use --backend native"):
        export(checkpoint, tmp_path / "out", backend="optimum", verify=verify)
    assert not (tmp_path / "out").exists()


# --- BERT: end to end


@needs_optimum
def test_bert_scores_equal_transformers(bert: Path, package: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(bert).eval()
    tokenizer = AutoTokenizer.from_pretrained(bert)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    reference = []
    for problem, steps in TEXTS:
        row, reads = ids(problem), []
        for step in steps:
            row += ids(step) + ids(SEPARATOR)
            reads.append(len(row) - 1)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row])).logits[0, reads]
        reference.append(tuple(logits.softmax(-1)[:, 1].tolist()))
    ours = scores(package)
    assert sum(map(len, ours)) == 11
    for a, b in zip(reference, ours, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert np.ptp([score for row in reference for score in row]) > 0.2


@needs_optimum
def test_bert_package_is_self_contained(package: Path, tmp_path_factory: Any) -> None:
    folder = package / "cpu-fp32"
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.onnx", "model.onnx.data", "report.json"}
    raw = (folder / "model.onnx").read_bytes()
    model = onnx.load_from_string(raw)
    places = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {"model.onnx.data"}
    assert str(tmp_path_factory.getbasetemp()).encode() not in raw
    assert b"site-packages" not in raw
    with Scorer.load(package, verify="full", self_test=True) as scorer:
        assert (scorer.max_tokens, scorer.recipe.family) == (256, "trl")


@needs_optimum
def test_bert_with_weights_that_optimum_wrote_beside_the_graph(
    bert: Path, package: Path, verify: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")  # as for a model of more than 2 GB
    out = export(bert, tmp_path / "out", verify=verify)
    names = {path.name for path in (out / "cpu-fp32").iterdir()}
    assert names == {"model.onnx", "model.onnx.data", "report.json"}
    assert b"onnx_data" not in (out / "cpu-fp32" / "model.onnx").read_bytes()
    assert scores(out) == scores(package)


@needs_optimum
def test_bert_over_the_limit_scores_nothing(package: Path) -> None:
    with Scorer.load(package) as scorer:
        steps = ["2 + 2 = 4"] * 60
        result = scorer.score("What is 2 + 2?", steps, on_too_long="null")
        assert result.n_tokens > scorer.max_tokens
        assert result.scores == (None,) * 60
        assert set(result.status) == {"too_long"}
        assert (result.n_tokens_run, result.verdict) == (0, "unknown")
        fitting = scorer.score("What is 2 + 2?", steps[:40])
        assert fitting.n_tokens <= scorer.max_tokens
        assert None not in fitting.scores


@needs_optimum
def test_hostile_config_runs_nothing(
    bert: Path, package: Path, verify: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = shutil.copytree(bert, tmp_path / "hostile")
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n"
    for name in ("modeling_evil", "configuration_evil", "onnx_config"):
        (checkpoint / f"{name}.py").write_text(code)
    checkpoints.edit_config(
        checkpoint,
        lambda data: data.update(
            architectures=["Evil"],
            auto_map={
                "AutoConfig": "configuration_evil.Evil",
                "AutoModelForTokenClassification": "modeling_evil.Evil",
            },
            attn_implementation="evil/kernels",
            _attn_implementation="evil/kernels:run",
            _attn_implementation_internal="evil/kernels",
            experts_implementation="evil/kernels",
            torch_dtype="__import__('os').abort()",
            dtype=["float8"],
            export_model_type="evil",
            transformers_weights="../evil.bin",
            problem_type="evil",
            custom_pipelines={"evil": {"impl": "modeling_evil.Evil"}},
            _name_or_path="evil/evil",
            return_dict=False,
            torchscript=True,
            chunk_size_feed_forward=-1,
        ),
    )

    def refuse(*_: object) -> None:
        raise OSError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    out = export(checkpoint, tmp_path / "out", verify=verify)
    assert scores(out) == scores(package)
    assert not marker.exists()
    assert not [
        name for name in sys.modules if name.startswith(("transformers_modules", "kernels"))
    ]


def test_custom_model_type_is_refused_by_name(bert: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(bert, tmp_path / "custom")
    checkpoints.edit_config(
        checkpoint,
        lambda data: data.update(
            model_type="evil-bert", auto_map={"AutoConfig": "configuration_evil.Evil"}
        ),
    )
    with pytest.raises(UnsupportedError, match=r"'evil-bert' .* not supported.* bert, .*, roberta"):
        export(checkpoint, tmp_path / "out")


# --- when optimum is missing, fails or complains


def test_missing_optimum_says_how_to_install_it(
    bert: Path, verify: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    with pytest.raises(ExportDependencyError, match=r"pip install 'prm-edge\[export,optimum\]'"):
        export(bert, tmp_path / "out", verify=verify)
    assert list(tmp_path.iterdir()) == []


@needs_optimum
def test_failed_validation_fails_the_export(
    bert: Path, verify: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimum_backend, "TOLERANCE", -1.0)
    with pytest.raises(ProofError, match=r"optimum's own validation .* not within the set tol"):
        export(bert, tmp_path / "out", verify=verify)
    assert list(tmp_path.iterdir()) == []


def stub(monkeypatch: pytest.MonkeyPatch, trace: Callable[[], object]) -> None:
    """Put a stand-in for optimum's tracer where the real one would be loaded."""
    tasks = SimpleNamespace(
        get_exporter_config_constructor=lambda *_, **__: lambda config: config,
    )

    def export(model: Any, config: Any, output: Path, device: str) -> tuple[list[str], list[str]]:
        trace()
        return [], []

    parts = (export, lambda *_, **__: None, tasks)
    monkeypatch.setattr(optimum_backend, "_load_optimum", lambda: parts)


def test_failed_tracing_is_named(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trace() -> None:
        raise RuntimeError("aten::evil is not supported")

    stub(monkeypatch, trace)
    with (
        Checkpoint(bert) as checkpoint,
        pytest.raises(ExportError, match=r"optimum cannot export this bert .*aten::evil"),
    ):
        export_stateless(checkpoint, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_optimum_warning_fails_the_export_and_is_not_printed(
    bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs = logging.getLogger("optimum")
    printer = logging.StreamHandler()
    monkeypatch.setattr(theirs, "handlers", [printer])
    monkeypatch.setattr(theirs, "propagate", False)
    warn = logging.getLogger("optimum.exporters.onnx.convert").warning
    stub(monkeypatch, lambda: warn("max diff %s is too much", 0.5))
    with (
        Checkpoint(bert) as checkpoint,
        pytest.raises(ProofError, match=r"raised a warning: max diff 0\.5 is too much"),
    ):
        export_stateless(checkpoint, tmp_path / "model.onnx")
    assert theirs.handlers == [printer]
    assert capsys.readouterr().err == ""
    assert "optimum: max diff 0.5" in caplog.text

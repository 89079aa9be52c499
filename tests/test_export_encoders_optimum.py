"""Encoders beside BERT, end to end through optimum, with transformers' own model as judge."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import encoder_checkpoints
import numpy as np
import pytest
import torch
from test_export_optimum import TEXTS, _one_thread, export, needs_optimum, verify

from prm_edge_export import optimum_backend
from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export as run
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import ProofError

__all__ = ["_one_thread", "verify"]  # fixtures

# transformers 4.57 uses what torch deprecates, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

SEPARATOR = "\n"
LONG = ("A shop sells 12 apples", [f"{n} + {n} = {2 * n}" for n in range(12)])


def judge(checkpoint: Path, problem: str, steps: list[str]) -> list[float]:
    """Scores by transformers alone, laid out as PRMTrainer does: BOS first if there is one."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    row = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    row += ids(problem)
    reads = []
    for step in steps:
        row += ids(step) + ids(SEPARATOR)
        reads.append(len(row) - 1)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([row])).logits[0, reads]
    return [float(p) for p in logits.softmax(-1)[:, 1]]


@needs_optimum
@pytest.mark.parametrize("kind", ["roberta", "modernbert", "deberta", "deberta-v2"])
def test_encoder_scores_equal_transformers(kind: str, verify: Path, tmp_path: Path) -> None:
    checkpoint = encoder_checkpoints.encoder(kind, tmp_path / "tiny")
    result = run(
        ExportOptions(
            checkpoint=checkpoint, out=tmp_path / "out", separator=SEPARATOR, verify=verify
        )
    )
    assert result.report["provenance"]["backend"] == "optimum"
    seen = []
    with Scorer.load(result.out, self_test=True) as scorer:
        assert scorer.package.manifest.variants[0].interface == "stateless"
        for problem, steps in [*TEXTS, LONG]:
            if problem == "":
                continue  # a text of separators alone
            expected = judge(checkpoint, problem, steps)
            got = scorer.score(problem, steps)
            assert got.scores == pytest.approx(expected, abs=1e-5)
            seen += expected
        # the same through a session, which runs everything again and says so
        problem, steps = LONG
        with scorer.session(problem) as session:
            assert not session.incremental
            for step in steps[:5]:
                session.add(step)
            assert session.n_tokens_run > session.n_tokens
            assert session.scores == scorer.score(problem, steps[:5]).scores
            whole = scorer.score(problem, [*steps[:5], "x = 1"])
            assert session.peek(["x = 1"]) == [whole.scores[-1]]
    assert np.ptp(seen) > 0.1


@needs_optimum
def test_encoder_scores_up_to_its_limit(verify: Path, tmp_path: Path) -> None:
    checkpoint = encoder_checkpoints.encoder("roberta", tmp_path / "tiny")
    package = export(checkpoint, tmp_path / "out", verify=verify, separator=SEPARATOR)
    with Scorer.load(package) as scorer:
        assert scorer.max_tokens == 256  # RoBERTa's 258 less the two up to its padding
        full = partial(scorer.score, on_too_long="null")
        steps = ["2 + 2 = 4"] * 60
        fits = [n for n in range(61) if full("", steps[:n]).n_tokens <= scorer.max_tokens]
        longest = scorer.score("", steps[: fits[-1]])
        assert longest.n_tokens > 240
        assert longest.scores == pytest.approx(judge(checkpoint, "", steps[: fits[-1]]), abs=1e-5)
        assert full("", steps).scores == (None,) * 60


@needs_optimum
def test_encoder_that_optimum_warns_about_fails(
    verify: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = encoder_checkpoints.encoder("roberta", tmp_path / "tiny")
    loaded = optimum_backend._load_optimum

    def load() -> Any:
        import logging

        trace, validate, tasks = loaded()

        def warn(*arguments: Any, **options: Any) -> Any:
            logging.getLogger("optimum.exporters.onnx").warning("The maximum absolute difference")
            return trace(*arguments, **options)

        return warn, validate, tasks

    monkeypatch.setattr(optimum_backend, "_load_optimum", load)
    with pytest.raises(ProofError, match="optimum's export raised a warning: The maximum absolute"):
        export(checkpoint, tmp_path / "out", verify=verify, separator=SEPARATOR)
    assert not (tmp_path / "out").exists()

"""The figures of the proof, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

from prm_edge_export import proof, stored_cases
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import CheckpointError, ProofError, SelfTestError
from prm_edge_runtime.selftest import Case


def compared(
    reference: list[float], package: list[float], label: int | None = None
) -> proof.Compared:
    """One solution with one-dimensional logits whose scores are given."""
    wanted, got = np.array(reference), np.array(package)
    text = proof.Text(problem="p", steps=("s",) * len(reference), label=label)
    return proof.Compared(
        text=text,
        reference_logits=wanted[:, None] * 10,
        package_logits=got[:, None] * 10,
        reference_scores=wanted,
        package_scores=got,
    )


def test_measure_counts_flips_and_first_errors() -> None:
    results = [compared([0.9, 0.4, 0.6], [0.9, 0.6, 0.6], 1), compared([0.8], [0.7], -1)]
    figures = proof.measure(results, 0.5)
    assert figures["steps"] == 4
    assert figures["max_abs_dp"] == pytest.approx(0.2)
    assert figures["mean_abs_dp"] == pytest.approx(0.3 / 4)
    assert figures["step_flip_rate"] == 0.25
    assert figures["first_error_agreement"] == 0.5
    assert figures["f1_torch"] == 1.0
    assert figures["f1_package"] == 0.0


def test_measure_relative_error_is_around_the_mean() -> None:
    # logits that share a large constant must not make the error look small
    plain = proof.measure([compared([0.1, 0.9], [0.1, 0.8])], 0.5)["logit_rel_rms"]
    shifted = proof.measure([compared([10.1, 10.9], [10.1, 10.8])], 0.5)["logit_rel_rms"]
    assert plain == pytest.approx(shifted)
    assert plain == pytest.approx(np.sqrt(0.01 / 2) / 0.4)


@pytest.mark.parametrize(
    ("labels", "found", "expected"),
    [
        ([0, -1], [0, None], 1.0),
        ([0, 1, -1, -1], [0, 0, None, None], 2 * 0.5 * 1 / 1.5),
        ([0, -1], [None, 0], 0.0),
        ([-1], [None], 0.0),
    ],
)
def test_f1_is_the_harmonic_mean(
    labels: list[int], found: list[int | None], expected: float
) -> None:
    assert proof.f1(labels, found) == pytest.approx(expected)


def test_check_budget_names_the_worst_steps() -> None:
    results = [compared([0.5, 0.9], [0.5, 0.8])]
    over = proof.check_budget(proof.measure(results, 0.5), results, "fp32")
    assert over is not None
    assert "max_abs_dp 0.1 > 0.0001" in over
    assert over.splitlines()[1].strip().startswith("|dp| 0.100000  torch 0.900000")
    assert proof.check_budget(proof.measure([compared([0.5], [0.5])], 0.5), [], "fp32") is None


def test_check_budget_tiny_logits_do_not_hide_errors() -> None:
    # scores agree to 1e-5, logits differ by 10% of their spread
    reference, package = [0.50001, 0.49999], [0.500011, 0.49999]
    results = [compared(reference, package)]
    over = proof.check_budget(proof.measure(results, 0.5), results, "fp32")
    assert over is not None
    assert "logit_rel_rms" in over


def test_self_test_cases_are_the_shortest() -> None:
    results = [compared([0.5] * n, [0.5] * n) for n in (9, 1, 5, 2, 7, 3)]
    assert [len(case.steps) for case in stored_cases.of_package(None, results)] == [1, 2, 3, 5]


def test_limits_refuse_a_score_that_is_missing() -> None:
    class Gone:  # a scorer that has no score where the stored case has one
        def score(self, problem: str, steps: object) -> object:
            return SimpleNamespace(scores=(None,), kinds=None)

    case = Case(problem="p", steps=("s",), scores=(0.5,))
    with pytest.raises(SelfTestError, match="got None"):
        stored_cases.limits(cast(Scorer, Gone()), [case], "int8")


def test_bundled_texts_are_worth_proving_on() -> None:
    texts, sha256 = proof.load_texts(None)
    assert len(sha256) == 64
    assert sum(len(text.steps) for text in texts) >= 350
    wrong = [text for text in texts if text.label is not None and text.label >= 0]
    assert 0.3 < len(wrong) / len(texts) < 0.7
    assert all(text.label is not None and -1 <= text.label < len(text.steps) for text in texts)


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        '{"problem": "p"}',
        '{"problem": 1, "steps": ["a"]}',
        '{"problem": "p", "steps": []}',
        '{"problem": "p", "steps": [1]}',
        '{"problem": "p", "steps": "s"}',
    ],
)
def test_load_texts_refuses_what_is_no_solution(content: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="each line must be a JSON object"):
        proof.load_texts(path)


def test_load_texts_refuses_nothing(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("\n\n")
    with pytest.raises(CheckpointError, match="hold no worked solution"):
        proof.load_texts(tmp_path / "texts.jsonl")
    with pytest.raises(CheckpointError, match="cannot be read"):
        proof.load_texts(tmp_path / "missing.jsonl")


class _Fake:
    """A scorer, encoder and reference in one, with what the test wants."""

    def __init__(self, tiny: Path, logit: float) -> None:
        from prm_edge_runtime import Scorer
        from prm_edge_runtime.encoding import RecipeEncoder

        self.scorer = Scorer.load(tiny)
        self.encoder = RecipeEncoder((tiny / "tokenizer.json").read_bytes(), self.scorer.recipe)
        self.logit = logit

    def run(self, ids: np.ndarray, reads: np.ndarray) -> np.ndarray:
        return np.full((len(reads), 2), self.logit, dtype=np.float32)


def test_compare_refuses_a_reference_that_is_not_finite(tiny_package: Path) -> None:
    fake = _Fake(tiny_package, float("nan"))
    text = proof.Text(problem="p", steps=("s",), label=None)
    with pytest.raises(ProofError, match="torch itself returns logits that are not finite"):
        proof.compare(fake.scorer, fake.encoder, fake, [text])


def test_compare_skips_texts_beyond_the_limit(tiny_package: Path) -> None:
    fake = _Fake(tiny_package, 0.0)
    long = proof.Text(problem="p", steps=("1 + 1 " * 600,), label=None)
    short = proof.Text(problem="p", steps=("s",), label=None)
    assert len(proof.compare(fake.scorer, fake.encoder, fake, [long, short])) == 1
    with pytest.raises(ProofError, match="every verification text is longer than"):
        proof.compare(fake.scorer, fake.encoder, fake, [long])

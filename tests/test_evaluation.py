"""The figures of ``prm-edge eval`` against brute force, scikit-learn and the published protocol."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_scorer import fake_scorer
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_edge import evaluation
from prm_edge.cli import cli
from prm_edge.cli import given as given_module
from prm_edge.evaluation import (
    best_of_n,
    by_class,
    compare,
    evaluate,
    judge,
    processbench,
    reliability,
    step_figures,
    tune_threshold,
)
from prm_edge.samples import Sample
from prm_edge.solutions import Truth
from prm_edge_runtime.errors import ConfigError

pytest.importorskip("sklearn")


def sample(
    scores: list[float | None], truth: Truth, *, group: str = "g", name: str | None = None
) -> Sample:
    return Sample(
        line=1, candidate=None, id=name, group=group, problem="", steps=(),
        scores=tuple(scores), truth=truth,
    )  # fmt: skip


def labelled(scores: list[float | None], label: int | None, group: str = "g") -> Sample:
    return sample(scores, Truth(label=label), group=group)


def published_f1(rows: list[tuple[int, int | None]]) -> float:
    """ProcessBench's own computation (its code/run_eval.py), rewritten."""
    wrong = [prediction == label for label, prediction in rows if label != -1]
    right = [prediction == label for label, prediction in rows if label == -1]
    acc1, acc2 = np.mean(wrong) * 100, np.mean(right) * 100
    return float(2 * acc1 * acc2 / (acc1 + acc2)) if acc1 + acc2 else 0.0


score_lists = st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]), min_size=1, max_size=4)
labels = st.integers(-1, 3)


@st.composite
def sample_lists(draw: st.DrawFn) -> list[Sample]:
    made = []
    for index in range(draw(st.integers(2, 10))):
        scores = draw(score_lists)
        label = min(draw(labels), len(scores) - 1)
        made.append(labelled(list(scores), label, group=str(index)))
    return made


@settings(max_examples=50, deadline=None)
@given(samples=sample_lists(), threshold=st.sampled_from([0.05, 0.2, 0.5, 0.9]))
def test_processbench_is_the_published_protocol(samples: list[Sample], threshold: float) -> None:
    judged = judge(samples, threshold)
    rows = []
    for item in samples:
        below = [i for i, s in enumerate(item.scores) if s is not None and s < threshold]
        rows.append((item.truth.label or 0, below[0] if below else -1))
    figures = processbench(judged)
    assert figures is not None
    if figures["n_erroneous"] and figures["n_right"]:
        assert figures["f1"] * 100 == pytest.approx(published_f1(rows))
    else:
        assert figures["f1"] is None


@settings(max_examples=50, deadline=None)
@given(samples=sample_lists())
def test_tune_threshold_is_the_best_of_all(samples: list[Sample]) -> None:
    tuned = tune_threshold(samples)
    kinds = {item.truth.label == -1 for item in samples}
    if len(kinds) < 2:
        assert tuned is None
        return

    def f1(threshold: float) -> float:
        figures = processbench(judge(samples, threshold))
        assert figures is not None
        return float(figures["f1"])

    assert tuned is not None
    everywhere = [-0.05, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0000005]
    assert f1(tuned) == pytest.approx(max(f1(threshold) for threshold in everywhere))


def test_a_missing_score_is_never_right() -> None:
    judged = judge([labelled([0.9, None], -1), labelled([None, 0.1], 1)], 0.5)
    assert [item.right for item in judged] == [False, False]
    assert judge([labelled([0.1, None], 0)], 0.5)[0].right


def test_processbench_knows_what_the_majority_would_get() -> None:
    figures = processbench(judge([labelled([0.9], -1)] * 3 + [labelled([0.2], 0)], 0.5))
    assert figures is not None
    assert (figures["majority_label"], figures["majority_accuracy"]) == (-1, 0.75)
    assert (figures["accuracy"], figures["f1"]) == (1.0, 1.0)
    assert processbench([]) is None


def test_intervals_hold_the_figure_and_are_those_of_problems() -> None:
    rng = np.random.default_rng(1)
    samples = []
    for index in range(200):
        label = int(rng.integers(-1, 2))
        scores = [0.9, 0.9] if label < 0 else [0.9 if i != label else 0.2 for i in range(2)]
        if rng.random() < 0.3:
            scores[0] = 0.4
        samples.append(labelled(list(scores), label, group=str(index)))
    figures = evaluate(samples, 0.5, neutral_is_good=True, bootstrap=300)
    bench, steps = figures["processbench"], figures["steps"]
    assert bench["f1_interval"][0] < bench["f1"] < bench["f1_interval"][1]
    assert bench["f1_interval"][1] - bench["f1_interval"][0] < 0.25
    assert steps["auc_interval"][0] < steps["auc"] < steps["auc_interval"][1]
    # one problem is no sample of problems
    alone = [labelled(list(s.scores), s.truth.label) for s in samples]
    assert processbench(judge(alone, 0.5), bootstrap=300)["f1_interval"] is None  # type: ignore[index]
    again = evaluate(samples, 0.5, neutral_is_good=True, bootstrap=300)
    assert json.dumps(again) == json.dumps(figures)


def test_step_figures_leave_out_what_is_unknown() -> None:
    figures = step_figures([labelled([0.9, 0.2, 0.8], 1), labelled([0.7, None], -1)])
    assert figures is not None
    assert (figures["n"], figures["n_good"], figures["auc"]) == (3, 2, 1.0)
    assert step_figures([labelled([0.9], None)]) is None
    one_class = step_figures([labelled([0.9], -1)])
    assert one_class is not None
    assert one_class["auc"] is None
    outside = step_figures([labelled([2.5], -1)])
    assert outside is not None
    assert "ece" not in outside


def test_reliability_and_ece_by_hand() -> None:
    scores = np.array([0.05, 0.05, 0.95, 1.0])
    good = np.array([False, True, True, True])
    table = reliability(scores, good)
    assert [row["n"] for row in table] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert table[0]["share_good"] == 0.5
    ece = evaluation.expected_calibration_error(table)
    assert ece == pytest.approx(0.5 * abs(0.05 - 0.5) + 0.5 * abs(0.975 - 1))


def test_by_class_is_the_mean_of_both_f1() -> None:
    samples = [
        sample([0.9, 0.1], Truth(ratings=(1, -1), group="a")),
        sample([0.9, 0.9], Truth(ratings=(1, -1), group="b")),
    ]
    first, second = by_class(samples, 0.5)
    assert (first["class"], first["prm_score"]) == ("a", 1.0)
    assert second["f1_good"] == pytest.approx(2 / 3)
    assert (second["f1_bad"], second["prm_score"]) == (0.0, pytest.approx(1 / 3))
    assert by_class(samples[:1], 0.5) == []


def test_best_of_n_by_hand() -> None:
    samples = [
        sample([0.9, 0.1], Truth(answer=True), group="p"),
        sample([0.5, 0.5], Truth(answer=False), group="p"),
        sample([0.3], Truth(answer=False), group="q"),
        sample([0.8], Truth(answer=True), group="q"),
        sample([0.8], Truth(), group="r"),
    ]
    figures = best_of_n(samples, 0.5, bootstrap=100)
    assert figures is not None
    assert (figures["problems"], figures["candidates"]) == (2, 4)
    assert (figures["pass_at_1"], figures["oracle"]) == (0.5, 1.0)
    assert (figures["min"], figures["last"]) == (0.5, 0.5)
    assert figures["mean"] == 1.0 or figures["mean"] == 0.5  # 0.5 each: the first wins a tie
    assert figures["min_interval"] == (0.0, 1.0)
    assert best_of_n(samples[2:3], 0.5) is None


def test_compare_lists_what_changed() -> None:
    ones = [sample([0.9], Truth(), name="a"), sample([0.4, 0.9], Truth(), name="b")]
    others = [sample([0.8], Truth(), name="a"), sample([0.6, 0.3], Truth(), name="b")]
    figures = compare(ones, others, 0.5, 0.5)
    assert (figures["n"], figures["n_steps"], figures["verdict_changed"]) == (2, 3, 0)
    assert figures["max_difference"] == pytest.approx(0.6)
    assert figures["changed"] == [
        {"record": "b", "verdict": "flawed", "first_error": 0, "other_verdict": "flawed",
         "other_first_error": 1}
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="not of the same records"):
        compare(ones, others[:1], 0.5, 0.5)


# --- the command ---


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["eval", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rows: list[dict[str, Any]] = [
        {"id": "a", "problem": "p", "steps": ["0.9", "0.4"], "label": 1, "scores": [0.9, 0.4],
         "other": [0.9, 0.9], "source": "x"},
        {"id": "b", "problem": "q", "steps": ["0.9"], "label": -1, "scores": [0.9],
         "other": [0.9], "source": "y"},
        {"id": "c", "problem": "q", "steps": ["0.3"], "label": -1, "scores": [0.45],
         "other": [0.45], "source": "y"},
    ]  # fmt: skip
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    paths[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths[1].write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    return paths


def test_eval_reports_files_and_their_average(files: list[Path]) -> None:
    data = json.loads(run(*files, "--json", "--bootstrap", 0).stdout)
    first, second = (data["files"][str(path)] for path in files)
    assert first["processbench"]["f1"] == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert second["processbench"]["f1"] == 1.0
    assert data["average"]["f1"] == pytest.approx((2 / 3 + 1) / 2)
    text = run(*files)
    assert text.exit_code == 0
    for words in ("F1 66.7%", "erroneous 100.0% of 1", "always none would be", "average of 2 files",
                  "class x", "ECE"):  # fmt: skip
        assert words in text.stdout


def test_eval_says_how_many_have_steps_without_a_score(files: list[Path]) -> None:
    assert "no score" not in run(files[1]).stdout
    with files[1].open("a") as stream:
        stream.write('{"problem": "n", "steps": ["a"], "label": -1, "scores": [null]}\n')
    assert "  no score      1 solutions have steps without one" in run(files[1]).stdout
    assert json.loads(run(files[1], "--json").stdout)["files"][str(files[1])]["unscored"] == 1


def test_eval_says_that_there_are_no_labels(files: list[Path]) -> None:
    assert "no labels" not in run(files[1]).stdout
    files[1].write_text('{"problem": "n", "steps": ["a"], "scores": [0.5]}\n')
    assert run(files[1]).stdout.endswith("nothing to measure: the records have no labels\n")


def test_eval_tunes_on_one_file_and_applies_it(files: list[Path]) -> None:
    data = json.loads(run(files[1], "--tune", files[0], "--json").stdout)
    assert data["files"][str(files[1])]["threshold"] == pytest.approx((0.4 + 0.45) / 2)


def test_eval_compares_two_scorings(files: list[Path]) -> None:
    result = run(files[0], "--versus", "other")
    assert "1 of 3 verdicts and 1 first errors differ" in result.stdout
    assert "a: flawed at step 2, then sound\n" in result.stdout


def test_eval_compares_two_variants(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(package: str, **options: Any) -> Any:
        asked.append(options["variant"])
        return fake_scorer()

    monkeypatch.setattr(given_module, "load_scorer", load)
    result = run(files[0], "-m", "pkg", "--variant", "one", "--versus", "two")
    assert result.exit_code == 0, result.stderr
    assert asked == ["one", "two"]
    assert "0 of 3 verdicts" in result.stdout


def test_eval_says_how_many_it_left_out(files: list[Path]) -> None:
    with files[0].open("a") as stream:
        stream.write('{"error": {"type": "InputError", "message": "m", "line": 4}}\n')
    result = run(files[0])
    assert result.exit_code == 3
    assert f"1 record of {files[0]} without scores; left out" in result.stderr


def test_eval_refuses(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "give one of them" in run(files[0], "--threshold", 0.5, "--tune", files[0]).stderr
    files[1].write_text(files[1].read_text().splitlines()[0])
    result = run(files[0], "--tune", files[1])
    assert result.exit_code == 2
    assert "--tune needs erroneous and right solutions" in result.stderr
    files[1].write_text('{"problem": "p", "steps": ["a"], "label": 5, "scores": [1]}')
    result = run(files[1])
    assert result.exit_code == 1
    assert "line 1: label must be from -1 to 0, got 5" in result.stderr
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = run(files[0])
    assert result.exit_code == 2
    assert "evaluation needs the extra eval: pip install 'prm-edge[eval]'" in result.stderr

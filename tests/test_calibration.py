"""What calibrate fits is the best there is, is measured on other problems, and is used."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_scorer import DIGEST, fake_scorer, manifest

from prm_edge.calibration import fit, fit_temperature, unsure_band, write_fit
from prm_edge.cli import calibrate as calibrate_module
from prm_edge.cli import cli
from prm_edge.jobs import make_job, score_line
from prm_edge.records import Line
from prm_edge.samples import Sample
from prm_edge.solutions import Truth
from prm_edge_runtime import calibration as runtime_calibration
from prm_edge_runtime.calibration import Calibration, cautious, tempered
from prm_edge_runtime.errors import ConfigError, InputError, PackageFormatError
from prm_edge_runtime.manifest import Manifest
from prm_edge_runtime.package import Package, open_package
from prm_edge_runtime.scorer import Scorer

pytest.importorskip("sklearn")

BAND = Calibration(temperature=2.0, unsure=(0.4, 0.6), fitted={"data": "d", "steps": 3})


def synthetic(count: int, *, sharpness: float = 3.0) -> list[Sample]:
    """Solutions of one step; the score is surer of it than it should be."""
    chance = np.random.default_rng(5)
    samples = []
    for index in range(count):
        odds = chance.normal() * 1.5
        good = chance.random() < 1 / (1 + math.exp(-odds))
        score = 1 / (1 + math.exp(-odds * sharpness - 1.0))
        samples.append(
            Sample(
                line=index, candidate=None, id=None, group=str(index), problem="", steps=(),
                scores=(score,), truth=Truth(label=-1 if good else 0),
            )
        )  # fmt: skip
    return samples


def test_fit_temperature_finds_how_sure_to_be() -> None:
    chance = np.random.default_rng(3)
    odds = chance.normal(size=20_000) * 2
    good = chance.random(20_000) < 1 / (1 + np.exp(-odds))
    sure = 1 / (1 + np.exp(-3 * odds))
    assert fit_temperature(sure, good) == pytest.approx(3.0, rel=0.05)
    assert fit_temperature(np.array([0.0, 1.0, 1.0]), np.array([False, True, False])) > 1


def test_tempered_divides_the_log_odds() -> None:
    from scipy.special import expit, logit

    for score in (0.001, 0.3, 0.5, 0.999):
        assert tempered(score, 2.5) == pytest.approx(expit(logit(score) / 2.5), abs=1e-12)
    assert tempered(0.0, 2.0) < 1e-5
    assert tempered(1.0, 2.0) > 1 - 1e-5


def test_unsure_band_leaves_what_is_right_often_enough() -> None:
    scores = np.array([0.1, 0.2, 0.45, 0.48, 0.55, 0.8, 0.9])
    good = np.array([False, False, True, False, False, True, True])
    band = unsure_band(scores, good, 0.5, 1.0)
    assert band is not None
    outside = (scores < band[0]) | (scores >= band[1])
    assert list(outside) == [True, True, False, False, False, True, True]
    assert band == (round(band[0], 6), round(band[1], 6))
    assert unsure_band(scores, good, 0.5, 0.5) is None  # none is needed
    assert unsure_band(scores, ~good, 0.5, 0.99) is None  # none suffices


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([0.9, 0.7], ("sound", None)),
        ([0.9, 0.6], ("sound", None)),
        ([0.9, 0.5, 0.1], ("unknown", None)),
        ([0.4], ("unknown", None)),
        ([0.9, 0.3, 0.5], ("flawed", 1)),
        ([0.9, None, 0.1], ("unknown", None)),
        ([], ("unknown", None)),
    ],
)
def test_cautious_says_unknown_in_the_band(scores: list[float | None], verdict: Any) -> None:
    assert cautious(scores, (0.4, 0.6)) == verdict


def test_fit_improves_what_it_was_not_fitted_to() -> None:
    samples = synthetic(1000)
    found = fit(samples, before=0.5, bounds=(0.0, 1.0), accuracy=0.8)
    facts = found.calibration.fitted
    assert found.calibration.temperature is not None
    assert found.calibration.temperature > 2
    assert facts["ece_after"] < facts["ece_before"]  # type: ignore[operator]
    assert facts["f1_after"] >= facts["f1_before"]  # type: ignore[operator]
    assert facts["sure_accuracy"] > facts["step_accuracy_after"]  # type: ignore[operator]
    assert facts["steps"] + facts["held_out_steps"] == 1000  # type: ignore[operator]
    again = fit(samples[::-1], before=0.5, bounds=(0.0, 1.0), accuracy=0.8)
    assert (again.threshold, again.calibration.unsure) == (
        found.threshold,
        found.calibration.unsure,
    )


def test_fit_without_probabilities_has_no_temperature() -> None:
    found = fit(synthetic(400), before=0.0, bounds=None, accuracy=0.8)
    assert found.calibration.temperature is None
    assert "ece_after" not in found.calibration.fitted


def test_fit_of_solutions_of_one_kind_takes_balanced_accuracy() -> None:
    chance = np.random.default_rng(2)
    samples = []
    for index in range(200):
        scores = (float(chance.uniform(0.7, 1)), float(chance.uniform(0, 0.6)))
        samples.append(
            Sample(line=index, candidate=None, id=None, group=str(index), problem="", steps=(),
                   scores=scores, truth=Truth(label=1))
        )  # fmt: skip
    found = fit(samples, before=0.5, bounds=(0.0, 1.0), accuracy=0.9)
    assert 0.58 < found.threshold < 0.72
    assert found.calibration.unsure is None


def test_fit_refuses_too_few_steps() -> None:
    with pytest.raises(InputError, match="steps of one kind; 20 good and 20 bad ones are needed"):
        fit(synthetic(50), before=0.5, bounds=None, accuracy=0.9)


# --- in the package ---


def test_manifest_keeps_a_calibration() -> None:
    fitted = dataclasses.replace(manifest(), calibration={"cpu-fp32": BAND})
    assert Manifest.from_json(fitted.to_json()) == fitted
    assert "calibration" not in manifest().to_dict()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"temperature": 0}, r"calibration\['cpu-fp32'\].temperature: must be above 0"),
        ({"temperature": "1"}, "temperature: must be a finite number"),
        ({"unsure": [0.6, 0.4]}, "unsure: must be two numbers, the lower first"),
        ({"unsure": [0.6]}, "unsure: must be two numbers"),
        ({"unsure": ["a", 1]}, "unsure: must hold only finite numbers"),
        ({"fitted": {"a": []}}, r"fitted\['a'\]: must be a finite scalar"),
        ({"more": 1}, "unknown key 'more'; known keys: fitted, temperature, unsure"),
    ],
)
def test_manifest_refuses_a_calibration(entry: dict[str, Any], message: str) -> None:
    data = {**manifest().to_dict(), "calibration": {"cpu-fp32": entry}}
    with pytest.raises(PackageFormatError, match=message):
        Manifest.from_dict(data)


def test_manifest_refuses_a_calibration_of_no_variant() -> None:
    data = {**manifest().to_dict(), "calibration": {"cpu-int8": {}}}
    with pytest.raises(PackageFormatError, match="'cpu-int8' is no variant; known: cpu-fp32"):
        Manifest.from_dict(data)


@pytest.fixture
def package(tiny_package: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "pkg"
    shutil.copytree(tiny_package, copy)
    return copy


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["calibrate", *map(str, arguments)])


@pytest.fixture
def labelled(tmp_path: Path, package: Path) -> Path:
    """Problems whose labels follow the tiny package's own scores, with noise."""
    path = tmp_path / "labelled.jsonl"
    chance = np.random.default_rng(0)
    rows = []
    with Scorer.load(package) as scorer:
        steps = [f"{a} + {b} = {a + b}" for a in range(12) for b in range(10)]
        scores = {step: scorer.score("p", [step]).scores[0] or 0.0 for step in steps}
    middle = float(np.median(list(scores.values())))
    for index, step in enumerate(steps):
        good = (scores[step] > middle) != (chance.random() < 0.1)
        row = {"problem": "p", "problem_id": index, "steps": [step], "label": -1 if good else 0}
        rows.append(json.dumps(row) + "\n")
    path.write_text("".join(rows))
    return path


def test_calibrate_writes_what_verdicts_use(package: Path, labelled: Path) -> None:
    before = open_package(package)
    result = calibrate(package, labelled, "--accuracy", 0.9, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    after = open_package(package)
    assert after.digest != before.digest
    assert after.manifest.thresholds["cpu-fp32"] == data["threshold"]
    assert after.manifest.calibration["cpu-fp32"].fitted["data"] == "labelled.jsonl"
    assert data["fitted"]["f1_after"] >= data["fitted"]["f1_before"]
    with Scorer.load(package) as scorer:
        assert scorer.threshold == data["threshold"]
    shown = CliRunner().invoke(cli, ["inspect", str(package)]).stdout
    assert "calibration of cpu-fp32" in shown
    assert "data_sha256" in shown
    assert "[" not in shown.split("calibration of cpu-fp32")[1].split("limits")[0]


def test_calibrate_dry_run_writes_nothing(package: Path, labelled: Path) -> None:
    before = (package / "prm_edge.json").read_bytes()
    result = calibrate(package, labelled, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "F1 of first errors" in result.stdout
    assert "nothing was written" in result.stdout
    assert (package / "prm_edge.json").read_bytes() == before


def test_write_fit_leaves_the_package_when_it_fails(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_package(package)
    found = fit(synthetic(400), before=0.5, bounds=(0.0, 1.0), accuracy=0.8)
    before = sorted(path.name for path in package.iterdir())

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_fit(opened, "cpu-fp32", found)
    assert sorted(path.name for path in package.iterdir()) == before
    assert open_package(package).digest == opened.digest
    monkeypatch.undo()
    with pytest.raises(PackageFormatError, match="'other' is no variant"):
        write_fit(opened, "other", found)


def test_calibrate_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, package: Path, labelled: Path
) -> None:
    monkeypatch.setattr(calibrate_module, "load_scorer", lambda *a, **k: fake_scorer())
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = calibrate(package, labelled)
    assert result.exit_code == 2
    assert "needs the extra eval" in result.stderr
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ConfigError, match="calibration needs the extra eval"):
        fit_temperature(np.array([0.1]), np.array([True]))


# --- when scoring ---


def calibrated() -> Scorer:
    scorer = fake_scorer()
    fitted = dataclasses.replace(
        manifest(), calibration={"cpu-fp32": BAND}, thresholds={"default": 0.5}
    )
    scorer.package = Package(root=Path("fake"), manifest=fitted, digest=DIGEST)  # type: ignore[misc]
    return scorer


def scored(row: dict[str, Any], **options: Any) -> dict[str, Any]:
    job = make_job(calibrated(), **options)
    data = json.dumps(row).encode()
    return dict(score_line(job, Line(number=1, data=data, n_bytes=len(data))).data)


def test_score_writes_probabilities_of_a_calibrated_package() -> None:
    row = scored({"problem": "p", "steps": ["0.9", "0.55"]})
    assert row["probabilities"] == [0.75, 0.525063]
    assert (row["verdict"], row["first_error"]) == ("sound", None)


def test_score_says_unknown_in_the_band_if_asked() -> None:
    row = scored({"problem": "p", "steps": ["0.9", "0.55"]}, unsure=True)
    assert (row["verdict"], row["first_error"]) == ("unknown", None)
    row = scored({"problem": "p", "candidates": [["0.55"], ["0.45"], ["0.9"]]}, unsure=True)
    assert [item["verdict"] for item in row["candidates"]] == ["unknown", "unknown", "sound"]
    assert row["best_sound"] == 2


def test_score_refuses_a_band_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="has no unsure band; fit one with prm-edge calibrate"):
        make_job(fake_scorer(), unsure=True)
    with pytest.raises(ConfigError, match="lies around the package's threshold; give no other"):
        make_job(calibrated(), unsure=True, threshold=0.7)


def test_calibration_probability_needs_no_temperature() -> None:
    plain = runtime_calibration.Calibration(temperature=None, unsure=None, fitted={})
    assert plain.probability(0.3) == pytest.approx(0.3)

"""Published models that are not exported: each refused by name, with one sentence why."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import family_checkpoints

from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.refusals import REFUSALS, refuse_known
from prm_edge_runtime.errors import UnsupportedError


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_checkpoints.math_shepherd(tmp_path_factory.mktemp("lm") / "lm")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("launch/ThinkPRM-14B", "a generative PRM .* writes its verdict as text"),
        ("GenPRM/GenPRM-7B", "a generative PRM"),
        ("kevinpro/R-PRM-7B-DPO", "a generative PRM"),
        ("PRIME-RL/EurusPRM-Stage2", "an implicit PRM .* of two language models"),
        ("Windy0822/ImplicitPRM_DPO", "an implicit PRM"),
        ("infly/Universal-PRM-7B", "a per-prefix PRM .* every step needs a run of its own"),
    ],
)
@pytest.mark.parametrize("place", ["hub", "config"])
def test_published_name_is_refused(name: str, said: str, place: str, language_model: Path) -> None:
    with Checkpoint(language_model) as checkpoint:
        refuse_known(checkpoint, {})  # an ordinary language model is not
        if place == "hub":
            checkpoint.origin["hub"] = name
        else:
            checkpoint.config["_name_or_path"] = name
        with pytest.raises(UnsupportedError, match=rf"is {said}") as caught:
            refuse_known(checkpoint, {})
    assert "\n" not in str(caught.value)


def test_other_names_are_not_refused(language_model: Path) -> None:
    for name in ("Qwen/Qwen2.5-Math-PRM-7B", "me/my-r-prm", "me/not-EurusPRM", "", None):
        with Checkpoint(language_model) as checkpoint:
            checkpoint.config["_name_or_path"] = name
            refuse_known(checkpoint, {})


def test_vision_and_two_pass_are_refused(language_model: Path) -> None:
    with Checkpoint(language_model) as checkpoint:
        added = {"<+>": 5, "<->": 6, "<extra>": 7}
        with pytest.raises(UnsupportedError, match=r"is a two-pass PRM \(PathFinder-PRM\), which"):
            refuse_known(checkpoint, added)
        checkpoint.config["vision_config"] = {}
        with pytest.raises(UnsupportedError, match=r"is a vision model .* judged from images"):
            refuse_known(checkpoint, {})


def test_each_reason_is_one_sentence() -> None:
    for refusal in REFUSALS:
        assert ". " not in refusal.reason
        assert not refusal.reason.endswith(".")

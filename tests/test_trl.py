"""The whole road for checkpoints that TRL's real PRMTrainer wrote: ``make test-trl``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trl_checkpoint

from prm_edge_runtime.errors import ProofError
from prm_edge_runtime.golden import read_golden
from prm_edge_runtime.recipe import Recipe, Tokens

TRL = "needs trl==1.13.0, the last release with PRMTrainer, and datasets"
pytest.importorskip("trl", reason=TRL)
pytest.importorskip("datasets", reason=TRL)
pytestmark = [
    pytest.mark.trl,
    # TRL, datasets and transformers deprecate each other's arguments; ours are checked elsewhere
    pytest.mark.filterwarnings("ignore"),
]

LONG_SEPARATOR = "\n##\n"
TEXTS: tuple[tuple[str, Sequence[str]], ...] = (
    ("", ["", " ", "after an empty step"]),
    ("\n\nQ\n", ["\nstarts", "ends\n\n", "\n"]),
    ("½ · 3 ≤ π — 数学, שלום, 👩\u200d🏫", ["∀x ∈ ℝ", "e\u0301 and é", "\u0000\u0007\u200f"]),
    ("long", ["1 + 1 = 2. " * 12, "x" * 30]),
)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One run of PRMTrainer: its folder, checkpoint and golden scores."""

    root: Path
    checkpoint: Path
    separator: str

    @property
    def golden(self) -> Path:
        return self.root / "golden.jsonl"

    def load(self) -> tuple[Any, Any]:
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        model = AutoModelForTokenClassification.from_pretrained(self.checkpoint)
        return model, AutoTokenizer.from_pretrained(self.checkpoint)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """Train each kind of checkpoint once."""
    done: dict[tuple[str, str], Trained] = {}

    def make(family: str, separator: str = trl_checkpoint.SEPARATOR) -> Trained:
        if (family, separator) not in done:
            root = tmp_path_factory.mktemp(family)
            checkpoint = trl_checkpoint.train(root, family, separator=separator)
            done[family, separator] = Trained(root=root, checkpoint=checkpoint, separator=separator)
        return done[family, separator]

    return make


def export(trained: Trained, out: Path, **options: Any) -> Path:
    from prm_edge_export.pipeline import ExportOptions
    from prm_edge_export.pipeline import export as run

    return run(ExportOptions(checkpoint=trained.checkpoint, out=out, **options)).out


def family_reading_one_token_early() -> Any:
    """The TRL family with its read position moved from the last separator token to the one before.

    The reference moves along: this is the mistake that the proof alone cannot see.
    """
    from prm_edge_export.families import FAMILIES

    family = FAMILIES["trl"]

    def build(request: Any) -> Recipe:
        recipe = family.build(request)
        step = tuple(
            replace(part, read=-2) if isinstance(part, Tokens) else part for part in recipe.step
        )
        return replace(recipe, step=step)

    def reference(*arguments: Any) -> tuple[list[int], list[int]]:
        ids, reads = family.reference(*arguments)
        early = [position - 1 for position in reads]
        return ids[: early[-1] + 1], early

    return replace(family, build=build, reference=reference)


@pytest.mark.parametrize("family", trl_checkpoint.FAMILIES)
def test_training_args_of_a_real_run_are_read(train: Callable[..., Trained], family: str) -> None:
    from prm_edge_export.training_args import TrainingArgs, read_training_args

    path = train(family).checkpoint / "training_args.bin"
    assert read_training_args(path) == TrainingArgs(
        step_separator="\n",
        max_length=trl_checkpoint.MAX_LENGTH,
        train_on_last_step_only=False,
        class_name="trl.experimental.prm.prm_config.PRMConfig",
        source=path,
        unreadable={},
    )


@pytest.mark.parametrize("family", trl_checkpoint.FAMILIES)
def test_golden_scores_of_a_real_run_are_those_of_the_saved_weights(
    train: Callable[..., Trained], family: str
) -> None:
    from prm_edge.record import score_with_trl

    trained = train(family)
    model, tokenizer = trained.load()
    records = read_golden(trained.golden)
    assert len(records) == len(trl_checkpoint.records())
    for record in records:
        again = score_with_trl(model, tokenizer, record.problem, record.steps, step_separator="\n")
        assert again == pytest.approx(record.scores, abs=1e-6)
        assert record.dtype == "float32"
    # scores that hardly differ would hide every mistake below
    scores = [score for record in records for score in record.scores]
    assert max(scores) - min(scores) > 0.5


def test_golden_scores_are_recorded_without_the_autocast_of_training(tmp_path: Path) -> None:
    from prm_edge.record import score_with_trl

    checkpoint = trl_checkpoint.train(tmp_path, "llama", bf16=True)  # PRMConfig's default
    trained = Trained(root=tmp_path, checkpoint=checkpoint, separator="\n")
    model, tokenizer = trained.load()
    for record in read_golden(trained.golden):
        again = score_with_trl(model, tokenizer, record.problem, record.steps, step_separator="\n")
        assert again == pytest.approx(record.scores, abs=1e-6)


@pytest.mark.parametrize("family", trl_checkpoint.FAMILIES)
def test_export_of_a_real_run_needs_nothing_but_its_path(
    train: Callable[..., Trained],
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prm_edge import Scorer
    from prm_edge.record import score_with_trl
    from prm_edge_export.pipeline import ExportOptions
    from prm_edge_export.pipeline import export as run

    trained = train(family)
    monkeypatch.chdir(tmp_path)
    result = run(ExportOptions(checkpoint=trained.checkpoint))
    assert result.out == Path("checkpoint-prm")
    model, tokenizer = trained.load()
    records = [(r["prompt"], r["completions"]) for r in trl_checkpoint.records()] + list(TEXTS)
    with Scorer.load(tmp_path / result.out) as scorer:
        for problem, steps in records:
            expected = score_with_trl(model, tokenizer, problem, steps, step_separator="\n")
            assert scorer.score(problem, steps).scores == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("separator", [trl_checkpoint.SEPARATOR, LONG_SEPARATOR])
@pytest.mark.parametrize("family", trl_checkpoint.FAMILIES)
def test_encoding_is_that_of_tokenize_row(
    train: Callable[..., Trained], family: str, separator: str
) -> None:
    from prm_edge.record import _encode
    from prm_edge_export.families import FAMILIES, Request
    from prm_edge_export.tokenizer_files import file_tokenizer, read_tokenizer
    from prm_edge_runtime.encoding import RecipeEncoder

    trained = train(family, separator)
    files = read_tokenizer(trained.checkpoint)
    tokenizer = file_tokenizer(files)
    recipe = FAMILIES["trl"].build(
        Request(files=files, tokenizer=tokenizer, separator=separator, good=1)
    )
    encoder = RecipeEncoder(files.raw, recipe)
    _, own = trained.load()
    for problem, steps in TEXTS:
        ids, reads = _encode(own, problem, steps, step_separator=separator, max_length=None)
        encoded = encoder.encode(problem, steps)
        assert (encoded.ids.tolist(), encoded.reads.tolist()) == (ids, reads)


@pytest.mark.parametrize("family", trl_checkpoint.FAMILIES)
def test_expect_accepts_the_scores_of_the_run(
    train: Callable[..., Trained], family: str, tmp_path: Path
) -> None:
    trained = train(family)
    assert export(trained, tmp_path / "pkg", expect=trained.golden).is_dir()


@pytest.mark.parametrize("family", trl_checkpoint.FAMILIES)
def test_expect_fails_on_a_wrong_separator(
    train: Callable[..., Trained], family: str, tmp_path: Path
) -> None:
    trained = train(family)
    for separator in (" ", "\n\n", "ки"):
        with pytest.raises(ProofError, match=r"check --recipe(,| and) --separator"):
            export(trained, tmp_path / "pkg", expect=trained.golden, separator=separator)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", trl_checkpoint.FAMILIES)
def test_expect_fails_on_a_separator_with_one_token_more(
    train: Callable[..., Trained], family: str, tmp_path: Path
) -> None:
    trained = train(family)
    with pytest.raises(ProofError, match="tokens where it was recorded and"):
        export(trained, tmp_path / "pkg", expect=trained.golden, separator="\nx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", trl_checkpoint.FAMILIES)
def test_expect_fails_on_a_read_that_is_off_by_one(
    train: Callable[..., Trained],
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prm_edge_export.families import FAMILIES

    trained = train(family, LONG_SEPARATOR)
    assert export(trained, tmp_path / "right", expect=trained.golden).is_dir()
    monkeypatch.setitem(FAMILIES, "trl", family_reading_one_token_early())
    export(trained, tmp_path / "unseen")  # the proof shares the recipe: it cannot tell
    with pytest.raises(ProofError, match=r"tokens where it was recorded|does not give the scores"):
        export(trained, tmp_path / "wrong", expect=trained.golden)
    without_counts = tmp_path / "golden.jsonl"
    _drop_token_counts(trained.golden, without_counts)
    with pytest.raises(ProofError, match="the package does not give the scores"):
        export(trained, tmp_path / "wrong", expect=without_counts)
    assert not (tmp_path / "wrong").exists()


def _drop_token_counts(source: Path, target: Path) -> None:
    from prm_edge.record import write_golden

    records = read_golden(source)
    write_golden(
        target,
        [(record.problem, record.steps, record.scores) for record in records],
        dtype="float32",
        source="a test",
    )


@pytest.mark.parametrize("family", trl_checkpoint.FAMILIES)
def test_expect_fails_on_swapped_labels(
    train: Callable[..., Trained], family: str, tmp_path: Path
) -> None:
    trained = train(family)
    with pytest.raises(ProofError, match=r"the package does not give the scores .* --good-label"):
        export(trained, tmp_path / "pkg", expect=trained.golden, good_label=0)
    assert list(tmp_path.iterdir()) == []

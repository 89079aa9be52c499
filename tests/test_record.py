"""The recorder reads where TRL labels, and leaves the trainer and its model as they were.

TRL itself is not needed here: a stand-in gives ids and labels. tests/test_trl.py uses the real one.
"""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from prm_edge.record import golden_recorder, score_with_trl
from prm_edge_runtime.errors import ConfigError, InputError, InputTypeError
from prm_edge_runtime.golden import read_golden

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

ROWS = [
    {"prompt": "2+2?", "completions": ["It is 4.", "Done."], "labels": [True, True]},
    {"prompt": "3+3?", "completions": ["It is 7."], "labels": [False]},
]
ARGS = SimpleNamespace(step_separator="\n", max_length=None)
MAIN = SimpleNamespace(is_world_process_zero=True)


class Tokenizer:
    """One id per character."""

    all_special_tokens = ("<s>",)


class Trainer:
    """What is used of PRMTrainer: one id per character, a label at each separator."""

    @staticmethod
    def tokenize_row(
        features: dict[str, Any],
        tokenizer: Tokenizer,
        step_separator: str,
        max_length: int | None,
        max_completion_length: int | None,
        train_on_last_step_only: bool,
        is_eval: bool,
    ) -> dict[str, list[int]]:
        assert isinstance(tokenizer, Tokenizer)
        assert is_eval
        assert not train_on_last_step_only
        assert max_completion_length is None
        ids = [ord(c) for c in features["prompt"]]
        labels = [-100] * len(ids)
        for step, label in zip(features["completions"], features["labels"], strict=True):
            piece = [ord(c) for c in step + step_separator]
            ids += piece
            labels += [-100] * (len(piece) - 1) + [int(label)]
        return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


class Model(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Logits (0, position / 10), plus noise in training mode."""

    def __init__(self, labels: int = 2) -> None:
        super().__init__()
        self.labels = labels
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.part = torch.nn.Dropout()
        self.fails = False

    def forward(self, input_ids: Any, attention_mask: Any) -> SimpleNamespace:
        assert not torch.is_grad_enabled()
        assert attention_mask.shape == input_ids.shape
        if self.fails:
            raise RuntimeError("out of memory")
        positions = torch.arange(input_ids.shape[1]) / 10 + (100 if self.training else 0)
        columns = [torch.zeros_like(positions)] * (self.labels - 1) + [positions]
        return SimpleNamespace(logits=torch.stack(columns, dim=-1)[None] + self.weight)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def trl(monkeypatch: pytest.MonkeyPatch) -> str:
    """A stand-in for TRL at the newest place where PRMTrainer lives."""
    for name in ("trl", "trl.experimental", "trl.experimental.prm"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["trl.experimental.prm"], "PRMTrainer", Trainer, raising=False)
    return "trl.experimental.prm"


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]


def test_record_imports_neither_torch_nor_trl_nor_transformers() -> None:
    code = (
        "import sys, prm_edge.record\n"
        "heavy = {'torch', 'trl', 'transformers', 'datasets', 'accelerate', 'onnxruntime'}\n"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("trl")
def test_score_with_trl_reads_at_the_labels() -> None:
    scores = score_with_trl(Model(), Tokenizer(), "2+2?", ["It is 4.", ""], step_separator="\n")
    # 4 characters, 8 and a separator at 12, then a separator alone at 13
    assert scores == pytest.approx([sigmoid(1.2), sigmoid(1.3)], abs=1e-7)


@pytest.mark.usefixtures("trl")
@pytest.mark.parametrize("training", [True, False])
def test_score_with_trl_leaves_every_module_in_its_mode(training: bool) -> None:
    model = Model().train(training)
    model.part.eval()
    score_with_trl(model, Tokenizer(), "p", ["s"], step_separator="\n")
    assert model.training is training
    assert model.part.training is False


@pytest.mark.usefixtures("trl")
def test_score_with_trl_runs_below_the_autocast_wrapper_of_accelerate() -> None:
    model = Model()
    plain = model.forward

    def wrapper(*_: object, **__: object) -> None:
        raise AssertionError("scores must not be computed under autocast")

    model._original_forward = plain
    model.forward = wrapper
    score_with_trl(model, Tokenizer(), "p", ["s"], step_separator="\n")
    assert model.forward is wrapper


@pytest.mark.usefixtures("trl")
def test_score_with_trl_reports_a_step_cut_off() -> None:
    with pytest.raises(InputError, match=r"TRL labels 1 of 2 steps: .* max_length=14 tokens"):
        score_with_trl(
            Model(), Tokenizer(), "2+2?", ["It is 4.", "Done."], step_separator="\n", max_length=14
        )


@pytest.mark.usefixtures("trl")
def test_score_with_trl_refuses_one_string() -> None:
    with pytest.raises(InputTypeError, match="steps must be a list of strings, got one string"):
        score_with_trl(Model(), Tokenizer(), "p", "one\ntwo", step_separator="\n")


@pytest.mark.usefixtures("trl")
def test_score_with_trl_refuses_no_steps() -> None:
    with pytest.raises(InputError, match="needs one step or more, got none"):
        score_with_trl(Model(), Tokenizer(), "p", [], step_separator="\n")


@pytest.mark.usefixtures("trl")
def test_score_with_trl_refuses_text_that_spells_a_special_token() -> None:
    with pytest.raises(InputError, match=r"spells the special token '<s>'.*leave this record out"):
        score_with_trl(Model(), Tokenizer(), "p", ["a <s> b"], step_separator="\n")


@pytest.mark.usefixtures("trl")
def test_score_with_trl_refuses_a_model_with_other_labels() -> None:
    with pytest.raises(ConfigError, match=r"the model has 3 labels; .* has 2"):
        score_with_trl(Model(labels=3), Tokenizer(), "p", ["s"], step_separator="\n")


def test_score_with_trl_finds_prm_trainer_where_older_trl_had_it(
    monkeypatch: pytest.MonkeyPatch, trl: str
) -> None:
    absent(monkeypatch, trl)
    for name in ("trl.trainer", "trl.trainer.prm_trainer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    old = sys.modules["trl.trainer.prm_trainer"]
    monkeypatch.setattr(old, "PRMTrainer", Trainer, raising=False)
    assert len(score_with_trl(Model(), Tokenizer(), "p", ["s"], step_separator="\n")) == 1


def test_score_with_trl_says_which_trl_has_prm_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "trl", "trl.experimental.prm", "trl.trainer.prm_trainer")
    with pytest.raises(ConfigError, match=r'pip install "trl==1\.13\.0", the last release'):
        score_with_trl(Model(), Tokenizer(), "p", ["s"], step_separator="\n")


def test_score_with_trl_passes_on_what_trl_itself_misses(
    monkeypatch: pytest.MonkeyPatch, trl: str
) -> None:
    monkeypatch.delitem(sys.modules, trl)
    sys.modules["trl.experimental"].__path__ = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "prm_edge.record.importlib.import_module",
            lambda name: (_ for _ in ()).throw(ModuleNotFoundError("no datasets", name="datasets")),
        )
        with pytest.raises(ModuleNotFoundError, match="no datasets"):
            score_with_trl(Model(), Tokenizer(), "p", ["s"], step_separator="\n")


@pytest.mark.usefixtures("trl")
def test_golden_recorder_writes_scores_when_training_ends(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    path = tmp_path / "golden.jsonl"
    recorder = golden_recorder(path, ROWS)
    assert isinstance(recorder, TrainerCallback)
    model = Model()
    recorder.on_train_begin(ARGS, MAIN, None, model=model, processing_class=Tokenizer())
    assert not path.exists()
    recorder.on_train_end(ARGS, MAIN, None, model=model, processing_class=Tokenizer())
    first, second = read_golden(path)
    assert first.scores == pytest.approx([sigmoid(1.2), sigmoid(1.8)], abs=1e-7)
    assert (first.problem, first.steps) == ("2+2?", ("It is 4.", "Done."))
    assert (first.dtype, first.n_tokens) == ("float32", 19)
    assert second.scores == pytest.approx([sigmoid(1.2)], abs=1e-7)
    assert model.training


@pytest.mark.usefixtures("trl")
def test_golden_recorder_uses_the_separator_of_the_trainer(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    recorder = golden_recorder(path, ROWS)
    arguments = SimpleNamespace(step_separator="\n\n", max_length=None)
    recorder.on_train_end(arguments, MAIN, None, model=Model(), processing_class=Tokenizer())
    assert read_golden(path)[0].scores[0] == pytest.approx(sigmoid(1.3), abs=1e-7)


@pytest.mark.usefixtures("trl")
def test_golden_recorder_writes_on_one_rank_only(tmp_path: Path) -> None:
    recorder = golden_recorder(tmp_path / "golden.jsonl", ROWS)
    other = SimpleNamespace(is_world_process_zero=False)
    recorder.on_train_end(ARGS, other, None, model=Model(), processing_class=Tokenizer())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("trl")
def test_golden_recorder_refuses_a_long_record_before_training(tmp_path: Path) -> None:
    recorder = golden_recorder(tmp_path / "golden.jsonl", ROWS)
    arguments = SimpleNamespace(step_separator="\n", max_length=14)
    with pytest.raises(InputError, match="TRL labels 1 of 2 steps"):
        recorder.on_train_begin(arguments, MAIN, None, model=Model(), processing_class=Tokenizer())


@pytest.mark.usefixtures("trl")
def test_golden_recorder_never_costs_a_trained_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    model.fails = True
    recorder = golden_recorder(tmp_path / "golden.jsonl", ROWS)
    with caplog.at_level(logging.ERROR, logger="prm_edge"):
        recorder.on_train_end(ARGS, MAIN, None, model=model, processing_class=Tokenizer())
    assert "golden scores were not written" in caplog.text
    assert "out of memory" in caplog.text
    assert model.training
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there is no record to score"),
        ([{"prompt": "p"}], r"record 0 must have the keys prompt .* got the keys \['prompt'\]"),
        ([ROWS[0], {"prompt": 1, "completions": []}], "record 1 must have the keys"),
        ([{"prompt": "p", "completions": "one"}], "record 0 must have the keys"),
        ([{"prompt": "p", "completions": []}], "record 0: completions must hold one string"),
        ([{"prompt": "p", "completions": [1]}], "record 0: completions must hold one string"),
    ],
)
def test_golden_recorder_refuses_rows_that_are_no_records(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        golden_recorder(tmp_path / "golden.jsonl", rows)


def test_golden_recorder_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; create it before training"):
        golden_recorder(tmp_path / "absent" / "golden.jsonl", ROWS)


def test_golden_recorder_says_when_transformers_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent(monkeypatch, "transformers")
    with pytest.raises(ConfigError, match="needs transformers, which is not installed"):
        golden_recorder(tmp_path / "golden.jsonl", ROWS)

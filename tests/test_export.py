"""The exporter end to end: tiny checkpoints in, packages out, transformers as judge."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
import torch
from torch_reference import torch_scores
from transformers import AutoModelForTokenClassification

from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export, preview
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    ProofError,
    UnsupportedError,
)

PROBLEM = "A shop sells 12 apples for $3. How much do 20 apples cost?"
STEPS = ["12 apples cost $3, so one costs 3 / 12 = $0.25.", "20 * 0.25 = 5", "So $5."]
TEXTS = [
    {"problem": PROBLEM, "steps": STEPS, "label": -1},
    {"problem": "Solve 2x + 3 = 11.", "steps": ["2x = 8", "x = 5", "\\boxed{5}"], "label": 1},
    {"problem": "What is ½ of 7?", "steps": ["7 / 2 = 3.5", "", "  so 3,5 — done\n"], "label": -1},
]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(text) + "\n" for text in TEXTS))
    return path


def run(checkpoint: Path, out: Path, texts: Path, **options: Any) -> dict[str, Any]:
    options.setdefault("separator", "\n")
    lines: list[str] = []
    result = export(
        ExportOptions(checkpoint=checkpoint, out=out, verify=texts, **options), lines.append
    )
    return {**result.report, "lines": lines}


MAKERS = {
    "llama": (checkpoints.trl_llama, {}),
    "llama-no-bos": (checkpoints.trl_llama, {"bos": False}),
    "llama-biases": (checkpoints.trl_llama, {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": (checkpoints.trl_llama, {"head_dim": 32}),
    "llama-one-kv-head": (checkpoints.trl_llama, {"num_key_value_heads": 1}),
    "qwen2": (checkpoints.trl_qwen2, {}),
    "qwen2-theta": (
        checkpoints.trl_qwen2,
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    ),
    "qwen3": (checkpoints.trl_qwen3, {}),
    "qwen3-biases": (checkpoints.trl_qwen3, {"attention_bias": True, "num_key_value_heads": 1}),
    "mistral": (checkpoints.trl_mistral, {}),
    "mistral-window": (checkpoints.trl_mistral, {"window": 11}),
    "mistral-narrow-window": (checkpoints.trl_mistral, {"window": 3}),
    "mistral-window-never-cuts": (checkpoints.trl_mistral, {"window": 4096}),
}


@pytest.mark.parametrize("name", MAKERS)
def test_export_scores_equal_torch(name: str, tmp_path: Path, texts: Path) -> None:
    maker, changes = MAKERS[name]
    if checkpoints.TRANSFORMERS_MAJOR < 5 and "rope_parameters" in changes:
        changes = {"rope_theta": 1e6}
    checkpoint = maker(tmp_path / "tiny", **changes)
    report = run(checkpoint, tmp_path / "pkg", texts)
    assert report["proof"]["max_abs_dp"] < 1e-5
    assert report["proof"]["logit_std"] > 0.5
    assert report["proof"]["logit_rel_rms"] < 1e-4
    scorer = Scorer.load(tmp_path / "pkg", self_test=True)
    got = scorer.score(PROBLEM, STEPS).scores
    np.testing.assert_allclose(got, torch_scores(checkpoint, PROBLEM, STEPS, "\n"), atol=1e-5)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_export_rope_scaling_equals_torch(
    scaling: dict[str, Any], tmp_path: Path, texts: Path
) -> None:
    if checkpoints.TRANSFORMERS_MAJOR >= 5:
        changes: dict[str, Any] = {"rope_parameters": {"rope_theta": 5e4, **scaling}}
    else:
        changes = {"rope_theta": 5e4, "rope_scaling": scaling}
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny", **changes)
    run(checkpoint, tmp_path / "pkg", texts)
    got = Scorer.load(tmp_path / "pkg").score(PROBLEM, STEPS).scores
    np.testing.assert_allclose(got, torch_scores(checkpoint, PROBLEM, STEPS, "\n"), atol=1e-5)


def test_export_low_precision_checkpoint(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    model = AutoModelForTokenClassification.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.save_pretrained(checkpoint)
    run(checkpoint, tmp_path / "pkg", texts)
    got = Scorer.load(tmp_path / "pkg").score(PROBLEM, STEPS).scores
    np.testing.assert_allclose(got, torch_scores(checkpoint, PROBLEM, STEPS, "\n"), atol=1e-5)


def test_export_qwen_prm(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.qwen_prm(tmp_path / "tiny", shards=3)
    report = run(checkpoint, tmp_path / "pkg", texts, separator=None)
    assert "not needed for scores: lm_head.weight" in report["lines"]
    scorer = Scorer.load(tmp_path / "pkg")
    assert scorer.recipe.family == "qwen2.5-math-prm"
    assert scorer.recipe.aggregate == "last"
    assert scorer.recipe.prompt[1].to_dict() == {
        "text": "system\nPlease reason step by step, and put your final answer within \\boxed{}."
    }


def test_export_reasonflux_takes_the_templates_own_system(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.qwen_prm(tmp_path / "tiny")
    run(checkpoint, tmp_path / "pkg", texts, separator=None, recipe="reasonflux-prm")
    recipe = Scorer.load(tmp_path / "pkg").recipe
    assert recipe.prompt[1].to_dict() == {"text": "system\nYou are a helpful assistant."}


def test_export_pure_scores_are_differences(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_qwen2(tmp_path / "tiny")
    run(checkpoint, tmp_path / "pkg", texts, separator=None, recipe="pure")
    scorer = Scorer.load(tmp_path / "pkg")
    good = np.array(torch_scores(checkpoint, PROBLEM, STEPS, "\n"))
    np.testing.assert_allclose(scorer.score(PROBLEM, STEPS).scores, 2 * good - 1, atol=2e-5)
    assert scorer.threshold == 0.0
    assert scorer.split("one\n\ntwo\nstill two") == ["one", "two\nstill two"]
    assert "prod" not in scorer.recipe.aggregates


def test_export_writes_a_card_and_keeps_the_licence(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    (checkpoint / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n")
    (checkpoint / "LICENSE").write_text("the licence")
    run(checkpoint, tmp_path / "pkg", texts)
    card = (tmp_path / "pkg" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "{problem}{step}\\n  <-- read" in card
    assert (tmp_path / "pkg" / "LICENSE").read_text() == "the licence"


def test_export_names_no_path_of_this_machine(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    run(checkpoint, tmp_path / "pkg", texts)
    for path in (tmp_path / "pkg").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path


def test_export_default_out_is_beside_the_caller(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    result = export(ExportOptions(checkpoint=checkpoint, separator="\n", verify=texts))
    assert result.out == Path("tiny-prm")
    assert Scorer.load("tiny-prm").package.manifest.name == "tiny-prm"


def test_export_tells_of_int8_where_it_was_left_open(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    told = "the same with --add --precision int8"
    lines = run(checkpoint, tmp_path / "open", texts)["lines"]
    assert lines[-1].endswith(told)
    lines = run(checkpoint, tmp_path / "asked", texts, precision="fp32")["lines"]
    assert not any(told in line for line in lines)


def test_export_same_checkpoint_gives_same_bytes(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    digests = []
    for name in ("one", "two"):
        run(checkpoint, tmp_path / name / "pkg", texts)
        digests.append(Scorer.load(tmp_path / name / "pkg").package.digest)
    assert digests[0] == digests[1]


def test_export_asks_for_the_separator(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match=r"--separator '\\n'\n.*\n.*--separator '\\n\\n'"):
        run(checkpoint, tmp_path / "pkg", texts, separator=None)
    assert not (tmp_path / "pkg").exists()


def test_export_refuses_a_separator_where_there_is_none(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.qwen_prm(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="has no separator; leave --separator out"):
        run(checkpoint, tmp_path / "pkg", texts, separator="\n")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"id2label": {"0": "GOOD", "1": "BAD"}}, "does not say plainly that 1 is the good one"),
        ({"id2label": {"0": "A", "1": "B"}}, "pass --good-label 0 or --good-label 1"),
        (
            {"id2label": {"0": "bad", "1": "good"}, "label2id": {"good": 0, "bad": 1}},
            "id2label and label2id disagree on label",
        ),
    ],
)
def test_export_asks_about_odd_labels(
    labels: dict[str, Any], message: str, tmp_path: Path, texts: Path
) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    checkpoints.edit_config(checkpoint, lambda data: data.update(labels))
    with pytest.raises(CheckpointError, match=message):
        run(checkpoint, tmp_path / "pkg", texts)


def test_export_notice_and_label_meaning_are_kept(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    run(checkpoint, tmp_path / "pkg", texts, notice="a trial", label_meaning="local")
    scorer = Scorer.load(tmp_path / "pkg")
    assert scorer.package.manifest.provenance["notice"] == "a trial"
    assert scorer.recipe.label_meaning == "local"


def test_export_good_label_is_obeyed(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    run(checkpoint, tmp_path / "pkg", texts, good_label=0)
    good = np.array(torch_scores(checkpoint, PROBLEM, STEPS, "\n"))
    got = Scorer.load(tmp_path / "pkg").score(PROBLEM, STEPS).scores
    np.testing.assert_allclose(got, 1 - good, atol=1e-5)


@pytest.mark.parametrize("name", ["label_0", "wrong"])
def test_export_accepts_plain_labels(name: str, tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    good = "LABEL_1" if name == "label_0" else "Good"
    checkpoints.edit_config(
        checkpoint, lambda data: data.update(id2label={"0": name.upper(), "1": good})
    )
    run(checkpoint, tmp_path / "pkg", texts)


def test_export_unknown_tensor_is_named(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.qwen_prm(tmp_path / "tiny")
    tensors = checkpoints.read_tensors(checkpoint)
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(16)
    checkpoints.write_shards(checkpoint, tensors)
    with pytest.raises(
        CheckpointError,
        match=r"1 tensors .* not be used, first model\.layers\.0\.self_attn\.q_norm",
    ):
        run(checkpoint, tmp_path / "pkg", texts, separator=None)
    assert os.listdir(tmp_path) == ["texts.jsonl", "tiny"] or not (tmp_path / "pkg").exists()


def test_export_missing_tensor_is_named(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.qwen_prm(tmp_path / "tiny")
    tensors = checkpoints.read_tensors(checkpoint)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    checkpoints.write_shards(checkpoint, tensors)
    with pytest.raises(
        CheckpointError, match=r"no tensor 'model\.layers\.1\.mlp\.down_proj\.weight'"
    ):
        run(checkpoint, tmp_path / "pkg", texts, separator=None)


def test_export_not_finite_weight_is_named(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.qwen_prm(tmp_path / "tiny")
    tensors = checkpoints.read_tensors(checkpoint)
    tensors["model.norm.weight"][3] = float("nan")
    checkpoints.write_shards(checkpoint, tensors)
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' holds values that are not"):
        run(checkpoint, tmp_path / "pkg", texts, separator=None)


def test_export_sequence_classifier_is_refused(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    checkpoints.edit_config(
        checkpoint, lambda data: data.update(architectures=["LlamaForSequenceClassification"])
    )
    with pytest.raises(UnsupportedError, match="a sequence classifier scores whole texts"):
        run(checkpoint, tmp_path / "pkg", texts)


def test_export_existing_out_is_kept(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(ExportError, match="pkg"):
            run(checkpoint, tmp_path / "pkg", texts, **options)
    assert (tmp_path / "pkg" / "thesis.tex").read_text() == "years of work"


def test_export_over_budget_writes_nothing(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prm_edge_export import graph

    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    real = graph.inverse_frequencies

    def slightly_wrong(*args: Any) -> Any:
        inverse, attention = real(*args)
        return inverse * 1.01, attention

    monkeypatch.setattr(graph, "inverse_frequencies", slightly_wrong)
    with pytest.raises(ProofError, match=r"over the fp32 budget: max_abs_dp .*worst steps") as info:
        run(checkpoint, tmp_path / "pkg", texts)
    assert "--allow-drift" in str(info.value)
    assert not (tmp_path / "pkg").exists()
    report = run(checkpoint, tmp_path / "pkg", texts, allow_drift=True)
    assert report["proof"]["allowed_drift"] is True


def test_preview_marks_the_reads(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    lines = preview(ExportOptions(checkpoint=checkpoint, separator="\n", verify=texts))
    assert sum(line.endswith("<-- read") for line in lines) == len(STEPS)
    assert lines[-1].endswith("<-- read")
    assert any("<|begin|>" in line for line in lines)


@pytest.mark.skipif(
    checkpoints.TRANSFORMERS_MAJOR < 5, reason="only transformers 5 replaces the pre-tokenisation"
)
def test_export_clashing_tokenizers_need_recorded_scores(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_qwen2(tmp_path / "tiny", qwen_tokenizer=False)
    with pytest.raises(CheckpointError, match=r"encode differently .*--trust-tokenizer-file"):
        run(checkpoint, tmp_path / "pkg", texts)
    report = run(checkpoint, tmp_path / "pkg", texts, trust_tokenizer_file=True)
    assert any("WARNING: tokenizer.json and the tokenizer" in line for line in report["lines"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "nonsense"}, "--recipe 'nonsense' is neither one of trl, pure, qwen2.5"),
        ({"precision": "int3"}, "--precision 'int3' is not one of fp32, int8"),
        ({"target": "tpu"}, "--target 'tpu' is not one of cpu"),
        ({"label_meaning": "vague"}, "--label-meaning 'vague' is not one of local, on_path"),
        ({"backend": "magic"}, "--backend 'magic' is not one of auto, native, optimum"),
    ],
)
def test_export_unknown_choice(
    options: dict[str, Any], message: str, tmp_path: Path, texts: Path
) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    with pytest.raises(ConfigError, match=message):
        run(checkpoint, tmp_path / "pkg", texts, **options)


def test_export_recipe_for_another_head(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    with pytest.raises(
        CheckpointError, match="needs a head of kind mlp, the checkpoint has linear"
    ):
        run(checkpoint, tmp_path / "pkg", texts, recipe="qwen2.5-math-prm")


def test_export_mlp_head_through_optimum_is_refused(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.qwen_prm(tmp_path / "tiny")
    with pytest.raises(UnsupportedError, match="optimum cannot export a two-layer head"):
        run(checkpoint, tmp_path / "pkg", texts, separator=None, backend="optimum")


def test_export_qwen_prm_needs_its_own_tokenizer(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.qwen_prm(tmp_path / "tiny")
    checkpoints.tokenizer(special=("<|im_start|>", "<|im_end|>"), qwen=True).save_pretrained(
        checkpoint
    )
    (checkpoint / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="needs the checkpoint's chat template"):
        run(checkpoint, tmp_path / "pkg", texts, separator=None)
    (checkpoint / "chat_template.jinja").write_text(checkpoints.CHATML)
    with pytest.raises(CheckpointError, match="the tokenizer has no token '<extra_0>'"):
        run(checkpoint, tmp_path / "pkg", texts, separator=None)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content }}", "does not insert the question and answer as given"),
        ("{{ 1 / 0 }}", "chat template cannot be used"),
    ],
)
def test_export_chat_template_that_cannot_be_used(
    template: str, message: str, tmp_path: Path, texts: Path
) -> None:
    checkpoint = checkpoints.qwen_prm(tmp_path / "tiny")
    (checkpoint / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=message):
        run(checkpoint, tmp_path / "pkg", texts, separator=None)


def test_export_template_that_trims_is_refused(tmp_path: Path, texts: Path) -> None:
    # the recipe cannot say "trim", so blanks at the ends would be encoded differently
    checkpoint = checkpoints.qwen_prm(tmp_path / "tiny")
    trimming = checkpoints.CHATML.replace("message.content", "message.content | trim")
    (checkpoint / "chat_template.jinja").write_text(trimming)
    with pytest.raises(ProofError, match=r"does not encode the problem '\\n\\n  Leading"):
        run(checkpoint, tmp_path / "pkg", texts, separator=None)


def test_export_tokenizer_larger_than_the_embedding(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    checkpoints.tokenizer(size=500, bos=True).save_pretrained(checkpoint)
    checkpoints.edit_config(checkpoint, lambda data: data.update(vocab_size=300))
    with pytest.raises(CheckpointError, match="ids but the embedding only 300 rows"):
        run(checkpoint, tmp_path / "pkg", texts)


def test_export_empty_separator(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="the separator '' is no token of this tokenizer"):
        run(checkpoint, tmp_path / "pkg", texts, separator="")


def test_export_damaged_training_args_do_not_stop_a_given_separator(
    tmp_path: Path, texts: Path
) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    (checkpoint / "training_args.bin").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"training_args\.bin"):
        run(checkpoint, tmp_path / "pkg", texts, separator=None)
    report = run(checkpoint, tmp_path / "pkg", texts)
    assert any("WARNING" in line and "training_args.bin" in line for line in report["lines"])


def test_export_separator_that_contradicts_training_args_warns(tmp_path: Path, texts: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    args = SimpleNamespace(step_separator="\n\n", max_length=777)
    torch.save(args, checkpoint / "training_args.bin")
    report = run(checkpoint, tmp_path / "pkg", texts)
    assert any("WARNING: training_args.bin records" in line for line in report["lines"])
    report = run(checkpoint, tmp_path / "pkg2", texts, separator=None)
    assert "separator: '\\n\\n', from training_args.bin" in report["lines"]
    assert report["provenance"]["trained_max_length"] == 777

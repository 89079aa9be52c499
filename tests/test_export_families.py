"""Families beside TRL's: the authors' own procedures, written with transformers alone, as judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
import family_checkpoints
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_reference import rlhflow_scores, shepherd_scores, skywork_scores

from prm_edge.cli import cli
from prm_edge_export.families import FAMILIES
from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export, preview
from prm_edge_export.proof import load_texts
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import (
    CheckpointError,
    ExportError,
    InputError,
    ProofError,
    UnsupportedError,
)

RECORDS = [(text.problem, list(text.steps)) for text in load_texts(None)[0]]
HARD = ("What is ½ of 7?", ["Step 1: 7 / 2 = 3.5", "  so 3,5 — done\n", "ки+ - \n\nx"])


def run(checkpoint: Path, out: Path, **options: Any) -> Scorer:
    return Scorer.load(
        export(ExportOptions(checkpoint=checkpoint, out=out, **options)).out, self_test=True
    )


def check_scores(
    scorer: Scorer, judge: Callable[[str, list[str]], list[float]], spread: float = 0.2
) -> None:
    """Compare with the judge on real solutions that fit."""
    count = 12
    compared = []
    for problem, steps in [HARD, *RECORDS]:
        if len(compared) > count:
            break
        got = scorer.score(problem, steps).scores
        if None not in got:
            expected = judge(problem, [step.strip() for step in steps])
            np.testing.assert_allclose(got, expected, atol=1e-5)
            compared.append(got)
    assert len(compared) > count
    assert np.ptp([score for scores in compared for score in scores if score is not None]) > spread


# --- Math-Shepherd


@pytest.mark.parametrize("shape", ["llama", "llama-tied", "mistral", "mistral-window"])
def test_math_shepherd_is_that_of_its_card(shape: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "llama": {},
        "llama-tied": {"tie_word_embeddings": True},
        "mistral": {"mistral": True, "sliding_window": None},
        "mistral-window": {"mistral": True, "sliding_window": 40},
    }[shape]
    checkpoint = family_checkpoints.math_shepherd(tmp_path / "tiny", **changes)
    scorer = run(checkpoint, tmp_path / "pkg", recipe="math-shepherd")
    assert (scorer.recipe.aggregate, scorer.recipe.label_meaning) == ("min", "on_path")
    # an embedding that is also the output answers much the same everywhere
    spread = 0.01 if "tied" in shape else 0.2
    check_scores(scorer, lambda p, s: shepherd_scores(checkpoint, p, s), spread)


def test_math_shepherd_refuses_what_shifts_its_tags(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.math_shepherd(tmp_path / "tiny")
    scorer = run(checkpoint, tmp_path / "pkg", recipe="math-shepherd")
    for steps in (["one", "two ки three"], ["", "two"], ["one ки", ""]):
        with pytest.raises(InputError, match=r"the tag ' ки' after each step is token \d+, found"):
            scorer.score("How much?", steps)
    with pytest.raises(InputError, match="change or leave out that step"):
        scorer.score("How much ки?", ["one"])


def test_math_shepherd_reads_every_step_or_refuses(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.math_shepherd(tmp_path / "tiny")
    scorer = run(checkpoint, tmp_path / "pkg", recipe="math-shepherd")
    encoder = scorer._encoder  # the encoder that scoring uses
    tag = encoder.recipe.step[-1].to_dict()["id"]
    words = st.text(st.sampled_from("ки +-▁\n.x1 é🙂\u3000"), max_size=12)

    @settings(max_examples=200, deadline=None)
    @given(words, st.lists(words, max_size=4))
    def check(problem: str, steps: list[str]) -> None:
        try:
            encoded = encoder.encode(problem, steps)
        except InputError:
            return
        assert len(encoded.reads) == len(steps)
        assert [i for i, t in enumerate(encoded.ids) if t == tag] == encoded.reads.tolist()

    check()


# --- RLHFlow


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("rlhflow-deepseek", {}),
        ("rlhflow-mistral", {}),
        ("rlhflow-deepseek", {"tie_word_embeddings": True}),
        (
            "rlhflow-deepseek",
            {
                "template": family_checkpoints.LLAMA3.replace(
                    "message.content | trim", "message.content"
                )
            },
        ),
    ],
    ids=["deepseek", "mistral", "tied", "template that does not trim"],
)
def test_rlhflow_in_one_pass_is_that_of_its_authors_passes(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = family_checkpoints.rlhflow(tmp_path / "tiny", **changes)
    scorer = run(checkpoint, tmp_path / "pkg", recipe=name)
    assert scorer.recipe.aggregate == "mean"
    check_scores(scorer, lambda p, s: rlhflow_scores(checkpoint, p, s))
    cut = {"rlhflow-deepseek": "a\n\nb\nc", "rlhflow-mistral": "a ки\nb\nc ки\n"}[name]
    assert scorer.split(cut)[0] == {"rlhflow-deepseek": "a", "rlhflow-mistral": "a"}[name]


@pytest.mark.parametrize("steps", [["", "x"], [" ", "\n"], ["a", ""]])
@pytest.mark.parametrize("problem", ["", "  \n", "\nQ\n"])
def test_rlhflow_blank_turns(problem: str, steps: list[str], tmp_path: Path) -> None:
    checkpoint = family_checkpoints.rlhflow(tmp_path / "tiny")
    scorer = run(checkpoint, tmp_path / "pkg", recipe="rlhflow-deepseek")
    got = scorer.score(problem, steps).scores
    np.testing.assert_allclose(got, rlhflow_scores(checkpoint, problem, steps), atol=1e-5)


TEMPLATES = {
    "date": ("{{ strftime_now('%d') }}", "writes today's date into every text"),
    "no turns": ("{{ messages[0].content }}", "does not repeat the turns of a conversation"),
    "open end": (
        family_checkpoints.LLAMA3 + "{{ '\n' }}",
        "does not repeat the turns",
    ),
    "long end": (
        family_checkpoints.LLAMA3.replace("'<|eot_id|>'", "' end<|eot_id|>'"),
        r"does not end an answer '\+' with that token and one more",
    ),
    "counts": (
        family_checkpoints.LLAMA3.replace("{{- bos_token }}", "{{ messages | length }}"),
        "does not repeat|changes earlier turns when later ones follow",
    ),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_rlhflow_template_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    template, message = TEMPLATES[case]
    checkpoint = family_checkpoints.rlhflow(tmp_path / "tiny", template=template)
    with pytest.raises(ExportError, match=message):
        run(checkpoint, tmp_path / "pkg", recipe="rlhflow-deepseek")


def test_rlhflow_template_that_rewrites_earlier_turns() -> None:
    class Tokenizer:
        def apply_chat_template(self, messages: list[Any], **options: Any) -> str:
            return "x" * len(messages) + "".join(message["content"] for message in messages)

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": list(text.encode())}

    with pytest.raises(ProofError, match="changes earlier turns when later ones follow"):
        FAMILIES["rlhflow-deepseek"].reference(Tokenizer(), None, "Q", ["a", "b"])  # type: ignore[arg-type]


# --- Skywork


@pytest.mark.parametrize("prefix", ["", "pretrained_model."])
def test_skywork_is_that_of_its_authors(prefix: str, tmp_path: Path) -> None:
    checkpoint = family_checkpoints.skywork(tmp_path / "tiny", prefix=prefix)
    scorer = run(checkpoint, tmp_path / "pkg")  # recognised by its head
    assert (scorer.recipe.family, scorer.recipe.aggregate) == ("skywork-o1-prm", "mean")
    assert scorer.split("a\n\nb\nc") == ["a", "b", "c"]
    for problem, steps in [HARD, ("\n", ["", "\n", "x\n"]), *RECORDS[:12]]:
        expected = skywork_scores(checkpoint, problem, steps)
        np.testing.assert_allclose(scorer.score(problem, steps).scores, expected, atol=1e-5)


# --- refusals


def test_language_model_without_a_name_is_refused(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.rlhflow(tmp_path / "tiny")
    with pytest.raises(
        UnsupportedError,
        match=r"pass --recipe math-shepherd or rlhflow-deepseek or .*; generative PRMs \(ThinkPRM",
    ):
        run(checkpoint, tmp_path / "pkg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": {}}, r"is a vision model \(such as VisualPRM\), .* from images"),
        ({"model_type": "qwen2_5_vl"}, "is a vision model"),
        ({"model_type": "internvl_chat"}, "is a vision model"),
        ({"model_type": "qwen2"}, "'rlhflow-deepseek' is known for model_type llama, .* 'qwen2'"),
    ],
)
def test_config_of_another_kind_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint = family_checkpoints.rlhflow(tmp_path / "tiny")
    checkpoints.edit_config(checkpoint, lambda data: data.update(change))
    with pytest.raises(UnsupportedError, match=message):
        run(checkpoint, tmp_path / "pkg", recipe="rlhflow-deepseek")


def test_two_pass_prm_is_refused(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.rlhflow(tmp_path / "tiny")
    checkpoints.tokenizer(special=("<+>", "<->", "<extra>")).save_pretrained(checkpoint)
    with pytest.raises(UnsupportedError, match=r"two-pass PRM \(PathFinder-PRM\), .*in one run"):
        run(checkpoint, tmp_path / "pkg")


def test_value_head_on_another_backbone_is_refused(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.skywork(tmp_path / "tiny")
    checkpoints.edit_config(checkpoint, lambda data: data.update(model_type="llama"))
    with pytest.raises(UnsupportedError, match=r"known for model_type qwen2, .* has 'llama'"):
        run(checkpoint, tmp_path / "pkg")


def test_family_that_fixes_its_good_label(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.skywork(tmp_path / "tiny")
    with pytest.raises(
        CheckpointError, match=r"says itself which number .* leave --good-label out"
    ):
        run(checkpoint, tmp_path / "pkg", good_label=1)


def test_heads_without_an_optimum_class_are_native(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.skywork(tmp_path / "tiny")
    with pytest.raises(UnsupportedError, match="optimum cannot export a value head"):
        run(checkpoint, tmp_path / "pkg", backend="optimum")


def test_value_head_of_several_values(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.skywork(tmp_path / "tiny")
    tensors = checkpoints.read_tensors(checkpoint)
    tensors["v_head.summary.weight"] = torch.ones(2, 64)
    checkpoints.write_shards(checkpoint, tensors)
    with pytest.raises(CheckpointError, match="gives 2 values, a value head gives 1"):
        run(checkpoint, tmp_path / "pkg")


@pytest.mark.parametrize(
    ("maker", "recipe", "message"),
    [
        (family_checkpoints.skywork, None, "no bos_token, with which Skywork's texts begin"),
        (
            family_checkpoints.math_shepherd,
            "math-shepherd",
            "the tag ' ки' is [2345] tokens of this tokenizer",
        ),
        (family_checkpoints.rlhflow, "rlhflow-deepseek", "needs the checkpoint's chat template"),
    ],
    ids=["skywork", "shepherd", "rlhflow"],
)
def test_family_with_a_stock_tokenizer(
    maker: Callable[..., Path], recipe: str | None, message: str, tmp_path: Path
) -> None:
    checkpoint = maker(tmp_path / "tiny")
    (checkpoint / "chat_template.jinja").unlink(missing_ok=True)
    checkpoints.tokenizer(size=330).save_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        run(checkpoint, tmp_path / "pkg", recipe=recipe)


def test_skywork_needs_a_newline_of_one_token(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.skywork(tmp_path / "tiny")
    family_checkpoints.sentencepiece().save_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match=r"is \d tokens of this tokenizer and must be one"):
        run(checkpoint, tmp_path / "pkg")


def test_math_shepherd_needs_a_bos(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.math_shepherd(tmp_path / "tiny")
    path = checkpoint / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "bos_token"}))
    (checkpoint / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="no bos_token, with which this family's texts begin"):
        run(checkpoint, tmp_path / "pkg", recipe="math-shepherd")


def test_verdict_of_several_tokens(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.rlhflow(tmp_path / "tiny")
    family_checkpoints.sentencepiece().save_pretrained(checkpoint)
    path = checkpoint / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["merges"] = [m for m in data["model"]["merges"] if "+" not in m]
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"needs '\+' to be one token, this tokenizer"):
        run(checkpoint, tmp_path / "pkg", recipe="rlhflow-deepseek")


def test_tied_output_that_differs(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.math_shepherd(tmp_path / "tiny")
    checkpoints.edit_config(checkpoint, lambda data: data.update(tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match="has both and they differ; correct tie_word"):
        run(checkpoint, tmp_path / "pkg", recipe="math-shepherd")


def test_output_rows_that_are_not_there(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.math_shepherd(tmp_path / "tiny")
    tensors = checkpoints.read_tensors(checkpoint)
    checkpoints.write_shards(checkpoint, tensors | {"lm_head.weight": torch.ones(9, 64)})
    with pytest.raises(CheckpointError, match=r"shape \[9, 64\] lacks one of the rows"):
        run(checkpoint, tmp_path / "pkg", recipe="math-shepherd")


def test_two_models_in_one_checkpoint(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.skywork(tmp_path / "tiny", prefix="wrapped.")
    tensors = checkpoints.read_tensors(checkpoint)
    checkpoints.write_shards(checkpoint, tensors | {"model.norm.weight": torch.ones(64)})
    with pytest.raises(CheckpointError, match=r"both 'model\.norm\.weight' without the prefix"):
        run(checkpoint, tmp_path / "pkg")


def test_preview_marks_a_tag(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.math_shepherd(tmp_path / "tiny")
    lines = preview(ExportOptions(checkpoint=checkpoint, recipe="math-shepherd"))
    assert sum(line.endswith("<-- read") for line in lines) >= 2
    assert any("head: rows (lm_head.weight rows [" in line for line in lines)


def test_recipes_command_names_every_family() -> None:
    result = CliRunner().invoke(cli, ["recipes"])
    assert result.exit_code == 0
    assert [name for name in FAMILIES if name not in result.stdout] == []
    golden = (Path(__file__).parent / "goldens" / "help" / "export.txt").read_text()
    assert "`prm-edge recipes`" in golden

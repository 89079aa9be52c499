"""Every family against its authors' own procedure in torch, and what a few of them need alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
import family_cases
import family_checkpoints
import numpy as np
import torch
import torch_reference
from family_cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_edge.cli.describe import recipe_lines
from prm_edge.jobs import describe
from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.families import FAMILIES
from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_export.plan import Plan, make_plan
from prm_edge_export.proof import load_texts
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import CheckpointError, InputError, UnsupportedError

RECORDS = [(text.problem, list(text.steps)) for text in load_texts(None)[0]]
HARD = ("What is ½ of 7?", ["Step 1: 7 / 2 = 3.5", "  so 3,5 — done\n", "ки+ - \n x"])
COMPARED = 8


def run(folder: Path, checkpoint: Path, **options: Any) -> Scorer:
    """Export and load; proven on a few short texts, since the tests prove more."""
    short = sorted(RECORDS, key=lambda record: len("".join(record[1])))[:4]
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"problem": p, "steps": s}) + "\n" for p, s in short))
    asked = ExportOptions(checkpoint=checkpoint, out=folder / "pkg", verify=texts, **options)
    return Scorer.load(export(asked).out, self_test=True)


def planned(name: str, folder: Path) -> Plan:
    checkpoint, options = family_cases.make(name, folder)
    with Checkpoint(checkpoint) as opened:
        return make_plan(ExportOptions(checkpoint=checkpoint, **options), opened)


def as_given(recipe: Any, steps: list[str]) -> list[str]:
    return ["\n".join(steps)] if recipe.split.separator is None else steps


def test_every_family_has_a_case() -> None:
    assert set(CASES) == set(FAMILIES)
    assert {n for n, case in CASES.items() if case.recipe} == {
        n for n, family in FAMILIES.items() if not family.detected
    }


@pytest.mark.parametrize("name", CASES)
def test_family_scores_as_its_authors_do(name: str, tmp_path: Path) -> None:
    checkpoint, options = family_cases.make(name, tmp_path)
    scorer = run(tmp_path, checkpoint, **options)
    assert (scorer.recipe.family, scorer.recipe.aggregate) == (name, CASES[name].aggregate)
    assert all(isinstance(line, str) for pair in recipe_lines(scorer.recipe) for line in pair)
    seen: list[float] = []
    compared = 0
    for problem, given_steps in [HARD, *RECORDS]:
        steps = as_given(scorer.recipe, given_steps)
        scores = scorer.score(problem, steps).scores
        if None in scores:
            continue
        expected = family_cases.judged(name, checkpoint, problem, steps)
        np.testing.assert_allclose(scores, expected, atol=1e-4)
        seen += [score for score in scores if score is not None]
        compared += 1
        if compared == COMPARED:
            break
    assert compared == COMPARED
    assert np.ptp(seen) > CASES[name].spread


@pytest.mark.parametrize("name", CASES)
def test_family_reads_every_step_or_refuses(name: str, tmp_path: Path) -> None:
    plan = planned(name, tmp_path)
    pieces = ("ки", " +", "-", "\n", "\n\n", " \n\n\n\n", "▁", ".", "x1", " ", "é", "🙂", "\u3000")
    words = st.lists(st.sampled_from(pieces), max_size=6).map("".join) | st.text(max_size=8)
    whole = plan.recipe.split.separator is None

    @settings(max_examples=60, deadline=None)
    @given(words, st.lists(words, max_size=1 if whole else 4))
    def check(problem: str, steps: list[str]) -> None:
        try:
            encoded = plan.encoder.encode(problem, steps)
        except InputError:
            return
        reads = encoded.reads.tolist()
        assert len(reads) == len(steps)
        assert reads == sorted({*reads})
        assert not reads or (reads[0] >= 0 and reads[-1] == len(encoded.ids) - 1)
        plain = not any(added in "\0".join((problem, *steps)) for added in plan.files.added)
        if steps and plain:
            ids, theirs = plan.family.reference(plan.tokenizer, plan.recipe, problem, steps)
            assert (encoded.ids.tolist(), reads) == (ids[: reads[-1] + 1], theirs)

    check()


# --- ReasonEval


@pytest.mark.parametrize("large", [False, True])
def test_reasoneval_tells_validity_and_redundancy(large: bool, tmp_path: Path) -> None:
    checkpoint = family_checkpoints.reasoneval(tmp_path / "tiny", large=large)
    scorer = run(tmp_path, checkpoint)
    problem, steps = RECORDS[0]
    result = scorer.score(problem, steps)
    validity, redundancy = torch_reference.reasoneval_scores(
        checkpoint, problem, steps, "34B" if large else "7B"
    )
    assert result.redundancy is not None
    np.testing.assert_allclose(result.scores, validity, atol=1e-4)
    np.testing.assert_allclose(result.redundancy, redundancy, atol=1e-4)
    assert describe(result)["redundancy"] == [round(float(x or 0), 6) for x in result.redundancy]
    # the last token but one waits for the next, so a step cannot be run on its own
    with scorer.session(problem) as session:
        assert session.incremental is large
        assert [session.add(step) for step in steps] == list(result.scores)
    ranked = scorer.rank(problem, [steps, steps[:1], [*steps[:1], "x"]])
    alone = [scorer.score(problem, candidate).scores for candidate in (steps, steps[:1])]
    assert [candidate.scores for candidate in ranked.candidates[:2]] == alone


def test_redundancy_of_a_step_that_is_too_long(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.reasoneval(
        tmp_path / "tiny", max_position_embeddings=260, sliding_window=None
    )
    result = run(tmp_path, checkpoint).score("How much?", ["4", "x " * 200], on_too_long="null")
    assert result.redundancy is not None
    assert result.redundancy[0] is not None
    assert result.redundancy[1] is None
    assert describe(result)["redundancy"][1] is None


def test_other_recipes_say_nothing_of_redundancy(tmp_path: Path) -> None:
    scorer = run(tmp_path, family_checkpoints.pqm(tmp_path / "tiny"))
    result = scorer.score(*RECORDS[0])
    assert result.redundancy is None
    assert "redundancy" not in describe(result)


# --- ReasonFlux-PRM-1.5B


def test_trajectory_is_scored_as_one_step(tmp_path: Path) -> None:
    scorer = run(tmp_path, family_checkpoints.trajectory(tmp_path / "tiny"))
    assert scorer.max_tokens == 2048
    problem, steps = RECORDS[0]
    response = "\n\n".join(steps)
    assert scorer.split(response) == [response]
    with pytest.raises(InputError, match=f"whole solution, given as one step; got {len(steps)}"):
        scorer.score(problem, steps)
    with scorer.session(problem) as session:
        assert session.add(response) == scorer.score(problem, [response]).scores[0]
        with pytest.raises(InputError, match="whole solution, given as one step; got 2"):
            session.add("And one more.")
    ranking = scorer.rank(problem, [[response], [response + " So 5."]])
    assert ranking.candidates[0].scores == scorer.score(problem, [response]).scores


def test_limit_of_the_authors_is_no_longer_than_the_models(tmp_path: Path) -> None:
    checkpoint = family_checkpoints.trajectory(tmp_path / "tiny", max_position_embeddings=1024)
    assert run(tmp_path, checkpoint).max_tokens == 1024


# --- what their checkpoints must be


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def edit(checkpoint: Path) -> None:
        tensors = checkpoints.read_tensors(checkpoint)
        change(tensors)
        checkpoints.write_shards(checkpoint, tensors)

    return edit


def _tokenizer_config(**values: Any) -> Callable[[Path], object]:
    def edit(checkpoint: Path) -> None:
        path = checkpoint / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def _tokenizer(**options: Any) -> Callable[[Path], object]:
    return lambda path: checkpoints.tokenizer(**options).save_pretrained(path)


def _reward(tensors: dict[str, Any]) -> Callable[[Path], object]:
    return lambda path: torch.save(tensors, path / "reward_head.pt")


def _config(**values: Any) -> Callable[[Path], object]:
    return lambda path: checkpoints.edit_config(path, lambda data: data.update(values))


def _around_text(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer.json"
    data = json.loads(path.read_text())
    token = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
    data["post_processor"]["single"].append(token)
    index = next(t["id"] for t in data["added_tokens"] if t["content"] == "<|end|>")
    data["post_processor"]["special_tokens"]["<|end|>"] = {
        "id": "<|end|>",
        "ids": [index],
        "tokens": ["<|end|>"],
    }
    path.write_text(json.dumps(data))


NN2 = "score.model.nn2.weight"
REFUSALS: dict[str, tuple[str, Callable[[Path], object], type[Exception], str]] = {
    "classes": (
        "reasoneval-7b",
        _tensors(lambda t: t.update({"score_head.weight": torch.ones(2, 64)})),
        CheckpointError,
        "score_head.weight gives 2 values, a classes head gives 3",
    ),
    "pad of the 7B": (
        "reasoneval-7b",
        _tokenizer_config(pad_token="</s>"),
        CheckpointError,
        "reasoneval-7b needs .* with a pad_token that is the same token; .* pad_token '</s>'",
    ),
    "pad of the 34B": (
        "reasoneval-34b",
        _tokenizer_config(pad_token="<s>"),
        CheckpointError,
        "reasoneval-34b needs .* with a pad_token that is another token; .* pad_token '<s>'",
    ),
    "no pad": (
        "reasoneval-34b",
        _tokenizer_config(pad_token=None),
        CheckpointError,
        "reasoneval-34b needs a tokenizer that puts its bos_token before a text, .* None",
    ),
    "ensemble of other sizes": (
        "actprm",
        _tensors(lambda t: t.update({NN2: t[NN2][:, :8].clone()})),
        CheckpointError,
        r"nn1\.weight and score\.model\.nn2\.weight do not fit each other",
    ),
    "ensemble of vectors": (
        "actprm",
        _tensors(lambda t: t.update({NN2: t[NN2][0].clone()})),
        CheckpointError,
        r"'score\.model\.nn2\.weight' has shape \[24, 24\], expected rank 3",
    ),
    "ensemble of several values": (
        "actprm",
        _tensors(
            lambda t: t.update(
                {
                    "score.model.nn_out.weight": torch.ones(4, 24, 2),
                    "score.model.nn_out.bias": torch.ones(4, 2),
                }
            )
        ),
        CheckpointError,
        "nn_out.weight gives 2 values for each member, an ensemble head gives 1",
    ),
    "ensemble in part": (
        "actprm",
        _tensors(lambda t: t.pop("score.model.nn2.bias")),
        UnsupportedError,
        r"Qwen2ForEnsemblePRM has no per-step head that is known: .* score\.model\.nn1/nn2/nn_out",
    ),
    "tag of another name": (
        "actprm",
        _config(rr_token="<extra_9>"),
        CheckpointError,
        "the tokenizer has no token '<extra_9>'",
    ),
    "tag of another id": (
        "actprm",
        _config(rr_token_id=7),
        CheckpointError,
        r"gives rr_token '<extra_0>' the id 7, the tokenizer \d+; use the tokenizer",
    ),
    "no [PRM]": (
        "pqm",
        _tokenizer(bos=True),
        UnsupportedError,
        "recipe 'skywork-o1-prm' is known for model_type qwen2, this checkpoint has 'llama'",
    ),
    "newlines in one token": (
        "llemma",
        _tokenizer(bos=True, often=("\n\n",), qwen=True),
        CheckpointError,
        "two newlines are 1 tokens of this tokenizer and must be two",
    ),
    "no bos": (
        "llemma",
        lambda path: _without_bos(path),
        CheckpointError,
        "the tokenizer has no bos_token, with which this family's texts begin",
    ),
    "reward of two": (
        "reasonflux-prm-1.5b",
        _reward({"weight": torch.ones(2, 64), "bias": torch.ones(2)}),
        CheckpointError,
        "reward_head.weight gives 2 values, a trajectory head gives 1",
    ),
    "reward of another model": (
        "reasonflux-prm-1.5b",
        _reward({"weight": torch.ones(1, 32), "bias": torch.ones(1)}),
        CheckpointError,
        "reward_head.weight takes 32 values, the hidden size is 64",
    ),
    "reward without bias": (
        "reasonflux-prm-1.5b",
        _reward({"weight": torch.ones(1, 64)}),
        UnsupportedError,
        "language model and has no per-step head",
    ),
    "reward that runs code": (
        "reasonflux-prm-1.5b",
        _reward({"weight": Path("x")}),
        CheckpointError,
        r"reward_head\.pt is a pickle that asks for more than tensors",
    ),
    "tag of several tokens": (
        "versaprm",
        _tokenizer(bos=True, qwen=True),
        CheckpointError,
        r"the tag ' \\n\\n\\n\\n' is \d tokens of this tokenizer and must be one",
    ),
    "eos after a text": (
        "versaprm",
        _around_text,
        CheckpointError,
        "adds more to a text than a bos_token at its start",
    ),
}


def _without_bos(checkpoint: Path) -> None:
    _tokenizer_config(bos_token=None)(checkpoint)


@pytest.mark.parametrize("case", REFUSALS)
def test_checkpoint_that_is_not_the_familys_is_refused(case: str, tmp_path: Path) -> None:
    name, change, error, message = REFUSALS[case]
    checkpoint, options = family_cases.make(name, tmp_path)
    change(checkpoint)
    with pytest.raises(error, match=message):
        run(tmp_path, checkpoint, **options)


@pytest.mark.parametrize("rows", ["later", "zero", "odd"])
def test_output_layer_that_only_looks_repeated_is_a_language_models(
    rows: str, tmp_path: Path
) -> None:
    checkpoint = family_checkpoints.llemma(tmp_path / "tiny")
    tensors = checkpoints.read_tensors(checkpoint)
    weight = tensors["lm_head.weight"]
    if rows == "later":
        weight[7] += 1
    elif rows == "zero":
        weight.zero_()
    else:
        tensors["lm_head.weight"] = weight[:-1]
    checkpoints.write_shards(checkpoint, tensors)
    with pytest.raises(UnsupportedError, match="is a language model and has no per-step head"):
        run(tmp_path, checkpoint)


def test_value_head_is_pqms_where_its_token_is(tmp_path: Path) -> None:
    plan = planned("pqm", tmp_path)
    assert plan.family.name == "pqm"
    assert plan.recipe.score.range is None
    skywork = planned("skywork-o1-prm", tmp_path / "other")
    assert skywork.family.name == "skywork-o1-prm"


def test_pqm_needs_its_token() -> None:
    from prm_edge_export.families import Request
    from prm_edge_export.tokenizer_files import TokenizerFiles

    files = TokenizerFiles(raw=b"", config={}, added={}, size=0)
    request = Request(files=files, tokenizer=None, separator=None, good=0)
    with pytest.raises(CheckpointError, match=r"no token '\[PRM\]', which its authors add"):
        FAMILIES["pqm"].build(request)


def test_scores_line_of_every_kind(tmp_path: Path) -> None:
    said = {
        name: next(r for r in planned(name, tmp_path / name).reasons if r.startswith("score: "))
        for name in ("reasoneval-7b", "actprm", "versaprm")
    }
    assert said == {
        "reasoneval-7b": "score: classes of 3 logits, 1 and 2 are good, 1 is redundant",
        "actprm": "score: mean_sigmoid of 4 logits",
        "versaprm": "score: softmax of 2 logits, 1 is good",
    }


def test_recipe_with_classes_survives_the_manifest(tmp_path: Path) -> None:
    plan = planned("reasoneval-34b", tmp_path)
    written = json.loads(json.dumps(plan.recipe.to_dict()))
    assert written["score"] == {"kind": "classes", "valid": [1, 2], "redundant": 1}
    assert written["step"] == [{"slot": "step", "read": -1}]
    assert dataclasses.replace(plan.recipe) == type(plan.recipe).from_dict(written)

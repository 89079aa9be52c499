"""Recipes of your own, and the built-in ones as files: what is printed is what is read back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
import family_checkpoints
import numpy as np
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_reference import shepherd_scores

from prm_edge.cli import cli
from prm_edge_export import own_recipe, recipe_toml
from prm_edge_export.families import FAMILIES, Family, Request, encode_plain
from prm_edge_export.options import ExportOptions
from prm_edge_export.own_recipe import read_recipe_file, tomllib
from prm_edge_export.pipeline import export, planned
from prm_edge_export.recipe_toml import to_toml
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import CheckpointError, ConfigError, RecipeError, UnsupportedError
from prm_edge_runtime.recipe import Recipe, Tokens


def recipes(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["recipes", *map(str, arguments)])


# a checkpoint of each built-in family; those with its head, where the family has no own builder
CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "trl": checkpoints.trl_llama,
    "pure": checkpoints.trl_qwen2,
    "qwen2.5-math-prm": checkpoints.qwen_prm,
    "reasonflux-prm": checkpoints.qwen_prm,
    "skywork-o1-prm": family_checkpoints.skywork,
    "math-shepherd": family_checkpoints.math_shepherd,
    "rlhflow-deepseek": family_checkpoints.rlhflow,
    "rlhflow-mistral": family_checkpoints.rlhflow,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_built_in_recipe_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    printed = recipes(name)
    assert printed.exit_code == 0
    path = tmp_path / "own.toml"
    path.write_text(printed.stdout, encoding="utf-8")
    assert read_recipe_file(path).title == FAMILIES[name].title
    if name not in CHECKPOINTS:
        return
    checkpoint = CHECKPOINTS[name](tmp_path / "tiny")
    separator = {"trl": "\n"}.get(name)
    built_in = planned(ExportOptions(checkpoint=checkpoint, recipe=name, separator=separator))
    # a file that is like a family asks what the family asks
    asked = separator if FAMILIES[name].separator and "like = " in printed.stdout else None
    own = planned(ExportOptions(checkpoint=checkpoint, recipe=str(path), separator=asked))
    assert own.recipe == built_in.recipe
    assert own.head == built_in.head
    # and as this checkpoint has it, every id written out
    if name != "trl":
        shown = recipes(name, "--checkpoint", checkpoint)
        assert shown.exit_code == 0, shown.stderr
        assert "tokens = [" in shown.stdout
        path.write_text(shown.stdout, encoding="utf-8")
        exact = planned(ExportOptions(checkpoint=checkpoint, recipe=str(path)))
        assert exact.recipe == built_in.recipe


def test_recipes_are_listed() -> None:
    listed = recipes()
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(FAMILIES)
    data = json.loads(recipes("--json").stdout)
    assert [row["name"] for row in data] == list(FAMILIES)
    assert data[0]["detected"]
    one = json.loads(recipes("math-shepherd", "--json").stdout)
    assert one["recipe"]["rows"] == ["+", "-"]
    assert one["recipe"]["step"] == [{"slot": "step", "strip": True}, {"tag": " ки"}]


WITHOUT_EXPORT = """
import sys
for name in ("torch", "transformers", "onnx", "safetensors", "huggingface_hub", "jinja2"):
    sys.modules[name] = None
from prm_edge.cli import cli
cli(sys.argv[1:])
"""


def without_export(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in an environment that has only what ``[cpu]`` installs."""
    command = [sys.executable, "-c", WITHOUT_EXPORT, "recipes", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_recipes_need_no_extra_to_be_listed_and_printed() -> None:
    assert without_export().stdout == recipes().stdout
    assert without_export("math-shepherd").stdout == recipes("math-shepherd").stdout
    refused = without_export("trl", "--checkpoint", "x")
    assert refused.returncode == 1
    assert "pip install 'prm-edge[export]'" in refused.stderr


def test_recipes_take_the_separator_of_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    refused = recipes("trl", "--checkpoint", checkpoint)
    assert refused.exit_code == 1
    assert "does not store its step separator" in refused.stderr
    shown = recipes("trl", "--checkpoint", checkpoint, "--separator", r"\n\n")
    assert shown.exit_code == 0, shown.stderr
    assert tomllib.loads(shown.stdout)["split"]["separator"] == "\n\n"
    alone = recipes("trl", "--separator", "x")
    assert alone.exit_code == 2
    assert "--separator is one of a checkpoint's; name it with --checkpoint" in alone.stderr


def test_recipes_refuses_what_it_does_not_know() -> None:
    for arguments, message in (
        (["nonsense"], "'nonsense' is not one of the recipes: trl, "),
        (["--checkpoint", "x"], "--checkpoint needs the NAME of a recipe"),
    ):
        result = recipes(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr


text = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"]) | st.sampled_from('"\\\x7f\n\r\0'),
    max_size=8,
)
values = st.recursive(
    text | st.integers(-9, 1 << 40) | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b-c", "d_1"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["prompt", "x", "y"]), values, max_size=3), text)
def test_toml_is_read_back(data: dict[str, Any], comment: str) -> None:
    if not isinstance(data.get("prompt", []), list):
        data.pop("prompt")
    assert tomllib.loads(to_toml(data, ("a comment",))) == data


# --- a reward model of one's own

OWN = """
family = "my-prm"
rows = ["yes", "no"]
encode = "joint"
prompt = [{ bos = "required" }, { text = "Q: " }, { slot = "problem" }, { text = "\\n" }]
between = [{ text = "\\n" }]
step = [{ slot = "step", strip = true }, { tag = " ки" }]
split = { separator = "\\n" }
score = { kind = "softmax", good = 0 }
aggregate = "min"
label_meaning = "local"
"""


def write(folder: Path, **changes: str | None) -> Path:
    """A recipe file; ``changes``: keys and their TOML, None to leave one out."""
    lines = dict(line.split(" = ", 1) for line in OWN.strip().splitlines()) | changes
    path = folder / "my.toml"
    text = "\n".join(f"{key} = {value}" for key, value in lines.items() if value is not None)
    path.write_text(text, encoding="utf-8")
    return path


def test_own_recipe_scores_as_torch_does(tmp_path: Path) -> None:
    """Math-Shepherd written out by hand, its rows by id: the published procedure is the judge."""
    checkpoint = family_checkpoints.math_shepherd(tmp_path / "tiny")
    vocabulary = family_checkpoints.sentencepiece()
    rows = [vocabulary.convert_tokens_to_ids("▁+"), vocabulary.convert_tokens_to_ids("▁-")]
    prompt = '[{ bos = "required" }, { slot = "problem" }, { text = " " }]'
    path = write(tmp_path, rows=str(rows), prompt=prompt)
    result = export(ExportOptions(checkpoint=checkpoint, out=tmp_path / "pkg", recipe=str(path)))
    assert "recipe: my-prm (my-prm), as asked" in result.report["decisions"]
    with Scorer.load(result.out, self_test=True) as scorer:
        assert (scorer.recipe.family, scorer.recipe.label_meaning) == ("my-prm", "local")
        for problem, steps in (
            ("What is 2 + 2?", ["2 + 2 = 4", "So the answer is 4."]),
            ("Größe in m²?", ["Step 1: 7 / 2 = 3.5", "so 3,5 — done", "x"]),
        ):
            got = scorer.score(problem, steps).scores
            np.testing.assert_allclose(got, shepherd_scores(checkpoint, problem, steps), atol=1e-5)


@pytest.mark.parametrize("encode", ["joint", "sections", "separate", "trimmed"])
def test_own_recipe_of_every_encoding_agrees_with_transformers(encode: str, tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    path = write(
        tmp_path,
        rows=None,
        encode=f'"{encode}"',
        prompt='[{ bos = "if any" }, { text = "Q: " }, { slot = "problem" }, { text = " A:" }]',
        step='[{ slot = "step" }, { text = " . " }, { spelled = "\\n\\n", read = -1 }]',
        between='[{ text = "next " }]',
        score='{ kind = "difference", good = 1, bad = 0 }',
        aggregate='"softmin"',
    )
    plan = planned(ExportOptions(checkpoint=checkpoint, recipe=str(path)))
    assert plan.recipe.aggregates == ("last", "mean", "min", "softmin")
    assert plan.recipe.split.strip

    words = st.text(st.sampled_from("ab1 +\n.é🙂"), max_size=8)

    @settings(max_examples=50, deadline=None)
    @given(words, st.lists(words, max_size=3))
    def check(problem: str, steps: list[str]) -> None:
        encoded = plan.encoder.encode(problem, steps)
        ids, reads = own_recipe.own_reference(plan.tokenizer, plan.recipe, problem, steps)
        assert (encoded.ids.tolist(), encoded.reads.tolist()) == (ids, reads)

    check()


def test_readme_recipe_is_one(tmp_path: Path) -> None:
    from test_readme import blocks

    (example,) = blocks("toml")
    path = tmp_path / "readme.toml"
    path.write_text(example, encoding="utf-8")
    checkpoint = family_checkpoints.math_shepherd(tmp_path / "tiny")
    plan = planned(ExportOptions(checkpoint=checkpoint, recipe=str(path)))
    assert (plan.recipe.family, plan.head.kind) == ("my-prm", "rows")


def test_own_recipe_like_a_built_in_one(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    path = tmp_path / "like.toml"
    path.write_text(
        'like = "trl"\nfamily = "mine"\nseparator = "\\n\\n"\nlabel_meaning = "local"\n'
        'split = { separator = "##", strip = false }\n'
        'score = { kind = "difference", good = 0, bad = 1 }\naggregate = "last"\n'
    )
    plan = planned(ExportOptions(checkpoint=checkpoint, recipe=str(path)))
    recipe = plan.recipe
    assert (recipe.family, recipe.label_meaning, recipe.aggregate) == ("mine", "local", "last")
    assert (recipe.split.separator, recipe.split.strip) == ("##", False)
    assert (recipe.score.kind, recipe.score.good, recipe.score.bad) == ("difference", 0, 1)
    assert recipe.step[-1].to_dict()["spelled"] == "\n\n"
    assert "prod" not in recipe.aggregates
    path.write_text('like = "trl"\naggregates = ["last"]\naggregate = "last"\n')
    with pytest.raises(CheckpointError, match="does not store its step separator"):
        planned(ExportOptions(checkpoint=checkpoint, recipe=str(path)))
    options = ExportOptions(checkpoint=checkpoint, recipe=str(path), separator="\n")
    assert planned(options).recipe.aggregates == ("last",)


# --- what is wrong with a file, or does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"famly": '"x"'}, r"my\.toml: unknown key 'famly'; known keys: aggregate, aggregates"),
        ({"family": None}, "key 'family' is missing"),
        ({"encode": '"both"'}, "encode: must be one of joint, sections, separate, trimmed"),
        ({"rows": "[true]"}, "rows: must hold words or token ids"),
        ({"heads": '["linear"]'}, r"heads: must be \['rows'\] where rows are given"),
        ({"heads": '["soft"]', "rows": None}, r"heads: unknown \['soft'\]; known: linear, "),
        ({"heads": '["rows"]', "rows": None}, "rows: must be given for a head of rows"),
        ({"step": '[{ slot = "step" }, { hug = 1 }]'}, "must have one of the keys text, slot, bos"),
        ({"step": '[{ text = "x", read = 1 }]'}, "unknown key 'read'"),
        ({"step": '[{ slot = "step" }, { spelled = 3 }]'}, "spelled: must be a string"),
        ({"step": '[{ slot = "step" }, { tag = "x", id = -1 }]'}, "id: must be at least 0"),
        ({"prompt": '[{ bos = "maybe" }]'}, "bos: must be one of required, if any, if added; got"),
        ({"score": '{ kind = "softmax" }'}, "score: key 'good' is missing"),
        ({"split": "3"}, "split: must be an object, got an integer"),
        ({"label_meaning": '"vague"'}, "label_meaning: must be one of local, on_path"),
        ({"score": "{ kind = "}, "cannot be read as TOML"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_own_recipe_that_is_wrong(
    changes: dict[str, str | None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe_file(write(tmp_path, **changes))


def test_own_recipe_lists_every_problem_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"3 problems:(?s:.*)encode(?s:.*)aggregate(?s:.*)label"):
        read_recipe_file(write(tmp_path, encode='"x"', aggregate='"y"', label_meaning='"z"'))
    with pytest.raises(RecipeError, match=r"2 problems:(?s:.*)rows(?s:.*)unknown key 'extra'"):
        read_recipe_file(write(tmp_path, rows="[1.5]", extra="1"))


def test_own_recipe_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml is missing; `prm-edge recipes NAME > none"):
        read_recipe_file(tmp_path / "none.toml")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 50_000)
    with pytest.raises(RecipeError, match="cannot be read as TOML"):
        read_recipe_file(tmp_path / "deep.toml")
    monkeypatch.setattr(own_recipe, "MAX_BYTES", 3)
    with pytest.raises(RecipeError, match="has more than 3 bytes; is this a recipe"):
        read_recipe_file(write(tmp_path))
    with pytest.raises(ConfigError, match=r"--recipe 'x\.json' is neither one of trl, .* \.toml f"):
        planned(ExportOptions(checkpoint=checkpoints.trl_llama(tmp_path / "t"), recipe="x.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('like = "nothing"', r"like: must be one of trl, .*; got 'nothing'"),
        ('like = "math-shepherd"\nseparator = "x"', "separator: math-shepherd has none to change"),
        ('like = "trl"\nprompt = []', "unknown key 'prompt'"),
    ],
)
def test_like_file_that_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "like.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_recipe_file(path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, CheckpointError, "recipe 'my-prm' needs 'yes' to be one token, .* encodes it as"),
        ({"rows": "[5, 9999]"}, CheckpointError, r"shape \[\d+, 64\] lacks one of the rows \[5, 9"),
        (
            {"rows": '["+", "-"]', "step": '[{ slot = "step" }, { tag = "zz qq" }]'},
            CheckpointError,
            r"tokenizer\.json: the tag 'zz qq' is \d tokens \[.*\] and must be one",
        ),
        (
            {"rows": '["+", "-"]', "step": '[{ slot = "step" }, { spelled = "", read = 0 }]'},
            CheckpointError,
            r"tokenizer\.json: '' of the recipe is no token",
        ),
        (
            {
                "rows": '["+", "-"]',
                "step": '[{ slot = "step" }, { tokens = [99999], spelled = "\\n", read = 0 }]',
            },
            RecipeError,
            r"expects '\\n' to be token \[99999\], but this tokenizer encodes it as",
        ),
        ({"rows": '["+", "-"]', "step": '[{ slot = "step" }]'}, RecipeError, "exactly one read po"),
        (
            {"rows": None, "heads": '["linear"]'},
            CheckpointError,
            "needs a head of kind linear, the checkpoint has none of its own",
        ),
        ({"rows": '["+", "-"]', "logits": "3"}, CheckpointError, r"is for 3 logits, the head .* 2"),
        (
            {"rows": '["+", "-"]', "model_types": '["qwen3"]'},
            UnsupportedError,
            "is known for model_type qwen3, this checkpoint has 'llama'",
        ),
    ],
)
def test_own_recipe_that_does_not_fit(
    changes: dict[str, str | None], error: type[Exception], message: str, tmp_path: Path
) -> None:
    checkpoint = family_checkpoints.math_shepherd(tmp_path / "tiny")
    path = write(tmp_path, **changes)
    with pytest.raises(error, match=message):
        planned(ExportOptions(checkpoint=checkpoint, recipe=str(path)))


def test_own_recipe_needs_the_bos_it_names(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny", bos=False)
    changes = {"rows": None, "step": '[{ slot = "step" }, { spelled = "\\n", read = 0 }]'}
    path = write(tmp_path, **changes)
    with pytest.raises(CheckpointError, match="no bos_token, with which this recipe begins"):
        planned(ExportOptions(checkpoint=checkpoint, recipe=str(path)))
    path = write(tmp_path, prompt='[{ bos = "if any" }, { slot = "problem" }]', **changes)
    plan = planned(ExportOptions(checkpoint=checkpoint, recipe=str(path)))
    assert [part.to_dict() for part in plan.recipe.prompt] == [{"slot": "problem"}]


def test_own_recipe_begins_as_the_tokenizer_does(tmp_path: Path) -> None:
    """Math-Shepherd's kind of tokenizer adds a BOS token; the other one only has it."""
    adds = family_checkpoints.math_shepherd(tmp_path / "adds")
    only_has = checkpoints.trl_llama(tmp_path / "has")
    prompt = '[{ bos = "if added" }, { slot = "problem" }, { text = " " }]'
    path = write(tmp_path, rows='["+", "-"]', prompt=prompt)
    first = planned(ExportOptions(checkpoint=adds, recipe=str(path))).recipe.prompt[0]
    assert first.to_dict() == {"tokens": [1], "spelled": "<s>"}
    changes = {"rows": None, "step": '[{ slot = "step" }, { spelled = "\\n", read = 0 }]'}
    path = write(tmp_path, prompt=prompt, **changes)
    first = planned(ExportOptions(checkpoint=only_has, recipe=str(path))).recipe.prompt[0]
    assert first.to_dict() == {"slot": "problem"}
    tokenizer = json.loads((only_has / "tokenizer.json").read_text())
    special = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, special],
        "pair": [],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [1], "tokens": ["<|end|>"]}},
    }
    (only_has / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"encodes 'x' as \[\d+, 1\], so it adds more"):
        planned(ExportOptions(checkpoint=only_has, recipe=str(path)))


def _family(**changes: Any) -> Family:
    def build(request: Request) -> Recipe:
        begins = request.tokenizer("x")["input_ids"] != encode_plain(request.tokenizer, "x")
        bos = Tokens(ids=(1,), text="<bos>")
        data = planned_recipe.to_dict() | {"prompt": [{"slot": "problem"}]}
        recipe = Recipe.from_dict(data)
        return replace(recipe, prompt=(bos, *recipe.prompt)) if begins else recipe

    planned_recipe = FAMILIES["trl"].build(recipe_toml._request(FAMILIES["trl"], False, False))
    return replace(FAMILIES["trl"], build=build, separator=None, good=1, **changes)


def test_printed_recipe_depends_on_the_tokenizer_as_the_family_does() -> None:
    data = recipe_toml.family_data(_family())
    assert data["prompt"] == [{"bos": "if added"}, {"slot": "problem"}]
    trl = recipe_toml.family_data(FAMILIES["trl"])
    assert trl["prompt"] == [{"bos": "if any"}, {"slot": "problem"}]
    assert recipe_toml.family_data(FAMILIES["math-shepherd"])["prompt"][0] == {"bos": "required"}

    # what has no spelling, or cannot be built from a stand-in, is like the family
    def odd(request: Request) -> Recipe:
        recipe = FAMILIES["trl"].build(request)
        return replace(recipe, step=(recipe.step[0], Tokens(ids=(7, 8), text="\n", read=0)))

    def refused(request: Request) -> Recipe:
        raise CheckpointError("no")

    assert "like" in recipe_toml.family_data(replace(FAMILIES["trl"], build=odd))
    data = recipe_toml.family_data(replace(FAMILIES["trl"], build=refused))
    assert data == {"like": "trl", "title": FAMILIES["trl"].title}


def test_own_recipe_and_label_names_must_agree(tmp_path: Path) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    path = write(tmp_path, rows=None, step='[{ slot = "step" }, { spelled = "\\n", read = 0 }]')
    checkpoints.edit_config(checkpoint, lambda data: data.update(id2label={"0": "BAD"}))
    with pytest.raises(
        CheckpointError, match=r"names the labels {0: 'bad'.*}, the recipe 'my-prm' takes number 0"
    ):
        planned(ExportOptions(checkpoint=checkpoint, recipe=str(path)))
    checkpoints.edit_config(checkpoint, lambda data: data.update(id2label={"1": "bad"}))
    assert planned(ExportOptions(checkpoint=checkpoint, recipe=str(path))).recipe.score.good == 0
    with pytest.raises(CheckpointError, match="recipe 'my-prm' says itself which number is the go"):
        planned(ExportOptions(checkpoint=checkpoint, recipe=str(path), good_label=1))

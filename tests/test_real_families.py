"""Published families with published tokenizers: ids, read positions and scores.

Needs the folder of ``python tests/real_tokenizers.py fetch DIR`` in PRM_EDGE_TEST_TOKENIZERS.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
import family_cases
import family_checkpoints
import real_tokenizers
from test_real_tokenizers import folder_of
from torch_reference import rlhflow_scores, shepherd_scores
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from prm_edge_export.families import FAMILIES, Request
from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_export.proof import load_texts
from prm_edge_export.tokenizer_files import file_tokenizer, read_tokenizer
from prm_edge_runtime import Scorer
from prm_edge_runtime.encoding import RecipeEncoder
from prm_edge_runtime.errors import InputError

pytestmark = pytest.mark.real_tokenizers

RECORDS = [(text.problem, list(text.steps)) for text in load_texts(None)[0]]
# The example of the model card of peiyi9979/math-shepherd-mistral-7b-prm
QUESTION = (
    "Janet\u2019s ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes "
    "muffins for her friends every day with four. She sells the remainder at the farmers' market "
    "daily for $2 per fresh duck egg. How much in dollars does she make every day at the farmers' "
    "market?"
)
STEPS = [
    "Step 1: Janet's ducks lay 16 eggs per day.",
    "Step 2: She eats three for breakfast every morning, so she has 16 - 3 = 13 eggs left.",
    "Step 3: She bakes muffins for her friends every day with four eggs, so she has 13 - 4 = 9 "
    "eggs left.",
]


def encoder_of(family: str, folder: Path) -> tuple[Any, RecipeEncoder]:
    files = read_tokenizer(folder)
    tokenizer = file_tokenizer(files)
    request = Request(files=files, tokenizer=tokenizer, separator=None, good=0)
    return tokenizer, RecipeEncoder(files.raw, FAMILIES[family].build(request))


def test_math_shepherd_reads_at_its_published_ids() -> None:
    tokenizer, encoder = encoder_of("math-shepherd", folder_of("llama2"))
    encoded = encoder.encode(QUESTION, STEPS)
    text = f"{QUESTION} " + "\n".join(f"{step} ки" for step in STEPS)
    assert encoded.ids.tolist() == [1, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert encoded.ids[encoded.reads].tolist() == [12902] * 3
    with pytest.raises(InputError, match="token 12902, found 2 times where 1 belong"):
        encoder.encode(QUESTION, [f"{STEPS[0]} ки and on"])
    # a tag without its blank is another token, and stays text
    assert len(encoder.encode(QUESTION, [STEPS[0] + "\nки"]).reads) == 1


def test_rlhflow_reads_before_each_verdict() -> None:
    _, encoder = encoder_of("rlhflow-deepseek", folder_of("llama3_1"))
    encoded = encoder.encode(QUESTION, ["one\n", " two"])
    ids = encoded.ids.tolist()
    assert ids[0] == 128000
    assert [ids[at] for at in encoded.reads] == [271, 271]
    verdict = [128009, 128006, 78191, 128007, 271]
    assert ids[-5:] == verdict
    first = int(encoded.reads[0])
    assert ids[first - 4 : first + 3] == [*verdict, 10, 128009]


def test_skywork_encodes_each_step_apart(tmp_path: Path) -> None:
    folder = with_bos(tmp_path)
    tokenizer, encoder = encoder_of("skywork-o1-prm", folder)
    encoded = encoder.encode("Which is larger?\n", ["11 is greater than 8.", "", "So 11."])
    assert encoded.ids[0] == 151643
    assert encoded.ids[encoded.reads].tolist() == [198] * 3
    assert 624 not in encoded.ids  # ".\n" in one token, which joint encoding would give
    assert tokenizer.decode(encoded.ids.tolist()).count("\n") == 5  # the problem ends with one


def with_bos(target: Path) -> Path:
    """Qwen2.5's tokenizer with the BOS that Skywork's has."""
    folder = target / "qwen"
    shutil.copytree(folder_of("qwen2_5"), folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<|endoftext|>"}))
    return folder


def _language_model(folder: Path, name: str, vocab: int, *, mistral: bool = False) -> Path:
    sizes = checkpoints.sizes(vocab, max_position_embeddings=2048, hidden_size=32, head_dim=16)
    if mistral:
        config = MistralConfig(**sizes, sliding_window=64)
        model: Any = family_checkpoints.causal(config, MistralForCausalLM, 21)
    else:
        model = family_checkpoints.causal(LlamaConfig(**sizes), LlamaForCausalLM, 22)
    model.save_pretrained(folder)
    for file in real_tokenizers.FILES:
        shutil.copyfile(folder_of(name) / file, folder / file)
    return folder


@pytest.mark.parametrize("mistral", [False, True])
def test_math_shepherd_scores_are_those_of_its_card(mistral: bool, tmp_path: Path) -> None:
    checkpoint = _language_model(tmp_path / "tiny", "llama2", 32000, mistral=mistral)
    options = ExportOptions(
        checkpoint=checkpoint,
        out=tmp_path / "pkg",
        recipe="math-shepherd",
        trust_tokenizer_file=True,
    )
    scorer = Scorer.load(export(options).out)
    compare(scorer, lambda p, s: shepherd_scores(checkpoint, p, s))


def test_rlhflow_scores_are_those_of_its_authors_passes(tmp_path: Path) -> None:
    checkpoint = _language_model(tmp_path / "tiny", "llama3_1", 128256)
    options = ExportOptions(checkpoint=checkpoint, out=tmp_path / "pkg", recipe="rlhflow-deepseek")
    scorer = Scorer.load(export(options).out)
    compare(scorer, lambda p, s: rlhflow_scores(checkpoint, p, s))


def compare(scorer: Scorer, judge: Any) -> None:
    for problem, steps in RECORDS[:10]:
        got = scorer.score(problem, steps).scores
        np.testing.assert_allclose(got, judge(problem, steps), atol=1e-4)


@pytest.mark.parametrize("name", family_cases.CASES)
def test_every_family_scores_as_its_authors_do(name: str, tmp_path: Path) -> None:
    """A quick version of benchmarks/families.py."""
    tokenizers = folder_of(family_cases.CASES[name].published).parent
    checkpoint, options = family_cases.make(name, tmp_path, tokenizers)
    scorer = Scorer.load(
        export(ExportOptions(checkpoint=checkpoint, out=tmp_path / "pkg", **options)).out
    )
    for problem, given in RECORDS[:10]:
        steps = given if scorer.recipe.split.separator is not None else ["\n".join(given)]
        expected = family_cases.judged(name, checkpoint, problem, steps)
        np.testing.assert_allclose(scorer.score(problem, steps).scores, expected, atol=1e-4)

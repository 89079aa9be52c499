"""Published examples with published tokenizers: ids and read positions of families that have one.

Needs the tokenizers of test_real_families.py, and the examples in facts/golden.json beside the
folder PRM_EDGE_TEST_DATA. The scores published with them need the weights; what is tested here is
everything before the model.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import family_cases
from test_real_tokenizers import folder_of

from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.families import FAMILIES, Request
from prm_edge_export.options import ExportOptions
from prm_edge_export.plan import Plan, make_plan
from prm_edge_export.tokenizer_files import file_tokenizer, read_tokenizer
from prm_edge_runtime.encoding import RecipeEncoder
from prm_edge_runtime.errors import InputError

pytestmark = pytest.mark.real_tokenizers

STEP = re.compile(r"(?=Step \d+: )")


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    data = os.environ.get("PRM_EDGE_TEST_DATA")
    path = Path(data or "absent").parent / "facts" / "golden.json"
    if data is None or not path.is_file():
        pytest.skip("no facts/golden.json beside the folder PRM_EDGE_TEST_DATA")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def case(golden: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in golden["cases"] if entry["id"] == name)


def planned(name: str, folder: Path) -> Plan:
    tokenizers = folder_of(family_cases.CASES[name].published).parent
    checkpoint, options = family_cases.make(name, folder, tokenizers)
    with Checkpoint(checkpoint) as opened:
        return make_plan(ExportOptions(checkpoint=checkpoint, **options), opened)


@pytest.mark.parametrize(
    ("family", "examples"),
    [
        (
            "qwen2.5-math-prm",
            ["qwen25-math-prm-7b", "qwen25-math-prm-72b", "qwen25-math-7b-prm800k"],
        ),
        ("actprm", ["actprm"]),
    ],
)
def test_flamingo_is_read_at_its_tags(
    golden: dict[str, Any], family: str, examples: list[str], tmp_path: Path
) -> None:
    given = golden["inputs"]["flamingo"]
    encoded = planned(family, tmp_path).encoder.encode(given["query"], given["response"])
    # 454 tokens in a run that others recorded: ours end at the last tag, "<|im_end|>\n" follows
    assert "454 tokens" in case(golden, "qwen25-math-prm-7b-rerun")["dtype"]
    assert len(encoded.ids) == 454 - 2
    assert encoded.ids[encoded.reads].tolist() == [151651] * 4
    assert encoded.ids[:2].tolist() == [151644, 8948]  # <|im_start|>system
    assert all(len(case(golden, name)["scores"]) == len(encoded.reads) for name in examples)


@pytest.mark.parametrize(
    "name",
    [
        "math-shepherd-right",
        "math-shepherd-wrong-last",
        "math-shepherd-wrong-first",
        "math-shepherd-step-deleted",
    ],
)
def test_math_shepherd_reads_its_cards_text(golden: dict[str, Any], name: str) -> None:
    tokenizer, encoder = _shepherd()
    given = case(golden, name)
    question, *steps = STEP.split(given["text"])
    steps = [step.strip().removesuffix("ки").strip() for step in steps]
    encoded = encoder.encode(question.removesuffix(" "), steps)
    ids = [1, *tokenizer(given["text"], add_special_tokens=False)["input_ids"]]
    assert encoded.ids.tolist() == ids
    assert encoded.reads.tolist() == [at for at, token in enumerate(ids) if token == 12902]
    assert len(encoded.reads) == len(given["scores"])


def test_math_shepherd_tag_without_its_blank_is_text(golden: dict[str, Any]) -> None:
    tokenizer, encoder = _shepherd()
    given = case(golden, "math-shepherd-missing-tag")
    question, step = STEP.split(given["text"])
    # one score for two tags in the text: the second one is another token
    assert step.count("ки") == 2
    assert len(given["scores"]) == 1
    ids = tokenizer(given["text"], add_special_tokens=False)["input_ids"]
    assert ids.count(12902) == 1
    with pytest.raises(InputError, match="token 12902, found 2 times where 1 belong"):
        encoder.encode(question.strip(), [step])


def _shepherd() -> tuple[Any, RecipeEncoder]:
    files = read_tokenizer(folder_of("llama2"))
    tokenizer = file_tokenizer(files)
    request = Request(files=files, tokenizer=tokenizer, separator=None, good=0)
    return tokenizer, RecipeEncoder(files.raw, FAMILIES["math-shepherd"].build(request))


@pytest.mark.parametrize(("name", "from_end"), [("reasoneval-7b", 2), ("reasoneval-34b", 1)])
def test_reasoneval_reads_each_of_its_steps(
    golden: dict[str, Any], name: str, from_end: int, tmp_path: Path
) -> None:
    given = golden["inputs"]["reasoneval_amgm"]
    plan = planned(name, tmp_path)
    steps = given["reasoning_steps"]
    encoded = plan.encoder.encode(given["question"], steps)
    prompt = f"Question:\n{given['question']}\nAnswer:\nLet's think step by step.\n"
    texts = [plan.tokenizer(text, add_special_tokens=False)["input_ids"] for text in steps]
    ids = plan.tokenizer(prompt)["input_ids"]
    assert ids[0] == 1
    ends = []
    for text in texts:
        ids += text
        ends.append(len(ids))
    assert encoded.reads.tolist() == [end - from_end for end in ends]
    assert encoded.ids.tolist() == ids[: ends[-1] - from_end + 1]
    assert len(encoded.reads) == len(case(golden, name)["validity"]) == 10


def test_trl_docstring(golden: dict[str, Any]) -> None:
    given = case(golden, "trl-tokenise")
    files = read_tokenizer(folder_of("qwen2_5"))
    request = Request(
        files=files,
        tokenizer=file_tokenizer(files),
        separator=given["step_separator"],
        good=1,
    )
    encoder = RecipeEncoder(files.raw, FAMILIES["trl"].build(request))
    encoded = encoder.encode(given["prompt"], given["completions"])
    assert encoded.ids.tolist() == given["input_ids"]
    assert encoded.reads.tolist() == given["label_positions"]


# --- ids of families whose authors publish no example; families.md, checked against vocabularies


@pytest.mark.parametrize(
    ("name", "tag", "rows"),
    [
        ("math-shepherd", 12902, (648, 387)),
        ("er-prm", 116624, (489, 482)),
        ("versaprm", 23535, (12, 10)),
        ("math-psa", 76325, (488, 481)),
    ],
)
def test_tags_and_rows_are_those_published(
    name: str, tag: int, rows: tuple[int, int], tmp_path: Path
) -> None:
    plan = planned(name, tmp_path)
    encoded = plan.encoder.encode("How much?", ["Step 1: 2 + 2 = 4.", "Step 2: So 4."])
    assert encoded.ids[encoded.reads].tolist() == [tag, tag]
    assert plan.head.layers[0].rows == rows


def test_llemma_reads_the_first_of_two_newlines(tmp_path: Path) -> None:
    encoded = planned("llemma", tmp_path).encoder.encode("How\n\nmuch?", ["2 + 2 = 4.", "So 4."])
    ids, reads = encoded.ids.tolist(), encoded.reads.tolist()
    assert [ids[reads[0] : reads[0] + 2], ids[reads[1]]] == [[13, 13], 13]
    assert ids[0] == 1
    assert ids.count(13) == 2 * 4 + 2 + 1

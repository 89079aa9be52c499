"""Every published shape of record is read, and what its data set says of each step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from prm_edge.inputs import read_source
from prm_edge.records import decode_line, read_labelled
from prm_edge.schemas import SCHEMAS
from prm_edge.solutions import UNKNOWN, Candidates, Record, Response, Solution, Truth
from prm_edge_runtime.errors import InputError, InputTypeError

DATA = Path(os.environ.get("PRM_EDGE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))

PRM800K = {
    "question": {"problem": "p"},
    "label": {
        "steps": [
            {"completions": [{"text": "a", "rating": 1}, {"text": "x", "rating": -1}],
             "chosen_completion": 0, "human_completion": None},
            {"completions": [{"text": "x", "rating": -1}], "chosen_completion": None,
             "human_completion": {"text": "b", "rating": None}},
            {"completions": [{"text": "y", "rating": 1}, {"text": "c", "rating": 0}],
             "chosen_completion": 1, "human_completion": None},
            {"completions": [{"text": "d", "rating": -1}, {"text": "z", "rating": 1}],
             "chosen_completion": None, "human_completion": None},
            {"completions": [{"text": "never", "rating": 1}], "chosen_completion": 0},
        ],
        "finish_reason": "found_error",
    },
}  # fmt: skip
SHEPHERD = {
    "input": "How many - or +? Step 1: 1 + 1 = 2 ки\nStep 2: 2 - 1 = 2 The answer is: 2 ки",
    "label": "How many - or +? Step 1: 1 + 1 = 2 +\nStep 2: 2 - 1 = 2 The answer is: 2 -",
    "task": "GSM8K",
}
PRMBENCH = {
    "idx": "circular_1", "question": "p", "modified_question": "q", "original_process": ["a"],
    "modified_process": ["a", "b", "c"], "error_steps": [2, 3], "classification": "circular",
}  # fmt: skip
VERSAPRM = {
    "question": "p", "answer": "6", "source": "t",
    "chain_of_thoughts": [{"steps": ["a", "b"], "labels": [1, -1], "augs": []}, {"steps": ["c"]}],
}  # fmt: skip
MESSAGES = {
    "messages": [
        {"role": "system", "content": "be good"},
        {"role": "user", "content": [{"type": "text", "text": "p"}]},
        {"role": "assistant", "content": "a\n\nb"},
    ]
}
# schema -> a record of it, what is scored, and what is known
EXAMPLES: list[tuple[str, dict[str, Any], Record, tuple[Truth, ...]]] = [
    (
        "steps",
        {"problem": "p", "steps": ["a", "b"], "label": 1, "final_answer_correct": True,
         "source": "s", "step_labels": [1, None]},
        Solution(id=None, problem="p", steps=("a", "b")),
        (Truth(label=1, ratings=(1, None), answer=True, group="s"),),
    ),
    ("steps", {"problem": "p", "steps": []}, Solution(id=None, problem="p", steps=()), (UNKNOWN,)),
    (
        "response",
        {"problem": "p", "response": "r", "final_answer_correct": False},
        Response(id=None, problem="p", response="r"),
        (Truth(answer=False),),
    ),
    (
        "candidates",
        {"problem": "p", "candidates": [["a"], []], "labels": [0, -1],
         "final_answers_correct": [True, None]},
        Candidates(id=None, problem="p", candidates=(("a",), ())),
        (Truth(label=0, answer=True), Truth(label=-1)),
    ),
    (
        "trl",
        {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]},
        Solution(id=None, problem="p", steps=("a", "b")),
        (Truth(ratings=(1, -1)),),
    ),
    (
        "trl",
        {"prompt": "p", "completions": ["a"]},
        Solution(id=None, problem="p", steps=("a",)),
        (UNKNOWN,),
    ),
    (
        "prm800k",
        PRM800K,
        Solution(id=None, problem="p", steps=("a", "b", "c", "d")),
        (Truth(ratings=(1, 1, 0, -1)),),
    ),
    (
        "math-shepherd",
        SHEPHERD,
        Solution(
            id=None,
            problem="How many - or +?",
            steps=("Step 1: 1 + 1 = 2", "Step 2: 2 - 1 = 2 The answer is: 2"),
        ),
        (Truth(ratings=(1, -1), group="GSM8K"),),
    ),
    (
        "prmbench",
        PRMBENCH,
        Solution(id="circular_1", problem="q", steps=("a", "b", "c")),
        (Truth(ratings=(1, -1, -1), group="circular"),),
    ),
    (
        "prmbench",
        {"modified_question": "q", "modified_process": ["a"]},
        Solution(id=None, problem="q", steps=("a",)),
        (UNKNOWN,),
    ),
    (
        "versaprm",
        VERSAPRM,
        Candidates(id=None, problem="p", candidates=(("a", "b"), ("c",))),
        (Truth(ratings=(1, -1), group="t"), Truth(group="t")),
    ),
    (
        "messages",
        MESSAGES,
        Response(id=None, problem="p", response="a\n\nb"),
        (UNKNOWN,),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "data", "record", "truths"), EXAMPLES)
def test_read_labelled_reads_every_schema(
    schema: str, data: dict[str, Any], record: Record, truths: tuple[Truth, ...]
) -> None:
    assert read_labelled(data) == (record, truths)


def test_every_schema_has_an_example() -> None:
    assert {name for name, *_ in EXAMPLES} == {row.name for row in SCHEMAS}


def changed(data: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**data, **values}


def step(**values: Any) -> dict[str, Any]:
    return changed(PRM800K, label={"steps": [values]})


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"problem": "p", "steps": ["a"], "label": 1}, InputError, "label must be from -1 to 0"),
        ({"problem": "p", "steps": ["a"], "label": True}, InputTypeError, "label must be an int"),
        ({"problem": "p", "steps": ["a"], "label": "0"}, InputTypeError, "got a string"),
        (
            {"problem": "p", "steps": ["a"], "step_labels": [1, 1]},
            InputError,
            "step_labels must have 1 entries, one for each, got 2",
        ),
        (
            {"problem": "p", "steps": ["a"], "step_labels": [2]},
            InputError,
            r"step_labels\[0\] must be 1, 0, -1, true, false or null, got 2",
        ),
        ({"problem": "p", "steps": ["a"], "step_labels": ["+"]}, InputError, "got a string"),
        ({"problem": "p", "steps": [], "step_labels": 1}, InputTypeError, "labels must be a list"),
        (
            {"problem": "p", "steps": [], "final_answer_correct": "yes"},
            InputTypeError,
            "final_answer_correct must be true, false or null, got a string",
        ),
        (changed(PRM800K, question="p"), InputTypeError, "question must be an object, got a str"),
        (changed(PRM800K, label={"steps": 1}), InputTypeError, "label.steps must be a list of obj"),
        (changed(PRM800K, label={"steps": [1]}), InputTypeError, r"steps\[0\] must be an object"),
        (step(chosen_completion=0), InputError, "has a chosen_completion and no completions"),
        (
            step(chosen_completion=5, completions=[{"text": "a", "rating": 1}]),
            InputError,
            "chosen_completion must be from 0 to 0, got 5",
        ),
        (step(completions=[{"rating": 1}]), InputTypeError, "text must be a string"),
        ({"input": "p Step 1: a", "label": "x"}, InputError, "input holds no 'ки', the mark"),
        ({"input": "p a ки", "label": "x"}, InputError, "input has no ' Step 1:' before"),
        ({"input": "p Step 1: ки x", "label": "x"}, InputError, "goes on after its last 'ки'"),
        (changed(SHEPHERD, label="other"), InputError, "they part at mark 0"),
        (
            changed(SHEPHERD, label=SHEPHERD["label"].replace("2 -", "2 *")),
            InputError,
            "they part at mark 1",
        ),
        (changed(PRMBENCH, error_steps=[4]), InputError, "error_steps must be from 1 to 3, got 4"),
        (changed(PRMBENCH, error_steps=2), InputTypeError, "error_steps must be a list"),
        ({"question": "p", "chain_of_thoughts": [{}]}, InputTypeError, r"\[0\].steps must be a"),
        ({"messages": [{"role": "user", "content": "p"}]}, InputError, "one of the assistant"),
        (
            {"messages": [{"role": "user"}, {"role": "assistant"}] * 2},
            InputError,
            "got user, assistant, user, assistant",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]},
                          {"role": "assistant", "content": "a"}]},
            InputError,
            "has a part that is no text",
        ),
    ],
)  # fmt: skip
def test_read_labelled_refuses(data: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_labelled(data)


@pytest.mark.parametrize(
    ("truth", "good", "bad"),
    [
        (Truth(), None, None),
        (Truth(label=-1), -1, -1),
        (Truth(label=2), 2, 2),
        (Truth(ratings=(1, 0, -1)), 2, 1),
        (Truth(ratings=(1, 0)), -1, 1),
        (Truth(ratings=(1, None, -1)), None, None),
        (Truth(label=0, ratings=(1, -1)), 1, 1),
    ],
)
def test_first_error_counts_neutral_as_asked(
    truth: Truth, good: int | None, bad: int | None
) -> None:
    assert truth.first_error() == good
    assert truth.first_error(neutral_is_good=False) == bad


@pytest.mark.parametrize(
    ("truth", "steps"),
    [
        (Truth(), (None, None, None)),
        (Truth(label=-1), (True, True, True)),
        (Truth(label=1), (True, False, None)),
        (Truth(ratings=(1, 0, -1)), (True, True, False)),
        (Truth(ratings=(None, 1, -1)), (None, True, False)),
    ],
)
def test_steps_after_the_first_error_are_unknown(truth: Truth, steps: tuple[bool | None]) -> None:
    assert truth.steps(3) == steps


def test_steps_count_neutral_as_asked() -> None:
    assert Truth(ratings=(1, 0)).steps(2, neutral_is_good=False) == (True, False)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the step-labelled data beside the repository")
def test_all_of_the_data_parses() -> None:
    files = [*sorted(DATA.glob("*.jsonl.gz")), *sorted((DATA / "raw").iterdir())]
    assert len(files) == 11
    records = agreeing = 0
    for path in files:
        with path.open("rb") as stream:
            for line in read_source(stream, path.name):
                data = decode_line(line)
                record, truths = read_labelled(data)
                records += 1
                if data.get("step_labels") is not None:  # two ways to say where the error is
                    assert truths[0].first_error() == data["label"]
                    agreeing += 1
                several = isinstance(record, Candidates)
                assert len(truths) == (len(record.candidates) if several else 1)
    assert agreeing == 1285 + 852
    assert records == 2905 + 400 + 300 + 1285 + 982 + 5276 + 300 + 1920 + 24

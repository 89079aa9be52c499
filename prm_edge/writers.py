"""What one scored record looks like in a file: one row of ``FORMS`` for each form.

In: the record, its steps, and the scores as ``prm-edge`` writes them. Out: one object of JSON; the
form of Parquet is the native one, converted when it is whole. pyarrow is imported where it is
needed; else nothing but the standard library and the runtime.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from prm_edge_runtime.errors import ConfigError, InputError

from .solutions import NO_ERROR, Candidates, Record

NATIVE: Final = "native"
PARQUET_ROWS: Final = 1000  # of one row group
# what a data set says of a record, and is written again with its text
TRUTH_KEYS: Final = (
    "label", "labels", "step_labels", "final_answer_correct", "final_answers_correct", "source",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One record with its scores.

    ``data``: the decoded line. ``steps``: of a solution or response; empty for candidates.
    ``result``: ``scores``, ``verdict`` and so on, or ``candidates`` and so on.
    """

    data: Mapping[str, Any]
    record: Record
    steps: tuple[str, ...]
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form of output. ``convert``: makes the file from the finished lines, where needed."""

    name: str
    about: str
    write: Callable[[Scored], dict[str, Any]]
    convert: Callable[[Path, Path], None] | None = None


def write_native(scored: Scored) -> dict[str, Any]:
    """The scores."""
    return dict(scored.result)


def with_text(scored: Scored) -> dict[str, Any]:
    """The scores with the problem, the steps and the labels, for who has not the input."""
    record, result = scored.record, dict(scored.result)
    known = {key: scored.data[key] for key in TRUTH_KEYS if scored.data.get(key) is not None}
    if isinstance(record, Candidates):
        pairs = zip(record.candidates, result["candidates"], strict=True)
        result["candidates"] = [{"steps": list(steps), **scores} for steps, scores in pairs]
    else:
        result["steps"] = list(scored.steps)
    return {"problem": record.problem, **result, **known}


def write_trl(scored: Scored) -> dict[str, Any]:
    """TRL's stepwise supervision.

    Raises:
        InputError: for candidates, and when a step has no score: a label is true or false.
    """
    result = _one_solution(scored, "trl")
    missing = [index for index, score in enumerate(result["scores"]) if score is None]
    if missing:
        raise InputError(
            f"step {missing[0]} has no score ({result['status'][missing[0]]}), and a label of TRL "
            "is true or false; leave the record out, or write the native form"
        )
    return {
        "prompt": scored.record.problem,
        "completions": list(scored.steps),
        "labels": [score >= result["threshold"] for score in result["scores"]],
    }


def write_processbench(scored: Scored) -> dict[str, Any]:
    """ProcessBench's records: ``label`` is the first wrong step, -1 for none, null for unknown.

    Raises:
        InputError: for candidates.
    """
    result = _one_solution(scored, "processbench")
    label = NO_ERROR if result["verdict"] == "sound" else result["first_error"]
    kept = {key: scored.data[key] for key in ("generator", "final_answer_correct")
            if scored.data.get(key) is not None}  # fmt: skip
    return {
        "problem": scored.record.problem,
        "steps": list(scored.steps),
        "label": label,
        **kept,
    }


def _one_solution(scored: Scored, form: str) -> Mapping[str, Any]:
    if isinstance(scored.record, Candidates):
        raise InputError(
            f"the form {form} has no place for candidates; write the native form, or give one "
            "record for each candidate"
        )
    return scored.result


def to_parquet(lines: Path, target: Path) -> None:
    """Write finished lines as Parquet, a bounded number of rows at a time.

    Raises:
        ConfigError: when pyarrow is not installed.
    """
    arrow, parquet = load_pyarrow()
    schema = _schema(arrow)
    with lines.open("rb") as stream, parquet.ParquetWriter(target, schema) as writer:
        while rows := [_row(json.loads(line)) for line in islice(stream, PARQUET_ROWS)]:
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))


def load_pyarrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet module.

    Raises:
        ConfigError: when it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "Parquet needs the extra parquet: pip install 'prm-edge[parquet]'"
        ) from None
    return pyarrow, pyarrow.parquet


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """One line as a row. A column has one type: an id is text, the aggregates are pairs."""
    row = dict(record)
    if "id" in row:
        row["id"] = row["id"] if isinstance(row["id"], str) else json.dumps(row["id"])
    if "error" in row:
        row["error"] = {**row["error"], "message": encodable(row["error"]["message"])}
    for key in ("id", "source"):
        if key in row:
            row[key] = encodable(row[key])
    # labels are copied as they came: a column takes those of its type
    if type(row.get("label")) is not int or abs(row["label"]) >= 2**63:
        row.pop("label", None)
    if not isinstance(row.get("final_answer_correct"), bool):
        row.pop("final_answer_correct", None)
    for item in (row, *row.get("candidates", [])):
        if "aggregate" in item:
            item["aggregate"] = list(item["aggregate"].items())
    return row


def encodable(value: object) -> str:
    """Text that a column can hold: of half a surrogate pair, its escape."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _schema(arrow: Any) -> Any:
    text, number, whole, flag = arrow.string(), arrow.float64(), arrow.int64(), arrow.bool_()
    solution = [
        ("steps", arrow.list_(text)),
        ("scores", arrow.list_(number)),
        ("verdict", text),
        ("first_error", whole),
        ("aggregate", arrow.map_(text, number)),
        ("status", arrow.list_(text)),
        ("probabilities", arrow.list_(number)),
        ("redundancy", arrow.list_(number)),
        ("error_kinds", arrow.list_(text)),
        ("n_tokens", whole),
    ]
    error = arrow.struct([("type", text), ("message", text), ("line", whole)])
    return arrow.schema(
        [
            ("id", text),
            ("problem", text),
            *solution,
            ("threshold", number),
            ("candidates", arrow.list_(arrow.struct(solution))),
            ("order", arrow.list_(whole)),
            ("best", whole),
            ("best_sound", whole),
            ("by", text),
            ("label", whole),
            ("final_answer_correct", flag),
            ("source", text),
            ("package", text),
            ("variant", text),
            ("error", error),
        ]
    )


FORMS: Final = (
    Form(name=NATIVE, about="the scores, one line for each record", write=write_native),
    Form(
        name="trl",
        about="TRL's stepwise supervision, labels by the threshold",
        write=write_trl,
    ),
    Form(
        name="processbench",
        about="ProcessBench's records; label is the first wrong step, -1 for none",
        write=write_processbench,
    ),
    Form(
        name="parquet",
        about="the native form as Parquet (extra parquet); needs -o FILE",
        write=write_native,
        convert=to_parquet,
    ),
)


def form_named(name: str) -> Form:
    """The form of that name.

    Raises:
        ConfigError: when there is none.
    """
    for form in FORMS:
        if form.name == name:
            return form
    raise ConfigError(
        f"there is no output form {name!r}; use one of {', '.join(form.name for form in FORMS)}"
    )

"""Golden scores: what a model gave where it was trained, one JSON object a line.

In: ``golden.jsonl``, written by ``prm_edge.record`` beside the trainer. Out: records that
``prm-edge export --expect`` compares a package with. They are the only check of a package that
shares neither our tokenisation nor our recipe, so the file is read strictly.
Imports nothing but the standard library and this package's own modules.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .errors import InputError
from .strict import Fields, Problems

DTYPES: Final = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRecord:
    """The scores of one solution, one per step.

    ``dtype``: the dtype of the weights that gave them, which decides how closely a package can
    agree. ``recorder``: what wrote them. ``n_tokens``: length of the whole record in tokens, when
    known: a package that disagrees on it does not encode as the trainer did.
    """

    problem: str
    steps: tuple[str, ...]
    scores: tuple[float, ...]
    dtype: str
    recorder: str
    n_tokens: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "problem": self.problem,
            "steps": list(self.steps),
            "scores": list(self.scores),
            "dtype": self.dtype,
            "recorder": self.recorder,
            "n_tokens": self.n_tokens,
        }

    @classmethod
    def from_dict(cls, data: object, *, where: str) -> GoldenRecord:
        """Read one record from decoded JSON.

        Raises:
            InputError: listing every unknown key, wrong type and impossible value.
        """
        problems = Problems()
        fields = Fields(data, where, problems)
        record = cls(
            problem=fields.text("problem"),
            steps=fields.list_of("steps", str, "strings"),
            scores=_scores(fields),
            dtype=fields.choice("dtype", DTYPES),
            recorder=fields.text("recorder"),
            n_tokens=fields.integer("n_tokens", minimum=1) if _has_n_tokens(fields) else None,
        )
        fields.finish()
        problems.raise_if_any(InputError, "golden scores cannot be used")
        _check(record, where)
        return record


def _scores(fields: Fields) -> tuple[float, ...]:
    values = fields.items("scores")
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        fields.problems.add(f"{fields.where}.scores", "must hold only numbers")
        return ()
    try:
        return tuple(float(value) for value in values)
    except OverflowError:  # an integer literal beyond the largest float
        return (math.inf,)


def _has_n_tokens(fields: Fields) -> bool:
    if fields.has("n_tokens") and fields.data["n_tokens"] is None:
        del fields.data["n_tokens"]
    return fields.has("n_tokens")


def _check(record: GoldenRecord, where: str) -> None:
    """Refuse a record that could not be compared with step scores."""
    problems = Problems()
    if not record.steps:
        problems.add(where, "has no steps; a golden record needs one or more")
    if len(record.scores) != len(record.steps):
        problems.add(
            where,
            f"has {len(record.scores)} scores for {len(record.steps)} steps; "
            "record one score per step",
        )
    for index, score in enumerate(record.scores):
        if not math.isfinite(score):
            problems.add(f"{where}.scores[{index}]", f"must be finite, got {score}")
    if record.dtype not in DTYPES:
        problems.add(f"{where}.dtype", f"must be one of {', '.join(DTYPES)}; got {record.dtype!r}")
    for name, text in (("problem", record.problem), *(("steps", step) for step in record.steps)):
        if not _is_unicode(text):
            problems.add(f"{where}.{name}", "holds a lone surrogate, which is not text")
    problems.raise_if_any(InputError, "golden scores cannot be used")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
    return data


def read_golden(path: Path) -> list[GoldenRecord]:
    """Read every record of a ``golden.jsonl``; blank lines are skipped.

    Raises:
        InputError: when the file cannot be read, holds no record, or a line is malformed; the
            message names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"golden scores {path} cannot be read ({error.strerror}); "
            "record them with prm_edge.record where the model was trained"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"golden scores {path} are not UTF-8 text (byte {error.start}); "
            "record them with prm_edge.record where the model was trained"
        ) from error
    records = []
    # split at newlines only: str.splitlines() would cut at U+2028 inside a JSON string
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path.name} line {number}"
            records.append(GoldenRecord.from_dict(_decode(line, where), where=where))
    if not records:
        raise InputError(
            f"golden scores {path} hold no record; "
            "record some with prm_edge.record where the model was trained"
        )
    return records


def _decode(line: str, where: str) -> object:
    try:
        data: object = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"golden scores cannot be used: {where}: not JSON: {error}") from error
    return data


def write_golden(
    path: str | os.PathLike[str],
    items: Iterable[tuple[str, Sequence[str], Sequence[float]]],
    *,
    dtype: str,
    source: str,
) -> int:
    """Write (problem, steps, scores) triples as ``golden.jsonl`` and return how many.

    ``dtype``: of the weights that gave the scores (``float32``, ``bfloat16``, ...). ``source``:
    what computed them, in a few words.

    Raises:
        InputError: when a record has not exactly one finite score per step; nothing is written.
    """
    return write_records(
        path,
        [
            GoldenRecord(
                problem=problem,
                steps=tuple(steps),
                scores=tuple(float(score) for score in scores),
                dtype=dtype,
                recorder=source,
            )
            for problem, steps, scores in items
        ],
    )


def write_records(path: str | os.PathLike[str], records: Sequence[GoldenRecord]) -> int:
    """Write records through a temporary sibling and one rename; return how many.

    Raises:
        InputError: when there is no record, or one that could not be compared.
    """
    if not records:
        raise InputError("golden scores cannot be used: there is no record; give one or more")
    for index, record in enumerate(records):
        _check(record, f"record {index}")
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.tmp-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            for record in records:
                file.write(json.dumps(record.to_dict(), ensure_ascii=False, allow_nan=False))
                file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp makes it private to its owner
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return len(records)

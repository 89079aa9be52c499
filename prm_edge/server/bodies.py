"""From the bytes of a body to checked values. In: what anybody may send. Out: frozen data.

Keys that are not known are refused: a misspelt one would be silently without effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from prm_edge.records import Line, decode_line
from prm_edge_runtime.encoding import check_text
from prm_edge_runtime.errors import InputError

from .backend import estimated_tokens
from .limits import Limits
from .refusals import RefusedError

MAX_SHOWN: Final = 40
SOLUTION_KEYS: Final = ("steps", "response", "candidates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A problem and the steps of one solution, or a response that is still one text."""

    problem: str
    steps: tuple[str, ...]
    response: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """A problem and several solutions, and the aggregate that orders them."""

    problem: str
    candidates: tuple[tuple[str, ...], ...]
    by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSession:
    """A problem, and the steps that are there already."""

    problem: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Steps to take, or to look at. ``after``: how many the client believes were taken."""

    steps: tuple[str, ...]
    after: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """How many steps to take back."""

    n: int
    after: int | None


def decode(body: bytes) -> dict[str, Any]:
    """Decode a JSON object; an empty body is an empty one.

    Raises:
        RefusedError: when it is not unambiguous JSON, or no object.
    """
    if not body.strip():
        return {}
    try:
        return decode_line(Line(number=1, data=body, n_bytes=len(body)))
    except InputError as error:
        raise RefusedError("bad_json", f"the body cannot be read: {error}") from None


def read_score(data: dict[str, Any], limits: Limits) -> Solution | Candidates:
    """Read what ``/v1/score`` takes: a problem and its steps, response or candidates."""
    _known(data, ("problem", *SOLUTION_KEYS, "by"))
    given = [key for key in SOLUTION_KEYS if data.get(key) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise InputError(f"give one of {', '.join(SOLUTION_KEYS)} beside problem; got {found}")
    if given == ["candidates"]:
        return read_rank(data, limits)
    if data.get("by") is not None:
        raise InputError("by orders candidates; leave it out where there is one solution")
    problem = _text(data, "problem")
    if given == ["response"]:
        response = _text(data, "response")
        _check_tokens((problem, response), limits)
        return Solution(problem=problem, steps=(), response=response)
    steps = _steps(data["steps"], "steps", limits)
    _check_tokens((problem, *steps), limits)
    return Solution(problem=problem, steps=steps)


def read_rank(data: dict[str, Any], limits: Limits) -> Candidates:
    """Read what ``/v1/rank`` takes: a problem and candidates."""
    _known(data, ("problem", "candidates", "by"))
    problem = _text(data, "problem")
    given = data.get("candidates")
    if not isinstance(given, list) or not given:
        raise InputError(
            f"candidates must be a list of one or more lists of steps, got {_kind(given)}"
        )
    if len(given) > limits.candidates:
        raise RefusedError(
            "too_large", f"there are {len(given)} candidates; at most {limits.candidates} are taken"
        )
    candidates = tuple(_steps(c, f"candidates[{i}]", limits) for i, c in enumerate(given))
    n_steps = sum(map(len, candidates))
    if n_steps > limits.steps:
        raise _too_many_steps(n_steps, limits)
    _check_tokens([text for steps in candidates for text in (problem, *steps)], limits)
    by = data.get("by")
    if by is not None and not isinstance(by, str):
        raise InputError(f"by must be the name of an aggregate, got {_kind(by)}")
    return Candidates(problem=problem, candidates=candidates, by=by)


def read_new_session(data: dict[str, Any], limits: Limits) -> NewSession:
    """Read what ``POST /v1/sessions`` takes: a problem, and steps to begin with."""
    _known(data, ("problem", "steps"))
    problem = _text(data, "problem")
    steps = _steps(data["steps"], "steps", limits) if data.get("steps") is not None else ()
    _check_tokens((problem, *steps), limits)
    return NewSession(problem=problem, steps=steps)


def read_steps(data: dict[str, Any], limits: Limits) -> Steps:
    """Read the steps of a session to take or to look at."""
    _known(data, ("steps", "after"))
    steps = _steps(data.get("steps"), "steps", limits)
    if not steps:
        raise InputError("steps is empty; give the text of one step or more")
    _check_tokens(steps, limits)
    return Steps(steps=steps, after=_count(data, "after"))


def read_undo(data: dict[str, Any]) -> Undo:
    """Read how many steps to take back; one, where nothing is said."""
    _known(data, ("n", "after"))
    n = _count(data, "n")
    return Undo(n=1 if n is None else n, after=_count(data, "after"))


def read_nothing(data: dict[str, Any]) -> None:
    """Read a body that may be left out."""
    _known(data, ())


def check_split(problem: str, steps: Sequence[str], limits: Limits) -> None:
    """Check the steps that a response was cut into."""
    if len(steps) > limits.steps:
        raise _too_many_steps(len(steps), limits)
    _check_tokens((problem, *steps), limits)


def _known(data: dict[str, Any], keys: Sequence[str]) -> None:
    for key in data:
        if key not in keys:
            shown = repr(key[:MAX_SHOWN]) + "..." * (len(key) > MAX_SHOWN)
            allowed = ", ".join(keys) or "none"
            raise InputError(f"the key {shown} is not known here; allowed: {allowed}")


def _text(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise InputError(f"{key} must be a string, got {_kind(value)}")
    return check_text(value, key)


def _steps(value: object, what: str, limits: Limits) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InputError(
            f"{what} must be a list of strings, got {_kind(value)}; a whole response goes under "
            "the key 'response' of /v1/score"
        )
    if len(value) > limits.steps:
        raise _too_many_steps(len(value), limits)
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise InputError(f"{what}[{index}] must be a string, got {_kind(item)}")
    return tuple(check_text(item, f"{what}[{index}]") for index, item in enumerate(value))


def _count(data: dict[str, Any], key: str) -> int | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 3.0 is a whole number in JSON
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{key} must be a whole number of 0 or more, got {_kind(value)}")
    return value


def _check_tokens(texts: Sequence[str], limits: Limits) -> None:
    tokens = estimated_tokens(texts)
    if tokens > limits.request_tokens:
        raise RefusedError(
            "too_large",
            f"this is about {tokens} tokens; at most {limits.request_tokens} are taken at once",
        )


def _too_many_steps(found: int, limits: Limits) -> RefusedError:
    return RefusedError("too_large", f"there are {found} steps; at most {limits.steps} are taken")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")

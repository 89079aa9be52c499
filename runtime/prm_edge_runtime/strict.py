"""Read JSON objects strictly: unknown keys, wrong types and impossible values are all reported.

In: a decoded JSON object. Out: typed values. Every problem is collected, so that one error
lists them all. Used for our own files only; foreign ones (``config.json``) may carry anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Problems:
    """Collects what is wrong with one file."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, where: str, message: str) -> None:
        self.found.append(f"{where}: {message}")

    def raise_if_any(self, error: type[Exception], what: str) -> None:
        """Raise ``error`` with every problem found, one a line when there are several."""
        if not self.found:
            return
        if len(self.found) == 1:
            raise error(f"{what}: {self.found[0]}")
        raise error(f"{what}: {len(self.found)} problems:\n  " + "\n  ".join(self.found))


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


class Fields:
    """One JSON object, read key by key; :meth:`finish` reports the keys nobody read."""

    def __init__(self, data: object, where: str, problems: Problems) -> None:
        self.where = where
        self.problems = problems
        self._read: set[str] = set()
        if isinstance(data, dict):
            self.data: dict[str, Any] = data
        else:
            self.data = {}
            problems.add(where, f"must be an object, got {_kind(data)}")

    def _get(self, key: str, default: object) -> tuple[bool, Any]:
        self._read.add(key)
        if key in self.data:
            return True, self.data[key]
        if default is ...:
            self.problems.add(self.where, f"key {key!r} is missing")
        return False, default

    def _typed(
        self, key: str, default: object, ok: Callable[[Any], bool], expected: str, blank: Any
    ) -> Any:
        present, value = self._get(key, default)
        if not present:
            return blank if default is ... else default
        if not ok(value):
            self.problems.add(f"{self.where}.{key}", f"must be {expected}, got {_kind(value)}")
            return blank
        return value

    def text(self, key: str, default: Any = ...) -> str:
        return str(self._typed(key, default, lambda v: isinstance(v, str), "a string", ""))

    def boolean(self, key: str, default: Any = ...) -> bool:
        return bool(self._typed(key, default, lambda v: isinstance(v, bool), "a boolean", False))

    def integer(
        self,
        key: str,
        default: Any = ...,
        *,
        minimum: int | None = None,
        maximum: int | None = None,
    ) -> int:
        value = self._typed(
            key,
            default,
            lambda v: isinstance(v, int) and not isinstance(v, bool),
            "an integer",
            minimum or 0,
        )
        if minimum is not None and value < minimum:
            self.problems.add(f"{self.where}.{key}", f"must be at least {minimum}, got {value}")
        if maximum is not None and value > maximum:
            self.problems.add(f"{self.where}.{key}", f"must be at most {maximum}")
            return maximum
        return int(value)

    def number(self, key: str, default: Any = ...) -> float:
        value = self._typed(
            key,
            default,
            lambda v: isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e300,
            "a finite number",
            0.0,
        )
        return float(value)

    def choice(self, key: str, allowed: Sequence[str], default: Any = ...) -> str:
        value = self.text(key, default)
        if key in self.data and isinstance(self.data[key], str) and value not in allowed:
            self.problems.add(
                f"{self.where}.{key}", f"must be one of {', '.join(allowed)}; got {value!r}"
            )
        return value

    def objects(self, key: str, default: Any = ...) -> dict[str, Any]:
        value = self._typed(key, default, lambda v: isinstance(v, dict), "an object", {})
        return dict(value)

    def items(self, key: str, default: Any = ...) -> list[Any]:
        value = self._typed(key, default, lambda v: isinstance(v, list), "a list", [])
        return list(value)

    def list_of(self, key: str, kind: type[T], what: str, default: Any = ...) -> tuple[T, ...]:
        values = self.items(key, default)
        if any(not isinstance(v, kind) or isinstance(v, bool) for v in values):
            self.problems.add(f"{self.where}.{key}", f"must hold only {what}")
            return ()
        return tuple(values)

    def numbers(self, key: str) -> tuple[float, ...]:
        values = self.items(key)
        if any(
            not isinstance(v, int | float) or isinstance(v, bool) or not abs(v) < 1e300
            for v in values
        ):
            self.problems.add(f"{self.where}.{key}", "must hold only finite numbers")
            return ()
        return tuple(float(v) for v in values)

    def optional(self, key: str) -> Any:
        """The value of a key that may be null or absent, unchecked."""
        return self._get(key, None)[1]

    def has(self, key: str) -> bool:
        return key in self.data

    def null(self, key: str) -> bool:
        """Whether a key is there and null."""
        self._read.add(key)
        return key in self.data and self.data[key] is None

    def finish(self) -> None:
        """Report every key that was not read."""
        for key in self.data:
            if key not in self._read:
                self.problems.add(
                    self.where, f"unknown key {key!r}; known keys: {', '.join(sorted(self._read))}"
                )

"""Reading our own JSON: everything that is wrong is found, and reported at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_edge_runtime.errors import PackageFormatError
from prm_edge_runtime.strict import Fields, Problems

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)


def read(data: object, reader: Callable[[Fields], Any]) -> tuple[Any, list[str]]:
    problems = Problems()
    fields = Fields(data, "top", problems)
    return reader(fields), problems.found


def test_problems_none_found_raises_nothing() -> None:
    Problems().raise_if_any(PackageFormatError, "file")


def test_problems_one_is_one_line() -> None:
    problems = Problems()
    problems.add("a.b", "is wrong")
    with pytest.raises(PackageFormatError, match=r"^file: a\.b: is wrong$"):
        problems.raise_if_any(PackageFormatError, "file")


def test_problems_several_are_listed() -> None:
    problems = Problems()
    problems.add("a", "is wrong")
    problems.add("b", "is missing")
    with pytest.raises(ValueError, match=r"^file: 2 problems:\n  a: is wrong\n  b: is missing$"):
        problems.raise_if_any(PackageFormatError, "file")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "a list"),
        ("x", "a string"),
        (True, "a boolean"),
        (1, "an integer"),
        (1.5, "a number"),
        (None, "null"),
        ((), "tuple"),
    ],
)
def test_fields_must_be_an_object(data: object, said: str) -> None:
    fields, found = read(data, lambda f: f)
    assert found == [f"top: must be an object, got {said}"]
    assert fields.data == {}


READERS: dict[str, tuple[Callable[[Fields], Any], Any, Any, str]] = {
    # name: reader, good value, blank, what is expected
    "text": (lambda f: f.text("k"), "x", "", "a string"),
    "boolean": (lambda f: f.boolean("k"), True, False, "a boolean"),
    "integer": (lambda f: f.integer("k"), 3, 0, "an integer"),
    "number": (lambda f: f.number("k"), 0.5, 0.0, "a finite number"),
    "objects": (lambda f: f.objects("k"), {"a": 1}, {}, "an object"),
    "items": (lambda f: f.items("k"), [1, "a"], [], "a list"),
    "choice": (lambda f: f.choice("k", ("x", "y")), "y", "", "a string"),
    "list_of": (lambda f: f.list_of("k", str, "strings"), ("a",), (), "a list"),
    "numbers": (lambda f: f.numbers("k"), (1.0, 2.5), (), "a list"),
}


@pytest.mark.parametrize("name", READERS)
def test_fields_reads_a_value(name: str) -> None:
    reader, good, _, _ = READERS[name]
    value = list(good) if isinstance(good, tuple) else good
    assert read({"k": value}, reader) == (good, [])


@pytest.mark.parametrize("name", READERS)
def test_fields_missing_key_is_named(name: str) -> None:
    reader, _, blank, _ = READERS[name]
    assert read({}, reader) == (blank, ["top: key 'k' is missing"])


@pytest.mark.parametrize("name", READERS)
def test_fields_wrong_type_is_named(name: str) -> None:
    reader, _, blank, expected = READERS[name]
    assert read({"k": None}, reader) == (blank, [f"top.k: must be {expected}, got null"])


@pytest.mark.parametrize("name", READERS)
@given(value=JSON)
@settings(max_examples=30, deadline=None)
def test_fields_any_json_gives_its_type_or_a_problem(name: str, value: object) -> None:
    reader, _, blank, _ = READERS[name]
    got, found = read({"k": value}, reader)
    assert isinstance(got, type(blank))
    if not found and not isinstance(value, list):
        assert got == value


def test_fields_defaults_are_no_problem() -> None:
    reader = lambda f: (f.text("a", "d"), f.integer("b", 7, minimum=2), f.boolean("c", True))  # noqa: E731
    assert read({}, reader) == (("d", 7, True), [])


def test_fields_boolean_is_no_number() -> None:
    found = read({"k": True}, lambda f: (f.integer("k"), f.number("k")))[1]
    assert found == [
        "top.k: must be an integer, got a boolean",
        "top.k: must be a finite number, got a boolean",
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e301, 10**400])
def test_fields_number_must_be_finite(value: float) -> None:
    got, found = read({"k": value}, lambda f: f.number("k"))
    assert got == 0.0
    assert "must be a finite number" in found[0]


def test_fields_integer_minimum() -> None:
    assert read({"k": 2}, lambda f: f.integer("k", minimum=2)) == (2, [])
    assert read({"k": 1}, lambda f: f.integer("k", minimum=2))[1] == [
        "top.k: must be at least 2, got 1"
    ]
    # the wrong type is one problem, not two
    assert read({"k": "1"}, lambda f: f.integer("k", minimum=2)) == (
        2,
        ["top.k: must be an integer, got a string"],
    )


def test_fields_integer_maximum() -> None:
    assert read({"k": 9}, lambda f: f.integer("k", maximum=9)) == (9, [])
    for value in (10, 10**5000):  # the second is one that Python would not even write out
        assert read({"k": value}, lambda f: f.integer("k", maximum=9)) == (
            9,
            ["top.k: must be at most 9"],
        )


def test_fields_choice_lists_what_is_allowed() -> None:
    found = read({"k": "z"}, lambda f: f.choice("k", ("x", "y")))[1]
    assert found == ["top.k: must be one of x, y; got 'z'"]


@pytest.mark.parametrize(
    ("value", "kind", "what"),
    [(["a", 1], str, "strings"), ([1, True], int, "integers"), ([1, "a"], int, "integers")],
)
def test_fields_list_of_other_things(value: list[Any], kind: type, what: str) -> None:
    got, found = read({"k": value}, lambda f: f.list_of("k", kind, what))
    assert got == ()
    assert found == [f"top.k: must hold only {what}"]


@pytest.mark.parametrize(
    "value", [["1"], [True], [None], [1, math.nan], [-math.inf], [1e301], [10**400]]
)
def test_fields_numbers_of_other_things(value: list[Any]) -> None:
    got, found = read({"k": value}, lambda f: f.numbers("k"))
    assert got == ()
    assert found == ["top.k: must hold only finite numbers"]


def test_fields_has() -> None:
    assert read({"k": None}, lambda f: (f.has("k"), f.has("l"))) == ((True, False), [])


def test_fields_finish_names_every_unread_key() -> None:
    def reader(fields: Fields) -> None:
        fields.text("b")
        fields.text("a", "")
        fields.finish()

    found = read({"b": "x", "odd": 1, "odder": 2}, reader)[1]
    assert found == [
        "top: unknown key 'odd'; known keys: a, b",
        "top: unknown key 'odder'; known keys: a, b",
    ]

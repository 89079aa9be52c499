"""The error tree: the drawing in the docstring is the truth about the classes."""

from __future__ import annotations

import builtins
import inspect

import pytest

from prm_edge_runtime import errors

LINE_WIDTH = 4  # one level of the drawing


def _drawn() -> dict[str, tuple[str | None, str | None]]:
    """Name -> (parent, builtin) as the docstring draws them."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    path: list[str] = []
    drawing = (errors.__doc__ or "").split("::", 1)[1].split("A caller's mistake")[0]
    for line in filter(str.strip, drawing.splitlines()):
        body = line.removeprefix("    ")
        name, *rest = body.lstrip("│├└─ ").split()
        depth = (len(body) - len(body.lstrip("│├└─ "))) // LINE_WIDTH
        path[depth:] = [name]
        base = rest[0].strip("()") if rest and rest[0].startswith("(") else None
        tree[name] = (path[depth - 1] if depth else None, base)
    return tree


def _real() -> dict[str, type[Exception]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }


def test_errors_docstring_draws_exactly_the_classes() -> None:
    assert set(_drawn()) == set(_real())
    assert len(_drawn()) > 15


@pytest.mark.parametrize("name", sorted(_real()))
def test_errors_class_has_the_bases_drawn(name: str) -> None:
    parent, base = _drawn()[name]
    expected = [
        *([getattr(errors, parent)] if parent else []),
        *([getattr(builtins, base)] if base else []),
    ]
    assert list(_real()[name].__bases__) == (expected or [Exception])


@pytest.mark.parametrize("name", sorted(_real()))
def test_errors_class_says_what_it_means(name: str) -> None:
    assert (_real()[name].__doc__ or "").rstrip().endswith(".")
    assert issubclass(_real()[name], errors.PrmEdgeError)


def test_errors_one_class_catches_everything() -> None:
    with pytest.raises(errors.PrmEdgeError, match="what is wrong"):
        raise errors.InputTypeError("what is wrong")


def test_errors_file_not_found_keeps_its_message() -> None:
    # OSError rewrites what two arguments say; one argument stays as it is
    assert str(errors.PackageNotFoundError("no package here")) == "no package here"
    assert str(errors.RuntimeMissingError("not installed")) == "not installed"

"""The rival: what an exact computer-algebra check can read, and whether it is right.

In: a problem and its lines. Out: True, False, or None where the line or the one before it
is not bare mathematics. For comparison only; nothing that ships imports it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

BARE = re.compile(r"[\d\sA-Za-z.+\-*/()=^]+")


@lru_cache(maxsize=50_000)
def difference(text: str) -> Any:
    """Left minus right of a bare equation as a SymPy expression, None where unreadable."""
    from sympy import Rational, expand, nsimplify
    from sympy.parsing.sympy_parser import (
        convert_xor,
        implicit_multiplication,
        parse_expr,
        rationalize,
        standard_transformations,
    )

    text = text.strip().rstrip(".")
    if text.count("=") != 1 or not BARE.fullmatch(text) or re.search(r"[A-Za-z]{2}", text):
        return None
    rules = (*standard_transformations, implicit_multiplication, convert_xor, rationalize)
    try:
        left, right = (parse_expr(s, transformations=rules) for s in text.split("="))
        return expand(nsimplify(left - right, rational=True)) + Rational(0)
    except Exception:  # whatever SymPy cannot parse is simply not covered
        return None


def given(problem: str) -> str:
    """The equation of a problem such as ``Solve for x: 3x=6``: what stands between words."""
    parts = re.split(r"[A-Za-z]{2,}|:|\.\s|\?", problem + " ")
    return next((part.strip() for part in parts if "=" in part), "")


def verdict(problem: str, steps: list[str], at: int) -> bool | None:
    """Whether line `at` follows from the line before it, None where it cannot be read."""
    now = difference(steps[at])
    if now is None:
        return None
    if now.is_number:
        before = difference(steps[at - 1] if at else given(problem))
        return bool(now == 0) if before is None or before.is_number else False
    before = difference(steps[at - 1] if at else given(problem))
    if before is None or before == 0:
        return None
    ratio = (now / before).simplify()
    return bool(ratio.is_number and ratio != 0)


def available() -> bool:
    """Whether SymPy is installed."""
    try:
        import sympy  # noqa: F401
    except ImportError:
        return False
    return True

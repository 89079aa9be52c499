"""Single moves as pupils type them into an equation tutor: ``-2=x/6+5`` to ``-2--5=x/6+5--5``.

Bare canonical text, odd brackets and double signs included; any operation applied to both
sides follows, however useless. Labels from `algebra.equivalent`. Imports its siblings only.
"""

from __future__ import annotations

import re
from fractions import Fraction

from .algebra import AlgebraError, decimal, difference, equivalent, parse, show, terminates
from .corrupt import break_equation, digit, drop, invert, operation, sign
from .records import Context, Line, Solution, slip_at

PROBLEMS = (
    "Solve for {v}: {m}",
    "Solve for {v}: {m}",
    "Solve for {v}: {m}",
    "{m}",
    "Find {v}: {m}",
)


def _number(context: Context, dec: bool) -> Fraction:
    rng = context.rng
    number = Fraction(rng.randint(1, rng.choice((9, 9, 9, 12, 20, 60))))
    if dec:
        number = number * rng.choice((1, 1, 10)) + Fraction(
            rng.randint(1, 99), rng.choice((10, 100))
        )
    return -number if rng.random() < 0.4 else number


def _term(context: Context, dec: bool, letter: bool) -> str:
    rng = context.rng
    n = show(_number(context, dec), True)
    if not letter:
        return n
    if rng.random() < 0.2:
        return f"{rng.choice(('x', 'x', '-x'))}/{show(_number(context, False))}"
    return rng.choice(("x", "-x", "1x")) if rng.random() < 0.25 else n + "x"


def join(context: Context, terms: list[str]) -> str:
    """Write terms after one another; negative ones as -3, +(-3) or +-3."""
    out = terms[0]
    for term in terms[1:]:
        if not term.startswith("-"):
            out += context.rng.choice(("+", "+", "+", "-")) + term
        else:
            out += context.rng.choice((term, f"+({term})", f"+({term})", f"+{term}", f"-({term})"))
    return out


def _equation(context: Context) -> str:
    rng = context.rng
    dec = rng.random() < 0.15
    kinds = rng.choice(("v", "v", "vc", "vc", "cv", "cv", "vv", "vcv", "cvv", "b", "bc", "d", "0"))
    if kinds == "0":
        left = "x"
    elif kinds[0] == "b":
        inner = join(context, [_term(context, dec, True), _term(context, dec, False)])
        left = f"{show(_number(context, False))}({inner})" + (
            "" if kinds == "b" else f"+{_term(context, dec, False)}"
        )
    elif kinds == "d":
        inner = join(context, [_term(context, dec, True), _term(context, dec, False)])
        left = f"({inner})/{show(_number(context, False))}"
    else:
        left = join(context, [_term(context, dec, k == "v") for k in kinds])
    count = 2 if kinds == "0" or rng.random() < 0.2 else 1
    right = [_term(context, dec, False) for _ in range(count)]
    if kinds == "0":
        text = f"{right[0]}{rng.choice('+-*/*/')}{right[1]}"
    elif rng.random() < 0.12:
        text = join(context, [*right, _term(context, dec, True)])
    else:
        text = join(context, right)
    return f"{left}={text}" if rng.random() < 0.55 else f"{text}={left}"


def _wrap(side: str) -> str:
    """Bracket a sum before it is multiplied or divided."""
    depth = 0
    for i, c in enumerate(side):
        depth += (c == "(") - (c == ")")
        if not depth and i and c in "+-" and side[i - 1] not in "*/+-(":
            return f"({side})"
    return side


def _apply(context: Context, equation: str) -> tuple[str, str, str]:
    """One operation on both sides: (left, right, tail)."""
    rng = context.rng
    left, right = equation.split("=")
    numbers = re.findall(r"[\d.]+", equation)
    n = rng.choice(numbers) if numbers and rng.random() < 0.75 else str(rng.randint(1, 12))
    n = rng.choice(("", "", "-")) + n
    op = rng.choice("+-*/")
    if op in "+-":
        if rng.random() < 0.2:
            n = n + "x" if rng.random() < 0.7 else rng.choice(("x", "-x"))
        tail = op + (f"({n})" if n.startswith("-") and rng.random() < 0.25 else n)
        return left, right, tail
    tail = op + (f"({n})" if n.startswith("-") and rng.random() < 0.2 else n)
    return _wrap(left), _wrap(right), tail


def _one_side(context: Context, left: str, right: str, tail: str) -> str:
    """The operation on one side only, or another one on the second side."""
    rng = context.rng
    other = ""
    if rng.random() < 0.5:
        changed = (digit if rng.random() < 0.5 else sign)(rng, tail.strip("()"))
        other = changed[0] if changed and changed[0][0] in "+-*/" else ""
    return f"{left}{tail}={right}{other}" if rng.random() < 0.5 else f"{left}{other}={right}{tail}"


def _tidy(context: Context, side: str) -> str:
    poly = parse(side)
    if set(poly) - {"", "x"}:
        raise AlgebraError("not linear")
    parts = []
    for mono in sorted(poly, reverse=context.rng.random() < 0.85):
        c = poly[mono]
        number = decimal(c) if terminates(c, 4) and context.rng.random() < 0.7 else show(c)
        if mono and "/" in number:
            top, _, bottom = number.partition("/")
            number = {"1": "x", "-1": "-x"}.get(top, top + "x") + "/" + bottom
        elif mono:
            number = {"1": "x", "-1": "-x"}.get(number, number + "x")
        parts.append(number)
    text = parts[0] if parts else "0"
    for part in parts[1:]:
        text += part if part.startswith("-") else "+" + part
    return text


def _simplify(context: Context, equation: str) -> tuple[str, str, str]:
    """Work out one side, rightly or from a misread source: (text, error or "", right text)."""
    rng = context.rng
    sides = equation.split("=")
    busy = [i for i in (0, 1) if len(sides[i]) > 3 or "/" in sides[i]] or [0]
    i = rng.choice(busy)
    source, error = sides[i], ""
    if rng.random() < 0.5:
        change = rng.choices((sign, operation, invert, drop, digit), (45, 20, 12, 15, 8))[0](
            rng, source
        )
        if change:
            source, error = change
    state = rng.getstate()
    right = list(sides)
    right[i] = _tidy(context, sides[i])
    if error:  # tidied the same way, so that the two texts part where the mistake shows
        rng.setstate(state)
        sides[i] = _tidy(context, source)
    else:
        sides[i] = right[i]
    if rng.random() < 0.08:
        sides[1 - i] = right[1 - i] = _tidy(context, sides[1 - i])
    return "=".join(sides), error, "=".join(right)


def move(context: Context, equation: str) -> tuple[str, str, str]:
    """One typed move after `equation`: (text, suspected error, right text), still unchecked."""
    rng = context.rng
    if rng.random() < 0.42:
        left, right, tail = _apply(context, equation)
        both = f"{left}{tail}={right}{tail}"
        if rng.random() < 0.2:
            return _one_side(context, left, right, tail), "one_side", both
        return both, "", both
    text, error, right = _simplify(context, equation)
    if not error and rng.random() < 0.15:
        change = break_equation(rng, equation, text, context.near)
        if change:
            return *change, text
    return text, error, right


def _letter(context: Context) -> str:
    return context.rng.choice("xxxxyyyyyaknXYmp")


def _lettered(equation: str) -> bool:
    """Whether its letter stays when both sides are taken together: 8x-2=8x+6 says nothing of x."""
    return "x" in difference(equation)


def solution(context: Context, max_lines: int = 5) -> Solution:
    """A tutor problem with up to `max_lines` typed moves."""
    rng = context.rng
    while True:
        current = _equation(context)
        lines: list[Line] = []
        letter = _letter(context)
        try:
            if not parse(current.split("=")[0]) or not _lettered(current):
                continue
            if rng.random() < 0.4:
                left, right, tail = _apply(context, current)
                current = f"{left}{tail}={right}{tail}"
            problem = context.frame(PROBLEMS).format(v=letter, m=current.replace("x", letter))
            for _ in range(rng.randint(1, max_lines)):
                text, error, right = move(context, current)
                if text == current or len(text) > 60:
                    continue
                good = equivalent(current, text)
                slip = -1 if good else slip_at(text, text, right)
                name = "none" if good else error or "slip"
                lines.append(Line(text.replace("x", letter), good, name, slip))
                # From a contradiction everything follows, so that its labels would teach nothing.
                if not _lettered(text):
                    break
                current = text
        except AlgebraError:
            pass
        if lines:
            return Solution(problem, tuple(lines), "tutor/moves")

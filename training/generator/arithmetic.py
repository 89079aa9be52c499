"""Numeric work: chains such as 16-3=13, expressions reduced line by line, fractions.

In: a `Context`. Out: true canonical chains, and `Solution`s made of them. Labels from
exact values. Imports its siblings only.
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import lcm

from .algebra import AlgebraError, decimal, show, terminates, value
from .corrupt import break_chain, misdo, near_number
from .records import Context, Line, Solution, slip_at
from .surface import make_style


def _whole(context: Context) -> str:
    rng = context.rng
    if rng.random() >= context.level:
        return str(rng.randint(1, 10))
    kind = rng.random()
    if kind < 0.62:
        return str(rng.randint(1, 20))
    if kind < 0.84:
        return str(rng.randint(10, 100))
    if kind < 0.92:
        return str(rng.randint(2, 30) * 10)
    if kind < 0.97:
        return str(rng.randint(100, 1000))
    return str(rng.randint(1, 50) * 100)


def _money(context: Context) -> str:
    rng = context.rng
    cents = rng.choice(("5", "25", "75", "50", "99", "05", f"{rng.randint(0, 99):02d}"))
    return f"{rng.randint(0, 40)}.{cents}"


def _factor(context: Context) -> str:
    rng = context.rng
    return str(
        rng.choice((2, 3, 4, 5, 6, 7, 8, 9, 10, 12, rng.randint(2, 12), rng.randint(11, 40)))
    )


def expression(context: Context) -> str:
    """A small numeric expression of the kinds school solutions hold."""
    rng = context.rng
    w, f = (lambda: _whole(context)), (lambda: _factor(context))
    kinds = 4 if rng.random() >= context.level else 13
    kind = rng.choices(range(kinds), (20, 20, 26, 14, 5, 6, 5, 4, 5, 6, 4, 3, 3)[:kinds])[0]
    if kind == 0:
        return f"{w()}+{w()}"
    if kind == 1:
        a, b = sorted((int(w()), int(w())), reverse=rng.random() < 0.93)
        return f"{a}-{b}"
    if kind == 2:
        return f"{w()}*{f()}" if rng.random() < 0.6 else f"{f()}*{w()}"
    if kind == 3:
        b = int(f())
        a = b * int(w()) if rng.random() < 0.85 else int(w())
        return f"{a}/{b}"
    if kind == 4:
        return f"{w()}+{w()}+{w()}" + (f"+{w()}" if rng.random() < 0.3 else "")
    if kind == 5:
        return (
            f"{_money(context)}{rng.choice('+-*')}{_money(context) if rng.random() < 0.4 else f()}"
        )
    if kind == 6:
        return f"{f()}*{f()}*{f()}"
    if kind == 7:
        return f"({w()}{rng.choice('+-')}{w()}){rng.choice('**/')}{rng.choice((2, 3, 4, 5, 10))}"
    if kind == 8:
        d = rng.choice((2, 3, 4, 5, 8, 10))
        n = f"{rng.randint(1, d - 1)}/{d}*{d * rng.randint(1, 40)}"
        return n if rng.random() < 0.6 else "*".join(reversed(n.split("*")))
    if kind == 9:
        p = rng.choice(
            (
                "0.1",
                "0.2",
                "0.25",
                "0.3",
                "0.4",
                "0.5",
                ".5",
                ".2",
                ".15",
                "1.2",
                "0.75",
                "0.05",
                "1.1",
            )
        )
        return f"{p}*{w()}" if rng.random() < 0.5 else f"{w()}*{p}"
    if kind == 10:
        return f"{w()}{rng.choice('+-')}{f()}*{f()}"
    if kind == 11:
        return f"{w()}-{w()}-{f()}"
    return f"{rng.choice(('-', ''))}{f()}{rng.choice('+-*')}{rng.choice(('-', '(-'))}{f()}"


def chain(context: Context) -> str:
    """A true chain ``expression=result`` whose result has at most two decimals."""
    while True:
        text = expression(context)
        if text.count("(") > text.count(")"):
            text += ")"
        try:
            result = value(text)
        except AlgebraError:
            continue
        if terminates(result, 2) and abs(result) < 10**6:
            shown = decimal(result)
            if (
                "." in text
                and "." in shown
                and len(shown.split(".")[1]) == 1
                and context.chance(0.5)
            ):
                shown += "0"
            return f"{text}={shown}"


def _digits(context: Context, counts: tuple[int, ...]) -> int:
    count = context.rng.choice(counts)
    return context.rng.randint(10 ** (count - 1) if count > 1 else 2, 10**count - 1)


def drill(context: Context) -> str:
    """A true chain of one operation, operands spread evenly: what school sums seldom repeat."""
    kind = context.rng.random()
    if kind < 0.3:
        a, b = _digits(context, (1, 2, 2, 2, 3)), _digits(context, (1, 2, 2, 2, 3))
        return f"{a}+{b}={a + b}"
    if kind < 0.6:
        a, b = _digits(context, (1, 2, 2, 2, 3)), _digits(context, (1, 2, 2, 2, 3))
        if context.chance(0.85):
            a, b = max(a, b), min(a, b)
        return f"{a}-{b}={a - b}"
    a, b = _digits(context, (1, 1, 2, 2, 2, 3)), _digits(context, (1, 1, 1, 2))
    if context.chance(0.5):
        a, b = b, a
    return f"{a}*{b}={a * b}" if kind < 0.85 else f"{a * b}/{b}={a}"


def _reduce(context: Context, text: str) -> str | None:
    """Work out one operation of an expression, in the right order; None when none is left."""
    rng = context.rng
    number = r"(?:\d+(?:\.\d+)?)"
    inner = re.search(r"\(([^()]*)\)", text)
    if inner:
        if re.fullmatch(rf"-?{number}", inner[1]):
            after = inner[1]
            head = text[: inner.start()]
            if after.startswith("-") and head.endswith(("+", "-")):
                flip = "-" if head.endswith("+") else "+"
                return head[:-1] + flip + after[1:] + text[inner.end() :]
            if after.startswith("-") and head and not head.endswith("("):
                return _reduce_product(context, text)
            return head + after + text[inner.end() :]
        smaller = _reduce(context, inner[1])
        if smaller is None:
            return None
        return text[: inner.start()] + f"({smaller})" + text[inner.end() :]
    product = _reduce_product(context, text)
    if product:
        return product
    m = re.match(rf"-?{number}[+-]{number}", text)
    if not m:
        return None
    del rng
    return decimal(value(m[0])) + text[m.end() :]


def _reduce_product(context: Context, text: str) -> str | None:
    number = r"\d+(?:\.\d+)?"
    m = re.search(rf"({number})([*/])(?:({number})|\((-{number})\))", text)
    if not m:
        return None
    result = value(f"{m[1]}{m[2]}({m[3] or m[4]})")
    if not terminates(result, 2):
        raise AlgebraError("untidy quotient")
    head, shown = text[: m.start()], decimal(result)
    if shown.startswith("-") and head.endswith(("+", "-")):
        head, shown = head[:-1], ("+" if head.endswith("-") else "-") + shown[1:]
        if not head or head.endswith("("):
            shown = shown.lstrip("+")
    elif shown.startswith("-") and head:
        shown = f"({shown})"
    return head + shown + text[m.end() :]


def _nested(context: Context, depth: int) -> str:
    rng = context.rng
    if depth == 0:
        n = rng.randint(1, rng.choice((9, 9, 12, 30)))
        return f"(-{n})" if rng.random() < 0.2 else str(n)
    parts = [
        _nested(context, depth - 1 if rng.random() < 0.6 else 0)
        for _ in range(rng.choice((2, 2, 3)))
    ]
    ops = [rng.choice("+-*" if depth < 3 else "+-") for _ in parts[1:]]
    out = parts[0] + "".join(o + p for o, p in zip(ops, parts[1:], strict=True))
    return f"({out})" if rng.random() < 0.5 else out


EVALUATE = (
    "Work out {m}", "Calculate {m}", "Evaluate {m}.", "What is {m}?",
    "Find the value of {m}.",  # held out
    "Simplify {m}", "{m} =", "{m}", "Compute {m}.", "How much is {m}?",
)  # fmt: skip
REDUCED = (
    "= {m}", "{p} = {m}", "{m}", "So we get {m}", "that leaves {m}",
    "Then {p} = {m}", "{p} = {m}.", "This is {m}.", "Now {m}", "we are left with {m}",
)  # fmt: skip


def evaluation(context: Context, error_chance: float) -> Solution:
    """An expression reduced line by line, keeping its value; one or two operations a line."""
    rng = context.rng
    while True:
        style = make_style(context, numeric=True)
        current = _nested(context, rng.choice((1, 2, 2, 3))).strip()
        problem = context.frame(EVALUATE).format(m=style.math(current))
        lines: list[Line] = []
        try:
            while len(lines) < 7:
                after = _reduce(context, current)
                if after and rng.random() < 0.4:
                    after = _reduce(context, after) or after
                if after is None or len(current) > 50:
                    break
                good, error, right = True, "none", after
                if rng.random() < error_chance:
                    after, error, good = _wrong_value(context, current, after)
                elif value(after) != value(current):
                    raise AlgebraError(f"{current} is not {after}")
                template = context.frame(REDUCED)
                text = template.format(p=style.math(current), m=style.math(after))
                slip = -1 if good else slip_at(text, style.math(after), style.math(right))
                lines.append(Line(text, good, error, slip))
                current = after
        except AlgebraError:
            continue
        if lines:
            return Solution(problem, tuple(lines), "arithmetic/evaluation")


def _wrong_value(context: Context, current: str, after: str) -> tuple[str, str, bool]:
    """A reduction with another value than it should have: (text, error, good)."""
    if context.near and context.chance(context.near):
        right = value(current)
        near = near_number(context.rng, current, after, lambda text: value(text) == right)
        if near:
            return *near, False
    for _ in range(5):
        try:
            if context.chance(0.5):
                change = misdo(context.rng, current)
                text = _reduce(context, change[0]) if change else None
                name = change[1] if change else ""
            else:
                change = misdo(context.rng, after)
                text, name = change if change else (None, "")
            if text and value(text) != value(current):
                return text, name, False
        except AlgebraError:
            continue
    if value(after) != value(current):
        raise AlgebraError("unsound reduction")
    return after, "none", True


FRACTION_ASK = ("Work out {m}", "Calculate {m}.", "{m}", "Simplify {m}", "What do you get for {m}?")


def fractions(context: Context, error_chance: float) -> Solution:
    """Add, subtract, multiply or divide two fractions, the common denominator written out."""
    rng = context.rng
    style = make_style(context)
    b, d = rng.randint(2, 12), rng.randint(2, 12)
    p, q = Fraction(rng.randint(1, b - 1) or 1, b), Fraction(rng.randint(1, d - 1) or 1, d)
    a, c = p.numerator, q.numerator
    b, d = p.denominator, q.denominator
    op = rng.choice("++--*/")
    if op in "+-":
        n = lcm(b, d)
        x, y = a * (n // b), c * (n // d)
        top = x + y if op == "+" else x - y
        chains = [f"{a}/{b}={x}/{n}", f"{c}/{d}={y}/{n}", f"{x}/{n}{op}{y}/{n}={top}/{n}"]
        chains = (
            chains if rng.random() < 0.6 else [f"{a}/{b}{op}{c}/{d}={x}/{n}{op}{y}/{n}", chains[2]]
        )
        raw = (top, n)
    else:
        e, f = (c, d) if op == "*" else (d, c)
        raw = (a * e, b * f)
        chains = [f"{a}/{b}*{e}/{f}={raw[0]}/{raw[1]}"]
        if op == "/":
            chains = [f"({a}/{b})/({c}/{d})={a}/{b}*{e}/{f}", *chains]
    last = show(Fraction(*raw))
    if last != f"{raw[0]}/{raw[1]}":
        chains.append(f"{raw[0]}/{raw[1]}={last}")
    asked = f"({a}/{b})/({c}/{d})" if op == "/" else f"{a}/{b}{op}{c}/{d}"
    lines = [numeric_line(context, text, style.math, error_chance, BARE) for text in chains]
    return Solution(
        context.frame(FRACTION_ASK).format(m=style.math(asked)),
        tuple(lines),
        "arithmetic/fractions",
    )


BARE = (
    "{m}",
    "{m}",
    "So {m}",
    "{m}.",
    "we see {m}",
    "Then {m}",
    "First, {m}",
    "Now {m}.",
    "We have {m}",
    "that is, {m}",
)


def numeric_line(context, text, render, error_chance, frames) -> Line:  # type: ignore[no-untyped-def]
    """One line that states a numeric chain in a frame, true or broken."""
    good, error, right = True, "none", text
    if context.chance(error_chance):
        change = break_chain(context.rng, text)
        if change:
            text, error, good = change[0], change[1], False
    shown = context.frame(frames).format(m=render(text))
    return Line(shown, good, error, -1 if good else slip_at(shown, render(text), render(right)))

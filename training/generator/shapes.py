"""The equations that linear problems begin with: listed shapes, held-out ones, and free ones.

In: a `Context`. Out: the two `Sides` of an equation with, mostly, a small whole solution.
Imports `linear`, `algebra` and `records` only.
"""

from __future__ import annotations

from fractions import Fraction

from .algebra import terminates
from .linear import Side, Sides, Term, simple, total
from .records import Context

SHAPES = (
    "x+b=c", "ax=c", "ax+b=c", "x/a=c", "ax+b=cx+d",  # the last of each row of five is held out
    "a(x+b)=c", "ax+bx=c", "x/a+b=c", "(x+b)/a=c", "a(x+b)+cx=d",
    "ax+b+cx+d=e", "a(x+b)=c(x+d)", "b-ax=c", "c=ax+b", "ax+b=cx+d",
    "(ax+b)/c=d", "ax=bx+c", "a(x+b)+c(x+d)=e", "a-(x+b)=c", "(ax+b)/c=dx+e",
    "a-b(x+c)=d",  # held out until the last run: where a minus before brackets is learnt
)  # fmt: skip
# Terms of the two sides of the held-out shapes: what free shapes must not be.
HELD_OUT = {("cv", "cv"), ("bv", "c"), ("cv", "d")}
FREE = "free"
# Those whose letter is taken away from a number, common in school: drawn more often in training.
MINUS = ("b-ax=c", "b-ax+d=c", "a-b(x+c)=d", "a-b(x+c)=d", "a-(x+b)=c")


def kinds(sides: Sides) -> tuple[str, str]:
    """What kinds of terms stand on the two sides, whatever their order."""
    left, right = sorted("".join(sorted(term[0] for term in side)) for side in sides)
    return left, right


def _free_sides(context: Context, dec: bool) -> Sides:
    """An equation of no listed shape: up to three terms a side, with a whole solution."""
    rng = context.rng

    def term() -> Term:
        kind = rng.choices("cvb", (4, 4, 2))[0]
        if kind == "b":
            inner: Side = [
                ("v", rng.choice((Fraction(1), Fraction(1), Fraction(rng.randint(2, 5))))),
                ("c", _number(context, False, small=True)),
            ]
            return ("b", _number(context, False, small=True), inner)
        return (kind, _number(context, dec, small=kind == "v"))

    while True:
        solution = Fraction(rng.randint(-9, 12))
        left: Side = [term() for _ in range(rng.choice((1, 2, 2, 3)))]
        right: Side = [term() for _ in range(rng.choice((0, 1, 1, 2)))]
        if rng.random() < 0.3:
            top: Side = [("v", _number(context, False, small=True)), ("c", _number(context, False))]
            left = [("d", top, Fraction(rng.randint(2, 9)))]
            right = [t for t in right if t[0] != "b"]
        (a, b), (c, d) = total(left), total(right)
        missing = a * solution + b - c * solution - d
        if missing or not right:
            right.append(("c", missing))
            rng.shuffle(right)
        sides = (right, left) if rng.random() < 0.2 else (left, right)
        if a != c and terminates(missing, 2) and kinds(sides) not in HELD_OUT:
            return sides


def _number(context: Context, dec: bool, small: bool = False, positive: bool = False) -> Fraction:
    rng = context.rng
    top = rng.choice((6, 9, 9, 12, 20 if not small else 9))
    number = Fraction(rng.randint(1, top))
    if dec and rng.random() < 0.7:
        number += Fraction(rng.randint(1, 9), 10)
    return -number if not positive and rng.random() < 0.35 else number


def draw_sides(context: Context, shape: str, dec: bool) -> Sides:
    """Draw the equation of a shape so that its solution is usually a small whole number."""
    rng = context.rng
    if shape == FREE:
        return _free_sides(context, dec)
    solution = Fraction(rng.randint(-9, 12))
    if rng.random() < 0.05:
        solution += Fraction(rng.randint(1, 3), rng.choice((2, 2, 4, 5)))
    draw = lambda **k: _number(context, dec, **k)  # noqa: E731
    one: Side = [("v", Fraction(1))]
    a, b, c, d = draw(small=True), draw(), draw(small=True), draw()
    n = Fraction(rng.randint(2, 9))
    inner: Side = [("v", Fraction(1)), ("c", b)]
    scaled: Side = [("v", a), ("c", b)]
    left: Side
    table: dict[str, Side] = {
        "x+b=c": inner,
        "ax=c": [("v", a)],
        "ax+b=c": scaled,
        "c=ax+b": scaled,
        "b-ax=c": [("c", b), ("v", -abs(a))],
        "b-ax+d=c": [("c", b), ("v", -abs(a)), ("c", d)],
        "x/a=c": [("v", 1 / n * rng.choice((1, 1, 1, -1)))],
        "x/a+b=c": [("v", 1 / n), ("c", b)],
        "(x+b)/a=c": [("d", inner, n)],
        "(ax+b)/c=d": [("d", scaled, n)],
        "(ax+b)/c=dx+e": [("d", scaled, n)],
        "ax+bx=c": [("v", a), ("v", c)],
        "ax+b+cx+d=e": [("v", a), ("c", b), ("v", c), ("c", d)],
        "a(x+b)=c": [("b", a, inner)],
        "a(x+b)+cx=d": [("b", a, inner), ("v", c)],
        "a-b(x+c)=d": [("c", d), ("b", -abs(a), inner)],
        "a-(x+b)=c": [("c", d), ("b", Fraction(-1), inner)],
        "a(x+b)+c(x+d)=e": [("b", a, inner), ("b", c, [("v", Fraction(1)), ("c", d)])],
    }
    if shape == "a(x+b)=c(x+d)":
        left = [("b", a, inner)]
        return left, [("b", c, [("v", Fraction(1)), ("c", draw())])]
    two_sided = {"ax+b=cx+d": c, "ax=bx+c": c, "(ax+b)/c=dx+e": Fraction(rng.randint(1, 5))}
    left = table.get(shape, scaled if shape == "ax+b=cx+d" else [("v", a)])
    rate, constant = total(left)
    if shape in ("x/a=c", "x/a+b=c"):
        solution *= n
    if rng.random() < 0.06:
        left = [*left, *one]
        rate += 1
    other = two_sided.get(shape, Fraction(0))
    right = simple(other, rate * solution + constant - other * solution)
    if not terminates(right[-1][1], 3):
        right = simple(other, Fraction(rng.randint(-40, 40)))
    return (right, left) if shape == "c=ax+b" or rng.random() < 0.12 else (left, right)

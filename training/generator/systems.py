"""Systems of two equations, and quadratics by factoring.

In: a `Context`. Out: a `Solution`; every line is proved or disproved with `algebra`.
Imports its siblings only.
"""

from __future__ import annotations

from fractions import Fraction

from .algebra import AlgebraError, decimal, difference, terminates
from .corrupt import break_equation
from .records import Context, Line, Solution, slip_at
from .surface import make_style


def _two(a: int, b: int) -> str:
    """Canonical a*x + b*y."""
    out = {1: "x", -1: "-x", 0: ""}.get(a, f"{a}x")
    if b:
        tail = {1: "y", -1: "-y"}.get(b, f"{b}y")
        out += tail if tail.startswith("-") or not out else "+" + tail
    return out or "0"


SYSTEM_ASK = (
    "Solve the system: {p} and {q}",
    "Solve {p}, {q}.",
    "{p}; {q}",
    "Find {x} and {y}: {p}, {q}",
    "What are {x} and {y} if {p} and {q}?",  # held out
    "If {p} and {q}, find {x} and {y}.",
    "Two numbers {x} and {y} satisfy {p} and also {q}.",
    "We know that {p} and that {q}. Which numbers are {x} and {y}?",
    "Which {x} and {y} make both {p} and {q} true?",
)
SCALE = (
    "Multiply the first equation by {n}: {m}",
    "{n} times the first: {m}",
    "First equation ×{n}: {m}",
    "Scale the first equation by {n} to get {m}",
    "{m} is the first one times {n}.",  # held out
    "{m} after multiplying the first equation by {n}",
    "{m} (first equation times {n})",
    "The first one becomes {m} when multiplied by {n}.",
    "{m}, with both sides of the first {n} times as much",
)
ELIMINATE = (
    "Subtract the second equation: {m}",
    "Subtracting the second gives {m}",
    "Take away the second: {m}",
    "Now subtract the second equation from it: {m}",
    "Minus the second leaves {m}",  # held out
    "{m} when the second is taken away",
    "{m} (minus the second)",
    "{m}, subtracting the second equation",
    "The difference of the two is {m}.",
)
ADDED = (
    "Add the two equations: {m}",
    "Adding them gives {m}",
    "Add the second: {m}",
    "The sum is {m}",
    "Put together, {m}",  # held out
    "{m} (both added)",
    "{m} when the two are added",
    "{m}, adding the second equation",
    "Their sum: {m}",
)
PLAIN = ("So {m}", "{m}", "Then {m}.", "This gives {m}", "we find {m}")
BACK = (
    "Put it in the second: {m}",
    "Substitute: {m}",
    "Plug in {s}: {m}",
    "With {s} we have {m}",
    "Using {s}, {m}",  # held out
    "{m}, since {s}",
    "{m} (put {s} in)",
    "Now {s} goes into the second equation: {m}",
    "As {s}, the second says {m}.",
)


class _Writer:
    """Appends lines that must be equivalent to a formula, broken with some chance."""

    def __init__(self, context: Context, error_chance: float) -> None:
        self.context, self.chance = context, error_chance
        self.style = make_style(context)
        self.lines: list[Line] = []

    def line(self, pool: tuple[str, ...], formula: str, **more: str) -> str:
        """Write `formula` (true here) or a version that says something else; return it."""
        good, error, shown = True, "none", formula
        if self.context.chance(self.chance):
            change = break_equation(self.context.rng, formula, formula, self.context.near)
            if change:
                shown, error, good = change[0], change[1], False
        bare = self.context.chance(0.3)
        text = "{m}" if bare else self.context.frame(pool)
        more = {k: self.style.math(v) for k, v in more.items()}
        text = text.format(m=self.style.math(shown), **more)
        slip = -1 if good else slip_at(text, self.style.math(shown), self.style.math(formula))
        self.lines.append(Line(text, good, error, slip))
        return shown


def _solved(formula: str, letter: str) -> Fraction | None:
    """The value of `letter` in a one-letter linear equation, None where there is none."""
    try:
        poly = difference(formula)
    except AlgebraError:
        return None
    if set(poly) - {"", letter} or letter not in poly:
        return None
    return -poly.get("", Fraction(0)) / poly[letter]


def system(context: Context, error_chance: float) -> Solution:
    """Two equations solved by elimination; later lines follow from what was written."""
    rng = context.rng
    x, y = rng.randint(-8, 9), rng.randint(-8, 9)
    n = rng.choice((1, 1, 2, 3, 4, -2))
    a, b = rng.choice((1, 2, 3, 1, 4)), rng.choice((1, -1, 2, 3, -2))
    add = rng.random() < 0.45
    c, d = rng.choice((1, 2, 3, 4, 5)), (-n * b if add else n * b)
    if (c + n * a if add else n * a - c) == 0:
        c += 1
    p, q = f"{_two(a, b)}={a * x + b * y}", f"{_two(c, d)}={c * x + d * y}"
    writer = _Writer(context, error_chance)
    style = writer.style
    ask = context.frame(SYSTEM_ASK)
    problem = ask.format(
        p=style.math(p), q=style.math(q), x=style.letters["x"], y=style.letters["y"]
    )
    scaled = p
    if n != 1:
        scaled = writer.line(SCALE, f"{_two(n * a, n * b)}={n * (a * x + b * y)}", n=str(n))
    try:
        first, second = difference(scaled), difference(q)
    except AlgebraError:
        return Solution(problem, tuple(writer.lines), "system/elimination")
    sign = 1 if add else -1
    result = {
        m: first.get(m, Fraction(0)) + sign * second.get(m, Fraction(0)) for m in ("x", "y", "")
    }
    left = _two(int(result["x"]), int(result["y"]))
    if any(v.denominator != 1 for v in result.values()) or left == "0":
        return Solution(problem, tuple(writer.lines), "system/elimination")
    reduced = writer.line(ADDED if add else ELIMINATE, f"{left}={-result['']}")
    _back_substitute(writer, reduced, c, d, q)
    return Solution(problem, tuple(writer.lines), "system/elimination")


def _back_substitute(writer: _Writer, reduced: str, c: int, d: int, q: str) -> None:
    found = _solved(reduced, "x")
    if found is None or not terminates(found, 1) or abs(found) > 500:
        return
    shown = writer.line(PLAIN, f"x={decimal(found)}") if not reduced.startswith("x=") else reduced
    found = _solved(shown, "x")
    if found is None or not terminates(found, 1):
        return
    number = decimal(found) if found >= 0 else f"({decimal(found)})"
    head = f"{c}*{number}" if c != 1 else number
    tail = _two(0, d)
    right = q.split("=")[1]
    put = writer.line(
        BACK, f"{head}{tail if tail.startswith('-') else '+' + tail}={right}", s=shown
    )
    last = _solved(put, "y")
    if last is not None and terminates(last, 2):
        writer.line(PLAIN, f"y={decimal(last)}")


QUADRATIC_ASK = (
    "Solve {m}",
    "Factor and solve {m}",
    "Find all solutions of {m}.",
    "Solve for {x}: {m}",
    "Roots of {m}?",
)
FACTORED = ("Factor: {m}", "{m}", "This factors as {m}", "Factoring gives {m}", "in factors, {m}")
ROOTS = (
    "{r} or {s}",
    "So {r} or {s}",
    "{r} and {s}",
    "The solutions are {r} and {s}.",
    "Either {r} or else {s}",
)


def quadratic(context: Context, error_chance: float) -> Solution:
    """A monic quadratic: brought to zero, factored, roots read off."""
    rng = context.rng
    r, s = rng.randint(-9, 9), rng.randint(-9, 9)
    b, c = -(r + s), r * s
    shift = rng.choice((0, 0, rng.randint(-12, 12)))
    writer = _Writer(context, error_chance)
    style = writer.style
    k = rng.choice((1, 1, 1, 2, 3))
    poly = _quadratic(1, b, c)
    given = f"{_quadratic(k, k * b, k * c + shift)}={shift}"
    problem = context.frame(QUADRATIC_ASK).format(m=style.math(given), x=style.letters["x"])
    if shift:
        writer.line(PLAIN, f"{_quadratic(k, k * b, k * c)}=0")
    now = f"{poly}=0"
    if k != 1 and all(line.good for line in writer.lines):
        now = writer.line(PLAIN, now)
    quad = _coefficients(now)
    pair = _factor(quad) if quad and (not writer.lines or writer.lines[-1].good or k != 1) else None
    if pair is None or (writer.lines and not writer.lines[-1].good and k == 1):
        return Solution(problem, tuple(writer.lines), "quadratic/factor")
    shown = writer.line(FACTORED, f"{_bracket(-pair[0])}{_bracket(-pair[1])}=0")
    quad = _coefficients(shown)
    pair = _factor(quad) if quad else None
    if pair:
        _roots(writer, pair)
    return Solution(problem, tuple(writer.lines), "quadratic/factor")


def _quadratic(a: int, b: int, c: int) -> str:
    out = "x^2" if a == 1 else f"{a}x^2"
    if b:
        middle = {1: "x", -1: "-x"}.get(b, f"{b}x")
        out += middle if b < 0 else "+" + middle
    return out + (f"{c:+d}" if c else "")


def _bracket(n: int) -> str:
    return f"(x{n:+d})" if n else "(x)"


def _coefficients(formula: str) -> tuple[Fraction, Fraction, Fraction] | None:
    try:
        poly = difference(formula)
    except AlgebraError:
        return None
    if set(poly) - {"", "x", "xx"} or "xx" not in poly:
        return None
    a = poly["xx"]
    return Fraction(1), poly.get("x", Fraction(0)) / a, poly.get("", Fraction(0)) / a


def _factor(quad: tuple[Fraction, Fraction, Fraction]) -> tuple[int, int] | None:
    _, b, c = quad
    for r in range(-30, 31):
        s = -b - r
        if r * s == c and s.denominator == 1:
            return r, int(s)
    return None


def _roots(writer: _Writer, pair: tuple[int, int]) -> None:
    context, style = writer.context, writer.style
    shown, good, error = list(pair), True, "none"
    if context.chance(writer.chance):
        shown[context.rng.randrange(2)] *= -1
        if context.chance(0.4):
            shown[0] += context.rng.choice((-1, 1))
        good = sorted(shown) == sorted(pair)
        error = "none" if good else "sign"
    context.rng.shuffle(shown)
    r, s = (style.math(f"x={n}") for n in shown)
    text = r if shown[0] == shown[1] else context.pick(ROOTS).format(r=r, s=s)
    writer.lines.append(Line(text, good, error))

"""Linear equations in one letter: sides as terms, and the moves that solve them.

A move turns sides into sides; each also knows the mistakes pupils make with it. Sides are
written as canonical text by `write`. Imports `algebra` and the standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from random import Random

from .algebra import show

# A term is ("c", number), ("v", coefficient), ("b", factor, terms) for factor*(terms),
# or ("d", terms, divisor) for (terms)/divisor.
Term = tuple  # type: ignore[type-arg]
Side = list[Term]
Sides = tuple[Side, Side]


@dataclass(frozen=True, slots=True)
class Move:
    """One move: what was done, with what number, the result and typical wrong results."""

    kind: str
    amount: str
    sides: Sides
    working: str = ""  # the same move before it is tidied, "" where there is none
    wrong: list[tuple[str, Sides]] = field(default_factory=list)


def _variable(coefficient: Fraction, dec: bool) -> str:
    if coefficient == 1:
        return "x"
    if coefficient == -1:
        return "-x"
    if coefficient.denominator == 1 or (dec and "/" not in show(coefficient, dec)):
        return show(coefficient, dec) + "x"
    top = coefficient.numerator
    head = {1: "x", -1: "-x"}.get(top, f"{top}x")
    return f"{head}/{coefficient.denominator}"


def write_term(term: Term, dec: bool) -> str:
    """Canonical text of one term, with its sign."""
    kind = term[0]
    if kind == "c":
        return show(term[1], dec)
    if kind == "v":
        return _variable(term[1], dec)
    if kind == "b":
        factor = {Fraction(1): "", Fraction(-1): "-"}.get(term[1], show(term[1], dec))
        if "/" in factor:
            factor = f"({factor})" if factor[0] != "-" else f"-({factor[1:]})"
        return f"{factor}({write_side(term[2], dec)})"
    inner = write_side(term[1], dec)
    return f"({inner})/{show(term[2], dec)}"


def write_side(side: Side, dec: bool) -> str:
    """Canonical text of a side."""
    if not side:
        return "0"
    out = write_term(side[0], dec)
    for term in side[1:]:
        text = write_term(term, dec)
        out += text if text.startswith("-") else "+" + text
    return out


def write(sides: Sides, dec: bool) -> str:
    """Canonical text of an equation."""
    return f"{write_side(sides[0], dec)}={write_side(sides[1], dec)}"


def total(side: Side) -> tuple[Fraction, Fraction]:
    """(coefficient of the letter, constant) of a side."""
    a, b = Fraction(0), Fraction(0)
    for term in side:
        if term[0] == "c":
            b += term[1]
        elif term[0] == "v":
            a += term[1]
        else:
            inner = total(term[2] if term[0] == "b" else term[1])
            factor = term[1] if term[0] == "b" else 1 / Fraction(term[2])
            a, b = a + factor * inner[0], b + factor * inner[1]
    return a, b


def simple(a: Fraction, b: Fraction) -> Side:
    """The tidied side a*x + b."""
    side: Side = []
    if a:
        side.append(("v", a))
    if b or not a:
        side.append(("c", b))
    return side


def _times(side: Side, factor: Fraction) -> Side:
    return [(t[0], t[1] * factor) for t in side]


def _flat(side: Side) -> bool:
    return all(t[0] in "cv" for t in side)


def clear_divisor(rng: Random, sides: Sides, dec: bool) -> Move | None:
    """Multiply both sides by the divisor of a side that is one fraction."""
    for i in (0, 1):
        side, other = sides[i], sides[1 - i]
        if len(side) != 1 or side[0][0] != "d" or not _flat(other):
            continue
        n = Fraction(side[0][2])
        inner = list(side[0][1])
        a, b = total(other)
        wrong = [("one_side", (inner, other))]
        if a and b:
            wrong.append(("distribution", (inner, [("v", a * n), ("c", b)])))
        if not a:
            wrong.append(("inverted_division", (inner, simple(a, b / n))))
        good = (inner, _times(other, n))
        flip = (lambda s: (s[1], s[0])) if i else (lambda s: s)
        work = (
            f"{write_side(other, dec)}*{show(n)}"
            if len(other) == 1
            else f"{show(n)}({write_side(other, dec)})"
        )
        left = f"{write_term(side[0], dec)}*{show(n)}"
        text = f"{work}={left}" if i else f"{left}={work}"
        return Move("multiply", show(n), flip(good), text, [(k, flip(s)) for k, s in wrong])
    return None


def expand(rng: Random, sides: Sides, dec: bool) -> Move | None:
    """Multiply out every bracket."""
    if not any(t[0] in "bd" for side in sides for t in side):
        return None
    good, first, sign = ([], []), ([], []), ([], [])
    for i in (0, 1):
        for t in sides[i]:
            if t[0] in "cv":
                for out in (good, first, sign):
                    out[i].append(t)
                continue
            k, inner = (t[1], t[2]) if t[0] == "b" else (1 / Fraction(t[2]), t[1])
            full = _times(inner, k)
            good[i].extend(full)
            first[i].extend([full[0], *inner[1:]])
            sign[i].extend([full[0], *_times(full[1:], Fraction(-1))])
    wrong = [("distribution", first), ("sign", sign)]
    return Move("expand", "", good, "", wrong)


def combine(rng: Random, sides: Sides, dec: bool) -> Move | None:
    """Collect like terms on each side."""
    if not all(_flat(s) for s in sides):
        return None
    done = tuple(simple(*total(s)) for s in sides)
    if all(len(d) == len(s) for d, s in zip(done, sides, strict=True)):
        return None
    wrong: list[tuple[str, Sides]] = []
    for i in (0, 1):
        if len(sides[i]) == len(done[i]):
            continue
        a, b = total(sides[i])
        kinds = {t[0] for t in sides[i]}
        bad: list[tuple[str, Side]] = []
        if kinds == {"c", "v"}:
            bad.append(("like_terms", [("v", a + b)] if a + b else [("c", b)]))
        j = rng.randrange(len(sides[i]))
        flipped = [(t[0], -t[1] if n == j else t[1]) for n, t in enumerate(sides[i])]
        bad.append(("sign", simple(*total(flipped))))
        bad.append(("dropped_term", simple(*total([t for n, t in enumerate(sides[i]) if n != j]))))
        for name, side in bad:
            wrong.append((name, (side, done[1]) if i == 0 else (done[0], side)))
    return Move("combine", "", (done[0], done[1]), "", wrong)


def constants_first(side: Side) -> Side:
    """The same terms with the numbers before the letters: 11-2x for -2x+11."""
    return sorted(side, key=lambda term: term[0] != "c")


def across(rng: Random, sides: Sides, dec: bool) -> Move | None:
    """Take a negative letter term to the other side: 11-2x=1 becomes 11=1+2x."""
    return _shift(rng, sides, dec, "v", across=True)


def _shift(rng: Random, sides: Sides, dec: bool, kind: str, across: bool = False) -> Move | None:
    """Take the letter term or the constant of one side from both sides."""
    (a1, b1), (a2, b2) = total(sides[0]), total(sides[1])
    letter = kind == "v"
    if across:
        source = 0 if a1 else 1
        part, rest = ((a1, b1), (a2, b2))[source]
        if part >= 0 or not rest or (a1 and a2) or not all(_flat(side) for side in sides):
            return None
    elif letter:
        if not (a1 and a2):
            return None
        source = 1 if (rng.random() < 0.8 or a2 < a1) else 0
        part = (a1, a2)[source]
    else:
        source = 0 if a1 else 1
        part = (b1, b2)[source]
        if not part or (a1 and a2):
            return None
    term: Term = (kind, part)

    def after(from_source: Fraction, from_other: Fraction) -> Sides:
        new = []
        for i, (a, b) in enumerate(((a1, b1), (a2, b2))):
            delta = from_source if i == source else from_other
            new.append(simple(a - delta, b) if letter else simple(a, b - delta))
        return new[0], new[1]

    wrong = [("one_side", after(part, Fraction(0))), ("sign", after(part, -part))]
    if rng.random() < 0.3:
        wrong.append(("one_side", after(Fraction(0), part)))
    minus = part > 0
    amount = write_term((kind, abs(part)), dec)
    tail = ("-" if minus else "+") + amount
    working = f"{write_side(sides[0], dec)}{tail}={write_side(sides[1], dec)}{tail}"
    if rng.random() < 0.35:  # moved across instead: 3x = 20 - 5
        rest = simple(*((0, (b1, b2)[source]) if letter else ((a1, a2)[source], 0)))
        other = write_side(sides[1 - source], dec) + tail
        kept = write_side(rest, dec)
        working = f"{other}={kept}" if source else f"{kept}={other}"
    del term
    return Move("subtract" if minus else "add", amount, after(part, part), working, wrong)


def divide(rng: Random, sides: Sides, dec: bool) -> Move | None:
    """Divide both sides by the coefficient of the letter."""
    for i in (0, 1):
        if (
            len(sides[i]) == 1
            and sides[i][0][0] == "v"
            and len(sides[1 - i]) == 1
            and sides[1 - i][0][0] == "c"
        ):
            break
    else:
        return None
    a, b = sides[i][0][1], sides[1 - i][0][1]
    if a == 1:
        return None
    flip = (lambda s: (s[1], s[0])) if i else (lambda s: s)
    letter: Side = [("v", Fraction(1))]
    if a == -1:
        return Move(
            "negate", "-1", flip((letter, [("c", -b)])), "", [("sign", flip((letter, [("c", b)])))]
        )
    wrong: list[tuple[str, Sides]] = [
        ("sign", flip((letter, [("c", -b / a)]))),
        ("operation", flip((letter, [("c", b - a)]))),
        ("operation", flip((letter, [("c", b * a)]))),
    ]
    if b:
        wrong.append(("inverted_division", flip((letter, [("c", a / b)]))))
    if abs(a.numerator) == 1 and a.denominator > 1:
        n = 1 / a
        pair = [f"{write_term(sides[i][0], dec)}*{show(n)}", f"{show(b, dec)}*{show(n)}"]
        return Move(
            "multiply", show(n), flip((letter, [("c", b / a)])), "=".join(flip(pair)), wrong
        )
    # A fraction as divisor would need brackets: it is multiplied away above or skipped.
    down = show(a, dec)
    left, right = write_term(sides[i][0], dec), show(b, dec)
    working = "" if "/" in down else "=".join(flip([f"{left}/{down}", f"{right}/{down}"]))
    if working and rng.random() < 0.4:
        working = "=".join(flip(["x", f"{right}/{down}"]))
    return Move("divide", down, flip((letter, [("c", b / a)])), working, wrong)


def next_move(rng: Random, sides: Sides, dec: bool) -> Move | None:
    """The next move a pupil would make, or None when the letter stands alone."""
    move = clear_divisor(rng, sides, dec) or expand(rng, sides, dec) or combine(rng, sides, dec)
    if move:
        return move
    order = ("v", "c") if rng.random() < 0.7 else ("c", "v")
    for kind in order:
        move = _shift(rng, sides, dec, kind)
        if move:
            return move
    return divide(rng, sides, dec)

"""Worked solutions of linear equations: problems, moves, words, mistakes, recoveries.

In: a `Context`. Out: a `Solution` whose labels come from `algebra.equivalent` on the
canonical text of each line against the line before. Imports its siblings only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from fractions import Fraction

from . import wordings as words
from .algebra import AlgebraError, decimal, equivalent, parse, terminates, true_chain, value
from .corrupt import break_chain, break_equation, near_equation, near_miss
from .linear import Move, Sides, across, constants_first, next_move, simple, total, write
from .records import Context, Line, Solution, slip_at
from .shapes import FREE, MINUS, SHAPES, draw_sides
from .surface import Style, make_style

# Share of the wrong lines of drills that are wrong by a little.
NEAR = 0.75


@dataclass(slots=True)
class Walk:
    """The state of one solution being written: current formula, sides and lines so far."""

    context: Context
    style: Style
    dec: bool
    sides: Sides
    current: str
    talk: float
    lines: list[Line] = field(default_factory=list)
    before_error: str = ""
    pending: Move | None = None  # the tidied form of a working line just written
    # How often a line has its numbers before its letters, its sides exchanged, and how often a
    # negative letter term is taken across (`Context.orders`).
    first: float = 0.0
    swap: float = 0.0
    across: float = 0.0

    def add(self, text: str, good: bool, error: str, wrong: str = "", right: str = "") -> None:
        """Append a line; `wrong` and `right` are the formula as written and as it should be."""
        if good:
            self.lines.append(Line(text, True))
            return
        slip = slip_at(text, self.style.math(wrong), self.style.math(right)) if right else -1
        self.lines.append(Line(text, False, error, slip))


def _phrase(walk: Walk, move: Move | None, formula: str, working: str, final: bool) -> str:
    """Put words around a formula, or leave it bare."""
    context, style = walk.context, walk.style
    m = style.math(formula)
    if working:
        template = context.frame(words.WORKED)
        return template.format(w=style.math(working), m=m)
    if not context.chance(walk.talk):
        return m
    if final and context.chance(0.45):
        return context.frame(words.FINAL).format(m=m)
    if move is None or context.chance(0.25):
        return context.frame(words.ANY).format(m=m)
    amount = style.math(move.amount) if move.amount else ""
    return context.frame(words.MOVES[move.kind]).format(m=m, n=amount)


def wrong_result(walk: Walk, move: Move, formula: str) -> tuple[str, str, Sides | None] | None:
    """A mistaken result of a move: (formula, error, sides or None), proved not to follow."""
    rng, near = walk.context.rng, walk.context.near
    if near and rng.random() < near:
        change = near_equation(rng, walk.current, formula)
        if change:
            return *change, None
    if move.wrong and rng.random() < 0.62:
        name, sides = rng.choice(move.wrong)
        text = write(sides, walk.dec)
        if not equivalent(walk.current, text):
            return text, name, sides
    change = break_equation(rng, walk.current, formula)
    return (change[0], change[1], None) if change else None


def _reread(formula: str) -> Sides | None:
    """Sides of a broken formula, so that the solution goes on from what was written."""
    try:
        polys = [parse(side) for side in formula.split("=")]
    except AlgebraError:
        return None
    if any(set(p) - {"", "x"} for p in polys):
        return None
    left, right = (simple(p.get("x", Fraction(0)), p.get("", Fraction(0))) for p in polys)
    if not (total(left)[0] or total(right)[0]) or total(left)[0] == total(right)[0]:
        return None
    return left, right


def _reason(formula: str, previous: str) -> str:
    """A numeric reason such as 8/2=4 for x=4 after 2x=8, "" where there is none."""
    m = re.fullmatch(r"(-?\d+)x=(-?\d+)", previous)
    solved = re.fullmatch(r"x=(-?[\d./]+)", formula)
    if not (m and solved):
        return ""
    return f"{m[2]}/{m[1]}={solved[1]}"


def _final_line(walk: Walk, move: Move, formula: str, error: str) -> str | None:
    reason = _reason(formula, walk.current)
    if not reason or not walk.context.chance(0.3):
        return None
    try:
        right = true_chain(reason)
    except AlgebraError:
        return None
    if not right and not error:
        return None
    template = walk.context.frame(words.REASON)
    return template.format(m=walk.style.math(formula), r=walk.style.math(reason))


def _crossing(walk: Walk) -> Move | None:
    """A negative letter taken to the other side, now and then where there is one."""
    rng = walk.context.rng
    if not (walk.across and rng.random() < walk.across):
        return None
    return across(rng, walk.sides, walk.dec)


def _arranged(walk: Walk, move: Move) -> Move:
    """The move with what it leads to, rightly or wrongly, in another order."""
    rng = walk.context.rng
    first = walk.first > 0 and rng.random() < walk.first
    often = walk.swap
    if walk.across and not total(move.sides[0])[0]:  # 10=2x
        often = max(often, 0.4)
    swap = often > 0 and rng.random() < often
    if not (first or swap):
        return move

    def ordered(sides: Sides) -> Sides:
        left, right = (constants_first(side) if first else side for side in sides)
        return (right, left) if swap else (left, right)

    wrong = [(name, ordered(sides)) for name, sides in move.wrong]
    return replace(move, sides=ordered(move.sides), wrong=wrong)


def step(walk: Walk, error_chance: float, skip: float = 0.15) -> bool:
    """Write one more line; False when the letter stands alone."""
    rng = walk.context.rng
    crossing = None if walk.pending else _crossing(walk)
    move = walk.pending or crossing or next_move(rng, walk.sides, walk.dec)
    walk.pending = None
    if move is None:
        return False
    # 11-2x=1 becomes 11=1+2x seldom, and 10=2x or 2x=10 often.
    skip = max(skip, 0.5) if crossing else skip
    merged = rng.random() < skip and next_move(rng, move.sides, walk.dec)
    if merged:
        move = Move("any", "", merged.sides, "", merged.wrong)
    move = _arranged(walk, move)
    formula = write(move.sides, walk.dec)
    solved = next_move(rng, move.sides, walk.dec) is None
    only_working = bool(move.working) and rng.random() < 0.22
    shown = move.working if only_working else formula
    working = move.working if move.working and not only_working and rng.random() < 0.15 else ""
    error, sides, good, right = "", move.sides, True, shown
    if rng.random() < error_chance:
        wrong = wrong_result(walk, move, shown)
        if wrong:
            shown, error, new_sides = wrong
            sides, good = new_sides or _reread(shown), False
            working = "" if rng.random() < 0.5 else working
    if good and not equivalent(walk.current, shown):
        raise AlgebraError(f"move does not follow: {walk.current} to {shown}")
    text = (_final_line(walk, move, shown, error) if solved else None) or _phrase(
        walk, None if move.kind == "any" else move, shown, working, solved
    )
    walk.add(text, good, error, shown, right)
    if not good:
        walk.before_error = walk.current
    if sides is None:
        return False
    walk.sides, walk.current = sides, shown
    if only_working and good:
        slips = [(name, wrong) for name, wrong in move.wrong if name != "one_side"]
        walk.pending = Move("any", "", move.sides, "", slips)
    return True


def recover(walk: Walk) -> bool:
    """Undo an earlier mistake: the next line follows from before it, not from the last line."""
    before = _reread(walk.before_error)
    if before is None:
        return False
    walk.pending = None
    sides = before
    for _ in range(walk.context.rng.choice((1, 1, 2, 3))):
        move = next_move(walk.context.rng, sides, walk.dec)
        if move is None:
            break
        sides = move.sides
    formula = write(sides, walk.dec)
    if equivalent(formula, walk.current):
        return False
    walk.add(_phrase(walk, None, formula, "", False), False, "undo")
    walk.sides, walk.current, walk.before_error = sides, formula, ""
    return True


def _check_line(walk: Walk, problem: str, errors: bool) -> None:
    """Put the solution into the problem; now and then what is left and right stands by itself."""
    m = re.fullmatch(r"x=(-?\d+)", walk.current)
    if not m or not equivalent(problem, walk.current):
        return
    number = m[1] if int(m[1]) >= 0 else f"({m[1]})"
    text = re.sub(r"(?<=[\d)])x", f"*{number}", problem).replace("x", number)
    left, right = text.split("=")
    if value(left) != value(right) or "*" not in text or "/" in text:
        return
    context, style = walk.context, walk.style
    chains, joint = [text], "{0}"
    if context.loose and context.chance(0.7) and terminates(value(left), 2):
        result = decimal(value(left))
        sides = [f"{side}={result}" for side in (left, right) if side != result]
        sums = [_products(side) for side in (left, right)]
        if len(sides) == 2 and context.chance(0.6):
            chains, joint = sides, context.pick(words.BOTH)
        elif context.chance(0.5):
            chains = [context.rng.choice(sides)]
        else:
            chains = ["=".join(sums)]
    written, good, error, wrong, right = list(chains), True, "", "", ""
    if errors and context.chance(0.5):
        at = context.rng.randrange(len(chains)) if len(chains) > 1 else 0
        spoil = near_miss if context.near and context.chance(context.near) else break_chain
        change = spoil(context.rng, chains[at])
        if change:
            written[at], error, good = change[0], change[1], False
            wrong, right = change[0], chains[at]
    r = joint.format(*map(style.math, written))
    template = context.frame(words.CHECK)
    walk.add(template.format(r=r, m=style.math(walk.current)), good, error, wrong, right)


def _products(side: str) -> str:
    """A side with its products worked out, where none of them stands in or before a bracket."""
    if "(" in re.sub(r"\*\(-\d+\)", "", side):
        return side

    def product(found: re.Match[str]) -> str:
        result = decimal(value(found[0]))
        return f"({result})" if result.startswith("-") and found.start() else result

    return re.sub(r"\d+(?:\.\d+)?\*(?:\(-\d+\)|\d+)", product, side)


def start(context: Context, talk: float | None = None) -> tuple[str, Walk, str]:
    """Draw a problem: its text, the walk at its first formula, and its shape."""
    rng = context.rng
    shape = context.pick(SHAPES)
    if context.split == "train" and context.chance(context.loose):
        shape = FREE
    if context.split == "train" and context.orders and context.chance(context.orders / 4):
        shape = rng.choice(MINUS)
    dec = rng.random() < 0.06
    sides = draw_sides(context, shape, dec)
    while not total(sides[0])[0] - total(sides[1])[0]:
        sides = draw_sides(context, shape, dec)
    style = make_style(context)
    formula = write(sides, dec)
    problem = context.frame(words.PROBLEMS).format(m=style.math(formula), v=style.letters["x"])
    talk = talk if talk is not None else rng.choice((0.0, 0.3, 0.7, 1.0))
    walk = Walk(context, style, dec, sides, formula, talk)
    if context.orders and (shape in MINUS or context.chance(context.orders)):
        walk.first, walk.swap = rng.choice((0.0, 0.5, 0.9)), rng.choice((0.0, 0.1))
        walk.across = rng.choice((0.0, 0.5, 0.9))
    return problem, walk, shape


def solution(context: Context, error_chance: float = 0.3, max_lines: int = 9) -> Solution:
    """One worked solution; each line goes wrong with `error_chance`."""
    rng = context.rng
    problem, walk, shape = start(context)
    given = walk.current
    if context.chance(0.1):
        opener = context.frame(words.OPENERS)
        walk.add(opener.format(m=walk.style.math(given), v=walk.style.letters["x"]), True, "")
    skip = rng.choice((0.0, 0.1, 0.3))
    while len(walk.lines) < max_lines:
        if walk.before_error and error_chance and rng.random() < 0.25 and recover(walk):
            continue
        if not step(walk, error_chance, skip):
            break
    else:
        return Solution(problem, tuple(walk.lines), f"linear/{shape}")
    if context.chance(0.5 if context.loose else 0.15):
        _check_line(walk, given, error_chance > 0)
    elif (
        walk.lines
        and walk.lines[-1].good
        and context.chance(0.12)
        and re.match(r"x=", walk.current)
    ):
        _restate(walk, error_chance)
    return Solution(problem, tuple(walk.lines), f"linear/{shape}")


def drills(context: Context, error_chance: float) -> Solution:
    """Bare lines of one equation, half of them wrong, mostly by a little.

    With the errors of `solution` alone, which change much, a network learns what a line must look
    like and about how large its numbers are, and stays there: it passes 3x+13=20 after 3x+5+7=20.
    """
    context = replace(context, near=NEAR)
    problem, walk, shape = start(context, talk=0.0)
    if context.chance(0.5):
        problem = walk.style.math(walk.current)
    divided = "/" in walk.current
    while len(walk.lines) < 7 and step(walk, max(error_chance, 0.5), 0.1):
        if "/" in walk.current and not divided:  # from a wrong line on they grow
            break
    return Solution(problem, tuple(walk.lines), f"moves/{shape}")


def _restate(walk: Walk, error_chance: float) -> None:
    """Repeat the solution as the answer, or another number than the one found."""
    shown, good, error = walk.current, True, ""
    if error_chance and walk.context.chance(0.4):
        change = break_equation(walk.context.rng, walk.current, shown)
        if change:
            shown, error, good = change[0], change[1], False
    walk.add(
        walk.context.frame(words.FINAL).format(m=walk.style.math(shown)),
        good,
        error,
        shown,
        walk.current,
    )


def _drafts(problem: str, given: Walk, context: Context, broken: bool) -> Solution | None:
    """One clean draft, or one with a mistake and a later line that undoes it."""
    walk = replace(given, lines=[], before_error="", pending=None)
    if broken:
        steps_before = context.rng.choice((0, 0, 1))
        for _ in range(steps_before):
            if not step(walk, 0.0, 0.0):
                return None
        if not step(walk, 1.0, 0.0) or not walk.before_error:
            return None
        for _ in range(context.rng.choice((0, 0, 1))):
            if not step(walk, 0.0, 0.0):
                return None
        if not recover(walk):
            return None
    while step(walk, 0.0, 0.0):
        pass
    wrong = sum(line.good is False for line in walk.lines)
    if not re.match(r"x=", walk.current) or not equivalent(walk.current, given.current):
        return None
    if (
        wrong != (2 if broken else 0)
        or not 2 <= len(walk.lines) <= 8
        or walk.lines[-1].good is False
    ):
        return None
    return Solution(problem, tuple(walk.lines), "linear/draft")


def same_answer(context: Context, broken: list[bool]) -> list[Solution]:
    """Drafts of one problem that all end in the right answer; broken ones cancel an error."""
    while True:
        problem, walk, _ = start(context)
        out: list[Solution] = []
        for flag in broken:
            draft = next(
                (d for _ in range(12) if (d := _drafts(problem, walk, context, flag))), None
            )
            if draft is None:
                break
            out.append(draft)
        if len(out) == len(broken):
            return out

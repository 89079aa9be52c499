"""Word problems and GSM8K-style sentences, lines labelled by exact arithmetic.

In: a `Context`. Out: a `Solution`. A line with a number misread from the problem is wrong
even when its own arithmetic holds. Imports its siblings only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from .algebra import decimal, terminates, value
from .arithmetic import chain, drill
from .corrupt import Change, break_chain, near_miss
from .records import Context, Line, Solution, slip_at
from .stories import ASIDES, DERIVED, ENDS, FRAMES, GENERIC, NAMES, STARTS, STORIES, THINGS
from .surface import make_style

Render = Callable[[str], str]
NEAR = 0.7  # share of the errors of drills
SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)\. ")
ASIDE = 0.4  # share of the stories trained on that say something beside the point


def people_of(context: Context) -> dict[str, str]:
    """Three names, and what there is of, in the plural and in the singular."""
    n, m, o = context.rng.sample(NAMES, 3)
    thing = context.rng.choice(THINGS)
    return {"N": n, "M": m, "O": o, "T": thing, "t": thing.rstrip("s")}


def _substitute(expression: str, numbers: dict[str, str]) -> str:
    out = re.sub(r"[a-z]", lambda m: numbers[m[0]], expression)
    return re.sub(r"(?<=[-+*/])-(\d+(?:\.\d+)?)", r"(-\1)", out)


def money(context: Context, render: Render) -> Render:
    """Sometimes put a dollar sign before the result, or before every number."""
    roll = context.rng.random()

    def dollars(text: str) -> str:
        shown = render(text)
        if roll < 0.12:
            return re.sub(r"(=\s*)(?=[\d.])", r"\1$", shown)
        if roll < 0.18:
            return re.sub(r"(?<![\d.,$])(?=\d)", "$", shown)
        return shown

    return dollars


def story(context: Context, error_chance: float) -> Solution:
    """One word problem of the table, its steps and perhaps the answer."""
    rng = context.rng
    picked = context.pick(STORIES)
    index = STORIES.index(picked)
    numbers: dict[str, str] = {}
    while True:
        numbers = {k: str(rng.randint(*r)) for k, r in picked.given.items() if r != (0, 0)}
        if "{b}%" in picked.text:
            numbers["b"] = str(int(numbers["k"]) * 10)
            numbers["a"] = str(int(numbers["a"]) * 10)
        elif "mean" in picked.text:
            rest = int(numbers["b"]) + int(numbers["c"])
            numbers["a"] = str(3 * int(numbers["k"]) - rest)
        elif index in DERIVED:
            big, small = DERIVED[index]
            by = int(numbers[small]) if isinstance(small, str) else small
            numbers[big] = str(by * int(numbers["k"]))
        results = dict(numbers)
        for name, expression, _ in picked.steps:
            results[name] = decimal(value(_substitute(expression, results)))
        if all(terminates(value(v), 2) for v in results.values()):
            break
    people = people_of(context)
    style = make_style(context, numeric=True)
    render = money(context, style.math)
    text = picked.text.format(**people, **numbers)
    if context.split == "train" and rng.random() < ASIDE:
        text, numbers = _with_aside(rng, text, numbers, people)
    lines = _story_lines(context, picked.steps, numbers, people, render, error_chance)
    return Solution(text, tuple(lines), f"story/{index}")


def _with_aside(
    rng: Random, text: str, numbers: dict[str, str], people: dict[str, str]
) -> tuple[str, dict[str, str]]:
    """The problem with one or two sentences that are beside the point, and all its numbers."""
    for at, aside in enumerate(rng.sample(ASIDES, rng.choice((1, 1, 2)))):
        given = {name: str(rng.randint(2, rng.choice((12, 40, 200)))) for name in ("x", "y")}
        said = aside.format(**people, **given)
        said = said[0].upper() + said[1:]
        first, *rest = SENTENCE_END.split(text, maxsplit=1)
        places = [f"{said} {text}", f"{text} {said}", *(f"{first}. {said} {end}" for end in rest)]
        text = rng.choice(places)
        # Known as well: one of them taken for another number is a plan, not a misreading.
        numbers = numbers | {f"{name}{at}": number for name, number in given.items()}
    return text, numbers


def _story_lines(context, steps, numbers, people, render, error_chance) -> list[Line]:  # type: ignore[no-untyped-def]
    rng = context.rng
    lines: list[Line] = []
    known = dict(numbers)
    talk = rng.choice((0.3, 0.8, 1.0))
    for name, expression, sentence in steps:
        used, good, error = dict(known), True, "none"
        if rng.random() < error_chance:
            good, error = False, "slip"
        if not good and rng.random() < 0.2:
            used, good, error = _misread(context, expression, known)
        text = _substitute(expression, used)
        worked = f"{text}={decimal(value(text))}" if terminates(value(text), 2) else ""
        if not worked:
            used, good, error = dict(known), True, "none"
            text = _substitute(expression, used)
            worked = f"{text}={decimal(value(text))}"
        right = worked
        if error == "slip":
            change = break_chain(rng, worked)
            worked, error = change if change else (worked, "none")
            good = change is None
        known[name] = worked.rpartition("=")[2]
        if "(" in known[name] or re.search(r"[^\d.\-]", known[name]):
            known[name] = decimal(value(known[name]))
        frame = sentence if rng.random() < talk else context.frame(GENERIC)
        shown = numbers | {"e": render(worked), "v": known[name]} | people
        text = frame.format(**shown)
        slip = -1 if good else slip_at(text, render(worked), render(right))
        lines.append(Line(text, good, error, slip))
    if rng.random() < 0.4:
        lines.append(_ending(context, known[steps[-1][0]], error_chance))
    return lines


def _misread(context, expression, known):  # type: ignore[no-untyped-def]
    """Take another number than the one given: (numbers used, good, error)."""
    rng = context.rng
    letter = rng.choice(re.findall(r"[a-z]", expression))
    old = known[letter]
    if not old.isdigit():
        return dict(known), True, "none"
    new = (
        str(max(1, int(old) + rng.choice((-10, -2, -1, 1, 2, 10))))
        if rng.random() < 0.7
        else old[::-1].lstrip("0")
    )
    # A number that stands elsewhere in the problem could be a plan, not a misreading.
    if not new or new in known.values():
        return dict(known), True, "none"
    return known | {letter: new}, False, "misread"


def _ending(context: Context, answer: str, error_chance: float) -> Line:
    """The final answer, copied rightly or not."""
    good, error = True, "none"
    if context.rng.random() < error_chance * 0.6:
        changed = re.sub(
            r"\d(?=\D*$)", lambda m: str((int(m[0]) + context.rng.randint(1, 9)) % 10), answer
        )
        answer, good, error = changed, False, "misread"
    return Line(context.frame(ENDS).format(v=answer), good, error)


def sentences(context: Context, error_chance: float, lines_wanted: int | None = None) -> Solution:
    """Independent sentences with worked chains, as in GSM8K solutions, under a short problem."""
    rng = context.rng
    people = people_of(context)
    style = make_style(context, numeric=True)
    render = money(context, style.math)
    out: list[Line] = []
    last = ""
    for _ in range(lines_wanted or rng.randint(2, 6)):
        text, good, error = chain(context), True, "none"
        right = text
        if rng.random() < error_chance:
            change = break_chain(rng, text)
            if change:
                text, error, good = change[0], change[1], False
        last = text.rpartition("=")[2]
        frame = context.frame(FRAMES) if rng.random() < 0.8 else context.frame(GENERIC)
        shown = frame.format(e=render(text), **people)
        # The numbers are free: only past the equals sign can a wrong one be seen.
        slip = (
            -1 if good else max(slip_at(shown, render(text), render(right)), shown.rfind("=") + 1)
        )
        out.append(Line(shown, good, error, slip, shown.find("=") + 1))
    if rng.random() < 0.3 and re.fullmatch(r"[\d.]+", last):
        out.append(_ending(context, last, error_chance))
    problem = context.frame(STARTS).format(**people) if rng.random() < 0.8 else ""
    return Solution(problem or "Work it out.", tuple(out), "story/sentences")


def drills(context: Context, error_chance: float) -> Solution:
    """Bare sums of one operation, operands spread evenly, half of the results wrong by a little.

    With errors of all kinds, at the rates of solutions, a network learns how large a result must be
    about, and stays there (`training/sums.py` measures it).
    """

    def broken(rng: Random, text: str) -> Change | None:
        near = near_miss(rng, text) if rng.random() < NEAR else None
        return near or break_chain(rng, text)

    return sums(context, max(error_chance, 0.5), drill, broken)


def sums(
    context: Context,
    error_chance: float,
    write: Callable[[Context], str] = chain,
    break_: Callable[[Random, str], Change | None] = break_chain,
) -> Solution:
    """Bare sums, one a line: the arithmetic with half the tokens of a sentence."""
    rng = context.rng
    style = make_style(context, numeric=True)
    out: list[Line] = []
    for _ in range(rng.randint(2, 10)):
        text, good, error = write(context), True, "none"
        right = text
        change = break_(rng, text) if rng.random() < error_chance else None
        if change:
            text, error, good = change[0], change[1], False
        shown = style.math(text)
        slip = max(slip_at(shown, shown, style.math(right)), shown.rfind("=") + 1)
        out.append(Line(shown, good, error, -1 if good else slip, shown.find("=") + 1))
    return Solution("Work it out.", tuple(out), "sums")

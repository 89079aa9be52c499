"""Break a formula the way pupils do, and prove that it is broken.

In: a canonical formula that follows. Out: the formula changed, with the error's name, or
None where no change of that kind makes it false. Imports `algebra` and `records` only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from .algebra import AlgebraError, decimal, equivalent, terminates, true_chain, value

Change = tuple[str, str]  # changed formula, error name


def digit(rng: Random, text: str) -> Change | None:
    """Change, swap, drop or add one digit of one number."""
    spots = [i for i, c in enumerate(text) if c.isdigit()]
    if not spots:
        return None
    i = rng.choice(spots)
    roll = rng.random()
    if roll < 0.68:
        old = int(text[i])
        near = [d for d in (old - 1, old + 1, old - 2, old + 2) if 0 <= d <= 9]
        new = rng.choice(near) if rng.random() < 0.5 else rng.randrange(10)
        changed = text[:i] + str(new) + text[i + 1 :]
    elif roll < 0.8 and i + 1 in spots:
        changed = text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    elif roll < 0.9 and (i + 1 in spots or i - 1 in spots):
        changed = text[:i] + text[i + 1 :]
    else:
        changed = text[: i + 1] + str(rng.randrange(10)) + text[i + 1 :]
    if re.search(r"(?<![\d.])0\d", changed):
        return None
    return changed, "slip"


def sign(rng: Random, text: str) -> Change | None:
    """Flip one plus or minus, lose a leading minus, or put one where none was."""
    spots = [i for i, c in enumerate(text) if c in "+-"]
    starts = [m.start() for m in re.finditer(r"(?<![\d.a-z)])[\da-z(]", text)]
    if spots and rng.random() < 0.75:
        i = rng.choice(spots)
        unary = i == 0 or text[i - 1] in "=(*/+-"
        new = "" if unary else ("-" if text[i] == "+" else "+")
        return text[:i] + new + text[i + 1 :], "sign"
    if not starts:
        return None
    i = rng.choice(starts)
    if i and text[i - 1] == "-":
        return None
    if i and text[i - 1] == "+":
        return text[: i - 1] + "-" + text[i:], "sign"
    return text[:i] + "-" + text[i:], "sign"


def drop(rng: Random, text: str) -> Change | None:
    """Lose one term, or the letter of one term."""
    if rng.random() < 0.35:
        spots = [i for i, c in enumerate(text) if c.isalpha() and i and text[i - 1].isdigit()]
        if spots:
            i = rng.choice(spots)
            return text[:i] + text[i + 1 :], "dropped_term"
    terms = list(
        re.finditer(r"(?<=[\da-z)])[+-](?:\d+(?:\.\d+)?)?[a-z]?(?:/\d+)?(?=[+\-=]|$)", text)
    )
    if not terms:
        return None
    term = rng.choice(terms)
    return text[: term.start()] + text[term.end() :], "dropped_term"


def operation(rng: Random, text: str) -> Change | None:
    """Write one operation for another: + for *, / for *, and so on."""
    spots = [
        i
        for i, c in enumerate(text)
        if c in "*/" or (c in "+-" and i and text[i - 1] not in "=(*/+-")
    ]
    if not spots:
        return None
    i = rng.choice(spots)
    new = rng.choice([c for c in "+-*/" if c != text[i]])
    return text[:i] + new + text[i + 1 :], "operation"


def invert(rng: Random, text: str) -> Change | None:
    """Divide the wrong way round: a/b for b/a."""
    found = list(re.finditer(r"(?<![\d./a-z)])(\d+)/(\d+)(?![\d./a-z(])", text))
    if not found:
        return None
    m = rng.choice(found)
    if int(m[1]) == 0:
        return None
    return text[: m.start()] + f"{m[2]}/{m[1]}" + text[m.end() :], "inverted_division"


CHANGES: tuple[tuple[Callable[[Random, str], Change | None], float], ...] = (
    (digit, 0.42),
    (sign, 0.3),
    (drop, 0.12),
    (operation, 0.08),
    (invert, 0.08),
)


# In plain sums a lost sign is rare and a wrong digit is what a checker must see.
NUMERIC_WEIGHTS = (0.76, 0.08, 0.05, 0.07, 0.04)


def _broken(
    rng: Random, text: str, is_true: Callable[[str], bool], weights: tuple[float, ...]
) -> Change | None:
    functions = [f for f, _ in CHANGES]
    for _ in range(6):
        change = rng.choices(functions, weights)[0](rng, text)
        if change is None or change[0] == text:
            continue
        try:
            if not is_true(change[0]):
                return change
        except AlgebraError:
            continue
    return None


def break_equation(rng: Random, before: str, after: str, near: float = 0.0) -> Change | None:
    """Change `after` so that it no longer follows from `before`; how often only by a little."""
    change = near_equation(rng, before, after) if near and rng.random() < near else None
    if change:
        return change
    weights = tuple(w for _, w in CHANGES)
    return _broken(rng, after, lambda text: equivalent(before, text), weights)


def misdo(rng: Random, source: str) -> tuple[str, str] | None:
    """Misread the signs or operations of a numeric source: (what was worked out, error)."""
    change = rng.choices((sign, operation, invert, digit), (0.35, 0.35, 0.1, 0.2))[0](rng, source)
    return change if change and change[0] != source else None


def near_miss(rng: Random, chain: str) -> Change | None:
    """Make the whole result of a true chain a little wrong: what only exact arithmetic can tell."""
    head, _, last = chain.rpartition("=")
    if not last.lstrip("-").isdigit():
        return None
    steps = (1, 1, 2, rng.randint(1, 9), 10, 10, 20, 100)
    step = rng.choice(steps[: 2 + 2 * len(last.lstrip("-"))]) * rng.choice((-1, 1))
    wrong = int(last) + step
    if (wrong < 0) != (int(last) < 0):
        return None
    return f"{head}={wrong}", "slip"


def near_equation(rng: Random, before: str, after: str) -> Change | None:
    """Make one number of the equation `after` a little wrong: see `near_number`."""
    return near_number(rng, before, after, lambda text: equivalent(before, text))


def near_number(
    rng: Random, before: str, after: str, is_true: Callable[[str], bool]
) -> Change | None:
    """Make one number of `after` a little wrong, rather one that had to be worked out."""
    known = set(re.findall(r"\d+", before))
    spots = list(re.finditer(r"(?<![\d.^])\d+(?![\d.])", after))
    new = [m for m in spots if m[0] not in known]
    for _ in range(4 if spots else 0):
        m = rng.choice(new or spots)
        steps = (1, 1, 2, rng.randint(1, 9), 10, 10, 20, 100)
        step = rng.choice(steps[: 2 + 2 * len(m[0])]) * rng.choice((-1, 1))
        number = int(m[0]) + step
        # 1x is not how it is written, and a number below it would be a lost sign.
        if number < 1 or (number == 1 and after[m.end() : m.end() + 1].isalpha()):
            continue
        changed = f"{after[: m.start()]}{number}{after[m.end() :]}"
        try:
            if not is_true(changed):
                return changed, "slip"
        except AlgebraError:
            continue
    return None


def break_chain(rng: Random, chain: str) -> Change | None:
    """Change a true numeric chain so that it is false."""
    head, _, last = chain.rpartition("=")
    wrong = misdo(rng, head.rpartition("=")[2]) if rng.random() < 0.2 else None
    if wrong:
        try:
            result = value(wrong[0])
            if result != value(last) and terminates(result, 2) and abs(result) < 10**6:
                return f"{head}={decimal(result)}", wrong[1]
        except AlgebraError:
            pass
    return _broken(rng, chain, true_chain, NUMERIC_WEIGHTS)

"""Stories without a plan: true and false sums of the numbers that a problem gives.

In: a `Context`. Out: a `Solution`. Of a few dozen stories a network learns the plans by heart, and
then flags the true sums of every other story. Here sentences, sums and words are put together
at random, so that a number has to be looked up: a line is good if its sum holds and its numbers
stand in the problem or in a line before. Trained on and not measured. Imports its siblings only.
"""

from __future__ import annotations

import re
from random import Random

from .corrupt import break_chain
from .records import Context, Line, Solution, slip_at
from .stories import ASIDES, FRAMES, GENERIC, STORIES
from .surface import make_style
from .worded import money, people_of

# Texts and sentences of the stories trained on, whose numbers, words and plans are taken apart.
_TRAINED = [story for i, story in enumerate(STORIES) if i % 5 != 4]
TEXTS = tuple(story.text for story in _TRAINED)
SENTENCES = tuple(words for story in _TRAINED for _, _, words in story.steps if "{e}" in words)
ASKED = ("How much is it in all?", "What is the result?", "How many is that?", "", "")
MISREAD = 0.2
UNSAID = (2, 3, 7, 10, 12, 60, 100)  # known without being said: days of a week, a dozen


def _sum(rng: Random, known: list[int]) -> tuple[int, str, int, int] | None:
    """Two known numbers, an operation and its whole result; None where none is found."""
    for _ in range(20):
        a = known[-1] if rng.random() < 0.5 else rng.choice(known)
        b = rng.choice(known)
        if rng.random() < 0.3:
            a, b = b, a
        if rng.random() < 0.1:
            b = rng.choice(UNSAID)
        op = rng.choice("+-*/")
        if op == "+":
            return a, op, b, a + b
        if op == "-" and a >= b:
            return a, op, b, a - b
        if op == "*" and a * b <= 5000:
            return a, op, b, a * b
        if op == "/" and b > 1 and not a % b:
            return a, op, b, a // b
    return None


def _problem(context: Context, people: dict[str, str]) -> tuple[str, list[int]]:
    """Sentences put together at random, and the numbers in them."""
    rng = context.rng
    known: list[int] = []

    def number(slot: re.Match[str]) -> str:
        known.append(rng.randint(2, rng.choice((9, 12, 40, 100, 300))))
        return str(known[-1])

    parts = rng.sample(ASIDES, rng.choice((0, 1, 2, 3)))
    if not parts or rng.random() < 0.5:
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(TEXTS))
    said = [re.sub(r"\{[a-dxyk]\}", number, part).format(**people) for part in parts]
    text = " ".join(part[0].upper() + part[1:] for part in said)
    return f"{text} {rng.choice(ASKED)}".strip(), known


def solution(context: Context, error_chance: float) -> Solution:
    """Up to five sums; each goes wrong with `error_chance`."""
    rng = context.rng
    people = people_of(context)
    problem, known = _problem(context, people)
    render = money(context, make_style(context, numeric=True).math)
    lines: list[Line] = []
    for _ in range(rng.randint(1, 5)):
        found = _sum(rng, known)
        if found is None:
            break
        a, op, b, result = found
        right = shown = f"{a}{op}{b}={result}"
        error = "none"
        if rng.random() < error_chance:
            change = _misread(rng, a, op, known) if rng.random() < MISREAD else None
            shown, error = change or break_chain(rng, right) or (right, "none")
        last = shown.rpartition("=")[2]
        if not last.isdigit() or int(last) > 10**5:
            break
        pool = rng.choice((GENERIC, FRAMES, SENTENCES))
        frame = context.frame(pool)
        words = {slot: str(rng.choice(known)) for slot in "abcdxyk"} | people
        texts = [frame.format(**words, e=render(chain)) for chain in (shown, right)]
        good = error == "none"
        slip = -1 if good else slip_at(texts[0], render(shown), render(right))
        lines.append(Line(texts[0], good, error, slip))
        known.append(int(last))
    if not lines:
        return solution(context, error_chance)
    return Solution(problem, tuple(lines), "tales")


def _misread(rng: Random, a: int, op: str, known: list[int]) -> tuple[str, str] | None:
    """A true sum of another number than any that is known."""
    wrong = a + rng.choice((-10, -2, -1, 1, 2, 10))
    others = [n for n in known if n != a]
    if wrong < 2 or wrong in (*known, *UNSAID) or not others or op == "/":
        return None
    b = rng.choice(others)
    result = {"+": wrong + b, "-": wrong - b, "*": wrong * b}[op]
    return (f"{wrong}{op}{b}={result}", "misread") if 0 <= result <= 5000 else None

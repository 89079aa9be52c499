"""Facts that must be known, stated in a sentence: percentages and conversions of units.

In: a `Context`. Out: a `Solution`; every line is proved or disproved with `algebra`.
Imports its siblings only.
"""

from __future__ import annotations

from typing import NamedTuple

from .algebra import AlgebraError, decimal, value
from .corrupt import break_chain
from .paraphrase import Kept
from .records import Context, Line, Solution, slip_at


class Fact(NamedTuple):
    """A relation between numbers, ways to ask for it and ways to state it.

    `kept`: the phrases that carry its meaning; the words around them decide nothing.
    """

    relation: str
    ask: tuple[str, ...]
    say: tuple[str, ...]
    kept: Kept


def _unit(factor: int, big: str, small: str, short: tuple[str, str]) -> Fact:
    """`factor` of the small unit make one of the big; every fifth wording is held out."""
    b, s = short
    return Fact(
        f"{{0}}*{factor}={{1}}",
        (
            f"How many {small} are {{0}} {big}?",
            f"Convert {{0}} {b} to {s}.",
            f"Change {{0}} {big} to {small}.",
            f"{{0}} {b} in {s}?",
            f"How many {small} are there in {{0}} {big}?",  # held out
            f"Write {{0}} {b} in {small}.",
            f"What are {{0}} {big} in {small}?",
            f"{{0}} {big} = ? {small}",
        ),
        (
            f"{{0}} {big} = {{1}} {small}",
            f"{{0}} {b} = {{1}} {s}",
            f"{{0}} {big} are {{1}} {small}.",
            f"So {{0}} {b} is {{1}} {s}",
            f"{{0}} {big} make {{1}} {small}.",  # held out
            f"That is {{1}} {small}.",
            f"There are {{1}} {s} in {{0}} {b}.",
            f"{{0}} * {factor} = {{1}} {s}",
            f"We get {{1}} {small} for {{0}} {big}",
            f"{{0}} {b} come to {{1}} {s}",  # held out
        ),
        {
            "{a}": (f"{{0}} {big}", f"{{0}} {b}", f"{{0}} * {factor}"),
            "{m}": (f"{{1}} {small}", f"{{1}} {s}"),
            "{n}": (small, s),
        },
    )


_PERCENT = (
    "{0}% of {1} = {2}",
    "{0}% of {1} is {2}.",
    "{0}/100 * {1} = {2}",
    "{1} * {0}% = {2}",
    "{0} percent of {1} comes to {2}",  # held out
    "So {0}% of {1} is {2}",
    "{0} percent of {1} = {2}",
    "{0} per cent of {1} makes {2}.",
)
_PERCENT_KEPT = {
    "{a}": ("{0}% of {1}", "{0} percent of {1}", "{0} per cent of {1}", "{0}/100 * {1}",
            "{1} * {0}%", "by {0}%", "by {0} percent"),
    "{m}": ("{2}",),
}  # fmt: skip
FACTS = (
    Fact(
        "{0}*{1}/100={2}",
        (
            "Find {0}% of {1}.",
            "What is {0}% of {1}?",
            "Work out {0} percent of {1}.",
            "{0}% of {1}",
            "Calculate {0} per cent of {1}.",  # held out
        ),
        _PERCENT,
        _PERCENT_KEPT,
    ),
    Fact(
        "{0}*{1}/100={2}",
        (
            "Raise {1} by {0}%.",
            "Increase {1} by {0}%.",
            "A price of {1} goes up by {0}%. What is it now?",
            "{1} grows by {0} percent.",
            "Add {0}% to {1}.",  # held out
        ),
        _PERCENT,
        _PERCENT_KEPT,
    ),
    _unit(100, "metres", "centimetres", ("m", "cm")),
    _unit(60, "hours", "minutes", ("h", "min")),
    _unit(1000, "kilograms", "grams", ("kg", "g")),
    _unit(60, "minutes", "seconds", ("min", "s")),
    _unit(1000, "kilometres", "metres", ("km", "m")),
    _unit(7, "weeks", "days", ("weeks", "days")),
    _unit(12, "feet", "inches", ("ft", "in")),
    _unit(12, "years", "months", ("years", "months")),
    _unit(24, "days", "hours", ("days", "h")),
    _unit(100, "dollars", "cents", ("dollars", "cents")),
    _unit(10, "centimetres", "millimetres", ("cm", "mm")),
    _unit(1000, "litres", "millilitres", ("l", "ml")),
)
RAISED = (
    "{a} + {b} = {c}",
    "So {a} + {b} = {c}",
    "New value: {a} + {b} = {c}.",
    "{a}+{b}={c}",
    "that makes {a} + {b} = {c}",
)


def fact(context: Context, error_chance: float) -> Solution:
    """A percentage or a unit conversion, stated in a sentence."""
    rng = context.rng
    picked = rng.choice(FACTS)  # what a fact says must be known: only its wordings are held out
    ask, relation = context.frame(picked.ask, picked.kept), picked.relation
    percent = "{2}" in relation
    first = str(
        rng.choice((5, 10, 15, 20, 25, 30, 40, 50, 60, 75)) if percent else rng.randint(2, 30)
    )
    if not percent and rng.random() < 0.25:
        first += rng.choice((".5", ".25", ".2"))
    slots = [first] + ([str(rng.randint(2, 40) * rng.choice((4, 5, 10, 20)))] if percent else [])
    slots.append(decimal(value(relation.split("=")[0].format(*slots))))
    good, error, shown = True, "none", list(slots)
    if context.chance(error_chance):
        change = break_chain(rng, relation.format(*slots))
        result = change[0].rpartition("=")[2] if change else slots[-1]
        try:
            if value(result) != value(slots[-1]):
                shown[-1], good, error = (
                    decimal(value(result)),
                    False,
                    change[1] if change else "slip",
                )
        except AlgebraError:
            pass
    says_text = context.frame(picked.say, picked.kept)
    text = says_text.format(*shown)
    lines = [Line(text, good, error, -1 if good else slip_at(text, text, says_text.format(*slots)))]
    if picked is FACTS[1]:
        worked = f"{slots[1]}+{shown[2]}={decimal(value(slots[1]) + value(shown[2]))}"
        good, error = True, "none"
        if context.chance(error_chance):
            change = break_chain(rng, worked)
            if change and change[0].count("=") == 1 and "+" in change[0]:
                worked, error, good = change[0], change[1], False
        left, c = worked.split("=")
        a, b = left.split("+", 1)
        lines.append(Line(context.frame(RAISED).format(a=a, b=b, c=c), good, error))
    return Solution(ask.format(*slots), tuple(lines), "fact")

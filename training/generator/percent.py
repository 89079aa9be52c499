"""Prices and numbers that change by some percent, once or twice: the share, then the change.

In: a `Context`. Out: a `Solution`. A share is worked out as people do: 25% of 80, 80*25/100,
0.25*80, 80/4, or a quarter of 80, alone or with the change in one line. Trained on and not
measured. Imports its siblings only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from .corrupt import near_miss
from .records import Context, Line, Solution, slip_at
from .stories import NAMES, THINGS
from .surface import make_style
from .worded import Render, money

PERCENTS = (5, 10, 10, 15, 20, 20, 25, 25, 25, 30, 40, 50, 50, 60, 75, 80)
PARTS = {50: (2, "half"), 25: (4, "a quarter"), 20: (5, "a fifth"), 10: (10, "a tenth")}
CUT, RISE = ("cut", "lowered", "reduced", "marked down"), ("raised", "increased", "put up")
PROBLEMS = (
    "A coat costs ${a}. Its price is {c}. What does it cost then?",
    "A bike costs ${a}. First it is {c}. What is its price in the end?",
    "{N} has {a} {T}. The number is {c}. How many are there now?",
    "The rent is ${a}. It is {c}. How much is it after that?",
    "A school has {a} pupils. The number is {c}. How many pupils are there?",
    "{N} earns {a} dollars a week, which is {c}. What does {N} earn now?",
    "The price of ${a} is {c}. Find the price afterwards.",
)
SHARES = (
    "{b}% of {a} is {p}",
    "{b}% of {a} = {p}",
    "{b}% of {a} is {e}",
    "The change is {b}% of {a}: {e}",
    "It changes by {e}",
)
PART = (
    "{w} of {a} is {p}",
    "{b}% is {w}, and {w} of {a} is {p}",
    "{w} of {a} is {e}",
    "That is {w}: {e}",
    "{b}% means {w}, so {e}",
)
BARE = ("{e}", "so {e}", "Work out {e}", "First {e}", "{e}")
CHANGES = (
    "so it is {e} now",
    "the new number is {e}",
    "after that it is {e}",
    "which makes {e}",
    "so in the end {e}",
)
SAME = (
    "The second change is {p} again",
    "Then the same {p} once more",
    "{b}% is {p} as before",
    "It is {p} again",
    "Again {p}",
)


@dataclass(frozen=True, slots=True)
class _Written:
    """One line as it stands and as it should be, and the number it leads to."""

    text: str
    right: str
    error: str
    result: int


def _share(context: Context, render: Render, a: int, b: int, unit: str, wrong: bool) -> _Written:
    """What `b` percent of `a` are; `unit` is a dollar sign or nothing."""
    rng = context.rng
    p = a * b // 100
    divisor, word = PARTS.get(b, (0, ""))
    chains = [f"{a}*{b}/100={p}", f"{b}/100*{a}={p}", f"{b / 100:g}*{a}={p}"]
    if divisor and rng.random() < 0.6:
        pool, chains = (PART, BARE)[rng.random() < 0.3], [f"{a}/{divisor}={p}"]
    else:
        pool = (SHARES, BARE)[rng.random() < 0.3]
    frame, right = context.frame(pool), rng.choice(chains)
    shown, error = right, "none"
    others = [part for part in PARTS.values() if part[0] != divisor and not a % part[0]]
    said = word
    if wrong and divisor and pool is not SHARES and others and rng.random() < 0.3:
        other, said = rng.choice(others)  # another part than the percent say
        shown, error = f"{a}/{other}={a // other}", "misread"
    elif wrong:
        change = near_miss(rng, right)
        shown, error = change or (right, "none")

    def written(chain: str, part: str) -> str:
        result = chain.rpartition("=")[2]
        return frame.format(a=f"{unit}{a}", b=b, p=unit + result, w=part, e=render(chain))

    text = written(shown, said)
    if "{e}" not in frame and shown != right and text == written(right, word):
        return _Written(text, text, "none", p)
    return _Written(text, written(right, word), error, int(shown.rpartition("=")[2]))


def _change(context: Context, render: Render, a: int, p: int, up: bool, wrong: bool) -> _Written:
    """`a` and the share put together, or the other way round."""
    rng = context.rng
    frame = context.frame(CHANGES if rng.random() < 0.7 else BARE)
    right = f"{a}+{p}={a + p}" if up else f"{a}-{p}={a - p}"
    shown, error = right, "none"
    if wrong and 0 < p < a and rng.random() < 0.3:
        shown, error = (f"{a}-{p}={a - p}", "sign") if up else (f"{a}+{p}={a + p}", "sign")
    elif wrong:
        shown, error = near_miss(rng, right) or (right, "none")
    text, good = (frame.format(e=render(chain)) for chain in (shown, right))
    return _Written(text, good, error, int(shown.rpartition("=")[2]))


def _line(text: str, right: str, error: str) -> Line:
    text, right = text[0].upper() + text[1:], right[0].upper() + right[1:]
    good = error == "none"
    return Line(text, good, error, -1 if good else slip_at(text, text, right))


def solution(context: Context, error_chance: float) -> Solution:
    """One or two changes by some percent; each line goes wrong with `error_chance`."""
    rng = context.rng
    percents = [rng.choice(PERCENTS)]
    if rng.random() < 0.4:
        percents.append(rng.choice((percents[0], rng.choice(PERCENTS))))
    ups = [rng.random() < 0.5 for _ in percents]
    unit = 100 // gcd(100, percents[0])
    a = unit * rng.randint(1, max(4, 300 // unit))
    said = [
        f"{rng.choice(RISE if up else CUT)} by {b}%" for up, b in zip(ups, percents, strict=True)
    ]
    problem = context.frame(PROBLEMS).format(
        a=a, c=rng.choice((" and then ", ", then ")).join(said), N=rng.choice(NAMES),
        T=rng.choice(THINGS),
    )  # fmt: skip
    paid = "$" in problem
    math = make_style(context, numeric=True).math
    render, dollar = (money(context, math), rng.choice(("", "$"))) if paid else (math, "")
    lines: list[Line] = []
    before = 0
    for b, up in zip(percents, ups, strict=True):
        if a <= 0 or a * b % 100:
            break
        if before and b == percents[0] and a * b // 100 != before and rng.random() < error_chance:
            # The second change taken of the first number.
            text = context.frame(SAME).format(p=f"{dollar}{before}", b=b)
            lines.append(_line(text, text, "misread"))
            share = _Written("", "", "none", before)
        else:
            share = _share(context, render, a, b, dollar, rng.random() < error_chance)
        change = _change(context, render, a, share.result, up, rng.random() < error_chance)
        errors = [w.error for w in (share, change) if w.error != "none"]
        if share.text and rng.random() < 0.4 and len(errors) < 2:
            joint = rng.choice((", ", ", ", "; "))
            text = f"{share.text}{joint}{change.text}"
            right = f"{share.right}{joint}{change.text}" if share.error != "none" else (
                f"{share.text}{joint}{change.right}"
            )  # fmt: skip
            lines.append(_line(text, right, errors[0] if errors else "none"))
        else:
            if share.text:
                lines.append(_line(share.text, share.right, share.error))
            lines.append(_line(change.text, change.right, change.error))
        before, a = share.result, change.result
    return Solution(problem, tuple(lines), "percent")

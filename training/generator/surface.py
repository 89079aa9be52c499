"""Surface forms: how one canonical formula looks on different people's paper.

In: canonical ASCII mathematics from `algebra`. Out: the same formula with spaces or not,
another multiplication or division sign, LaTeX, a unicode minus, another letter. Rendering
never changes the value. Imports `algebra` and `records` only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .algebra import tokens
from .records import Context

LETTERS = "xxxxxxxxyyyyyyzabcmnptkwhrs"
_FRACTION = re.compile(r"(\d+(?:\.\d+)?[a-z]?|[a-z]|\([^()]*\))/(\d+(?:\.\d+)?)(?![\d(a-z])")


@dataclass(frozen=True, slots=True)
class Style:
    """One writer's habits. `letters` maps canonical x and y to what is written."""

    spaced: str  # "all", "none" or "equals"
    times: str
    divide: str
    minus: str
    latex: bool
    wrap: tuple[str, str]
    letters: dict[str, str]
    commas: bool = False
    wide_slash: bool = False

    def math(self, text: str) -> str:
        """Render a canonical formula, chained or not."""
        body = _latex_fractions(text) if self.latex else text
        return self.wrap[0] + self._join(body) + self.wrap[1]

    def number(self, text: str) -> str:
        """Render a number inside words: the minus sign follows the style."""
        return text.replace("-", self.minus)

    def _join(self, text: str) -> str:
        out: list[str] = []
        before = ""
        pieces = re.findall(r"\\frac\{[^{}]*\}\{[^{}]*\}|\d+\.\d+|\.\d+|\d+|.", text)
        for piece in pieces:
            out.append(self._piece(piece, before, "".join(out)))
            before = piece
        return "".join(out).strip()

    def _piece(self, piece: str, before: str, so_far: str) -> str:
        if piece.startswith("\\frac"):
            inner = re.findall(r"\{([^{}]*)\}", piece)
            top, bottom = (self._join(part) for part in inner)
            return f"\\frac{{{top}}}{{{bottom}}}"
        if piece == "=":
            return "=" if self.spaced == "none" else " = "
        binary = before != "" and before not in "=+-*/("
        if piece in "+-" and binary:
            sign = self.minus if piece == "-" else "+"
            return f" {sign} " if self.spaced == "all" else sign
        if piece == "-":
            return self.minus
        if piece == "*":
            return f" {self.times} " if self.spaced == "all" or self.times == "x" else self._tight()
        if piece == "/":
            wide = self.spaced == "all" and (self.wide_slash or self.divide != "/")
            return f" {self.divide} " if wide else self.divide
        if piece.isalpha():
            return self.letters.get(piece, piece)
        if self.commas and piece.isdigit() and len(piece) > 3 and before != ".":
            return f"{int(piece):,}"
        return piece

    def _tight(self) -> str:
        return self.times + " " if self.times.startswith("\\") else self.times


def _latex_fractions(text: str) -> str:
    def swap(match: re.Match[str]) -> str:
        top = match[1]
        if top.startswith("("):
            top = top[1:-1]
        return f"\\frac{{{top}}}{{{match[2]}}}"

    # After "^" or a closing bracket the match would cut an operand in two.
    return re.sub(r"(?<![\d.)/*^a-z])" + _FRACTION.pattern, swap, text)


def letters_of(text: str) -> set[str]:
    """Letters that occur in a canonical formula."""
    return {t for t in tokens(text.replace("=", "")) if t.isalpha()}


def make_style(context: Context, numeric: bool = False) -> Style:
    """Draw one writer's habits; `numeric` allows the letter x as a multiplication sign."""
    rng = context.rng
    latex = rng.random() < 0.13
    if latex:
        wrap = rng.choice([("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("", "")])
        times, divide = rng.choice(["\\times", "\\cdot", "\\times", "*"]), "/"
        if numeric and rng.random() < 0.3:
            divide = "\\div"
    else:
        wrap = ("", "")
        times = rng.choice(["*", "*", "×", "×", "·", "x" if numeric else "*"])
        divide = "÷" if rng.random() < (0.3 if numeric else 0.1) else "/"
    first = rng.choice(LETTERS)
    second = rng.choice([c for c in "yzbnqtvy" if c != first])
    if rng.random() < 0.03:
        first, second = first.upper(), second.upper()
    return Style(
        spaced=rng.choice(["all", "all", "none", "none", "equals"]),
        times=times,
        divide=divide,
        minus="−" if not latex and rng.random() < 0.1 else "-",
        latex=latex,
        wrap=wrap,
        letters={"x": first, "y": second},
        commas=rng.random() < 0.15,
        # A slash with spaces is for training only, so that what is measured stays the same.
        wide_slash=context.loose > 0 and rng.random() < 0.4,
    )

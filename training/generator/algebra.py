"""Exact algebra on canonical text: parse, evaluate, compare. Fractions only, no floats.

In: ASCII mathematics such as ``3(x-2)/4=-5`` (implicit products allowed). Out: polynomials
with Fraction coefficients, and yes/no answers about equations. Every label of the
synthetic data comes from here. Imports the standard library only.
"""

from __future__ import annotations

import re
from fractions import Fraction

Poly = dict[str, Fraction]  # monomial as sorted letters ("" is the constant) -> coefficient

_TOKEN = re.compile(r"\d+\.\d+|\.\d+|\d+|[A-Za-z]|[-+*/^()=]")


class AlgebraError(ValueError):
    """The text is not a polynomial expression or equation this module can read exactly."""


def tokens(text: str) -> list[str]:
    """Split canonical text into numbers, single letters and operator characters."""
    found = _TOKEN.findall(text)
    if "".join(found) != text.replace(" ", ""):
        raise AlgebraError(f"cannot read {text!r}")
    return found


def _add(a: Poly, b: Poly, sign: int = 1) -> Poly:
    out = dict(a)
    for mono, coefficient in b.items():
        out[mono] = out.get(mono, Fraction(0)) + sign * coefficient
    return {m: c for m, c in out.items() if c}


def _mul(a: Poly, b: Poly) -> Poly:
    out: Poly = {}
    for m1, c1 in a.items():
        for m2, c2 in b.items():
            mono = "".join(sorted(m1 + m2))
            out[mono] = out.get(mono, Fraction(0)) + c1 * c2
    return {m: c for m, c in out.items() if c}


class _Parser:
    """Recursive descent; a product, implicit or written, binds left to right with division."""

    def __init__(self, toks: list[str]) -> None:
        self.toks = toks
        self.i = 0

    def peek(self) -> str:
        return self.toks[self.i] if self.i < len(self.toks) else ""

    def take(self) -> str:
        tok = self.peek()
        self.i += 1
        return tok

    def sum(self) -> Poly:
        out = self.product()
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            out = _add(out, self.product(), sign)
        return out

    def product(self) -> Poly:
        out = self.signed()
        while True:
            tok = self.peek()
            if tok == "*":
                self.take()
                out = _mul(out, self.signed())
            elif tok == "/":
                self.take()
                divisor = self.signed()
                if set(divisor) != {""}:
                    raise AlgebraError("division by zero or by a variable")
                out = {m: c / divisor[""] for m, c in out.items()}
            elif tok == "(" or (tok and tok[0].isalnum()) or (tok and tok[0] == "."):
                out = _mul(out, self.power())
            else:
                return out

    def signed(self) -> Poly:
        if self.peek() == "-":
            self.take()
            return _mul({"": Fraction(-1)}, self.signed())
        if self.peek() == "+":
            self.take()
            return self.signed()
        return self.power()

    def power(self) -> Poly:
        base = self.atom()
        if self.peek() == "^":
            self.take()
            exponent = self.take()
            if not exponent.isdigit() or int(exponent) > 6:
                raise AlgebraError("only small whole powers")
            out: Poly = {"": Fraction(1)}
            for _ in range(int(exponent)):
                out = _mul(out, base)
            return out
        return base

    def atom(self) -> Poly:
        tok = self.take()
        if tok == "(":
            inner = self.sum()
            if self.take() != ")":
                raise AlgebraError("unbalanced bracket")
            return inner
        if tok and (tok[0].isdigit() or tok[0] == "."):
            value = Fraction(tok)
            return {"": value} if value else {}
        if tok.isalpha() and len(tok) == 1:
            return {tok.lower(): Fraction(1)}
        raise AlgebraError(f"unexpected {tok!r}")


def parse(text: str) -> Poly:
    """Return the polynomial that `text` denotes, exactly; raises AlgebraError."""
    parser = _Parser(tokens(text))
    out = parser.sum()
    if parser.i != len(parser.toks):
        raise AlgebraError(f"trailing text in {text!r}")
    return out


def value(text: str) -> Fraction:
    """Return the exact value of a numeric expression; raises AlgebraError if it has a letter."""
    poly = parse(text)
    if set(poly) - {""}:
        raise AlgebraError(f"not a number: {text!r}")
    return poly.get("", Fraction(0))


def difference(equation: str) -> Poly:
    """Return left side minus right side of ``left=right``."""
    sides = equation.split("=")
    if len(sides) != 2:
        raise AlgebraError(f"not one equation: {equation!r}")
    return _add(parse(sides[0]), parse(sides[1]), -1)


def proportional(a: Poly, b: Poly) -> bool:
    """Whether a = c*b for some nonzero number c (so a = 0 and b = 0 say the same)."""
    if not a or not b:
        return a == b
    if set(a) != set(b):
        return False
    mono = next(iter(a))
    ratio = a[mono] / b[mono]
    return all(a[m] == ratio * b[m] for m in a)


def equivalent(first: str, second: str) -> bool:
    """Whether two equations say the same, up to a nonzero factor."""
    return proportional(difference(first), difference(second))


def true_chain(text: str) -> bool:
    """Whether every part of a numeric ``a=b=c`` has the same exact value."""
    parts = [value(part) for part in text.split("=")]
    return len(parts) > 1 and all(part == parts[0] for part in parts)


def terminates(number: Fraction, places: int = 4) -> bool:
    """Whether the decimal expansion ends within `places` digits."""
    return (number * 10**places).denominator == 1


def decimal(number: Fraction) -> str:
    """Write a terminating fraction as a decimal, without trailing zeros."""
    if number.denominator == 1:
        return str(number.numerator)
    sign = "-" if number < 0 else ""
    scaled = abs(number) * 10**8
    if scaled.denominator != 1:
        raise AlgebraError(f"{number} does not terminate")
    digits = str(scaled.numerator).rjust(9, "0")
    return f"{sign}{digits[:-8]}.{digits[-8:].rstrip('0')}"


def show(number: Fraction, as_decimal: bool = False) -> str:
    """Write a number in canonical text: whole, decimal where asked and exact, else p/q."""
    if number.denominator == 1:
        return str(number.numerator)
    if as_decimal and terminates(number):
        return decimal(number)
    return f"{number.numerator}/{number.denominator}"

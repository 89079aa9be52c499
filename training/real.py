"""Real worked lines, read from the data folder and split by problem.

In: the folder with ``cogtutorbugs_dev.jsonl.gz`` and ``gsm8k_model_solutions.jsonl.gz``.
Out: `Solution`s for one split. Tutor moves keep the labels of their source; a GSM8K line is
good when all its ``<<a=b>>`` annotations hold exactly, and its wrong twin has one digit of a
displayed formula changed so that the formula is false. Imports the generator only.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from .generator.algebra import AlgebraError, true_chain
from .generator.arithmetic import chain
from .generator.records import Context, Line, Solution, Split, slip_at
from .generator.surface import make_style

_ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
_SHOWN = re.compile(r"([\d.,$%()+\-*/×÷x ]*\d[\d.,$%()+\-*/×÷x ]*=\s*\$?)$")


def read(path: Path) -> Iterator[dict]:  # type: ignore[type-arg]
    """Records of one .jsonl.gz file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def side_of(problem: str, heldout_tenths: int) -> Split:
    """The split a problem belongs to, by its text: the same problem never crosses."""
    bucket = int(hashlib.sha256(problem.encode()).hexdigest(), 16) % 10
    return "heldout" if bucket < heldout_tenths else "train"


def tutor_moves(data: Path, split: Split) -> list[Solution]:
    """CogTutorBugs moves; 30% of the problems are held out, whatever their letter."""
    out = []
    for record in read(data / "cogtutorbugs_dev.jsonl.gz"):
        equation = record["problem"].split(":")[1].strip()
        if side_of(re.sub("[a-zA-Z]", "x", equation), 3) != split:
            continue
        good = record["label"] == -1
        line = Line(record["steps"][0], good, "none" if good else "slip")
        out.append(Solution(record["problem"], (line,), record["source"]))
    return out


@dataclass(frozen=True, slots=True)
class Sentence:
    """One GSM8K line: text without annotations, where its last formula stands, its truth."""

    text: str
    start: int
    end: int
    formula: str  # canonical text of text[start:end], "" where it cannot be read
    good: bool


def canonical(shown: str) -> str:
    """Displayed arithmetic as canonical text."""
    out = re.sub(r"[$,\s]", "", shown).replace("×", "*").replace("x", "*").replace("÷", "/")
    return re.sub(r"(\d+(?:\.\d+)?)%", r"(\1/100)", out)


def sentence(raw: str) -> Sentence | None:
    """Read one annotated line; None where it holds no annotation."""
    found = list(_ANNOTATION.finditer(raw))
    if not found:
        return None
    try:
        good = all(true_chain(f"{canonical(m[1])}={canonical(m[2])}") for m in found)
    except AlgebraError:
        return None
    last = found[-1]
    before = _ANNOTATION.sub("", raw[: last.start()])
    after = _ANNOTATION.sub("", raw[last.end() :])
    text = before + after
    shown = _SHOWN.search(before)
    result = re.match(r"-?\$?[\d,]*\.?\d+", after)
    if not result:
        return Sentence(text, 0, 0, "", good)
    result_only = Sentence(text, len(before), len(before) + result.end(), "", good)
    if not shown:
        return result_only
    lead = len(shown[0]) - len(shown[0].lstrip(" ,.)x%*/+"))
    start, end = shown.start() + lead, len(before) + result.end()
    formula = canonical(text[start:end])
    try:
        holds = true_chain(formula)
    except AlgebraError:
        return result_only
    # Rounded or abridged results disagree with the annotation: such lines carry no label.
    return Sentence(text, start, end, formula, good) if holds == good else None


def change_digit(rng: Random, line: Sentence) -> str | None:
    """The line with one digit of its formula changed so that the formula is false."""
    # With units inside ("7 boxes * 3") only the result is known to be a number of the formula.
    spots = [i for i in range(line.start, line.end) if line.text[i].isdigit()]
    for _ in range(8):
        i = rng.choice(spots)
        new = rng.choice([d for d in "0123456789" if d != line.text[i]])
        text = line.text[:i] + new + line.text[i + 1 :]
        shown = text[line.start : line.end]
        if re.search(r"(?<![\d.,])0\d", shown):
            continue
        if not line.formula:
            return text
        try:
            if not true_chain(canonical(shown)):
                return text
        except AlgebraError:
            continue
    return None


def gsm8k(data: Path, split: Split) -> list[tuple[str, list[Sentence | str]]]:
    """GSM8K model solutions; half of the problems are held out."""
    out = []
    for record in read(data / "gsm8k_model_solutions.jsonl.gz"):
        if side_of(record["problem"], 5) != split:
            continue
        steps = [s.replace("\n", " ").strip() for s in record["steps"]]
        lines = [sentence(s) or _ANNOTATION.sub("", s) for s in steps]
        out.append((record["problem"].replace("\n", " "), lines))
    return out


class RealMixture:
    """Draws training solutions from the real lines, with fresh letters and numbers."""

    def __init__(self, data: Path) -> None:
        self.tutor = tutor_moves(data, "train")
        self.gsm = gsm8k(data, "train")

    def draw_tutor(self, rng: Random) -> Solution:
        """One real move, the letter renamed and the sides exchanged now and then."""
        move = rng.choice(self.tutor)
        letter = rng.choice("xxxyyyabnktm")
        problem, text = move.problem, move.lines[0].text
        head, equation = problem.split(":", 1)
        equation = equation.strip()
        if rng.random() < 0.3 and equation.count("=") == 1 and text.count("=") == 1:
            equation, text = ("=".join(reversed(t.split("="))) for t in (equation, text))
        old = head[-1]
        equation, text = (t.replace(old, letter) for t in (equation, text))
        if rng.random() < 0.15:
            equation, text = (t.replace("=", " = ") for t in (equation, text))
        line = Line(text, move.lines[0].good, move.lines[0].error)
        return Solution(f"Solve for {letter}: {equation}", (line,), "real/tutor")

    def draw_gsm(self, rng: Random) -> Solution:
        """One real solution with true and broken lines, numbers often drawn afresh."""
        problem, lines = rng.choice(self.gsm)
        fresh = rng.random() < 0.6
        context = Context(rng)
        style = make_style(context, numeric=True)
        out: list[Line] = []
        for item in lines:
            if isinstance(item, str):
                if not fresh:
                    out.append(Line(item, None))
                continue
            if fresh and item.formula:
                shown = style.math(chain(context))
                text = item.text[: item.start] + shown + item.text[item.end :]
                at = len(shown)
                item = Sentence(
                    text, item.start, item.start + at, "x" if not style.latex else "", True
                )
            elif fresh:
                continue
            if item.good and item.end and rng.random() < 0.45:
                text = change_digit(rng, item)
                if text:
                    out.append(
                        Line(
                            text,
                            False,
                            "slip",
                            max(slip_at(text, text, item.text), text.rfind("=") + 1),
                        )
                    )
                    continue
            out.append(Line(item.text, item.good, "none" if item.good else "slip"))
        if not any(line.good is not None for line in out):
            return self.draw_gsm(rng)
        # The whole story is long and rarely decides a line's arithmetic.
        if fresh or rng.random() < 0.7:
            problem = re.split(r"(?<=[.!])\s+", problem)[-1]
        return Solution(problem, tuple(out), "real/gsm8k")

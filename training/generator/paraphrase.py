"""Other words around the same formula, so that a model learns to read past them.

In: a wording with its slots. Out: the same slots with other words between, mostly nonsense; in
their order, but that the formula of a line may come before or after what was done for it. Only for
pools whose words decide nothing: the label of such a line comes from its formulas alone. A model
trained on a few hundred fixed wordings flags a true line in words it has not seen; held-out
wordings are what measures that. Imports the standard library only.
"""

from __future__ import annotations

import re
from random import Random

# No word here names an operation, a number or a unit: those mean something in other lines.
_TEXT = """
    so then now next thus hence therefore here there this that these those it we I you they one us
    my our your his her their who which what when where how why because since as if while after
    before again also still just only even very quite well okay right good sure indeed finally
    first second last later soon already always never often maybe perhaps clearly simply easily
    exactly nearly really actually
    get gets got give gives gave make makes made have has had see sees saw find finds found know
    knows need needs want wants write writes wrote read reads take takes took put puts bring brings
    leave leaves left keep keeps move moves moved show shows shown say says said tell tells use uses
    used try tries work works worked look looks become becomes turn turns equal equals mean means
    follow follows obtain obtains reach reaches solve solves solved check checks checked simplify
    simplifies collect collects rearrange rearranges remember notice note recall let start starts
    begin begins end ends finish finishes continue go goes come comes think thought do does did
    done is are was were be been can could may might will would should must shall
    equation line step side sides answer result value term terms letter unknown variable number
    numbers expression formula bracket brackets parenthesis left-hand right-hand top bottom part
    parts whole rest thing things way method rule idea problem question solution working page
    exercise task example case point place row class teacher pupil book paper
    on in at to from by with of for into over under about through across between against within
    without out up down off away back both each every all some any same other another such
    the a an and or but yet
    new old big small long short easy hard simple final true clear plain nice correct next-door
    shop box day week morning money price friend child family market garden school bus trip game
"""
WORDS = tuple(_TEXT.split())
# Beside these the formula {m} may stand anywhere: the amount moved, what is put in, the letter.
_LOOSE_SLOTS = {"{m}", "{n}", "{s}", "{v}", "{a}"}
# Of a slot the phrases that may stand for it, words of their own and all.
Kept = dict[str, tuple[str, ...]]
_PIECE = re.compile(r"\{\w+\}|[^\W\d_]+(?:'\w+)?")
_ENDS = ("", "", "", ".", ".", "!", " ok", "...")
_JOINTS = (": ", ", ", "; ", " → ", " => ", ". ")
_SYLLABLES = ("ba", "con", "der", "el", "fi", "gra", "lo", "mi", "no", "per", "qui", "ra", "sto",
              "tu", "ven", "wick", "ing", "ly", "ed", "s")  # fmt: skip


def _word(rng: Random) -> str:
    if rng.random() < 0.12:  # one that nobody has seen
        return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3)))
    return rng.choice(WORDS)


def _words(rng: Random, most: int) -> str:
    return " ".join(_word(rng) for _ in range(rng.randint(0, most)))


def _exchange(rng: Random, wording: str) -> str:
    """Other words in the places of some of the words."""
    rate = rng.choice((0.3, 0.6, 1.0))

    def swap(match: re.Match[str]) -> str:
        old = match[0]
        if old[0] == "{" or rng.random() >= rate:
            return old
        new = _word(rng)
        return new.capitalize() if old[0].isupper() else new

    return _PIECE.sub(swap, wording)


def _thin(rng: Random, wording: str) -> str:
    """Some words left out, some doubled by another."""

    def change(match: re.Match[str]) -> str:
        roll = rng.random()
        if match[0][0] == "{" or roll < 0.55:
            return match[0]
        return "" if roll < 0.8 else f"{match[0]} {_word(rng)}"

    return re.sub(r" {2,}", " ", _PIECE.sub(change, wording)).strip()


def _afresh(rng: Random, wording: str) -> str:
    """The slots alone, in a sentence of other words."""
    slots = re.findall(r"\{\w+\}", wording)
    if "{m}" in slots and set(slots) <= _LOOSE_SLOTS and rng.random() < 0.5:
        slots.remove("{m}")
        slots.insert(rng.randint(0, len(slots)), "{m}")
    text = _words(rng, rng.choice((0, 2, 5)))
    for slot in slots:
        inner = f" {_word(rng)} {_words(rng, 2)}".rstrip() + " "
        joint = rng.choice(_JOINTS) if rng.random() < 0.5 else inner
        text = (text + joint if text else "") + slot
    tail = _words(rng, rng.choice((0, 0, 3)))
    text += (rng.choice((", ", " ")) + tail if tail else "") + rng.choice(_ENDS)
    return text[:1].upper() + text[1:] if rng.random() < 0.6 else text


def _dress(rng: Random, wording: str) -> str:
    """The same words, otherwise written."""
    lone = wording.rstrip(".")
    roll = rng.random()
    if roll < 0.4:
        return _PIECE.sub(lambda m: m[0] if m[0][0] == "{" else m[0].lower(), lone)
    if roll < 0.5:
        return _PIECE.sub(lambda m: m[0] if m[0][0] == "{" else m[0].upper(), lone)
    return f"{_word(rng).capitalize()}{rng.choice((' ', ', ', ': '))}{lone}{rng.choice(_ENDS)}"


def paraphrase(rng: Random, wording: str) -> str:
    """Put the slots of `wording` into other words; every slot stays, and only {m} may move."""
    change = rng.choices((_exchange, _thin, _afresh, _dress), (35, 15, 35, 15))[0]
    out = change(rng, wording)
    # A slot must not grow together with its neighbour.
    return out if not re.search(r"\}\{|\w\{|\}\w", out) else wording


def around(rng: Random, wording: str, kept: Kept) -> str:
    """Put `wording` into other words, but for the phrases of each slot in `kept`.

    A phrase with words of its own, such as ``{0} metres``, stays as it is.
    """
    found: dict[str, str] = {}
    for slot, phrases in kept.items():
        for phrase in sorted(phrases, key=len, reverse=True):
            whole = rf"(?<![\w{{]){re.escape(phrase)}(?![\w}}])"
            wording, number = re.subn(whole, slot, wording, count=1)
            if number:
                found[slot] = phrase
                break
    out = paraphrase(rng, wording)
    for slot, phrase in found.items():
        out = out.replace(slot, phrase)
    return out

"""Lay a record out as a recipe says: what is encoded as one string, and where steps are read.

In: a recipe, text, and later what the tokenizer made of it. Out: runs of text and of ids, and read
positions within them. Imports no tokenizer: :mod:`encoding` turns the runs into ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from .errors import InputError
from .recipe import Part, Recipe, Slot, Tag, Tokens

NOTHING_TO_READ: Final = (
    "a step has no token at which its score could be read; write something in it, or leave it out"
)

Run = str | tuple[int, ...]  # text still to be encoded as one string, or ids that stand as they are
# A part, the text it stands for, and whether it opens a section (prompt, step, what is between).
Filled = tuple[Part, str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A record laid out: ``runs``, and where each step is read.

    ``reads``: (index of a run of ids, offset in it). ``tags``: (index of a run of text, character
    after the tag's last). ``slots``: (index of the run that a step's text ends, the slot's read).
    ``prompt_end``: (index of a run, character after the prompt's last in it).
    """

    runs: list[Run]
    reads: list[tuple[int, int]]
    tags: list[tuple[int, int]]
    slots: list[tuple[int, int]]
    prompt_end: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A recipe's parts, cut where a record can be cut: see ``RecipeEncoder.encode_step``."""

    opening: tuple[Part, ...]  # the prompt, up to what joins the first step
    joined: tuple[Part, ...]  # the rest of the prompt
    to_read: tuple[Part, ...]  # of a step, up to its read position
    after_read: tuple[Part, ...]  # of a step, from there on
    incremental: bool

    @classmethod
    def of(cls, recipe: Recipe) -> Pieces:
        for at, part in enumerate(recipe.step):
            if isinstance(part, Tokens) and part.read is not None:
                cut = part.read % len(part.ids) + 1
                to_read = (*recipe.step[:at], Tokens(ids=part.ids[:cut], text=""))
                rest = (Tokens(ids=part.ids[cut:], text=""),) if part.ids[cut:] else ()
                after_read = (*rest, *recipe.step[at + 1 :])
                break
            if isinstance(part, Slot) and part.read == -1:
                to_read, after_read = recipe.step[: at + 1], recipe.step[at + 1 :]
                break
        else:  # at a tag, whose text may join with any other, or before a step's end: no cut
            return cls(
                opening=(), joined=recipe.prompt, to_read=(), after_read=(), incremental=False
            )
        cut = len(recipe.prompt)
        if recipe.encode in ("joint", "trimmed") and not isinstance(to_read[0], Tokens):
            while cut and not isinstance(recipe.prompt[cut - 1], Tokens):
                cut -= 1
        return cls(
            opening=recipe.prompt[:cut],
            joined=recipe.prompt[cut:],
            to_read=to_read,
            after_read=after_read,
            incremental=not any(isinstance(part, Slot) for part in after_read),
        )


def fill(recipe: Recipe, problem: str, steps: Sequence[str]) -> Iterator[Filled]:
    """The parts of one record, each with its text."""
    yield from section(recipe.prompt, problem)
    for index, step in enumerate(steps):
        if index:
            yield from section(recipe.between, "")
        yield from section(recipe.step, step)


def section(parts: Sequence[Part], slot: str) -> Iterator[Filled]:
    """Parts that open a section, their slot filled."""
    for position, part in enumerate(parts):
        yield part, _text(part, slot), position == 0


def rest(parts: Sequence[Part], slot: str) -> Iterator[Filled]:
    """Parts that go on with a section, their slot filled."""
    for part in parts:
        yield part, _text(part, slot), False


def _text(part: Part, slot: str) -> str:
    if isinstance(part, Slot):
        return slot.strip() if part.strip else slot
    return part.text


def lay_out(recipe: Recipe, filled: Iterable[Filled]) -> Layout:
    """Put what belongs together into runs, and note where each step is to be read."""
    runs: list[Run] = []
    layout = Layout(runs=runs, reads=[], tags=[], slots=[], prompt_end=(0, 0))
    joined = recipe.encode != "separate"
    sections = 0
    for part, text, opens in filled:
        sections += opens
        if opens and sections == 2:
            end = runs[-1] if runs else ""
            layout = replace(layout, prompt_end=(len(runs) - 1, len(end)))
        if isinstance(part, Tokens):
            layout.runs.append(part.ids)
            if part.read is not None:
                layout.reads.append((len(layout.runs) - 1, part.read % len(part.ids)))
            continue
        last = layout.runs[-1] if layout.runs else None
        cut = opens and recipe.encode == "sections"
        if joined and isinstance(last, str) and not cut:
            layout.runs[-1] = last + text
        else:
            layout.runs.append(text)
        if isinstance(part, Tag):
            layout.tags.append((len(layout.runs) - 1, len(layout.runs[-1])))
        if isinstance(part, Slot) and part.read is not None:
            layout.slots.append((len(layout.runs) - 1, part.read))
    if recipe.encode == "trimmed":
        stripped = [run.strip() if isinstance(run, str) else run for run in layout.runs]
        return replace(layout, runs=stripped)
    return layout


def tag_reads(
    tag: Tag | None, layout: Layout, encodings: Mapping[int, Any]
) -> list[tuple[int, int]]:
    """Where each tag's token is: (index of its run, offset in it).

    Raises:
        InputError: when a tag became another token, or the text holds one of its own.
    """
    if tag is None:
        return []
    found: list[tuple[int, int]] = []
    for run, encoding in encodings.items():
        ends = {end for at, end in layout.tags if at == run}
        hits = occurrences(encoding.ids, tag.ids)
        if tag.then and run == layout.prompt_end[0]:
            hits = [k for k in hits if encoding.offsets[k][0] >= layout.prompt_end[1]]
        last = len(tag.then)
        if len(hits) != len(ends) or any(encoding.offsets[k + last][1] not in ends for k in hits):
            raise InputError(
                f"the tag {tag.text!r} after each step is token "
                f"{', '.join(map(str, tag.ids))}, found "
                f"{len(hits)} times where {len(ends)} belong: a step is empty, merges with its "
                "tag or spells one; change or leave out that step"
            )
        found += [(run, k) for k in hits]
    return found


def slot_reads(layout: Layout, pieces: list[Sequence[int]]) -> list[tuple[int, int]]:
    """Where steps are read that are read at their own tokens: (index of a run, offset in it).

    The offset may be negative: then it counts back from the run's start.

    Raises:
        InputError: when a step has no token.
    """
    if any(not pieces[run] for run, _ in layout.slots):
        raise InputError(NOTHING_TO_READ)
    return [(run, len(pieces[run]) + read) for run, read in layout.slots]


def occurrences(ids: Sequence[int], wanted: tuple[int, ...]) -> list[int]:
    """Where ``wanted`` stands in ``ids``, from the left, without overlaps."""
    found: list[int] = []
    for at, token in enumerate(ids):
        if token != wanted[0] or (found and at < found[-1] + len(wanted)):
            continue
        if tuple(ids[at : at + len(wanted)]) == wanted:
            found.append(at)
    return found

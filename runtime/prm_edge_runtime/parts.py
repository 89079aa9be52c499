"""The parts of which a recipe lays a record out: literal text, token ids, a tag, or a slot.

In: decoded JSON. Out: frozen dataclasses whose types are right; what they mean together is for
:mod:`recipe` to check. Imports nothing but the standard library and this package's own modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from .strict import Fields, Problems

SLOTS: Final = ("problem", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Literal text of the template; ``""`` is not allowed."""

    text: str

    def to_dict(self) -> dict[str, Any]:
        return {"text": self.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Literal token ids: special tokens, tags, separators.

    ``text`` is what the ids spell, checked against the tokenizer when the encoder is built.
    ``read`` is the index into ``ids`` (negative counts from the end) at which the score is read.
    """

    ids: tuple[int, ...]
    text: str
    read: int | None = None

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {"tokens": list(self.ids), "spelled": self.text}
        if self.read is not None:
            data["read"] = self.read
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The place of the problem or of one step. Its text never yields an added token.

    ``strip`` removes whitespace at both ends of what fills it. ``read``, of a step: the score is
    read at this token counted from the end of its text, -1 for the last.
    """

    name: str
    strip: bool = False
    read: int | None = None

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {"slot": self.name, **({"strip": True} if self.strip else {})}
        if self.read is not None:
            data["read"] = self.read
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """Literal text, encoded as one string with its neighbours, whose last token must be ``id``.

    The score is read there. A record in which a tag becomes anything else is refused. ``then``:
    tokens of the text after ``id``; such a tag may also stand in the prompt.
    """

    text: str
    id: int
    then: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens that the text must end with."""
        return (self.id, *self.then)

    def to_dict(self) -> dict[str, Any]:
        return {"tag": self.text, "id": self.id, **({"then": list(self.then)} if self.then else {})}


Part = Text | Tokens | Slot | Tag


def _part(data: object, where: str, problems: Problems) -> Part:
    fields = Fields(data, where, problems)
    part: Part
    if fields.has("text"):
        part = Text(text=fields.text("text"))
    elif fields.has("tokens"):
        read = fields.integer("read") if fields.has("read") else None
        ids = fields.list_of("tokens", int, "integers")
        part = Tokens(ids=ids, text=fields.text("spelled"), read=read)
    elif fields.has("slot"):
        read = fields.integer("read") if fields.has("read") else None
        name = fields.choice("slot", SLOTS)
        part = Slot(name=name, strip=fields.boolean("strip", False), read=read)
    elif fields.has("tag"):
        then = fields.list_of("then", int, "integers", [])
        part = Tag(text=fields.text("tag"), id=fields.integer("id", minimum=0), then=then)
    else:
        problems.add(where, "must have one of the keys text, tokens, slot, tag")
        return Text(text="?")
    fields.finish()
    return part


def read_parts(fields: Fields, key: str) -> tuple[Part, ...]:
    """Read the list of parts under ``key``; what is wrong goes to the problems of ``fields``."""
    return tuple(
        _part(item, f"{fields.where}.{key}[{index}]", fields.problems)
        for index, item in enumerate(fields.items(key))
    )

"""Write recipes as TOML that ``--recipe`` reads back.

In: a built-in family, or the recipe of a plan. Out: text. A family is a function of a tokenizer,
so a stand-in is put in its place: what it is asked to spell is what the file spells. Where a
family fills the checkpoint's chat template, the layout is the checkpoint's, and the file is like
that family.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from prm_edge_runtime.errors import ExportError, RecipeError
from prm_edge_runtime.recipe import Recipe, Tag, Tokens

from .families import ASK, Family, Request
from .own_recipe import BOS, LISTS, family_from

DEFAULT_SEPARATOR: Final = "\n"  # PRMTrainer's own
_BOS: Final = "<bos>"
_PIECES: Final = re.compile(r"<[^<>\s]+>| [^\s<]+|[^\s<]+|\s+|<")


def _id(piece: str) -> int:
    """The stand-in's id of a piece: the same whenever it is asked for."""
    return 1000 + zlib.crc32(piece.encode())


class _Added(dict[str, int]):
    """Every token that a family asks for is an added one."""

    def get(self, key: str, default: Any = None) -> Any:
        return self.setdefault(key, _id(key))


class _Files:
    """Stands in for the tokenizer's files."""

    def __init__(self) -> None:
        self.added = _Added()
        self.chat_template = "stand-in"


class _Tokenizer:
    """Stands in for transformers' tokenizer: words are tokens, every turn is its role and text."""

    def __init__(self, bos: bool, adds_bos: bool) -> None:
        self.adds_bos = adds_bos
        self.bos_token = _BOS if bos else None
        self.bos_token_id = 1 if bos else None
        self.pad_token, self.pad_token_id = "<pad>", 2
        self.eos_token, self.eos_token_id = "<eos>", 3
        self.asked_template = False
        self._special = {_BOS: 1, "<pad>": 2, "<eos>": 3}

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        pieces = _PIECES.findall(text)
        if self.adds_bos and options.get("add_special_tokens", True):
            pieces.insert(0, _BOS)
        return {"input_ids": [self.convert_tokens_to_ids(piece) for piece in pieces]}

    def convert_tokens_to_ids(self, token: str) -> int:
        return self._special.get(token) or _id(token)

    def apply_chat_template(self, messages: Iterable[Mapping[str, str]], **options: Any) -> str:
        self.asked_template = True
        return "".join(f"<{m['role']}>\n\n{m['content']}<end>" for m in messages)


# a tokenizer may have a BOS token and put it before every text, only have it, or have none
_VARIANTS: Final = ((True, True), (True, False), (False, False))


def _request(family: Family, bos: bool, adds_bos: bool) -> Request:
    separator = DEFAULT_SEPARATOR if family.separator == ASK else family.separator
    return Request(
        files=_Files(),  # type: ignore[arg-type]  # the part of it that families use
        tokenizer=_Tokenizer(bos, adds_bos),
        separator=separator,
        good=1 if family.good is None else family.good,
    )


def family_data(family: Family) -> dict[str, Any]:
    """A built-in family as the data of a recipe file."""
    like: dict[str, Any] = {"like": family.name, "title": family.title}
    request = _request(family, *_VARIANTS[0])
    recipe = _built(family, request)
    if recipe is None:
        return like  # it asks more of a tokenizer than a stand-in has
    like |= _rest(recipe)
    if request.tokenizer.asked_template or getattr(family, "max_tokens", None):
        return like
    for word in BOS:
        data = {
            **_head(family),
            "encode": recipe.encode,
            **{key: [_part(part, word) for part in getattr(recipe, key)] for key in LISTS},
            "logits": recipe.logits,
            **_rest(recipe),
        }
        if _says(data, family):
            return data
    return like  # something of it has no spelling


def _built(family: Family, request: Request) -> Recipe | None:
    try:
        return family.build(request)
    except (ExportError, RecipeError):
        return None


def _says(data: dict[str, Any], family: Family) -> bool:
    """Whether a file of this data is the family, whatever tokenizer it meets."""
    try:
        own = family_from(data, "recipe")
    except RecipeError:
        return False
    return all(
        _built(own, _request(family, *variant)) == _built(family, _request(family, *variant))
        for variant in _VARIANTS
    )


def recipe_data(recipe: Recipe, family: Family) -> dict[str, Any]:
    """A recipe that a plan has settled, with its ids, as the data of a recipe file."""
    written = recipe.to_dict()
    layout = {key: written[key] for key in ("encode", *LISTS, "logits")}
    return {**_head(family), **layout, **_rest(recipe)}


def _head(family: Family) -> dict[str, Any]:
    data: dict[str, Any] = {"family": family.name, "title": family.title}
    if family.model_types:
        data["model_types"] = list(family.model_types)
    if family.verdicts:
        return {**data, "rows": list(family.verdicts)}
    return {**data, "heads": list(family.heads)}


def _rest(recipe: Recipe) -> dict[str, Any]:
    return {
        "split": recipe.split.to_dict(),
        "score": recipe.score.to_dict(),
        "aggregates": list(recipe.aggregates),
        "aggregate": recipe.aggregate,
        "label_meaning": recipe.label_meaning,
    }


def _part(part: Any, bos: str) -> dict[str, Any]:
    if isinstance(part, Tag):
        return {"tag": part.text}
    if not isinstance(part, Tokens):
        written: dict[str, Any] = part.to_dict()
        return written
    if part.text == _BOS:
        return {"bos": bos}
    return {"spelled": part.text, **({} if part.read is None else {"read": part.read})}


def to_toml(data: Mapping[str, Any], comments: Iterable[str] = ()) -> str:
    """TOML of a recipe file's data: one key a line, one part a line."""
    lines = [*(f"# {comment}" for comment in comments), ""]
    for key, value in data.items():
        if key in LISTS and value:
            parts = "".join(f"  {_value(part)},\n" for part in value)
            lines.append(f"{key} = [\n{parts}]")
        else:
            lines.append(f"{key} = {_value(value)}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        said = (f"{key} = {_value(v)}" for key, v in value.items() if v is not None)  # no null
        return "{ " + ", ".join(said) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    # JSON's strings are TOML's, but for one character that TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

"""Write recipes as TOML that ``--recipe`` reads back.

In: a built-in family, or the recipe of a plan. Out: text. A family is a function of a tokenizer,
so a stand-in is put in its place: what it is asked to spell is what the file spells. Where a
family fills the checkpoint's chat template, the layout is the checkpoint's, and the file is like
that family.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from prm_edge_runtime.errors import ExportError, RecipeError
from prm_edge_runtime.recipe import Recipe, Tag, Tokens

from .families import ASK, Family, Request
from .own_recipe import BOS, LISTS, family_from

DEFAULT_SEPARATOR: Final = "\n"  # PRMTrainer's own
_BOS: Final = "<bos>"
_PIECES: Final = re.compile(r"<[^<>\s]+>| [^\s<]+|[^\s<]+|\s+|<")


class _Added(dict[str, int]):
    """Every token that a family asks for is an added one."""

    def get(self, key: str, default: Any = None) -> Any:
        return self.setdefault(key, 100 + len(self))


class _Files:
    """Stands in for the tokenizer's files."""

    def __init__(self) -> None:
        self.added = _Added()
        self.chat_template = "stand-in"


class _Tokenizer:
    """Stands in for transformers' tokenizer: words are tokens, every turn is its role and text."""

    def __init__(self, bos: bool) -> None:
        self.bos_token = _BOS if bos else None
        self.bos_token_id = 1 if bos else None
        self.pad_token, self.pad_token_id = "<pad>", 2
        self.eos_token, self.eos_token_id = "<eos>", 3
        self.asked_template = False
        self._ids: dict[str, int] = {_BOS: 1, "<pad>": 2, "<eos>": 3}

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        pieces = _PIECES.findall(text)
        return {"input_ids": [self._ids.setdefault(p, 1000 + len(self._ids)) for p in pieces]}

    def convert_tokens_to_ids(self, token: str) -> int:
        return self._ids.setdefault(token, 1000 + len(self._ids))

    def apply_chat_template(self, messages: Iterable[Mapping[str, str]], **options: Any) -> str:
        self.asked_template = True
        return "".join(f"<{m['role']}>\n\n{m['content']}<end>" for m in messages)


def _request(family: Family, bos: bool) -> Request:
    separator = DEFAULT_SEPARATOR if family.separator == ASK else family.separator
    return Request(
        files=_Files(),  # type: ignore[arg-type]  # the part of it that families use
        tokenizer=_Tokenizer(bos),
        separator=separator,
        good=1 if family.good is None else family.good,
    )


def family_data(family: Family) -> dict[str, Any]:
    """A built-in family as the data of a recipe file."""
    like: dict[str, Any] = {"like": family.name, "title": family.title}
    try:
        request = _request(family, bos=True)
        recipe = family.build(request)
    except ExportError:
        return like  # it asks more of a tokenizer than a stand-in has
    like |= _rest(recipe)
    if request.tokenizer.asked_template or getattr(family, "max_tokens", None):
        return like
    try:
        family.build(_request(family, bos=False))
        needed = False
    except ExportError:
        needed = True  # it says that it begins with one
    data = {
        **_head(family),
        "encode": recipe.encode,
        **{key: [_part(part, needed) for part in getattr(recipe, key)] for key in LISTS},
        "logits": recipe.logits,
        **_rest(recipe),
    }
    return data if _says(data, recipe, request) else like


def _says(data: dict[str, Any], recipe: Recipe, request: Request) -> bool:
    """Whether a file of this data is the recipe, so that nothing of it has no spelling."""
    try:
        return family_from(data, "recipe").build(request) == recipe
    except (ExportError, RecipeError):
        return False


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


def _part(part: Any, bos_needed: bool) -> dict[str, Any]:
    if isinstance(part, Tag):
        return {"tag": part.text}
    if not isinstance(part, Tokens):
        written: dict[str, Any] = part.to_dict()
        return written
    if part.text == _BOS:
        return {"bos": BOS[0] if bos_needed else BOS[1]}
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

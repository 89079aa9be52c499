"""Recipes of your own: a TOML file in, a family out. The README documents the schema.

A file either lays out a record itself, with tokens by their spelling (the checkpoint's tokenizer
gives the ids), or is ``like`` a built-in family and changes what does not depend on its layout.
What transformers' tokenizer makes of the same layout is the judge, as for every family.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError, RecipeError
from prm_edge_runtime.recipe import AGGREGATES, SCORE_KINDS, UNIT, Part, Recipe, Slot, Tag, Tokens
from prm_edge_runtime.strict import Fields, Problems

from .families import FAMILIES, Family, Request, encode_plain
from .head_kinds import ROWS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUFFIX: Final = ".toml"
MAX_BYTES: Final = 1024 * 1024
# the tokenizer must have one; it may; the recipe begins with one where the tokenizer adds it
BOS: Final = ("required", "if any", "if added")
LISTS: Final = ("prompt", "between", "step")
# keys of a package's recipe, which a file has too; the rest of its keys are a family's
SHARED: Final = ("family", "encode", "split", "score", "aggregates", "aggregate", "label_meaning")
KINDS: Final = ("text", "slot", "bos", "tag", "spelled", "tokens")
_LIKE: Final = ("split", "score", "aggregates", "aggregate", "label_meaning")

Data = dict[str, Any]
# a symbolic part of a file -> the parts it stands for, with this tokenizer's ids
Resolve = Callable[[Data], Iterator[Data]]


def read_recipe_file(path: Path) -> Family:
    """Read a recipe of your own.

    Raises:
        RecipeError: when it cannot be read, or listing everything that is wrong with it.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path} has more than {MAX_BYTES} bytes; is this a recipe?")
        data = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError(
            f"{path} is missing; `prm-edge recipes NAME > {path.name}` writes one to begin with"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} cannot be read as TOML: {error}") from error
    return family_from(data, path.name)


def family_from(data: Data, where: str) -> Family:
    """The family that a file's data describes; ``where``: what messages call it.

    Raises:
        RecipeError: listing everything that is wrong.
    """
    if isinstance(data.get("split"), dict):
        # TOML has no null: a recipe that cuts nothing leaves it out
        data = {**data, "split": {"separator": None, **data["split"]}}
    return _like(data, where) if "like" in data else _laid_out(data, where)


# --- like a built-in family


def _like(data: Data, where: str) -> Family:
    problems = Problems()
    fields = Fields(data, where, problems)
    name = fields.choice("like", tuple(FAMILIES))
    changes: Data = {key: data[key] for key in _LIKE if key in data}
    base = FAMILIES.get(name) or next(iter(FAMILIES.values()))  # a wrong name is refused below
    changes["family"] = fields.text("family", base.name)
    title = fields.text("title", base.title)
    if fields.has("separator"):
        separator = fields.text("separator")
        if base.separator is None:
            problems.add(f"{where}.separator", f"{base.name} has none to change")
        base = replace(base, separator=separator)
    known = {"like", "family", "title", "separator", *_LIKE}
    for key in sorted(set(data) - known):
        problems.add(where, f"unknown key {key!r}; known keys: {', '.join(sorted(known))}")
    problems.raise_if_any(RecipeError, "recipe cannot be used")
    good = _good(data)
    build = base.build

    def build_changed(request: Request) -> Recipe:
        built = build(request).to_dict()
        return Recipe.from_dict({**built, **changes, **_sane(changes)}, where=where)

    return replace(
        base,
        name=str(changes["family"]),
        title=title,
        detected=False,
        good=base.good if good is None else good,
        build=build_changed,
    )


def _good(data: Data) -> int | None:
    score = data.get("score")
    good = score.get("good") if isinstance(score, dict) else None
    return good if type(good) is int else None


def _sane(data: Data) -> Data:
    """The aggregates that make sense for a score, where the file does not name them."""
    score = data.get("score")
    if not isinstance(score, dict) or "aggregates" in data:
        return {}
    kind = score.get("kind")
    bounds = SCORE_KINDS[kind][1] if kind in SCORE_KINDS else None
    return {
        "aggregates": [n for n, unit in sorted(AGGREGATES.items()) if not unit or bounds == UNIT]
    }


# --- laid out in the file


def _laid_out(data: Data, where: str) -> Family:
    problems = Problems()
    fields = Fields(data, where, problems)
    rows = _rows(fields)
    heads = _heads(fields, rows)
    model_types = fields.list_of("model_types", str, "strings", [])
    title = fields.text("title", fields.text("family", "?"))
    shared = {key: value for key, value in data.items() if key in (*SHARED, *LISTS, "logits")}
    known = {*SHARED, *LISTS, "logits", "heads", "model_types", "rows", "title"}
    for key in sorted(set(data) - known):
        problems.add(where, f"unknown key {key!r}; known keys: {', '.join(sorted(known))}")
    for key in LISTS:
        _check_parts(data.get(key), f"{where}.{key}", problems)
    score = data.get("score")
    kind = score.get("kind") if isinstance(score, dict) else None
    single = SCORE_KINDS[kind][0] == 1 if kind in SCORE_KINDS else False
    shared = {
        "between": [],
        "logits": 1 if single else max(len(rows), 2),
        **_sane(data),
        **shared,
    }
    _collect(shared, where, problems)
    problems.raise_if_any(RecipeError, "recipe cannot be used")

    def build(request: Request) -> Recipe:
        return Recipe.from_dict(_resolved(shared, _with(request)), where=where)

    return Family(
        name=str(data["family"]),
        title=title,
        heads=heads,
        detected=False,
        separator=None,
        build=build,
        reference=own_reference,
        model_types=model_types,
        good=_good(data) or 0,
        verdicts=rows,
    )


def _rows(fields: Fields) -> tuple[str | int, ...]:
    rows = fields.items("rows", [])
    if any(isinstance(row, bool) or not isinstance(row, str | int) for row in rows):
        fields.problems.add(f"{fields.where}.rows", "must hold words or token ids")
        return ()
    return tuple(rows)


def _heads(fields: Fields, rows: tuple[str | int, ...]) -> tuple[str, ...]:
    """The kinds of head that the recipe may have: what the file says, else any."""
    where, problems = f"{fields.where}.heads", fields.problems
    known = tuple(dict.fromkeys(head for f in FAMILIES.values() for head in f.heads))
    heads = fields.list_of("heads", str, "strings", [])
    if unknown := sorted(set(heads) - set(known)):
        problems.add(where, f"unknown {unknown}; known: {', '.join(known)}")
    if rows and not set(heads) <= {ROWS}:
        problems.add(where, f"must be ['{ROWS}'] where rows are given")
    if ROWS in heads and not rows:
        problems.add(f"{fields.where}.rows", "must be given for a head of rows")
    if heads:
        return heads
    return (ROWS,) if rows else tuple(head for head in known if head != ROWS)


def _check_parts(parts: object, where: str, problems: Problems) -> None:
    """Check the symbolic parts, which a package's recipe does not know."""
    for index, part in enumerate(parts if isinstance(parts, list) else ()):
        at = f"{where}[{index}]"
        if not isinstance(part, dict) or not any(kind in part for kind in KINDS):
            problems.add(at, f"must have one of the keys {', '.join(KINDS)}")
        elif "bos" in part:
            fields = Fields(part, at, problems)
            fields.choice("bos", BOS)
            fields.finish()
        elif "spelled" in part and not isinstance(part["spelled"], str):
            problems.add(f"{at}.spelled", "must be a string")


def _collect(shared: Data, where: str, problems: Problems) -> None:
    """Everything that is wrong however the tokenizer spells the symbolic parts."""
    if problems.found:
        return
    try:
        Recipe.from_dict(_resolved(shared, _placeholders), where=where)
    except RecipeError as error:
        problems.add(where, str(error))


def _resolved(shared: Data, resolve: Resolve) -> Data:
    lists = {
        key: [part for symbolic in shared[key] for part in resolve(symbolic)]
        for key in LISTS
        if isinstance(shared.get(key), list)
    }
    return {**shared, **lists}


def _placeholders(part: Data) -> Iterator[Data]:
    """Stand-ins that no tokenizer has been asked for."""
    if "bos" in part:
        yield {"tokens": [0], "spelled": "?"}
    elif "tag" in part:
        yield {"id": 0, **part}
    elif "spelled" in part and "tokens" not in part:
        read = part.get("read", 0)
        count = max(-read, read + 1, 1) if type(read) is int else 1
        yield {"tokens": [0] * count, **part}
    else:
        yield part


def _with(request: Request) -> Resolve:
    """What gives a symbolic part the ids of this tokenizer.

    Raises:
        CheckpointError: when the tokenizer has no such token, or more than one for a tag.
    """
    tokenizer = request.tokenizer

    def resolve(part: Data) -> Iterator[Data]:
        if "bos" in part:
            if part["bos"] == BOS[2] and not _adds_bos(tokenizer):
                return
            if tokenizer.bos_token_id is not None:
                index, text = int(tokenizer.bos_token_id), str(tokenizer.bos_token)
                yield {"tokens": [index], "spelled": text}
            elif part["bos"] == BOS[0]:
                raise CheckpointError(
                    "tokenizer.json has no bos_token, with which this recipe begins; use the "
                    f'tokenizer the model was trained with, or write bos = "{BOS[1]}"'
                )
        elif "tag" in part and "id" not in part:
            yield {**part, "id": _tag_id(tokenizer, part["tag"])}
        elif "spelled" in part and "tokens" not in part:
            ids = encode_plain(tokenizer, part["spelled"])
            if not ids:
                raise CheckpointError(
                    f"tokenizer.json: {part['spelled']!r} of the recipe is no token"
                )
            yield {"tokens": ids, **part}
        else:
            yield part

    return resolve


def _adds_bos(tokenizer: Any) -> bool:
    plain = encode_plain(tokenizer, "x")
    whole = [int(index) for index in tokenizer("x")["input_ids"]]
    if whole not in (plain, [tokenizer.bos_token_id, *plain]):
        raise CheckpointError(
            f"tokenizer.json encodes 'x' as {whole}, so it adds more to a text than a bos_token at "
            "its start, which this recipe does not have; use the tokenizer the model was trained "
            "with"
        )
    return whole != plain


def _tag_id(tokenizer: Any, text: str) -> int:
    before, after = (encode_plain(tokenizer, "x" + end) for end in ("", text))
    if len(after) != len(before) + 1:
        raise CheckpointError(
            f"tokenizer.json: the tag {text!r} is {len(after) - len(before)} tokens "
            f"{after[len(before) :]} and must be one; use the tokenizer the model was trained with"
        )
    return after[-1]


def own_reference(
    tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    """A record laid out by transformers' tokenizer alone."""
    ids: list[int] = []
    reads: list[int] = []
    run = ""
    ends: list[int] = []  # reads counted back from the end of the run that is being gathered
    tag = next((part.id for part in recipe.step if isinstance(part, Tag)), None)

    def flush() -> None:
        nonlocal run
        text = run.strip() if recipe.encode == "trimmed" else run
        found = encode_plain(tokenizer, text) if text else []
        reads.extend(len(ids) + at for at, token in enumerate(found) if token == tag)
        ids.extend(found)
        reads.extend(len(ids) + end for end in ends)
        ends.clear()
        run = ""

    sections: list[tuple[tuple[Part, ...], str]] = [(recipe.prompt, problem)]
    for number, step in enumerate(steps):
        sections += [(recipe.between, "")] * bool(number) + [(recipe.step, step)]
    for parts, slot in sections:
        if recipe.encode == "sections":
            flush()
        for part in parts:
            if isinstance(part, Tokens):
                flush()
                if part.read is not None:
                    reads.append(len(ids) + part.read % len(part.ids))
                ids.extend(part.ids)
                continue
            if recipe.encode == "separate":
                flush()
            if isinstance(part, Slot):
                run += slot.strip() if part.strip else slot
                ends += [read for read in (getattr(part, "read", None),) if read is not None]
            else:
                run += part.text
    flush()
    return ids[: reads[-1] + 1] if reads else ids, reads

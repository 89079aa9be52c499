"""Scoring recipes: how one family of PRMs turns a problem and its steps into scores.

A recipe is data, never code: it is stored in ``prm_edge.json`` and everything that decides a
score besides the weights is in it. The text of one record is laid out as ::

    prompt  step_1  between step_2  between step_3  ...

where ``prompt``, ``between`` and ``step`` are lists of parts: literal text, token ids, a tag, or a
slot that the problem or the step fills. Exactly one part of ``step`` says where the score is read.
Imports nothing but the standard library and this package's own modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from .errors import RecipeError
from .parts import SLOTS, Part, Slot, Tag, Text, Tokens, read_parts
from .strict import Fields, Problems

__all__ = [
    "AGGREGATES",
    "ENCODINGS",
    "LABEL_MEANINGS",
    "MAX_LOGITS",
    "SCORE_KINDS",
    "SLOTS",
    "UNIT",
    "Part",
    "Recipe",
    "Score",
    "Slot",
    "Split",
    "Tag",
    "Text",
    "Tokens",
    "allowed_aggregates",
    "validate",
]

ENCODINGS: Final = ("joint", "sections", "separate", "trimmed")
LABEL_MEANINGS: Final = ("local", "on_path", "until_first_error")

MAX_LOGITS: Final = 1 << 20
UNIT: Final = (0.0, 1.0)
# kind -> (number of logits it needs: exact, or None when ``good``/``bad`` index into any number;
#          score range, None for unbounded; default threshold)
SCORE_KINDS: Final[dict[str, tuple[int | None, tuple[float, float] | None, float]]] = {
    "softmax": (None, UNIT, 0.5),
    "difference": (None, (-1.0, 1.0), 0.0),
    "classes": (None, UNIT, 0.5),
    "sigmoid": (1, UNIT, 0.5),
    "mean_sigmoid": (None, UNIT, 0.5),
    "raw": (1, None, 0.0),
}
# aggregate -> whether it only makes sense for scores in [0, 1]
AGGREGATES: Final[dict[str, bool]] = {
    "last": False,
    "mean": False,
    "min": False,
    "prod": True,
    "softmin": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How a raw response becomes steps: cut at ``separator``, drop what is only whitespace.

    ``strip`` removes whitespace at both ends of each step. Without a separator a whole solution
    is one step, and a record of several is refused.
    """

    separator: str | None
    strip: bool = True

    def to_dict(self) -> dict[str, Any]:
        return {"separator": self.separator, "strip": self.strip}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How the logits (C,) read at one step become its score.

    ``softmax``: softmax over all C, entry ``good``. ``difference``: softmax entry ``good`` minus
    entry ``bad``. ``classes``: the sum of the softmax entries ``valid``, and beside it entry
    ``redundant``, if there is one. ``sigmoid`` and ``raw``: of the only logit. ``mean_sigmoid``:
    the mean of the sigmoids of all C.
    """

    kind: str
    good: int = 0
    bad: int = 0
    valid: tuple[int, ...] = ()
    redundant: int | None = None

    @property
    def range(self) -> tuple[float, float] | None:
        """Lowest and highest score, or None when unbounded."""
        return SCORE_KINDS[self.kind][1]

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {"kind": self.kind}
        if self.kind in ("softmax", "difference"):
            data["good"] = self.good
        if self.kind == "difference":
            data["bad"] = self.bad
        if self.kind == "classes":
            data["valid"] = list(self.valid)
            if self.redundant is not None:
                data["redundant"] = self.redundant
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One family's scoring recipe; see the module docstring for the layout.

    ``encode``: ``separate`` encodes every part on its own, ``joint`` encodes neighbouring text,
    tags and slots as one string (token parts always cut), ``sections`` does so within the prompt
    and within each step and what is between, ``trimmed`` is ``joint`` without the whitespace at
    the ends of each such string, as chat templates that trim. ``logits``: C, how many numbers the
    head returns at a read position. ``aggregate``: the family's own way to one number per solution.
    """

    family: str
    encode: str
    prompt: tuple[Part, ...]
    between: tuple[Part, ...]
    step: tuple[Part, ...]
    split: Split
    logits: int
    score: Score
    aggregates: tuple[str, ...]
    aggregate: str
    label_meaning: str

    @property
    def default_threshold(self) -> float:
        """The score below which a step counts as wrong when the package names no other."""
        return SCORE_KINDS[self.score.kind][2]

    def to_dict(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "encode": self.encode,
            "prompt": [part.to_dict() for part in self.prompt],
            "between": [part.to_dict() for part in self.between],
            "step": [part.to_dict() for part in self.step],
            "split": self.split.to_dict(),
            "logits": self.logits,
            "score": self.score.to_dict(),
            "aggregates": list(self.aggregates),
            "aggregate": self.aggregate,
            "label_meaning": self.label_meaning,
        }

    @classmethod
    def from_dict(cls, data: object, *, where: str = "recipe") -> Recipe:
        """Read a recipe from decoded JSON.

        Raises:
            RecipeError: listing every unknown key, wrong type and contradiction.
        """
        problems = Problems()
        fields = Fields(data, where, problems)
        recipe = cls(
            family=fields.text("family"),
            encode=fields.choice("encode", ENCODINGS),
            prompt=read_parts(fields, "prompt"),
            between=read_parts(fields, "between"),
            step=read_parts(fields, "step"),
            split=_split(fields),
            logits=fields.integer("logits", minimum=1, maximum=MAX_LOGITS),
            score=_score(fields),
            aggregates=fields.list_of("aggregates", str, "strings"),
            aggregate=fields.choice("aggregate", tuple(AGGREGATES)),
            label_meaning=fields.choice("label_meaning", LABEL_MEANINGS),
        )
        fields.finish()
        problems.raise_if_any(RecipeError, "recipe cannot be used")
        validate(recipe, where=where)
        return recipe


def _split(fields: Fields) -> Split:
    inner = Fields(fields.objects("split"), f"{fields.where}.split", fields.problems)
    whole = inner.has("separator") and inner.null("separator")
    split = Split(
        separator=None if whole else inner.text("separator"), strip=inner.boolean("strip", True)
    )
    inner.finish()
    return split


def _score(fields: Fields) -> Score:
    inner = Fields(fields.objects("score"), f"{fields.where}.score", fields.problems)
    kind = inner.choice("kind", tuple(SCORE_KINDS))
    good = bad = 0
    valid: tuple[int, ...] = ()
    redundant = None
    if kind in ("softmax", "difference"):
        good = inner.integer("good", minimum=0)
    if kind == "difference":
        bad = inner.integer("bad", minimum=0)
    if kind == "classes":
        valid = inner.list_of("valid", int, "integers")
        redundant = inner.integer("redundant", minimum=0) if inner.has("redundant") else None
    inner.finish()
    return Score(kind=kind, good=good, bad=bad, valid=valid, redundant=redundant)


def validate(recipe: Recipe, *, where: str = "recipe") -> None:
    """Check what no single key can show: one read, slots where they belong, a sane formula.

    Raises:
        RecipeError: listing every contradiction.
    """
    problems = Problems()
    _validate_layout(recipe, where, problems)
    _validate_score(recipe, where, problems)
    problems.raise_if_any(RecipeError, "recipe cannot be used")


def _validate_layout(recipe: Recipe, where: str, problems: Problems) -> None:
    if not recipe.family:
        problems.add(f"{where}.family", "must not be empty")
    if recipe.split.separator == "":
        problems.add(f"{where}.split.separator", "must not be empty")
    for key in ("prompt", "between", "step"):
        parts: tuple[Part, ...] = getattr(recipe, key)
        for index, part in enumerate(parts):
            at = f"{where}.{key}[{index}]"
            if isinstance(part, Text | Tag) and not part.text:
                problems.add(at, "literal text must not be empty")
            if isinstance(part, Text | Tokens | Tag) and not _is_unicode(part.text):
                problems.add(at, "text must not hold a lone surrogate")
            if isinstance(part, Tag) and (key != "step" or recipe.encode != "joint"):
                problems.add(at, "a tag belongs in step, and needs encode 'joint'")
            if isinstance(part, Tag) and any(token < 0 for token in part.then):
                problems.add(at, "then must hold ids, each 0 or more")
            if isinstance(part, Tokens):
                _validate_tokens(part, key, at, problems)
            if isinstance(part, Slot) and part.read is not None:
                following = parts[index + 1] if index + 1 < len(parts) else None
                _validate_slot_read(recipe, part, following, at, problems)
        slots = [part.name for part in parts if isinstance(part, Slot)]
        expected = {"prompt": ["problem"], "between": [], "step": ["step"]}[key]
        if slots != expected:
            problems.add(f"{where}.{key}", f"must have the slots {expected}, got {slots}")
    reads = [
        part
        for part in recipe.step
        if isinstance(part, Tag) or (isinstance(part, Tokens | Slot) and part.read is not None)
    ]
    if len(reads) != 1:
        problems.add(f"{where}.step", f"must have exactly one read position, got {len(reads)}")


def _validate_slot_read(
    recipe: Recipe, part: Slot, following: Part | None, at: str, problems: Problems
) -> None:
    if part.name != "step" or part.read is None or part.read >= 0:
        problems.add(at, "only the slot of the step may have a read position, -1 or lower")
    if following is not None and not isinstance(following, Tokens):
        problems.add(at, "a slot that is read must end its part of the text")
    if recipe.encode not in ("separate", "sections") and recipe.split.separator is not None:
        problems.add(
            at,
            "a slot that is read needs encode 'separate' or 'sections', or solutions of one step",
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _validate_tokens(part: Tokens, key: str, at: str, problems: Problems) -> None:
    if not part.ids or any(token < 0 for token in part.ids):
        problems.add(at, "tokens must be one or more ids, each 0 or more")
    if part.read is None:
        return
    if key != "step":
        problems.add(at, "only a part of step may have a read position")
    elif not -len(part.ids) <= part.read < len(part.ids):
        problems.add(at, f"read {part.read} is outside its {len(part.ids)} tokens")


def _validate_score(recipe: Recipe, where: str, problems: Problems) -> None:
    needs, bounds, _ = SCORE_KINDS.get(recipe.score.kind, (None, None, 0.0))
    if needs is not None and recipe.logits != needs:
        problems.add(where, f"score {recipe.score.kind!r} needs {needs} logit, got {recipe.logits}")
    if recipe.score.kind in ("softmax", "difference"):
        if recipe.logits < 2:
            problems.add(where, f"score {recipe.score.kind!r} needs 2 logits or more")
        if max(recipe.score.good, recipe.score.bad) >= recipe.logits:
            problems.add(f"{where}.score", f"index outside the {recipe.logits} logits")
    if recipe.score.kind == "difference" and recipe.score.good == recipe.score.bad:
        problems.add(f"{where}.score", "good and bad must differ")
    if recipe.score.kind == "classes":
        named = {*recipe.score.valid, recipe.score.redundant or 0}
        if not named <= set(range(recipe.logits)):
            problems.add(f"{where}.score", f"index outside the {recipe.logits} logits")
        count = len(set(recipe.score.valid))
        if count != len(recipe.score.valid) or not 0 < count < recipe.logits:
            problems.add(
                f"{where}.score", "valid must name some of the classes, not all, each once"
            )
    for name in recipe.aggregates:
        if name not in AGGREGATES:
            problems.add(f"{where}.aggregates", f"unknown {name!r}; known: {', '.join(AGGREGATES)}")
        elif AGGREGATES[name] and bounds != UNIT:
            problems.add(f"{where}.aggregates", f"{name!r} makes no sense outside [0, 1]")
    if len(set(recipe.aggregates)) != len(recipe.aggregates):
        problems.add(f"{where}.aggregates", "must not name one twice")
    if recipe.aggregate not in recipe.aggregates:
        problems.add(f"{where}.aggregate", f"{recipe.aggregate!r} is not among the aggregates")


def allowed_aggregates(score: Score) -> tuple[str, ...]:
    """The aggregates that make sense for scores of this range, sorted."""
    return tuple(
        name for name, unit in sorted(AGGREGATES.items()) if not unit or score.range == UNIT
    )

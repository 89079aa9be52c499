"""Turn a problem and its steps into token ids and read positions, as a recipe says.

In: ``tokenizer.json`` bytes, a recipe, text. Out: ids (T,) and read positions (N,), one per step.
The one place that imports ``tokenizers``. Shapes: T tokens, N steps.

Text of a problem or a step never yields an added token, special or not: a student who types
``<extra_0>`` must not shift the scores. ``encode_special_tokens=True`` of tokenizers still matches
added tokens that are not special, so all text goes through a copy that has no added tokens at all;
template tokens come from the recipe as ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE

from .errors import InputError, InputTypeError, RecipeError
from .recipe import Part, Recipe, Slot, Tag, Tokens
from .tokenizer_json import without_added

# Encoding holds several hundred bytes per character for a moment, and no model reads this much.
MAX_CHARACTERS: Final = 4_000_000

Run = str | tuple[int, ...]  # text still to be encoded as one string, or ids that stand as they are
# A part, the text it stands for, and whether it opens a section (prompt, step, what is between).
Filled = tuple[Part, str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
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
class Encoded:
    """One record as the model sees it.

    ``ids``: int64 (T,). ``reads``: int64 (N,), strictly increasing positions in ``ids``, the one
    at index k scoring step k. Nothing after the last read is encoded: no score depends on it.
    ``prompt_tokens``: how many of the first tokens depend on the problem alone, where that was
    asked for.
    """

    ids: NDArray[np.int64]
    reads: NDArray[np.int64]
    prompt_tokens: int = 0


def check_text(text: object, what: str) -> str:
    """Return ``text`` if it is a string that can be encoded.

    Raises:
        InputTypeError: when it is not a string.
        InputError: when it holds a lone surrogate, which no UTF-8 text can.
    """
    if not isinstance(text, str):
        raise InputTypeError(f"{what} must be a string, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}, which is not valid text; decode it as UTF-8 before scoring"
        ) from None
    return text


def check_steps(steps: object, what: str = "steps") -> list[str]:
    """Return ``steps`` as a list of encodable strings.

    Raises:
        InputTypeError: for one string, or anything that is not a sequence of strings.
        InputError: when a step cannot be encoded.
    """
    if isinstance(steps, str | bytes):
        raise InputTypeError(
            f"{what} must be a list of strings, got one {type(steps).__name__}; "
            "cut a whole response into steps with scorer.split(response)"
        )
    if not isinstance(steps, Sequence):
        raise InputTypeError(f"{what} must be a list of strings, got {type(steps).__name__}")
    return [check_text(step, f"{what}[{index}]") for index, step in enumerate(steps)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """A recipe's parts, cut where a record can be cut: see :meth:`RecipeEncoder.encode_step`."""

    opening: tuple[Part, ...]  # the prompt, up to what joins the first step
    joined: tuple[Part, ...]  # the rest of the prompt
    to_read: tuple[Part, ...]  # of a step, up to its read position
    after_read: tuple[Part, ...]  # of a step, from there on
    incremental: bool

    @classmethod
    def of(cls, recipe: Recipe) -> _Pieces:
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


class RecipeEncoder:
    """Encodes records for one recipe with one tokenizer. Thread-safe."""

    def __init__(self, tokenizer_json: bytes, recipe: Recipe) -> None:
        """Prepare the tokenizer and check that the recipe fits it.

        Raises:
            RecipeError: when the tokenizer cannot be read, or a token part of the recipe is
                spelled differently by it.
        """
        self.recipe = recipe
        try:
            added, rest = without_added(tokenizer_json.decode("utf-8"))
            self._added = {int(t["id"]): str(t["content"]) for t in added}
            self._tokenizer = Tokenizer.from_str(rest)
            # A tokenizer.json may ask for truncation or padding: both would be silently wrong here.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            left = len(self._tokenizer.get_added_tokens_decoder())
            forbidden = self._reserved(added) - self._unknown(rest)
            self._forbidden = np.array(sorted(forbidden), dtype=np.int64)
        except Exception as error:  # tokenizers raises plain Exception
            raise RecipeError(f"tokenizer.json cannot be read: {error}") from error
        if left:
            raise RecipeError(f"tokenizer.json lists added tokens twice: {left} are left")
        for part in (*recipe.prompt, *recipe.between, *recipe.step):
            if isinstance(part, Tokens):
                self._check_spelling(part)
        self._tag = next((part for part in recipe.step if isinstance(part, Tag)), None)
        if self._tag is not None:
            self._check_tag(self._tag)
        self._pieces = _Pieces.of(recipe)

    def _reserved(self, added: list[dict[str, Any]]) -> set[int]:
        # Text may become an added token only where the token is neither special nor the
        # recipe's: such an id is one that the plain vocabulary has too, as in training.
        special = {int(t["id"]) for t in added if t.get("special")}
        parts = (*self.recipe.prompt, *self.recipe.between, *self.recipe.step)
        own = {i for part in parts if isinstance(part, Tokens) for i in part.ids}
        return special | (own & self._added.keys())

    def _unknown(self, rest: str) -> set[int]:
        # [UNK] is an added token that ordinary text may rightly become (WordPiece, Unigram)
        if isinstance(self._tokenizer.model, BPE) and self._tokenizer.model.unk_token is None:
            return set()
        model = json.loads(rest).get("model", {})
        token = model.get("unk_token")
        found = self._tokenizer.token_to_id(token) if isinstance(token, str) else None
        return {index for index in (found, model.get("unk_id")) if isinstance(index, int)}

    def _check_spelling(self, part: Tokens) -> None:
        ids = self.spell(part.text)
        if ids != part.ids:
            raise RecipeError(
                f"the recipe expects {part.text!r} to be token {list(part.ids)}, but this "
                f"tokenizer encodes it as {list(ids)}; use the tokenizer the model was trained with"
            )

    def _check_tag(self, tag: Tag) -> None:
        # after a word, as in a record: some tokenizers put a blank before the first
        ids = self._ids([f"x{tag.text}"])[0]
        if _occurrences(ids, tag.ids) != [len(ids) - len(tag.ids)]:
            raise RecipeError(
                f"the recipe expects {tag.text!r} to end as token "
                f"{', '.join(map(str, tag.ids))}, but this tokenizer "
                f"encodes it as {ids[-3:]}; use the tokenizer the model was trained with"
            )

    def spell(self, text: str) -> tuple[int, ...]:
        """Encode template text, in which added tokens do count."""
        if not self._added:
            return tuple(self._ids([text])[0])
        by_content = {content: index for index, content in self._added.items()}
        longest_first = sorted(by_content, key=len, reverse=True)
        pieces = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
        ids: list[int] = []
        for piece in filter(None, pieces):
            ids.extend([by_content[piece]] if piece in by_content else self._ids([piece])[0])
        return tuple(ids)

    def _encodings(self, texts: list[str]) -> list[Any]:
        encodings: list[Any] = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return encodings

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._encodings(texts)]

    def encode(self, problem: str, steps: Sequence[str]) -> Encoded:
        """Encode one record. ``steps`` may be empty; an empty step is a step.

        Raises:
            InputTypeError: for anything but strings.
            InputError: for text that is not text, that is absurdly long, or that the
                tokenizer's own vocabulary turns into an added token.
        """
        problem, steps = check_text(problem, "problem"), check_steps(steps)
        _check_size(len(problem) + sum(map(len, steps)))
        if self.recipe.split.separator is None and len(steps) > 1:
            raise InputError(_one_step(len(steps)))
        layout = self._layout(self._filled(problem, steps))
        pieces, encodings = self._encode_runs(layout.runs)
        starts = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        ids = np.array([i for piece in pieces for i in piece], dtype=np.int64)
        found = [
            *layout.reads,
            *self._tag_reads(layout, encodings),
            *_slot_reads(layout, pieces),
        ]
        reads = np.array([starts[run] + offset for run, offset in found], dtype=np.int64)
        if len(reads) and reads[0] < 0:
            raise InputError(NOTHING_TO_READ)
        if len(reads) != len(steps):
            raise RecipeError(f"{len(reads)} read positions for {len(steps)} steps")
        end = int(reads[-1]) + 1 if len(reads) else len(ids)
        return Encoded(ids=ids[:end], reads=reads)

    @property
    def incremental(self) -> bool:
        """Whether :meth:`encode_step` can encode a step without knowing the one before it."""
        return self._pieces.incremental

    def encode_prompt(self, problem: str) -> NDArray[np.int64]:
        """Encode what stands before the first step and does not depend on it. -> (T,)

        Where the recipe joins the end of the prompt and the first step into one string, that end
        is left to :meth:`encode_step`.

        Raises:
            InputTypeError, InputError: as :meth:`encode`.
        """
        problem = check_text(problem, "problem")
        _check_size(len(problem))
        return self._encode_parts(_section(self._pieces.opening, problem))

    def prompt_tokens(self, problem: str, encoded: Encoded) -> int:
        """How many tokens of a record depend on its problem alone."""
        if self.incremental:
            return len(self.encode_prompt(problem))
        # where text is joined, the end of the prompt may become other tokens before a step
        bare = self.encode(problem, []).ids
        n = min(len(bare), len(encoded.ids))
        differs = np.flatnonzero(bare[:n] != encoded.ids[:n])
        return int(differs[0]) if len(differs) else n

    def encode_step(self, step: str, *, problem: str | None = None) -> NDArray[np.int64]:
        """Encode what follows the read position of the step before, up to this step's. -> (T,)

        ``problem`` is given for the first step, and only for it. The score is read at the last
        token. The prompt's ids and those of every step, in order, are those of :meth:`encode`:
        a read position lies in a token part, at which text is always cut.

        Raises:
            InputTypeError, InputError: as :meth:`encode`.
            RecipeError: when the recipe is not :attr:`incremental`.
        """
        if not self.incremental:
            raise RecipeError(
                "a step of this recipe cannot be encoded without the one before, since its text "
                "joins the next one's or its score is read first; encode the whole record"
            )
        step = check_text(step, "step")
        if problem is None and self.recipe.split.separator is None:
            raise InputError(_one_step(2))
        if problem is None:
            before = [*_rest(self._pieces.after_read, ""), *_section(self.recipe.between, "")]
        else:
            before = [*_rest(self._pieces.joined, check_text(problem, "problem"))]
        _check_size(len(step) + len(problem or ""))
        return self._encode_parts([*before, *_section(self._pieces.to_read, step)])

    def _encode_parts(self, filled: Iterable[Filled]) -> NDArray[np.int64]:
        layout = self._layout(filled)
        pieces, _ = self._encode_runs(layout.runs)
        _slot_reads(layout, pieces)
        return np.array([i for piece in pieces for i in piece], dtype=np.int64)

    def _encode_runs(self, runs: list[Run]) -> tuple[list[Sequence[int]], dict[int, Any]]:
        """Ids of every run, and the encodings of those that are text, by their index."""
        at = [index for index, run in enumerate(runs) if isinstance(run, str)]
        texts = self._encodings([run for run in runs if isinstance(run, str)])
        encodings = dict(zip(at, texts, strict=True))
        pieces: list[Sequence[int]] = [
            run if isinstance(run, tuple) else encodings[index].ids
            for index, run in enumerate(runs)
        ]
        self._refuse_added(np.array([i for index in at for i in pieces[index]], dtype=np.int64))
        return pieces, encodings

    def _tag_reads(self, layout: _Layout, encodings: dict[int, Any]) -> list[tuple[int, int]]:
        """Where each tag's token is: (index of its run, offset in it).

        Raises:
            InputError: when a tag became another token, or the text holds one of its own.
        """
        if self._tag is None:
            return []
        found: list[tuple[int, int]] = []
        for run, encoding in encodings.items():
            ends = {end for at, end in layout.tags if at == run}
            hits = _occurrences(encoding.ids, self._tag.ids)
            if self._tag.then and run == layout.prompt_end[0]:
                hits = [k for k in hits if encoding.offsets[k][0] >= layout.prompt_end[1]]
            last = len(self._tag.then)
            if len(hits) != len(ends) or any(
                encoding.offsets[k + last][1] not in ends for k in hits
            ):
                raise InputError(
                    f"the tag {self._tag.text!r} after each step is token "
                    f"{', '.join(map(str, self._tag.ids))}, found "
                    f"{len(hits)} times where {len(ends)} belong: a step is empty, merges with its "
                    "tag or spells one; change or leave out that step"
                )
            found += [(run, k) for k in hits]
        return found

    def _refuse_added(self, text_ids: NDArray[np.int64]) -> None:
        if len(self._forbidden) and np.isin(text_ids, self._forbidden).any():
            found = int(text_ids[np.isin(text_ids, self._forbidden)][0])
            raise InputError(
                f"the text spells the token {self._added[found]!r} ({found}), which this "
                "tokenizer's vocabulary lets plain text become and which would shift the scores; "
                "take it out of the problem or the step"
            )

    def _layout(self, filled: Iterable[Filled]) -> _Layout:
        runs: list[Run] = []
        layout = _Layout(runs=runs, reads=[], tags=[], slots=[], prompt_end=(0, 0))
        joined = self.recipe.encode != "separate"
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
            cut = opens and self.recipe.encode == "sections"
            if joined and isinstance(last, str) and not cut:
                layout.runs[-1] = last + text
            else:
                layout.runs.append(text)
            if isinstance(part, Tag):
                layout.tags.append((len(layout.runs) - 1, len(layout.runs[-1])))
            if isinstance(part, Slot) and part.read is not None:
                layout.slots.append((len(layout.runs) - 1, part.read))
        if self.recipe.encode == "trimmed":
            stripped = [run.strip() if isinstance(run, str) else run for run in layout.runs]
            return replace(layout, runs=stripped)
        return layout

    def _filled(self, problem: str, steps: list[str]) -> Iterator[Filled]:
        yield from _section(self.recipe.prompt, problem)
        for index, step in enumerate(steps):
            if index:
                yield from _section(self.recipe.between, "")
            yield from _section(self.recipe.step, step)

    def split(self, response: str) -> list[str]:
        """Cut a raw response into steps by the recipe's own rule.

        Pieces that are only whitespace are dropped: they are not steps.

        Raises:
            InputTypeError, InputError: for text that is not text.
        """
        rule = self.recipe.split
        whole = check_text(response, "response")
        pieces = [whole] if rule.separator is None else whole.split(rule.separator)
        return [piece.strip() if rule.strip else piece for piece in pieces if piece.strip()]


NOTHING_TO_READ: Final = (
    "a step has no token at which its score could be read; write something in it, or leave it out"
)


def _one_step(count: int) -> str:
    return (
        f"this recipe scores a whole solution, given as one step; got {count}: join them as in the "
        "response they were cut from"
    )


def _slot_reads(layout: _Layout, pieces: list[Sequence[int]]) -> list[tuple[int, int]]:
    """Where steps are read that are read at their own tokens: (index of a run, offset in it).

    The offset may be negative: then it counts back from the run's start.

    Raises:
        InputError: when a step has no token.
    """
    if any(not pieces[run] for run, _ in layout.slots):
        raise InputError(NOTHING_TO_READ)
    return [(run, len(pieces[run]) + read) for run, read in layout.slots]


def _occurrences(ids: Sequence[int], wanted: tuple[int, ...]) -> list[int]:
    """Where ``wanted`` stands in ``ids``, from the left, without overlaps."""
    found: list[int] = []
    for at, token in enumerate(ids):
        if token != wanted[0] or (found and at < found[-1] + len(wanted)):
            continue
        if tuple(ids[at : at + len(wanted)]) == wanted:
            found.append(at)
    return found


def _check_size(characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise InputError(
            f"the problem and its steps have {characters} characters together, more than the "
            f"{MAX_CHARACTERS} that are encoded at once; is this one solution?"
        )


def _section(parts: Sequence[Part], slot: str) -> Iterator[Filled]:
    for position, part in enumerate(parts):
        yield part, _fill(part, slot), position == 0


def _rest(parts: Sequence[Part], slot: str) -> Iterator[Filled]:
    for part in parts:
        yield part, _fill(part, slot), False


def _fill(part: Part, slot: str) -> str:
    if isinstance(part, Slot):
        return slot.strip() if part.strip else slot
    return part.text

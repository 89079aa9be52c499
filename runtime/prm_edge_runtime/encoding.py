"""Turn a problem and its steps into token ids and read positions, as a recipe says.

In: ``tokenizer.json`` bytes, a recipe, text. Out: ids (T,) and read positions (N,), one per step.
The one place that imports ``tokenizers``; :mod:`layout` says what is encoded as one string.
Shapes: T tokens, N steps.

Text of a problem or a step never yields an added token, special or not: a student who types
``<extra_0>`` must not shift the scores. ``encode_special_tokens=True`` of tokenizers still matches
added tokens that are not special, so all text goes through a copy that has no added tokens at all;
template tokens come from the recipe as ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE

from .errors import InputError, InputTypeError, RecipeError
from .layout import (
    NOTHING_TO_READ,
    Filled,
    Pieces,
    Run,
    fill,
    lay_out,
    occurrences,
    rest,
    section,
    slot_reads,
    tag_reads,
)
from .recipe import Recipe, Slot, Tag, Tokens
from .tokenizer_json import without_added

# Encoding holds several hundred bytes per character for a moment, and no model reads this much.
MAX_CHARACTERS: Final = 4_000_000
# Up to here texts are encoded where they are asked for, about a millisecond: handing them to
# tokenizers' own threads takes longer, above all on cores that others use. Beyond it, those threads
# let the rest of the process go on, which ``encode`` does not.
DIRECT_CHARACTERS: Final = 2_000


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
        self._pieces = Pieces.of(recipe)

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
        if occurrences(ids, tag.ids) != [len(ids) - len(tag.ids)]:
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
        if sum(map(len, texts)) <= DIRECT_CHARACTERS:
            return [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
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
        layout = lay_out(self.recipe, fill(self.recipe, problem, steps))
        pieces, encodings = self._encode_runs(layout.runs)
        starts = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        ids = np.array([i for piece in pieces for i in piece], dtype=np.int64)
        found = [
            *layout.reads,
            *tag_reads(self._tag, layout, encodings),
            *slot_reads(layout, pieces),
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
        return self._encode_parts(section(self._pieces.opening, problem))

    def opening(self) -> NDArray[np.int64]:
        """The ids that every record begins with, whatever its problem: the recipe's own. -> (T,)

        They end at a token part, at which text is always cut.
        """
        parts = self.recipe.prompt
        end = next((at for at, part in enumerate(parts) if isinstance(part, Slot)), len(parts))
        while end and not isinstance(parts[end - 1], Tokens):
            end -= 1
        return self._encode_parts(section(parts[:end], ""))

    def check_opening(self, ids: tuple[int, ...]) -> None:
        """Refuse tokens that not every record begins with.

        Raises:
            RecipeError: naming both.
        """
        opening = tuple(self.opening().tolist())
        if opening[: len(ids)] != ids:
            raise RecipeError(
                f"the package holds keys and values of the tokens {list(ids[:8])}, but records of "
                f"its recipe begin with {list(opening[:8])}; export the checkpoint again"
            )

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
            before = [*rest(self._pieces.after_read, ""), *section(self.recipe.between, "")]
        else:
            before = [*rest(self._pieces.joined, check_text(problem, "problem"))]
        _check_size(len(step) + len(problem or ""))
        return self._encode_parts([*before, *section(self._pieces.to_read, step)])

    def _encode_parts(self, filled: Iterable[Filled]) -> NDArray[np.int64]:
        layout = lay_out(self.recipe, filled)
        pieces, _ = self._encode_runs(layout.runs)
        slot_reads(layout, pieces)
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

    def _refuse_added(self, text_ids: NDArray[np.int64]) -> None:
        if len(self._forbidden) and np.isin(text_ids, self._forbidden).any():
            found = int(text_ids[np.isin(text_ids, self._forbidden)][0])
            raise InputError(
                f"the text spells the token {self._added[found]!r} ({found}), which this "
                "tokenizer's vocabulary lets plain text become and which would shift the scores; "
                "take it out of the problem or the step"
            )

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


def _one_step(count: int) -> str:
    return (
        f"this recipe scores a whole solution, given as one step; got {count}: join them as in the "
        "response they were cut from"
    )


def _check_size(characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise InputError(
            f"the problem and its steps have {characters} characters together, more than the "
            f"{MAX_CHARACTERS} that are encoded at once; is this one solution?"
        )

"""What a package was trained to read, as the words and signs it has seen.

A package may carry ``domain.json``: the words, LaTeX commands and signs of its training texts and
the largest share of unseen ones at which its scores still mean something. Scores are computed by
the network alone; this only says when not to believe them. Imports the standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .errors import InputError, PackageError

if TYPE_CHECKING:
    from .cache import Node
    from .package import Package
    from .tracks import Track

DOMAIN_NAME: Final = "domain.json"
MAX_SHOWN: Final = 5
# LaTeX command | word of two letters or more (one letter is an unknown of an equation) | sign
_UNITS: Final = re.compile(r"\\[A-Za-z]+|[^\W\d_]{2,}|[^\w\s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """Lower-case units seen in training, and how large a share of others is too large."""

    known: frozenset[str]
    max_unknown: float

    def outside(self, problem: str, steps: Iterable[str]) -> str | None:
        """Why a record is plainly outside, or None where it may be inside.

        Outside is a record without a digit, or one of whose different words, commands and signs
        more than ``max_unknown`` were never seen. An unseen word with a capital is taken for a
        name and not counted, unless it is the only kind of word there is.
        """
        text = "\n".join([problem, *steps])
        if not re.search(r"\d", text):
            return "it holds no number"
        found = set(units(text))
        seen = {unit for unit in found if unit.lower() in self.known}
        unseen = sorted(found - seen)
        counted = [unit for unit in unseen if not unit[0].isupper()]
        if len(counted) <= self.max_unknown * (len(seen) + len(counted)):
            return None
        shown = ", ".join(counted[:MAX_SHOWN]) + (", ..." if len(counted) > MAX_SHOWN else "")
        return f"{len(counted)} of its {len(seen) + len(counted)} words and signs are new: {shown}"

    def to_json(self) -> bytes:
        """The file's content."""
        data = {"max_unknown": self.max_unknown, "known": sorted(self.known)}
        return json.dumps(data, ensure_ascii=False, indent=0).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Domain:
        """Read the file's content.

        Raises:
            PackageError: when it is not such a file.
        """
        try:
            parsed = json.loads(data)
            known, share = parsed["known"], parsed["max_unknown"]
        except (ValueError, KeyError, TypeError):
            parsed, known, share = None, None, None
        good = (
            isinstance(parsed, dict)
            and parsed.keys() == {"known", "max_unknown"}
            and isinstance(known, list)
            and all(isinstance(unit, str) and unit for unit in known)
            and isinstance(share, float)
            and 0 <= share <= 1
        )
        if not good:
            raise PackageError(
                f"{DOMAIN_NAME} must hold known, a list of texts, and max_unknown, a number from "
                "0 to 1; export the package again"
            )
        return cls(known=frozenset(known), max_unknown=share)


def units(text: str) -> list[str]:
    """The words, LaTeX commands and signs of a text, in order."""
    return _UNITS.findall(text)


def embedded_domain(package: Package) -> Domain | None:
    """The domain of a package that has one.

    Raises:
        PackageError: when its ``domain.json`` cannot be read.
    """
    if DOMAIN_NAME not in package.manifest.files:
        return None
    return Domain.from_json(package.read_bytes(DOMAIN_NAME))


class GuardedTrack:
    """A session's track that refuses problems and steps from outside a domain."""

    def __init__(self, track: Track, problem: str, domain: Domain) -> None:
        self._track = track
        self._problem = problem
        self._domain = domain

    @property
    def incremental(self) -> bool:
        return self._track.incremental

    def start(self) -> tuple[Node, int]:
        return self._track.start()

    def extend(self, tip: Node, steps: Sequence[str], *, keep: bool) -> tuple[list[Node], int]:
        for step in steps:
            reason = self._domain.outside(self._problem, [step])
            if reason is not None:
                raise InputError(
                    f"this line is outside what the built-in model was trained on: {reason}; the "
                    "session is as it was: name a package of your own, or score it all the same "
                    "with --force (force=True in Python)"
                )
        return self._track.extend(tip, steps, keep=keep)

"""Count records whose id was seen before, in bounded memory. Imports the standard library alone."""

from __future__ import annotations

import hashlib
import json
from typing import Final

from .solutions import Id

MAX_IDS: Final = 1_000_000  # ids remembered while looking for duplicates, 16 bytes each


class DuplicateIds:
    """Counts records whose id was seen before, in bounded memory.

    Remembers the hashes of the first ``limit`` ids; later ones are still compared with those.
    """

    def __init__(self, limit: int = MAX_IDS) -> None:
        self.count = 0
        self.first: Id = None
        self._limit = limit
        self._seen: set[bytes] = set()

    def add(self, identity: Id) -> None:
        """Note the id of one record; None is no id."""
        if identity is None:
            return
        if self.add_digest(id_digest(identity)) and self.count == 1:
            self.first = identity

    def add_digest(self, digest: bytes) -> bool:
        """Note an id of which only :func:`id_digest` is known; whether it was seen before."""
        if digest in self._seen:
            self.count += 1
            return True
        if len(self._seen) < self._limit:
            self._seen.add(digest)
        return False


def id_digest(identity: Id) -> bytes:
    """What an id is told apart by."""
    # as JSON, so that 1, "1" and true differ
    text = json.dumps(identity).encode("ascii")
    return hashlib.blake2b(text, digest_size=16).digest()

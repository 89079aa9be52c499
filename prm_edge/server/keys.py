"""API keys: a file of them, and whose a key is, found in constant time.

One ``NAME KEY`` a line; empty lines and lines that begin with ``#`` are ignored. Only hashes of the
keys stay in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path
from typing import Final

from prm_edge_runtime.errors import ConfigError

MIN_CHARACTERS: Final = 16
MAX_KEYS: Final = 1_000  # all of them are compared for every request
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY: Final = re.compile(rf"[\x21-\x7e]{{{MIN_CHARACTERS},256}}")
BEARER: Final = re.compile(rb"bearer +([\x21-\x7e]+) *", re.IGNORECASE)


class Keys:
    """Names by the SHA-256 of their keys. A name may have several keys, to change them."""

    def __init__(self, keys: list[tuple[str, str]]) -> None:
        self._known = [(name, _digest(key.encode("ascii"))) for name, key in keys]

    def owner(self, key: bytes) -> str | None:
        """Whose key it is; None for nobody's. Every key is compared, whichever fits."""
        digest = _digest(key)
        found = None
        for name, known in self._known:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def owner_of_header(self, authorization: bytes | None) -> str | None:
        """Whose key an ``Authorization: Bearer KEY`` header holds."""
        match = BEARER.fullmatch(authorization or b"")
        return self.owner(match[1]) if match else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(path: Path) -> Keys:
    """Read a file of keys.

    Raises:
        ConfigError: when it cannot be read, or a line is not a name and a good key; no message
            holds a key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"the keys in {str(path)!r} cannot be read: {reason}") from None
    keys: dict[str, str] = {}  # key -> name
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"line {number} of the keys"
        if len(words) != 2 or not _NAME.fullmatch(words[0]):
            raise ConfigError(
                f"{where} must be NAME KEY, the name of letters, digits, '.', '_' and '-'"
            )
        if not _KEY.fullmatch(words[1]):
            raise ConfigError(
                f"{where}: the key of {words[0]!r} must have {MIN_CHARACTERS} to 256 visible "
                'ASCII characters; make one with: python -c "import secrets; '
                'print(secrets.token_urlsafe(32))"'
            )
        if words[1] in keys:
            raise ConfigError(f"{where}: this key is there twice; give everyone their own")
        keys[words[1]] = words[0]
    if not keys:
        raise ConfigError(f"there are no keys in {str(path)!r}; write NAME KEY on a line")
    if len(keys) > MAX_KEYS:
        raise ConfigError(f"there are {len(keys)} keys; at most {MAX_KEYS} are compared")
    return Keys([(name, key) for key, name in keys.items()])

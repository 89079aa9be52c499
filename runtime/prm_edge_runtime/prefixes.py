"""What was run before, for the calls that come after: a cache of prefixes, keyed by token ids.

A record is stored in pieces, its prompt and each of its steps, as a path of nodes that other
records share. Least recently used pieces go first, and the bytes of all are bounded. Thread-safe.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .cache import Buffer, Node
from .encoding import Encoded
from .errors import ConfigError

MAX_MB: Final = 1 << 20
_ENTRY_BYTES: Final = 1024  # of a node and its key, besides their arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCounters:
    """``lookups`` and, of them, ``hits``; ``tokens_saved``: tokens that were not run again.

    ``entries`` and ``bytes``: what is stored now; ``limit_bytes``: what may be.
    """

    lookups: int = 0
    hits: int = 0
    tokens_saved: int = 0
    entries: int = 0
    bytes: int = 0
    limit_bytes: int = 0


def limit_bytes(prefix_cache_mb: object) -> int:
    """Bytes of a limit in MB (of 1,000,000 bytes).

    Raises:
        ConfigError: when it is not a number from 0 to ``MAX_MB``.
    """
    if (
        isinstance(prefix_cache_mb, bool)
        or not isinstance(prefix_cache_mb, int | float)
        or not 0 <= prefix_cache_mb <= MAX_MB
    ):
        raise ConfigError(
            f"prefix_cache_mb must be a number of megabytes from 0 (off) to {MAX_MB}; "
            f"got {repr(prefix_cache_mb)[:40]}"
        )
    return math.floor(prefix_cache_mb * 1_000_000)


class PrefixCache:
    """Nodes by the token ids of the whole path to them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        # Every node is used after its children, so the least recently used one has none.
        self._nodes: OrderedDict[bytes, Node] = OrderedDict()
        self._bytes = 0
        self._lookups = self._hits = self._tokens_saved = 0

    @property
    def counters(self) -> PrefixCounters:
        """How it is used so far."""
        with self._lock:
            return PrefixCounters(
                lookups=self._lookups,
                hits=self._hits,
                tokens_saved=self._tokens_saved,
                entries=len(self._nodes),
                bytes=self._bytes,
                limit_bytes=self._limit,
            )

    def find(self, record: Encoded) -> Node | None:
        """The longest stored path that the record begins with, its scores included."""
        reads = set(record.reads.tolist())
        found: Node | None = None
        keys = []
        with self._lock:
            self._lookups += 1
            for end in _ends(record):
                key = record.ids[:end].tobytes()
                node = self._nodes.get(key)
                if node is None or (node.row is None and end - 1 in reads):
                    break
                found = node
                keys.append(key)
            self._use(keys)
            if found is not None:
                self._hits += 1
                self._tokens_saved += found.n_tokens
        return found

    def keep(
        self, record: Encoded, buffer: Buffer, rows: dict[int, NDArray[np.float32]]
    ) -> Node | None:
        """Store what a buffer holds of a record; return the last node that could be stored.

        ``rows``: of outputs (W,), by read position.
        """
        parent: Node | None = None
        keys = []
        path_bytes = 0
        with self._lock:
            for end in _ends(record):
                key = record.ids[:end].tobytes()
                row = rows.get(end - 1)
                node = self._nodes.get(key)
                if node is None:
                    # its own copy: a row would keep all of them
                    node = buffer.take(parent, end, row=None if row is None else row.copy())
                    size = _size(key, node)
                    if path_bytes + size > self._limit:
                        break  # it would push out its own beginning
                    self._nodes[key] = node
                    self._bytes += size
                elif node.row is None and row is not None:
                    node = self._nodes[key] = replace(node, row=row.copy())
                path_bytes += _size(key, node)
                parent = node
                keys.append(key)
            self._use(keys)
            while self._bytes > self._limit:
                key, node = self._nodes.popitem(last=False)
                self._bytes -= _size(key, node)
        return parent

    def _use(self, path: list[bytes]) -> None:
        for key in reversed(path):
            self._nodes.move_to_end(key)


def _ends(record: Encoded) -> list[int]:
    """Where the pieces of a record end: its prompt, then each step."""
    ends = [record.prompt_tokens, *(int(read) + 1 for read in record.reads)]
    return [end for end in dict.fromkeys(ends) if end]


def _size(key: bytes, node: Node) -> int:
    kv = 0 if node.kv is None else node.kv.nbytes
    # without the outputs, which a node may get later: few bytes, within what an entry is given
    return len(key) + node.ids.nbytes + kv + _ENTRY_BYTES

"""Counts in words."""

from __future__ import annotations


def some(count: int, what: str, one: str = "", more: str = "") -> str:
    """``1 record``, ``2 records``; with ``one`` and ``more``, the verb that goes with it."""
    verb = one if count == 1 else more
    return f"{count} {what}{'' if count == 1 else 's'}{' ' * bool(verb)}{verb}"

"""Seeded, unlimited worked solutions of school mathematics with exact line labels."""

from .mixture import FAMILIES, draw, stream
from .records import ERRORS, Context, Line, Solution, Split

__all__ = ["ERRORS", "FAMILIES", "Context", "Line", "Solution", "Split", "draw", "stream"]

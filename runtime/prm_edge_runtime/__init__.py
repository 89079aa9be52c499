"""The lean runtime: load a package, score steps. Needs numpy, tokenizers and onnxruntime only."""

from .errors import PrmEdgeError
from .recipe import Recipe
from .results import Ranking, StepScores
from .scorer import Scorer
from .version import __version__

__all__ = ["PrmEdgeError", "Ranking", "Recipe", "Scorer", "StepScores", "__version__"]

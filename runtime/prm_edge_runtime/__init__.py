"""The lean runtime: load a package, score steps. Needs numpy, tokenizers and onnxruntime only."""

from .cuda_options import CudaOptions
from .errors import PrmEdgeError
from .recipe import Recipe
from .results import Ranking, StepScores
from .scorer import Scorer
from .session import Session, add_many
from .version import __version__

__all__ = [
    "CudaOptions",
    "PrmEdgeError",
    "Ranking",
    "Recipe",
    "Scorer",
    "Session",
    "StepScores",
    "__version__",
    "add_many",
]

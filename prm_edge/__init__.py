"""Score the steps of worked solutions with a process reward model, without torch."""

from prm_edge_runtime import (
    CudaOptions,
    PrmEdgeError,
    Ranking,
    Recipe,
    Scorer,
    Session,
    StepScores,
    __version__,
    add_many,
)

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

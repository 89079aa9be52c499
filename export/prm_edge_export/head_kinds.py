"""The kinds of head that score, by name: data, so that recipes can be listed without torch."""

from __future__ import annotations

from typing import Final

LINEAR: Final = "linear"
MLP: Final = "mlp"
VALUE: Final = "value"  # one number, TRL's ValueHead
ROWS: Final = "rows"  # rows of the vocabulary's output layer
MEAN_ROWS: Final = "mean_rows"  # the mean of all rows of the vocabulary's output layer
CLASSES: Final = "classes"  # three classes, of ReasonEval
ENSEMBLE: Final = "ensemble"  # members side by side, of ActPRM
TRAJECTORY: Final = "trajectory"  # one number for a whole solution, in a file of its own
CLASSIFIER: Final = "classifier"  # an encoder's; the optimum backend alone exports it

"""What was fitted to one variant of a package on labelled steps, as data.

In: the entry of the variant under ``calibration`` in ``prm_edge.json``. Out: a temperature, and the
band of scores in which nobody should be sure. Imports nothing but the standard library and this
package's own modules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .scoring import FLAWED, SOUND, UNKNOWN
from .strict import Fields

MAX_TEMPERATURE: Final = 1000.0
CLOSEST: Final = 1e-12  # to 0 and 1, so that the logarithm exists

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One variant's calibration.

    ``temperature``: divides the log odds of a score, None where scores are no probabilities.
    ``unsure``: scores from the first to below the second are too close to call, None for none.
    ``fitted``: on what and with which result, flat.
    """

    temperature: float | None
    unsure: tuple[float, float] | None
    fitted: Mapping[str, Scalar]

    @classmethod
    def read(cls, fields: Fields) -> Calibration:
        """Read one entry; problems are added to those of ``fields``."""
        temperature, band = fields.optional("temperature"), fields.optional("unsure")
        if temperature is not None:
            temperature = fields.number("temperature")
            if not 0 < temperature <= MAX_TEMPERATURE:
                fields.problems.add(
                    f"{fields.where}.temperature",
                    f"must be above 0 and at most 1000: {temperature}",
                )
        unsure = None
        if band is not None:
            band = fields.numbers("unsure")
            if len(band) == 2 and band[0] < band[1]:
                unsure = (band[0], band[1])
            else:
                fields.problems.add(
                    f"{fields.where}.unsure", "must be two numbers, the lower first"
                )
        fitted = fields.objects("fitted", {})
        for key, value in fitted.items():
            bad = isinstance(value, dict | list)
            if bad or (isinstance(value, float) and not math.isfinite(value)):
                fields.problems.add(f"{fields.where}.fitted[{key!r}]", "must be a finite scalar")
        fields.finish()
        return cls(temperature=temperature, unsure=unsure, fitted=fitted)

    def to_dict(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "unsure": None if self.unsure is None else list(self.unsure),
            "fitted": dict(self.fitted),
        }

    def probability(self, score: float) -> float:
        """The calibrated probability that a step with this score is good."""
        return tempered(score, self.temperature or 1.0)


def tempered(score: float, temperature: float) -> float:
    """A probability whose log odds are divided by ``temperature``."""
    clipped = min(max(score, CLOSEST), 1 - CLOSEST)
    odds = (math.log(clipped) - math.log1p(-clipped)) / temperature
    return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))


def cautious(scores: Sequence[float | None], unsure: tuple[float, float]) -> tuple[str, int | None]:
    """Verdict and first error where a score in the band decides nothing.

    The first step that is not surely good decides: below the band it is the first error, inside
    it, or without a score, the verdict is ``unknown``.
    """
    for index, score in enumerate(scores):
        if score is None or unsure[0] <= score < unsure[1]:
            return UNKNOWN, None
        if score < unsure[0]:
            return FLAWED, index
    return (SOUND if scores else UNKNOWN), None

"""What a user may ask of an export, and what is refused before any checkpoint is read.

In: the options of ``prm-edge export``. Out: the same, checked against one another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

from prm_edge_runtime.errors import ConfigError
from prm_edge_runtime.recipe import LABEL_MEANINGS

from .half import BF16, FP16
from .proof import BUDGETS

NATIVE: Final = "native"
OPTIMUM: Final = "optimum"
BACKENDS: Final = ("auto", NATIVE, OPTIMUM)
CPU: Final = "cpu"
CUDA: Final = "cuda"
AUTO: Final = "auto"
FP32: Final = "fp32"
INT8: Final = "int8"
INT4: Final = "int4"
QUANTIZED: Final = (INT8, INT4)
# target -> its precisions; auto is the first
PRECISIONS: Final = {CPU: (FP32, INT8, INT4), CUDA: (FP16, BF16, INT4)}
TARGETS: Final = tuple(PRECISIONS)
CALIBRATED: Final = (*QUANTIZED, FP16, BF16)  # from what worked solutions make of the model
WHY_NOT: Final = {
    CPU: "the CPU has no kernels of its own for it",
    CUDA: "attention on a GPU computes in half precision",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What the user asked for; None means: decide from the checkpoint."""

    checkpoint: Path
    out: Path | None = None
    recipe: str | None = None
    separator: str | None = None
    good_label: int | None = None
    target: str = CPU
    precision: str = AUTO
    backend: str = "auto"
    calibration: Path | None = None
    drift: float | None = None
    verify: Path | None = None
    expect: Path | None = None
    label_meaning: str | None = None
    notice: str | None = None
    add: bool = False
    allow_drift: bool = False
    ignore_limits: bool = False
    trust_tokenizer_file: bool = False
    overwrite: bool = False
    revision: str | None = None
    base: str | None = None

    @property
    def out_path(self) -> Path:
        """Where the package goes: OUT, else ``./NAME-prm``."""
        return self.out or Path(f"{self.name}-prm")

    @property
    def name(self) -> str:
        """The checkpoint folder's own name."""
        return self.checkpoint.resolve().name or "model"

    @property
    def variant(self) -> str:
        """Name of the variant this export makes."""
        return f"{self.target}-{self.decided.precision}"

    @property
    def decided(self) -> ExportOptions:
        """The same with a precision, the target's first one where the user left it open."""
        if self.precision != AUTO:
            return self
        return replace(self, precision=PRECISIONS.get(self.target, (FP32,))[0])


def check_choices(options: ExportOptions) -> None:
    """Refuse what no checkpoint could be exported with.

    Raises:
        ConfigError: naming the option, what was given and what is allowed.
    """
    for name, value, allowed in (
        ("--target", options.target, TARGETS),
        ("--precision", options.precision, tuple(chain(*PRECISIONS.values()))),
        ("--backend", options.backend, BACKENDS),
        ("--label-meaning", options.label_meaning or "local", LABEL_MEANINGS),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} {value!r} is not one of {', '.join(allowed)}")
    if options.precision == INT8 and options.target != CPU:
        raise ConfigError(
            f"--precision int8 is for the CPU, got --target {options.target}: its products exist "
            "on no other device; leave --target out, or --precision"
        )
    if options.precision not in PRECISIONS[options.target]:
        *first, last = PRECISIONS[options.target]
        known = f"{', '.join(first)} or {last}"
        raise ConfigError(
            f"--target {options.target} is for --precision {known}, got {options.precision}: "
            f"{WHY_NOT[options.target]}; leave --precision out, or change --target"
        )
    if options.calibration is not None and options.precision not in CALIBRATED:
        raise ConfigError(
            f"--calibration is for --precision {', '.join(CALIBRATED)}, got {options.precision}, "
            "which needs none; leave one of them out"
        )
    if options.drift is not None:
        _check_drift(options.precision, options.drift)


def _check_drift(precision: str, drift: float) -> None:
    if precision not in QUANTIZED:
        raise ConfigError(
            f"--drift is for --precision {' or '.join(QUANTIZED)}, got {precision}, which has no "
            "plan to aim; leave one of them out"
        )
    most = BUDGETS[precision].at_most["mean_abs_dp"]
    if not 0 < drift <= most:
        raise ConfigError(
            f"--drift is {drift:g}, and the proof of {precision} allows a mean |dp| of {most:g}: "
            "give that at most, and more than 0"
        )

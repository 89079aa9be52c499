"""What an export runs, and whether that fits here: before any weight is read.

In: a plan and worked solutions. Out: encoded records, a line with the memory, disk and time that
they need, and a refusal where those are not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prm_edge_runtime.encoding import Encoded

from . import cuda_target, preflight, proof
from .options import CUDA, NATIVE
from .package_files import require_free_space
from .plan import Plan
from .quantization.kinds import MENUS
from .quantization.texts import Solutions, load_solutions
from .tokenization import check_tokenization

FLOAT_BYTES: Final = 4
SPARE_BYTES: Final = 64 * 1024 * 1024

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The texts of the proof, their hash and records, and those to quantize or to measure with."""

    texts: list[proof.Text]
    texts_sha256: str
    proof: list[Encoded]
    solutions: Solutions | None
    measured: cuda_target.Measured | None


def workload(plan: Plan, say: Say) -> Workload:
    """Read and encode what will be run, as transformers encodes it.

    Raises:
        CheckpointError: when texts cannot be read, or none can be used.
        ProofError: when ours and transformers' tokens differ.
    """
    options = plan.options
    bundled = proof.BUDGETS[options.precision].texts
    texts, texts_sha256 = proof.texts_for(plan.recipe, options.verify, bundled)
    pairs = [(text.problem, text.steps) for text in texts]
    agreed = check_tokenization(plan.family, plan.encoder, plan.tokenizer, plan.files, pairs)
    say(f"tokenization: {agreed} records encoded exactly as transformers does")
    solutions = None
    if options.precision in MENUS:
        assert plan.decoder is not None  # nothing else is quantized
        solutions = load_solutions(
            options.calibration,
            plan.encoder,
            plan.max_tokens,
            texts,
            plan.decoder.layers * sum(preflight.linear_sizes(plan.decoder)),
        )
    encoded = [plan.encoder.encode(text.problem, text.steps) for text in texts]
    return Workload(
        texts=texts,
        texts_sha256=texts_sha256,
        proof=[record for record in encoded if len(record.ids) <= plan.max_tokens],
        solutions=solutions,
        measured=cuda_target.to_measure(plan, texts) if options.target == CUDA else None,
    )


def require_room(plan: Plan, work: Workload, folder: Path, say: Say) -> None:
    """Say what it will take, and refuse what does not fit.

    Raises:
        ExportError: naming what is needed and what there is.
    """
    if plan.decoder is None or plan.backend != NATIVE:
        needed = FLOAT_BYTES * parameters(plan) + len(plan.files.raw) + SPARE_BYTES
        require_free_space(folder, needed)
        return
    fitted = work.solutions.calibration if work.solutions else []
    searched = work.solutions.search if work.solutions else []
    measured = work.measured.records if work.measured else []
    needs = preflight.estimate(
        plan.decoder,
        plan.options.variant,
        preflight.lengths(
            [len(record.ids) for record in (*fitted, *searched, *measured, *work.proof)],
            [len(record.ids) for record in fitted],
        ),
        gflops=preflight.measured_gflops(),
    )
    say(needs.line())
    preflight.require(needs, folder, ignore=plan.options.ignore_limits)


def parameters(plan: Plan) -> int:
    """How many numbers the checkpoint's tensors hold."""
    return sum(math.prod(info.shape) for info in plan.checkpoint.tensors.info.values())

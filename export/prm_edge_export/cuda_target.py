"""A variant for a GPU: its precision from what the model's values reach, its graph, its check.

In: a plan and worked solutions. Out: the graph, and a scorer on it for the proof: on the GPU where
there is one, else on the CPU, and it says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from prm_edge_runtime import Scorer, ort
from prm_edge_runtime.encoding import Encoded
from prm_edge_runtime.errors import CheckpointError, DeviceError, ProofError, UnsupportedError
from prm_edge_runtime.manifest import TOKENIZER_NAME
from prm_edge_runtime.package import Package

from . import cuda_blocks, gpu_memory, proof, ranges
from .graph import GRAPH_NAME
from .half import BF16, FP16, build_half
from .half_blocks import widen_blocks
from .options import INT4
from .pace import paced
from .package_files import listed_files
from .plan import Plan
from .quantization.kinds import CUDA_MENU
from .quantization.layers import LayerRunner, StoredReference
from .quantization.search import Quantized
from .quantization.texts import CALIBRATION, Solutions, refuse_shared
from .ranges import Folds
from .reference import refuse_unused

GPU: Final = "the graph itself, on this machine's GPU"
ROUNDED: Final = "a float32 graph on the CPU with the same weights and each node's result rounded"
# by the precision of activations
CHECKS: Final = {
    # between two nodes that it computes in float32 onnxruntime does not round: not enough alone
    FP16: f"{ROUNDED} to float16, and the graph itself there",
    BF16: f"{ROUNDED} to bfloat16",
}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Worked solutions that the ranges are measured on, encoded, and the hash of their texts."""

    records: list[Encoded]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """What was decided from the measured ranges, and the reference's answers for the proof.

    ``form``: the precision of activations, which is the variant's own unless that is int4.
    """

    precision: str
    form: str
    reason: str
    folds: Folds
    reference: StoredReference
    report: dict[str, Any]


def decide(
    plan: Plan,
    measured: Measured,
    proven: Sequence[Encoded],
    scratch: Path,
    *,
    open_choice: bool,
    say: Say,
) -> Half:
    """Measure the model and choose float16, folded where it must be, or bfloat16.

    ``proven``: the records of the proof. ``open_choice``: whether the user left the precision open,
    as int4 does that of activations.

    Raises:
        CheckpointError: as reading the weights.
        UnsupportedError: when float16 was asked for and cannot hold values or weights.
    """
    assert plan.decoder is not None  # the plan refused every other backend
    found, reference = ranges.measure(
        LayerRunner(plan.decoder, plan.head, plan.checkpoint.tensors, scratch=scratch),
        plan.decoder,
        plan.checkpoint.tensors,
        [*measured.records, *proven],
        len(measured.records),
        paced("ranges and reference", say),
    )
    folds, beyond, faint = ranges.fold(found)
    asked, what = plan.options.precision, "precision"
    if asked == INT4:
        asked, what, open_choice = FP16, "activations", True
    form, reason = _chosen(asked, found, folds, beyond, faint, open_choice)
    reason = f"{what}: {reason}"
    say(reason)
    folds = folds if form == FP16 else Folds()
    return Half(
        precision=INT4 if plan.options.precision == INT4 else form,
        form=form,
        reason=reason,
        folds=folds,
        reference=reference,
        report=_report(found, folds, beyond + faint, measured.digest),
    )


def _chosen(
    asked: str,
    found: ranges.Ranges,
    folds: Folds,
    beyond: list[str],
    faint: list[str],
    open_choice: bool,
) -> tuple[str, str]:
    """The precision, and a line that says why."""
    said = f"{_largest(found)}, float16 holds {ranges.LARGEST:.0f}"
    if asked != FP16:
        return BF16, f"bf16, as asked ({said})"
    if beyond:
        reason = f"no folding brings it into float16: {beyond[0]}"
        if not open_choice:
            raise UnsupportedError(f"{said}; {reason}; use --precision bf16")
        return BF16, f"bf16 ({said}; {reason})"
    if faint and open_choice:
        return BF16, f"bf16 ({said}; {faint[0]})"
    what = _described(folds) if folds else "nothing needs folding"
    return FP16, f"fp16 ({said}, {ranges.HEADROOM:g} times as much must fit for values; {what})"


def _largest(found: ranges.Ranges) -> str:
    """The largest value, and the largest weight, of what is held in half precision."""
    size, at = max((s, at) for at, s in found.largest.items() if at[1] != ranges.STREAM)
    weight = max(found.weights, key=lambda one: one.largest)
    return (
        f"largest value {size:.3g} ({found.worst[at]}), largest weight {weight.largest:.3g} "
        f"({weight.name})"
    )


def _report(found: ranges.Ranges, folds: Folds, beyond: list[str], digest: str) -> dict[str, Any]:
    weight = max(found.weights, key=lambda one: one.largest)
    by_part = {part: max(sizes.values()) for part in ranges.PARTS if (sizes := found.of(part))}
    return {
        "largest": max(size for part, size in by_part.items() if part != ranges.STREAM),
        "by_part": by_part,
        "largest_weight": {"name": weight.name, "size": weight.largest},
        "beyond_float16": beyond,
        "folds": {
            "embedding": folds.embedding,
            **{part: dict(folds.parts.get(part, {})) for part in ranges.FOLDED},
        },
        "calibration_texts": digest,
    }


def to_measure(plan: Plan, texts: Sequence[proof.Text]) -> Measured:
    """The worked solutions to measure on; ``texts``, of the proof, may not be among them.

    Raises:
        CheckpointError: when they cannot be read, are too long, or are shared with the proof.
    """
    given, digest = proof.texts_for(plan.recipe, plan.options.calibration, (CALIBRATION,))
    where = str(plan.options.calibration or "the bundled calibration texts")
    refuse_shared(given, texts, where, "the verification texts", "--calibration")
    encoded = [plan.encoder.encode(text.problem, text.steps) for text in given]
    fitting = [record for record in encoded if len(record.ids) <= plan.max_tokens]
    if not fitting:
        raise CheckpointError(
            f"every solution of {where} is longer than the model's {plan.max_tokens} tokens; give "
            "shorter ones with --calibration"
        )
    return Measured(records=fitting, digest=digest)


def _described(folds: Folds) -> str:
    parts = [f"the embedding by 2^-{folds.embedding}"] if folds.embedding else []
    for part in ranges.FOLDED:
        bits = folds.parts.get(part)
        if bits:
            layers = f"{len(bits)} layer{'s' if len(bits) > 1 else ''}"
            parts.append(f"{part} in {layers} by up to 2^-{max(bits.values())}")
    return f"folded, exactly: {', '.join(parts)}"


def build(
    plan: Plan, half: Half, folder: Path, solutions: Solutions | None, say: Say
) -> Quantized | None:
    """Write the variant's graph; what was chosen, where there was a choice of linears.

    Raises:
        CheckpointError, UnsupportedError: as :func:`.half.build_half`.
    """
    quantized = None
    if half.precision == INT4:
        assert solutions is not None  # every calibrated precision that plans has them
        quantized = cuda_blocks.build_within_target(
            plan,
            solutions,
            half.reference,
            folder,
            form=half.form,
            folds=half.folds,
            say=say,
            progress=paced("calibration", say),
        )
    else:
        _build(plan, half, folder, paced("graph", say), widened=False)
    for name in refuse_unused(plan.checkpoint.tensors):
        say(f"not needed for scores: {name}")
    return quantized


def _build(
    plan: Plan, half: Half, folder: Path, progress: Callable[[int, int], None], *, widened: bool
) -> None:
    assert plan.decoder is not None  # as in decide
    build_half(
        plan.decoder,
        plan.head,
        plan.checkpoint.tensors,
        folder,
        precision=half.form,
        folds=half.folds,
        max_tokens=plan.max_tokens,
        widened=widened,
        progress=progress,
    )


def _widen(plan: Plan, half: Half, packaged: Path, folder: Path) -> None:
    """Write the float32 graph that the variant is checked with."""
    if half.precision != INT4:
        _build(plan, half, folder, lambda done, total: None, widened=True)
        return
    assert plan.decoder is not None  # as in decide
    widen_blocks(
        plan.decoder,
        plan.head,
        plan.checkpoint.tensors,
        packaged,
        folder,
        form=half.form,
        folds=half.folds,
        max_tokens=plan.max_tokens,
    )


def report(plan: Plan, half: Half, quantized: Quantized | None, say: Say) -> dict[str, Any]:
    """What a report has of a GPU besides: measured ranges, estimated memory, which is also said."""
    assert plan.decoder is not None  # as in decide
    share = None if quantized is None else quantized.report["shares"][CUDA_MENU.kinds[0]]
    needs = gpu_memory.estimate(
        plan.decoder,
        half.precision,
        tokens=min(plan.max_tokens, gpu_memory.USUAL_TOKENS),
        first_share=share,
    )
    say(needs.line())
    return {"ranges": half.report, "gpu_memory": {**asdict(needs), "total": needs.total}}


def open_for_proof(
    plan: Plan, half: Half, package: Package, scratch: Path, say: Say
) -> tuple[Scorer, str]:
    """A scorer that does what the variant does, and what it is; ``scratch`` must outlive it.

    Raises:
        EngineError: when onnxruntime cannot load the graph.
    """
    variant = package.manifest.variants[0]
    if ort.cuda_available():
        try:
            return Scorer.from_package(package, variant), GPU
        except DeviceError as error:
            say(f"no GPU to prove it on: {error}")
    _widen(plan, half, package.path(variant.graph).parent, scratch)
    (scratch / TOKENIZER_NAME).write_bytes(plan.files.raw)
    listed = replace(package.manifest, files=listed_files(scratch))
    rounded = replace(variant, device="cpu", graph=GRAPH_NAME)
    rounding = replace(package, root=scratch, manifest=listed)
    return Scorer.from_package(rounding, rounded), CHECKS[half.form]


def check_itself(
    plan: Plan, half: Half, package: Package, texts: Sequence[proof.Text]
) -> dict[str, float]:
    """Run the float16 graph itself on the CPU, which has no bfloat16, within its self-test's limit.

    The rounded graph is what the budget is for. This one is rounded elsewhere than on a GPU, and
    shows that what was written is the same model. int4, which may lose more at a single step, is
    held to its budget of means.

    Raises:
        ProofError: when it is not.
    """
    if half.form != FP16:
        return {}
    variant = replace(package.manifest.variants[0], device="cpu")
    with Scorer.from_package(package, variant) as scorer:
        results = proof.compare(scorer, plan.encoder, half.reference, texts)
        figures = proof.measure(results, scorer.threshold)
    largest, allowed = float(figures["max_abs_dp"]), proof.BUDGETS[half.precision].tolerance
    if half.precision == INT4:
        over = proof.check_budget(figures, results, INT4)
        wrong = None if over is None else f"is {over}\n"
    else:
        text = f"differs from torch by up to {largest:.3g}, allowed are {allowed:g}, "
        wrong = None if largest <= allowed else text
    if wrong is not None and not plan.options.allow_drift:
        raise ProofError(
            f"run on the CPU, the graph itself {wrong}though the same graph in float32 passed: "
            "please report this\nnothing was written"
        )
    return {"on_cpu_max_abs_dp": largest}

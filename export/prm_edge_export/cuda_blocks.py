"""The int4 variant for CUDA: calibrate, then build the smallest graph within the target.

In: what an export decided, and the half precision that its activations have. Out: the graph in its
folder and what was chosen. Drift is measured on the CPU, on a float32 graph made from the packaged
bytes in which each node's result is rounded as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from .half import BF16, FP16, scales
from .half_blocks import build_blocks, widen_blocks
from .model_config import DecoderConfig
from .plan import Plan
from .quantization import choose
from .quantization.kinds import CUDA_MENU, W4, W8
from .quantization.layers import LayerRunner, StoredReference
from .quantization.search import (
    Drift,
    Quantized,
    drift_of,
    find_plan,
    report_of,
    trial_variant,
    worst_of,
)
from .quantization.texts import Solutions
from .quantization.weight_only import FORMS, calibrate_blocks
from .ranges import Folds

# what onnxruntime's fused kernel asks of a product: multiples of so many outputs, and of a block
FUSED_OUTPUTS: Final = {W4: 64, W8: 32}
SCALE_TYPES: Final = {FP16: torch.float16, BF16: torch.bfloat16}

Say = Callable[[str], None]


def build_within_target(
    plan: Plan,
    solutions: Solutions,
    reference: StoredReference,
    folder: Path,
    *,
    form: str,
    folds: Folds,
    say: Say,
    progress: Callable[[int, int], None],
) -> Quantized:
    """Write ``model.onnx`` and its data into ``folder``; activations have the precision ``form``.

    Raises:
        CheckpointError: when a tensor is missing, has another shape or is not finite.
        UnsupportedError: when a value is beyond the range of ``form``.
    """
    assert plan.decoder is not None  # the plan refused every other backend
    config, head, tensors = plan.decoder, plan.head, plan.checkpoint.tensors
    searched = solutions.search
    with TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        calibration = calibrate_blocks(
            LayerRunner(config, head, tensors, scratch=scratch),
            config,
            solutions.calibration,
            searched,
            scratch,
            menu=replace(CUDA_MENU, drift=plan.options.drift),
            factors={tensor: scale.factor for tensor, scale in scales(config, folds).items()},
            scale_type=SCALE_TYPES[form],
            progress=progress,
        )

        def build(chosen: choose.Plan) -> Drift:
            build_blocks(
                config, head, tensors, folder, form=form, folds=folds, calibration=calibration,
                plan=chosen, max_tokens=plan.max_tokens,
            )  # fmt: skip
            wide = scratch / "wide"
            wide.mkdir(exist_ok=True)
            widen_blocks(
                config, head, tensors, folder, wide, form=form, folds=folds,
                max_tokens=plan.max_tokens,
            )  # fmt: skip
            variant = trial_variant(config, CUDA_MENU)
            return drift_of(wide, variant, head, plan.recipe.score, searched, calibration.outputs)

        chosen, drift = find_plan(calibration, build, say)
    unfused = sorted(
        f"layer {layer} {unit}"
        for (layer, unit), kind in chosen.items()
        if not fusable(config, unit, kind)
    )
    if unfused:
        say(
            f"{len(unfused)} of {len(chosen)} linears have sizes that the fused CUDA kernel does "
            f"not take, first {unfused[0]}; their weights are widened at every run"
        )
    return Quantized(
        reference=reference,
        report={
            "activations": form,
            "unfused": unfused,
            **report_of(calibration, chosen, drift, solutions),
        },
        worst=worst_of(calibration, chosen),
        opening=(),
    )


def fusable(config: DecoderConfig, unit: str, kind: str) -> bool:
    """Whether the fused kernel takes the products of a unit in this kind."""
    queries = config.heads * config.head_dim
    outputs, inputs = {
        "qkv": (queries + 2 * config.kv_heads * config.head_dim, config.hidden),
        "o": (config.hidden, queries),
        "gate_up": (config.intermediate, config.hidden),
        "down": (config.hidden, config.intermediate),
    }[unit]
    return outputs % FUSED_OUTPUTS[kind] == 0 and inputs % FORMS[kind].block == 0

"""What an export comes to, in a few lines: size, plan, drift, speed.

In: a scorer on the finished variant and the report. Out: figures and lines for the user.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from prm_edge_runtime import Scorer

from .proof import Text

_TIMED_TEXTS: Final = 5
_ROUNDS: Final = 3


def measure_speed(scorer: Scorer, texts: Sequence[Text]) -> dict[str, float | int]:
    """Tokens per second on the longest texts that fit: the median of a few rounds."""
    longest = sorted(texts, key=lambda text: -len(text.problem) - sum(map(len, text.steps)))
    timed = longest[:_TIMED_TEXTS]
    seconds, tokens = [], 0
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        tokens = sum(scorer.score(text.problem, text.steps).n_tokens_run for text in timed)
        seconds.append(time.perf_counter() - start)
    return {
        "tokens_per_s": round(tokens / statistics.median(seconds), 1),
        "tokens": tokens,
        "records": len(timed),
    }


def table(report: Mapping[str, Any]) -> list[str]:
    """The report of one variant as lines."""
    proof, size = report["proof"], report["size"]
    rows = [
        ("size", f"{size['bytes'] / 1e6:.1f} MB for {size['parameters'] / 1e6:.1f}M parameters"),
        (
            "drift",
            f"mean |dp| {proof['mean_abs_dp']:.2e}, max {proof['max_abs_dp']:.2e}, relative RMS of "
            f"logits {proof['logit_rel_rms']:.2e}",
        ),
        (
            "verdicts",
            f"{proof['step_flip_rate']:.2%} of {proof['steps']} steps flip, first errors agree in "
            f"{proof['first_error_agreement']:.1%} of {proof['solutions']} solutions",
        ),
    ]
    if report["speed"] is not None:
        shown = (
            f"{report['speed']['tokens_per_s']:.0f} tokens/s on this machine, records of about "
            f"{report['speed']['tokens'] // report['speed']['records']} tokens"
        )
        rows.append(("speed", shown))
    if "plan" in report:
        shares = report["plan"]["shares"].items()
        shown = ", ".join(f"{share:.1%} {kind}" for kind, share in shares)
        rows.insert(1, ("plan", f"{shown} of the multiply-adds of its linears"))
    return [f"{report['variant']}:", *(f"  {name:9} {text}" for name, text in rows)]

"""What a CUDA variant takes of a GPU's memory, estimated from shapes; nothing of it was measured.

In: a decoder's config and a precision. Out: bytes of each part, and a line for the user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prm_edge_runtime.engine import LIMITS

from .model_config import DecoderConfig
from .preflight import linear_sizes
from .quantization.kinds import CUDA_MENU

HALF_BYTES: Final = 2
FLOAT_BYTES: Final = 4
# a context, the libraries' kernels, cuBLAS' workspace: about what an empty process holds
BASE_BYTES: Final = 500_000_000
USUAL_TOKENS: Final = 2048  # of the longest record, where nobody says otherwise
# of a weight and its share of a scale in 16 bits, for each 32 weights
W4_BYTES: Final = 0.5 + HALF_BYTES / 32
W8_BYTES: Final = 1 + HALF_BYTES / 32
# values of a token that live at once: of the hidden size in float32, the stream, what is added to
# it, what is normed; in half precision, queries and what attention gives; of the intermediate size,
# gate, its activation, up and their product
WIDE: Final = 3
NARROW: Final = 2
INNER: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Bytes. ``cache``: keys and values of ``tokens`` tokens; ``working``: of the longest run."""

    weights: int
    cache: int
    working: int
    tokens: int

    @property
    def total(self) -> int:
        """With what CUDA itself takes."""
        return BASE_BYTES + self.weights + self.cache + self.working

    def line(self) -> str:
        """As the user is told."""
        return (
            f"about {self.total / 1e9:.1f} GB of GPU memory: weights {self.weights / 1e9:.2f}, "
            f"keys and values of {self.tokens:,} tokens {self.cache / 1e9:.2f}, working memory "
            f"{self.working / 1e9:.2f}, CUDA itself {BASE_BYTES / 1e9:.1f}; estimated, and "
            f"{1000 * self.cache / self.tokens / 1e9:.3f} more for each 1,000 tokens beyond"
        )


def estimate(
    config: DecoderConfig,
    precision: str,
    *,
    tokens: int = USUAL_TOKENS,
    first_share: float | None = None,
) -> GpuMemory:
    """Of a variant in ``fp16``, ``bf16`` or ``int4``, for one record of so many tokens.

    ``first_share``: of the linears' weights, those in 4 bits; without it the least that a plan
    leaves there.
    """
    sizes = linear_sizes(config)
    linears = config.layers * sum(sizes)
    embedding = config.vocab * config.hidden
    run = min(tokens, LIMITS["cuda"].run_tokens)
    narrow = NARROW * config.hidden + INNER * config.intermediate
    working = run * (FLOAT_BYTES * WIDE * config.hidden + HALF_BYTES * narrow)
    if precision == CUDA_MENU.precision:
        share = CUDA_MENU.least if first_share is None else first_share
        each = share * W4_BYTES + (1 - share) * W8_BYTES
        weights = int(linears * each) + embedding + FLOAT_BYTES * config.vocab
        # where the fused kernel does not run, the largest weight is widened
        working += HALF_BYTES * max(*sizes[:2], sizes[2] // 2, sizes[3])
    else:
        weights = HALF_BYTES * (linears + embedding)
    per_token = 2 * config.layers * config.kv_heads * config.head_dim * HALF_BYTES
    return GpuMemory(weights=weights, cache=tokens * per_token, working=working, tokens=tokens)

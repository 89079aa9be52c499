"""What an export is going to take, and whether it fits: before any weight is read.

In: what was decided, and how long the texts are. Out: memory, disk and time, estimated from the
shapes, and a refusal where they are not there. Memory is what the process holds at its fullest
stage; the constants below were measured (benchmarks/big.py). H hidden size, I intermediate size.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from prm_edge_runtime.errors import ExportError

from .checkpoint import ROWS_AT_ONCE
from .model_config import DecoderConfig
from .quantization.layers import BATCH_TOKENS
from .quantization.measuring import JUDGED_TOKENS
from .quantization.weights import MAX_COMPENSATED

# libraries, tokenizer and graph; what torch needs for a product it has not seen yet
BASE_BYTES: Final = 600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Bytes of one weight of a linear, by where it lies, and of one of the embedding.

    ``session``: in a CPU session that runs it. ``kinds``: how many kinds of each linear are tried;
    ``forms``: how many of them have rounded weights of their own. ``bases``: whether two bases
    are compared first.
    """

    file: float
    scratch: float
    session: float
    embedding: int
    kinds: int = 0
    forms: int = 0
    bases: bool = False


# by variant, else by precision
COSTS: Final = {
    "fp32": Cost(file=4, scratch=0, session=4.3, embedding=4),
    # beside it lies the float32 graph that it is checked with
    "fp16": Cost(file=2, scratch=4, session=4.3, embedding=6),
    "bf16": Cost(file=2, scratch=4, session=4.3, embedding=6),
    "int8": Cost(file=1.15, scratch=1.1, session=1.3, embedding=1, kinds=2, forms=1, bases=True),
    "int4": Cost(file=0.7, scratch=1.6, session=0.9, embedding=1, kinds=2, forms=2, bases=True),
    # both kinds of blocks, and the float32 graph that it is checked with
    "cuda-int4": Cost(file=0.7, scratch=5.8, session=4.3, embedding=5, kinds=2, forms=2),
}
SPARE_BYTES: Final = 64 * 1024 * 1024  # of disk: graph, tokenizer, rotary tables
RERUN: Final = 3.1  # share of a layer that is run again for each kind, all four units together
BASIS_SHARE: Final = 0.5  # of the calibration texts' pass: some of them, to compare two bases
SESSION_SHARE: Final = 0.6  # of a pass of the texts in float32: the plans and the proof, in 8 bits
FACTOR_WORK: Final = 3.3  # operations per inputs^3: Cholesky and its inverse, in float64
ROUNDING_WORK: Final = 3.0  # per weight and input: column after column is slower than a product
ATTENTION_COPIES: Final = 3  # scores, their softmax, and what is added to them
_PROBE: Final = 768


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Tokens of the records that are run, and the longest of them."""

    tokens: int
    longest: int
    calibration_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Bytes and seconds, estimated."""

    memory: int
    disk: int
    seconds: float

    def line(self) -> str:
        """As the user is told."""
        minutes = max(1, math.ceil(self.seconds / 60))
        return (
            f"needs about {self.memory / 1e9:.1f} GB of memory, {self.disk / 1e9:.1f} GB of disk "
            f"and {minutes} min"
        )


def estimate(config: DecoderConfig, variant: str, texts: Texts, *, gflops: float) -> Needs:
    """What it takes to export a variant (``cpu-int8``) of a decoder with the native backend.

    ``gflops``: thousand million operations a second of float32 products here.
    """
    cost = COSTS.get(variant) or COSTS[variant.rpartition("-")[2]]
    units = linear_sizes(config)
    layer, largest = sum(units), max(units)
    linears = config.layers * layer
    embedding = cost.embedding * config.vocab * config.hidden
    batch = max(BATCH_TOKENS, texts.longest)
    rows = 4 * batch * (3 * config.intermediate + 6 * config.hidden)
    attention = ATTENTION_COPIES * 4 * config.heads * texts.longest**2
    # a layer in float32, and one weight on its way into it
    stages = [4 * layer + rows + attention + 3 * largest, 4 * 4 * ROWS_AT_ONCE * config.hidden]
    judged = min(JUDGED_TOKENS, texts.calibration_tokens)
    if cost.kinds:
        # two copies of a weight in float32 and two forms of it, and GPTQ's square matrices
        moments = (4 * 3 + 8 * 4) * config.hidden**2
        stages[0] += 2 * 5 * largest + 2 * 4 * config.hidden * judged + moments
    stages.append(int(cost.session * linears) + embedding + rows)
    return Needs(
        memory=BASE_BYTES + max(stages),
        disk=int((cost.file + cost.scratch) * linears)
        + embedding
        + 4 * config.hidden * texts.tokens
        + SPARE_BYTES,
        seconds=_operations(config, cost, texts) / (gflops * 1e9),
    )


def _operations(config: DecoderConfig, cost: Cost, texts: Texts) -> float:
    """Float32 operations that take as long as the export does."""
    units = linear_sizes(config)
    linears = config.layers * sum(units)
    if not cost.kinds:
        return 2 * linears * 2 * texts.tokens  # the reference, and the proof
    judged = min(JUDGED_TOKENS, texts.calibration_tokens)
    tokens = (
        texts.tokens
        + judged * (1 + RERUN * cost.kinds)
        + texts.calibration_tokens * BASIS_SHARE * cost.bases
        + texts.tokens * SESSION_SHARE
    )
    widths = (
        config.hidden,
        config.heads * config.head_dim,
        config.hidden,
        config.intermediate,
    )
    rest = 0.0  # of a layer: second moments of inputs, their factors, compensated rounding
    for width, size in zip(widths, units, strict=True):
        inputs = min(width, MAX_COMPENSATED)
        rest += 2 * texts.calibration_tokens * width * inputs
        rest += FACTOR_WORK * width * inputs**2
        rest += ROUNDING_WORK * cost.forms * size * inputs
    return 2 * linears * tokens + config.layers * rest


def linear_sizes(config: DecoderConfig) -> list[int]:
    """Weights of the linears that are worked on together: qkv, o, gate and up, down."""
    hidden, wide = config.hidden, config.intermediate
    queries = config.heads * config.head_dim
    keys = config.kv_heads * config.head_dim
    return [hidden * (queries + 2 * keys), hidden * queries, 2 * hidden * wide, hidden * wide]


def require(needs: Needs, folder: Path, *, ignore: bool) -> None:
    """Refuse what does not fit into free memory and disk, where the system says what is free.

    Raises:
        ExportError: naming what is needed and what there is; never with ``ignore``.
    """
    if ignore:
        return
    free = shutil.disk_usage(folder).free
    if free < needs.disk:
        raise ExportError(
            f"writing the package needs {needs.disk / 1e9:.2f} GB of disk, scratch files included, "
            f"and {folder} has {free / 1e9:.2f} GB free: free some space or give a folder on "
            "another disk; --ignore-limits goes on all the same"
        )
    memory = available_memory()
    if memory is not None and memory < needs.memory:
        raise ExportError(
            f"this export needs about {needs.memory / 1e9:.1f} GB of memory and "
            f"{memory / 1e9:.1f} GB are available: end other programs, give shorter texts, or "
            "take a larger machine; --ignore-limits goes on all the same"
        )


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can have without swapping; None where the system does not say.

    The lesser of what Linux calls available and what is left of the control group's limit.
    """
    found = [_meminfo(root / "proc/meminfo")]
    for limit, used in (
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
        (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        most, now = _number(root / limit), _number(root / used)
        if most is not None and now is not None:
            found.append(max(most - now, 0))
    known = [value for value in found if value is not None]
    return min(known) if known else None


def _meminfo(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def measured_gflops() -> float:
    """How fast this machine multiplies float32 matrices right now, in a moment."""
    one = torch.ones(_PROBE, _PROBE)
    one @ one
    start_s = time.perf_counter()
    one @ one
    return 2 * _PROBE**3 / 1e9 / max(time.perf_counter() - start_s, 1e-9)


def lengths(records: Sequence[int], calibration: Sequence[int] = ()) -> Texts:
    """Sum up records by their numbers of tokens; ``calibration``: those among them."""
    return Texts(
        tokens=sum(records), longest=max(records, default=1), calibration_tokens=sum(calibration)
    )

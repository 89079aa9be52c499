"""What is timed on a GPU, by prm-edge and by torch: what gpu_smoke.py and gpu_peers.py share.

Texts are made to have a number of tokens; prm-edge is given the texts, torch the token ids, so that
tokenizing counts against prm-edge alone. Medians of the rounds, the first of which is not counted.
"""

from __future__ import annotations

import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from prm_edge_runtime import Scorer, ort
from prm_edge_runtime.errors import PrmEdgeError
from prm_edge_runtime.memory import GRAPHS, graph_bytes

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import checkpoints

CANDIDATES: Final = 16
WORDS: Final = ("12 apples cost $3", "so x = 4", "2x + 3 = 11", "Solve it", "that is 5 * 7 = 35")
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A problem and steps, and what they are encoded to: ids (T,), read positions (N,).

    ``prompt``: tokens before the first step.
    """

    problem: str
    steps: tuple[str, ...]
    ids: Ids
    reads: Ids
    prompt: int


def no_gpu() -> str | None:
    """Why CUDA cannot be used, in one sentence; None when a graph really ran on it."""
    try:
        session = ort.open_copier(graph_bytes(GRAPHS["cleared"]), ort.Place(device="cuda"))
        session.run(None, {"shape": np.array([1, 1, 1, 1], dtype=np.int64)})
    except PrmEdgeError as error:
        return str(error)
    except Exception as error:  # onnxruntime raises many unrelated types
        return f"CUDA was opened and failed on its first run: {error}"
    return None


def machine(device: str) -> str:
    """What ran this, for the table."""
    runtime = ort.load_onnxruntime()
    parts = [f"onnxruntime {runtime.__version__}", f"torch {torch.__version__}", platform.machine()]
    if device == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        parts.insert(0, f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")
    elif device == "cuda":
        parts.insert(0, "a GPU that this build of torch cannot name")
    return ", ".join(parts)


def make_checkpoint(folder: Path, **shape: Any) -> Path:
    """A random Qwen2 of some shape with a small vocabulary, as TRL's PRMTrainer saves it."""
    return checkpoints.trl_qwen2(folder, initializer_range=0.02, **shape)


def record(scorer: Scorer, rng: random.Random, *, prompt: int, steps: Sequence[int]) -> Record:
    """A record whose problem and steps have about so many tokens."""
    encoder = scorer._encoder

    def text(tokens: int, length: Callable[[str], int]) -> str:
        said = ""
        while length(said) < tokens:
            said += f" {rng.choice(WORDS)}."
        return said

    problem = text(prompt, lambda said: len(encoder.encode_prompt(said)))
    given = tuple(text(n, lambda said: len(encoder.encode_step(said))) for n in steps)
    return encoded_record(scorer, problem, given)


def encoded_record(scorer: Scorer, problem: str, steps: tuple[str, ...]) -> Record:
    """A record of these texts."""
    encoded = scorer._encoder.encode(problem, steps)
    prompt = len(scorer._encoder.encode_prompt(problem))
    return Record(problem=problem, steps=steps, ids=encoded.ids, reads=encoded.reads, prompt=prompt)


def median_s(run: Callable[[], object], rounds: int) -> float:
    """Seconds of one run: what it returns must be on the host, so that nothing is still running."""
    run()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Torch:
    """transformers' own token classifier, with or without its KV cache managed by hand."""

    def __init__(self, model: Any, device: str, *, compiled: bool = False) -> None:
        self.model, self.device = model, device
        if compiled:
            self.model = torch.compile(model, dynamic=True)

    @classmethod
    def of(cls, checkpoint: Path, device: str, dtype: Any) -> Torch:
        """A checkpoint on a device."""
        from transformers import AutoModelForTokenClassification

        # sdpa is what transformers takes when nothing is said; said, so that it stays
        model = AutoModelForTokenClassification.from_pretrained(
            checkpoint, dtype=dtype, attn_implementation="sdpa"
        )
        return cls(model.to(device).eval(), device)

    def _ids(self, ids: Any) -> torch.Tensor:
        return torch.as_tensor(ids, device=self.device)

    @torch.inference_mode()
    def solution(self, one: Record) -> NDArray[np.float32]:
        """Logits of one record. -> (N, C)"""
        logits = self.model(input_ids=self._ids(one.ids)[None], use_cache=False).logits[0]
        found: NDArray[np.float32] = logits[self._ids(one.reads)].float().cpu().numpy()
        return found

    @torch.inference_mode()
    def many(self, records: Sequence[Record], rows: int = 16) -> list[NDArray[np.float32]]:
        """Logits of records, those of like length padded together."""
        found: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * len(records)
        order = sorted(range(len(records)), key=lambda index: len(records[index].ids))
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            width = len(records[chosen[-1]].ids)
            ids = np.zeros((len(chosen), width), dtype=np.int64)
            for row, index in enumerate(chosen):
                ids[row, : len(records[index].ids)] = records[index].ids
            # causal, and padded behind what is read: no mask is needed, and none is faster
            logits = self.model(input_ids=self._ids(ids), use_cache=False).logits
            for row, index in enumerate(chosen):
                found[index] = logits[row, self._ids(records[index].reads)].float().cpu().numpy()
        return found

    @torch.inference_mode()
    def best_of(self, candidates: Sequence[Record]) -> list[NDArray[np.float32]]:
        """Logits of candidates of one problem, whose keys and values are computed once."""
        from transformers import DynamicCache

        first = candidates[0].ids
        shared = min(_common(first, one.ids) for one in candidates)
        shared = min(shared, *(int(one.reads[0]) for one in candidates))
        cache = DynamicCache()
        self.model(input_ids=self._ids(first[:shared])[None], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(candidates))
        width = max(len(one.ids) for one in candidates) - shared
        ids = np.zeros((len(candidates), width), dtype=np.int64)
        for row, one in enumerate(candidates):
            ids[row, : len(one.ids) - shared] = one.ids[shared:]
        logits = self.model(input_ids=self._ids(ids), past_key_values=cache, use_cache=True).logits
        return [
            logits[row, self._ids(one.reads - shared)].float().cpu().numpy()
            for row, one in enumerate(candidates)
        ]

    @torch.inference_mode()
    def session(self, one: Record) -> float:
        """The same record, a step at a time, its keys and values kept by hand."""
        from transformers import DynamicCache

        cache, last, at = DynamicCache(), 0.0, 0
        for end in [one.prompt, *(int(read) + 1 for read in one.reads)]:
            ids = self._ids(one.ids[at:end])[None]
            logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            last, at = float(logits[0, -1, 0]), end
        return last

    @torch.inference_mode()
    def stepper(self, context: Ids, step: Ids) -> Callable[[], float]:
        """A step after a context that is in the cache already."""
        from transformers import DynamicCache

        cache = DynamicCache()
        self.model(input_ids=self._ids(context)[None], past_key_values=cache, use_cache=True)

        @torch.inference_mode()
        def run() -> float:
            logits = self.model(
                input_ids=self._ids(step)[None], past_key_values=cache, use_cache=True
            ).logits
            cache.crop(-len(step))
            return float(logits[0, -1, 0])

        return run


def _common(one: Ids, other: Ids) -> int:
    n = min(len(one), len(other))
    differs = one[:n] != other[:n]
    return int(differs.argmax()) if differs.any() else n


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """The records of every case: a solution of 512 tokens; 32 of 256 to 768; candidates of 120
    after a problem of 400; a step of 30 at 1,000; a session of 20 steps of 30."""

    one: Record
    many: list[Record]
    best: list[Record]
    long: Record
    session: Record


def cases(scorer: Scorer) -> Cases:
    """Made by prm-edge's encoder, for everybody; texts are up to 6 tokens longer than asked."""
    rng = random.Random(3)
    many = [record(scorer, rng, prompt=100, steps=[rng.randint(9, 49)] * 12) for _ in range(32)]
    rng = random.Random(4)
    first = record(scorer, rng, prompt=396, steps=[19] * 5)
    best = [first]
    for _ in range(CANDIDATES - 1):
        steps = record(scorer, rng, prompt=1, steps=[19] * 5).steps
        best.append(encoded_record(scorer, first.problem, steps))
    return Cases(
        one=record(scorer, random.Random(5), prompt=100, steps=[37] * 10),
        many=many,
        best=best,
        long=record(scorer, random.Random(6), prompt=396, steps=[54] * 10 + [25]),
        session=record(scorer, random.Random(7), prompt=396, steps=[25] * 20),
    )


def session_case(scorer: Scorer, one: Record) -> Callable[[], float]:
    """A whole session, a step at a time."""

    def run() -> float:
        with scorer.session(one.problem) as session:
            return [session.add(step) for step in one.steps][-1]

    return run


def step_case(scorer: Scorer, one: Record) -> Callable[[], float]:
    """The last step of a record, after a session has taken all before it."""
    session = scorer.session(one.problem)
    for step in one.steps[:-1]:
        session.add(step)
    return lambda: session.peek([one.steps[-1]])[0]


def step_ids(one: Record) -> tuple[Ids, Ids]:
    """The same for torch: what is there, and the step's own tokens."""
    at = int(one.reads[-2]) + 1
    return one.ids[:at], one.ids[at : int(one.reads[-1]) + 1]


def largest_dp(scorer: Scorer, reference: Torch, records: Sequence[Record]) -> tuple[float, float]:
    """Largest and mean difference of scores from torch's."""
    from prm_edge_runtime import scoring

    differences = []
    for one in records:
        ours = np.array(scorer.score(one.problem, one.steps).scores, dtype=float)
        theirs = scoring.scores_from_logits(reference.solution(one), scorer.recipe.score)
        differences.append(abs(ours - theirs))
    joined = np.concatenate(differences)
    return float(joined.max()), float(joined.mean())

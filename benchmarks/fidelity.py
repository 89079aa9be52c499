"""Compare a package with transformers in float32 on real worked solutions, record by record.

Usage: python benchmarks/fidelity.py --package PKG --checkpoint CKPT --data FILE.jsonl[.gz]

The reference shares no code with the exporter: transformers loads the checkpoint itself, and
texts are encoded with transformers' own tokenizer as TRL's PRMTrainer or the Qwen2.5-Math-PRM
model card does it. Both sides are timed from text to scores, alternating within each record.
Exit: 0 when max |dp| is within --max-dp, else 1.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

QWEN_TAG: Final = "<extra_0>"
# the system sentence of the Qwen2.5-Math-PRM model cards
QWEN_SYSTEM: Final = "Please reason step by step, and put your final answer within \\boxed{}."
TOOLS: Final = ("torch", "transformers", "tokenizers", "onnxruntime", "numpy")
GOOD: Final = 1  # the logit that means a good step, in both shapes
PROGRESS_EVERY: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One worked solution."""

    id: str
    problem: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Token ids of a record, and the position at which each step is read."""

    ids: list[int]
    reads: list[int]


class Reference(Protocol):
    """A checkpoint as transformers loads it."""

    def encode(self, problem: str, steps: Sequence[str]) -> Row:
        """Ids and read positions as the model was trained on them."""
        ...

    def logits(self, row: Row) -> torch.Tensor:
        """(N read positions, 2)"""
        ...


def read_records(path: Path, limit: int | None = None) -> list[Record]:
    """Read ``{"problem", "steps"}`` lines, gzipped or not; records without steps are left out."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    records = []
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            data = json.loads(line)
            if data["steps"]:
                name = str(data.get("id", number))
                records.append(Record(id=name, problem=data["problem"], steps=tuple(data["steps"])))
    return records[:limit]


# --- references


def hugging_face() -> Any:
    """transformers, which has no type information worth checking; imported when first used."""
    import transformers

    return transformers


def trl_row(tokenizer: Any, separator: str, problem: str, steps: Sequence[str]) -> Row:
    """Encode as TRL's PRMTrainer.tokenize_row does: in pieces, the label on each separator."""
    ids: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids += tokenizer(problem, add_special_tokens=False)["input_ids"]
    ends = tokenizer.encode(separator, add_special_tokens=False)
    reads = []
    for step in steps:
        ids += tokenizer(step, add_special_tokens=False)["input_ids"] + ends
        reads.append(len(ids) - 1)
    return Row(ids=ids, reads=reads)


def card_row(tokenizer: Any, problem: str, steps: Sequence[str]) -> Row:
    """Encode as the Qwen2.5-Math-PRM model card does: chat template, read at each tag."""
    messages = [
        {"role": "system", "content": QWEN_SYSTEM},
        {"role": "user", "content": problem},
        {"role": "assistant", "content": QWEN_TAG.join(steps) + QWEN_TAG},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    (tag,) = tokenizer.encode(QWEN_TAG, add_special_tokens=False)
    return Row(ids=ids, reads=[index for index, one in enumerate(ids) if one == tag])


class TrlReference:
    """What ``AutoModelForTokenClassification`` makes of a checkpoint trained with TRL."""

    def __init__(self, checkpoint: Path, separator: str) -> None:
        self.tokenizer: Final = hugging_face().AutoTokenizer.from_pretrained(checkpoint)
        self.separator: Final = separator
        model, info = hugging_face().AutoModelForTokenClassification.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True
        )
        refuse_missing(info)
        self.model: Final = model.eval()

    def encode(self, problem: str, steps: Sequence[str]) -> Row:
        return trl_row(self.tokenizer, self.separator, problem, steps)

    def logits(self, row: Row) -> torch.Tensor:
        with torch.inference_mode():
            everywhere = self.model(input_ids=torch.tensor([row.ids]), use_cache=False).logits
        picked: torch.Tensor = everywhere[0, row.reads]
        return picked


class QwenPrmReference:
    """A ``Qwen2Model`` and the two affine layers that Qwen2.5-Math-PRM has on top of it."""

    def __init__(self, checkpoint: Path) -> None:
        from safetensors import safe_open

        self.tokenizer: Final = hugging_face().AutoTokenizer.from_pretrained(checkpoint)
        model, info = hugging_face().Qwen2Model.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True
        )
        refuse_missing(info)
        self.model: Final = model.eval()
        self.head: Final[dict[str, torch.Tensor]] = {}
        for file in sorted(checkpoint.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                self.head.update(
                    {
                        name: tensors.get_tensor(name).float()
                        for name in tensors.keys()  # noqa: SIM118 - a handle, not a dict
                        if name.startswith("score.")
                    }
                )

    def encode(self, problem: str, steps: Sequence[str]) -> Row:
        return card_row(self.tokenizer, problem, steps)

    def logits(self, row: Row) -> torch.Tensor:
        linear = torch.nn.functional.linear
        with torch.inference_mode():
            ids = torch.tensor([row.ids])
            hidden = self.model(input_ids=ids, use_cache=False).last_hidden_state[0, row.reads]
            first = linear(hidden, self.head["score.0.weight"], self.head["score.0.bias"])
            return linear(first.relu(), self.head["score.2.weight"], self.head["score.2.bias"])


def refuse_missing(info: dict[str, Any]) -> None:
    """A tensor that transformers did not find is a random one: nothing could be compared."""
    if info["missing_keys"]:
        raise SystemExit(f"the checkpoint lacks {sorted(info['missing_keys'])[:4]}")


def load_reference(checkpoint: Path, separator: str) -> Reference:
    """Choose the reference by the architecture that ``config.json`` names."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    name = (config.get("architectures") or [""])[0]
    if name.endswith("ForProcessRewardModel"):
        return QwenPrmReference(checkpoint)
    if name.endswith("ForTokenClassification"):
        return TrlReference(checkpoint, separator)
    raise SystemExit(f"{checkpoint}: architecture {name!r} is neither of the two shapes compared")


# --- comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Both sides of one record; scores are probabilities of a good step."""

    record: Record
    tokens: int
    package_tokens: int
    reference_logits: NDArray[np.float64]  # (N, 2)
    package_logits: NDArray[np.float64]
    reference_scores: NDArray[np.float64]  # (N,)
    package_scores: NDArray[np.float64]
    reference_s: float
    package_s: float


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of the good class. (N, 2) -> (N,)"""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    good: NDArray[np.float64] = shifted[:, GOOD] / shifted.sum(axis=1)
    return good


def compare(scorer: Any, reference: Reference, records: Sequence[Record]) -> Iterator[Compared]:
    """Score every record with both, the one that goes first changing from record to record."""

    def by_reference(record: Record) -> tuple[Row, torch.Tensor]:
        row = reference.encode(record.problem, record.steps)
        return row, reference.logits(row)

    def by_package(record: Record) -> Any:
        return scorer.score(record.problem, record.steps)

    by_reference(records[0])  # first runs allocate; they are nobody's speed
    by_package(records[0])
    for index, record in enumerate(records):
        if index % 2:
            (row, tensor), reference_s = timed(by_reference, record)
            scored, package_s = timed(by_package, record)
        else:
            scored, package_s = timed(by_package, record)
            (row, tensor), reference_s = timed(by_reference, record)
        if not len(tensor) == len(record.steps) == len(scored.scores):
            raise SystemExit(f"record {record.id}: a side has not one score per step")
        if None in scored.scores:
            raise SystemExit(f"record {record.id} is longer than the package's limit")
        logits = tensor.numpy().astype(np.float64)
        yield Compared(
            record=record,
            tokens=row.reads[-1] + 1,
            package_tokens=scored.n_tokens,
            reference_logits=logits,
            package_logits=np.array(scored.logits, dtype=np.float64),
            reference_scores=softmax(logits),
            package_scores=np.array(scored.scores, dtype=np.float64),
            reference_s=reference_s,
            package_s=package_s,
        )


def timed(run: Callable[[Record], Any], record: Record) -> tuple[Any, float]:
    """Run once; also the wall time in seconds."""
    started = time.perf_counter()
    result = run(record)
    return result, time.perf_counter() - started


def first_below(scores: NDArray[np.float64], threshold: float) -> int | None:
    """Index of the first step below the threshold, None when there is none."""
    below = np.flatnonzero(scores < threshold)
    return int(below[0]) if len(below) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is reported. ``logit_*`` are taken around the mean of each logit."""

    records: int
    steps: int
    tokens: int
    token_counts_differ: int
    max_abs_dp: float
    worst: str
    mean_abs_dp: float
    logit_rel_rms: float
    logit_std: float
    score_range: tuple[float, float]
    threshold: float
    step_flips: int
    nearest_to_threshold: float
    first_error_agreement: float
    reference_tokens_per_s: float
    package_tokens_per_s: float
    speed_ratio: float
    threads: int
    versions: dict[str, str] = field(default_factory=dict)


def measure(results: Sequence[Compared], threshold: float, threads: int) -> Figures:
    """Reduce all records to the figures."""
    reference = np.concatenate([r.reference_logits for r in results])
    error = np.concatenate([r.package_logits for r in results]) - reference
    # around the mean: a constant that all logits share must not make the error look small
    std = float(np.sqrt(np.mean((reference - reference.mean(axis=0)) ** 2)))
    differences = [abs(r.reference_scores - r.package_scores) for r in results]
    worst = max(range(len(results)), key=lambda i: float(differences[i].max()))
    torch_scores = np.concatenate([r.reference_scores for r in results])
    ours = np.concatenate([r.package_scores for r in results])
    every = np.concatenate(differences)
    agree = [
        first_below(r.reference_scores, threshold) == first_below(r.package_scores, threshold)
        for r in results
    ]
    return Figures(
        records=len(results),
        steps=len(every),
        tokens=sum(r.tokens for r in results),
        token_counts_differ=sum(r.tokens != r.package_tokens for r in results),
        max_abs_dp=float(every.max()),
        worst=f"{results[worst].record.id} step {int(differences[worst].argmax())}",
        mean_abs_dp=float(every.mean()),
        logit_rel_rms=float(np.sqrt(np.mean(error**2))) / max(std, 1e-30),
        logit_std=std,
        score_range=(float(torch_scores.min()), float(torch_scores.max())),
        threshold=threshold,
        step_flips=int(((torch_scores < threshold) != (ours < threshold)).sum()),
        nearest_to_threshold=float(abs(torch_scores - threshold).min()),
        first_error_agreement=sum(agree) / len(agree),
        reference_tokens_per_s=float(np.median([r.tokens / r.reference_s for r in results])),
        package_tokens_per_s=float(np.median([r.tokens / r.package_s for r in results])),
        speed_ratio=float(np.median([r.reference_s / r.package_s for r in results])),
        threads=threads,
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions of everything that could matter, and the day."""
    from prm_edge_runtime import __version__

    return {
        "prm-edge": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in TOOLS},
        "machine": platform.machine(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def table(figures: Figures) -> str:
    """The figures as aligned text."""
    low, high = figures.score_range
    rows = {
        "records": f"{figures.records}",
        "steps": f"{figures.steps}",
        "tokens": f"{figures.tokens} (records whose count differs: {figures.token_counts_differ})",
        "max |dp|": f"{figures.max_abs_dp:.2e} ({figures.worst})",
        "mean |dp|": f"{figures.mean_abs_dp:.2e}",
        "relative RMS error of logits": f"{figures.logit_rel_rms:.2e}",
        "std of reference logits": f"{figures.logit_std:.3f} (scores {low:.4f} to {high:.4f})",
        f"step flips at {figures.threshold:g}": (
            f"{figures.step_flips} (nearest score is {figures.nearest_to_threshold:.1e} away)"
        ),
        "first-error agreement": f"{figures.first_error_agreement:.4f}",
        "transformers fp32, tokens/s": f"{figures.reference_tokens_per_s:.0f}",
        "package, tokens/s": f"{figures.package_tokens_per_s:.0f}",
        "package / transformers": f"{figures.speed_ratio:.2f} (median of paired ratios)",
        "threads": f"{figures.threads}",
        "versions": ", ".join(f"{name} {value}" for name, value in figures.versions.items()),
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines: problem, steps")
    parser.add_argument("--variant", help="variant of the package (default: the best for CPU)")
    parser.add_argument("--separator", default="\n", help="TRL's step separator, C escapes")
    parser.add_argument("--limit", type=int, help="only the first N records")
    parser.add_argument("--threads", type=int, default=2, help="of both sides")
    parser.add_argument("--max-dp", type=float, default=1e-4, help="exit 1 beyond it")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    from prm_edge_runtime import Scorer

    options = parse(arguments)
    separator = options.separator.encode("latin-1").decode("unicode_escape")
    torch.set_num_threads(options.threads)
    records = read_records(options.data, options.limit)
    if not records:
        raise SystemExit(f"{options.data} holds no record with steps")
    reference = load_reference(options.checkpoint, separator)
    results = []
    with Scorer.load(
        options.package, device="cpu", variant=options.variant, threads=options.threads
    ) as scorer:
        for done in compare(scorer, reference, records):
            results.append(done)
            if len(results) % PROGRESS_EVERY == 0:
                print(f"{len(results)} of {len(records)} records", file=sys.stderr, flush=True)
        figures = measure(results, scorer.threshold, options.threads)
    print(json.dumps(asdict(figures), indent=2) if options.json else table(figures))
    return 0 if figures.max_abs_dp <= options.max_dp else 1


if __name__ == "__main__":
    sys.exit(main())

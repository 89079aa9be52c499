"""Every family: a checkpoint of the same tensors, and its authors' procedure in torch as judge.

Used by the quick tests with tiny tokenizers, and with published ones by test_real_families.py and
benchmarks/families.py.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import checkpoints
import family_checkpoints
import torch_reference
from transformers import PreTrainedTokenizerFast

Record = tuple[str, list[str]]
Judge = Callable[[Path, str, list[str]], list[float]]

# small, so that 200 solutions are judged in minutes, and random enough for what stands before a
# tag to matter; the vocabulary is the tokenizer's own
REAL_SIZES: Final = {
    "hidden_size": 32,
    "head_dim": 16,
    "initializer_range": 0.4,
    "max_position_embeddings": 4096,
}
FILES: Final = ("tokenizer.json", "tokenizer_config.json")


def _validity(size: str) -> Judge:
    return lambda path, p, s: torch_reference.reasoneval_scores(path, p, s, size)[0]


@dataclass(frozen=True, kw_only=True)
class Case:
    """``recipe``: named with --recipe, because a checkpoint cannot say it. ``strip``: whether the
    authors' own procedure gets steps without whitespace at their ends. ``published``: folder of
    the published tokenizer, as its family has it once ``renamed`` and ``prepare`` are done.
    """

    maker: Callable[..., Path]
    judge: Judge
    published: str
    changes: dict[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    separator: str | None = None
    strip: bool = True
    aggregate: str = "min"
    renamed: tuple[str, str] | None = None
    prepare: Callable[[Any], object] = lambda tok: None
    spread: float = 0.2  # how far apart scores must be for the comparison to mean something


def _bos_token(tok: Any) -> None:
    tok.bos_token = "<|endoftext|>"


def _chatml(tok: Any) -> None:
    tok.chat_template = checkpoints.CHATML


TAG: Final = ("<|quad_end|>", "<extra_0>")  # as in the PRM's own repository
CASES: Final[dict[str, Case]] = {
    "trl": Case(
        maker=checkpoints.trl_qwen2,
        judge=lambda path, p, s: torch_reference.torch_scores(path, p, s, "\n"),
        published="qwen2_5",
        separator="\n",
        strip=False,
    ),
    "pure": Case(
        maker=checkpoints.trl_qwen2,
        judge=torch_reference.pure_scores,
        published="qwen2_5",
        recipe="pure",
        strip=False,
        aggregate="softmin",
    ),
    "qwen2.5-math-prm": Case(
        maker=checkpoints.qwen_prm,
        judge=torch_reference.qwen_prm_scores,
        published="qwen2_5",
        renamed=TAG,
        prepare=_chatml,
        strip=False,
        aggregate="last",
    ),
    "reasonflux-prm": Case(
        maker=checkpoints.qwen_prm,
        judge=lambda path, p, s: torch_reference.qwen_prm_scores(path, p, s, None),
        published="qwen2_5",
        renamed=TAG,
        prepare=_chatml,
        recipe="reasonflux-prm",
        strip=False,
        aggregate="last",
    ),
    "skywork-o1-prm": Case(
        maker=family_checkpoints.skywork,
        judge=torch_reference.skywork_scores,
        published="qwen2_5",
        prepare=_bos_token,
        strip=False,
        aggregate="mean",
    ),
    "math-shepherd": Case(
        maker=family_checkpoints.math_shepherd,
        judge=torch_reference.shepherd_scores,
        published="llama2",
        recipe="math-shepherd",
    ),
    **{
        f"rlhflow-{name}": Case(
            maker=family_checkpoints.rlhflow,
            judge=torch_reference.rlhflow_scores,
            published="llama3_1",
            recipe=f"rlhflow-{name}",
            aggregate="mean",
        )
        for name in ("deepseek", "mistral")
    },
    "reasoneval-7b": Case(
        maker=family_checkpoints.reasoneval,
        judge=_validity("7B"),
        published="llama2",
        strip=False,
    ),
    "reasoneval-34b": Case(
        maker=family_checkpoints.reasoneval,
        judge=_validity("34B"),
        changes={"large": True},
        published="llama2",
        strip=False,
    ),
    "actprm": Case(
        maker=family_checkpoints.actprm,
        judge=torch_reference.actprm_scores,
        published="qwen2_5",
        renamed=TAG,
        prepare=_chatml,
        strip=False,
        aggregate="last",
    ),
    "pqm": Case(
        maker=family_checkpoints.pqm, judge=torch_reference.pqm_scores, published="llama3_1"
    ),
    "llemma": Case(
        maker=family_checkpoints.llemma, judge=torch_reference.llemma_scores, published="llama2"
    ),
    "er-prm": Case(
        maker=family_checkpoints.tagged,
        judge=torch_reference.er_prm_scores,
        published="llama3_1",
        recipe="er-prm",
    ),
    "versaprm": Case(
        maker=family_checkpoints.tagged,
        judge=torch_reference.versaprm_scores,
        published="llama3_1",
        recipe="versaprm",
    ),
    "math-psa": Case(
        maker=family_checkpoints.tagged,
        judge=torch_reference.math_psa_scores,
        changes={"qwen": True},
        published="qwen2_5",
        recipe="math-psa",
    ),
    "reasonflux-prm-1.5b": Case(
        maker=family_checkpoints.trajectory,
        judge=torch_reference.trajectory_scores,
        published="qwen2_5",
        strip=False,
        aggregate="last",
    ),
}


def published_tokenizer(case: Case, tokenizers: Path, folder: Path) -> Any:
    """The published tokenizer as its family has it, from the files as they stand."""
    folder.mkdir(parents=True)
    for name in FILES:
        text = (tokenizers / case.published / name).read_text(encoding="utf-8")
        if case.renamed is not None:
            text = text.replace(*case.renamed)
        (folder / name).write_text(text, encoding="utf-8")
    tok = PreTrainedTokenizerFast.from_pretrained(folder)
    case.prepare(tok)
    return tok


def make(name: str, folder: Path, tokenizers: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """A checkpoint and the options of its export; with published tokenizers if they are given."""
    case = CASES[name]
    changes = {"initializer_range": REAL_SIZES["initializer_range"], **case.changes}
    options: dict[str, Any] = {"recipe": case.recipe, "separator": case.separator}
    if tokenizers is not None:
        changes |= REAL_SIZES
        changes["tok"] = published_tokenizer(case, tokenizers, folder / "tokenizer")
        options["trust_tokenizer_file"] = True
    return case.maker(folder / "checkpoint", **changes), options


def judged(name: str, checkpoint: Path, problem: str, steps: list[str]) -> list[float]:
    """The scores of the family's authors."""
    case = CASES[name]
    return case.judge(checkpoint, problem, [s.strip() for s in steps] if case.strip else steps)


def real_records(data: Path, count: int) -> Iterator[Record]:
    """Worked solutions of ProcessBench, by turns from its GSM8K and its MATH part."""
    rows = []
    for part in ("processbench_gsm8k", "processbench_math_dev"):
        with gzip.open(data / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows.append([json.loads(line) for line in islice(lines, (count + 1) // 2)])
    for pair in zip(*rows, strict=True):
        yield from ((row["problem"], row["steps"]) for row in pair)

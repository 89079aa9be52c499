"""Train a LoRA and a token-classification head on SmolLM2-135M, as TRL's PRMTrainer encodes.

    python benchmarks/real_checkpoints.py CKPT --only smollm2-135m-trl
    python -m training.smollm2.train --base CKPT/smollm2-135m-trl --data ../shared/data \
        --out training/smollm2/adapter --minutes 70

Out: a peft adapter in float16 whose base is that checkpoint, and ``<out>.resume.pt``, from which
the same command goes on. The learning rate follows the share of the minutes spent. Needs peft.
The layers below the adapted ones need no gradient, so a step costs about half of a full one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaForTokenClassification

from ..generator import Solution
from .data import mixture

log = logging.getLogger("training.smollm2")

SEED = 7
SEPARATOR = "\n"
IGNORE = -100
LIMIT_TOKENS = 288
BATCH_TOKENS = 1152
POOL = 48  # solutions that are sorted by length before batches are cut
RANK = 16
LEARNING_RATE = 1e-3
SAVE_EVERY_S = 180
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STOP = threading.Event()  # set by SIGTERM: save after the step in hand and leave

Row = tuple[list[int], list[int]]  # ids, labels


def encode(tokenizer: Any, solution: Solution) -> Row | None:
    """Ids and labels as TRL's ``tokenize_row`` makes them; None where it is too long."""

    def plain(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    separator = plain(SEPARATOR)
    ids = [tokenizer.bos_token_id, *plain(solution.problem)]
    labels = [IGNORE] * len(ids)
    for line in solution.lines:
        step = plain(line.text) + separator
        ids += step
        last = IGNORE if line.good is None else int(line.good)
        labels += [IGNORE] * (len(step) - 1) + [last]
    if len(ids) > LIMIT_TOKENS or all(label == IGNORE for label in labels):
        return None
    return ids, labels


def batches(tokenizer: Any, data: Path, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of like length, padded on the right, where a causal model never looks."""
    solutions = mixture(data, seed)
    rng = torch.Generator().manual_seed(seed)
    while True:
        rows: list[Row] = []
        while len(rows) < POOL:
            row = encode(tokenizer, next(solutions))
            rows += [] if row is None else [row]
        rows.sort(key=lambda row: len(row[0]))
        cut: list[list[Row]] = [[]]
        for row in rows:
            if cut[-1] and (len(cut[-1]) + 1) * len(row[0]) > BATCH_TOKENS:
                cut.append([])
            cut[-1].append(row)
        for at in torch.randperm(len(cut), generator=rng).tolist():
            width = max(len(ids) for ids, _ in cut[at])
            ids = torch.full((len(cut[at]), width), tokenizer.pad_token_id)
            labels = torch.full_like(ids, IGNORE)
            for i, (tokens, marks) in enumerate(cut[at]):
                ids[i, : len(tokens)] = torch.tensor(tokens)
                labels[i, : len(marks)] = torch.tensor(marks)
            yield ids, labels


def adapted(base: Path, layers_below: int) -> Any:
    """The base in bfloat16, a LoRA on its upper layers and a new head in float32."""
    torch.manual_seed(SEED)
    model = LlamaForTokenClassification.from_pretrained(base, dtype=torch.bfloat16)
    torch.nn.init.normal_(model.score.weight, std=0.02)
    if model.score.bias is not None:
        torch.nn.init.zeros_(model.score.bias)
    config = LoraConfig(
        task_type=TaskType.TOKEN_CLS,
        r=RANK,
        lora_alpha=2 * RANK,
        lora_dropout=0.0,
        target_modules=PROJECTIONS,
        layers_to_transform=list(range(layers_below, model.config.num_hidden_layers)),
        modules_to_save=["score"],
    )
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


class Run:
    """What a run must remember between two interruptions."""

    def __init__(self, base: Path, data: Path, out: Path, layers_below: int) -> None:
        self.out, self.resume = out, out.with_name(out.name + ".resume.pt")
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.model = adapted(base, layers_below)
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.steps, self.spent_s = 0, 0.0
        seed = SEED
        if self.resume.exists():
            state = torch.load(self.resume, weights_only=True)
            for name, value in state["trained"].items():
                self.trained[name].data.copy_(value)
            self.optimizer.load_state_dict(state["optimizer"])
            self.steps, self.spent_s = state["steps"], state["spent_s"]
            seed += self.steps  # other solutions than the ones before the interruption
            log.info("resumed at step %d, %.0f s", self.steps, self.spent_s)
        self.batches = batches(self.tokenizer, data, seed)

    def save(self) -> None:
        """Write the resume file and the adapter, each by rename."""
        part = self.resume.with_suffix(".part")
        state = {
            "trained": {n: p.detach() for n, p in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "spent_s": self.spent_s,
        }
        torch.save(state, part)
        os.replace(part, self.resume)
        self.out.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: value.half().contiguous()
            for name, value in get_peft_model_state_dict(self.model).items()
        }
        scratch = self.out / "adapter_model.part"
        save_file(tensors, scratch, metadata={"format": "pt"})
        scratch.chmod(0o644)
        os.replace(scratch, self.out / "adapter_model.safetensors")
        config = self.model.peft_config["default"].to_dict()
        config |= {"base_model_name_or_path": None, "inference_mode": True}
        kept = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        text = json.dumps(kept, indent=2, sort_keys=True, default=str) + "\n"
        (self.out / "adapter_config.json").write_text(text, encoding="utf-8")

    def step(self, share: float) -> tuple[float, float]:
        """One update. -> loss, accuracy"""
        ids, labels = next(self.batches)
        warm = min(1.0, (self.steps + 1) / 20)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warm * max(0.02, 1 - share)
        at = labels != IGNORE
        with torch.autocast("cpu", torch.bfloat16):
            # causal and padded on the right: no mask is needed
            hidden = self.model.base_model.model.model(input_ids=ids).last_hidden_state[at]
        logits = self.model.base_model.model.score(hidden.float())
        loss = torch.nn.functional.cross_entropy(logits, labels[at])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.trained.values()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return float(loss), float((logits.argmax(-1) == labels[at]).float().mean())


def train(run: Run, minutes: float) -> None:
    """Train until the minutes are spent, saving every few of them."""
    mean: tuple[float, ...] | None = None
    saved = time.monotonic()
    while run.spent_s < 60 * minutes and not STOP.is_set():
        start = time.monotonic()
        now = run.step(run.spent_s / (60 * minutes))
        run.spent_s += time.monotonic() - start
        mean = tuple(0.97 * m + 0.03 * n for m, n in zip(mean or now, now, strict=True))
        if run.steps % 10 == 0:
            log.info(
                "step %d  %.1f min  loss %.4f  accuracy %.4f", run.steps, run.spent_s / 60, *mean
            )
        if time.monotonic() - saved > SAVE_EVERY_S:
            run.save()
            saved = time.monotonic()
    run.save()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("training/smollm2/adapter"))
    parser.add_argument("--minutes", type=float, default=70)
    parser.add_argument("--layers-below", type=int, default=14, help="that stay as they are")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    train(Run(args.base, args.data, args.out, args.layers_below), args.minutes)


if __name__ == "__main__":
    main()

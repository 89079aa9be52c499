"""Train the default process reward model: one command, seeded, resumable.

    python -m training.train --data ../shared/data --out training/checkpoint --minutes 90

Another run goes on from finished weights with ``--init CHECKPOINT`` and another ``--out``.

Out: a Hugging Face folder (`LlamaForTokenClassification`, labels 0 wrong and 1 good) and
beside it ``<out>.resume.pt``, from which the same command goes on after an interruption.
The learning rate follows the share of the minutes spent, so the run always ends annealed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForTokenClassification

from .batches import IGNORE, Batch, Encoded, Stream, pack, separator_id
from .generator import ERRORS, stream
from .kinds import KINDS_NAME, save_kinds
from .muon import Muon
from .network import both_states
from .real import RealMixture
from .tokens import save_tokenizer, train_tokenizer

log = logging.getLogger("training")

SEED = 20240
BATCH_TOKENS = 6144
POOL_BATCHES = 24
LIMIT_TOKENS = 320
WIDTH = 160
LAYERS = 6
SAVE_EVERY_S = 240
FIT_UPDATES, FIT_LR = 150, 1e-2
STOP = threading.Event()  # set by SIGTERM: save after the step in hand and leave


def make_tokenizer(real: RealMixture, size: int = 800) -> Tokenizer:
    """Learn the tokenizer from training texts, synthetic and real."""
    texts = ["\n"] * 2000
    for solution in itertools.islice(stream(SEED), 20000):
        texts += [solution.problem, *(line.text for line in solution.lines)]
    for problem, lines in real.gsm:
        texts += [problem, *(item if isinstance(item, str) else item.text for item in lines)]
    return train_tokenizer(texts, size)


def make_model(vocabulary: int, pad: int, layers: int = LAYERS) -> LlamaForTokenClassification:
    """A deep, narrow Llama: 1.9 million parameters with six layers, 3.6 with twelve."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=32,
        max_position_embeddings=2048,
        id2label={0: "wrong", 1: "good"},
        label2id={"wrong": 0, "good": 1},
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=None,
        classifier_dropout=0.0,
        use_cache=False,
    )
    return LlamaForTokenClassification(config)


def losses(
    half_way: torch.Tensor,
    hidden: torch.Tensor,
    model: torch.nn.Module,
    forecast: torch.nn.Module,
    naming: torch.nn.Module,
    batch: Batch,
) -> tuple[torch.Tensor, ...]:
    """Of hidden (B, T, H): step loss; helpers' (good so far, next token); kinds'; accuracy.

    What comes next is asked half-way up: a network that knows it only at the top has no layer left
    in which the next token could look back, compare itself with it, and tell the separator.
    """
    at = batch.labels != IGNORE
    logits = model.score(hidden[at])  # (steps, 2)
    labels = batch.labels[at]
    step_loss = cross_entropy(logits, labels)
    spoken = batch.targets != IGNORE
    # A batch of wrong lines only has no next token to teach: a sum over none is zero, not NaN.
    token_loss = cross_entropy(forecast(half_way[spoken]), batch.targets[spoken], reduction="sum")
    token_loss = token_loss / spoken.sum().clamp(min=1)
    inside = batch.so_far != IGNORE
    so_far_loss = cross_entropy(model.score(hidden[inside]), batch.so_far[inside], reduction="sum")
    so_far_loss = so_far_loss / inside.sum().clamp(min=1)
    wrong = batch.kinds != IGNORE
    # Detached: naming the error must cost the scores nothing, so it only reads the network.
    kind_loss = cross_entropy(naming(hidden[wrong].detach()), batch.kinds[wrong], reduction="sum")
    kind_loss = kind_loss / wrong.sum().clamp(min=1)
    accuracy = (logits.argmax(-1) == labels).float().mean()
    return step_loss, so_far_loss, token_loss, kind_loss, accuracy


def rate(share: float, warm: float = 0.01, hold: float = 0.3) -> float:
    """Learning-rate factor after `share` of the time: warm up, hold, fall to zero."""
    if share < warm:
        return share / warm + 0.02
    return 1.0 if share < hold else max(0.0, (1 - share) / (1 - hold))


class Run:
    """Everything a run must remember between two interruptions."""

    def __init__(
        self,
        out: Path,
        data: Path,
        muon_lr: float,
        adam_lr: float,
        init: Path | None = None,
        seed: int = SEED,
        drills: bool = False,
    ) -> None:
        torch.manual_seed(seed)
        self.init, self.data = init, data
        self.network = both_states
        self.out, self.resume = out, out.with_name(out.name + ".resume.pt")
        real = RealMixture(data)
        if not (out / "tokenizer.json").exists():
            if init is None:
                save_tokenizer(make_tokenizer(real), out)
            else:
                save_tokenizer(Tokenizer.from_file(str(init / "tokenizer.json")), out)
        self.tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
        start = "small" if init is None else "drills" if drills else "mixed"
        self.stream = Stream(self.tokenizer, real, seed, LIMIT_TOKENS, start)
        pad = self.tokenizer.token_to_id("<pad>")
        separator_id(self.tokenizer)
        # Of weights that are gone on with, the depth is theirs (`deepen.py`).
        layers = LAYERS
        if init is not None:
            layers = json.loads((init / "config.json").read_text())["num_hidden_layers"]
        self.model = make_model(self.tokenizer.get_vocab_size(), pad, layers)
        self.forecast = torch.nn.Linear(WIDTH, self.tokenizer.get_vocab_size(), bias=False)
        self.naming = torch.nn.Linear(WIDTH, len(ERRORS), bias=False)
        inner = [p for n, p in self.model.named_parameters() if p.ndim == 2 and ".layers." in n]
        outer = [
            p for n, p in self.model.named_parameters() if not (p.ndim == 2 and ".layers." in n)
        ]
        self.optimizers = [
            Muon(inner, lr=muon_lr),
            torch.optim.AdamW(
                [*outer, *self.forecast.parameters(), *self.naming.parameters()],
                lr=adam_lr,
                betas=(0.9, 0.98),
                weight_decay=0.0,
            ),
        ]
        self.base = [muon_lr, adam_lr]
        self.steps, self.pools, self.spent_s = 0, 0, 0.0
        if self.resume.exists():
            self.load()
        elif init is not None:
            self.model.load_state_dict(load_file(init / "model.safetensors"))
            self.naming.weight.data = load_file(init / KINDS_NAME)["weight"].float()

    def load(self) -> None:
        """Go on from the resume file."""
        state = torch.load(self.resume, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.forecast.load_state_dict(state["forecast"])
        self.naming.load_state_dict(state["naming"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.steps, self.pools, self.spent_s = state["steps"], state["pools"], state["spent_s"]
        log.info("resumed at step %d, %.0f s", self.steps, self.spent_s)

    def save(self) -> None:
        """Write the resume file and the Hugging Face folder, each by rename."""
        state = {
            "model": self.model.state_dict(),
            "forecast": self.forecast.state_dict(),
            "naming": self.naming.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "steps": self.steps,
            "pools": self.pools,
            "spent_s": self.spent_s,
        }
        part = self.resume.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.resume)
        folder = self.out.with_name(self.out.name + ".part")
        self.model.save_pretrained(folder)
        save_kinds(self.naming.weight, folder / KINDS_NAME)
        for name in ("config.json", "model.safetensors", KINDS_NAME):
            (folder / name).chmod(0o644)
            os.replace(folder / name, self.out / name)
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()

    def step(self, batch: Batch, share: float) -> tuple[float, ...]:
        """One update; the weight of the helpers falls with the time."""
        factor = rate(share)
        for optimizer, base in zip(self.optimizers, self.base, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
        states = self.network(self.model, batch.ids)  # (B, T) -> twice (B, T, H)
        step_loss, so_far_loss, token_loss, kind_loss, accuracy = losses(
            *states, self.model, self.forecast, self.naming, batch
        )
        weight = 1 - 0.8 * share
        (step_loss + weight * (so_far_loss + token_loss) + kind_loss).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        values = (step_loss, so_far_loss, token_loss, kind_loss, accuracy)
        return tuple(value.item() for value in values)


_STREAM: list[Stream] = []  # of the process that writes solutions


def _open_stream(*about: Any) -> None:
    tokenizer, data, *rest = about
    _STREAM.append(Stream(Tokenizer.from_file(tokenizer), RealMixture(data), *rest))


def _write_pool(number: int, tokens: int, share: float) -> list[Encoded]:
    return _STREAM[0].pool(number, tokens, share)


def pools(run: Run, minutes: float) -> Iterator[list[Batch]]:
    """Endless pools of batches; the next one's solutions are written in a process beside."""
    about = (str(run.out / "tokenizer.json"), run.data, run.stream.seed, LIMIT_TOKENS)
    writer = ProcessPoolExecutor(1, get_context("spawn"), _open_stream, (*about, run.stream.start))

    def ask(number: int) -> Future[list[Encoded]]:
        share = run.spent_s / (60 * minutes)
        return writer.submit(_write_pool, number, POOL_BATCHES * BATCH_TOKENS, share)

    try:
        asked = ask(run.pools)
        while True:
            run.pools += 1
            rows, asked = asked.result(), ask(run.pools)
            rng = random.Random(f"order/{run.stream.seed}/{run.pools}")
            yield pack(rows, BATCH_TOKENS, rng)
    finally:
        writer.shutdown(cancel_futures=True)


def fit_forecast(run: Run, batches: Iterator[Batch], updates: int = FIT_UPDATES) -> None:
    """Fit the throw-away head on finished weights, which stay as they are.

    A checkpoint does not hold it. Begun anew beside a network that moves, it sends noise into
    finished layers until it has learnt.
    """
    optimizer = torch.optim.Adam(run.forecast.parameters(), lr=FIT_LR)
    mean = 0.0
    for at, batch in enumerate(itertools.islice(batches, updates)):
        optimizer.param_groups[0]["lr"] = FIT_LR * (1 - at / updates)
        spoken = batch.targets != IGNORE
        if not spoken.any():
            continue
        with torch.no_grad():
            half_way, _ = run.network(run.model, batch.ids)
        loss = cross_entropy(run.forecast(half_way[spoken]), batch.targets[spoken])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean = 0.9 * (mean or loss.item()) + 0.1 * loss.item()
        if (at + 1) % 50 == 0:
            log.info(
                "fitting the next-token head: update %d of %d  loss %.3f", at + 1, updates, mean
            )


def train(run: Run, minutes: float) -> None:
    """Train until the minutes are spent, saving every few of them."""
    before, saved, seen = run.spent_s, time.monotonic(), 0
    mean: list[float] = []
    batches = itertools.chain.from_iterable(pools(run, minutes))
    if run.steps == 0 and run.init is not None:
        fit_forecast(run, batches)
    start = time.monotonic()
    for batch in batches:
        share = run.spent_s / (60 * minutes)
        if share >= 1:
            break
        now = run.step(batch, share)
        mean = [0.98 * m + 0.02 * n for m, n in zip(mean or now, now, strict=True)]
        seen += batch.ids.numel()
        run.spent_s = before + time.monotonic() - start
        if run.steps % 50 == 0:
            speed = seen / (run.spent_s - before)
            shown = "step %d  %.1f min  loss %.4f  so far %.4f  tokens %.3f  kinds %.3f"
            shown += "  accuracy %.4f  %.0f/s"
            log.info(shown, run.steps, run.spent_s / 60, *mean, speed)
        if time.monotonic() - saved > SAVE_EVERY_S or STOP.is_set():
            run.save()
            saved = time.monotonic()
        if STOP.is_set():
            return
    run.save()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("training/checkpoint"))
    parser.add_argument("--init", type=Path, help="begin with the weights of this checkpoint")
    parser.add_argument("--seed", type=int, default=SEED, help="another one for another run")
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compile", action="store_true", help="1.4 times as fast; needs a C++ compiler"
    )
    parser.add_argument(
        "--drills", action="store_true", help="with --init: begin with sums and moves alone"
    )
    parser.add_argument("--muon-lr", type=float, default=2e-3)
    parser.add_argument("--adam-lr", type=float, default=1e-3)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    run = Run(args.out, args.data, args.muon_lr, args.adam_lr, args.init, args.seed, args.drills)
    if args.compile:
        run.network = torch.compile(both_states, dynamic=True)
    train(run, args.minutes)


if __name__ == "__main__":
    main()

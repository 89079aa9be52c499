"""Record golden scores where a PRM was trained, for ``prm-edge export --expect golden.jsonl``.

In: a model, its tokenizer and raw records. Out: ``golden.jsonl``. Tokenisation is TRL's own
(``PRMTrainer.tokenize_row``), never ours: scores that shared our recipe could not show that the
recipe is wrong. torch, trl and transformers are imported inside the functions that need them::

    from prm_edge.record import golden_recorder

    trainer = PRMTrainer(
        model=model, args=args, train_dataset=train, processing_class=tokenizer,
        callbacks=[golden_recorder("golden.jsonl", list(test.select(range(20))))],
    )
    trainer.train()
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from prm_edge_runtime.errors import ConfigError, InputError, InputTypeError
from prm_edge_runtime.golden import GoldenRecord, read_golden, write_golden, write_records

__all__ = ["golden_recorder", "read_golden", "score_with_trl", "write_golden"]

logger = logging.getLogger("prm_edge")

# newest place first; TRL dropped PRMTrainer after 1.13
TRL_MODULES: Final = ("trl.experimental.prm", "trl.trainer.prm_trainer")
GOOD_CLASS: Final = 1  # TRL stores int(label): class 1 is the good one
IGNORED: Final = -100


def _tokenize_row() -> Callable[..., dict[str, list[int]]]:
    """TRL's own tokenisation of one record."""
    for name in TRL_MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # TRL is there and something it needs is not
            continue
        if hasattr(module, "PRMTrainer"):
            function: Callable[..., dict[str, list[int]]] = module.PRMTrainer.tokenize_row
            return function
    raise ConfigError(
        "TRL's PRMTrainer cannot be imported; golden scores are recorded with TRL's own "
        'tokenisation: pip install "trl==1.13.0", the last release that has it'
    )


def score_with_trl(
    model: Any,
    tokenizer: Any,
    problem: str,
    steps: Sequence[str],
    *,
    step_separator: str,
    max_length: int | None = None,
) -> list[float]:
    """Score the steps of one solution with torch, encoded as TRL's PRMTrainer encodes them.

    Returns softmax(logits)[1] at the label positions, one per step.

    Raises:
        ConfigError: when no TRL with a PRMTrainer is installed, or the model has not two labels.
        InputError: when ``max_length`` cuts off a step, or a text spells a special token.
    """
    ids, reads = _encode(
        tokenizer, problem, steps, step_separator=step_separator, max_length=max_length
    )
    with _evaluating(model):
        return _read_scores(model, ids, reads)


def _encode(
    tokenizer: Any,
    problem: str,
    steps: Sequence[str],
    *,
    step_separator: str,
    max_length: int | None,
) -> tuple[list[int], list[int]]:
    """Token ids of one record and the positions where TRL puts its labels."""
    if isinstance(steps, str):
        raise InputTypeError("steps must be a list of strings, got one string; pass [step, ...]")
    if not steps:
        raise InputError("a golden record needs one step or more, got none")
    _refuse_special_tokens(tokenizer, problem, steps)
    row = _tokenize_row()(
        {"prompt": problem, "completions": list(steps), "labels": [True] * len(steps)},
        tokenizer,
        step_separator=step_separator,
        max_length=max_length,
        max_completion_length=None,
        train_on_last_step_only=False,
        is_eval=True,
    )
    reads = [index for index, label in enumerate(row["labels"]) if label != IGNORED]
    if len(reads) != len(steps):
        raise InputError(
            f"TRL labels {len(reads)} of {len(steps)} steps: the record is longer than "
            f"max_length={max_length} tokens; record a shorter one, or raise max_length"
        )
    return row["input_ids"], reads


def _refuse_special_tokens(tokenizer: Any, problem: str, steps: Sequence[str]) -> None:
    # TRL encodes such text as the special token, a package never does: by design they differ
    for text in (problem, *steps):
        for token in tokenizer.all_special_tokens:
            if token in text:
                raise InputError(
                    f"a text spells the special token {token!r}, which TRL would encode as that "
                    "token and a package never does; leave this record out of the golden scores"
                )


def _read_scores(model: Any, ids: list[int], reads: list[int]) -> list[float]:
    import torch

    device = next(model.parameters()).device
    input_ids = torch.tensor([ids], device=device)  # (1, T)
    with torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
    if logits.shape[-1] != 2:
        raise ConfigError(
            f"the model has {logits.shape[-1]} labels; a model trained by PRMTrainer has 2"
        )
    scores = logits[0, reads].double().softmax(dim=-1)[:, GOOD_CLASS]  # (1, T, 2) -> (N,)
    return [float(score) for score in scores]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Run the model without dropout and without autocast, and leave it as it was."""
    modes = [(module, module.training) for module in model.modules()]
    # accelerate replaces forward by one under autocast when bf16 or fp16 is on, which PRMConfig
    # turns on by default: scores of float32 weights would carry bfloat16 noise
    wrapped = vars(model).get("forward")
    original = vars(model).get("_original_forward")
    model.eval()
    try:
        if wrapped is not None and original is not None:
            model.forward = original
        yield
    finally:
        if wrapped is not None and original is not None:
            model.forward = wrapped
        for module, training in modes:
            module.training = training


def golden_recorder(path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]) -> Any:
    """Make a callback for ``PRMTrainer(callbacks=[...])`` that records golden scores at the end.

    ``records``: raw rows with ``prompt`` and ``completions``, as given to the trainer; 20 of
    them, with solutions right and wrong, are plenty. They are checked when training begins. A
    failure when it ends is logged, not raised, so that it cannot cost a trained model.

    Raises:
        InputError: when a record lacks ``prompt`` or ``completions``, or there is no record.
        ConfigError: when transformers is not installed, or the folder of ``path`` is missing.
    """
    rows = [_row(record, index) for index, record in enumerate(records)]
    if not rows:
        raise InputError("there is no record to score; give golden_recorder one or more")
    target = Path(path).absolute()
    if not target.parent.is_dir():
        raise ConfigError(f"the folder {target.parent} does not exist; create it before training")
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise ConfigError(
            'golden_recorder needs transformers, which is not installed: pip install "trl==1.13.0"'
        ) from error

    class GoldenRecorder(TrainerCallback):  # type: ignore[misc,unused-ignore]  # no stubs
        """Checks the records when training begins, scores them when it ends."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for problem, steps in rows:
                _encode_as_trained(args, kwargs["processing_class"], problem, steps)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            try:
                found = _record(args, kwargs["model"], kwargs["processing_class"], rows)
                if state.is_world_process_zero:  # every rank computes, one writes
                    write_records(target, found)
                    logger.info("wrote %d golden records to %s", len(found), target)
            except Exception:  # the trained model is not saved yet and must not be lost
                logger.exception(
                    "golden scores were not written to %s; training is not affected: "
                    "record them with prm_edge.record.score_with_trl and write_golden",
                    target,
                )

    return GoldenRecorder()


def _row(record: Mapping[str, Any], index: int) -> tuple[str, tuple[str, ...]]:
    prompt, completions = record.get("prompt"), record.get("completions")
    if not isinstance(prompt, str) or not isinstance(completions, list | tuple):
        raise InputError(
            f"record {index} must have the keys prompt (a string) and completions (a list of "
            f"strings), as PRMTrainer reads them; got the keys {sorted(record)}"
        )
    if not completions or not all(isinstance(step, str) for step in completions):
        raise InputError(f"record {index}: completions must hold one string or more")
    return prompt, tuple(completions)


def _encode_as_trained(
    args: Any, tokenizer: Any, problem: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    return _encode(
        tokenizer,
        problem,
        steps,
        step_separator=args.step_separator,
        max_length=args.max_length,
    )


def _record(
    args: Any, model: Any, tokenizer: Any, rows: Sequence[tuple[str, tuple[str, ...]]]
) -> list[GoldenRecord]:
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    found = []
    with _evaluating(model):
        for problem, steps in rows:
            ids, reads = _encode_as_trained(args, tokenizer, problem, steps)
            found.append(
                GoldenRecord(
                    problem=problem,
                    steps=steps,
                    scores=tuple(_read_scores(model, ids, reads)),
                    dtype=dtype,
                    recorder="prm_edge.record.golden_recorder",
                    n_tokens=len(ids),
                )
            )
    return found

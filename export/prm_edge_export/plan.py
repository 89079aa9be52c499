"""Decide what a checkpoint is and how it will be exported, and say why.

In: options and an open checkpoint. Out: a plan with recipe, head, backend and the reasons.
Nothing is written here and no weights are read but their names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from prm_edge_runtime.encoding import RecipeEncoder
from prm_edge_runtime.errors import (
    CheckpointError,
    ProofError,
    UnsupportedError,
)
from prm_edge_runtime.kinds import known_kinds
from prm_edge_runtime.recipe import Recipe

from .checkpoint import Checkpoint
from .config_json import TOKENIZER_NAME
from .detection import architecture, choose_family
from .error_kinds import find_naming
from .families import ASK, Family, Request, encode_plain, good_index
from .head_kinds import CLASSIFIER, LINEAR
from .heads import Head, find_head, vocabulary_rows
from .model_config import ARCHITECTURES, DecoderConfig, read_config
from .options import (
    CUDA,
    NATIVE,
    OPTIMUM,
    PRECISIONS,
    QUANTIZED,
    ExportOptions,
    check_choices,
)
from .refusals import refuse_known
from .tokenization import check_tokenization
from .tokenizer_files import TokenizerFiles, auto_tokenizer, file_tokenizer, read_tokenizer
from .training_args import TRAINING_ARGS_NAME, read_training_args

# whose layers int8 and int4 know: RMS norms, gated silu, linears named as Llama's
INT8_MODEL_TYPES: Final = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything decided before work starts; ``reasons`` are lines for the user."""

    options: ExportOptions
    checkpoint: Checkpoint
    family: Family
    recipe: Recipe
    encoder: RecipeEncoder
    files: TokenizerFiles
    tokenizer: Any
    backend: str
    head: Head
    decoder: DecoderConfig | None  # None: no native graph, the optimum backend alone
    max_tokens: int
    notes: Mapping[str, str | int | float | bool | None]
    reasons: tuple[str, ...] = field(default=())


def make_plan(options: ExportOptions, checkpoint: Checkpoint) -> Plan:
    """Decide everything, or say what is missing.

    Raises:
        CheckpointError: when the checkpoint contradicts itself or leaves something open.
        UnsupportedError: when it is understood and not supported.
    """
    options = options.decided
    check_choices(options)
    reasons: list[str] = []
    notes: dict[str, str | int | float | bool | None] = {}
    if options.notice is not None:
        notes["notice"] = options.notice
    model_type = str(checkpoint.config.get("model_type"))
    files = read_tokenizer(checkpoint.tokenizer_folder)
    refuse_known(checkpoint, files.added)
    found = find_head(checkpoint.tensors)
    family = choose_family(options.recipe, checkpoint, found, files.added, reasons)
    tokenizer = auto_tokenizer(files, model_type)
    head = found or _verdict_rows(checkpoint, family, tokenizer)
    _describe_head(checkpoint, head, reasons)
    backend, decoder = _backend(options, checkpoint, head, reasons)
    head = _with_naming(checkpoint, head, decoder if backend == NATIVE else None, reasons)
    request = Request(
        files=files,
        tokenizer=tokenizer,
        separator=_separator(options, checkpoint, family, reasons, notes),
        good=good_index(family, checkpoint.config, head.logits, options.good_label),
        logits=head.logits,
        config=checkpoint.config,
    )
    request, encoder = _encoder(options, family, request, reasons)
    recipe = encoder.recipe
    if recipe.logits != head.logits:
        raise CheckpointError(
            f"recipe {family.name!r} is for {recipe.logits} logits, the head "
            f"{checkpoint.tensors.where(head.layers[-1].weight)} gives {head.logits}"
        )
    reasons.append(_score_line(recipe))
    vocabulary, max_tokens = _limits(checkpoint, decoder)
    if files.size > vocabulary:
        where = checkpoint.tokenizer_folder / TOKENIZER_NAME
        raise CheckpointError(
            f"{where} has {files.size} ids but the embedding only {vocabulary} rows; use the "
            "tokenizer the model was trained with"
        )
    return Plan(
        options=options,
        checkpoint=checkpoint,
        family=family,
        recipe=recipe,
        encoder=encoder,
        files=files,
        tokenizer=request.tokenizer,
        backend=backend,
        head=head,
        decoder=decoder,
        max_tokens=min(max_tokens, family.max_tokens or max_tokens),
        notes=notes,
        reasons=tuple(reasons),
    )


def _describe_head(checkpoint: Checkpoint, head: Head, reasons: list[str]) -> None:
    layers = ", ".join(
        f"{x.weight}{'' if x.rows is None else f' rows {list(x.rows)}'} [{x.outputs}, {x.inputs}]"
        for x in head.layers
    )
    reasons.append(f"head: {head.kind} ({layers}), architecture {architecture(checkpoint)}")


def _with_naming(
    checkpoint: Checkpoint, head: Head, decoder: DecoderConfig | None, reasons: list[str]
) -> Head:
    naming = find_naming(checkpoint, None if decoder is None else decoder.hidden)
    if naming is None:
        return head
    reasons.append(
        f"kinds of error: {', '.join(known_kinds(naming.names))} ({naming.layer.weight} "
        f"[{naming.layer.outputs}, {naming.layer.inputs}])"
    )
    return replace(head, naming=naming)


def _score_line(recipe: Recipe) -> str:
    score = recipe.score
    good = f", {score.good} is good" if score.kind in ("softmax", "difference") else ""
    if score.kind == "classes":
        good = f", {' and '.join(map(str, score.valid))} are good, {score.redundant} is redundant"
    return f"score: {recipe.score.kind} of {recipe.logits} logits{good}"


def _verdict_rows(checkpoint: Checkpoint, family: Family, tokenizer: Any) -> Head:
    """The rows of the vocabulary with which a language model answers."""
    rows = []
    for word in family.verdicts:
        ids = [word] if isinstance(word, int) else encode_plain(tokenizer, word)
        if len(ids) != 1:
            raise CheckpointError(
                f"recipe {family.name!r} needs {word!r} to be one token, this tokenizer encodes it "
                f"as {ids}; use the tokenizer the model was trained with"
            )
        rows += ids
    tied = checkpoint.config.get("tie_word_embeddings", False) is True
    return vocabulary_rows(checkpoint.tensors, tuple(rows), tied)


def _separator(
    options: ExportOptions,
    checkpoint: Checkpoint,
    family: Family,
    reasons: list[str],
    notes: dict[str, str | int | float | bool | None],
) -> str | None:
    if family.separator is None:
        if options.separator is not None:
            raise CheckpointError(f"recipe {family.name!r} has no separator; leave --separator out")
        return None
    try:
        recorded = read_training_args(checkpoint.root / TRAINING_ARGS_NAME)
    except CheckpointError as error:
        if options.separator is None:
            raise
        reasons.append(f"WARNING: {error}")
        recorded = None
    found = recorded.step_separator if recorded else None
    if recorded is not None and recorded.max_length is not None:
        notes["trained_max_length"] = recorded.max_length
    if options.separator is not None:
        reasons.append(f"separator: {options.separator!r}, as asked")
        if found is not None and found != options.separator:
            reasons.append(
                f"WARNING: {TRAINING_ARGS_NAME} records the separator {found!r}; scores will be "
                "wrong unless that file is from another run"
            )
        return options.separator
    if found is not None:
        reasons.append(f"separator: {found!r}, from {TRAINING_ARGS_NAME}")
        return found
    if family.separator != ASK:
        reasons.append(f"separator: {family.separator!r}, as published for {family.name}")
        return family.separator
    raise CheckpointError(
        f"a TRL checkpoint does not store its step separator and {options.checkpoint} has no "
        f"readable {TRAINING_ARGS_NAME}: if it was trained with the default, run\n"
        f"  prm-edge export {options.checkpoint} --separator '\\n'\n"
        "or if its steps were separated by a blank line, run\n"
        f"  prm-edge export {options.checkpoint} --separator '\\n\\n'"
    )


def quantizable(backend: str, decoder: DecoderConfig | None) -> bool:
    """Whether int8 and int4 know this model's layers."""
    known = decoder is not None and decoder.model_type in INT8_MODEL_TYPES
    return backend == NATIVE and known


def _backend(
    options: ExportOptions, checkpoint: Checkpoint, head: Head, reasons: list[str]
) -> tuple[str, DecoderConfig | None]:
    model_type = checkpoint.config.get("model_type")
    native = model_type in ARCHITECTURES and head.kind != "classifier"
    decoder = read_config(checkpoint.config) if native else None
    backend = options.backend
    if backend == "auto":
        backend = NATIVE if native else OPTIMUM
    if options.precision in QUANTIZED and not quantizable(backend, decoder):
        raise UnsupportedError(
            f"--precision {options.precision} is for {', '.join(INT8_MODEL_TYPES)} with the native "
            f"backend, this is model_type {model_type} with the {backend} backend; use "
            f"--precision {PRECISIONS[options.target][0]}"
        )
    if options.target == CUDA and backend != NATIVE:
        raise UnsupportedError(
            f"--target cuda needs the native backend, this is model_type {model_type} with the "
            f"{backend} backend; leave --target out"
        )
    if backend == NATIVE and decoder is None:
        read_config(checkpoint.config)  # says which architectures there are
        raise UnsupportedError(f"model_type {model_type!r} with a {head.kind} head is not native")
    if backend == OPTIMUM and head.kind not in (LINEAR, CLASSIFIER):
        what = "two-layer" if head.kind == "mlp" else head.kind
        raise UnsupportedError(
            f"optimum cannot export a {what} head: its class is remote code; use --backend native"
        )
    if backend == OPTIMUM:
        from .optimum_backend import check_supported

        check_supported(model_type)
    if decoder is not None and head.layers[0].inputs != decoder.hidden:
        raise CheckpointError(
            f"{head.layers[0].weight} takes {head.layers[0].inputs} values, the hidden size is "
            f"{decoder.hidden}; the checkpoint is damaged"
        )
    reasons.append(f"backend: {backend} (model_type {model_type})")
    return backend, decoder


def _recipe(options: ExportOptions, family: Family, request: Request) -> Recipe:
    recipe = family.build(request)
    if options.label_meaning is None:
        return recipe
    return replace(recipe, label_meaning=options.label_meaning)


def _encoder(
    options: ExportOptions, family: Family, request: Request, reasons: list[str]
) -> tuple[Request, RecipeEncoder]:
    """Build the recipe and check it on probes; the tokenizer that was trained with must be clear.

    transformers 5 gives some model types its own pre-tokenisation whatever tokenizer.json says.
    Where the two differ only the user, or recorded scores, can tell which one it was trained with.
    """
    encoder = RecipeEncoder(request.files.raw, _recipe(options, family, request))
    try:
        check_tokenization(family, encoder, request.tokenizer, request.files, ())
        return request, encoder
    except ProofError as error:
        request = replace(request, tokenizer=file_tokenizer(request.files))
        encoder = RecipeEncoder(request.files.raw, _recipe(options, family, request))
        check_tokenization(family, encoder, request.tokenizer, request.files, ())
        clash = (
            "tokenizer.json and the tokenizer that AutoTokenizer loads for this checkpoint encode "
            f"differently ({error})"
        )
        if options.expect is None and not options.trust_tokenizer_file:
            raise CheckpointError(
                f"{clash}; if the trainer saved tokenizer.json, as TRL does, pass "
                "--trust-tokenizer-file, or better --expect with scores recorded where the model "
                "was trained (prm_edge.record)"
            ) from error
        reasons.append(f"WARNING: {clash}; taking tokenizer.json")
        return request, encoder


def _limits(checkpoint: Checkpoint, decoder: DecoderConfig | None) -> tuple[int, int]:
    """Rows of the embedding, and the longest record."""
    if decoder is not None:
        return decoder.vocab, decoder.max_positions
    from .encoder_config import limits

    return limits(checkpoint)

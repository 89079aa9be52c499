"""A checkpoint's second head, which names errors: ``error_kinds.safetensors`` beside the weights.

The file holds ``weight`` (K, H), perhaps ``bias`` (K,), and in its metadata under ``names`` a JSON
list of K names, in the order of the rows. The head reads what the score's head reads, the hidden
state after the final norm at each read position; of its outputs the likeliest is the kind of error.
A name ``none`` stands for no error and is never given to a step. K outputs, H hidden size.
"""

from __future__ import annotations

import json
from typing import Final

from safetensors import SafetensorError, safe_open

from prm_edge_runtime.errors import CheckpointError, UnsupportedError
from prm_edge_runtime.kinds import names_problem

from .checkpoint import FLOATS, KINDS_FILE, KINDS_NAME, Checkpoint
from .heads import Layer, Naming

NAMES_KEY: Final = "names"
WEIGHT: Final = f"{KINDS_NAME}.weight"
BIAS: Final = f"{KINDS_NAME}.bias"


def find_naming(checkpoint: Checkpoint, hidden: int | None) -> Naming | None:
    """The head that names errors; None where the checkpoint has none.

    ``hidden``: H of a decoder, None for a model of which no native graph is built.

    Raises:
        CheckpointError: when the file is not one of such a head, or does not fit the model.
        UnsupportedError: for a model that is not exported natively.
    """
    tensors = checkpoint.tensors
    found = sorted(name for name in tensors if name.startswith(f"{KINDS_NAME}."))
    path = checkpoint.root / KINDS_FILE
    if not path.is_file():
        if found:
            raise CheckpointError(
                f"{tensors.where(found[0])} begins like the head of {KINDS_FILE}, which is not "
                "there; give the tensor another name"
            )
        return None
    if hidden is None:
        raise UnsupportedError(
            f"{path} names kinds of error, which needs a decoder and the native backend; move it "
            "out of the checkpoint to export the scores alone"
        )
    if found not in ([WEIGHT], [BIAS, WEIGHT]):
        held = ", ".join(name.removeprefix(f"{KINDS_NAME}.") for name in found)
        raise CheckpointError(
            f"{path} must hold the tensor 'weight' and perhaps 'bias', and holds {held or 'none'}; "
            "save it again"
        )
    shape = tensors.shape(WEIGHT)
    if len(shape) != 2 or shape[1] != hidden:
        raise CheckpointError(
            f"{tensors.where(WEIGHT)} has shape {list(shape)}, and must have a row of {hidden} "
            "numbers, the hidden size, for each kind of error; save it again"
        )
    for name, expected in ((WEIGHT, shape), (BIAS, shape[:1])):
        if name not in found:
            continue
        if tensors.shape(name) != expected:
            raise CheckpointError(
                f"{tensors.where(name)} has shape {list(tensors.shape(name))}, expected "
                f"{list(expected)} as 'weight' has {shape[0]} rows; save it again"
            )
        if tensors.info[name].dtype not in FLOATS:
            raise CheckpointError(
                f"{tensors.where(name)} is stored as {tensors.info[name].dtype}, and must be one "
                f"of {', '.join(sorted(FLOATS))}; save it again"
            )
        tensors.torch(name, expected)  # so few numbers: what is not finite is refused at once
    return Naming(
        layer=Layer(
            weight=WEIGHT,
            bias=BIAS if BIAS in found else None,
            inputs=hidden,
            outputs=shape[0],
        ),
        names=_names(checkpoint, shape[0]),
    )


def _names(checkpoint: Checkpoint, rows: int) -> tuple[str, ...]:
    path = checkpoint.root / KINDS_FILE
    try:
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get(NAMES_KEY)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    advice = f"save it with metadata={{{NAMES_KEY!r}: json.dumps([...])}}, one name for each row"
    if stored is None:
        raise CheckpointError(f"{path} does not say what its {rows} rows stand for; {advice}")
    try:
        names = json.loads(stored)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"the metadata {NAMES_KEY!r} of {path} must be a JSON list of texts, got "
            f"{stored[:60]!r}; {advice}"
        )
    if (problem := names_problem(names)) is not None:
        raise CheckpointError(f"the metadata {NAMES_KEY!r} of {path} {problem}")
    if len(names) != rows:
        raise CheckpointError(
            f"the metadata {NAMES_KEY!r} of {path} holds {len(names)} names for {rows} rows; "
            f"{advice}"
        )
    return tuple(names)

"""LoRA adapters, merged into their base one tensor at a time, as it is read.

In: the folder of an adapter that peft saved, and its open base. Out: a checkpoint whose tensors
are the merged ones, in float32. peft itself is not needed: the formulas are those of its
documentation and of ``peft/tuners/lora/layer.py`` (get_delta_weight), and the tests compare with
its merge_and_unload. What is not implemented is refused by name.

::

    linear     W (out, in)  + s * B (out, r) @ A (r, in)
    embedding  W (V, H)     + s * (B (H, r) @ A (r, V)).T
    s = alpha / r, or alpha / sqrt(r) when rank-stabilised
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from prm_edge_runtime.errors import CheckpointError, UnsupportedError

from .adapter_config import ADAPTER_CONFIG, TOKEN_CLS, AdapterConfig, read_adapter_config
from .checkpoint import (
    EMBEDDING_ENDING,
    KINDS_FILE,
    KINDS_NAME,
    Checkpoint,
    TensorInfo,
    Tensors,
)

ADAPTER_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX: Final = "base_model.model."
OUTPUT: Final = "lm_head.weight"
# a head that the base need not have: training put it there, and modules_to_save saved it
HEAD_PREFIXES: Final = ("score.", "classifier.", "v_head.", "head.")

# endings of tensors that no LoRA of the formulas above has -> what they belong to
_FOREIGN: Final[dict[str, str]] = {
    ".lora_magnitude_vector": "DoRA",
    ".lora_magnitude_vector.weight": "DoRA",
    ".lora_B.bias": "lora_bias",
    ".token_adapter.trainable_tokens_delta": "trainable_token_indices",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A product that is added to one matrix: tensor names of its factors, and its factor."""

    a: str
    b: str
    rank: int
    scale: float
    embedding: bool


class AdaptedTensors(Tensors):
    """The tensors of a base with an adapter merged in, each when it is read."""

    def __init__(self, base: Tensors, adapter: Tensors, config: AdapterConfig) -> None:
        """Match every tensor of the adapter with one of the base.

        Raises:
            CheckpointError: for one that fits nothing, naming it and its file.
            UnsupportedError: for one of another kind of adapter, by name.
        """
        self.root = adapter.root
        self.used = set()
        # what names errors reads the states of the model it was trained on: not the base's
        ours = f"{KINDS_NAME}."
        self.info = {name: x for name, x in base.info.items() if not name.startswith(ours)}
        self._base, self._adapter, self._config = base, adapter, config
        self._replaced: dict[str, str] = {}
        self._deltas: dict[str, Delta] = {}
        for stored in sorted(adapter):
            if stored.startswith(ours):
                self.info[stored] = adapter.info[stored]
                self._replaced[stored] = stored
            else:
                self._match(stored)
        for name, stored in self._replaced.items():
            self._replace(name, stored)
        for module, (stored, embedding) in self._pairs().items():
            self._add_delta(module, stored, embedding)
        if not self._deltas and not self._replaced:
            raise CheckpointError(f"{self.root} changes no tensor; its file is empty")

    def _match(self, stored: str) -> None:
        for ending, what in _FOREIGN.items():
            if stored.endswith(ending):
                raise UnsupportedError(
                    f"{self._adapter.where(stored)} belongs to {what}, which is not merged; merge "
                    "it with peft (merge_and_unload(), then save_pretrained())"
                )
        if not stored.startswith(PREFIX):
            raise CheckpointError(
                f"{self._adapter.where(stored)} does not begin with {PREFIX!r}, as peft's do"
            )
        name = stored.removeprefix(PREFIX)
        if ".lora_" in name or ".original_module." in name:
            return  # a factor, or the head as it was before training
        # where bias is "all" peft saves the trained head's bias a second time
        name = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        if name in self._replaced and stored != PREFIX + name:
            return
        self._replaced[name] = stored

    def _replace(self, name: str, stored: str) -> None:
        old, new = self.info.get(name), self._adapter.info[stored]
        if old is None and not name.startswith(HEAD_PREFIXES):
            raise CheckpointError(
                f"{self._adapter.where(stored)} changes {name!r}, which the base in "
                f"{self._base.root} does not have; pass its own base with --base"
            )
        resized = name.endswith((EMBEDDING_ENDING, OUTPUT)) or name.startswith(HEAD_PREFIXES)
        if old is not None and old.shape != new.shape and not resized:
            raise CheckpointError(
                f"{self._adapter.where(stored)} has shape {list(new.shape)}, the base's {name!r} "
                f"{list(old.shape)}; pass its own base with --base"
            )
        self.info[name] = TensorInfo(file=new.file, stored=stored, shape=new.shape, dtype=new.dtype)

    def _pairs(self) -> dict[str, tuple[str, bool]]:
        """Module -> (name of its factor A, whether it is an embedding)."""
        pairs: dict[str, tuple[str, bool]] = {}
        for stored in self._adapter:
            found = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?", stored)
            if found is None:
                if ".lora_" in stored:
                    raise UnsupportedError(
                        f"{self._adapter.where(stored)} is no factor of a LoRA that is merged"
                    )
                continue
            a = stored if found[3] == "A" else _other(stored, "B", "A")
            b = stored if found[3] == "B" else _other(stored, "A", "B")
            for needed in (a, b):
                if needed not in self._adapter:
                    raise CheckpointError(
                        f"{self._adapter.where(stored)} lacks its other half {needed!r}; the file "
                        "is not whole"
                    )
            pairs[found[1].removeprefix(PREFIX)] = (a, found[2] is not None)
        return pairs

    def _add_delta(self, module: str, a: str, embedding: bool) -> None:
        name, b = f"{module}.weight", _other(a, "A", "B")
        where = self._adapter.where(a)
        if name not in self.info:
            raise CheckpointError(
                f"{where} changes {name!r}, which the base in {self._base.root} does not have; "
                "pass its own base with --base"
            )
        shape_a, shape_b = self._adapter.shape(a), self._adapter.shape(b)
        rank = shape_a[0] if shape_a else 0
        wide = self.info[name].shape
        expected = ((rank, wide[0]), (wide[-1], rank)) if embedding else (
            (rank, wide[-1]), (wide[0], rank)
        )  # fmt: skip
        if len(wide) != 2 or (shape_a, shape_b) != expected:
            raise CheckpointError(
                f"{where} has shape {list(shape_a)} and its other half {list(shape_b)}, which do "
                f"not fit {name!r} of shape {list(wide)}; pass its own base with --base"
            )
        scale = self._config.scale(module, rank, where)
        self._deltas[name] = Delta(a=a, b=b, rank=rank, scale=scale, embedding=embedding)

    def where(self, name: str) -> str:
        """A tensor and its file, for messages."""
        if name in self._replaced:
            return self._adapter.where(self._replaced[name])
        return self._base.where(name)

    @property
    def changed(self) -> frozenset[str]:
        """Names of the tensors that the adapter changes."""
        return frozenset({*self._replaced, *self._deltas})

    def _product(
        self, delta: Delta, shape: tuple[int, ...], rows: Sequence[int] | None
    ) -> torch.Tensor:
        outputs, inputs = shape
        picked = slice(None) if rows is None else list(rows)
        if delta.embedding:
            a = self._adapter.torch(delta.a, (delta.rank, outputs))[:, picked]
            b = self._adapter.torch(delta.b, (inputs, delta.rank))
            return (b @ a).T
        a = self._adapter.torch(delta.a, (delta.rank, inputs))
        return self._adapter.torch(delta.b, (outputs, delta.rank))[picked] @ a

    def torch(
        self, name: str, shape: tuple[int, ...], rows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Read a merged tensor; see :meth:`Tensors.torch`."""
        if name in self._replaced:
            tensor = self._adapter.torch(self._replaced[name], shape, rows)
        else:
            tensor = self._base.torch(name, shape, rows)
        delta = self._deltas.get(name)
        if delta is not None:
            tensor = tensor + delta.scale * self._product(delta, shape, rows)
        self.used.add(name)
        return tensor

    def close(self) -> None:
        """Close the files of both."""
        self._base.close()
        self._adapter.close()


def _other(stored: str, one: str, other: str) -> str:
    head, _, tail = stored.rpartition(f"_{one}")
    return f"{head}_{other}{tail}"


class AdaptedCheckpoint(Checkpoint):
    """An adapter on its base: the base's configuration, the merged tensors, either's files."""

    def __init__(self, root: Path, base: Checkpoint) -> None:
        """Open the adapter in ``root`` on an open base, which is closed with it.

        Raises:
            CheckpointError: when the two do not fit each other.
            UnsupportedError: for a kind of adapter that is not merged, by name.
        """
        self.root = root
        self.base = base
        self.folders = (root, base.root)
        self.adapter = read_adapter_config(root)
        adapter = Tensors(root, {_weights(root): None}, plain=False)
        try:
            self.tensors: AdaptedTensors = AdaptedTensors(base.tensors, adapter, self.adapter)
            self.config = self._merged_config(base.config)
            self._check_tied()
        except BaseException:
            adapter.close()
            raise
        self.origin = {"adapter_rank": str(self.adapter.rank)}

    def _merged_config(self, base: dict[str, Any]) -> dict[str, Any]:
        """The base's configuration, with what training it as a token classifier changed."""
        config = dict(base)
        if self.adapter.task == TOKEN_CLS:
            if not any(name.startswith(HEAD_PREFIXES) for name in self.tensors):
                raise CheckpointError(
                    f"{self.root} is a TOKEN_CLS adapter without a head (no score.weight and no "
                    "classifier.weight), and its base has none either; train it with "
                    "modules_to_save=['score']"
                )
            named = config.get("architectures")
            if isinstance(named, list):
                config["architectures"] = [
                    str(name).replace("ForCausalLM", "ForTokenClassification") for name in named
                ]
        for name in self.tensors.changed:
            if name.endswith(EMBEDDING_ENDING) and self.tensors.shape(name):
                config["vocab_size"] = self.tensors.shape(name)[0]
        return config

    def _check_tied(self) -> None:
        tied = self.config.get("tie_word_embeddings") is True or OUTPUT not in self.tensors.info
        both = {name for name in self.tensors.changed if name.endswith((EMBEDDING_ENDING, OUTPUT))}
        if tied and both and self.adapter.task != TOKEN_CLS:
            raise UnsupportedError(
                f"{self.root} changes {' and '.join(sorted(both))} of a base that ties its output "
                "layer to its embedding: which of the two was meant is not stored; merge it where "
                "it was trained"
            )

    def identity(self) -> dict[str, Path]:
        """The files that decide a score, of the adapter and of its base."""
        names = [ADAPTER_CONFIG, _weights(self.root)]
        names += [KINDS_FILE] if (self.root / KINDS_FILE).is_file() else []
        base = {f"base/{name}": path for name, path in self.base.identity().items()}
        return {**{name: self.root / name for name in names}, **base}


def _weights(root: Path) -> str:
    for name in ADAPTER_WEIGHTS:
        if (root / name).is_file():
            return name
    raise CheckpointError(
        f"{root} has an {ADAPTER_CONFIG} and neither {' nor '.join(ADAPTER_WEIGHTS)}; download "
        "the adapter whole"
    )

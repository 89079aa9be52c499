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

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from prm_edge_runtime.errors import CheckpointError, UnsupportedError

from .checkpoint import (
    EMBEDDING_ENDING,
    Checkpoint,
    TensorInfo,
    Tensors,
    read_json,
)

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX: Final = "base_model.model."
OUTPUT: Final = "lm_head.weight"
TOKEN_CLS: Final = "TOKEN_CLS"
TASKS: Final = (TOKEN_CLS, "CAUSAL_LM")
# a head that the base need not have: training put it there, and modules_to_save saved it
HEAD_PREFIXES: Final = ("score.", "classifier.", "v_head.", "head.")

# keys that change what is merged -> the values under which they do not
_NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "ensure_weight_tying": (None, False),
    "fan_in_fan_out": (None, False),
    "kasa_config": (None,),
    "layer_replication": (None, []),
    "lora_bias": (None, False),
    "megatron_config": (None,),
    "monteclora_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "use_bdlora": (None, False),
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "velora_config": (None,),
    # the others change the base's own weights before training starts
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
}
# keys that say how it was trained, or that the tensors say again
_NO_MATTER: Final = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
# endings of tensors that no LoRA of the formulas above has -> what they belong to
_FOREIGN: Final[dict[str, str]] = {
    ".lora_magnitude_vector": "DoRA",
    ".lora_magnitude_vector.weight": "DoRA",
    ".lora_B.bias": "lora_bias",
    ".token_adapter.trainable_tokens_delta": "trainable_token_indices",
}
# at most two quantifiers, none behind a group: nothing that could take for ever
_PATTERN: Final = re.compile(r"(?!.*\)[*+])[\w.\\|()\[\]^$-]*(?:[*+][\w.\\|()\[\]^$-]*){0,2}")
MAX_PATTERN: Final = 200
MAX_RANK: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What ``adapter_config.json`` says about the merge, normalised.

    ``ranks`` and ``alphas``: patterns of module names and their values, in order.
    """

    task: str | None
    base: str | None
    base_revision: str | None
    rank: int
    alpha: float
    stabilised: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    def scale(self, module: str, rank: int, where: str) -> float:
        """The factor of one module's product.

        Raises:
            CheckpointError: when its tensors have another rank than the configuration says.
        """
        expected = _first(self.ranks, module, self.rank)
        if rank != expected:
            raise CheckpointError(
                f"{where} has rank {rank}, {ADAPTER_CONFIG} says {expected} for {module!r}; the "
                "two are not of one adapter"
            )
        alpha = float(_first(self.alphas, module, self.alpha))
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


def _first(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    # peft/utils/other.py, get_pattern_key
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def is_adapter(root: Path) -> bool:
    """Whether a folder holds a LoRA adapter, by its configuration."""
    return (root / ADAPTER_CONFIG).is_file()


def read_adapter_config(root: Path) -> AdapterConfig:
    """Normalise an ``adapter_config.json``.

    Raises:
        UnsupportedError: for a kind of adapter that is not merged, by name.
        CheckpointError: for a value that cannot be.
    """
    path = root / ADAPTER_CONFIG
    config = read_json(path)
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind != "LORA":
        raise UnsupportedError(
            f"{path}: an adapter of peft_type {kind!r} is not merged, only LORA; merge it with "
            "peft (merge_and_unload(), then save_pretrained())"
        )
    if task not in (*TASKS, None):
        raise UnsupportedError(
            f"{path}: task_type {task!r} has no scores of steps; adapters of {' and '.join(TASKS)} "
            "are merged"
        )
    odd = [
        f"{key} {value!r}"
        for key, value in sorted(config.items())
        if (key in _NEUTRAL and value not in _NEUTRAL[key])
        or (key not in _NEUTRAL and key not in _NO_MATTER and value not in (None, False, [], {}))
    ]
    if odd:
        raise UnsupportedError(
            f"{path}: this LoRA is not merged, because of {'; '.join(odd)[:300]}; merge it with "
            "peft (merge_and_unload(), then save_pretrained())"
        )
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    return AdapterConfig(
        task=task,
        base=base if isinstance(base, str) and base else None,
        base_revision=revision if isinstance(revision, str) and revision else None,
        rank=_rank(path, "r", config.get("r")),
        alpha=_number(path, "lora_alpha", config.get("lora_alpha")),
        stabilised=_flag(path, "use_rslora", config.get("use_rslora")),
        ranks={k: _rank(path, k, v) for k, v in _patterns(path, config, "rank_pattern")},
        alphas={k: _number(path, k, v) for k, v in _patterns(path, config, "alpha_pattern")},
    )


def _rank(path: Path, key: str, value: Any) -> int:
    if type(value) is not int or not 0 < value <= MAX_RANK:
        raise CheckpointError(
            f"{path}: {key} must be a whole number from 1 to {MAX_RANK}, got {value!r}"
        )
    return value


def _number(path: Path, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e6:
        raise CheckpointError(f"{path}: {key} must be a number below 1e6, got {value!r}")
    return float(value)


def _flag(path: Path, key: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{path}: {key} must be true or false, got {value!r}")
    return value is True


def _patterns(path: Path, config: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    """Patterns of module names. They are regular expressions: only ones that end are taken."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{path}: {key} must be an object, got {patterns!r:.100}")
    for pattern in patterns:
        if len(pattern) > MAX_PATTERN or not _PATTERN.fullmatch(pattern):
            raise UnsupportedError(
                f"{path}: the pattern {pattern[:100]!r} of {key} is not read; module names, and "
                "expressions with at most two of * and +, none behind a parenthesis, are"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(
                f"{path}: the pattern {pattern!r} of {key} is no regular expression: {error}"
            ) from None
    return list(patterns.items())


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
        self.info = dict(base.info)
        self._base, self._adapter, self._config = base, adapter, config
        self._replaced: dict[str, str] = {}
        self._deltas: dict[str, Delta] = {}
        for stored in sorted(adapter):
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
        self, delta: Delta, shape: tuple[int, ...], rows: tuple[int, ...] | None
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
        self, name: str, shape: tuple[int, ...], rows: tuple[int, ...] | None = None
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
        names = (ADAPTER_CONFIG, _weights(self.root))
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

"""What a LoRA adapter's ``adapter_config.json`` says about merging it; the rest is refused by name.

Only what changes the merged weights is read. A key that is not known must be empty: a later
version of peft may have given it a meaning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError, UnsupportedError

from .config_json import read_json

ADAPTER_CONFIG: Final = "adapter_config.json"
TOKEN_CLS: Final = "TOKEN_CLS"
TASKS: Final = (TOKEN_CLS, "CAUSAL_LM")

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

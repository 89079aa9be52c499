"""Find and open what the user named: a folder, a hub id, or an adapter and its base.

In: CHECKPOINT, ``--revision`` and ``--base``. Out: an open checkpoint. The hub is asked only for
an id that the user typed; what an adapter names is looked for on this machine alone.
The one place that imports huggingface_hub. Weights come as safetensors where a repository has them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError, UnsupportedError
from prm_edge_runtime.manifest import MANIFEST_NAME

from .adapter_config import ADAPTER_CONFIG, is_adapter, read_adapter_config
from .adapters import ADAPTER_WEIGHTS, AdaptedCheckpoint
from .checkpoint import (
    CONFIG_NAME,
    INDEX,
    KINDS_FILE,
    PICKLE,
    PICKLE_INDEX,
    SINGLE,
    Checkpoint,
)
from .config_json import TOKENIZER_NAME
from .training_args import TRAINING_ARGS_NAME

HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
# the files an export reads besides the weights
NEEDED: Final = (
    ADAPTER_CONFIG,
    CONFIG_NAME,
    TOKENIZER_NAME,
    TRAINING_ARGS_NAME,
    "LICENSE*",
    "NOTICE*",
    "README.md",
    "chat_template.jinja",
    KINDS_FILE,
    "reward_head.pt",
    "quant_config.json",
    "quantize_config.json",
    "tokenizer_config.json",
)
# one way to store weights a line, the best first: (whole, index, shards)
WEIGHTS: Final = (
    (SINGLE, INDEX, "model-*-of-*.safetensors"),
    (ADAPTER_WEIGHTS[0], None, None),
    (PICKLE, PICKLE_INDEX, "pytorch_model-*-of-*.bin"),
    (ADAPTER_WEIGHTS[1], None, None),
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A folder, and where it came from."""

    folder: Path
    origin: dict[str, str]


def open_checkpoint(
    path: Path,
    *,
    revision: str | None = None,
    base: str | None = None,
    say: Say = lambda line: None,
) -> Checkpoint:
    """Open a folder, a hub id or an adapter. Use the result as a context manager.

    ``base``: folder or hub id (``org/name``, ``org/name@revision``) of an adapter's base.

    Raises:
        CheckpointError: when it cannot be found or opened.
        UnsupportedError: for what is understood and not exported.
    """
    found = _find(str(path), revision, say)
    if (found.folder / MANIFEST_NAME).is_file():
        raise CheckpointError(
            f"{path} is a package already (it has {MANIFEST_NAME}); name the checkpoint that it "
            "was made from"
        )
    if not is_adapter(found.folder):
        if base is not None:
            raise CheckpointError(
                f"{path} is no adapter (it has no {ADAPTER_CONFIG}): leave --base out"
            )
        checkpoint = Checkpoint(found.folder)
        checkpoint.origin |= found.origin
        return checkpoint
    _refuse_both(found.folder)
    origin = _find_base(found.folder, base, say)
    if is_adapter(origin.folder):
        raise UnsupportedError(
            f"the base {origin.folder} of the adapter {path} is an adapter itself; merge it into "
            "its own base first"
        )
    below = Checkpoint(origin.folder)
    try:
        adapted = AdaptedCheckpoint(found.folder, below)
    except BaseException:
        below.tensors.close()
        raise
    adapted.origin |= found.origin
    name = origin.origin.get("hub", origin.folder.resolve().name)
    adapted.origin["base"] = name
    if "revision" in origin.origin:
        adapted.origin["base_revision"] = origin.origin["revision"]
    return adapted


def _refuse_both(folder: Path) -> None:
    whole = [name for name in (SINGLE, INDEX, PICKLE, PICKLE_INDEX) if (folder / name).is_file()]
    if whole:
        raise CheckpointError(
            f"{folder} holds an adapter ({ADAPTER_CONFIG}) and a whole model ({whole[0]}): which "
            "of them is meant is not clear; move one of them away"
        )


def _find_base(folder: Path, asked: str | None, say: Say) -> Found:
    if asked is not None:
        name, _, revision = asked.partition("@") if HUB_ID.match(asked) else (asked, "", "")
        return _find(name, revision or None, say, "--base")
    config = read_adapter_config(folder)
    advice = "pass it with --base (a folder, or a hub id such as org/name)"
    if config.base is None:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} names no base; {advice}")
    if Path(config.base).is_dir():
        say(f"base: {config.base}, which {ADAPTER_CONFIG} names")
        return Found(folder=Path(config.base), origin={})
    if not HUB_ID.fullmatch(config.base):
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} names the base {config.base!r}, which is no folder here; "
            f"{advice}"
        )
    cached = _cached(config.base, config.base_revision)
    if cached is None:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} names the base {config.base!r}, which is not in the hub's "
            f"cache on this machine: to have it downloaded, pass --base {config.base}"
        )
    say(f"base: {config.base} from the hub's cache, which {ADAPTER_CONFIG} names")
    return cached


def _find(name: str, revision: str | None, say: Say, option: str = "--revision") -> Found:
    folder = Path(name)
    if folder.exists() or not HUB_ID.fullmatch(name):
        if revision is not None:
            given = option if option == "--revision" else f"the @{revision} of {option}"
            raise CheckpointError(
                f"{name} is no hub id, which alone has revisions: leave {given} out"
            )
        return Found(folder=folder, origin={})
    return _from_hub(name, revision, say)


def _from_hub(name: str, revision: str | None, say: Say) -> Found:
    """Ask the hub for the files that are needed; its cache when it cannot be reached.

    Raises:
        CheckpointError: when the hub refuses, or neither has it.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        info = HfApi().model_info(name, revision=revision)
        files = needed_files(file.rfilename for file in info.siblings or [])
        say(f"hub: {name} at {info.sha}, {len(files)} files")
        folder = snapshot_download(name, revision=info.sha, allow_patterns=files)
    except errors.HFValidationError as error:
        raise CheckpointError(f"{name} is no hub id: {error}") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointError(
            f"the hub does not give {name}{_at(revision)}: {_first_line(error)}; check the id and "
            "--revision, and for a gated or private model log in with `hf auth login`"
        ) from None
    except Exception as error:  # offline, no route, a proxy: each HTTP library has its own types
        cached = _cached(name, revision)
        if cached is None:
            raise CheckpointError(
                f"{name} is no folder here, the hub cannot be asked for it "
                f"({_first_line(error)}), and its cache does not have {name}{_at(revision)}"
            ) from None
        say(
            f"WARNING: the hub cannot be asked ({_first_line(error)}); taking {name} at "
            f"{cached.origin['revision']} from its cache"
        )
        return cached
    return Found(folder=Path(folder), origin={"hub": name, "revision": str(info.sha)})


def _cached(name: str, revision: str | None) -> Found | None:
    """The snapshot in the hub's cache, if it has one. Touches no network."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return Found(folder=folder, origin={"hub": name, "revision": folder.name})


def needed_files(names: Iterable[str]) -> list[str]:
    """Of a repository's files, the ones that an export reads.

    Raises:
        CheckpointError: when none of them holds weights.
    """
    top = sorted(name for name in names if "/" not in name)
    files = [name for name in top if any(fnmatch.fnmatchcase(name, p) for p in NEEDED)]
    for whole, index, shards in WEIGHTS:
        if index is not None and shards is not None and index in top:
            return [*files, index, *fnmatch.filter(top, shards)]
        if whole in top:
            return [*files, whole]
    raise CheckpointError(
        f"the repository has no weights that are read: none of "
        f"{', '.join(whole for whole, *_ in WEIGHTS)}, and no index of shards"
    )


def _at(revision: str | None) -> str:
    return f" at {revision!r}" if revision else ""


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

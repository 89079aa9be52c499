"""The tokenizer of a checkpoint: its bytes for the package, and transformers' own as reference.

The reference is loaded from a sanitised copy that holds nothing but ``tokenizer.json`` and
whitelisted keys of ``tokenizer_config.json``: no remote code, no other file, no hub.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError

from .config_json import TOKENIZER_NAME, read_json

CONFIG_NAME: Final = "tokenizer_config.json"
TEMPLATE_NAME: Final = "chat_template.jinja"
SAFE_KEYS: Final = frozenset(
    {
        "add_bos_token",
        "add_eos_token",
        "add_prefix_space",
        "bos_token",
        "chat_template",
        "clean_up_tokenization_spaces",
        "cls_token",
        "do_lower_case",
        "eos_token",
        "legacy",
        "mask_token",
        "pad_token",
        "sep_token",
        "strip_accents",
        "tokenize_chinese_chars",
        "tokenizer_class",
        "unk_token",
    }
)
MAX_TOKENIZER_BYTES: Final = 100_000_000  # the largest in use has 35 MB
MAX_TEMPLATE_BYTES: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """``raw``: bytes of tokenizer.json. ``config``: whitelisted keys of tokenizer_config.json."""

    raw: bytes
    config: dict[str, Any]
    added: dict[str, int]
    size: int

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of the checkpoint, if it has one."""
        template = self.config.get("chat_template")
        return template if isinstance(template, str) else None


def read_tokenizer(root: Path) -> TokenizerFiles:
    """Read the tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: when tokenizer.json is missing or unreadable.
    """
    path = root / TOKENIZER_NAME
    try:
        if (size := path.stat().st_size) > MAX_TOKENIZER_BYTES:
            raise CheckpointError(
                f"{path} has {size} bytes, more than the {MAX_TOKENIZER_BYTES} that are read; use "
                "the tokenizer of the PRM's own repository"
            )
        raw = path.read_bytes()
        data = json.loads(raw)
        added = {str(t["content"]): int(t["id"]) for t in data.get("added_tokens", [])}
        size = 1 + max([*_vocabulary_ids(data), *added.values()], default=-1)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing; save the fast tokenizer beside the weights: "
            "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as a tokenizer: {error!r}") from error
    config = read_json(root / CONFIG_NAME) if (root / CONFIG_NAME).is_file() else {}
    safe = {key: value for key, value in config.items() if key in SAFE_KEYS}
    template = root / TEMPLATE_NAME
    if template.is_file():
        if template.stat().st_size > MAX_TEMPLATE_BYTES:
            raise CheckpointError(f"{template} has more than {MAX_TEMPLATE_BYTES} bytes")
        safe["chat_template"] = template.read_text(encoding="utf-8")
    return TokenizerFiles(raw=raw, config=safe, added=added, size=size)


def _vocabulary_ids(data: dict[str, Any]) -> list[int]:
    vocabulary = data["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return [int(index) for index in vocabulary.values()]
    return [len(vocabulary) - 1]  # Unigram: a list of [piece, score]


def auto_tokenizer(files: TokenizerFiles, model_type: str) -> Any:
    """Load the tokenizer as a user would, with AutoTokenizer, from a sanitised copy.

    ``model_type`` matters: for some, transformers 5 replaces the file's normalisation and
    pre-tokenisation by those of its own class.

    Raises:
        CheckpointError: when transformers cannot load it.
    """
    from transformers import AutoTokenizer

    name = files.config.get("tokenizer_class")
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9]+", name)):
        return file_tokenizer(files)
    with _sanitised(files.raw, files.config) as folder:
        config = json.dumps({"model_type": model_type})
        (folder / "config.json").write_text(config, encoding="utf-8")
        try:
            return AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True, use_fast=True
            )
        except ValueError:
            # a class of another transformers major version: the file decides alone
            return file_tokenizer(files)
        except Exception as error:  # transformers raises many unrelated types
            raise CheckpointError(
                f"transformers cannot load the checkpoint's tokenizer: {error}"
            ) from error


def file_tokenizer(files: TokenizerFiles) -> Any:
    """Load exactly what tokenizer.json says, whatever class the checkpoint names.

    Raises:
        CheckpointError: when transformers cannot load it.
    """
    from transformers import PreTrainedTokenizerFast

    config = {key: value for key, value in files.config.items() if key != "tokenizer_class"}
    with _sanitised(files.raw, config) as folder:
        try:
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises many unrelated types
            raise CheckpointError(
                f"transformers cannot load the checkpoint's tokenizer: {error}"
            ) from error


@contextmanager
def _sanitised(raw: bytes, config: dict[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prm-edge-tokenizer-") as folder:
        root = Path(folder)
        (root / TOKENIZER_NAME).write_bytes(raw)
        (root / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
        yield root

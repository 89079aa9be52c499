"""The JSON files of a checkpoint. Nothing else is needed to read them: no torch, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError

TOKENIZER_NAME: Final = "tokenizer.json"
MAX_JSON_BYTES: Final = 64 * 1024 * 1024


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of bounded size.

    Raises:
        CheckpointError: when it is missing, too large, not JSON or not an object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {size} bytes, more than {MAX_JSON_BYTES}")
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing; pass a folder saved with save_pretrained()"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data

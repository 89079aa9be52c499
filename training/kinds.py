"""The layer that names errors, as a file beside the checkpoint.

    python -m training.kinds training/checkpoint     # writes the names into a file without them

``error_kinds.safetensors`` holds ``weight`` (names, hidden size) and, in its metadata, the names of
the rows: what ``prm-edge export`` wants. Files of earlier runs lack the names.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .generator import ERRORS

KINDS_NAME = "error_kinds.safetensors"


def save_kinds(weight: torch.Tensor, path: Path) -> None:
    """Write the layer and the names of its rows. (names, hidden size)"""
    if len(weight) != len(ERRORS):
        raise ValueError(f"{path} would have {len(weight)} rows for {len(ERRORS)} names")
    names = json.dumps(list(ERRORS))
    save_file({"weight": weight.detach().contiguous()}, path, metadata={"names": names})


def load_kinds(path: Path) -> tuple[torch.Tensor, list[str]]:
    """Read the layer and its names; those of today where the file has none."""
    with safe_open(path, framework="pt") as file:
        names = json.loads((file.metadata() or {}).get("names", json.dumps(list(ERRORS))))
    return load_file(path)["weight"], names


def main() -> None:
    """Name the rows of a file without names."""
    path = Path(sys.argv[1]) / KINDS_NAME
    part = path.with_suffix(".part")
    save_kinds(load_file(path)["weight"], part)
    part.chmod(0o644)
    os.replace(part, path)


if __name__ == "__main__":
    main()

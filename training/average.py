"""The mean of checkpoints that were trained on from one another.

    python -m training.average CHECKPOINT CHECKPOINT --out training/checkpoint

Weights that share most of their training lie in one valley, and their mean is often better than
each (model soups, Wortsman et al. 2022, arXiv:2203.05482). Every file but the weights is the first
one's. Out: `model.safetensors` and `error_kinds.safetensors`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .kinds import KINDS_NAME

WEIGHTS = ("model.safetensors", KINDS_NAME)


def mean_of(paths: Sequence[Path]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The mean of every tensor, and the files' metadata, which must be one.

    Raises:
        ValueError: when the files differ in names, shapes or metadata.
    """
    total: dict[str, torch.Tensor] = {}
    said: dict[str, str] = {}
    for path in paths:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        if not total:
            total, said = found, metadata
            continue
        shapes = ({name: tensor.shape for name, tensor in x.items()} for x in (total, found))
        if len({str(sorted(s.items())) for s in shapes}) > 1 or metadata != said:
            raise ValueError(f"{path} and {paths[0]} are no weights of one kind")
        total = {name: total[name] + found[name] for name in total}
    return {name: (tensor / len(paths)).float() for name, tensor in total.items()}, said


def main() -> None:
    """Parse the command line, average, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    made = {name: mean_of([folder / name for folder in args.checkpoints]) for name in WEIGHTS}
    if args.out.resolve() != args.checkpoints[0].resolve():
        shutil.copytree(args.checkpoints[0], args.out, dirs_exist_ok=True)
    for name, (tensors, metadata) in made.items():
        save_file(tensors, args.out / name, metadata=metadata)
        (args.out / name).chmod(0o644)


if __name__ == "__main__":
    main()

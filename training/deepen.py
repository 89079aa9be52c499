"""Give finished weights more layers, without a change of their scores.

    python -m training.deepen OLD NEW --copies 1 3 5

After each layer named (counted from 0) comes a copy of it that adds nothing yet: the two matrices
that write into the residual stream are zero, the others are the layer's own (block expansion, Wu et
al. 2024, "LLaMA Pro", arXiv:2401.02415). NEW scores as OLD does, and training (`--init NEW`) makes
use of what was added.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LAYER = re.compile(r"(model\.layers\.)(\d+)(\..+)")
WRITES = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def deepened(
    weights: dict[str, torch.Tensor], layers: int, copies: Collection[int]
) -> dict[str, torch.Tensor]:
    """The tensors of `layers` layers, with a copy that writes nothing after each of `copies`.

    Raises:
        ValueError: when a layer is named that is not there.
    """
    copies = set(copies)
    if missing := sorted(copies - set(range(layers))):
        raise ValueError(f"no layer {missing[0]}: the checkpoint has {layers}, counted from 0")
    new: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        found = LAYER.fullmatch(name)
        if found is None:
            new[name] = tensor
            continue
        at = int(found[2])
        place = at + sum(copy < at for copy in copies)
        new[f"{found[1]}{place}{found[3]}"] = tensor
        if at in copies:
            silent = name.endswith(WRITES)
            copied = torch.zeros_like(tensor) if silent else tensor.clone()
            new[f"{found[1]}{place + 1}{found[3]}"] = copied
    return new


def deepen(old: Path, new: Path, copies: Collection[int]) -> None:
    """Write the checkpoint `new`: `old` with more layers."""
    config = json.loads((old / "config.json").read_text())
    layers = config["num_hidden_layers"]
    weights = deepened(load_file(old / "model.safetensors"), layers, copies)
    shutil.copytree(old, new, dirs_exist_ok=True)
    config["num_hidden_layers"] = layers + len(set(copies))
    (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(weights, new / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--copies", type=int, nargs="+", required=True, help="layers that are copied, from 0"
    )
    args = parser.parse_args()
    deepen(args.old, args.new, args.copies)


if __name__ == "__main__":
    main()

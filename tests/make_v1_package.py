"""How tests/packages/v1 was made. It must load for ever, so it is not made again.

Run it only to see that a fresh export still looks the same:
``python tests/make_v1_package.py OUT``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import checkpoints

from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoints.trl_llama(
            Path(folder) / "tiny-random-trl",
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
        export(ExportOptions(checkpoint=checkpoint, out=out, separator="\n"), print)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

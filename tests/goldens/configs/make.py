"""How the configs beside this file were made: run once under each transformers major version.

They are what ``save_pretrained`` really writes, so that either spelling is tested under the other.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

import checkpoints  # noqa: E402

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def main() -> None:
    new = checkpoints.TRANSFORMERS_MAJOR >= 5
    for name, theta, scaling in (("theta", 1e6, None), ("llama3", 5e5, LLAMA3)):
        if new:
            default = {"rope_type": "default"}
            changes = {"rope_parameters": {"rope_theta": theta, **(scaling or default)}}
        else:
            changes = {"rope_theta": theta, "rope_scaling": scaling}
        for kind in ("llama", "mistral", "qwen2", "qwen3"):
            maker = getattr(checkpoints, f"trl_{kind}")
            window = {"window": 24} if kind == "mistral" else {}
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = maker(Path(folder) / "tiny", **changes, **window)
                out = HERE / f"{kind}-{name}-transformers-{checkpoints.TRANSFORMERS_MAJOR}.json"
                shutil.copyfile(checkpoint / "config.json", out)


if __name__ == "__main__":
    main()

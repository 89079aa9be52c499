"""Cold start, memory and installed size: prm-edge beside torch + transformers.

    python benchmarks/cold_start.py --package PACKAGE --checkpoint CHECKPOINT

Both sides score the same record in fresh processes, turn about: import, load, first score. The
checkpoint is the one that the package was exported from: a token classifier trained with TRL.
With ``--edge-python`` and ``--torch-python``, the interpreters of two environments, each side
runs in its own, and the installed sizes are compared too::

    python3 -m venv edge  && edge/bin/pip install 'prm-edge[cpu]'
    python3 -m venv torch && torch/bin/pip install torch transformers

Needs the standard library only: on Linux a child's peak memory starts from its parent's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

PROBLEM = (
    "A cinema sells adult tickets for $12 and child tickets for $7. One evening it sells 210 "
    "tickets and takes $2,170. How many child tickets were sold?"
)
STEPS = [
    "If all 210 tickets had been adult tickets, the takings would be 210 * $12 = $2,520.",
    "That is $2,520 - $2,170 = $350 more than the cinema really took.",
    "Each adult ticket exchanged for a child ticket lowers the takings by $12 - $7 = $5.",
    "So $350 / $5 = 70 of the tickets were child tickets.",
    "The cinema sold 70 child tickets.",
]

# Both read {folder, problem, steps, separator} from stdin and print one JSON object.
FRAME = """
import json, sys, time
asked = json.load(sys.stdin)
start = time.perf_counter()
{body}
done = time.perf_counter()
import resource
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps(dict(
    import_s=imported - start, load_s=loaded - imported, score_s=done - loaded,
    total_s=done - start, peak_bytes=peak if sys.platform == "darwin" else peak * 1024,
    scores=scores,
)))
"""
EDGE = """
from prm_edge import Scorer
imported = time.perf_counter()
scorer = Scorer.load(asked["folder"], device="cpu")
loaded = time.perf_counter()
scores = scorer.score(asked["problem"], asked["steps"]).scores
"""
# Encodes as TRL's PRMTrainer.tokenize_row does: the score is read at each separator's last token.
TORCH = """
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer
imported = time.perf_counter()
tokenizer = AutoTokenizer.from_pretrained(asked["folder"])
model = AutoModelForTokenClassification.from_pretrained(asked["folder"], dtype=torch.float32)
model.eval()
loaded = time.perf_counter()
def encode(text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]
ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
ids += encode(asked["problem"])
reads = []
for step in asked["steps"]:
    ids += encode(step) + encode(asked["separator"])
    reads.append(len(ids) - 1)
with torch.inference_mode():
    logits = model(torch.tensor([ids])).logits[0, reads]
scores = logits.softmax(-1)[:, 1].tolist()
"""
SIZE = """
import os, sysconfig
paths = {sysconfig.get_paths()[name] for name in ("purelib", "platlib")}
files = [os.path.join(top, name) for path in paths for top, _, names in os.walk(path)
         for name in names if not top.startswith(os.path.join(path, "pip"))]
print(sum(os.path.getsize(file) for file in files))
"""
ROWS = (
    ("import (s)", "import_s", 1),
    ("load (s)", "load_s", 1),
    ("first score (s)", "score_s", 1),
    ("cold start in all (s)", "total_s", 1),
    ("peak memory (MB)", "peak_bytes", 1e6),
)


def run(python: str, code: str, asked: dict[str, Any] | None = None) -> Any:
    """Run code in a fresh interpreter and return the JSON that it prints."""
    done = subprocess.run(
        [python, "-c", code],
        input=json.dumps(asked),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{python} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Run both sides turn about; the first round only fills the disk cache."""
    record = {"problem": PROBLEM, "steps": STEPS, "separator": arguments.separator}
    sides = {
        "prm-edge": (arguments.edge_python, EDGE, arguments.package),
        "torch": (arguments.torch_python, TORCH, arguments.checkpoint),
    }
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for turn in range(arguments.runs + 1):
        for name, (python, body, folder) in sides.items():
            found = run(python, FRAME.format(body=body), {**record, "folder": str(folder)})
            if turn:
                results[name].append(found)
            print(f"{name}, run {turn}: {found['total_s']:.2f} s", file=sys.stderr)
    return results


def table(results: dict[str, list[dict[str, Any]]], sizes: dict[str, int] | None) -> list[str]:
    """Medians and their ratio, as a Markdown table."""
    lines = ["| median | prm-edge | torch + transformers | ratio |", "|---|---:|---:|---:|"]

    def add(label: str, edge: float, torch: float, digits: int) -> None:
        lines.append(f"| {label} | {edge:,.{digits}f} | {torch:,.{digits}f} | {torch / edge:.1f} |")

    for label, key, unit in ROWS:
        edge, torch = (
            statistics.median(found[key] for found in results[side]) / unit
            for side in ("prm-edge", "torch")
        )
        add(label, edge, torch, 0 if unit > 1 else 2)
    if sizes:
        add("installed (MB)", sizes["prm-edge"] / 1e6, sizes["torch"] / 1e6, 0)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--separator", default="\n", help="step separator it was trained with")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--edge-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--torch-python", default=sys.executable, metavar="PYTHON")
    arguments = parser.parse_args()
    arguments.package = arguments.package.resolve(strict=True)
    arguments.checkpoint = arguments.checkpoint.resolve(strict=True)

    results = measure(arguments)
    sizes = None
    if arguments.edge_python != arguments.torch_python:
        sizes = {
            "prm-edge": run(arguments.edge_python, SIZE),
            "torch": run(arguments.torch_python, SIZE),
        }
    print("\n".join(table(results, sizes)))
    pairs = zip(results["prm-edge"][0]["scores"], results["torch"][0]["scores"], strict=True)
    difference = max(abs(edge - torch) for edge, torch in pairs)
    print(f"\nlargest difference between the scores: {difference:.1e}")
    print(f"{arguments.runs} runs each, disk cache warm, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()

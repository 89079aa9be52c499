"""What a large checkpoint takes to export and to load: peak memory, processor time, wall time.

    python benchmarks/big.py make 1.5b CHECKPOINT            # random weights of a real shape, bf16
    python benchmarks/big.py export CHECKPOINT OUT --precision int8 --tokens 8000
    python benchmarks/big.py load PACKAGE                    # as prm-edge bench sees it

``export`` runs the shipped command line in a process of its own, gives it about so many tokens to
calibrate and to prove on, half each, and follows its memory by what it says it is doing. The peak
is the operating system's (VmHWM of Linux): mapped files that are in memory count. Weights are
random, so the package is written whatever its drift is. A checkpoint of 7B takes 15 GB of disk, its
export another 25.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

ROOT: Final = Path(__file__).parents[1]
DATA: Final = ROOT / "export/prm_edge_export/data"
sys.path.insert(0, str(ROOT / "tests"))
GB: Final = 1e9
# config.json of Skywork-o1-Open-PRM-Qwen-2.5-1.5B's and Qwen2.5-Math-PRM-7B's backbones
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "tiny": {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "1.5b": {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
SHARD_BYTES: Final = 4_000_000_000
POOL: Final = 1 << 26  # random values that every tensor is cut from


def texts(name: str) -> list[dict[str, Any]]:
    """One of the exporter's own files of worked solutions."""
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def make(shape: str, folder: Path, layers: int | None) -> None:
    """Write a TRL-like checkpoint in shards; at most one shard is in memory."""
    import checkpoints
    from transformers import Qwen2Config

    said = [
        text
        for name in ("calibration.jsonl", "verification.jsonl")
        for item in texts(name)
        for text in (item["problem"], *item["steps"])
    ]
    tok = checkpoints.tokenizer(qwen=True, size=4096, often=tuple(said))
    sizes = SHAPES[shape]
    config = Qwen2Config(
        **{**sizes, "num_hidden_layers": layers or sizes["num_hidden_layers"]},
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        num_labels=2,
        architectures=["Qwen2ForTokenClassification"],
        dtype="bfloat16",
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tok.save_pretrained(folder)
    torch.manual_seed(0)
    pool = torch.randn(POOL).to(torch.bfloat16)
    files: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        name = f"model-{len(set(files.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name)
        files.update(dict.fromkeys(shard, name))
        shard.clear()

    for at, (name, size) in enumerate(tensors(config)):
        count = torch.Size(size).numel()
        shift = at * 7919 % POOL
        pieces = [pool[shift : shift + count]]
        while (missing := count - sum(map(len, pieces))) > 0:
            pieces.append(pool[:missing])
        values = torch.cat(pieces).reshape(size)
        if "norm" in name:
            values = 1 + 0.1 * values
        else:
            values = values * (2 if name == "score.weight" else 0.7) / size[-1] ** 0.5
        shard[name] = values.contiguous()
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            flush()
    flush()
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    print(f"{folder}: {total / GB:.1f} GB in {len(set(files.values()))} shards")


def tensors(config: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Qwen2 token classifier's tensors, with a language model's output."""
    hidden, wide = config.hidden_size, config.intermediate_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    found: list[tuple[str, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", (config.vocab_size, hidden))
    ]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for part, size in (("q", hidden), ("k", keys), ("v", keys)):
            found.append((f"{prefix}.self_attn.{part}_proj.weight", (size, hidden)))
            found.append((f"{prefix}.self_attn.{part}_proj.bias", (size,)))
        found += [
            (f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)),
            (f"{prefix}.mlp.gate_proj.weight", (wide, hidden)),
            (f"{prefix}.mlp.up_proj.weight", (wide, hidden)),
            (f"{prefix}.mlp.down_proj.weight", (hidden, wide)),
            (f"{prefix}.input_layernorm.weight", (hidden,)),
            (f"{prefix}.post_attention_layernorm.weight", (hidden,)),
        ]
    return [*found, ("model.norm.weight", (hidden,)), ("score.weight", (2, hidden))]


def export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run ``prm-edge export`` and follow it."""
    work = arguments.out.parent / f"{arguments.out.name}-texts"
    work.mkdir(parents=True, exist_ok=True)
    half = arguments.tokens // 2
    given = ["--verify", str(some(arguments.checkpoint, "verification_int8.jsonl", half, work))]
    if arguments.precision != "fp32":
        picked = some(arguments.checkpoint, "calibration.jsonl", half, work)
        given += ["--calibration", str(picked)]
    command = [
        *(sys.executable, "-m", "prm_edge", "export", arguments.checkpoint, arguments.out),
        *("--precision", arguments.precision, "--separator", "\\n", "--allow-drift"),
        *("--overwrite", *given, *arguments.more),
    ]
    start_s = time.monotonic()
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    stages: dict[str, int] = {}
    now = ["start"]

    def follow() -> None:
        while process.poll() is None:
            found = status(process.pid)
            if found:
                stages[now[0]] = max(stages.get(now[0], 0), found["VmRSS"])
                stages["peak"] = max(stages.get("peak", 0), found["VmHWM"])
            time.sleep(0.1)

    watcher = threading.Thread(target=follow)
    watcher.start()
    assert process.stderr is not None
    for line in process.stderr:
        now[0] = line.split(":")[0][:24].strip()
        print(f"{time.monotonic() - start_s:8.1f} s  {line.rstrip()}", file=sys.stderr, flush=True)
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    watcher.join()
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    data = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    return {
        "precision": arguments.precision,
        "tokens": arguments.tokens,
        "cores": len(os.sched_getaffinity(0)),
        "wall_s": round(time.monotonic() - start_s, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "package_gb": round(data / GB, 3),
        "peak_gb": round(stages.pop("peak") / GB, 3),
        "resident_gb_by_stage": {name: round(size / GB, 3) for name, size in stages.items()},
    }


def some(checkpoint: Path, name: str, tokens: int, work: Path) -> Path:
    """The first of the exporter's texts, up to so many tokens of this checkpoint."""
    from tokenizers import Tokenizer

    tok = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    picked, total = [], 0
    for item in texts(name):
        total += len(tok.encode("\n".join((item["problem"], *item["steps"]))).ids)
        picked.append(json.dumps(item))
        if total >= tokens:
            break
    path = work / name
    path.write_text("\n".join(picked) + "\n", encoding="utf-8")
    return path


def status(pid: int) -> dict[str, int]:
    """Memory of a process in bytes, as Linux tells; empty once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.split(":") for line in lines if line.startswith(("VmHWM", "VmRSS"))]
    return {name: 1024 * int(value.split()[0]) for name, value in pairs}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("shape", choices=SHAPES)
    making.add_argument("checkpoint", type=Path)
    making.add_argument("--layers", type=int, help="fewer: what one layer takes, in less time")
    exporting = commands.add_parser("export")
    exporting.add_argument("checkpoint", type=Path)
    exporting.add_argument("out", type=Path)
    exporting.add_argument("--precision", default="int8")
    exporting.add_argument("--tokens", type=int, default=8000)
    exporting.add_argument(
        "--more", nargs="*", default=[], help="further options of prm-edge export"
    )
    loading = commands.add_parser("load")
    loading.add_argument("package", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.shape, arguments.checkpoint, arguments.layers)
    elif arguments.command == "export":
        print(json.dumps(export(arguments), indent=2))
        shutil.rmtree(arguments.out.parent / f"{arguments.out.name}-texts")
    else:
        command = [sys.executable, "-m", "prm_edge", "bench", str(arguments.package), "--json"]
        subprocess.run([*command, "--lengths", "64,384", "--seconds", "1"], check=True)


if __name__ == "__main__":
    main()

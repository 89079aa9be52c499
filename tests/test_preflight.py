"""What an export needs is estimated from shapes, and refused where it is not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
from int8_packages import export_int8

from prm_edge_export import gpu_memory, preflight
from prm_edge_export.model_config import DecoderConfig, read_config
from prm_edge_export.pace import paced
from prm_edge_export.preflight import Needs, Texts
from prm_edge_runtime.errors import ExportError

TEXTS = Texts(tokens=12_000, longest=500, calibration_tokens=4_000)


def shape(hidden: int, wide: int, heads: int, kv: int, vocab: int) -> DecoderConfig:
    return read_config(
        {
            "model_type": "qwen2",
            "hidden_size": hidden,
            "intermediate_size": wide,
            "num_hidden_layers": 28,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "vocab_size": vocab,
            "max_position_embeddings": 4096,
        }
    )


SMALL = shape(1536, 8960, 12, 2, 151936)
LARGE = shape(3584, 18944, 28, 4, 152064)


@pytest.mark.parametrize("precision", preflight.COSTS)
def test_needs_grow_with_the_model_and_the_texts(precision: str) -> None:
    small = preflight.estimate(SMALL, precision, TEXTS, gflops=50)
    large = preflight.estimate(LARGE, precision, TEXTS, gflops=50)
    assert large.memory > small.memory
    assert large.disk > 3.5 * small.disk
    assert large.seconds > 4 * small.seconds
    longer = replace(TEXTS, tokens=24_000, longest=4_000)
    assert preflight.estimate(SMALL, precision, longer, gflops=50).memory > small.memory
    assert preflight.estimate(SMALL, precision, longer, gflops=50).seconds > small.seconds
    twice = preflight.estimate(SMALL, precision, TEXTS, gflops=100)
    assert twice.seconds == pytest.approx(small.seconds / 2)


def test_needs_hold_less_than_the_model_where_it_is_large() -> None:
    bytes_of_7b = 4 * 7.07e9
    assert preflight.estimate(LARGE, "int8", TEXTS, gflops=50).memory < bytes_of_7b / 2


def test_only_where_two_bases_are_compared_it_takes_the_time() -> None:
    there, not_there = (
        preflight.estimate(LARGE, name, TEXTS, gflops=50) for name in ("int4", "cuda-int4")
    )
    assert not_there.seconds < there.seconds


def test_needs_are_told_in_a_line() -> None:
    needs = Needs(memory=2_940_000_000, disk=5_010_000_000, seconds=61)
    assert needs.line() == "needs about 2.9 GB of memory, 5.0 GB of disk and 2 min"


def test_memory_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    monkeypatch.setattr(preflight, "available_memory", lambda: 100_000_000)
    with pytest.raises(
        ExportError,
        match=r"needs about 0\.\d GB of memory and 0\.1 GB are available: .*--ignore-limits",
    ):
        export_int8(checkpoint, tmp_path / "pkg", precision="fp32", calibration=None)
    assert not (tmp_path / "pkg").exists()
    report = export_int8(
        checkpoint, tmp_path / "pkg", precision="fp32", calibration=None, ignore_limits=True
    )
    assert any(line.startswith("needs about") for line in report["lines"])


def test_disk_that_is_not_there_is_refused(tmp_path: Path) -> None:
    needs = Needs(memory=0, disk=10**18, seconds=0)
    with pytest.raises(ExportError, match=r"needs 1000000000\.00 GB of disk, scratch files incl"):
        preflight.require(needs, tmp_path, ignore=False)
    preflight.require(needs, tmp_path, ignore=True)


def test_memory_is_not_judged_where_the_system_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preflight.available_memory(tmp_path) is None
    monkeypatch.setattr(preflight, "available_memory", lambda: None)
    preflight.require(Needs(memory=10**18, disk=0, seconds=0), tmp_path, ignore=False)


@pytest.mark.parametrize(
    ("limit", "used", "left"), [("max", "5", 8192), ("6000", "5000", 1000), ("10", "20", 0)]
)
def test_memory_is_what_the_system_and_the_control_group_leave(
    limit: str, used: str, left: int, tmp_path: Path
) -> None:
    for name, text in {
        "proc/meminfo": "MemTotal: 16 kB\nMemAvailable:  8 kB\n",
        "sys/fs/cgroup/memory.max": f"{limit}\n",
        "sys/fs/cgroup/memory.current": f"{used}\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert preflight.available_memory(tmp_path) == left


def test_pace_tells_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines: list[str] = []
    progress = paced("calibration", lines.append)
    now[0] = 130.0
    progress(1, 4)
    now[0] = 132.0
    progress(3, 3)
    assert lines == ["calibration: layer 1 of 4, about 1:30 left", "calibration: layer 3 of 3"]


# --- on a GPU


def test_a_7b_in_int4_fits_into_6_gb() -> None:
    needs = gpu_memory.estimate(LARGE, "int4", tokens=2048)
    assert 5e9 < needs.total < 6e9  # with as many linears in 8 bits as a plan may leave
    assert gpu_memory.estimate(LARGE, "int4", tokens=2048, first_share=1.0).total < needs.total
    assert needs.cache == 2048 * 28 * 2 * 4 * 128 * 2
    half = gpu_memory.estimate(LARGE, "fp16", tokens=2048)
    assert half.weights == 2 * (28 * sum(preflight.linear_sizes(LARGE)) + 152064 * 3584)
    assert half.total > 14e9


def test_gpu_memory_grows_with_the_record_and_says_so() -> None:
    short, long = (gpu_memory.estimate(LARGE, "int4", tokens=n) for n in (512, 4096))
    assert long.cache == 8 * short.cache
    assert long.working > short.working
    # a longer record goes through in pieces
    assert gpu_memory.estimate(LARGE, "int4", tokens=8192).working == long.working
    assert long.line().startswith(f"about {long.total / 1e9:.1f} GB of GPU memory: weights ")
    assert "keys and values of 4,096 tokens 0.23" in long.line()

"""Checkpoint folders that are incomplete, damaged or in a form that is not read."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
import numpy as np
import torch
from safetensors.torch import save_file

from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.config_json import read_json
from prm_edge_export.heads import find_head
from prm_edge_export.tokenizer_files import file_tokenizer, read_tokenizer
from prm_edge_runtime.errors import CheckpointError, UnsupportedError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    save_file(
        {"a": torch.ones(2, 3), "n": torch.ones(2, dtype=torch.int8)}, path / "model.safetensors"
    )
    return path


def test_checkpoint_reads_lazily_as_float32(folder: Path) -> None:
    save_file({"a": torch.full((2, 3), 0.5, dtype=torch.bfloat16)}, folder / "model.safetensors")
    with Checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
        assert "a" in checkpoint.tensors
        assert checkpoint.tensors.used == set()
        array = checkpoint.tensors.numpy("a", (2, 3))
        assert checkpoint.tensors.used == {"a"}
    assert array.dtype == np.float32
    assert array.tolist() == [[0.5] * 3] * 2


def test_tensor_of_another_shape(folder: Path) -> None:
    with Checkpoint(folder) as checkpoint:
        with pytest.raises(CheckpointError, match=r"'a' has shape \[2, 3\], .* implies \[3, 2\]"):
            checkpoint.tensors.numpy("a", (3, 2))
        with pytest.raises(UnsupportedError, match="'n' is stored as I8; only BF16, F16, F32, F64"):
            checkpoint.tensors.numpy("n", (2,))
        with pytest.raises(CheckpointError, match="has no tensor 'b'"):
            checkpoint.tensors.numpy("b", (2,))


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _only(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_text("{}")

    return change


def _index(weight_map: object) -> Callable[[Path], object]:
    text = json.dumps({"weight_map": weight_map})
    return lambda folder: (folder / "model.safetensors.index.json").write_text(text)


def _twice(folder: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, folder / "two.safetensors")
    _index({"a": "model.safetensors", "b": "two.safetensors"})(folder)


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


CASES = {
    "no config": (_remove("config.json"), CheckpointError, "config.json is missing; pass a folder"),
    "config no json": (_write("config.json", "{"), CheckpointError, "cannot be read as JSON"),
    "config a list": (_write("config.json", "[]"), CheckpointError, "must hold a JSON object"),
    "config too deep": (_write("config.json", "[" * 200_000), CheckpointError, "as JSON"),
    "quantized": (
        _write("config.json", '{"quantization_config": {"quant_method": "gptq"}}'),
        UnsupportedError,
        r"is quantized already \(GPTQ: config\.json has .* method 'gptq'\)",
    ),
    "no weights": (
        _remove("model.safetensors"),
        CheckpointError,
        r"has no model\.safetensors, no pytorch_model\.bin and no index of either",
    ),
    "pickle damaged": (_only("pytorch_model.bin"), CheckpointError, "cannot be mapped as a pickle"),
    "index of another kind": (
        _index({"a": "pytorch_model.bin"}),
        CheckpointError,
        r"'pytorch_model\.bin', which is no \.safetensors file",
    ),
    "truncated": (_truncated, CheckpointError, "cannot be read as safetensors"),
    "garbage": (
        _write("model.safetensors", "garbage" * 20),
        CheckpointError,
        "cannot be read as safetensors",
    ),
    "index empty": (_index({}), CheckpointError, "has no weight_map"),
    "index leads outside": (
        _index({"a": "../model.safetensors"}),
        CheckpointError,
        "a shard is a plain file name",
    ),
    "shard missing": (
        _index({"a": "model-00001-of-00002.safetensors"}),
        CheckpointError,
        "model-00001-of-00002.safetensors is missing; download every shard",
    ),
    "shard lacks a tensor": (
        _index({"z": "model.safetensors"}),
        CheckpointError,
        "lacks tensors that .* puts there: z",
    ),
    "tensor twice": (_twice, CheckpointError, "tensor 'a' is in model.safetensors and in two"),
}


@pytest.mark.parametrize("case", CASES)
def test_checkpoint_that_cannot_be_read(case: str, folder: Path) -> None:
    change, error, message = CASES[case]
    change(folder)
    with pytest.raises(error, match=message):
        Checkpoint(folder)


class Evil:
    """Runs a command when a careless loader unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def _pickled(folder: Path, content: object, **options: Any) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(content, folder / "pytorch_model.bin", **options)


def test_pickle_is_read_like_safetensors(folder: Path) -> None:
    whole = torch.arange(12.0).reshape(4, 3).to(torch.bfloat16)
    parameter = torch.nn.Parameter(whole[1:3])  # a view: its storage is longer than itself
    _pickled(folder, {"a": parameter, "n": torch.ones(2, dtype=torch.int8), "t": whole.T})
    with Checkpoint(folder) as checkpoint:
        tensors = checkpoint.tensors
        assert tensors.shape("a") == (2, 3)
        assert tensors.numpy("a", (2, 3)).tolist() == [[3, 4, 5], [6, 7, 8]]
        assert tensors.rows("a", (1, 0), 3).tolist() == [[6, 7, 8], [3, 4, 5]]
        assert tensors.numpy("t", (3, 4))[0].tolist() == [0, 3, 6, 9]
        with pytest.raises(UnsupportedError, match=r"'n' is stored as torch\.int8; only BF16"):
            tensors.numpy("n", (2,))
        with pytest.raises(CheckpointError, match=r"'a' has shape \[2, 3\]"):
            tensors.rows("a", (1,), 4)
    save_file({"s": torch.ones(2)}, folder / "model.safetensors")
    with Checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["s"]  # safetensors first


def test_pickles_in_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, name in enumerate("ab", start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: torch.full((2, 2), float(number))}, folder / file)
        weight_map[name] = file
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.tensors.numpy("b", (2, 2)).tolist() == [[2, 2], [2, 2]]
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"00002\.bin is missing; download every shard"):
        Checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../pytorch_model.bin"}}))
    with pytest.raises(CheckpointError, match="a shard is a plain file name"):
        Checkpoint(folder)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_hostile_pickle_runs_nothing(folder: Path, legacy: bool) -> None:
    mark = folder / "ran"
    content = {"a": torch.ones(2, 3), "b": Evil(mark)}
    _pickled(folder, content, _use_new_zipfile_serialization=not legacy)
    message = (
        "cannot be mapped"
        if legacy
        else r"more than tensors, and is not run \(it names \w+\.system\); use"
    )
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content["b"]))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin (is a pickle|cannot be mapped)"):
        Checkpoint(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "must hold a dictionary of tensors, got"),
        ({"state_dict": {"a": torch.ones(2)}}, "tensors by name, got dict for 'state_dict'"),
        ({1: torch.ones(2)}, "must hold tensors by name, got Tensor for 1"),
        ({"a": torch.ones(1).expand(1 << 20, 1 << 10)}, r"'a' of shape \[1048576, 1024\] claims"),
        ({"a": torch.eye(3).to_sparse()}, r"tensor 'a' is torch\.sparse_coo, which is not read"),
    ],
    ids=["list", "nested", "number", "claims", "sparse"],
)
def test_pickle_of_something_else(content: object, message: str, folder: Path) -> None:
    _pickled(folder, content)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(folder)


def test_rows_of_what_is_no_matrix(folder: Path) -> None:
    save_file({"v": torch.ones(4)}, folder / "model.safetensors")
    with (
        Checkpoint(folder) as checkpoint,
        pytest.raises(CheckpointError, match=r"'v' has shape \[4\], expected rank 2"),
    ):
        checkpoint.tensors.rows("v", (0,), 4)


def test_checkpoint_missing_or_a_file(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"nowhere is missing; pass a local folder .* or a hub id"
    ):
        Checkpoint(folder / "nowhere")
    with pytest.raises(CheckpointError, match="is a file; pass a local folder"):
        Checkpoint(folder / "config.json")


def test_read_json_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prm_edge_export.config_json.MAX_JSON_BYTES", 3)
    (tmp_path / "x.json").write_text("{}  ")
    with pytest.raises(CheckpointError, match="has 4 bytes, more than 3"):
        read_json(tmp_path / "x.json")


def test_find_head_needs_layers_that_fit(folder: Path) -> None:
    tensors = {
        "score.0.weight": torch.ones(4, 3),
        "score.0.bias": torch.ones(4),
        "score.2.weight": torch.ones(2, 5),
        "score.2.bias": torch.ones(2),
    }
    save_file(tensors, folder / "model.safetensors")
    with (
        Checkpoint(folder) as checkpoint,
        pytest.raises(CheckpointError, match=r"score\.0\.weight gives 4 values, .* takes 5"),
    ):
        find_head(checkpoint.tensors)
    save_file({"score.weight": torch.ones(4)}, folder / "model.safetensors")
    with (
        Checkpoint(folder) as checkpoint,
        pytest.raises(CheckpointError, match=r"'score\.weight' has shape \[4\], expected rank 2"),
    ):
        find_head(checkpoint.tensors)
    save_file({"lm_head.weight": torch.ones(4)}, folder / "model.safetensors")
    with Checkpoint(folder) as checkpoint:
        assert find_head(checkpoint.tensors) is None


def test_tokenizer_missing_or_damaged(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json is missing; save the fast tokenizer"
    ):
        read_tokenizer(folder)
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        read_tokenizer(folder)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    files = read_tokenizer(folder)
    assert files.size == 1
    with pytest.raises(
        CheckpointError, match="transformers cannot load the checkpoint's tokenizer"
    ):
        file_tokenizer(files)


def test_tokenizer_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prm_edge_export.tokenizer_files.MAX_TOKENIZER_BYTES", 1)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has 2 bytes, more than the 1 that are read"):
        read_tokenizer(folder)


def test_tokenizer_config_keeps_whitelisted_keys_only(tmp_path: Path) -> None:
    checkpoint = checkpoints.qwen_prm(tmp_path / "tiny")
    path = checkpoint / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["x.Y", None]}}
    path.write_text(json.dumps(config))
    files = read_tokenizer(checkpoint)
    assert "auto_map" not in files.config
    assert files.chat_template is not None
    assert files.added["<extra_0>"] > 0

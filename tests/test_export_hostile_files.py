"""Files that nobody should trust: each ends in one sentence that names the file and the tensor.

Every case goes through the whole export, writes nothing, and is over at once.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import adapter_checkpoints
import checkpoints
import family_checkpoints
import torch
from safetensors.torch import save_file

from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_export.safetensors_header import explain
from prm_edge_runtime.errors import CheckpointError, PrmEdgeError, UnsupportedError

WEIGHTS = "model.safetensors"
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def _cheap() -> Iterator[None]:
    """No refusal may take long, or the memory that a file only claims."""
    before, start_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    yield
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 300 * 1024
    assert time.perf_counter() - start_s < 20


def refuse(
    folder: Path, error: type[Exception], message: str, tmp_path: Path, **options: Any
) -> None:
    options = {"separator": "\n", **options}
    with pytest.raises(error, match=message) as caught:
        export(ExportOptions(checkpoint=folder, out=tmp_path / "pkg", **options))
    assert isinstance(caught.value, PrmEdgeError)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pkg").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.trl_llama(tmp_path / "tiny")


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = checkpoints.read_tensors(folder)
    change(tensors)
    checkpoints.write_shards(folder, tensors)


def write_header(path: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


# --- tensors


def test_tensor_of_another_shape(folder: Path, tmp_path: Path) -> None:
    edit(folder, lambda tensors: tensors.update({NAME: torch.ones(113, 64)}))
    message = rf"{WEIGHTS}: tensor '{NAME}' has shape \[113, 64\], config\.json implies \[112, 64\]"
    refuse(folder, CheckpointError, message, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [NAME, "score.bias", "model.embed_tokens.weight"])
def test_tensor_that_is_not_finite(value: float, name: str, folder: Path, tmp_path: Path) -> None:
    edit(folder, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    message = rf"{WEIGHTS}: tensor '{name}' holds values that are not finite"
    refuse(folder, CheckpointError, message, tmp_path)


def test_adapter_that_is_not_finite(tmp_path: Path) -> None:
    base = adapter_checkpoints.base(tmp_path / "base")
    adapter_checkpoints.adapter(
        tmp_path / "lora", base, extra={"model.norm.weight": torch.full((64,), float("nan"))}
    )
    message = r"lora/adapter_model\.safetensors: tensor 'base_model\.model\.model\.norm\.weight' ho"
    refuse(tmp_path / "lora", CheckpointError, message, tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({NAME: torch.ones(2, 2).to(torch.float8_e4m3fn)}, f"fp8: {WEIGHTS} holds .*'{NAME}'"),
        ({"a.qweight": torch.ones(2), "a.g_idx": torch.ones(2)}, "GPTQ: .* tensor 'a.g_idx'"),
        ({"a.qweight": torch.ones(2), "a.qzeros": torch.ones(2)}, "AWQ: .* tensor 'a.qweight'"),
        ({"a.weight.absmax": torch.ones(2)}, "bitsandbytes: .* 'a.weight.absmax'"),
        ({"a.SCB": torch.ones(2)}, "bitsandbytes: .* 'a.SCB'"),
        ({"a.weight_packed": torch.ones(2)}, "compressed-tensors: .* 'a.weight_packed'"),
        ({"a.weight_scale_inv": torch.ones(2)}, "fp8: .* 'a.weight_scale_inv'"),
    ],
)
def test_quantized_tensors_are_refused_by_name(
    tensors: dict[str, torch.Tensor], message: str, folder: Path, tmp_path: Path
) -> None:
    edit(folder, lambda found: found.update(tensors))
    refuse(folder, UnsupportedError, rf"is quantized already \({message}", tmp_path)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "gptq"}, "GPTQ"),
        ({"quant_method": "awq"}, "AWQ"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"bits": 4}, "unknown"),
        ("aqlm", "aqlm"),
    ],
)
def test_quantized_config_is_refused_by_name(
    settings: object, name: str, folder: Path, tmp_path: Path
) -> None:
    checkpoints.edit_config(folder, lambda data: data.update(quantization_config=settings))
    refuse(folder, UnsupportedError, rf"is quantized already \({name}: config\.json has", tmp_path)


@pytest.mark.parametrize(
    ("file", "name"), [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ")]
)
def test_quantized_by_the_file_of_its_tool(
    file: str, name: str, folder: Path, tmp_path: Path
) -> None:
    (folder / file).write_text("{}")
    refuse(folder, UnsupportedError, rf"\({name}: it holds {file}\)", tmp_path)


def test_adapter_of_a_quantized_base(tmp_path: Path) -> None:
    base = adapter_checkpoints.base(tmp_path / "base")
    adapter_checkpoints.adapter(tmp_path / "lora", base)
    settings = {"quantization_config": {"quant_method": "bitsandbytes"}}
    checkpoints.edit_config(base, lambda data: data.update(settings))
    refuse(tmp_path / "lora", UnsupportedError, r"base is quantized already \(bitsand", tmp_path)


# --- files


def test_shard_that_is_missing(tmp_path: Path) -> None:
    folder = checkpoints.qwen_prm(tmp_path / "tiny", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = r"model-00002-of-00003\.safetensors is missing; .* \(tensor '[\w.]+' and others\)$"
    refuse(folder, CheckpointError, message, tmp_path, separator=None)


def test_index_that_leads_outside(tmp_path: Path) -> None:
    folder = checkpoints.qwen_prm(tmp_path / "tiny", shards=2)
    secret = tmp_path / "secret.safetensors"
    save_file({"secret": torch.ones(2)}, secret)
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    for path in ("../secret.safetensors", str(secret), r"..\secret.safetensors", "", "a/../x"):
        index.write_text(json.dumps({"weight_map": {**whole["weight_map"], "secret": path}}))
        message = r"index\.json names the shard .*a shard is a plain file name|is no \.safetensors"
        refuse(folder, CheckpointError, message, tmp_path, separator=None)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"\x07"), "it has 1 bytes, fewer than a header's length"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:200]),
            r"its header claims \d+ bytes, the whole file has 200",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-4]),
            r"tensor '[\w.]+' lies at bytes \d+ to \d+ of the data, of which the file holds \d+",
        ),
        (
            lambda path: write_header(path, {}, length=1 << 62),
            "its header claims 4611686018427387904 bytes, the whole file has 10",
        ),
        (
            lambda path: write_header(
                path, {NAME: {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}
            ),
            f"tensor '{NAME}' lies at bytes 0 to 4000000000 of the data, of which the file holds 0",
        ),
        (
            lambda path: write_header(
                path,
                {NAME: {"dtype": "BF16", "shape": [10**9], "data_offsets": [0, 8]}},
                b"\0" * 8,
            ),
            rf"tensor '{NAME}' of shape \[1000000000\] and type BF16 needs 2000000000 bytes, .* 8",
        ),
        (
            lambda path: write_header(
                path,
                {NAME: {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}},
                b"\0" * 8,
            ),
            rf"tensor '{NAME}' of shape \[1099511627776, 1099511627776\]",
        ),
        (lambda path: write_header(path, [1]), ""),
        (lambda path: write_header(path, {NAME: 3}), ""),
    ],
    ids=["byte", "truncated", "cut", "length", "claim", "claim2", "overflow", "list", "number"],
)
def test_safetensors_header_that_lies(
    write: Callable[[Path], object], message: str, folder: Path, tmp_path: Path
) -> None:
    write(folder / WEIGHTS)
    message = rf"/{WEIGHTS} cannot be read as safetensors \(.*{message}.*\); download it again"
    refuse(folder, CheckpointError, message, tmp_path)


def test_explanation_is_none_for_a_sound_file(folder: Path, tmp_path: Path) -> None:
    assert explain(folder / WEIGHTS) is None
    assert explain(tmp_path / "none") is None


def test_tensor_that_a_sparse_file_really_holds(folder: Path, tmp_path: Path) -> None:
    """A header may claim 10^9 elements and the file have them: it is not read to be refused."""
    path = folder / WEIGHTS
    write_header(path, {NAME: {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}})
    os.truncate(path, path.stat().st_size + 4 * 10**9)
    refuse(folder, UnsupportedError, "no per-step head that is known", tmp_path)


def test_tokenizer_of_200_mb(folder: Path, tmp_path: Path) -> None:
    os.truncate(folder / "tokenizer.json", 200_000_000)
    message = r"tokenizer\.json has 200000000 bytes, more than the 100000000 that are read"
    refuse(folder, CheckpointError, message, tmp_path)


def test_chat_template_of_2_mb(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text("x" * 2_000_000)
    refuse(folder, CheckpointError, r"chat_template\.jinja has more than 1000000 byt", tmp_path)


class Evil:
    """Runs a command when a careless loader unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_pickles_that_want_to_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    tensors: dict[str, Any] = {**checkpoints.read_tensors(folder), "evil": Evil(mark)}
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    message = r"bin is a pickle that asks for more than tensors, .* names \w+\.system"
    refuse(folder, CheckpointError, rf"pytorch_model\.{message}", tmp_path)
    base = adapter_checkpoints.base(tmp_path / "base")
    adapter_checkpoints.adapter(tmp_path / "lora", base, pickled=True)
    torch.save({"evil": Evil(mark)}, tmp_path / "lora" / "adapter_model.bin")
    refuse(tmp_path / "lora", CheckpointError, rf"adapter_model\.{message}", tmp_path)
    assert not mark.exists()


# --- what does not fit together


def test_tag_that_is_not_one_token(folder: Path, tmp_path: Path) -> None:
    """Math-Shepherd's tag, with a tokenizer that spells it in several."""
    checkpoint = family_checkpoints.math_shepherd(tmp_path / "prm")
    other = json.loads((checkpoint / "tokenizer.json").read_text())
    other["model"]["merges"] = [m for m in other["model"]["merges"] if "ки" not in "".join(m)]
    (checkpoint / "tokenizer.json").write_text(json.dumps(other))
    refuse(
        checkpoint,
        CheckpointError,
        r"the tag ' ки' is \d+ tokens of this tokenizer and must be one",
        tmp_path,
        recipe="math-shepherd",
        separator=None,
    )


@pytest.mark.parametrize(
    "names",
    [{"id2label": {"0": "good", "1": "bad"}}, {"label2id": {"correct": 0, "wrong": 1}}],
    ids=["id2label", "label2id"],
)
def test_label_names_that_contradict_the_recipe(
    names: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    checkpoints.edit_config(folder, lambda data: data.update(names))
    message = "config.json names the labels .* pass --good-label 0 or --good-label 1"
    refuse(folder, CheckpointError, message, tmp_path)


def test_vocabulary_that_is_smaller_than_the_recipes_ids(folder: Path, tmp_path: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:100]

    edit(folder, cut)
    checkpoints.edit_config(folder, lambda data: data.update(vocab_size=100))
    message = r"tokenizer\.json has \d+ ids but the embedding only 100 rows"
    refuse(folder, CheckpointError, message, tmp_path)
    checkpoint = family_checkpoints.math_shepherd(tmp_path / "prm")

    def cut_output(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:100]

    edit(checkpoint, cut_output)
    message = rf"{WEIGHTS}: tensor 'lm_head\.weight' of shape \[100, 64\] lacks one of the rows"
    refuse(checkpoint, CheckpointError, message, tmp_path, recipe="math-shepherd", separator=None)

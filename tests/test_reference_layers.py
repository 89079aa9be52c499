"""The reference runs a layer at a time and gives what transformers gives when it runs whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints
import torch
from int8_packages import SOLUTIONS, VERIFIED, export_int8, write_texts
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForTokenClassification

from prm_edge_export import checkpoint as checkpoint_module
from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.heads import find_head
from prm_edge_export.model_config import read_config
from prm_edge_export.quantization import layers
from prm_edge_export.quantization.layers import LayerRunner, StoredReference, run_reference
from prm_edge_runtime.encoding import Encoded
from prm_edge_runtime.errors import CheckpointError, ProofError

LENGTHS = (3, 17, 64, 16, 40, 64, 1)
MAKERS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "llama": (checkpoints.trl_llama, {"attention_bias": True, "mlp_bias": True}),
    "qwen2": (checkpoints.trl_qwen2, {}),
    "qwen3": (checkpoints.trl_qwen3, {}),
    "mistral": (checkpoints.trl_mistral, {"window": 11}),
    "phi3": (checkpoints.trl_phi3, {"window": 11}),
    "gemma2": (checkpoints.trl_gemma2, {"window": 11}),
}


def some_records(vocab: int) -> list[Encoded]:
    rng = np.random.default_rng(7)
    found = []
    for length in LENGTHS:
        ids = rng.integers(0, vocab, length)
        reads = np.unique(rng.integers(0, length, 3))
        found.append(Encoded(ids=ids, reads=reads, prompt_tokens=0))
    return found


def streamed(folder: Path, scratch: Path) -> tuple[list[Encoded], StoredReference]:
    scratch.mkdir(exist_ok=True)
    with Checkpoint(folder) as opened:
        config = read_config(opened.config)
        head = find_head(opened.tensors)
        assert head is not None
        records = some_records(config.vocab)
        runner = LayerRunner(config, head, opened.tensors, scratch=scratch)
        return records, run_reference(runner, config.layers, records)


@pytest.mark.parametrize("name", MAKERS)
def test_layers_in_turn_give_what_the_whole_model_gives(name: str, tmp_path: Path) -> None:
    maker, changes = MAKERS[name]
    folder = maker(tmp_path / "tiny", **changes)
    records, reference = streamed(folder, tmp_path / "scratch")
    whole = AutoModelForTokenClassification.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    for record in records:
        with torch.inference_mode():
            wanted = whole(input_ids=torch.from_numpy(record.ids)[None]).logits[0, record.reads]
        found = reference.run(record.ids, record.reads)
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-5)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_are_read_from_shards(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = checkpoints.qwen_prm(tmp_path / "tiny")
    tensors = checkpoints.read_tensors(folder)
    checkpoints.write_shards(folder, {n: t.to(dtype) for n, t in tensors.items()}, 3)
    (folder / "model.safetensors").unlink()
    records, reference = streamed(folder, tmp_path / "scratch")
    body = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    model = AutoModel.from_config(
        checkpoints.Qwen2Config.from_pretrained(folder), attn_implementation="eager"
    ).float()
    model.load_state_dict({n: t.to(dtype).float() for n, t in body.items()})
    head = {n: t.to(dtype).float() for n, t in tensors.items() if n.startswith("score.")}

    def wanted(ids: NDArray[np.int64], reads: NDArray[np.int64]) -> torch.Tensor:
        with torch.inference_mode():
            hidden = model.eval()(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0, reads]
            first = hidden @ head["score.0.weight"].T + head["score.0.bias"]
            return first.relu() @ head["score.2.weight"].T + head["score.2.bias"]

    for record in records:
        found = reference.run(record.ids, record.reads)
        expected = wanted(record.ids, record.reads).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_states_lie_in_a_file_without_a_name(tmp_path: Path) -> None:
    states = layers.States(tmp_path)
    one, other = torch.randn(2, 3, 4), torch.randn(1, 5, 4)
    states.put(0, one)
    states.put(96, other)
    states.put(0, 2 * one)
    torch.testing.assert_close(states.get(96, (1, 5, 4)), other, rtol=0, atol=0)
    torch.testing.assert_close(states.get(0, (2, 3, 4)), 2 * one, rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == []  # a process that is killed leaves nothing behind


def test_embedding_is_read_in_blocks_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.trl_qwen2(tmp_path / "tiny")
    table = checkpoints.read_tensors(folder)["model.embed_tokens.weight"]
    monkeypatch.setattr(checkpoint_module, "ROWS_AT_ONCE", 100)
    with Checkpoint(folder) as opened:
        blocks = list(opened.tensors.row_blocks("model.embed_tokens.weight", tuple(table.shape)))
        assert [len(block) for block in blocks[:-1]] == [100] * (len(table) // 100)
        np.testing.assert_array_equal(np.concatenate(blocks), table.numpy())


def test_closed_checkpoint_reads_no_more(tmp_path: Path) -> None:
    with Checkpoint(checkpoints.trl_qwen2(tmp_path / "tiny")) as opened:
        pass
    with pytest.raises(CheckpointError, match=r"tiny: the checkpoint was closed; open it again"):
        opened.tensors.torch("model.norm.weight", (64,))


def test_stored_reference_knows_its_records_only() -> None:
    reference = StoredReference([], [])
    with pytest.raises(ProofError, match="was not run on this record of 3 tokens"):
        reference.run(np.arange(3), np.array([2]))


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_interrupted_between_layers_nothing_is_left(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.trl_llama(tmp_path / "tiny", num_hidden_layers=1)
    work = tmp_path / "work"
    real = LayerRunner.load

    def load(runner: LayerRunner, index: int) -> None:
        real(runner, index)
        made = list(work.iterdir())
        assert any(path.is_dir() for path in made)  # the work goes on beside the package
        assert not any((path / "prm_edge.json").exists() for path in made)
        raise KeyboardInterrupt

    monkeypatch.setattr(LayerRunner, "load", load)
    calibration = None if precision == "fp32" else write_texts(tmp_path / "c.jsonl", SOLUTIONS)
    verified = write_texts(tmp_path / "v.jsonl", VERIFIED)
    options = {"precision": precision, "calibration": calibration}
    with pytest.raises(KeyboardInterrupt):
        export_int8(folder, work / "pkg", verify=verified, **options)
    assert [path.name for path in work.iterdir()] == ["texts"]  # those of export_int8

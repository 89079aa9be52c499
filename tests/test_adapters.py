"""LoRA adapters: merged as peft documents it, tensor by tensor; all else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import adapter_checkpoints
import checkpoints
import torch
from adapter_checkpoints import PREFIX, edit_adapter
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForTokenClassification

from prm_edge_export.adapters import AdaptedTensors
from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_export.sources import open_checkpoint
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import CheckpointError, UnsupportedError

VARIETIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 4},
    "pickled": {"pickled": True},
    "patterns": {
        "ranks": {"self_attn.q_proj": 3},
        "alphas": {"mlp.down_proj": 5, "self_attn.q_proj": 2.5},
    },
    "embedding": {"embedding": True},
    "all biases": {
        "bias": "all",
        "extra": {"model.layers.1.self_attn.k_proj.bias": torch.linspace(-1, 1, 32)},
    },
    "modules saved": {
        "linears": (),
        "extra": {"model.norm.weight": torch.linspace(0.5, 2, 64)},
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that no test changes."""
    return adapter_checkpoints.base(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize("variety", VARIETIES)
def test_adapter_is_merged_tensor_by_tensor(variety: str, base: Path, tmp_path: Path) -> None:
    merged = adapter_checkpoints.adapter(tmp_path / "lora", base, **VARIETIES[variety])
    before = checkpoints.read_tensors(base)
    with open_checkpoint(tmp_path / "lora") as checkpoint:
        assert set(checkpoint.tensors) == set(merged)
        assert checkpoint.tensors.used == set()
        for name, expected in merged.items():
            read = checkpoint.tensors.torch(name, tuple(expected.shape))
            torch.testing.assert_close(read, expected, rtol=1e-6, atol=1e-6)
            if len(expected.shape) == 2:
                picked = checkpoint.tensors.rows(name, (1, 0), expected.shape[1])
                torch.testing.assert_close(picked, expected[[1, 0]], rtol=1e-6, atol=1e-6)
        assert checkpoint.tensors.used == set(merged)
        assert isinstance(checkpoint.tensors, AdaptedTensors)
        changed = {n for n in merged if n not in before or not torch.equal(merged[n], before[n])}
        assert checkpoint.tensors.changed == changed


def test_adapter_patterns_are_expressions_as_pefts(base: Path, tmp_path: Path) -> None:
    adapter_checkpoints.adapter(tmp_path / "lora", base)
    plain = _deltas(tmp_path / "lora", base)
    patterns = {r"layers\.\d+\.self_attn\.v_proj": 48, "q_proj": 32, "proj": 1, r".*layers.1.*": 8}
    edit_adapter(tmp_path / "lora", alpha_pattern=patterns)
    scaled = _deltas(tmp_path / "lora", base)
    factors = {
        name: round(float((scaled[name] / plain[name]).median()), 3) for name in sorted(plain)
    }
    assert factors == {
        "model.layers.0.mlp.down_proj.weight": 1.0,  # "proj" is no whole name of it
        "model.layers.0.self_attn.q_proj.weight": 2.0,
        "model.layers.0.self_attn.v_proj.weight": 3.0,
        "model.layers.1.mlp.down_proj.weight": 0.5,
        "model.layers.1.self_attn.q_proj.weight": 2.0,
        "model.layers.1.self_attn.v_proj.weight": 3.0,
    }


def _deltas(folder: Path, base: Path) -> dict[str, torch.Tensor]:
    before = checkpoints.read_tensors(base)
    with open_checkpoint(folder) as checkpoint:
        tensors = checkpoint.tensors
        names = [n for n in tensors if n.endswith("_proj.weight") and n in tensors.changed]  # type: ignore[attr-defined]
        return {n: tensors.torch(n, tuple(before[n].shape)) - before[n] for n in names}


@pytest.mark.parametrize("variety", ["plain", "embedding"])
def test_adapter_exports_like_the_merged_model(variety: str, base: Path, tmp_path: Path) -> None:
    merged = adapter_checkpoints.adapter(tmp_path / "lora", base, **VARIETIES[variety])
    (base / "LICENSE").write_text("the base's licence")
    said: list[str] = []
    result = export(
        ExportOptions(checkpoint=tmp_path / "lora", out=tmp_path / "pkg", separator="\n"),
        said.append,
    )
    assert f"base: {base}, which adapter_config.json names" in said
    provenance = result.report["provenance"]
    assert (provenance["checkpoint"], provenance["base"]) == ("lora", "base")
    assert provenance["architecture"] == "Qwen2ForTokenClassification"
    assert (tmp_path / "pkg" / "LICENSE").read_text() == "the base's licence"
    # the merged model by transformers alone
    config = Qwen2ForTokenClassification.config_class.from_pretrained(base, num_labels=2)
    model = Qwen2ForTokenClassification(config).eval()
    merged.pop("lm_head.weight")
    model.load_state_dict(merged)
    with Scorer.load(tmp_path / "pkg") as scorer:
        encoded = scorer._encoder.encode("What is 2 + 2?", ["2 + 2 = 4", "So 5."])
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(encoded.ids)[None]).logits[0, encoded.reads]
        scores = scorer.score("What is 2 + 2?", ["2 + 2 = 4", "So 5."]).scores
    assert scores == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-5)


def test_adapter_brings_its_own_tokenizer_and_vocabulary(base: Path, tmp_path: Path) -> None:
    rows = checkpoints.read_tensors(base)["model.embed_tokens.weight"].shape[0]
    bigger = {"model.embed_tokens.weight": torch.randn(rows + 8, 64)}
    adapter_checkpoints.adapter(tmp_path / "lora", base, extra=bigger)
    with open_checkpoint(tmp_path / "lora") as checkpoint:
        assert checkpoint.config["vocab_size"] == rows + 8
        assert checkpoint.tokenizer_folder == base
        (tmp_path / "lora" / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
        assert checkpoint.tokenizer_folder == tmp_path / "lora"
        assert set(checkpoint.identity()) == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "base/config.json",
            "base/model.safetensors",
        }


def test_adapter_of_a_language_model(base: Path, tmp_path: Path) -> None:
    merged = adapter_checkpoints.adapter(
        tmp_path / "lora", base, head=False, task_type="CAUSAL_LM", modules_to_save=None
    )
    with open_checkpoint(tmp_path / "lora") as checkpoint:
        assert set(checkpoint.tensors) == set(merged)
        assert checkpoint.config["architectures"] == ["Qwen2ForCausalLM"]
    tied = adapter_checkpoints.base(tmp_path / "tied", tie_word_embeddings=True)
    adapter_checkpoints.adapter(
        tmp_path / "on-tied", tied, head=False, embedding=True, task_type="CAUSAL_LM"
    )
    with pytest.raises(UnsupportedError, match=r"changes model\.embed_tokens\.weight of a base th"):
        open_checkpoint(tmp_path / "on-tied")


# --- what is not merged


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"peft_type": "IA3"}, UnsupportedError, "peft_type 'IA3' is not merged, only LORA"),
        ({"task_type": "SEQ_CLS"}, UnsupportedError, "task_type 'SEQ_CLS' has no scores of steps"),
        ({"use_dora": True}, UnsupportedError, "because of use_dora True; merge it with peft"),
        ({"init_lora_weights": "pissa"}, UnsupportedError, "init_lora_weights 'pissa'"),
        ({"use_new_trick": True}, UnsupportedError, "because of use_new_trick True"),
        (
            {"layer_replication": [[0, 2]], "lora_bias": True},
            UnsupportedError,
            r"layer_replication \[\[0, 2\]\]; lora_bias True",
        ),
        ({"r": 0}, CheckpointError, "r must be a whole number from 1 to 65536, got 0"),
        ({"r": 4}, CheckpointError, r"lora_A\.weight' has rank 8, adapter_config\.json says 4"),
        ({"lora_alpha": "16"}, CheckpointError, "lora_alpha must be a number below 1e6, got '16'"),
        ({"lora_alpha": float("nan")}, CheckpointError, "lora_alpha must be a number below 1e6"),
        ({"use_rslora": 1}, CheckpointError, "use_rslora must be true or false, got 1"),
        ({"alpha_pattern": [1]}, CheckpointError, r"alpha_pattern must be an object, got \[1\]"),
        ({"alpha_pattern": {"(a|a)*b": 1}}, UnsupportedError, "'.a|a..b' of alpha_pattern is not"),
        ({"rank_pattern": {"a+b+c+": 1}}, UnsupportedError, "of rank_pattern is not read"),
        ({"rank_pattern": {"a" * 300: 1}}, UnsupportedError, "of rank_pattern is not read"),
        ({"rank_pattern": {"(q": 1}}, CheckpointError, "of rank_pattern is no regular expression"),
        ({"base_model_name_or_path": None}, CheckpointError, "names no base; pass it with --base"),
        ({"base_model_name_or_path": "/no/where"}, CheckpointError, "'/no/where', which is no fol"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_adapter_config_that_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, base: Path, tmp_path: Path
) -> None:
    adapter_checkpoints.adapter(tmp_path / "lora", base)
    edit_adapter(tmp_path / "lora", **changes)
    with pytest.raises(error, match=message):
        open_checkpoint(tmp_path / "lora")


Q = f"{PREFIX}model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {f"{Q}.lora_magnitude_vector": torch.ones(64)},
            UnsupportedError,
            r"lora_magnitude_vector' belongs to DoRA, which is not merged",
        ),
        ({f"{Q}.lora_B.bias": torch.ones(64)}, UnsupportedError, "belongs to lora_bias"),
        (
            {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 64)},
            UnsupportedError,
            "belongs to trainable_token_indices",
        ),
        ({f"{Q}.lora_C.weight": torch.ones(2)}, UnsupportedError, "is no factor of a LoRA"),
        ({"score.weight": torch.ones(2, 64)}, CheckpointError, "does not begin with 'base_model"),
        (
            {f"{PREFIX}transformer.wte.weight": torch.ones(2, 64)},
            CheckpointError,
            r"safetensors: tensor '.*wte\.weight' changes 'transformer\.wte\.weight', which the",
        ),
        (
            {f"{PREFIX}model.norm.weight": torch.ones(65)},
            CheckpointError,
            r"model\.norm\.weight' has shape \[65\], the base's 'model\.norm\.weight' \[64\]",
        ),
        ({f"{Q}.lora_A.weight": None}, CheckpointError, r"lacks its other half '.*lora_A\.weight'"),
        (
            {f"{Q}.lora_A.weight": torch.ones(8, 65)},
            CheckpointError,
            r"lora_A\.weight' has shape \[8, 65\] and its other half \[64, 8\], which do not fit",
        ),
        (
            {
                f"{PREFIX}model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(8, 64),
                f"{PREFIX}model.layers.9.mlp.up_proj.lora_B.weight": torch.ones(112, 8),
            },
            CheckpointError,
            r"changes 'model\.layers\.9\.mlp\.up_proj\.weight', which the base",
        ),
        (
            {f"{PREFIX}score.weight": None, f"{PREFIX}score.bias": None},
            CheckpointError,
            "is a TOKEN_CLS adapter without a head",
        ),
    ],
    ids=[
        "dora",
        "bias",
        "tokens",
        "factor",
        "prefix",
        "name",
        "shape",
        "half",
        "fit",
        "layer",
        "head",
    ],
)
def test_adapter_tensor_that_is_refused(
    change: dict[str, torch.Tensor | None],
    error: type[Exception],
    message: str,
    base: Path,
    tmp_path: Path,
) -> None:
    adapter_checkpoints.adapter(tmp_path / "lora", base)
    path = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(path) | change
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    with pytest.raises(error, match=message):
        open_checkpoint(tmp_path / "lora")


def test_adapter_that_changes_nothing(base: Path, tmp_path: Path) -> None:
    adapter_checkpoints.adapter(tmp_path / "lora", base, linears=(), head=False)
    with pytest.raises(CheckpointError, match="lora changes no tensor"):
        open_checkpoint(tmp_path / "lora")
    (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"and neither adapter_model\.safetensors nor"):
        open_checkpoint(tmp_path / "lora")


# --- the real peft


@pytest.mark.trl
@pytest.mark.parametrize(
    "settings",
    [
        {"task_type": "TOKEN_CLS", "target_modules": ["q_proj", "down_proj"]},
        {
            "task_type": "TOKEN_CLS",
            "target_modules": ["q_proj", "v_proj", "gate_proj"],
            "use_rslora": True,
            "rank_pattern": {"self_attn.q_proj": 4, r"layers\.1\.mlp\.gate_proj": 2},
            "alpha_pattern": {"v_proj": 64, r"model.layers.0.*gate_proj": 3},
            "modules_to_save": ["score", "norm"],
        },
        {"task_type": "TOKEN_CLS", "target_modules": ["k_proj", "embed_tokens"], "bias": "all"},
        {"task_type": "TOKEN_CLS", "target_modules": ["k_proj"], "bias": "lora_only"},
        {"task_type": "CAUSAL_LM", "target_modules": "all-linear"},
        {"task_type": "CAUSAL_LM", "target_modules": ["lm_head", "o_proj"], "use_rslora": True},
        {"task_type": "CAUSAL_LM", "target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["plain", "patterns", "embedding", "lora-only", "causal", "output", "output-saved"],
)
@pytest.mark.filterwarnings("ignore")  # peft's and accelerate's own
def test_adapter_is_what_peft_merges(
    settings: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft", reason="needs the trl extra")
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    auto = {"TOKEN_CLS": AutoModelForTokenClassification, "CAUSAL_LM": AutoModelForCausalLM}
    torch.manual_seed(5)
    model = auto[settings["task_type"]].from_pretrained(base)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=8, **settings))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:  # as training would move it
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(tmp_path / "lora")
    # loaded again, so that only what was saved counts; a head that is not is random
    again = auto[settings["task_type"]].from_pretrained(base)
    merged = peft.PeftModel.from_pretrained(again, tmp_path / "lora").merge_and_unload()
    reference = merged.state_dict()
    changed = 0
    with open_checkpoint(tmp_path / "lora") as checkpoint:
        for name, expected in reference.items():
            read = checkpoint.tensors.torch(name, tuple(expected.shape))
            torch.testing.assert_close(read, expected, rtol=1e-6, atol=1e-6)
            changed += name in checkpoint.tensors.changed  # type: ignore[attr-defined]
        assert changed == len(checkpoint.tensors.changed)  # type: ignore[attr-defined]
    assert changed > 0


@pytest.mark.trl
@pytest.mark.filterwarnings("ignore")  # peft's and accelerate's own
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"lora_bias": True}, "lora_bias True"),
        ({"trainable_token_indices": [1, 2]}, r"trainable_token_indices \[1, 2\]"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
    ],
)
def test_what_peft_does_beside_is_refused(
    settings: dict[str, Any],
    message: str,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peft = pytest.importorskip("peft", reason="needs the trl extra")
    from transformers import AutoModelForTokenClassification

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = AutoModelForTokenClassification.from_pretrained(base)
    config = peft.LoraConfig(task_type="TOKEN_CLS", target_modules=["q_proj"], **settings)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    with pytest.raises(UnsupportedError, match=message):
        open_checkpoint(tmp_path / "lora")

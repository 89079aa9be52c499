"""Checkpoints that nobody should trust: nothing in them runs, and each refusal names its reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import checkpoints

from prm_edge_export.checkpoint import Checkpoint
from prm_edge_export.model_config import read_config
from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_runtime.errors import CheckpointError, UnsupportedError

EVIL = """
import pathlib
pathlib.Path({mark!r}).write_text("code of the checkpoint was run")
"""


def test_hostile_checkpoint_runs_nothing(tmp_path: Path) -> None:
    """Every key that ever made transformers import something, with code lying ready."""
    checkpoint = checkpoints.trl_llama(tmp_path / "tiny")
    mark = tmp_path / "ran"
    for name in (
        "modeling_evil.py",
        "configuration_evil.py",
        "tokenization_evil.py",
        "conftest.py",
    ):
        (checkpoint / name).write_text(EVIL.format(mark=str(mark)))
    checkpoints.edit_config(
        checkpoint,
        lambda data: data.update(
            auto_map={
                "AutoConfig": "configuration_evil.Evil",
                "AutoModel": "modeling_evil.Evil",
                "AutoModelForTokenClassification": "modeling_evil.Evil",
            },
            attn_implementation="evil/kernel",
            _attn_implementation="evil/kernel",
            _attn_implementation_internal="evil/kernel",
            _experts_implementation_internal="evil/kernel",
            use_kernels=True,
            kernel_config={"RMSNorm": "evil/kernel:Layer"},
            dtype="modeling_evil.Evil",
            torch_dtype="__import__('os').system('true')",
            quantization_config=None,
            custom_generate="evil",
        ),
    )
    path = checkpoint / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"]}
    config["tokenizer_class"] = "Evil"
    path.write_text(json.dumps(config))
    # its own process, so that a module that is imported shows
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from prm_edge_export.pipeline import export\n"
        "from prm_edge_export.options import ExportOptions\n"
        f"export(ExportOptions(checkpoint=Path({str(checkpoint)!r}), "
        f"out=Path({str(tmp_path / 'pkg')!r}), separator='\\n'))\n"
        "assert not any('evil' in name for name in sys.modules)\n"
        "assert 'kernels' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "evil"}, UnsupportedError, "model_type 'evil' "),
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act 'gelu' is not supported"),
        ({"hidden_size": 1 << 40}, CheckpointError, "hidden_size must be a whole number from 1"),
        ({"hidden_size": "64"}, CheckpointError, "hidden_size must be a whole number .* got '64'"),
        ({"num_hidden_layers": True}, CheckpointError, "num_hidden_layers must be a whole number"),
        ({"num_key_value_heads": 3}, CheckpointError, "4 attention heads cannot share 3"),
        (
            {"max_position_embeddings": 1 << 24, "head_dim": 1 << 20},
            CheckpointError,
            "16777216 pos",
        ),
        ({"head_dim": 24}, UnsupportedError, "head size of 24 is not supported"),
        ({"rms_norm_eps": "1e-5"}, CheckpointError, r"rms_norm_eps must be in \[0, 1\)"),
        ({"attention_bias": "yes"}, CheckpointError, "attention_bias must be true or false"),
        ({"rope_scaling": "x"}, CheckpointError, "rope_scaling must be an object or null"),
        (
            {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}},
            UnsupportedError,
            "rope scaling 'longrope' is not supported",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            UnsupportedError,
            "rope scaling 'dynamic' is not supported",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 5e5},
            CheckpointError,
            "gives rope_theta twice, as 10000.0 and as 500000.0",
        ),
        (
            {"rope_parameters": {"rope_type": "linear"}},
            CheckpointError,
            "rope scaling 'linear' lacks the key 'factor'",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "twist": 1}},
            UnsupportedError,
            "has the unknown key 'twist'",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": -2.0}},
            CheckpointError,
            "rope factor must be a positive number",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            UnsupportedError,
            "per layer type are not supported",
        ),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor 0.5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_config_that_cannot_be_exported(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = checkpoints.trl_llama(tmp_path / "tiny")
    checkpoints.edit_config(folder, lambda data: data.update(change))
    with pytest.raises(error, match=message):
        export(ExportOptions(checkpoint=folder, out=tmp_path / "pkg", separator="\n"))
    assert not (tmp_path / "pkg").exists()


def test_config_sliding_window_is_refused_unless_it_never_cuts(tmp_path: Path) -> None:
    folder = checkpoints.trl_qwen2(tmp_path / "tiny")

    def read(**change: Any) -> Any:
        checkpoints.edit_config(folder, lambda data: data.update(change))
        with Checkpoint(folder) as checkpoint:
            return read_config(checkpoint.config)

    with pytest.raises(UnsupportedError, match=r"sliding-window attention .window 128"):
        read(use_sliding_window=True, sliding_window=128)
    with pytest.raises(UnsupportedError, match="sliding-window attention"):
        read(use_sliding_window=False, layer_types=["sliding_attention"] * 2)
    assert read(use_sliding_window=True, sliding_window=512).layers == 2


def test_config_mistral_window(tmp_path: Path) -> None:
    folder = checkpoints.trl_mistral(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())

    def window(**change: Any) -> int | None:
        return read_config({**config, **change}).window

    assert window(sliding_window=None) is None
    assert window(sliding_window=7) == 7
    assert window(sliding_window=512) is None  # as long as the model's limit: never cuts
    del config["sliding_window"]
    assert window(max_position_embeddings=8192) == 4096  # left out: transformers' own default
    with pytest.raises(CheckpointError, match="sliding_window must be a whole number"):
        window(sliding_window=0)
    with pytest.raises(UnsupportedError, match="layer_types is not known of mistral"):
        window(layer_types=["full_attention"] * 2)


def test_config_defaults_are_transformers_own() -> None:
    import transformers

    from prm_edge_export.model_config import ARCHITECTURES

    assert sorted(ARCHITECTURES) == ["gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3"]
    for model_type, architecture in ARCHITECTURES.items():
        real = getattr(transformers, f"{model_type.capitalize()}Config")()
        for key, value in architecture.defaults.items():
            assert getattr(real, key) == value, (model_type, key)

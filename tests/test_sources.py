"""What CHECKPOINT may be: a folder, a hub id from a cache made by hand, an adapter and its base."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import adapter_checkpoints
import checkpoints
import huggingface_hub
from adapter_checkpoints import edit_adapter
from huggingface_hub import constants, errors

from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_export.sources import needed_files, open_checkpoint
from prm_edge_runtime.errors import CheckpointError, UnsupportedError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "f" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no hub."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def refuse(*arguments: object, **options: object) -> None:
        raise errors.OfflineModeIsEnabled("no hub in tests")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    return folder


def put(
    cache: Path, name: str, source: Path, commit: str = COMMIT, ref: str | None = "main"
) -> Path:
    """Lay a folder into the cache as huggingface_hub does: blobs, and links to them."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        blob = repository / "blobs" / f"{commit[:4]}-{path.name}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    if ref is not None:
        (repository / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.trl_llama(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_checkpoints.base(tmp_path_factory.mktemp("base") / "base")


def test_hub_id_is_taken_from_the_cache(
    tiny: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, "org/tiny-prm", tiny)
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    result = export(ExportOptions(checkpoint=Path("org/tiny-prm"), separator="\n"), said.append)
    assert result.out == Path("tiny-prm-prm")
    assert (
        f"WARNING: the hub cannot be asked (no hub in tests); taking org/tiny-prm at {COMMIT} "
        "from its cache" in said
    )
    provenance = result.report["provenance"]
    assert (provenance["hub"], provenance["revision"]) == ("org/tiny-prm", COMMIT)
    # the same checkpoint as the folder itself
    folder = export(ExportOptions(checkpoint=tiny, out=tmp_path / "two", separator="\n"))
    assert provenance["checkpoint_sha256"] == folder.report["provenance"]["checkpoint_sha256"]
    assert "hub" not in folder.report["provenance"]


def test_hub_revision(tiny: Path, cache: Path) -> None:
    put(cache, "org/tiny", tiny, COMMIT)
    put(cache, "org/tiny", tiny, OLDER, ref="v1")
    for revision, commit in ((None, COMMIT), ("v1", OLDER), (OLDER, OLDER)):
        with open_checkpoint(Path("org/tiny"), revision=revision) as checkpoint:
            assert checkpoint.origin["revision"] == commit
            assert checkpoint.root.name == commit
    with pytest.raises(CheckpointError, match="its cache does not have org/tiny at 'v2'"):
        open_checkpoint(Path("org/tiny"), revision="v2")


def test_hub_id_that_cannot_be_had(tiny: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"org/other is no folder here, the hub cannot be asked for it .no hub in",
    ):
        open_checkpoint(Path("org/other"))
    with pytest.raises(CheckpointError, match=r"no/such/folder is missing; .* or a hub id such as"):
        open_checkpoint(Path("no/such/folder"))
    with pytest.raises(CheckpointError, match=r"tiny is no hub id, .*: leave --revision out"):
        open_checkpoint(tiny, revision="v1")
    with pytest.raises(CheckpointError, match=r"tiny is no adapter .* leave --base out"):
        open_checkpoint(tiny, base="org/base")
    snapshot = put(cache, "org/part", tiny)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        open_checkpoint(Path("org/part"))


def test_hub_is_asked_for_needed_files_only(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = put(cache, "org/tiny", tiny)
    asked: dict[str, Any] = {}
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "a.gguf"]

    def model_info(self: object, name: str, revision: str | None = None) -> SimpleNamespace:
        siblings = [SimpleNamespace(rfilename=name) for name in names]
        return SimpleNamespace(sha=COMMIT, siblings=siblings)

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    said: list[str] = []
    with open_checkpoint(Path("org/tiny"), say=said.append) as checkpoint:
        assert checkpoint.origin == {"hub": "org/tiny", "revision": COMMIT}
    files = ["config.json", "tokenizer.json", "model.safetensors"]
    assert asked == {"name": "org/tiny", "revision": COMMIT, "allow_patterns": files}
    assert said == [f"hub: org/tiny at {COMMIT}, 3 files"]


@pytest.mark.parametrize(
    "error", [errors.RepositoryNotFoundError, errors.GatedRepoError, errors.RevisionNotFoundError]
)
def test_hub_that_refuses_is_not_replaced_by_its_cache(
    error: Any, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, "org/tiny", tiny)

    def refuse(*arguments: object, **options: object) -> None:
        response = SimpleNamespace(headers={}, request=None)
        raise error("404 Client Error\nsecond line", response=response)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(CheckpointError, match="the hub does not give org/tiny: 404 Client Error;"):
        open_checkpoint(Path("org/tiny"))


def test_a_package_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "prm_edge.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is a package already .*; name the checkpoint"):
        open_checkpoint(tmp_path)


def test_hub_id_that_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise errors.HFValidationError("cannot have --")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(CheckpointError, match="org/a--b is no hub id: cannot have --"):
        open_checkpoint(Path("org/a--b"))


PICKLE = "pytorch_model.bin"
SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        (
            ["x/config.json", "config.json", "LICENSE.md", "model.safetensors", PICKLE],
            ["LICENSE.md", "config.json", "model.safetensors"],
        ),
        (
            [*SHARDS, "model.safetensors.index.json", "other.safetensors", "training_args.bin"],
            ["training_args.bin", "model.safetensors.index.json", *SHARDS],
        ),
        (
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "rng_state.pth"],
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
        ),
        (
            ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "a.py"],
            ["adapter_config.json", "adapter_model.safetensors"],
        ),
    ],
)  # fmt: skip
def test_needed_files(names: list[str], needed: list[str]) -> None:
    assert needed_files(names) == needed


def test_needed_files_of_a_repository_without_weights() -> None:
    with pytest.raises(CheckpointError, match=r"none of model\.safetensors, adapter_model\.safet"):
        needed_files(["config.json", "model.gguf", "x/model.safetensors"])


# --- the base of an adapter


def test_base_from_the_cache_or_named(base: Path, cache: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    adapter_checkpoints.adapter(lora, base)
    edit_adapter(lora, base_model_name_or_path="org/base", revision="v1")
    with pytest.raises(CheckpointError, match=r"not in the hub's cache .* pass --base org/base"):
        open_checkpoint(lora)
    put(cache, "org/base", base, OLDER, ref="v1")
    said: list[str] = []
    with open_checkpoint(lora, say=said.append) as checkpoint:
        origin = {"base": "org/base", "base_revision": OLDER}
        assert origin.items() <= checkpoint.origin.items()
    assert said == ["base: org/base from the hub's cache, which adapter_config.json names"]
    with open_checkpoint(lora, base="org/base@v1") as checkpoint:
        assert origin.items() <= checkpoint.origin.items()
    with open_checkpoint(lora, base=str(base)) as checkpoint:
        assert checkpoint.origin["base"] == "base"
        assert "base_revision" not in checkpoint.origin


def test_adapter_in_the_hub(base: Path, cache: Path, tmp_path: Path) -> None:
    adapter_checkpoints.adapter(tmp_path / "lora", base)
    put(cache, "org/lora", tmp_path / "lora")
    with open_checkpoint(Path("org/lora")) as checkpoint:
        assert (checkpoint.origin["hub"], checkpoint.origin["base"]) == ("org/lora", "base")


def test_base_that_cannot_be(base: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    adapter_checkpoints.adapter(lora, base)
    with pytest.raises(UnsupportedError, match=r"the base .* is an adapter itself; merge it"):
        open_checkpoint(lora, base=str(lora))
    wider = checkpoints.trl_qwen2(tmp_path / "wider", hidden_size=128)
    with pytest.raises(CheckpointError, match=r"which do not fit .* pass its own base with --b"):
        open_checkpoint(lora, base=str(wider))
    shutil.copy(base / "model.safetensors", lora)
    with pytest.raises(CheckpointError, match=r"holds an adapter .* and a whole model"):
        open_checkpoint(lora)

"""``prm-edge inspect`` says what a package holds, and loudly what is wrong with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_scorer import DIFFERENCE, DIGEST, RAW, RECIPE, manifest

from prm_edge.cli import cli
from prm_edge.cli.describe import package_bytes, recipe_lines, size
from prm_edge.cli.inspect import as_data, as_text
from prm_edge_runtime.package import Package
from prm_edge_runtime.recipe import Recipe
from prm_edge_runtime.scorer import Scorer


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


def package(**changes: object) -> Package:
    return Package(root=Path("fake"), manifest=manifest(**changes), digest=DIGEST)  # type: ignore[arg-type]


def test_as_text_says_everything() -> None:
    text = "\n".join(as_text(package(provenance={"source": "folder", "converted": False}), "full"))
    assert text.startswith("fake  0123456789ab  4.5 MB\n\nrecipe\n  family ")
    for line in (
        "each step             <STEP> '\\n\\n' [198, 199]",
        "read at               token 199 of '\\n\\n', number 2 of it, one score per step",
        "meaning               a good step follows from the problem and the steps before it",
        "runs on        cpu, fp32",
        "graph          decoder, cache of 2 layers x 1 heads x 8",
        "size           1.5 MB",
        "proof: max_dp  1.5e-06",
        "default  0.5",
        "max_tokens  1024",
        "source     folder",
        "3  every file has the size and SHA-256 of the manifest",
    ):
        assert f"  {line}\n" in text + "\n", line
    assert "\n\nvariant cpu-fp32\n" in text
    assert "WARNING" not in text
    assert "NOTICE" not in text


def test_as_text_tells_a_graph_without_a_cache() -> None:
    whole = manifest()
    variant = replace(whole.variants[0], interface="stateless", layers=0, kv_heads=0, head_dim=0)
    stateless = replace(whole, variants=(variant,))
    lines = as_text(Package(root=Path("fake"), manifest=stateless, digest=DIGEST), "auto")
    assert "  graph          stateless" in lines


def test_as_text_warns_loudly() -> None:
    changes = {"provenance": {"notice": "random weights"}, "proof": {"allowed_drift": True}}
    lines = as_text(package(**changes), "sizes")
    assert "NOTICE: random weights" in "\n".join(lines)
    assert any(line.startswith("  WARNING: exported with --allow-drift") for line in lines)
    assert lines[-1].endswith("hashes were NOT compared")


def test_as_data_holds_the_manifest() -> None:
    data = as_data(package(provenance={"notice": "n"}), "auto")
    assert data["manifest"] == manifest(provenance={"notice": "n"}).to_dict()
    assert (data["digest"], data["size_bytes"], data["notice"]) == (DIGEST, 4_500_000, "n")
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (RECIPE, {"score": "softmax of 2 logits, the probability of entry 1", "range": "0 to 1"}),
        (DIFFERENCE, {"score": "softmax of 2 logits, entry 1 minus entry 0", "range": "-1 to 1"}),
        (DIFFERENCE, {"before the steps": "'Q: ' <PROBLEM>", "between steps": r"'\n'"}),
        (RAW, {"score": "one logit as it is", "range": "unbounded", "between steps": "nothing"}),
        (RAW, {"read at": "token 7 of 'ки', one score per step"}),
    ],
)
def test_recipe_lines_tell_the_recipe(recipe: Recipe, said: dict[str, str]) -> None:
    assert said.items() <= dict(recipe_lines(recipe)).items()


@pytest.mark.parametrize(
    ("n_bytes", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (7e9, "7.0 GB")],
)
def test_size_is_for_people(n_bytes: int, shown: str) -> None:
    assert size(n_bytes) == shown


def test_package_bytes_counts_a_variant_with_what_is_shared() -> None:
    assert package_bytes(manifest()) == package_bytes(manifest(), "cpu-fp32") == 4_500_000
    assert package_bytes(manifest(), "another") == 3_000_000


def test_inspect_refuses_what_is_no_package(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        result = inspect(path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("Error: ")


@pytest.mark.parametrize("verify", ["auto", "full", "sizes"])
def test_inspect_shows_a_real_package(tiny_package: Path, verify: str) -> None:
    result = inspect(tiny_package, "--verify", verify)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "variant cpu-fp32" in result.stdout
    data = json.loads(inspect(tiny_package, "--json", "--verify", verify).stdout)
    assert data["verified"] == verify
    assert data["manifest"]["format_version"] == 1


def test_inspect_refuses_a_damaged_package(tiny_package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_package, copy)
    with (copy / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    result = inspect(copy)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "tokenizer.json" in result.stderr


# --- checkpoints


def test_inspect_tells_what_a_checkpoint_is_and_why(tmp_path: Path) -> None:
    checkpoints = pytest.importorskip("checkpoints", reason="needs the export extra")
    folder = checkpoints.qwen_prm(tmp_path / "tiny", shards=2)
    result = inspect(folder)
    assert (result.exit_code, result.stderr) == (0, "")
    for line in (
        f"checkpoint {folder}",
        "  architecture    Qwen2ForProcessRewardModel",
        "  longest record  512 tokens",
        "  recipe: qwen2.5-math-prm (Qwen2.5-Math-PRM), from the head; for reasonflux-prm pass",
        "  backend: native (model_type qwen2)",
        "  family                qwen2.5-math-prm",
    ):
        assert f"\n{line}" in "\n" + result.stdout, line
    assert "added tokens, a chat template" in result.stdout
    for precision in ("fp16", "int4"):
        assert f"\n  as cuda-{precision}" in result.stdout
    assert result.stdout.count("0.5 GB of GPU memory: weights 0.00, keys and values of 512 to") == 2
    assert "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors" in result.stdout
    asked = inspect(folder, "--recipe", "reasonflux-prm", "--json")
    data = json.loads(asked.stdout)
    assert data["recipe"]["family"] == "reasonflux-prm"
    assert data["refusal"] is None


def test_inspect_tells_why_a_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoints = pytest.importorskip("checkpoints", reason="needs the export extra")
    folder = checkpoints.trl_llama(tmp_path / "tiny")
    result = inspect(folder)
    assert result.exit_code == 1
    assert "LlamaForTokenClassification" in result.stdout
    assert result.stderr.startswith("Error: it cannot be exported as it is: a TRL checkpoint does")
    (folder / "tokenizer.json").unlink()
    data = json.loads(inspect(folder, "--json").stdout)
    assert data["recipe"] is None
    assert "tokenizer.json is missing" in data["refusal"]
    assert data["facts"]["tokenizer"].startswith("cannot be used: ")


def test_inspect_tells_an_adapter_from_its_base(tmp_path: Path) -> None:
    adapter_checkpoints = pytest.importorskip(
        "adapter_checkpoints", reason="needs the export extra"
    )
    base = adapter_checkpoints.base(tmp_path / "base")
    adapter_checkpoints.adapter(tmp_path / "lora", base)
    result = inspect(tmp_path / "lora")
    assert "LoRA of rank 8 for TOKEN_CLS, changes 8 tensors" in result.stdout
    assert result.stderr.startswith(f"base: {base}, which adapter_config.json names\nError: it ca")
    assert inspect(tmp_path / "lora", "--base", "no/where").exit_code == 1


def test_inspect_keeps_options_of_checkpoints_from_packages(tiny_package: Path) -> None:
    result = inspect(tiny_package, "--revision", "v1")
    assert result.exit_code == 2
    assert "--recipe, --revision, --base and --separator are for checkpoints" in result.stderr
    assert inspect(tiny_package, "--separator", "x").exit_code == 2


def test_inspect_takes_the_separator_that_a_checkpoint_does_not_store(tmp_path: Path) -> None:
    checkpoints = pytest.importorskip("checkpoints", reason="needs the export extra")
    folder = checkpoints.trl_llama(tmp_path / "tiny")
    result = inspect(folder, "--separator", r"\n\n")
    assert (result.exit_code, result.stderr) == (0, "")
    assert r"separator: '\n\n', as asked" in result.stdout


def test_inspect_without_a_path_shows_what_would_score(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in = CliRunner().invoke(cli, ["inspect"])
    assert built_in.exit_code == 0
    with Scorer.load(force=True) as scorer:
        assert built_in.stdout.startswith(scorer.package.manifest.name)
    monkeypatch.setenv("PRM_EDGE_PACKAGE", str(tiny_package))
    named = CliRunner().invoke(cli, ["inspect"])
    assert named.stdout == CliRunner().invoke(cli, ["inspect", str(tiny_package)]).stdout

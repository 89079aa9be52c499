"""Packages of random weights in a real shape, made in the time that writing them takes.

No calibration and no proof: `gpu_smoke.py` makes packages as users do. Weights in int4 are rounded
to the nearest.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from gpu_cases import Record, Torch
from shapes import RandomTensors, Shape

from prm_edge_export.half import BF16, FP16, build_half
from prm_edge_export.half_blocks import PackagedBlocks, build_blocks
from prm_edge_export.options import INT4, ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_export.proof import load_texts
from prm_edge_export.quantization.calibration import Calibration
from prm_edge_export.quantization.kinds import CUDA_MENU, UNITS, W4, layer_prefix
from prm_edge_export.quantization.weight_only import FORMS
from prm_edge_export.quantization.weights import Inputs, quantize_blocks
from prm_edge_export.ranges import Folds
from prm_edge_runtime.encoding import RecipeEncoder
from prm_edge_runtime.hashing import hash_file
from prm_edge_runtime.manifest import MANIFEST_NAME, SELFTEST_NAME, TOKENIZER_NAME, Variant
from prm_edge_runtime.package import open_package
from prm_edge_runtime.scoring import scores_from_logits
from prm_edge_runtime.selftest import TOLERANCE_KEY, Case, dump_cases

TEXTS: Final = Path(__file__).parents[1] / "export/prm_edge_export/data/verification.jsonl"
PRECISIONS: Final = (FP16, BF16, INT4)
MAX_TOKENS: Final = 2048
CASES: Final = 3
TOLERANCE: Final = 0.05  # beyond it something is wrong, and no speed counts


def some_texts(path: Path, count: int) -> Path:
    """The first of the bundled solutions, so that a proof takes moments."""
    lines = TEXTS.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:count]), encoding="utf-8")
    return path


def empty_package(root: Path, checkpoint: Path) -> Path:
    """A package that has a recipe and a tokenizer, from a tiny checkpoint; its variant is tiny."""
    options = ExportOptions(
        checkpoint=checkpoint,
        out=root / "package",
        separator="\n",
        verify=some_texts(root / "verify.jsonl", 4),
    )
    return export(options).out


def vocabulary(package: Path) -> int:
    """Rows that an embedding for its tokenizer needs."""
    given = json.loads((package / TOKENIZER_NAME).read_text(encoding="utf-8"))
    ids = [*given["model"]["vocab"].values(), *(token["id"] for token in given["added_tokens"])]
    return 1 + max(ids)


def add_variant(package: Path, shape: Shape, precision: str) -> str:
    """Write a CUDA variant of random weights into a package; its name."""
    name, tensors, vocab = f"cuda-{precision}", RandomTensors(), vocabulary(package)
    folder, config = package / name, shape.decoder(vocab)
    folder.mkdir()
    if precision == INT4:
        scratch = package.parent / f"{name}-scratch"
        scratch.mkdir()
        calibration = rounded(shape, tensors, scratch)
        plan = {(layer, unit.name): W4 for layer in range(shape.layers) for unit in UNITS}
        build_blocks(
            config, shape.head, tensors, folder,  # type: ignore[arg-type]
            form=FP16, folds=Folds(), calibration=calibration, plan=plan, max_tokens=MAX_TOKENS,
        )  # fmt: skip
        shutil.rmtree(scratch)
    else:
        build_half(
            config, shape.head, tensors, folder,  # type: ignore[arg-type]
            precision=precision, folds=Folds(), max_tokens=MAX_TOKENS,
        )  # fmt: skip
    files = {f"{name}/{path.name}": hash_file(path) for path in sorted(folder.iterdir())}
    manifest = open_package(package, verify="sizes").manifest
    variant = Variant(
        name=name,
        device="cuda",
        precision=precision,
        interface=manifest.variants[0].interface,
        graph=f"{name}/model.onnx",
        files=tuple(files),
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        proof={},
    )
    _write(package, replace(
        manifest, variants=(*manifest.variants, variant), files={**manifest.files, **files}
    ))  # fmt: skip
    return name


def record_selftest(package: Path, name: str, reference: Torch) -> None:
    """Store torch's scores of what a variant holds: a load on CUDA compares with them first."""
    opened = open_package(package, verify="sizes")
    encoder = RecipeEncoder(opened.read_bytes(TOKENIZER_NAME), opened.manifest.recipe)
    cases = []
    for text in load_texts(None)[0][:CASES]:
        encoded = encoder.encode(text.problem, text.steps)
        record = Record(
            problem=text.problem, steps=text.steps, ids=encoded.ids, reads=encoded.reads, prompt=0
        )
        scores = scores_from_logits(reference.solution(record), opened.manifest.recipe.score)
        cases.append(Case(problem=text.problem, steps=text.steps, scores=tuple(map(float, scores))))
    (package / SELFTEST_NAME).write_bytes(dump_cases(cases))
    variants = tuple(
        replace(variant, proof={TOLERANCE_KEY: TOLERANCE}) if variant.name == name else variant
        for variant in opened.manifest.variants
    )
    files = {**opened.manifest.files, SELFTEST_NAME: hash_file(package / SELFTEST_NAME)}
    _write(package, replace(opened.manifest, variants=variants, files=files))


def remove_variant(package: Path, name: str) -> None:
    """Take a variant out again: three of a 7B would not fit on every disk."""
    manifest = open_package(package, verify="sizes").manifest
    kept = {path: entry for path, entry in manifest.files.items() if not path.startswith(name)}
    variants = tuple(variant for variant in manifest.variants if variant.name != name)
    _write(package, replace(manifest, variants=variants, files=kept))
    shutil.rmtree(package / name)


def _write(package: Path, manifest: object) -> None:
    text = json.dumps(manifest.to_dict(), ensure_ascii=False)  # type: ignore[attr-defined]
    (package / MANIFEST_NAME).write_text(text, encoding="utf-8")


def rounded(shape: Shape, tensors: RandomTensors, scratch: Path) -> Calibration:
    """4-bit blocks of every linear, which all layers share."""
    calibration = Calibration(menu=CUDA_MENU)
    for unit in UNITS:
        parts = [tensors.torch(name, size) for name, size in shape.tensors(unit.parts)]
        blocks = quantize_blocks(torch.cat(parts), Inputs(), FORMS[W4], torch.float16)
        count = len(unit.graph)
        for at, graph in enumerate(unit.graph):
            path = scratch / f"{graph}.npz"
            np.savez(
                path,
                inputs=np.array(parts[0].shape[1]),
                w4=blocks.packed().chunk(count)[at].numpy(),
                w4_scales=blocks.scales.chunk(count)[at].flatten().numpy(),
            )
            for layer in range(shape.layers):
                calibration.stored[layer_prefix(layer) + graph] = path
    return calibration


def what_it_holds(package: Path, name: str, shape: Shape) -> RandomTensors:
    """The weights that a variant stands for: those of its blocks, where it has some."""
    if not name.endswith(INT4):
        return RandomTensors()
    packaged = PackagedBlocks(package / name)
    replaced = {
        "model.embed_tokens.weight": torch.from_numpy(np.concatenate(list(packaged.embedding())))
    }
    for unit in UNITS:
        whole = np.concatenate([packaged.weight(layer_prefix(0) + graph) for graph in unit.graph])
        named = shape.tensors(unit.parts)
        pieces = torch.from_numpy(whole).split([size[0] for _, size in named])
        replaced |= {tensor: piece for (tensor, _), piece in zip(named, pieces, strict=True)}
    return RandomTensors(replaced)

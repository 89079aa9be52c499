"""Tiny packages for tests: real ONNX graphs of a few hundred bytes, no torch, no real tokenizer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prm_edge_runtime.hashing import hash_file
from prm_edge_runtime.manifest import (
    CARD_NAME,
    MANIFEST_NAME,
    SELFTEST_NAME,
    TOKENIZER_NAME,
    Manifest,
    Variant,
)
from prm_edge_runtime.recipe import Recipe, Score, Slot, Split, Text, Tokens

DATA_NAME = "model.onnx.data"
SHARED_FILES = {
    TOKENIZER_NAME: b'{"model": "none"}\n',
    SELFTEST_NAME: b'{"cases": []}\n',
    CARD_NAME: b"# A tiny package\n",
}


def tiny_recipe(**changes: Any) -> Recipe:
    recipe = Recipe(
        family="trl",
        encode="separate",
        prompt=(Slot(name="problem"),),
        between=(),
        step=(Text(text="\n"), Slot(name="step"), Tokens(ids=(7,), text="<s>", read=-1)),
        split=Split(separator="\n"),
        logits=2,
        score=Score(kind="softmax", good=1),
        aggregates=("mean", "min"),
        aggregate="min",
        label_meaning="local",
    )
    return dataclasses.replace(recipe, **changes)


def tiny_variant(name: str = "cpu-fp32", **changes: Any) -> Variant:
    """A variant named DEVICE-PRECISION; ``files`` are those that `write_variant` writes."""
    device, precision = name.split("-")[:2]
    variant = Variant(
        name=name,
        device=device,
        precision=precision,
        interface="decoder",
        graph=f"{name}/model.onnx",
        files=(f"{name}/model.onnx", f"{name}/{DATA_NAME}"),
        layers=1,
        kv_heads=1,
        head_dim=4,
        proof={"max_dp": 1e-5, "records": 400, "allowed_drift": False},
    )
    return dataclasses.replace(variant, **changes)


def tiny_manifest(names: Sequence[str] = ("cpu-fp32",), **changes: Any) -> Manifest:
    """A manifest without ``files``, as an exporter hands it to the writer."""
    manifest = Manifest(
        name="tiny",
        recipe=tiny_recipe(),
        max_tokens=128,
        thresholds={"default": 0.5},
        variants=tuple(tiny_variant(name) for name in names),
        files={},
        provenance={"checkpoint": "tiny-prm", "weights_sha256": "0" * 64},
    )
    return dataclasses.replace(manifest, **changes)


def tiny_model(location: str | None = DATA_NAME) -> onnx.ModelProto:
    """``y = x @ w`` with an 8 x 8 weight, kept at ``location`` or inside the graph."""
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    if location is not None:
        weight = external_tensor("w", location)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def external_tensor(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[8, 8])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "256")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def write_variant(folder: Path, *, location: str | None = DATA_NAME) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(tiny_model(location).SerializeToString())
    (folder / DATA_NAME).write_bytes(np.eye(8, dtype=np.float32).tobytes())


def write_package(
    root: Path, names: Sequence[str] = ("cpu-fp32",), *, location: str | None = DATA_NAME
) -> Path:
    """Write a valid package by hand, without the exporter's writer; returns ``root``."""
    root.mkdir(parents=True)
    for name, content in SHARED_FILES.items():
        (root / name).write_bytes(content)
    for name in names:
        write_variant(root / name, location=location)
    seal(root, tiny_manifest(names))
    return root


def seal(root: Path, manifest: Manifest) -> None:
    """Write ``prm_edge.json`` with the hashes of whatever lies in ``root`` now."""
    unlisted = (MANIFEST_NAME, CARD_NAME)
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    files = {
        path.relative_to(root).as_posix(): hash_file(path)
        for path in paths
        if path.relative_to(root).as_posix() not in unlisted
    }
    (root / MANIFEST_NAME).write_bytes(dataclasses.replace(manifest, files=files).to_json())


def edit_manifest(root: Path, **changes: Any) -> None:
    """Replace top-level keys of ``prm_edge.json``."""
    data = json.loads((root / MANIFEST_NAME).read_bytes())
    (root / MANIFEST_NAME).write_text(json.dumps({**data, **changes}), encoding="utf-8")

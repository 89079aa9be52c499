"""The manifest: every way ``prm_edge.json`` can be wrong has its own message."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from package_builder import tiny_manifest, tiny_recipe, tiny_variant

from prm_edge_runtime.errors import PackageFormatError
from prm_edge_runtime.json_file import MAX_MANIFEST_BYTES, decode_json
from prm_edge_runtime.manifest import (
    DEVICES,
    MAX_CACHE_SIZE,
    MAX_INTEGER,
    PRECISIONS,
    FileEntry,
    Manifest,
    Variant,
    path_problem,
    variant_name_problem,
)
from prm_edge_runtime.recipe import Score, allowed_aggregates

ENTRY = FileEntry(size=3, sha256="ab" * 32)


def sealed(manifest: Manifest) -> Manifest:
    """The same manifest with an entry for every file it needs."""
    paths = {"tokenizer.json", "selftest.json"}.union(*(v.files for v in manifest.variants))
    return Manifest(
        name=manifest.name,
        recipe=manifest.recipe,
        max_tokens=manifest.max_tokens,
        thresholds=manifest.thresholds,
        variants=manifest.variants,
        files=dict.fromkeys(sorted(paths), ENTRY),
        provenance=manifest.provenance,
    )


def valid() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(sealed(tiny_manifest()).to_json())
    return data


def broken(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data = valid()
    change(data)
    return data


def rename_variant(data: dict[str, Any], name: str) -> None:
    data["variants"][name] = data["variants"].pop("cpu-fp32")


# ---- reading what was written


def test_manifest_round_trip_is_exact() -> None:
    manifest = sealed(tiny_manifest(("cpu-int8", "cuda-fp16")))
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.to_json() == manifest.to_json()


def test_manifest_json_is_readable_utf8_with_the_version_first() -> None:
    raw = sealed(tiny_manifest(name="Größe ≥ 7B")).to_json()
    assert raw.startswith(b'{\n  "format_version": 1,\n  "name": "Gr\xc3\xb6\xc3\x9fe')
    assert raw.endswith(b"}\n")
    assert list(json.loads(raw)) == [
        "format_version",
        "name",
        "recipe",
        "limits",
        "thresholds",
        "variants",
        "files",
        "provenance",
    ]


def test_manifest_json_does_not_depend_on_the_order_of_files() -> None:
    manifest = sealed(tiny_manifest())
    turned = json.loads(manifest.to_json())
    turned["files"] = dict(reversed(turned["files"].items()))
    assert Manifest.from_dict(turned).to_json() == manifest.to_json()


def test_manifest_threshold_prefers_the_variants_own() -> None:
    manifest = tiny_manifest(thresholds={"default": 0.5, "cpu-fp32": 0.25})
    assert manifest.threshold("cpu-fp32") == 0.25
    assert manifest.threshold("cpu-int8") == 0.5


def test_manifest_keeps_the_order_of_variants() -> None:
    names = ("cuda-fp16", "cpu-int8", "cpu-fp32")
    again = Manifest.from_json(sealed(tiny_manifest(names)).to_json())
    assert tuple(variant.name for variant in again.variants) == names


def test_manifest_to_json_refuses_nan() -> None:
    manifest = tiny_manifest(provenance={"loss": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        manifest.to_json()


# ---- bytes that are not a manifest


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "p.json is not valid JSON: Expecting value"),
        (b"{", "p.json is not valid JSON"),
        (b'{"a": 1} x', "p.json is not valid JSON: Extra data"),
        (b"\xef\xbb\xbf{}", "p.json is not valid JSON: Unexpected UTF-8 BOM"),
        (b'{"a": "\xff"}', r"p.json is not UTF-8 \(byte 7\)"),
        (b'{"a": "\\ud800"}', "p.json holds a lone surrogate"),
        (b'{"\\udfff": 1}', "p.json holds a lone surrogate"),
        (b'{"a": NaN}', "p.json is not valid JSON: NaN is not a JSON number"),
        (b'{"a": -Infinity}', "p.json is not valid JSON: -Infinity is not a JSON number"),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', "key 'b' occurs twice in one object"),
        (b"[" * 100_000, "p.json is nested too deeply"),
        (b'{"a":' * 100_000, "p.json is nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "p.json is not valid JSON: Exceeds the limit"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "p.json has 16777217 bytes; at most 16777216"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_decode_json_refuses(raw: bytes, message: str) -> None:
    with pytest.raises(PackageFormatError, match=message):
        decode_json(raw, "p.json")


@pytest.mark.parametrize("data", [None, [], "x", 1, {}])
def test_manifest_refuses_what_is_no_manifest(data: object) -> None:
    with pytest.raises(PackageFormatError, match=r"prm_edge.json is not a manifest of prm-edge"):
        Manifest.from_dict(data)


@pytest.mark.parametrize("version", ["1", 1.0, True, None, 0, -1])
def test_manifest_refuses_an_impossible_format_version(version: object) -> None:
    with pytest.raises(PackageFormatError, match=r"is not a manifest.*format_version: must be"):
        Manifest.from_dict(broken(lambda data: data.update(format_version=version)))


def test_manifest_names_the_upgrade_for_a_newer_format_version_whatever_else_it_holds() -> None:
    data = {"format_version": 2, "sharded_files": [], "recipe": 1}
    with pytest.raises(
        PackageFormatError,
        match=r"format version 2; this prm-edge reads version 1: upgrade with pip install -U",
    ):
        Manifest.from_json(json.dumps(data).encode())


# ---- one wrong thing at a time

WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key": (
        lambda d: d.update(extra=1),
        "unknown key 'extra'; known keys: calibration, files, format",
    ),
    "unknown key of limits": (
        lambda d: d["limits"].update(max_steps=3),
        "limits: unknown key 'max_steps'",
    ),
    "unknown key of a variant": (
        lambda d: d["variants"]["cpu-fp32"].update(opset=17),
        r"variants\['cpu-fp32'\]: unknown key 'opset'",
    ),
    "unknown key of a file": (
        lambda d: d["files"]["tokenizer.json"].update(md5=""),
        r"files\['tokenizer.json'\]: unknown key 'md5'",
    ),
    "unknown key of the recipe": (
        lambda d: d["recipe"].update(python="import os"),
        "recipe: recipe cannot be used: recipe: unknown key 'python'",
    ),
    "missing key": (lambda d: d.pop("provenance"), "key 'provenance' is missing"),
    "missing recipe": (lambda d: d.pop("recipe"), "cannot be used: top level: key 'recipe' is mi"),
    "recipe of a wrong type": (lambda d: d.update(recipe=[]), "recipe: must be an object"),
    "contradictory recipe": (
        lambda d: d["recipe"].update(aggregate="prod"),
        "recipe.aggregate: 'prod' is not among the aggregates",
    ),
    "empty name": (lambda d: d.update(name=" "), "name: must have 1 to 200 characters"),
    "long name": (lambda d: d.update(name="x" * 201), "1 to 200 characters, got 201"),
    "name with an escape": (lambda d: d.update(name="a\x1b[2J"), "must not hold control char"),
    "name of a wrong type": (lambda d: d.update(name=3), "name: must be a string, got an integer"),
    "no room": (lambda d: d["limits"].update(max_tokens=0), "max_tokens: must be at least 1"),
    "no default threshold": (
        lambda d: d.update(thresholds={}),
        "thresholds: key 'default' is missing",
    ),
    "threshold of a wrong type": (
        lambda d: d["thresholds"].update(default="0.5"),
        "thresholds.default: must be a finite number, got a string",
    ),
    "threshold outside the score": (
        lambda d: d["thresholds"].update(default=1.5),
        r"thresholds\['default'\]: must be from 0.0 to 1.0: 1.5",
    ),
    "threshold of nothing": (
        lambda d: d["thresholds"].update(gpu=0.5),
        "thresholds: 'gpu' is no variant; known: cpu-fp32, default",
    ),
    "no variant": (lambda d: d.update(variants={}), "variants: must hold at least one variant"),
    "variants as a list": (lambda d: d.update(variants=[1]), "variants: must be an object"),
    "variant of a wrong type": (
        lambda d: d["variants"].update(x=1),
        r"variants\['x'\]: must be an object, got an integer",
    ),
    "variant name": (lambda d: rename_variant(d, "CPU_fp32"), "the name must be 1 to 63 of a-z"),
    "variant named default": (lambda d: rename_variant(d, "default"), "and not be 'default'"),
    "device": (
        lambda d: d["variants"]["cpu-fp32"].update(device="npu"),
        "device: must be one of cpu, cuda; got 'npu'",
    ),
    "precision": (
        lambda d: d["variants"]["cpu-fp32"].update(precision="fp8"),
        "precision: must be one of fp32, fp16, bf16, int8, int4; got 'fp8'",
    ),
    "interface": (
        lambda d: d["variants"]["cpu-fp32"].update(interface="encoder"),
        "interface: must be one of decoder, stateless; got 'encoder'",
    ),
    "graph that is not listed": (
        lambda d: d["variants"]["cpu-fp32"].update(graph="cpu-fp32/other.onnx"),
        "'cpu-fp32/other.onnx' is not among the files of the variant",
    ),
    "graph in another format": (
        lambda d: d["variants"]["cpu-fp32"].update(graph="cpu-fp32/model.onnx.data"),
        "graph: must end in .onnx, got 'cpu-fp32/model.onnx.data'",
    ),
    "file twice": (
        lambda d: d["variants"]["cpu-fp32"]["files"].append("cpu-fp32/model.onnx"),
        "files: names a file twice",
    ),
    "files of a wrong type": (
        lambda d: d["variants"]["cpu-fp32"].update(files=[1]),
        "files: must hold only strings",
    ),
    "file of another folder": (
        lambda d: d["variants"]["cpu-fp32"]["files"].append("tokenizer.json"),
        "'tokenizer.json' is not below cpu-fp32/",
    ),
    "file without a hash": (
        lambda d: d["variants"]["cpu-fp32"]["files"].append("cpu-fp32/more.bin"),
        "'cpu-fp32/more.bin' has no size and hash in files",
    ),
    "decoder without a cache": (
        lambda d: d["variants"]["cpu-fp32"].update(layers=0),
        r"layers, kv_heads and head_dim must be at least 1, got \(0, 1, 4\)",
    ),
    "stateless graph with a cache": (
        lambda d: d["variants"]["cpu-fp32"].update(interface="stateless"),
        r"of a stateless graph are 0, got \(1, 1, 4\)",
    ),
    "nested proof": (
        lambda d: d["variants"]["cpu-fp32"]["proof"].update(by_step=[1]),
        r"proof\['by_step'\]: must be a string, a number, a boolean or null",
    ),
    "infinite proof": (
        lambda d: d["variants"]["cpu-fp32"]["proof"].update(max_dp=float("inf")),
        r"proof\['max_dp'\]: must be finite, got inf",
    ),
    "huge number": (
        lambda d: d["provenance"].update(parameters=MAX_INTEGER + 1),
        r"provenance\['parameters'\]: must fit in 64 bits",
    ),
    "no tokenizer": (
        lambda d: d["files"].pop("tokenizer.json"),
        "files: 'tokenizer.json' is missing; every package has one",
    ),
    "no self-test": (lambda d: d["files"].pop("selftest.json"), "files: 'selftest.json' is missi"),
    "manifest lists itself": (
        lambda d: d["files"].update({"prm_edge.json": ENTRY.to_dict()}),
        "files: 'prm_edge.json' must not be listed",
    ),
    "listed model card": (
        lambda d: d["files"].update({"README.md": ENTRY.to_dict()}),
        "files: 'README.md' must not be listed",
    ),
    "negative size": (
        lambda d: d["files"]["tokenizer.json"].update(size=-1),
        "size: must be at least 0, got -1",
    ),
    "impossible size": (
        lambda d: d["files"]["tokenizer.json"].update(size=MAX_INTEGER + 1),
        "size: must fit in 64 bits",
    ),
    "size of a wrong type": (
        lambda d: d["files"]["tokenizer.json"].update(size=3.0),
        "size: must be an integer, got a number",
    ),
    "short hash": (
        lambda d: d["files"]["tokenizer.json"].update(sha256="ab"),
        "sha256: must be 64 lowercase hex digits, got 'ab'",
    ),
    "uppercase hash": (
        lambda d: d["files"]["tokenizer.json"].update(sha256="AB" * 32),
        "sha256: must be 64 lowercase hex digits",
    ),
    "hash with a line break": (
        lambda d: d["files"]["tokenizer.json"].update(sha256="ab" * 32 + "\n"),
        "sha256: must be 64 lowercase hex digits",
    ),
    "hash of a wrong type": (
        lambda d: d["files"]["tokenizer.json"].update(sha256=None),
        "sha256: must be a string, got null",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_manifest_refuses(case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(PackageFormatError, match=message):
        Manifest.from_dict(broken(change))


@pytest.mark.parametrize("key", ["layers", "kv_heads", "head_dim"])
def test_manifest_bounds_the_shape_of_the_cache(key: str) -> None:
    def change(value: int) -> dict[str, Any]:
        return broken(lambda d: d["variants"]["cpu-fp32"].update({key: value}))

    assert getattr(Manifest.from_dict(change(MAX_CACHE_SIZE)).variants[0], key) == MAX_CACHE_SIZE
    for value in (MAX_CACHE_SIZE + 1, 10**30):
        with pytest.raises(PackageFormatError, match=rf"'\]\.{key}: must be at most 65536"):
            Manifest.from_dict(change(value))
    with pytest.raises(PackageFormatError, match=rf"'\]\.{key}: must be at least 0, got -1"):
        Manifest.from_dict(change(-1))


def test_manifest_reports_every_problem_at_once_and_names_the_file() -> None:
    data = broken(lambda d: d["limits"].update(max_tokens=-3, more=1) or d.pop("name"))
    with pytest.raises(PackageFormatError, match=r"^x/prm_edge.json cannot be used: 3 problems"):
        Manifest.from_dict(data, where="x/prm_edge.json")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("", "is empty"),
        ("/etc/passwd", "is absolute"),
        ("//host/share", "is absolute"),
        ("C:/weights", "holds a colon"),
        ("c:weights", "holds a colon"),
        ("model.onnx:stream", "holds a colon"),
        ("..", "leads outside the package"),
        ("../x", "leads outside the package"),
        ("a/../../x", "leads outside the package"),
        ("a/..", "leads outside the package"),
        ("a\\b", "holds a backslash"),
        ("..\\x", "holds a backslash"),
        ("a//b", "has an empty part"),
        ("a/", "has an empty part"),
        ("./a", "or a single dot"),
        ("a/./b", "or a single dot"),
        ("a\x00b", "holds a control character"),
        ("a\nb", "holds a control character"),
    ],
)
def test_path_outside_the_package_is_refused(path: str, problem: str) -> None:
    assert problem in (path_problem(path) or "")
    data = broken(lambda d: d["files"].update({path: ENTRY.to_dict()}))
    with pytest.raises(PackageFormatError, match=problem):
        Manifest.from_dict(data)


@pytest.mark.parametrize("path", ["a", "a/b.onnx", "a..b", "...", ".hidden", "größe", "a b"])
def test_path_inside_the_package_is_allowed(path: str) -> None:
    assert path_problem(path) is None


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a/b", "é", "default", "a" * 64, "a\n"])
def test_variant_name_is_refused(name: str) -> None:
    assert "must be 1 to 63 of a-z" in (variant_name_problem(name) or "")


# ---- properties

SCORES = (
    Score(kind="softmax", good=1),
    Score(kind="difference", good=1, bad=0),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-MAX_INTEGER, MAX_INTEGER),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8"), max_size=8),
)
FLAT = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), SCALARS)
ENTRIES = st.builds(
    FileEntry,
    size=st.integers(0, MAX_INTEGER),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
)


@st.composite
def variants(draw: st.DrawFn) -> Variant:
    name = draw(st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True))
    if name == "default":
        name = "default-"
    names = draw(st.lists(st.from_regex(r"[a-z]{1,5}\.data", fullmatch=True), unique=True))
    decoder = draw(st.booleans())
    shape = st.integers(1, 200) if decoder else st.just(0)
    return Variant(
        name=name,
        device=draw(st.sampled_from(DEVICES)),
        precision=draw(st.sampled_from(PRECISIONS)),
        interface="decoder" if decoder else "stateless",
        graph=f"{name}/model.onnx",
        files=tuple(f"{name}/{file}" for file in ["model.onnx", *names]),
        layers=draw(shape),
        kv_heads=draw(shape),
        head_dim=draw(shape),
        proof=draw(FLAT),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    several = draw(st.lists(variants(), min_size=1, max_size=3, unique_by=lambda v: v.name))
    score = draw(st.sampled_from(SCORES))
    recipe = tiny_recipe(score=score, aggregates=allowed_aggregates(score), aggregate="min")
    keys = st.sampled_from([variant.name for variant in several])
    paths = {"tokenizer.json", "selftest.json"}.union(*(v.files for v in several))
    return Manifest(
        name=draw(st.text("aé ≥-", min_size=1).filter(lambda name: bool(name.strip()))),
        recipe=recipe,
        max_tokens=draw(st.integers(1, 10**6)),
        thresholds={**draw(st.dictionaries(keys, st.floats(0, 1))), "default": 0.5},
        variants=tuple(several),
        files={path: draw(ENTRIES) for path in sorted(paths)},
        provenance=draw(FLAT),
    )


@given(manifests())
@settings(max_examples=25, deadline=None)
def test_manifest_round_trip_property(manifest: Manifest) -> None:
    raw = manifest.to_json()
    again = Manifest.from_json(raw)
    assert again == manifest
    assert again.to_json() == raw


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value: object) -> list[tuple[Any, Any]]:
    """Every (container, key) below a JSON value."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            found.append((value, key))
            found.extend(places(value[key]))
    return found


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_manifest_is_refused_or_still_means_something(data: st.DataObject) -> None:
    mutated = copy.deepcopy(valid())
    container, key = data.draw(st.sampled_from(places(mutated)), label="place")
    change = data.draw(st.sampled_from(["replace", "delete", "add"]), label="change")
    if change == "replace":
        container[key] = data.draw(JSON, label="value")
    elif change == "delete":
        del container[key]
    elif isinstance(container, dict):
        container[data.draw(st.text(max_size=6))] = data.draw(JSON, label="value")
    else:
        container.append(data.draw(JSON, label="value"))
    try:
        manifest = Manifest.from_dict(mutated)
    except PackageFormatError:
        return
    try:
        raw = manifest.to_json()
    except UnicodeEncodeError:
        return  # a lone surrogate, which decode_json would have refused
    assert Manifest.from_json(raw) == manifest


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_manifest_bytes_are_refused_or_still_mean_something(data: st.DataObject) -> None:
    raw = bytearray(sealed(tiny_manifest()).to_json())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(raw))))
    try:
        manifest = Manifest.from_json(bytes(raw[:cut]))
    except PackageFormatError:
        return
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_variant_and_entry_are_frozen() -> None:
    with pytest.raises(AttributeError):
        tiny_variant().name = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        ENTRY.size = 1  # type: ignore[misc]


# ---- kinds of error

KINDS = ("none", "sign", "slip")


def with_kinds(*names: object, **changes: object) -> dict[str, Any]:
    return {**valid(), "error_kinds": list(names), **changes}


def test_manifest_with_kinds_of_error_round_trips() -> None:
    manifest = dataclasses.replace(sealed(tiny_manifest()), error_kinds=KINDS)
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.error_kinds == KINDS
    assert json.loads(manifest.to_json())["error_kinds"] == list(KINDS)


def test_manifest_without_kinds_of_error_has_no_such_key() -> None:
    assert "error_kinds" not in valid()
    assert Manifest.from_dict(valid()).error_kinds == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_kinds(), "error_kinds: must name at least two kinds of error besides 'none', got no"),
        (with_kinds("none", "sign"), "error_kinds: must name at least two kinds of error"),
        (with_kinds("sign", "slip", "sign"), "error_kinds: names 'sign' twice"),
        (with_kinds("sign", ""), "error_kinds: must hold names of 1 to 64 characters"),
        (with_kinds("sign", 3), "error_kinds: must hold only strings"),
        (with_kinds("sign", None), "error_kinds: must hold only strings"),
        ({**valid(), "error_kinds": "sign"}, "error_kinds: must be a list, got a string"),
        ({**valid(), "error_kinds": None}, "error_kinds: must be a list, got null"),
    ],
)
def test_manifest_refuses_kinds_of_error(data: dict[str, Any], message: str) -> None:
    with pytest.raises(PackageFormatError, match=re.escape(message)) as caught:
        Manifest.from_dict(data)
    assert "problems" not in str(caught.value)  # one sentence, not two about the same


def test_manifest_refuses_kinds_of_error_of_a_stateless_graph() -> None:
    shape = {"interface": "stateless", "layers": 0, "kv_heads": 0, "head_dim": 0}
    data = with_kinds(*KINDS)
    data["variants"]["cpu-fp32"] |= shape
    with pytest.raises(PackageFormatError, match="a stateless graph names no kinds of error"):
        Manifest.from_dict(data)

"""``prm_edge.json``: what a package holds, as data.

In: the bytes of the file, which nobody trusted yet. Out: frozen dataclasses in which every value
is known to be possible. Knows nothing of folders; :mod:`package` compares it with the files.
Imports nothing but the standard library and this package's own modules.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from .calibration import Calibration
from .errors import PackageFormatError, RecipeError
from .json_file import decode_json
from .recipe import Recipe
from .strict import Fields, Problems

FORMAT_VERSION: Final = 1
MANIFEST_NAME: Final = "prm_edge.json"
TOKENIZER_NAME: Final = "tokenizer.json"
SELFTEST_NAME: Final = "selftest.json"
CARD_NAME: Final = "README.md"
GRAPH_SUFFIX: Final = ".onnx"

DEVICES: Final = ("cpu", "cuda")
PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8", "int4")
DECODER: Final = "decoder"
STATELESS: Final = "stateless"
INTERFACES: Final = (DECODER, STATELESS)
DEFAULT: Final = "default"  # the key of ``thresholds`` that every package has

REQUIRED_FILES: Final = (TOKENIZER_NAME, SELFTEST_NAME)
# the manifest cannot hold its own hash, and people edit the model card
UNLISTED_FILES: Final = (MANIFEST_NAME, CARD_NAME)
MAX_INTEGER: Final = 2**63 - 1
MAX_CACHE_SIZE: Final = 2**16  # of layers, heads and head size: far above any model

Scalar = str | int | float | bool | None

_VARIANT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the package: ``size`` in bytes, ``sha256`` as 64 lowercase hex digits."""

    size: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return {"size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Keys and values of the tokens that every record begins with, computed at export.

    ``ids``: these tokens. ``file``: beside the graph, little-endian float32 of the shape (2 *
    layers, kv_heads, ids, head_dim), a layer's keys before its values; they lie in the cache as if
    the graph had run the ids, which it never does.
    """

    file: str
    ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"file": self.file, "ids": list(self.ids)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One graph of the package, for one device and precision.

    ``graph`` and ``files`` are posix paths relative to the package, all below ``NAME/``; ``files``
    holds the graph and its external data. ``layers``, ``kv_heads``, ``head_dim``: shape of the
    key-value cache, all 0 for a ``stateless`` graph. ``proof``: the fidelity figures measured at
    export, flat; ``allowed_drift`` is true when the exporter was told to ignore its budget.
    ``prefix``: what the cache begins with; the key is absent when there is none.
    """

    name: str
    device: str
    precision: str
    interface: str
    graph: str
    files: tuple[str, ...]
    layers: int
    kv_heads: int
    head_dim: int
    proof: Mapping[str, Scalar]
    prefix: Prefix | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "precision": self.precision,
            "interface": self.interface,
            "graph": self.graph,
            "files": list(self.files),
            "layers": self.layers,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "proof": dict(self.proof),
            **({} if self.prefix is None else {"prefix": self.prefix.to_dict()}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything ``prm_edge.json`` says.

    ``max_tokens``: the longest record that can be scored. ``thresholds``: the key ``default``, and
    a variant's name where that variant needs another one. ``files``: path -> entry of every file
    but ``prm_edge.json`` and ``README.md``. ``provenance``: where the weights came from, flat.
    ``calibration``: by variant, what ``prm-edge calibrate`` fitted; the key is absent when empty.
    """

    name: str
    recipe: Recipe
    max_tokens: int
    thresholds: Mapping[str, float]
    variants: tuple[Variant, ...]
    files: Mapping[str, FileEntry]
    provenance: Mapping[str, Scalar]
    calibration: Mapping[str, Calibration] = field(default_factory=dict)

    def threshold(self, variant_name: str) -> float:
        """The score below which a step counts as wrong under this variant."""
        return self.thresholds.get(variant_name, self.thresholds[DEFAULT])

    def to_dict(self) -> dict[str, Any]:
        fitted = {name: item.to_dict() for name, item in sorted(self.calibration.items())}
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "recipe": self.recipe.to_dict(),
            "limits": {"max_tokens": self.max_tokens},
            "thresholds": dict(sorted(self.thresholds.items())),
            "variants": {variant.name: variant.to_dict() for variant in self.variants},
            "files": {path: entry.to_dict() for path, entry in sorted(self.files.items())},
            "provenance": dict(self.provenance),
            **({"calibration": fitted} if fitted else {}),
        }

    def to_json(self) -> bytes:
        """The bytes of the file: the same manifest always gives the same bytes."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8") + b"\n"

    @classmethod
    def from_json(cls, raw: bytes, *, where: str = MANIFEST_NAME) -> Manifest:
        """Read the bytes of a ``prm_edge.json``; ``where`` names it in messages.

        Raises:
            PackageFormatError: not JSON, another format version, or listing every problem.
        """
        return cls.from_dict(decode_json(raw, where), where=where)

    @classmethod
    def from_dict(cls, data: object, *, where: str = MANIFEST_NAME) -> Manifest:
        """Read a manifest from decoded JSON.

        Raises:
            PackageFormatError: another format version, or listing every problem.
        """
        problems = Problems()
        fields = Fields(data, "top level", problems)
        _check_version(fields, where)  # first and alone: another version may have any other key
        limits = Fields(fields.objects("limits"), "limits", problems)
        manifest = cls(
            name=_name(fields),
            recipe=_recipe(fields),
            max_tokens=limits.integer("max_tokens", minimum=1),
            thresholds=_thresholds(fields),
            variants=_variants(fields),
            files=_files(fields),
            provenance=_flat(fields, "provenance"),
            calibration=_calibration(fields),
        )
        limits.finish()
        fields.finish()
        problems.raise_if_any(PackageFormatError, f"{where} cannot be used")
        _validate(manifest, problems)
        problems.raise_if_any(PackageFormatError, f"{where} cannot be used")
        return manifest


def _check_version(fields: Fields, where: str) -> None:
    version = fields.integer("format_version", minimum=1)
    if fields.problems.found:  # not an object, no version, or one that is no number
        fields.problems.raise_if_any(
            PackageFormatError, f"{where} is not a manifest of prm-edge, export the package again"
        )
    if version != FORMAT_VERSION:
        raise PackageFormatError(
            f"{where} has format version {version}; this prm-edge reads version "
            f"{FORMAT_VERSION}: upgrade with pip install -U prm-edge"
        )


def _name(fields: Fields) -> str:
    name = fields.text("name")
    if isinstance(fields.data.get("name"), str):
        if not name.strip() or len(name) > 200:
            fields.problems.add("name", f"must have 1 to 200 characters, got {len(name)}")
        elif _UNPRINTABLE.search(name):
            fields.problems.add("name", f"must not hold control characters, got {name!r}")
    return name


def _recipe(fields: Fields) -> Any:
    data = fields.objects("recipe")
    if not isinstance(fields.data.get("recipe"), dict):
        return None  # already reported; from_dict raises before anybody sees it
    try:
        return Recipe.from_dict(data)
    except RecipeError as error:
        fields.problems.add("recipe", str(error))
        return None


def _thresholds(fields: Fields) -> dict[str, float]:
    inner = Fields(fields.objects("thresholds"), "thresholds", fields.problems)
    values = {key: inner.number(key) for key in inner.data}
    if isinstance(fields.data.get("thresholds"), dict) and DEFAULT not in values:
        fields.problems.add("thresholds", f"key {DEFAULT!r} is missing")
    return values


def _calibration(fields: Fields) -> dict[str, Calibration]:
    return {
        name: Calibration.read(Fields(data, f"calibration[{name!r}]", fields.problems))
        for name, data in fields.objects("calibration", {}).items()
    }


def _variants(fields: Fields) -> tuple[Variant, ...]:
    entries = fields.objects("variants")
    if isinstance(fields.data.get("variants"), dict) and not entries:
        fields.problems.add("variants", "must hold at least one variant")
    variants = []
    for name, data in entries.items():
        inner = Fields(data, f"variants[{name!r}]", fields.problems)
        variants.append(
            Variant(
                name=name,
                device=inner.choice("device", DEVICES),
                precision=inner.choice("precision", PRECISIONS),
                interface=inner.choice("interface", INTERFACES),
                graph=inner.text("graph"),
                files=inner.list_of("files", str, "strings"),
                layers=inner.integer("layers", minimum=0, maximum=MAX_CACHE_SIZE),
                kv_heads=inner.integer("kv_heads", minimum=0, maximum=MAX_CACHE_SIZE),
                head_dim=inner.integer("head_dim", minimum=0, maximum=MAX_CACHE_SIZE),
                proof=_flat(inner, "proof"),
                prefix=_prefix(inner),
            )
        )
        inner.finish()
    return tuple(variants)


def _prefix(fields: Fields) -> Prefix | None:
    if not fields.has("prefix"):
        return None
    inner = Fields(fields.objects("prefix"), f"{fields.where}.prefix", fields.problems)
    prefix = Prefix(file=inner.text("file"), ids=inner.list_of("ids", int, "whole numbers"))
    inner.finish()
    return prefix


def _files(fields: Fields) -> dict[str, FileEntry]:
    entries = {}
    for path, data in fields.objects("files").items():
        at = f"files[{path!r}]"
        inner = Fields(data, at, fields.problems)
        size = inner.integer("size", minimum=0)
        if size > MAX_INTEGER:
            fields.problems.add(f"{at}.size", "must fit in 64 bits")
        sha256 = inner.text("sha256")
        if isinstance(inner.data.get("sha256"), str) and not _SHA256.fullmatch(sha256):
            fields.problems.add(
                f"{at}.sha256", f"must be 64 lowercase hex digits, got {sha256[:80]!r}"
            )
        entries[path] = FileEntry(size=size, sha256=sha256)
        inner.finish()
    return entries


def _flat(fields: Fields, key: str) -> dict[str, Scalar]:
    values = fields.objects(key)
    for name, value in values.items():
        at = f"{fields.where}.{key}[{name!r}]"
        if isinstance(value, dict | list):
            fields.problems.add(at, "must be a string, a number, a boolean or null")
        elif isinstance(value, float) and not math.isfinite(value):
            fields.problems.add(at, f"must be finite, got {value}")
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            fields.problems.add(at, "must fit in 64 bits")
    return values


def variant_name_problem(name: str) -> str | None:
    """Why ``name`` cannot name a variant, or None when it can."""
    if _VARIANT_NAME.fullmatch(name) and name != DEFAULT:
        return None
    return f"must be 1 to 63 of a-z, 0-9 and -, not start with - and not be {DEFAULT!r}"


def path_problem(path: str) -> str | None:
    """Why ``path`` cannot name a file of a package, or None when it can.

    Allowed is a relative posix path that means the same file on every system and never leaves
    the package.
    """
    if not path:
        return "is empty"
    if _UNPRINTABLE.search(path):
        return "holds a control character"
    if "\\" in path:
        return "holds a backslash; use /"
    if path.startswith("/"):
        return "is absolute"
    if ":" in path:
        return "holds a colon (a drive letter or a stream)"
    parts = path.split("/")
    if ".." in parts:
        return "leads outside the package (..)"
    if "" in parts or "." in parts:
        return "has an empty part or a single dot"
    return None


def _validate(manifest: Manifest, problems: Problems) -> None:
    """Check what no single key can show."""
    for path in manifest.files:
        reason = path_problem(path)
        if reason is not None:
            problems.add("files", f"the path {path!r} {reason}")
        if path in UNLISTED_FILES:
            problems.add("files", f"{path!r} must not be listed")
    for path in REQUIRED_FILES:
        if path not in manifest.files:
            problems.add("files", f"{path!r} is missing; every package has one")
    for variant in manifest.variants:
        _validate_variant(variant, manifest, problems)
    _validate_thresholds(manifest, problems)
    names = {variant.name for variant in manifest.variants}
    for name in manifest.calibration.keys() - names:
        problems.add("calibration", f"{name!r} is no variant; known: {', '.join(sorted(names))}")


def _validate_variant(variant: Variant, manifest: Manifest, problems: Problems) -> None:
    at = f"variants[{variant.name!r}]"
    reason = variant_name_problem(variant.name)
    if reason is not None:
        problems.add(at, f"the name {reason}")
    if len(set(variant.files)) != len(variant.files):
        problems.add(f"{at}.files", "names a file twice")
    if variant.graph not in variant.files:
        problems.add(f"{at}.graph", f"{variant.graph!r} is not among the files of the variant")
    if not variant.graph.endswith(GRAPH_SUFFIX):  # .ort would make onnxruntime read another format
        problems.add(f"{at}.graph", f"must end in {GRAPH_SUFFIX}, got {variant.graph!r}")
    for path in variant.files:
        if not path.startswith(f"{variant.name}/"):
            problems.add(f"{at}.files", f"{path!r} is not below {variant.name}/")
        if path not in manifest.files:
            problems.add(f"{at}.files", f"{path!r} has no size and hash in files")
    cache = (variant.layers, variant.kv_heads, variant.head_dim)
    if variant.interface == DECODER and min(cache) < 1:
        problems.add(at, f"layers, kv_heads and head_dim must be at least 1, got {cache}")
    if variant.interface == STATELESS and any(cache):
        problems.add(at, f"layers, kv_heads and head_dim of a stateless graph are 0, got {cache}")
    if variant.prefix is not None:
        _validate_prefix(variant, variant.prefix, manifest, problems)


def _validate_prefix(
    variant: Variant, prefix: Prefix, manifest: Manifest, problems: Problems
) -> None:
    at = f"variants[{variant.name!r}].prefix"
    if variant.interface != DECODER:
        problems.add(at, f"a {variant.interface} graph has no cache to begin with one")
    if variant.device != "cpu":
        problems.add(at, f"is for variants of the CPU, not of {variant.device}")
    if prefix.file not in variant.files:
        problems.add(f"{at}.file", f"{prefix.file!r} is not among the files of the variant")
    if PurePosixPath(prefix.file).parent != PurePosixPath(variant.graph).parent:
        problems.add(f"{at}.file", f"{prefix.file!r} must lie beside the graph")
    if not 0 < len(prefix.ids) < manifest.max_tokens:
        problems.add(
            f"{at}.ids", f"must be 1 to {manifest.max_tokens - 1} tokens, got {len(prefix.ids)}"
        )
    if any(not 0 <= token <= MAX_INTEGER for token in prefix.ids):
        problems.add(f"{at}.ids", "must not be negative, and fit in 64 bits")
    entry = manifest.files.get(prefix.file)
    size = 4 * 2 * variant.layers * variant.kv_heads * len(prefix.ids) * variant.head_dim
    if entry is not None and entry.size != size:
        problems.add(
            f"{at}.file", f"{prefix.file!r} must have {size} bytes for its ids, has {entry.size}"
        )


def _validate_thresholds(manifest: Manifest, problems: Problems) -> None:
    known = {DEFAULT, *(variant.name for variant in manifest.variants)}
    bounds = manifest.recipe.score.range
    for key, value in manifest.thresholds.items():
        if key not in known:
            problems.add("thresholds", f"{key!r} is no variant; known: {', '.join(sorted(known))}")
        if bounds is not None and not bounds[0] <= value <= bounds[1]:
            problems.add(
                f"thresholds[{key!r}]", f"must be from {bounds[0]} to {bounds[1]}: {value}"
            )

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
from typing import Any, Final

from .calibration import Calibration
from .errors import PackageFormatError, RecipeError
from .json_file import decode_json
from .kinds import names_problem
from .manifest_parts import (
    CARD_NAME,
    DECODER,
    DEFAULT,
    DEVICES,
    GRAPH_SUFFIX,
    INTERFACES,
    MANIFEST_NAME,
    MAX_CACHE_SIZE,
    MAX_INTEGER,
    PRECISIONS,
    REQUIRED_FILES,
    SELFTEST_NAME,
    STATELESS,
    TOKENIZER_NAME,
    UNLISTED_FILES,
    FileEntry,
    Prefix,
    Scalar,
    Variant,
)
from .manifest_rules import UNPRINTABLE, path_problem, validate, variant_name_problem
from .recipe import Recipe
from .strict import Fields, Problems

__all__ = [
    "CARD_NAME",
    "DECODER",
    "DEFAULT",
    "DEVICES",
    "FORMAT_VERSION",
    "GRAPH_SUFFIX",
    "INTERFACES",
    "MANIFEST_NAME",
    "MAX_CACHE_SIZE",
    "MAX_INTEGER",
    "PRECISIONS",
    "REQUIRED_FILES",
    "SELFTEST_NAME",
    "STATELESS",
    "TOKENIZER_NAME",
    "UNLISTED_FILES",
    "FileEntry",
    "Manifest",
    "Prefix",
    "Scalar",
    "Variant",
    "path_problem",
    "variant_name_problem",
]

FORMAT_VERSION: Final = 1
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything ``prm_edge.json`` says.

    ``max_tokens``: the longest record that can be scored. ``thresholds``: the key ``default``, and
    a variant's name where that variant needs another one. ``files``: path -> entry of every file
    but ``prm_edge.json`` and ``README.md``. ``provenance``: where the weights came from, flat.
    ``calibration``: by variant, what ``prm-edge calibrate`` fitted; the key is absent when empty.
    ``error_kinds``: what the outputs of every graph's second head stand for, in order; the key is
    absent when there is no such head.
    """

    name: str
    recipe: Recipe
    max_tokens: int
    thresholds: Mapping[str, float]
    variants: tuple[Variant, ...]
    files: Mapping[str, FileEntry]
    provenance: Mapping[str, Scalar]
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    error_kinds: tuple[str, ...] = ()

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
            **({"error_kinds": list(self.error_kinds)} if self.error_kinds else {}),
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
            error_kinds=_error_kinds(fields),
        )
        limits.finish()
        fields.finish()
        problems.raise_if_any(PackageFormatError, f"{where} cannot be used")
        validate(manifest, problems)
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
        elif UNPRINTABLE.search(name):
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


def _error_kinds(fields: Fields) -> tuple[str, ...]:
    if not fields.has("error_kinds"):
        return ()
    names = fields.list_of("error_kinds", str, "strings")
    # an empty list is no way to say that there are none: a package has one form
    read = names or fields.data["error_kinds"] == []
    if read and (problem := names_problem(names)) is not None:
        fields.problems.add("error_kinds", problem)
    return names


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

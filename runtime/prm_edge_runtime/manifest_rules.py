"""What no single key of ``prm_edge.json`` can show: whether its parts go together.

In: a manifest whose every value is known to have the right type. Out: problems, all of them.
Imports nothing but the standard library and this package's own modules.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from .manifest_parts import (
    DECODER,
    DEFAULT,
    GRAPH_SUFFIX,
    MAX_INTEGER,
    REQUIRED_FILES,
    STATELESS,
    UNLISTED_FILES,
    Prefix,
    Variant,
)
from .strict import Problems

if TYPE_CHECKING:
    from .manifest import Manifest

_VARIANT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]")


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
    if UNPRINTABLE.search(path):
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


def validate(manifest: Manifest, problems: Problems) -> None:
    """Check what no single key can show; what is wrong is added to ``problems``."""
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
    if variant.interface == STATELESS and manifest.error_kinds:
        problems.add(at, "a stateless graph names no kinds of error, and error_kinds is there")
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

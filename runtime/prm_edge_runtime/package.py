"""Open a package folder: every file there, every size and hash right, nothing outside is read.

In: a path from a user. Out: a :class:`Package` whose files are what its manifest says.
Imports nothing but the standard library and this package's own modules.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from .errors import (
    ConfigError,
    PackageFormatError,
    PackageIntegrityError,
    PackageNotFoundError,
    VariantError,
)
from .hashing import HashMemory, hash_file
from .json_file import MAX_MANIFEST_BYTES
from .manifest import (
    DEVICES,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    Variant,
    path_problem,
)
from .onnx_locations import external_locations

VERIFY_MODES: Final = ("auto", "full", "sizes")
SMALL_FILE_BYTES: Final = 64 * 1024 * 1024  # hashed at every start; takes some 40 ms

# device -> precisions, the one to prefer first
PREFERRED: Final[dict[str, tuple[str, ...]]] = {
    "cpu": ("int8", "int4", "fp32", "bf16", "fp16"),
    "cuda": ("fp16", "bf16", "int4", "fp32", "int8"),
}

# what runs on the CPU besides its own variants: onnxruntime widens what it has no kernel for
CHECKED_ON_CPU: Final = (("cuda", "fp16"), ("cuda", "int4"))
ADD_COMMAND: Final = {
    "cpu": "prm-edge export CHECKPOINT PACKAGE --add",
    "cuda": "prm-edge export CHECKPOINT PACKAGE --add --target cuda",
}

_LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_AGAIN: Final = "copy or download the package again, or export it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A verified package. ``root`` is absolute; ``digest`` is the SHA-256 of its manifest."""

    root: Path
    manifest: Manifest
    digest: str

    @property
    def short(self) -> str:
        """The first 12 digits of ``digest``, as they appear in outputs."""
        return self.digest[:12]

    def path(self, name: str) -> Path:
        """Where a file that the manifest lists lies.

        Raises:
            PackageIntegrityError: the manifest does not list it.
        """
        self._entry(name)
        return self.root / name

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            VariantError: naming those that there are.
        """
        return _named(self.manifest, name)

    def read_bytes(self, name: str) -> bytes:
        """The content of a small file, hashed again as it is read.

        Raises:
            PackageIntegrityError: not listed, unreadable, or not what the manifest says.
        """
        entry = self._entry(name)
        where = f"{self.root / name}"
        try:
            with open(self.root / name, "rb") as file:
                content = file.read(entry.size + 1)
        except OSError as error:
            raise PackageIntegrityError(
                f"{where} cannot be read: {error.strerror}: {_AGAIN}"
            ) from error
        if len(content) != entry.size:
            raise PackageIntegrityError(
                f"{where} no longer has its {entry.size} bytes: it changed since the package was "
                f"opened: {_AGAIN}"
            )
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise PackageIntegrityError(
                f"{where} no longer has the SHA-256 {entry.sha256}: it changed since the package "
                f"was opened: {_AGAIN}"
            )
        return content

    def _entry(self, name: str) -> FileEntry:
        try:
            return self.manifest.files[name]
        except KeyError:
            raise PackageIntegrityError(
                f"{name!r} is not listed in {self.root / MANIFEST_NAME}: only listed files are "
                "read, because only they can be verified"
            ) from None


def open_package(path: str | os.PathLike[str], *, verify: str = "auto") -> Package:
    """Open the package folder at ``path`` and compare its files with its manifest.

    ``verify``: ``auto`` hashes small files always and large ones once, until they change;
    ``full`` hashes everything; ``sizes`` hashes nothing.

    Raises:
        ConfigError: another value of ``verify``.
        PackageNotFoundError: there is no package at ``path``.
        PackageFormatError: the manifest or a graph is malformed.
        PackageIntegrityError: listing every file that is missing or not what the manifest says.
    """
    if verify not in VERIFY_MODES:
        raise ConfigError(f"verify must be one of {', '.join(VERIFY_MODES)}; got {verify!r}")
    root = _folder(path)
    raw = _read_manifest(root)
    manifest = Manifest.from_json(raw, where=str(root / MANIFEST_NAME))
    check_files(root, manifest.files, verify=verify)
    for variant in manifest.variants:
        check_graph(root, variant)
    return Package(root=root, manifest=manifest, digest=hashlib.sha256(raw).hexdigest())


def choose_variant(manifest: Manifest, *, device: str, name: str | None) -> Variant:
    """The variant ``name``, or the best one for ``device`` (``cpu`` or ``cuda``) when it is None.

    The fp16 and int4 graphs of a GPU also run on the CPU when both are named: slowly, for checks.

    Raises:
        ConfigError: another device.
        VariantError: no such variant, or none that runs on this device.
    """
    if device not in DEVICES:
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}; got {device!r}")
    fitting = [variant for variant in manifest.variants if variant.device == device]
    if name is not None:
        variant = _named(manifest, name)
        if device == "cpu" and (variant.device, variant.precision) in CHECKED_ON_CPU:
            return replace(variant, device=device)
        if variant.device != device:
            others = ", ".join(v.name for v in fitting) or "none"
            raise VariantError(
                f"variant {name!r} runs on {variant.device}, and the device is {device}; "
                f"variants for {device}: {others}: pass device={variant.device!r} or "
                "another variant"
            )
        return variant
    if not fitting:
        names = ", ".join(variant.name for variant in manifest.variants)
        raise VariantError(
            f"package {manifest.name!r} has no variant for {device}, only {names}: pass "
            f"device={manifest.variants[0].device!r}, or add one with {ADD_COMMAND[device]}"
        )
    order = PREFERRED[device]
    return min(fitting, key=lambda variant: order.index(variant.precision))


def _named(manifest: Manifest, name: str) -> Variant:
    for variant in manifest.variants:
        if variant.name == name:
            return variant
    names = ", ".join(variant.name for variant in manifest.variants)
    raise VariantError(f"package {manifest.name!r} has no variant {name!r}; it has {names}")


def _folder(path: str | os.PathLike[str]) -> Path:
    root = Path(path)
    try:
        mode = os.stat(path).st_mode  # of what was given: "" is not "."
    except FileNotFoundError:
        raise PackageNotFoundError(
            f"there is no package at {os.fspath(path)!r}: the path does not exist"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: an embedded NUL
        raise PackageNotFoundError(
            f"there is no package at {os.fspath(path)!r}: the path cannot be read: {error}"
        ) from error
    if not stat.S_ISDIR(mode):
        hint = (
            "give the folder that it is in" if root.name == MANIFEST_NAME else _not_a_folder(root)
        )
        raise PackageNotFoundError(f"{root} is a file, and a package is a folder: {hint}")
    return root.absolute()


def _not_a_folder(path: Path) -> str:
    if path.suffix in (".zip", ".tar", ".gz", ".tgz", ".zst"):
        return "unpack it and give the folder"
    return f"give the folder that holds {MANIFEST_NAME}"


def _read_manifest(root: Path) -> bytes:
    path = root / MANIFEST_NAME
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PackageFormatError(f"{path} is not a regular file: {_AGAIN}")
        with open(path, "rb") as file:
            return file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        if path.is_symlink():
            raise PackageIntegrityError(
                f"{path} is a link to a file that is missing: {_AGAIN}"
            ) from None
        raise PackageNotFoundError(f"{root} is not a package: {_looks_like(root)}") from None
    except OSError as error:
        raise PackageNotFoundError(f"{path} cannot be read: {error.strerror}") from error


def _looks_like(root: Path) -> str:
    """What a folder without a manifest is, and what to do with it."""
    missing = f"it has no {MANIFEST_NAME}"
    try:
        inner = sorted(root.glob(f"*/{MANIFEST_NAME}")) + sorted(
            root.glob(f"snapshots/*/{MANIFEST_NAME}")
        )
        names = {entry.name for entry in root.iterdir()}
    except OSError as error:
        return f"it cannot be listed: {error.strerror}"
    if inner:
        return f"{missing}, but {inner[0].parent} has: open that"
    if "adapter_config.json" in names and "config.json" not in names:
        return (
            f"{missing}; it looks like a LoRA adapter: merge it into its base model, then "
            "export that: prm-edge export MERGED"
        )
    if "config.json" in names:
        return f"{missing}; it looks like a checkpoint: export it first: prm-edge export {root}"
    if not names:
        return "it is empty"
    if any(name.endswith(".onnx") for name in names):
        return f"{missing}, only a graph, which does not say how to score: export the checkpoint"
    return f"{missing}: give the folder that prm-edge export wrote"


def check_files(
    root: Path, files: Mapping[str, FileEntry], *, verify: str, memory: HashMemory | None = None
) -> None:
    """Compare the files below ``root`` with ``files``; see `open_package`.

    Raises:
        PackageIntegrityError: listing every file that is missing or wrong.
    """
    found = {path: _wrong_size(root / path, entry) for path, entry in files.items()}
    # a missing file is certain and quick to find: say so before hashing gigabytes
    _raise_if_wrong(root, found)
    if verify == "sizes":
        return
    memory = memory or HashMemory()
    found = {}
    for path, entry in files.items():
        if verify == "auto" and entry.size >= SMALL_FILE_BYTES and memory.knows(root / path, entry):
            continue
        found[path] = _wrong_hash(root / path, entry, memory)
    memory.save()
    _raise_if_wrong(root, found)


def _raise_if_wrong(root: Path, found: Mapping[str, str | None]) -> None:
    wrong = [f"{path} {problem}" for path, problem in found.items() if problem]
    if not wrong:
        return
    listed = wrong[0] if len(wrong) == 1 else "\n  " + "\n  ".join(wrong) + "\n"
    raise PackageIntegrityError(f"package {root} is damaged: {listed}: {_AGAIN}")


def _wrong_size(path: Path, entry: FileEntry) -> str | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "is not a regular file"
        if status.st_size == entry.size:
            return None
        if status.st_size < 1024 and path.read_bytes().startswith(_LFS_POINTER):
            return "is only a Git LFS pointer (run git lfs pull)"
    except FileNotFoundError:
        return "is a link to a file that is missing" if path.is_symlink() else "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    kind = "is truncated" if status.st_size < entry.size else "is too long"
    return f"{kind}: it has {status.st_size} bytes instead of {entry.size}"


def _wrong_hash(path: Path, entry: FileEntry, memory: HashMemory) -> str | None:
    try:
        before = path.stat()
        actual = hash_file(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if actual != entry:
        return f"has the SHA-256 {actual.sha256} instead of {entry.sha256}"
    if entry.size >= SMALL_FILE_BYTES:
        memory.remember(path, entry, before)
    return None


def check_graph(root: Path, variant: Variant) -> None:
    """Refuse a graph that would read any file but those of its own variant, beside it.

    Raises:
        PackageFormatError: the graph is no ONNX model.
        PackageIntegrityError: its external data lies elsewhere.
    """
    where = f"{root / variant.graph}"
    try:
        locations = external_locations(root / variant.graph, where=where)
    except OSError as error:
        raise PackageIntegrityError(
            f"{where} cannot be read: {error.strerror}: {_AGAIN}"
        ) from error
    folder = PurePosixPath(variant.graph).parent
    for location in sorted(locations):
        reason = path_problem(location)
        if reason is None and "/" in location:
            reason = "is not beside the graph"
        if reason is not None:
            raise PackageIntegrityError(
                f"{where} reads external data from {location!r}, which {reason}; allowed are "
                f"plain names of files beside the graph: do not trust this package, {_AGAIN}"
            )
        if str(folder / location) not in variant.files:
            raise PackageIntegrityError(
                f"{where} reads external data from {location!r}, which is not among the files of "
                f"variant {variant.name!r} in {MANIFEST_NAME}: {_AGAIN}"
            )

"""Write a package so that either all of it is at its place, or nothing that loads.

In: files written below a hidden sibling of the output folder, and a manifest without hashes.
Out: a package that was hashed, synced, opened and verified before one rename put it in place.
Imports nothing but the standard library and the runtime.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from prm_edge_runtime.errors import ExportError, PackageError
from prm_edge_runtime.manifest import (
    CARD_NAME,
    MANIFEST_NAME,
    TOKENIZER_NAME,
    FileEntry,
    Manifest,
    Scalar,
    Variant,
    variant_name_problem,
)
from prm_edge_runtime.package import Package, check_files, check_graph, open_package
from prm_edge_runtime.recipe import Recipe

from .package_files import (
    UNFINISHED_MARK,
    foreign_files,
    fsync_folders,
    listed_files,
    write_synced,
)
from .staging import Staging, fsync_folder, locked_folder, replace_folder, sweep

logger = logging.getLogger("prm_edge")

# provenance keys that identify the weights; --add must find them unchanged
IDENTITY_SUFFIX: Final = "sha256"
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PackageWriter:
    """Write a new package, replace one (``overwrite``), or add variants to one (``add``).

    A context manager: write below :attr:`staging` inside it and call :meth:`finish` last. On any
    exception nothing has changed at ``out``, and the staging folder is gone.
    """

    def __init__(self, out: Path, *, overwrite: bool = False, add: bool = False) -> None:
        self.out: Final = Path(os.path.realpath(out))  # a link stays a link to the new package
        self.overwrite: Final = overwrite
        self.add: Final = add
        self.existing: Package | None = None  # with ``add``: the package that is extended
        self._shown: Final = os.fspath(out)
        self._staging: Staging | None = None
        self._finished = False

    @property
    def staging(self) -> Path:
        """The folder to write into: a hidden sibling of ``out``."""
        if self._staging is None:
            raise ExportError("the package writer is not open: use it in a with statement")
        return self._staging.path

    def __enter__(self) -> PackageWriter:
        """Check ``out`` before any work is done, and make the staging folder.

        Raises:
            ExportError: ``out`` exists and may not be replaced, or cannot be written.
        """
        if self.overwrite and self.add:
            raise ExportError(
                "overwrite and add exclude each other: --overwrite replaces the package, --add "
                "keeps its variants; use one"
            )
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            sweep(self.out)
            self._check_out()
            self._staging = Staging(self.out)
        except OSError as error:
            raise ExportError(
                f"cannot write beside {self._shown}: {error.strerror or error}: give a folder "
                "that can be written"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._staging is not None:
            self._staging.remove()
            self._staging = None
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise ExportError(self._no_space(error)) from error

    def variant_dir(self, name: str) -> Path:
        """Create the folder of a new variant.

        Raises:
            ExportError: an impossible name, or the package has that variant already.
        """
        reason = variant_name_problem(name)
        if reason is not None:
            raise ExportError(f"the variant name {name!r} cannot be used: it {reason}")
        if self.existing is not None:
            self._refuse_taken(self.existing, name)
        folder = self.staging / name
        folder.mkdir()
        return folder

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write one small file of the package, such as ``tokenizer.json``."""
        path = self.staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def check_addable(
        self,
        *,
        variant: str,
        recipe: Recipe,
        max_tokens: int,
        tokenizer: bytes,
        provenance: Mapping[str, Scalar],
        error_kinds: Sequence[str] = (),
    ) -> None:
        """With ``add``: refuse early what :meth:`finish` would refuse. Otherwise do nothing.

        Raises:
            ExportError: listing what differs from the existing package.
        """
        if self.existing is None:
            return
        self._refuse_taken(self.existing, variant)
        differences = _differences(self.existing, recipe, max_tokens, provenance, error_kinds)
        if tokenizer != self.existing.read_bytes(TOKENIZER_NAME):
            differences.append(f"{TOKENIZER_NAME} has other content")
        self._refuse_different(differences)

    def finish(self, manifest: Manifest) -> Package:
        """Hash, sync and verify everything that was written, then put it in its place.

        ``manifest.files`` and ``Variant.files`` are filled in here from what lies in the staging
        folder. With ``add``, ``manifest.variants`` holds the new variants only, and name, default
        threshold and provenance of the existing package stay; of the shared files only new ones,
        ``README.md`` and ones with the same content may have been written.

        Raises:
            ExportError: nothing has changed at ``out``.
        """
        if self._finished:
            raise ExportError("this package was finished already: open a new PackageWriter")
        try:
            if self.add:
                with locked_folder(self.out):  # or two of them would forget each other's variant
                    package = self._finish_add(manifest)
            else:
                package = self._finish_new(manifest)
        except PackageError as error:
            raise ExportError(
                f"what was written for {self._shown} does not verify, so nothing was changed "
                f"there: {error}"
            ) from error
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise ExportError(self._no_space(error)) from error
            raise ExportError(
                f"cannot put the package at {self._shown}: {error.strerror or error} "
                f"({error.filename or self.out}); nothing was changed there: give another folder"
            ) from error
        self._finished = True
        return package

    def _finish_new(self, manifest: Manifest) -> Package:
        filled = _with_files(manifest, listed_files(self.staging))
        write_synced(self.staging / MANIFEST_NAME, _json(filled))
        fsync_folders(self.staging)
        package = open_package(self.staging, verify="full")
        if os.path.lexists(self.out):
            self._check_out()  # again: exporting took a while
            replace_folder(self.staging, self.out)
        else:
            os.rename(self.staging, self.out)
            fsync_folder(self.out.parent)
        return dataclasses.replace(package, root=self.out)

    def _finish_add(self, manifest: Manifest) -> Package:
        # opened again: another --add may have finished in the meantime
        existing = self.existing = open_package(self.out, verify="auto")
        files = listed_files(self.staging)
        new = {path: entry for path, entry in files.items() if path not in existing.manifest.files}
        differences = _differences(
            existing,
            manifest.recipe,
            manifest.max_tokens,
            manifest.provenance,
            manifest.error_kinds,
        )
        differences += [
            f"{path} has other content"
            for path, entry in files.items()
            if path not in new and entry != existing.manifest.files[path]
        ]
        self._refuse_different(differences)
        for variant in manifest.variants:
            self._refuse_taken(existing, variant.name)
        raw = _json(_merged(existing.manifest, _with_files(manifest, files), new))
        merged = Manifest.from_json(raw)
        check_files(self.staging, new, verify="full")
        for variant in merged.variants[len(existing.manifest.variants) :]:
            check_graph(self.staging, variant)
        write_synced(self.staging / MANIFEST_NAME, raw)
        fsync_folders(self.staging)
        self._move_in(new, existing.manifest)
        digest = hashlib.sha256(raw).hexdigest()
        return Package(root=self.out, manifest=merged, digest=digest)

    def _move_in(self, new: Mapping[str, FileEntry], old: Manifest) -> None:
        """Move new files and folders into ``out``; the manifest that lists them comes last."""
        placed: list[Path] = []
        manifest = self.staging / MANIFEST_NAME
        try:
            for top in sorted({path.split("/")[0] for path in new}):
                target = self.out / top
                if os.path.lexists(target):
                    self._clear_unfinished(target, old)
                if (self.staging / top).is_dir():
                    (self.staging / top / UNFINISHED_MARK).touch()
                os.rename(self.staging / top, target)
                placed.append(target)
            fsync_folder(self.out)
            os.replace(manifest, self.out / MANIFEST_NAME)
        except BaseException:
            if manifest.exists():  # else the new manifest is in place, and lists them
                for target in placed:
                    self._take_back(target)
            raise
        fsync_folder(self.out)
        for target in placed:
            with contextlib.suppress(OSError):
                (target / UNFINISHED_MARK).unlink()
        try:
            os.replace(self.staging / CARD_NAME, self.out / CARD_NAME)
        except FileNotFoundError:
            pass  # none was written
        except OSError as error:
            logger.warning("the old %s stays: %s", CARD_NAME, error)

    def _take_back(self, target: Path) -> None:
        # back into the staging folder, which is removed as a whole
        with contextlib.suppress(OSError):
            os.rename(target, self.staging / target.name)

    def _clear_unfinished(self, target: Path, old: Manifest) -> None:
        """Remove what a killed --add left at ``target``; refuse anything else."""
        listed = any(path.split("/")[0] == target.name for path in old.files)
        if listed or not (target / UNFINISHED_MARK).is_file():
            raise ExportError(
                f"{target} exists and is not what was to be added: move it away, then add again"
            )
        shutil.rmtree(target)

    def _check_out(self) -> None:
        """Refuse an ``out`` that may not be written; with ``add``, open it."""
        if self.add:
            try:
                self.existing = open_package(self.out, verify="auto")
            except PackageError as error:
                raise ExportError(
                    f"cannot add a variant to {self._shown}: {error}; --add needs a package that "
                    "is there and undamaged: export without --add"
                ) from error
            return
        if not os.path.lexists(self.out):
            return
        if not self.overwrite:
            raise ExportError(
                f"{self._shown} exists: choose another folder, --overwrite to replace it, or "
                "--add to add a variant to it"
            )
        if not self.out.is_dir():
            raise ExportError(
                f"{self._shown} is a file: --overwrite replaces only a package or an empty folder"
            )
        if os.path.ismount(self.out):
            raise ExportError(
                f"{self._shown} is a mount point, which cannot be replaced: export to a folder "
                "inside it"
            )
        foreign = foreign_files(self.out)
        if foreign:
            more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
            raise ExportError(
                f"{self._shown} holds files that are not part of a package: "
                f"{', '.join(foreign[:5])}{more}: --overwrite never deletes those; move them away "
                "or choose another folder"
            )

    def _refuse_taken(self, existing: Package, name: str) -> None:
        names = [variant.name for variant in existing.manifest.variants]
        if name in names:
            raise ExportError(
                f"{self._shown} has a variant {name!r} already (it has {', '.join(names)}): "
                "export the whole package anew with --overwrite, or to another folder"
            )

    def _refuse_different(self, differences: list[str]) -> None:
        if differences:
            raise ExportError(
                f"cannot add to {self._shown}, whose variants must all score alike: "
                f"{'; '.join(differences)}: export to another folder"
            )

    def _no_space(self, error: OSError) -> str:
        return (
            f"no space left while writing the package for {self._shown} "
            f"({error.strerror}): nothing was changed there; free some space or give a folder on "
            "another disk"
        )


def _json(manifest: Manifest) -> bytes:
    try:
        return manifest.to_json()
    except (TypeError, ValueError) as error:  # such as a proof that measured NaN
        raise ExportError(
            f"the manifest of {manifest.name!r} holds a value that JSON does not have ({error}): "
            "every figure must be a finite number"
        ) from error


def _with_files(manifest: Manifest, files: Mapping[str, FileEntry]) -> Manifest:
    variants = tuple(_with_own_files(variant, files) for variant in manifest.variants)
    return dataclasses.replace(manifest, variants=variants, files=files)


def _with_own_files(variant: Variant, files: Mapping[str, FileEntry]) -> Variant:
    own = tuple(sorted(path for path in files if path.startswith(f"{variant.name}/")))
    return dataclasses.replace(variant, files=own)


def _merged(old: Manifest, added: Manifest, new: Mapping[str, FileEntry]) -> Manifest:
    names = {variant.name for variant in added.variants}
    thresholds = {key: value for key, value in added.thresholds.items() if key in names}
    return dataclasses.replace(
        old,
        thresholds={**old.thresholds, **thresholds},
        variants=old.variants + added.variants,
        files={**old.files, **new},
        provenance={**old.provenance, **added.provenance, **old.provenance},  # the old order
    )


def _differences(
    existing: Package,
    recipe: Recipe,
    max_tokens: int,
    provenance: Mapping[str, Scalar],
    error_kinds: Sequence[str],
) -> list[str]:
    old = existing.manifest
    ours, theirs = recipe.to_dict(), old.recipe.to_dict()
    found = [
        f"recipe.{key} is {ours[key]!r}, there {theirs[key]!r}"
        for key in ours
        if ours[key] != theirs[key]
    ]
    if max_tokens != old.max_tokens:
        found.append(f"max_tokens is {max_tokens}, there {old.max_tokens}")
    if tuple(error_kinds) != old.error_kinds:
        ours_named, theirs_named = (", ".join(x) or "none" for x in (error_kinds, old.error_kinds))
        found.append(f"the kinds of error are {ours_named}, there {theirs_named}")
    found += [
        f"provenance {key} is {value!r}, there {old.provenance[key]!r}"
        for key, value in provenance.items()
        if key.endswith(IDENTITY_SUFFIX) and key in old.provenance and old.provenance[key] != value
    ]
    return found

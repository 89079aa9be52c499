"""What lies in a folder: the files a new package will list, and those no package put there.

In: a staging folder, or an output folder that exists. Out: paths with sizes and hashes, or names.
Imports nothing but the standard library and the runtime.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from prm_edge_runtime.errors import ExportError, PackageFormatError
from prm_edge_runtime.hashing import hash_file
from prm_edge_runtime.manifest import (
    MANIFEST_NAME,
    UNLISTED_FILES,
    FileEntry,
    Manifest,
    path_problem,
)

from .staging import fsync_file, fsync_folder

# in a folder that --add moved into place before the manifest that lists it
UNFINISHED_MARK: Final = ".prm-edge-unfinished"


def require_free_space(path: Path, needed_bytes: int) -> None:
    """Check that ``needed_bytes`` fit on the disk of ``path``, which need not exist yet.

    Raises:
        ExportError: naming what is needed and what is free.
    """
    folder = Path(os.path.realpath(path))
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ExportError(
            f"writing the package needs {needed_bytes / 1e9:.2f} GB and {folder} has "
            f"{free / 1e9:.2f} GB free: free some space or give a folder on another disk"
        )


def listed_files(staging: Path) -> dict[str, FileEntry]:
    """Hash and sync every file that belongs in the manifest; package path -> entry."""
    files = {}
    for folder, names, file_names in os.walk(staging):
        for name in (*names, *file_names):
            path = Path(folder) / name
            shown = path.relative_to(staging).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ExportError(f"{shown} is a link or a special file; packages hold none")
            if path.is_dir():
                continue
            reason = path_problem(shown)
            if reason is not None:
                raise ExportError(f"the file name {shown!r} {reason}; packages hold none such")
            fsync_file(path)
            if shown not in UNLISTED_FILES:
                files[shown] = hash_file(path)
    return files


def fsync_folders(staging: Path) -> None:
    """Sync every folder from the inside out."""
    for folder, _, _ in os.walk(staging, topdown=False):
        fsync_folder(Path(folder))


def foreign_files(folder: Path) -> list[str]:
    """Files below ``folder`` that no package put there; empty folders are nobody's."""
    present = sorted(
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, folders, names in os.walk(folder)
        for name in (*names, *(f for f in folders if (Path(parent) / f).is_symlink()))
    )
    if not present:
        return []
    try:
        listed = Manifest.from_json((folder / MANIFEST_NAME).read_bytes()).files
    except (OSError, PackageFormatError):
        return present
    unfinished = {name.removesuffix(UNFINISHED_MARK) for name in present if _marks(name)}
    return [
        name
        for name in present
        if name not in listed
        and name not in UNLISTED_FILES
        and not name.startswith(tuple(unfinished))
    ]


def _marks(name: str) -> bool:
    return name.count("/") == 1 and name.endswith(f"/{UNFINISHED_MARK}")


def write_synced(path: Path, content: bytes) -> None:
    """Write a small file that survives a power cut."""
    path.write_bytes(content)
    fsync_file(path)

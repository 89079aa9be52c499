"""Bring a package to the nodes: once to each, whoever asks first.

In: a folder of the driver's machine, a URI, a path that every node has, or the package that is
built in. Out: a folder on the node that :class:`~prm_edge_runtime.Scorer` loads. What comes over
the network lies in the node's folder for temporary files under its digest, and is verified like
any package when it is opened. Knows Ray's object references only as something that ``fetch``
turns into bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prm_edge_runtime.choice import EMBEDDED, PACKAGE_VARIABLE, package_path
from prm_edge_runtime.errors import ConfigError, PackageNotFoundError
from prm_edge_runtime.manifest import MANIFEST_NAME, Manifest
from prm_edge_runtime.package import Package, open_package

from .places import Place, find_place, is_uri

try:
    import fcntl
except ImportError:  # Windows: two workers of one node may both fetch the package there
    fcntl = None  # type: ignore[assignment]

SHIPPED: Final = "shipped"
URI: Final = "uri"
NODE: Final = "node"
CHUNK_BYTES: Final = 64 << 20  # of one object in Ray's store
FOLDER: Final = "prm-edge-packages"

Fetch = Callable[[Any], Iterable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the workers take the package from.

    ``kind``: one of the above, or ``embedded``. ``place``: as the user named it. ``digest``: of
    the package, None where only a node can tell. ``files``: name to references of its chunks.
    """

    kind: str
    place: str
    digest: str | None = None
    files: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, repr=False)


def find_source(
    package: str | os.PathLike[str] | None, *, on_nodes: bool
) -> tuple[Source, Package | None]:
    """Decide where the workers take a package from; the package too, where it is on this machine.

    ``on_nodes``: every node has it at that path.

    Raises:
        ConfigError, PackageError: what is named is not there, or no package.
    """
    where, source = package_path(package)
    place = os.fspath(where)
    if source == EMBEDDED:
        opened = open_package(where)
        return Source(kind=EMBEDDED, place="the built-in package", digest=opened.digest), opened
    if is_uri(place):
        return Source(kind=URI, place=place), None
    if on_nodes:
        return Source(kind=NODE, place=os.path.abspath(place)), None
    opened = open_package(where)
    return Source(kind=SHIPPED, place=place, digest=opened.digest), opened


def chunks_of(package: Package) -> Iterable[tuple[str, bytes]]:
    """Every file of a package in pieces: its name, and bytes."""
    for name in (MANIFEST_NAME, *package.manifest.files):
        with open(package.root / name, "rb") as stream:
            block = stream.read(CHUNK_BYTES)
            yield name, block
            while block := stream.read(CHUNK_BYTES):
                yield name, block


def on_this_node(source: Source, fetch: Fetch) -> str | None:
    """The folder to load on this node, fetched first if nobody has yet; None for the built-in one.

    Raises:
        ConfigError: when it cannot be written here.
        PackageNotFoundError: when it is not where it should be.
    """
    if source.kind == EMBEDDED:
        os.environ.pop(PACKAGE_VARIABLE, None)  # of the node: the driver has decided
        return None
    if source.kind == NODE:
        if not os.path.isdir(source.place):
            raise PackageNotFoundError(
                f"the package {source.place!r} is not on node {this_node()}; put it at that path "
                "on every node, or leave out --package-on-nodes and it is sent to them"
            )
        return source.place
    if source.kind == URI:
        place = find_place(source.place)
        # known by its manifest, which has the hash of every other file
        raw = b"".join(_read(place, place.child(MANIFEST_NAME)))
        names = (MANIFEST_NAME, *Manifest.from_json(raw, where=source.place).files)
        files = {name: (place.child(name),) for name in names}
        digest = hashlib.sha256(raw).hexdigest()
        return str(_install(digest, files, lambda path: _read(place, path)))
    assert source.digest is not None  # of what is shipped it is always known
    return str(_install(source.digest, source.files, fetch))


def this_node() -> str:
    """What a message calls this machine."""
    return socket.gethostname()


def _read(place: Place, path: str) -> Iterator[bytes]:
    try:
        with place.filesystem.open_input_stream(path, compression=None) as stream:
            while block := stream.read(CHUNK_BYTES):
                yield block
    except FileNotFoundError:
        raise PackageNotFoundError(
            f"there is no package at {place.shown!r}: {path!r} is not there"
        ) from None


def _install(digest: str, files: Mapping[str, tuple[Any, ...]], fetch: Fetch) -> Path:
    root = private_folder()
    target = root / digest
    with (root / f"{digest}.lock").open("ab") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        unfinished = root / f".{digest}.tmp"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            for name, pieces in files.items():
                path = unfinished / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as stream:
                    for piece in pieces:
                        stream.writelines(fetch(piece))
            os.replace(unfinished, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                shutil.rmtree(unfinished)
            raise ConfigError(
                f"the package cannot be put into {str(root)!r} on node {this_node()}: "
                f"{error.strerror or error}; set TMPDIR there to a folder with room"
            ) from None
    return target


def private_folder() -> Path:
    """The node's folder for packages, which nobody else can write to.

    Raises:
        ConfigError: when somebody else's folder has its name.
    """
    user = os.getuid() if hasattr(os, "getuid") else ""
    root = Path(tempfile.gettempdir()) / f"{FOLDER}-{user}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or (
        hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022)
    ):
        raise ConfigError(
            f"{str(root)!r} on node {this_node()} is not a folder that only this user can write "
            "to; remove it, or set TMPDIR to another place"
        )
    return root

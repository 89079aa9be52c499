"""What the tests of the package writer share: a tiny export, and children that die."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from package_builder import SHARED_FILES, tiny_manifest, write_variant

from prm_edge_export.writer import PackageWriter
from prm_edge_runtime.manifest import Manifest
from prm_edge_runtime.package import Package

CHILD = Path(__file__).parent / "writer_child.py"


def fill(open_writer: PackageWriter, names: tuple[str, ...] = ("cpu-fp32",)) -> None:
    for name in names:
        folder = open_writer.variant_dir(name)
        write_variant(folder)
    for name, content in SHARED_FILES.items():
        open_writer.write_bytes(name, content)


def write(
    out: Path,
    names: tuple[str, ...] = ("cpu-fp32",),
    *,
    also: Callable[[PackageWriter], object] | None = None,
    manifest: Manifest | None = None,
    overwrite: bool = False,
    add: bool = False,
) -> Package:
    """Write a whole package; ``also`` runs right before it is finished."""
    with PackageWriter(out, overwrite=overwrite, add=add) as open_writer:
        fill(open_writer, names)
        if also is not None:
            also(open_writer)
        return open_writer.finish(manifest or tiny_manifest(names))


def names_beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir())


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


def run_child(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(CHILD.parent), *sys.path])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def abandon(out: Path) -> Path:
    """A staging folder whose owner is gone; returns it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from prm_edge_export.staging import Staging\n"
        "path = Staging(Path(sys.argv[1])).path\n"
        "(path / 'half').write_text('written')\n"
        "print(path, flush=True)\n"
        "os._exit(9)\n"
    )
    return Path(run_child("-c", code, str(out)).stdout.strip())

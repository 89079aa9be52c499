"""Run the package writer and be killed at every file operation in turn; see test_writer.py.

A process of its own that imports nothing heavy and no threads, so that it can fork. For each k
the child gets SIGKILL right before its k-th file operation (audit events: open, rename, remove,
mkdir, rmdir, and the system call that exchanges two names); the parent then looks at what is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from prm_edge_export import staging
from prm_edge_export.staging import sweep
from prm_edge_export.writer import PackageWriter
from prm_edge_runtime.errors import PackageError
from prm_edge_runtime.manifest import Manifest
from prm_edge_runtime.package import Package, open_package

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "ctypes.dlsym")


def export(source: Path, out: Path, names: list[str], *, overwrite: bool, add: bool) -> Package:
    """Export a copy of the package ``source`` to ``out``, as an exporter would."""
    manifest = Manifest.from_json((source / "prm_edge.json").read_bytes())
    variants = tuple(variant for variant in manifest.variants if variant.name in names)
    thresholds = {"default": manifest.thresholds["default"]}
    with PackageWriter(out, overwrite=overwrite, add=add) as writer:
        for variant in variants:
            folder = writer.variant_dir(variant.name)
            for name in variant.files:
                shutil.copyfile(source / name, folder / Path(name).name)
        for name in ("tokenizer.json", "selftest.json", "README.md"):
            writer.write_bytes(name, (source / name).read_bytes())
        changed = Manifest(
            name=manifest.name,
            recipe=manifest.recipe,
            max_tokens=manifest.max_tokens,
            thresholds=thresholds,
            variants=variants,
            files={},
            provenance=manifest.provenance,
        )
        return writer.finish(changed)


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a fork; True when it lived to see operation ``number``, and died of it."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event in EVENTS:
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
        except BaseException as error:
            print(f"operation {number}: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, f"the export failed instead of being killed at {number}"
    return False


def digest(out: Path) -> str | None:
    """What loads at ``out``; None when nothing does."""
    try:
        return open_package(out, verify="full").digest
    except PackageError:
        return None


def main(mode: str, source: Path, place: Path) -> None:
    os.fsync = lambda fd: None  # a killed process loses nothing that it wrote
    if mode == "overwrite-without-exchange":
        staging.exchange = lambda one, other: False
    names = ["cpu-fp32", "cpu-int8"]
    new, old = (None, None)
    number = 0
    alive = True
    while alive:
        number += 1
        folder = place / f"{number:03}"
        out = folder / "pkg"
        folder.mkdir()
        if mode != "new":
            old = export(source, out, names[:1], overwrite=False, add=False).digest
            (out / "notes.txt").write_text("mine", encoding="utf-8")
        if mode.startswith("overwrite"):
            (out / "notes.txt").unlink()

        def work(out: Path = out) -> None:
            chosen = names[1:] if mode == "add" else names
            export(source, out, chosen, overwrite=mode.startswith("overwrite"), add=mode == "add")

        alive = killed_at(number, work)
        if mode == "overwrite-without-exchange":
            sweep(out)  # as the next export does: it puts back what was moved aside
        found = digest(out)
        sweep(out)
        assert digest(out) == found, number
        if not alive:
            new = found
            assert new not in (None, old), "the last run was not killed, and must be complete"
        (folder / "found").write_text(str(found), encoding="utf-8")
        assert found is not None or (mode == "new" and not out.exists()), number
        if mode == "add":
            assert (out / "notes.txt").read_text(encoding="utf-8") == "mine", number
        if found == old:
            work()  # the next export cleans up and completes
            found = digest(out)
        (folder / "after").write_text(str(found), encoding="utf-8")
        assert sorted(path.name for path in folder.iterdir()) == ["after", "found", "pkg"], number
    for path in sorted(place.iterdir()):
        assert (path / "found").read_text(encoding="utf-8") in (str(old), str(new)), path
        assert (path / "after").read_text(encoding="utf-8") == new, path
        unfinished = list(path.glob("pkg/*/.prm-edge-unfinished"))
        assert len(unfinished) <= 1, unfinished
    print(number)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

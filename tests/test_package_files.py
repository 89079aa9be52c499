"""Free space is checked before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prm_edge_export.package_files import require_free_space
from prm_edge_runtime.errors import ExportError


def test_require_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_free_space(tmp_path / "not" / "yet", 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    require_free_space(tmp_path / "not" / "yet", 10**9)
    with pytest.raises(ExportError, match=r"needs 2.50 GB and .* has 1.00 GB free: free some"):
        require_free_space(tmp_path / "not" / "yet", 2_500_000_000)

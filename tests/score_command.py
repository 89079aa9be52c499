"""What the tests of ``prm-edge score`` share: records, and what they look for."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

GOOD = '{"id": "a", "problem": "p", "steps": ["0.9"]}\n'
BAD = '{"id": "b", "problem": "p", "steps": "0.9"}\n'
NOTICE = "prm-edge: scoring with fake (cpu-fp32, 0123456789ab) on cpu, named by -m\n"
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals, pipes and terminals")


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def assert_one_sentence(stderr: str, message: str) -> None:
    assert re.fullmatch(rf"Error: .*{message}.*\n", stderr), stderr

"""API keys: the file, and whose a key is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prm_edge.server.keys import read_keys
from prm_edge_runtime.errors import ConfigError


def test_keys_are_found_by_name_and_changed_by_adding(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who\n\nanna {'a' * 16}\nanna {'c' * 16}\nben {'b' * 16}\n")
    keys = read_keys(file)
    assert [keys.owner(letter * 16) for letter in (b"a", b"c", b"b", b"d")] == [
        "anna",
        "anna",
        "ben",
        None,
    ]
    assert "aaaa" not in repr(vars(keys))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("anna", "line 1 of the keys must be NAME KEY"),
        (f"\nan/na {'a' * 16}", "line 2 of the keys must be NAME KEY"),
        ("anna secret", "line 1 of the keys: the key of 'anna' must have 16 to 256 visible ASCII"),
        (f"anna {'a' * 16}\nben {'a' * 16}", "line 2 of the keys: this key is there twice"),
        ("# nothing\n", "there are no keys in"),
    ],
)
def test_keys_are_refused_without_being_shown(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        read_keys(file)
    assert "secret" not in str(error.value).replace("import secrets", "").replace("secrets.", "")
    assert "aaaa" not in str(error.value)


def test_keys_must_be_readable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_keys(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read: it is not UTF-8 text"):
        read_keys(tmp_path / "binary")


def test_keys_are_not_endless(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("".join(f"a {number:016d}\n" for number in range(1_001)))
    with pytest.raises(ConfigError, match="there are 1001 keys; at most 1000"):
        read_keys(file)

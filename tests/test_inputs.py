"""Files as people have them: compressed, Parquet, arrays; damaged, and made to do harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_scorer import fake_scorer

from prm_edge import inputs
from prm_edge.inputs import read_source, survey
from prm_edge.jobs import score_records
from prm_edge_runtime.errors import ConfigError, InputError

LINES = b'{"problem": "p", "steps": ["0.9"]}\n\n{"problem": "q", "steps": []}\n'
PLAIN = [(1, b'{"problem": "p", "steps": ["0.9"]}'), (3, b'{"problem": "q", "steps": []}')]


def zstd() -> Any:
    return pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else
                               "backports.zstd")  # fmt: skip


def read(data: bytes, name: str = "") -> list[tuple[int, bytes]]:
    return [(line.number, line.data) for line in read_source(io.BytesIO(data), name)]


def test_read_source_unpacks_gzip_of_several_members() -> None:
    assert read(gzip.compress(LINES[:20]) + gzip.compress(LINES[20:])) == PLAIN


def test_read_source_unpacks_zstd_of_several_frames() -> None:
    pack = zstd().compress
    assert read(pack(LINES[:20]) + pack(LINES[20:])) == PLAIN


def test_read_source_says_what_zstd_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_zstd", lambda: None)
    with pytest.raises(ConfigError, match=r"needs the extra zstd: pip install 'prm-edge\[zstd\]'"):
        read(b"\x28\xb5\x2f\xfd rest")


@pytest.mark.parametrize("pack", ["gzip", "zstd"])
@pytest.mark.parametrize("cut", [-1, -9, 30])
def test_read_source_notices_what_is_cut_short(pack: str, cut: int) -> None:
    whole = gzip.compress(LINES * 9, mtime=0) if pack == "gzip" else zstd().compress(LINES * 9)
    with pytest.raises(InputError, match=r"damaged or cut short, .*; get it again"):
        read(whole[:cut])


@pytest.mark.parametrize("pack", ["gzip", "zstd"])
def test_read_source_notices_damage(pack: str) -> None:
    noise = random.Random(1).randbytes(4000).hex().encode() + b"\n"
    whole = bytearray(gzip.compress(noise) if pack == "gzip" else zstd().compress(noise))
    whole[1000:1100] = b"\x00" * 100
    with pytest.raises(InputError, match="damaged or cut short"):
        read(bytes(whole))


def test_read_source_refuses_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "FREE_BYTES", 1024 * 1024)
    bomb = gzip.compress(b"\n" * 64 * 1024 * 1024)
    monkeypatch.setattr(inputs, "MAX_EXPANSION", 100)
    with pytest.raises(InputError, match="more than 100 times its size, as a bomb does; if you"):
        read(bomb)


def test_read_source_refuses_a_zstd_bomb_at_the_stated_bound() -> None:
    bomb = zstd().compress(b" " * (inputs.FREE_BYTES + inputs.BLOCK_BYTES * 2), 19)
    assert len(bomb) * inputs.MAX_EXPANSION < inputs.FREE_BYTES
    with pytest.raises(InputError, match="more than 1000 times its size"):
        read(bomb)


def test_read_source_reads_what_packs_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "FREE_BYTES", 1000)
    assert len(read(gzip.compress(LINES * 2000))) == 4000


def test_read_source_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_DECOMPRESSED_BYTES", 100)
    with pytest.raises(InputError, match="unpacks to more than 100 bytes, the most that is read"):
        read(gzip.compress(LINES * 9))


def test_read_source_reads_an_array_named_json() -> None:
    rows = [json.loads(data) for _, data in PLAIN] + [3]
    pretty = json.dumps(rows, indent=1).encode()
    expected = [(i, json.dumps(row).encode()) for i, row in enumerate(rows, 1)]
    assert read(pretty, "a.json") == expected
    assert read(b"\xef\xbb\xbf  " + pretty, "a.json") == expected
    assert read(gzip.compress(pretty), "a.json.gz") == expected
    assert read(LINES, "a.json") == PLAIN  # lines all the same
    assert read(b"[1, 2]\n" + LINES, "a.jsonl")[0] == (1, b"[1, 2]")


def test_read_source_refuses_an_array_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in (b"[1, 2", b"[" * 300_000, b"[1]\n[2]", b'["\xff"]'):
        with pytest.raises(InputError, match=r"is named \.json and is no JSON array: "):
            read(bad, "a.json")
    monkeypatch.setattr(inputs, "MAX_LINE_BYTES", 10)
    with pytest.raises(InputError, match="more than 10 bytes, the most that is read at once"):
        read(b"[1, 2, 3, 4]", "a.json")


def test_survey_counts_and_hashes(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(LINES))
    with path.open("rb") as stream:
        found = survey(stream, path.name)
        assert stream.tell() == 0
    raw = path.read_bytes()
    assert (found.records, found.n_bytes) == (2, len(raw))
    assert found.sha256 == hashlib.sha256(raw).hexdigest()


# --- Parquet ---


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(arrow.Table.from_pylist(rows), sink, **options)
    return sink.getvalue()


def test_read_source_reads_parquet_and_the_columns_it_knows() -> None:
    rows = [
        {"id": 1, "problem": "p", "steps": ["a"], "label": None, "blob": b"\xff", "x": float("nan")}
        for _ in range(600)
    ]
    found = read(parquet(rows, row_group_size=100))
    assert [number for number, _ in found] == list(range(1, 601))
    assert {data for _, data in found} == {b'{"id": 1, "problem": "p", "steps": ["a"]}'}


def test_read_source_refuses_damaged_parquet() -> None:
    raw = bytearray(parquet([{"problem": str(i), "steps": ["a"]} for i in range(3000)]))
    with pytest.raises(InputError, match="the Parquet input is damaged, 0 rows into it"):
        read(bytes(raw[:-20]))
    raw[200:1200] = b"\x00" * 1000
    with pytest.raises(InputError, match="the Parquet input is damaged"):
        read(bytes(raw))


def test_read_source_bounds_a_row_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_ROW_GROUP_BYTES", 10)
    with pytest.raises(InputError, match=r"row group 0 of the Parquet input has .* at most 10 are"):
        read(parquet([{"problem": "p" * 100, "steps": []}]))


def test_read_source_refuses_parquet_from_a_pipe() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def peek(self, size: int = 0) -> bytes:
            return self.getvalue()[:4]

    with pytest.raises(ConfigError, match="Parquet cannot be read from a pipe; name the file"):
        list(read_source(Pipe(parquet([{"problem": "p", "steps": []}]))))


def test_read_source_says_what_parquet_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs the extra parquet: pip install 'prm-edge\[parq"):
        read(b"PAR1 rest")


# --- hostile lines ---


def fuzzed(count: int) -> tuple[bytes, list[int]]:
    """Broken and hostile lines, every tenth one good; the numbers of the good ones."""
    chance = random.Random(20)
    seeds = [
        b'{"id": 1, "problem": "p", "steps": ["0.9", "0.2"]}',
        b'{"problem": "p", "candidates": [["1"], []]}',
        b'{"question": {"problem": "p"}, "label": {"steps": []}}',
        '{"input": "p Step 1: a ки", "label": "p Step 1: a +"}'.encode(),
        b'{"messages": [{"role": "user", "content": "p"}]}',
        b'{"question": "p", "chain_of_thoughts": [{"steps": ["a"]}]}',
    ]
    lines, good = [], []
    for number in range(1, count + 1):
        if number % 10 == 0:
            lines.append(b'{"id": %d, "problem": "p", "steps": ["0.%d"]}' % (number, number % 97))
            good.append(number)
            continue
        line = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(line) + 1)
            what = chance.randrange(4)
            if what == 0:
                line[at:at] = chance.choice(
                    [b"<extra_0>", b"\x00", b"\xff", b"[" * 99, b"null", b'"', b"\\ud800", b"1e999"]
                )
            elif what == 1:
                del line[at : at + chance.randint(1, 9)]
            elif what == 2:
                line[at : at + 1] = bytes([chance.randrange(256)])
            else:
                line += line[: chance.randint(1, 50)]
        lines.append(bytes(line.replace(b"\n", b" ").replace(b"\r", b" ")) or b"x")
    return b"\n".join(lines) + b"\n", good


def test_fuzzed_lines_never_crash_hang_or_shift_scores() -> None:
    data, good = fuzzed(20_000)
    written = {
        line.number: line.data
        for line in score_records(fake_scorer(), read_source(io.BytesIO(data)), ahead=True)
    }
    assert max(written) == 20_000
    for number in good:
        assert written[number]["id"] == number
        assert written[number]["scores"] == [float(f"0.{number % 97}")]

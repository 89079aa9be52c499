"""training_args.bin is read value for value, and nothing in it is ever executed."""

from __future__ import annotations

import os
import pickle
import random
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from prm_edge_export.training_args import (
    MAX_BYTES,
    MAX_OPCODES,
    TrainingArgs,
    read_training_args,
)
from prm_edge_runtime.errors import CheckpointError


class Schedule(Enum):
    LINEAR = "linear"


class Text(str):
    """A str subclass: looks like a string, is no plain one."""


@dataclass
class Config:
    """Shaped like PRMConfig: plain values, an enum, a nested dict, a repeated string."""

    output_dir: str = "out"
    run_name: str = "out"
    schedule: Schedule = Schedule.LINEAR
    extra: dict[str, Any] = field(default_factory=lambda: {"step_separator": "decoy"})
    note: str = "step_separator"
    max_length: Any = 1024
    step_separator: Any = "\n"
    train_on_last_step_only: Any = False
    big: list[int] = field(default_factory=lambda: [2**70, -1])


def zipped(pickled: bytes, path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("training_args/data.pkl", pickled)
        archive.writestr("training_args/version", "3\n")
    return path


def read(pickled: bytes, folder: Path) -> TrainingArgs:
    found = read_training_args(zipped(pickled, folder / "training_args.bin"))
    assert found is not None
    return found


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("separator", ["\n", "\n\n", "", "ки", "<step>", "step_separator", "out"])
def test_read_training_args_gives_what_torch_saved(
    tmp_path: Path, new_format: bool, separator: str
) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "training_args.bin"
    torch.save(
        Config(step_separator=separator, max_length=2048),
        path,
        _use_new_zipfile_serialization=new_format,
    )
    assert read_training_args(path) == TrainingArgs(
        step_separator=separator,
        max_length=2048,
        train_on_last_step_only=False,
        class_name=f"{Config.__module__}.Config",
        source=path,
        unreadable={},
    )


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_read_training_args_knows_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    config = Config(step_separator="\n\n", train_on_last_step_only=True)
    found = read(pickle.dumps(config, protocol=protocol), tmp_path)
    assert (found.step_separator, found.max_length) == ("\n\n", 1024)
    assert found.train_on_last_step_only is True
    assert found.class_name == f"{Config.__module__}.Config"
    assert not found.unreadable


def test_read_training_args_resolves_a_string_that_is_stored_once(tmp_path: Path) -> None:
    shared = "".join(["\n", "\n"])
    config = Config(output_dir=shared, run_name=shared, step_separator=shared)
    pickled = pickle.dumps(config, protocol=2)
    assert pickled.count(b"\n\n") == 1
    assert read(pickled, tmp_path).step_separator == "\n\n"


def test_read_training_args_reads_slots(tmp_path: Path) -> None:
    found = read(pickle.dumps(Slotted("\n"), protocol=2), tmp_path)
    assert found.step_separator == "\n"


class Slotted:
    __slots__ = ("step_separator",)

    def __init__(self, step_separator: str) -> None:
        self.step_separator = step_separator


def test_read_training_args_accepts_an_unlimited_max_length(tmp_path: Path) -> None:
    found = read(pickle.dumps(Config(max_length=None), protocol=2), tmp_path)
    assert found.max_length is None
    assert not found.unreadable


def test_read_training_args_gives_none_without_a_file(tmp_path: Path) -> None:
    assert read_training_args(tmp_path / "training_args.bin") is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Text("\n"), "not a plain str but .*Text"),
        # a member of an Enum is pickled by its class, in some versions of Python by getattr
        (Schedule.LINEAR, "not a plain str but .*(Schedule|getattr)"),
        (b"\n", "not a plain str"),
        (None, "not a plain str but NoneType"),
        (7, "not a plain str but int"),
        (("\n",), "not a plain str but tuple"),
    ],
)
def test_read_training_args_never_guesses_a_separator(
    tmp_path: Path, value: object, reason: str
) -> None:
    found = read(pickle.dumps(Config(step_separator=value), protocol=2), tmp_path)
    assert found.step_separator is None
    assert set(found.unreadable) == {"step_separator"}
    assert re.search(reason, found.unreadable["step_separator"])


def test_read_training_args_says_when_the_file_has_no_separator(tmp_path: Path) -> None:
    found = read(pickle.dumps(Schedule.LINEAR, protocol=2), tmp_path)
    assert found.step_separator is None
    assert found.unreadable["step_separator"] == "the file does not say it"


def test_read_training_args_ignores_the_key_in_a_nested_dict(tmp_path: Path) -> None:
    config = Config()
    del config.step_separator
    found = read(pickle.dumps(config, protocol=2), tmp_path)
    assert found.step_separator is None


class Hostile:
    """Unpickling it runs a command that writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("bare", [True, False])
def test_read_training_args_executes_nothing(tmp_path: Path, protocol: int, bare: bool) -> None:
    target = tmp_path / "executed"
    config = Config(output_dir=Hostile(target), step_separator="\n")  # type: ignore[arg-type]
    pickled = pickle.dumps(config, protocol=protocol)
    path = tmp_path / "training_args.bin"
    path.write_bytes(pickled) if bare else zipped(pickled, path)
    found = read_training_args(path)
    assert found is not None
    assert found.step_separator == "\n"
    assert not target.exists()
    pickle.loads(pickled)  # the attack is real
    assert target.exists()


def test_read_training_args_does_not_call_for_the_value(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    config = Config(step_separator=Hostile(target))
    found = read(pickle.dumps(config, protocol=2), tmp_path)
    assert found.step_separator is None
    assert "system(...)" in found.unreadable["step_separator"]
    assert not target.exists()


def test_read_training_args_imports_nothing_a_pickle_names(tmp_path: Path) -> None:
    path = zipped(b"\x80\x02cantigravity\nfly\n)R.", tmp_path / "training_args.bin")
    code = (
        "import sys, pathlib\n"
        "from prm_edge_export.training_args import read_training_args\n"
        f"read_training_args(pathlib.Path({str(path)!r}))\n"
        "found = {'antigravity', 'torch', 'pickle'} & set(sys.modules)\n"
        "sys.exit(str(found) if found - {'pickle'} else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"garbage that is no pickle",
        b"\x80\x02",
        b"\x80\x02}",
        b"\x80\x02h\x07.",  # a memo that was never written
        b"\x80\x02b.",  # BUILD on an empty stack
        b"\x80\x02q\x00.",  # BINPUT of nothing
        b"\x80\x02u.",  # SETITEMS without a mark
        b"\x80\x02}(X\x01\x00\x00\x00au.",  # a key without a value
        b"\x80\x02(t(t(t(I99999999999999999999999999999999" + b"9" * 5000 + b"\n.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a string said to be 2 GiB long
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"cos\nsystem\n",
        pickle.dumps(Config(), protocol=2)[:-40],
    ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_read_training_args_refuses_what_is_no_pickle(
    tmp_path: Path, pickled: bytes, bare: bool
) -> None:
    path = tmp_path / "training_args.bin"
    path.write_bytes(pickled) if bare else zipped(pickled, path)
    with pytest.raises(CheckpointError, match=r"is not a readable pickle .* was not executed"):
        read_training_args(path)


def test_read_training_args_stops_at_too_many_opcodes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"more than {MAX_OPCODES} opcodes"):
        read(b"\x80\x02" + b"N0" * MAX_OPCODES, tmp_path)


def test_read_training_args_stops_at_endless_pickles(tmp_path: Path) -> None:
    path = tmp_path / "training_args.bin"
    path.write_bytes(b"N." * MAX_OPCODES)
    with pytest.raises(CheckpointError, match=f"more than {MAX_OPCODES} opcodes"):
        read_training_args(path)


def test_read_training_args_survives_exponential_nesting(tmp_path: Path) -> None:
    bomb = b")q\x000" + b"h\x00h\x00\x86q\x000" * 5000 + b"h\x00"  # () in () in () ...
    assert read(b"\x80\x02" + bomb + b".", tmp_path).step_separator is None
    state = b"}X\x0e\x00\x00\x00step_separator" + bomb + b"s"
    found = read(b"\x80\x02cx\ny\n)\x81" + state + b"b.", tmp_path)
    assert "tuple" in found.unreadable["step_separator"]


def test_read_training_args_refuses_a_huge_file(tmp_path: Path) -> None:
    path = tmp_path / "training_args.bin"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match="is larger than 16777216 bytes"):
        read_training_args(path)


def test_read_training_args_refuses_a_zip_bomb(tmp_path: Path) -> None:
    path = zipped(bytes(64 << 20), tmp_path / "training_args.bin", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MAX_BYTES
    with pytest.raises(CheckpointError, match=r"holds a compressed data\.pkl"):
        read_training_args(path)


def test_read_training_args_refuses_a_zip_without_its_pickle(tmp_path: Path) -> None:
    path = tmp_path / "training_args.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("training_args/version", "3")
    with pytest.raises(CheckpointError, match=r"must hold one data\.pkl, got 0"):
        read_training_args(path)


def test_read_training_args_refuses_two_pickles(tmp_path: Path) -> None:
    path = tmp_path / "training_args.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("b/data.pkl", b"N.")
    with pytest.raises(CheckpointError, match=r"must hold one data\.pkl, got 2"):
        read_training_args(path)


def test_read_training_args_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(.+\); it was not executed"):
        read_training_args(tmp_path)


def test_read_training_args_refuses_a_broken_zip(tmp_path: Path) -> None:
    whole = zipped(pickle.dumps(Config()), tmp_path / "whole.bin").read_bytes()
    path = tmp_path / "training_args.bin"
    for cut in range(2, len(whole), 37):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="is not a readable zip file"):
            read_training_args(path)


def test_read_training_args_survives_every_kind_of_damage(tmp_path: Path) -> None:
    """A few thousand damaged files: a value or a CheckpointError, and nothing else."""
    choose = random.Random(2)
    whole = zipped(pickle.dumps(Config(), protocol=2), tmp_path / "whole.bin").read_bytes()
    bare = [pickle.dumps(Config(), protocol=p) for p in (0, 2, 4)]
    path = tmp_path / "training_args.bin"
    outcomes = set()
    for round_ in range(2500):
        data = bytearray(whole if round_ % 4 == 0 else choose.choice(bare))
        for _ in range(choose.randint(1, 12)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        path.write_bytes(data)
        try:
            outcomes.add(type(read_training_args(path)))
        except CheckpointError:
            outcomes.add(CheckpointError)
    assert outcomes == {TrainingArgs, CheckpointError}


def test_read_training_args_survives_random_opcodes(tmp_path: Path) -> None:
    choose = random.Random(3)
    path = tmp_path / "training_args.bin"
    opcodes = b"\x00\n().0012ABCDEFGIJKLMNPQRSTUVX]abcdeghijlopqrstu}" + bytes(range(0x80, 0x99))
    for _ in range(2500):
        body = bytes(choose.choice(opcodes) for _ in range(choose.randint(1, 60)))
        path.write_bytes(b"\x80\x04" + body + b".")
        try:
            read_training_args(path)
        except CheckpointError:
            continue

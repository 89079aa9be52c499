"""Read what TRL's trainer was told from ``training_args.bin``, without executing any of it.

In: the file that ``Trainer.save_model`` writes beside the weights, a pickle inside a zip (older
torch: bare pickles one after another). Out: the few plain values a recipe needs. A pickle is a
program; here its opcodes are walked with ``pickletools`` on a stack of inert values: strings,
numbers and dicts stand for themselves, every class, call and persistent object is a
:class:`_Opaque` that is never looked up. Nothing is imported by name and torch is not needed.
"""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError

TRAINING_ARGS_NAME: Final = "training_args.bin"
MAX_BYTES: Final = 16 * 1024 * 1024  # a real file has 6 kB
MAX_OPCODES: Final = 100_000  # a real file has 500

_MISSING: Final = "the file does not say it"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingArgs:
    """Plain values found in one file; None where there is none.

    ``step_separator``, ``max_length`` and ``train_on_last_step_only`` are PRMConfig's.
    ``class_name``: the class of the pickled object, as the file spells it. ``unreadable``: for
    each of the three values that is None though the file may say otherwise, the reason.
    """

    step_separator: str | None
    max_length: int | None
    train_on_last_step_only: bool | None
    class_name: str | None
    source: Path
    unreadable: Mapping[str, str]


@dataclass(slots=True)
class _Opaque:
    """Something a pickle would import, call or load: only its name and its state are kept."""

    name: str | None = None
    state: dict[str, Any] = field(default_factory=dict)


class _Mark:
    """Where a MARK opcode stands on the stack."""


class _MalformedError(ValueError):
    """The opcodes are not a pickle."""


def read_training_args(path: Path) -> TrainingArgs | None:
    """Read ``training_args.bin``; None when there is no such file.

    Nothing in the file is executed. A value that is not plain is reported, never guessed.

    Raises:
        CheckpointError: when the file is not a pickle, or is absurdly large.
    """
    data = _pickled(path)
    if data is None:
        return None
    try:
        # a bare file starts with a magic number, a protocol and the byte order; the object is next
        with warnings.catch_warnings():
            # pickletools decodes the escapes of garbage, and Python warns of each it does not know
            warnings.simplefilter("ignore", DeprecationWarning)
            roots = list(_roots(data))
    except ValueError as error:
        raise _refusal(path, f"is not a readable pickle ({error})") from error
    instances = [root for root in roots if isinstance(root, _Opaque)]
    root = instances[0] if instances else _Opaque()
    unreadable: dict[str, str] = {}
    separator = _plain(root, "step_separator", str, unreadable)
    max_length = _plain(root, "max_length", int, unreadable)
    last_only = _plain(root, "train_on_last_step_only", bool, unreadable)
    return TrainingArgs(
        step_separator=separator,
        max_length=max_length,
        train_on_last_step_only=last_only,
        class_name=root.name,
        source=path,
        unreadable=unreadable,
    )


def _plain(root: _Opaque, key: str, kind: type, unreadable: dict[str, str]) -> Any:
    if key not in root.state:
        unreadable[key] = _MISSING
        return None
    value = root.state[key]
    if type(value) is kind:
        return value
    if value is None and key == "max_length":  # a setting of its own: never truncate
        return None
    # the type alone: the repr of nested values that share parts can be exponentially long
    found = value.name if isinstance(value, _Opaque) else type(value).__name__
    unreadable[key] = f"it is not a plain {kind.__name__} but {found or 'a computed value'}"
    return None


def _refusal(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} {what}; it was not executed. Say what the separator was with "
        r"--separator '\n' (TRL's default), or restore the file from the training run"
    )


def _pickled(path: Path) -> bytes | None:
    """The pickle inside the file, or None when there is no file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise _refusal(path, f"is larger than {MAX_BYTES} bytes, which no training arguments are")
    if not data.startswith(b"PK"):
        return data
    try:
        pickled = _stored_member(path, data)
    except (zipfile.BadZipFile, struct.error, EOFError, RuntimeError, OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _refusal(path, f"is not a readable zip file ({error})") from error
    return pickled


def _stored_member(path: Path, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = [m for m in archive.infolist() if m.filename.split("/")[-1] == "data.pkl"]
        if len(found) != 1:
            raise _refusal(path, f"must hold one data.pkl, got {len(found)}")
        # torch.save never compresses; so nothing is ever unpacked to more than it was
        if found[0].compress_type != zipfile.ZIP_STORED:
            raise _refusal(path, "holds a compressed data.pkl, which torch.save never writes")
        return archive.read(found[0])


def _roots(data: bytes) -> Iterator[Any]:
    """The object each pickle in ``data`` would give, one after another, up to the first instance.

    Raises:
        ValueError: when the opcodes are not a pickle.
    """
    if not data:
        raise _MalformedError("it is empty")
    stream = io.BytesIO(data)
    budget = MAX_OPCODES
    while stream.tell() < len(data):
        machine = _Machine()
        for opcode, argument, _ in pickletools.genops(stream):
            budget -= 1
            if budget < 0:
                raise _MalformedError(f"more than {MAX_OPCODES} opcodes")
            machine.step(opcode, argument)
        root = machine.stack[-1] if machine.stack else None
        yield root
        if isinstance(root, _Opaque):  # storages of tensors follow; they are no pickles
            return


class _Machine:
    """A pickle's stack and memo, with every value inert."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if not self.stack:
            raise _MalformedError("an opcode takes a value from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise _MalformedError("an opcode changes a value that is not there")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        values: list[Any] = []
        while not isinstance(value := self.pop(), _Mark):
            values.append(value)
        values.reverse()
        return values

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Apply one opcode."""
        handler = _HANDLERS.get(opcode.name)
        if handler is not None:
            handler(self, argument)
        else:
            self._generic(opcode)

    def _generic(self, opcode: pickletools.OpcodeInfo) -> None:
        # what pickletools says the opcode takes and leaves; whatever it makes is opaque
        before = opcode.stack_before
        if pickletools.stackslice in before:
            # [..., mark, slice]: everything down to the mark, then what lies below it
            self.pop_to_mark()
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            self.pop()
        for _ in opcode.stack_after:
            self.stack.append(_Opaque())


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.pop_to_mark()


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _put(machine: _Machine, index: Any) -> None:
    machine.memo[int(index)] = machine.top()


def _get(machine: _Machine, index: Any) -> None:
    if int(index) not in machine.memo:
        raise _MalformedError(f"memo {index} is read before it is written")
    machine.stack.append(machine.memo[int(index)])


def _set_pairs(target: Any, pairs: list[Any]) -> None:
    if isinstance(target, dict):
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(key, str):
                target[key] = value


def _setitem(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _set_pairs(machine.top(), [key, value])


def _setitems(machine: _Machine, _: Any) -> None:
    pairs = machine.pop_to_mark()
    _set_pairs(machine.top(), pairs)


def _dict(machine: _Machine, _: Any) -> None:
    made: dict[str, Any] = {}
    _set_pairs(made, machine.pop_to_mark())
    machine.stack.append(made)


def _global(machine: _Machine, argument: Any) -> None:
    machine.stack.append(_Opaque(name=str(argument).replace(" ", ".")))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    known = isinstance(name, str) and isinstance(module, str)
    machine.stack.append(_Opaque(name=f"{module}.{name}" if known else None))


def _instance(machine: _Machine, taken: int) -> None:
    # NEWOBJ takes (class, args), NEWOBJ_EX (class, args, kwargs)
    for _ in range(taken - 1):
        machine.pop()
    made_from = machine.pop()
    name = made_from.name if isinstance(made_from, _Opaque) else None
    machine.stack.append(_Opaque(name=name))


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.pop(), machine.pop()
    name = function.name if isinstance(function, _Opaque) else None
    if name == "copyreg._reconstructor" or name == "copy_reg._reconstructor":
        # how protocols 0 and 1 make a plain instance: (class, base, state of the base)
        first = arguments[0] if isinstance(arguments, tuple) and arguments else None
        name = first.name if isinstance(first, _Opaque) else None
        machine.stack.append(_Opaque(name=name))
    else:
        machine.stack.append(_Opaque(name=f"{name}(...)" if name else None))


def _build(machine: _Machine, _: Any) -> None:
    state = machine.pop()
    target = machine.top()
    if not isinstance(target, _Opaque):
        return
    parts = state if isinstance(state, tuple) else (state,)  # (state, slots state)
    for part in parts:
        if isinstance(part, dict):
            target.state.update(part)


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return make


_NUMBERS: Final = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT")
_TEXTS: Final = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_HANDLERS: Final[Mapping[str, Callable[[_Machine, Any], None]]] = {
    **dict.fromkeys((*_NUMBERS, "BINFLOAT", *_TEXTS), lambda m, a: m.stack.append(a)),
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "MARK": lambda m, _: m.stack.append(_Mark()),
    "POP_MARK": _pop_mark,
    "DUP": lambda m, _: m.stack.append(m.top()),
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "DICT": _dict,
    "SETITEM": _setitem,
    "SETITEMS": _setitems,
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_to_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "NEWOBJ": lambda m, _: _instance(m, 2),
    "NEWOBJ_EX": lambda m, _: _instance(m, 3),
    "REDUCE": _reduce,
    "BUILD": _build,
    "STOP": lambda m, _: None,
}

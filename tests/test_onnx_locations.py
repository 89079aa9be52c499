"""The wire scanner finds every external tensor that the real onnx library finds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper
from package_builder import external_tensor, tiny_model

from prm_edge_runtime import onnx_locations
from prm_edge_runtime.errors import PackageFormatError
from prm_edge_runtime.onnx_locations import external_locations, scan

# ---- the reference: onnx's own classes, walked by reflection, knowing nothing of our table


def messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            inner = [value] if isinstance(value, Message) else value
            for item in inner:
                yield from messages(item)


def reference(model: Message) -> set[str]:
    return {
        entry.value
        for message in messages(model)
        if isinstance(message, TensorProto)
        for entry in message.external_data
        if entry.key == "location"
    }


def test_table_holds_every_way_from_a_model_to_a_tensor() -> None:
    """A new field in a newer onnx.proto through which a tensor could hide fails here."""
    names = {
        "ModelProto": "model",
        "TrainingInfoProto": "training",
        "GraphProto": "graph",
        "FunctionProto": "function",
        "NodeProto": "node",
        "AttributeProto": "attribute",
        "SparseTensorProto": "sparse",
        "TensorProto": "tensor",
    }
    descriptors = {name: getattr(onnx, name).DESCRIPTOR for name in names}

    def leads_to_tensor(descriptor: Any, seen: frozenset[str]) -> bool:
        if descriptor.name == "TensorProto":
            return True
        if descriptor.name in seen:
            return False
        inner = [f.message_type for f in descriptor.fields if f.message_type is not None]
        return any(leads_to_tensor(d, seen | {descriptor.name}) for d in inner)

    for name, descriptor in descriptors.items():
        expected = {
            field.number: names[field.message_type.name]
            for field in descriptor.fields
            if field.message_type is not None and leads_to_tensor(field.message_type, frozenset())
        }
        if name == "TensorProto":
            expected = {descriptor.fields_by_name["external_data"].number: "entry"}
        assert onnx_locations._CHILDREN[names[name]] == expected, name
    tensor = TensorProto.DESCRIPTOR.fields_by_name
    assert tensor["data_location"].number == onnx_locations._DATA_LOCATION
    assert onnx_locations._EXTERNAL == TensorProto.EXTERNAL


# ---- one place at a time


def external(name: str) -> TensorProto:
    return external_tensor(name, f"{name}.bin")


def sparse(name: str, part: str) -> SparseTensorProto:
    inside = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    values, indices = (external(name), inside) if part == "values" else (inside, external(name))
    return SparseTensorProto(values=values, indices=indices, dims=[8])


def constant(**fields: Any) -> NodeProto:
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(AttributeProto(name="value", **fields))
    return node


def in_initializer(model: ModelProto) -> None:
    model.graph.initializer.append(external("init"))


def in_constant(model: ModelProto) -> None:
    model.graph.node.append(constant(type=AttributeProto.TENSOR, t=external("const")))


def in_tensor_list(model: ModelProto) -> None:
    model.graph.node.append(constant(type=AttributeProto.TENSORS, tensors=[external("list")]))


def in_sparse_constant(model: ModelProto) -> None:
    model.graph.node.append(constant(sparse_tensor=sparse("sparse_const", "values")))


def in_sparse_list(model: ModelProto) -> None:
    model.graph.node.append(constant(sparse_tensors=[sparse("sparse_list", "indices")]))


def in_sparse_initializer(model: ModelProto) -> None:
    model.graph.sparse_initializer.append(sparse("sparse_values", "values"))
    model.graph.sparse_initializer.append(sparse("sparse_indices", "indices"))


def in_subgraph(model: ModelProto) -> None:
    inner = tiny_model(None).graph
    inner.initializer.append(external("branch"))
    deeper = tiny_model(None).graph
    deeper.node.append(constant(t=external("deeper")))
    inner.node.append(constant(graphs=[deeper]))
    node = helper.make_node(
        "If", ["b"], ["z"], then_branch=inner, else_branch=tiny_model(None).graph
    )
    model.graph.node.append(node)


def in_function(model: ModelProto) -> None:
    function = model.functions.add(name="f", domain="local")
    function.node.append(constant(t=external("in_function")))
    function.attribute_proto.append(AttributeProto(name="d", t=external("function_default")))


def in_training(model: ModelProto) -> None:
    info = model.training_info.add()
    info.initialization.CopyFrom(tiny_model("begin.bin").graph)
    info.algorithm.CopyFrom(tiny_model("algorithm.bin").graph)


def in_odd_names(model: ModelProto) -> None:
    for location in ("../up", "/etc/passwd", "größe.bin", "", "a b"):
        model.graph.initializer.append(external_tensor("odd", location))


PLACES = (
    in_initializer,
    in_constant,
    in_tensor_list,
    in_sparse_constant,
    in_sparse_list,
    in_sparse_initializer,
    in_subgraph,
    in_function,
    in_training,
    in_odd_names,
)


@pytest.mark.parametrize("place", PLACES)
def test_scan_finds_external_data(place: Callable[[ModelProto], None]) -> None:
    model = tiny_model(None)
    assert scan(model.SerializeToString(), where="m") == set()
    place(model)
    assert scan(model.SerializeToString(), where="m") == reference(model) != set()


def test_scan_finds_everything_at_once(tmp_path: Path) -> None:
    model = tiny_model("model.onnx.data")
    for place in PLACES:
        place(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert external_locations(path) == reference(model)
    assert len(external_locations(path)) == 19


def test_scan_agrees_with_onnx_on_a_saved_model(tmp_path: Path) -> None:
    model = tiny_model(None)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    assert external_locations(path) == {"weights"}


def test_scan_reports_a_location_even_where_onnx_would_ignore_it() -> None:
    model = tiny_model("a.bin")
    model.graph.initializer[0].data_location = TensorProto.DEFAULT
    assert scan(model.SerializeToString(), where="m") == {"a.bin"}


def test_scan_takes_the_last_of_repeated_keys_as_protobuf_does() -> None:
    # one entry whose key and value are written twice
    twice = b"\x0a\x03foo\x0a\x08location\x12\x01a\x12\x04../b"
    tensor = b"\x6a" + bytes([len(twice)]) + twice
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    raw = b"\x3a" + bytes([len(graph)]) + graph
    assert scan(raw, where="m") == reference(ModelProto.FromString(raw)) == {"../b"}


def test_scan_does_not_read_through_weights() -> None:
    model = tiny_model(None)
    hidden = external_tensor("x", "never.bin").SerializeToString()
    model.graph.initializer[0].raw_data = hidden * 100
    assert scan(model.SerializeToString(), where="m") == set()


def test_scan_reads_as_deep_as_protobuf_and_no_deeper() -> None:
    graph = tiny_model("bottom.bin").graph.SerializeToString()

    def field(number: int, content: bytes) -> bytes:
        size, out = len(content), bytes([number << 3 | 2])
        while size >= 0x80:
            out += bytes([size & 0x7F | 0x80])
            size >>= 7
        return out + bytes([size]) + content

    for _ in range(30):  # graph inside attribute inside node inside graph
        graph = field(1, field(5, field(6, graph)))
    raw = field(7, graph)
    assert scan(raw, where="m") == reference(ModelProto.FromString(raw)) == {"bottom.bin"}
    for _ in range(3000):
        graph = field(1, field(5, field(6, graph)))
    with pytest.raises(PackageFormatError, match="its messages are nested more than 100 deep"):
        scan(field(7, graph), where="m")
    with pytest.raises(DecodeError):
        ModelProto.FromString(field(7, graph))


# ---- refusals


def graph_of(tensor: bytes) -> bytes:
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    return b"\x3a" + bytes([len(graph)]) + graph


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "m is not an ONNX model: it holds no graph"),
        (b"\x08\x0a", "it holds no graph"),
        (b"\x3a\x05ab", "the field at byte 2 is cut short"),
        (b"\x3a", "it ends in the middle of a number, at byte 1"),
        (b"\x3a\xff", "it ends in the middle of a number, at byte 2"),
        (b"\x08" + b"\xff" * 11, "a number of more than 10 bytes at byte 11"),
        (b"\x00\x00", "byte 1 holds no valid field number"),
        (b"\x80\x80\x80\x80\x80\x01\x00", "byte 6 holds no valid field number"),
        (b"\x0b", "byte 1 starts a field of unknown kind 3"),
        (b"\x0f", "byte 1 starts a field of unknown kind 7"),
        (b"\x0d\x00", "the field at byte 1 is cut short"),
        (b"\x09\x00\x00\x00\x00", "the field at byte 1 is cut short"),
        (b"<!DOCTYPE html><html>", "is not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1", "is not an ONNX model"),
        (b"\x00" * 64, "is not an ONNX model"),
        (graph_of(b"\x70\x01"), "a tensor with external data names no location"),
        (graph_of(b"\x6a\x0d\x0a\x08location\x12\x01\xff"), "in text that is not UTF-8"),
    ],
    ids=lambda value: repr(value)[:32],
)
def test_scan_refuses(raw: bytes, message: str) -> None:
    with pytest.raises(PackageFormatError, match=message):
        scan(raw, where="m")


def test_scan_refuses_an_endless_location() -> None:
    model = tiny_model("a" * 70_000)
    with pytest.raises(PackageFormatError, match="described in more than 65536 bytes"):
        scan(model.SerializeToString(), where="m")


def test_external_locations_refuses_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    with pytest.raises(PackageFormatError, match=r"model.onnx is not an ONNX model: .* is empty"):
        external_locations(path)


def test_external_locations_names_the_file_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x3a")
    with pytest.raises(PackageFormatError, match=r"^pkg/model.onnx is not an ONNX model"):
        external_locations(path, where="pkg/model.onnx")


def test_external_locations_passes_on_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        external_locations(tmp_path / "model.onnx")


# ---- properties


def fill(message: Message, rng: random.Random, depth: int) -> None:
    """Give random fields of any onnx message random content, by reflection."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.5:
            continue
        repeated = field.is_repeated
        if field.message_type is not None:
            if depth == 0:
                continue
            slot = getattr(message, field.name)
            for _ in range(rng.randint(1, 2) if repeated else 1):
                inner: Any = slot.add() if repeated else slot
                inner.SetInParent()
                fill(inner, rng, depth - 1)
            continue
        value = scalar(field, rng)
        if repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    if isinstance(message, TensorProto):
        add_location(message, rng)


def add_location(tensor: TensorProto, rng: random.Random) -> None:
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    if rng.random() < 0.7:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="offset", value="0")
        tensor.external_data.add(key="location", value=f"file{rng.randint(0, 10**9)}")


def scalar(field: Any, rng: random.Random) -> Any:
    if field.enum_type is not None:
        return rng.choice([value.number for value in field.enum_type.values])
    makers: dict[int, Callable[[], Any]] = {
        field.CPPTYPE_STRING: lambda: b"\x3a\x05xy" if field.type == field.TYPE_BYTES else "é:\x05",
        field.CPPTYPE_FLOAT: lambda: rng.random(),
        field.CPPTYPE_DOUBLE: lambda: rng.random(),
        field.CPPTYPE_INT32: lambda: rng.randint(-(2**31), 2**31 - 1),
        field.CPPTYPE_INT64: lambda: rng.randint(-(2**63), 2**63 - 1),
        field.CPPTYPE_UINT64: lambda: rng.randint(0, 2**64 - 1),
    }
    return makers[field.cpp_type]()


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_scan_agrees_with_onnx_on_any_message(seed: int) -> None:
    model = ModelProto()
    fill(model, random.Random(seed), depth=6)
    model.graph.name = "g"
    assert scan(model.SerializeToString(), where="m") == reference(model)


def everything() -> bytes:
    model = tiny_model("model.onnx.data")
    for place in PLACES:
        place(model)
    raw: bytes = model.SerializeToString()
    return raw


EVERYTHING = everything()


def check_against_onnx(raw: bytes) -> None:
    """Refuse, or find at least what onnx finds; nothing else may happen."""
    try:
        found = scan(raw, where="m")
    except PackageFormatError:
        return
    try:
        model = ModelProto.FromString(raw)
    except DecodeError:
        return
    assert reference(model) <= found


def test_scan_refuses_or_agrees_on_every_truncation() -> None:
    for size in range(len(EVERYTHING)):
        check_against_onnx(EVERYTHING[:size])


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_scan_refuses_or_agrees_on_damaged_models(data: st.DataObject) -> None:
    raw = bytearray(EVERYTHING)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    check_against_onnx(bytes(raw))


@given(st.binary(max_size=64))
@settings(max_examples=200, deadline=None)
def test_scan_refuses_or_agrees_on_garbage(raw: bytes) -> None:
    check_against_onnx(raw)

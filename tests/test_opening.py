"""The tokens that every record begins with, whose keys and values a package may hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from package_builder import tiny_manifest, tiny_variant
from test_engine import DECODER, INPUTS, OUTPUTS, FakeSession, ids_of, reads_of

from prm_edge_runtime import Scorer
from prm_edge_runtime.encoding import RecipeEncoder
from prm_edge_runtime.engine import DecoderEngine, Opening, read_opening
from prm_edge_runtime.errors import EngineError, PackageFormatError, RecipeError
from prm_edge_runtime.manifest import FileEntry, Manifest, Prefix
from prm_edge_runtime.package import open_package
from prm_edge_runtime.recipe import Slot, Text, Tokens

V1 = Path(__file__).parent / "packages" / "v1"
KV = np.random.default_rng(4).standard_normal((4, 1, 3, 2, 8)).astype(np.float32)
OPENING = Opening(ids=ids_of(2), kv=KV)


# --- what is left to run


@pytest.mark.parametrize(
    ("past", "count", "left"),
    [(0, 21, 19), (0, 2, 0), (0, 1, 0), (1, 6, 5), (2, 6, 6), (9, 3, 3)],
)
def test_opening_is_not_run(past: int, count: int, left: int) -> None:
    ids = ids_of(40)[past : past + count]
    reads = reads_of(count - 1) if left else reads_of()
    rest, shifted = OPENING.without(past, ids, reads)
    assert rest.tolist() == ids[count - left :].tolist()
    assert shifted.tolist() == ([left - 1] if left else [])


@pytest.mark.parametrize(
    ("ids", "reads"),
    [(ids_of(5) + 1, reads_of(4)), (ids_of(5), reads_of(1, 4)), (ids_of(1), reads_of(0))],
    ids=["other", "read", "short"],
)
def test_opening_that_a_record_does_not_have(ids: Any, reads: Any) -> None:
    with pytest.raises(EngineError, match=r"a record begins with the tokens \[10.*begin with \[10"):
        OPENING.without(0, ids, reads)


# --- the whole way, on the frozen package


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scorer, Scorer]:
    """The frozen package, as it is and with the keys and values of its first token stored."""
    plain = Scorer.load(V1, threads=1)
    variant = plain.package.manifest.variants[0]
    bos = next(part for part in plain.recipe.prompt if isinstance(part, Tokens))
    engine = plain._open_decoder()
    cache = engine.new_cache(16)
    engine.extend(cache, 0, np.array([*bos.ids, 5], dtype=np.int64), reads_of())
    count = len(bos.ids)
    opening = Opening(ids=np.array(bos.ids), kv=cache.kv[:, :, :, :count].copy())
    other = DecoderEngine(engine._session, variant, 2, opening=opening)
    return plain, Scorer(plain.package, variant, other, "argument")


def test_opening_from_the_graph_itself_gives_its_scores(begun: tuple[Scorer, Scorer]) -> None:
    plain, with_opening = begun
    steps = [f"{n} apples cost ${n}." for n in range(40)]
    for count in (1, 3, 40):  # the last in several pieces
        wanted = plain.score("Solve 2x + 3 = 11.", steps[:count])
        got = with_opening.score("Solve 2x + 3 = 11.", steps[:count])
        np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-6)


def test_opening_is_exact_however_it_is_cut(begun: tuple[Scorer, Scorer]) -> None:
    scorer = begun[1]
    steps = [f"{n} apples cost ${n}." + " So x = 4." * (n % 4) for n in range(12)]
    whole = scorer.score("Solve 2x + 3 = 11.", steps)
    with scorer.session("Solve 2x + 3 = 11.") as session:
        assert [session.add(step) for step in steps] == list(whole.scores)
    records = [("Solve 2x + 3 = 11.", steps[:count]) for count in range(1, 13)]
    for record, result in zip(records, scorer.score_many(records), strict=True):
        assert result.scores == whole.scores[: len(record[1])]


def test_opening_needs_room_in_the_cache(begun: tuple[Scorer, Scorer]) -> None:
    engine = begun[1]._open_decoder()
    count = len(engine._opening.ids)
    with pytest.raises(
        EngineError, match=rf"{count} tokens do not fit into a cache of {count - 1}"
    ):
        engine.extend(
            engine.new_cache(count - 1),
            0,
            engine._opening.ids,
            reads_of(),
        )


# --- the file


def test_opening_file_round_trip(tmp_path: Path) -> None:
    KV.astype("<f4").tofile(tmp_path / "prefix.f32")
    variant = dataclasses.replace(
        DECODER, prefix=Prefix(file="cpu-fp32/prefix.f32", ids=(100, 101))
    )
    found = read_opening(tmp_path, variant)
    assert found is not None
    assert found.ids.tolist() == [100, 101]
    assert found.kv.tobytes() == KV.tobytes()
    assert read_opening(tmp_path, DECODER) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (KV.tobytes()[:-4], "must hold 192 finite numbers"),
        (np.full(192, np.nan, dtype="<f4").tobytes(), "must hold 192 finite numbers"),
    ],
    ids=["missing", "short", "nan"],
)
def test_opening_file_that_is_wrong(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "prefix.f32").write_bytes(content)
    variant = dataclasses.replace(
        DECODER, prefix=Prefix(file="cpu-fp32/prefix.f32", ids=(100, 101))
    )
    with pytest.raises(PackageFormatError, match=message):
        read_opening(tmp_path, variant)


# --- the manifest


def manifest_of(
    size: int = 64, interface: str = "decoder", device: str = "cpu", **changes: Any
) -> dict[str, Any]:
    """One token of the tiny variant: 2 * 1 layers, 1 head, 4 numbers of 4 bytes."""
    files = ("cpu-fp32/model.onnx", "cpu-fp32/model.onnx.data", "cpu-fp32/prefix.f32")
    prefix = {"file": files[2], "ids": (7, 8), **changes}
    shape = dict.fromkeys(("layers", "kv_heads", "head_dim"), 0) if interface != "decoder" else {}
    variant = tiny_variant(
        files=files, prefix=Prefix(**prefix), interface=interface, device=device, **shape
    )
    entries = {
        name: FileEntry(size=size, sha256="0" * 64)
        for name in (*files, "tokenizer.json", "selftest.json")
    }
    return dataclasses.replace(tiny_manifest(), variants=(variant,), files=entries).to_dict()


def test_opening_in_a_manifest() -> None:
    data = manifest_of()
    assert Manifest.from_dict(data).to_dict() == data
    assert data["variants"]["cpu-fp32"]["prefix"] == {"file": "cpu-fp32/prefix.f32", "ids": [7, 8]}
    without = tiny_manifest().to_dict()["variants"]["cpu-fp32"]
    assert "prefix" not in without  # so a reader that does not know it reads what has none


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 60}, r"prefix\.f32' must have 64 bytes for its ids, has 60"),
        ({"file": "cpu-fp32/other.f32"}, r"other\.f32' is not among the files of the variant"),
        ({"file": "prefix.f32"}, r"'prefix\.f32' must lie beside the graph"),
        ({"ids": ()}, r"ids.*must be 1 to 127 tokens, got 0"),
        ({"ids": (7,) * 128}, r"ids.*must be 1 to 127 tokens, got 128"),
        ({"ids": (7, -1)}, r"ids.*must not be negative"),
        ({"ids": (7, "8")}, r"ids.*must hold only whole numbers"),
        ({"more": 1}, "prefix.*unknown key"),
        ({"interface": "stateless"}, "a stateless graph has no cache to begin with one"),
        ({"device": "cuda"}, "is for variants of the CPU, not of cuda"),
    ],
)
def test_opening_that_a_manifest_cannot_have(changes: dict[str, Any], message: str) -> None:
    more = {"more": changes.pop("more")} if "more" in changes else {}
    data = manifest_of(**changes)
    data["variants"]["cpu-fp32"]["prefix"].update(more)
    with pytest.raises(PackageFormatError, match=message):
        Manifest.from_dict(data)


# --- the recipe


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ((Tokens(ids=(0,), text="<|begin|>"), Slot(name="problem")), [0]),
        ((Slot(name="problem"), Tokens(ids=(0,), text="<|begin|>")), []),
        ((Text(text="Q: "), Slot(name="problem")), []),
    ],
    ids=["begins", "ends", "joins"],
)
def test_opening_of_a_recipe(prompt: tuple[Any, ...], wanted: list[int]) -> None:
    package = open_package(V1)
    recipe = dataclasses.replace(package.manifest.recipe, encode="joint", prompt=prompt)
    encoder = RecipeEncoder(package.read_bytes("tokenizer.json"), recipe)
    assert encoder.opening().tolist() == wanted
    for problem in ("", "2x = 8", "begin"):
        assert encoder.encode(problem, ["x = 4"]).ids[: len(wanted)].tolist() == wanted
    encoder.check_opening(tuple(wanted))
    with pytest.raises(RecipeError, match=r"keys and values of the tokens \[363\], but records"):
        encoder.check_opening((363,))


def test_opening_with_text_ends_at_a_token() -> None:
    package = open_package(V1)
    bos = Tokens(ids=(0,), text="<|begin|>")
    prompt = (bos, Text(text="So, 3 apples"), bos, Text(text="Q: "), Slot(name="problem"))
    recipe = dataclasses.replace(package.manifest.recipe, encode="joint", prompt=prompt)
    encoder = RecipeEncoder(package.read_bytes("tokenizer.json"), recipe)
    opening = encoder.opening().tolist()
    assert opening[0] == opening[-1] == 0
    assert len(opening) > 3
    for problem in ("", "2x = 8", " apples"):
        assert encoder.encode(problem, ["x"]).ids[: len(opening)].tolist() == opening


def test_opening_is_checked_when_a_package_is_loaded() -> None:
    package = open_package(V1)
    variant = dataclasses.replace(
        package.manifest.variants[0], prefix=Prefix(file="cpu-fp32/prefix.f32", ids=(5,))
    )
    with pytest.raises(RecipeError, match=r"tokens \[5\], but records of its recipe begin with"):
        Scorer(package, variant, FakeSession(INPUTS, OUTPUTS), "argument")  # type: ignore[arg-type]

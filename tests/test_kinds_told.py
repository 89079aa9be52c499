"""Kinds of error where people and programs read them: files, the command line, the server."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_scorer import DIFFERENCE, LONG, NAMES, fake_scorer
from session_scorers import LATE, make

from prm_edge.cli import cli
from prm_edge.cli.drawing import marked
from prm_edge.error_words import WORDS, all_in_words, in_words, looks_like
from prm_edge.jobs import score_records
from prm_edge.records import read_lines
from prm_edge.writers import to_parquet
from prm_edge_runtime import Scorer
from prm_edge_runtime.calibration import Calibration

PROBLEM = "Solve for x: 5 - 2(x - 3) = 1."
WRONG = ["5 - 2x + 6 = 1", "2 + 2 = 9", "-2x = 3", "x = 700"]  # the built-in flags some of them


def one(row: object, scorer: Scorer | None = None, **options: Any) -> dict[str, Any]:
    lines = read_lines(io.BytesIO(json.dumps(row).encode()))
    (line,) = score_records(scorer or fake_scorer(error_kinds=NAMES), lines, **options)
    data: dict[str, Any] = json.loads(line.to_json())
    return data


@pytest.fixture(scope="module")
def built_in() -> Iterator[Scorer]:
    with Scorer.load(threads=1) as scorer:
        assert scorer.error_kinds is not None
        yield scorer


@pytest.fixture(scope="module")
def flagged(built_in: Scorer) -> tuple[int, str]:
    """The first line of :data:`WRONG` that the built-in model names, and what it says."""
    kinds = built_in.score(PROBLEM, WRONG).error_kinds
    assert kinds is not None
    at = next(index for index, kind in enumerate(kinds) if kind is not None)
    return at, looks_like(str(kinds[at]))


# --- files


def test_record_has_the_kind_of_each_error() -> None:
    data = one({"problem": "p", "steps": ["0.9", "0.2", "0.3", LONG]})
    assert data["error_kinds"] == [None, "slip", "sign", None]
    assert "error_kinds" not in one({"problem": "p", "steps": ["0.2"]}, fake_scorer())


def test_record_has_the_first_errors_kind_alone_where_labels_end_there() -> None:
    scorer = fake_scorer(DIFFERENCE, error_kinds=NAMES)
    data = one({"problem": "p", "steps": ["0.9", "-0.2", "-0.3"]}, scorer)
    assert data["error_kinds"] == [None, "slip", None]


def test_threshold_decides_which_steps_have_a_kind() -> None:
    row = {"problem": "p", "steps": ["0.9", "0.2", "0.6"]}
    assert one(row, threshold=0.1)["error_kinds"] == [None, None, None]
    assert one(row, threshold=0.7)["error_kinds"] == [None, "slip", "slip"]


def test_candidates_have_their_kinds() -> None:
    data = one({"problem": "p", "candidates": [["0.9"], ["0.1", "0.8"]]})
    assert [c["error_kinds"] for c in data["candidates"]] == [[None], ["sign", None]]


def unsure(scorer: Scorer, band: tuple[float, float]) -> Scorer:
    fitted = {"cpu-fp32": Calibration(temperature=None, unsure=band, fitted={})}
    manifest = dataclasses.replace(scorer.package.manifest, calibration=fitted)
    scorer.package = dataclasses.replace(scorer.package, manifest=manifest)  # type: ignore[misc]
    return scorer


def test_unsure_step_has_no_kind() -> None:
    row = {"problem": "p", "steps": ["0.45", "0.2"]}
    data = one(row, unsure(fake_scorer(error_kinds=NAMES), (0.4, 0.6)), unsure=True)
    assert (data["verdict"], data["first_error"]) == ("unknown", None)
    assert data["error_kinds"] == [None, "slip"]  # surely wrong, whatever the one before it is
    scorer = unsure(fake_scorer(DIFFERENCE, error_kinds=NAMES), (-0.1, 0.1))
    row = {"problem": "p", "steps": ["-0.05", "-0.2"]}
    assert one(row, scorer, unsure=True)["error_kinds"] == [None, None]  # which is the first?
    row = {"problem": "p", "steps": ["0.9", "-0.2", "-0.4"]}
    assert one(row, scorer, unsure=True)["error_kinds"] == [None, "slip", None]


def test_parquet_has_a_column_of_kinds(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    rows = [
        one({"problem": "p", "steps": ["0.9", "0.2"]}),
        one({"problem": "p", "candidates": [["0.1"]]}),
        one({"problem": "p", "steps": ["0.2"]}, fake_scorer()),
    ]
    lines = tmp_path / "lines"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    to_parquet(lines, tmp_path / "out")
    read = parquet.read_table(tmp_path / "out").to_pylist()
    assert [row["error_kinds"] for row in read] == [[None, "slip"], None, None]
    assert read[1]["candidates"][0]["error_kinds"] == ["sign"]


def test_ray_dataset_has_a_column_of_kinds() -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs the extra ray")
    from prm_edge.ray.dataset import added_schema

    schema = added_schema(arrow, ("min",))
    assert schema.field("error_kinds").type == arrow.list_(arrow.string())
    row = {"error_kinds": [None, "slip"], "scored_candidates": [{"error_kinds": ["sign"]}]}
    (again,) = arrow.Table.from_pylist([row], schema=schema).to_pylist()
    assert again["error_kinds"] == [None, "slip"]
    assert again["scored_candidates"][0]["error_kinds"] == ["sign"]


# --- words


def test_every_kind_of_the_built_in_model_has_words(built_in: Scorer) -> None:
    assert set(built_in.error_kinds or ()) <= WORDS.keys()
    assert looks_like("sign") == "looks like a lost or flipped sign"


def test_unknown_kinds_are_said_as_they_are() -> None:
    assert in_words("unit_error") == "unit error"
    assert all_in_words(("sign", "Einheit")) == {
        "sign": "a lost or flipped sign",
        "Einheit": "Einheit",
    }


@pytest.mark.parametrize(
    ("index", "first", "kinds", "said"),
    [
        (0, None, None, ""),
        (1, 1, None, "   <- first error"),
        (1, 1, (None, "sign"), "   <- first error, looks like a lost or flipped sign"),
        (2, 1, (None, "sign", "slip"), "   <- looks like a slip in the sum"),
        (0, 1, (None, "sign"), ""),
    ],
)
def test_marked_steps(
    index: int, first: int | None, kinds: tuple[str | None, ...] | None, said: str
) -> None:
    assert marked(index, first, kinds) == said


# --- the command line


def test_score_writes_kinds_of_the_built_in_model(built_in: Scorer) -> None:
    row = json.dumps({"problem": PROBLEM, "steps": WRONG})
    result = CliRunner().invoke(cli, ["score", "-"], input=row)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["error_kinds"]
    assert found == list(built_in.score(PROBLEM, WRONG).error_kinds or ())
    assert any(found)


def test_try_says_what_an_error_looks_like(flagged: tuple[int, str]) -> None:
    at, words = flagged
    result = CliRunner().invoke(cli, ["try", PROBLEM], input="\n".join(WRONG) + "\n")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert f"<- first error, {words}" in lines[at]
    assert lines[-1] == f"flawed at step {at + 1}, which {words}: 4 steps"
    data = json.loads(
        CliRunner().invoke(cli, ["try", PROBLEM, "--json"], input="\n".join(WRONG) + "\n").stdout
    )
    assert data["error_kinds"][at] is not None


def test_demo_says_what_an_error_looks_like() -> None:
    result = CliRunner().invoke(cli, ["demo"])
    assert result.exit_code == 0, result.output
    errors = [line for line in result.stdout.splitlines() if "<- first error" in line]
    assert errors
    assert all("<- first error, looks like " in line for line in errors)
    data = json.loads(CliRunner().invoke(cli, ["demo", "--json"]).stdout)
    assert all("error_kinds" in item for item in data["records"] if "scores" in item)


def test_inspect_lists_the_kinds(built_in: Scorer, tiny_package: Path) -> None:
    shown = CliRunner().invoke(cli, ["inspect"]).stdout
    _, _, listed = shown.partition("\nkinds of error that it names\n")
    names = [line.split()[0] for line in listed.partition("\n\n")[0].splitlines()]
    assert tuple(names) == built_in.error_kinds
    assert "a lost or flipped sign" in listed
    assert "kinds of error" not in CliRunner().invoke(cli, ["inspect", str(tiny_package)]).stdout


# --- sessions that score anew


def test_session_that_scores_anew_names_too(tiny_package: Path) -> None:
    """A recipe that reads before the step, on a graph without kinds: nothing is named."""
    with make(tiny_package, LATE) as scorer, scorer.session("p") as session:
        session.add("a")
        assert not session.incremental
        assert session.error_kinds is None
        assert [kind for _, kind in session.peek_named(["b"])] == [None]


# --- the server


@pytest.fixture(scope="module")
def client(built_in: Scorer) -> Iterator[Any]:
    pytest.importorskip("starlette", reason="needs the extra serve")
    from server_scorers import started, wait_until_ready

    with started(built_in) as test_client:
        wait_until_ready(test_client)
        yield test_client


def test_server_answers_with_kinds(client: Any, built_in: Scorer) -> None:
    from server_scorers import post

    whole = list(built_in.score(PROBLEM, WRONG).error_kinds or ())
    asked = {"problem": PROBLEM, "steps": WRONG}
    assert post(client, "/v1/score", asked)["error_kinds"] == whole
    ranked = post(client, "/v1/rank", {"problem": PROBLEM, "candidates": [WRONG, WRONG[:1]]})
    assert ranked["candidates"][0]["error_kinds"] == whole
    info = client.get("/info").json()["error_kinds"]
    assert info == all_in_words(built_in.error_kinds or ())


def test_server_sessions_carry_kinds(client: Any, built_in: Scorer) -> None:
    from server_scorers import post

    whole = list(built_in.score(PROBLEM, WRONG).error_kinds or ())
    opened = post(client, "/v1/sessions", {"problem": PROBLEM, "steps": WRONG[:1]}, 201)
    assert opened["error_kinds"] == whole[:1]
    at = f"/v1/sessions/{opened['id']}"
    peeked = post(client, f"{at}/peek", {"steps": [WRONG[1]]})
    assert peeked["error_kinds"] == [whole[1]]
    added = post(client, f"{at}/steps", {"steps": WRONG[1:]})
    assert (len(added["added"]), added["error_kinds"]) == (3, whole)
    assert post(client, f"{at}/undo", {"n": 1})["error_kinds"] == whole[:-1]
    assert post(client, f"{at}/fork", {}, 201)["error_kinds"] == whole[:-1]
    assert client.get(at).json()["error_kinds"] == whole[:-1]


def test_server_says_nothing_of_kinds_without_them(tiny_package: Path) -> None:
    pytest.importorskip("starlette", reason="needs the extra serve")
    from server_scorers import post, started, wait_until_ready

    with make(tiny_package) as scorer, started(scorer) as client:
        wait_until_ready(client)
        told = [
            client.get("/info").json(),
            post(client, "/v1/score", {"problem": "p", "steps": ["a"]}),
            post(client, "/v1/sessions", {"problem": "p"}, 201),
        ]
        peek = post(client, f"/v1/sessions/{told[2]['id']}/peek", {"steps": ["a"]})
        assert not any("error_kinds" in item for item in (*told, peek))


def test_openapi_has_kinds_wherever_they_are_told(built_in: Scorer) -> None:
    from prm_edge.server.limits import Limits
    from prm_edge.server.openapi import schemas

    found = schemas(Limits(), built_in.recipe.aggregates)
    candidate = found["Ranking"]["properties"]["candidates"]["items"]
    for schema in (candidate, *(found[x] for x in ("Scores", "Session", "Added", "Peeked"))):
        assert schema["properties"]["error_kinds"]["items"]["type"] == ["string", "null"]
        assert "error_kinds" not in schema["required"]


def test_session_bytes_count_kinds(built_in: Scorer) -> None:
    from prm_edge.server.backend import KIND_BYTES, Backend

    named = Backend(built_in)
    manifest = dataclasses.replace(built_in.package.manifest, error_kinds=())
    package = dataclasses.replace(built_in.package, manifest=manifest)
    plain = Backend(Scorer(package, manifest.variants[0], built_in._open_engine(), "argument"))
    with built_in.session(PROBLEM) as session:
        for step in WRONG:
            session.add(step)
        more = named.session_bytes(session) - plain.session_bytes(session)
    assert more >= 4 * KIND_BYTES * len(built_in.error_kinds or ())

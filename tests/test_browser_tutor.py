"""The tutor in a real Chromium: what a student, a teacher, a screen reader and a kill -9 see."""

from __future__ import annotations

import json
import re
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

import uvicorn
from chromium import ROOT, WAIT_MS, Process, chromium, serve, tutor, violations
from equation_scorer import EquationScorer

from prm_edge.records import read_labelled
from prm_edge.server.app import create_app
from prm_edge.server.backend import Backend
from prm_edge.server.run import open_socket, url
from prm_edge_runtime import Scorer

sys.path.insert(0, str(ROOT / "examples" / "tutor"))
from pages import page_routes

pytestmark = pytest.mark.browser

SIGNS = "Solve for x: 5 - 2(x - 3) = 1."
CANCELLING = ["5 - 2x + 6 = 1", "11 - 2x = 1", "-2x = 10", "x = 5"]  # ends right
CLEAN = ["5 - 2x + 6 = 1", "11 - 2x = 1", "-2x = -10", "x = 5"]
PLAIN_WRONG = ["5 - 2x + 6 = 1", "2 + 2 = 9", "x = 700"]  # what any model flags some line of
WRONG = ["5 - 2x - 6 = 1", "-1 - 2x = 1", "-2x = 2", "x = -1"]
HOSTILE = '<img src=x onerror="document.title=1"></li><script>document.title=2</script> 2x = 6'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Makes pages; at the end none may have failed, or asked anybody but its own server."""
    contexts, problems = [], []

    def make(at: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(at) or problems.append(asked.url))
        page.on(
            "console",
            lambda said: "Content Security" in said.text and problems.append(said.text),
        )
        page.goto(at)
        page.wait_for_selector("body[data-ready]")
        return page

    yield make
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def built_in() -> Iterator[str]:
    """The tutor with the built-in model, in one process."""
    process = tutor("--threads", "1")
    process.wait_until_ready()
    yield process.url
    process.kill()


@pytest.fixture(scope="module")
def solver() -> Iterator[str]:
    """The tutor with a perfect model, in this process."""
    listening = open_socket("127.0.0.1", 0)
    app = create_app(Backend(cast(Scorer, EquationScorer())), pages=page_routes())
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield url(listening)
    server.should_exit = True
    thread.join(30)
    listening.close()


def begin(page: Any, problem: str) -> None:
    page.get_by_label("The problem, in words").fill(problem)
    page.get_by_role("button", name="Begin").click()


def type_line(page: Any, text: str, *, marked: bool = True) -> None:
    lines = page.locator("#lines > li")
    before = lines.count()
    page.get_by_label("Next line").fill(text)
    page.get_by_label("Next line").press("Enter")
    if marked:
        until_marked(page, before + 1)


def until_marked(page: Any, count: int) -> None:
    """Wait until there are so many lines, none of which waits."""
    page.locator("#lines:not(:has(.waiting))").wait_for()
    while page.locator("#lines > li").count() != count:
        page.wait_for_timeout(10)


def shown(page: Any, within: str = "#lines") -> list[tuple[str, float]]:
    """Text and score of each line, as the page has them in full."""
    return [
        (
            item.locator(".text").inner_text(),
            float(item.locator(".score").get_attribute("title").removeprefix("score ")),
        )
        for item in page.locator(f"{within} > li.line").all()
    ]


def flagged(page: Any, within: str = "#lines") -> list[int]:
    """Indices of the lines that are pointed out."""
    return [
        index
        for index, item in enumerate(page.locator(f"{within} > li.line").all())
        if "first" in item.get_attribute("class").split()
    ]


def ask(at: str, path: str, data: Any) -> Any:
    request = urllib.request.Request(
        at + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def write_drafts(page: Any, drafts: Sequence[Sequence[str]]) -> None:
    fields = page.locator("#drafts textarea")
    while fields.count() > len(drafts):
        page.get_by_role("button", name=f"Remove draft {fields.count()}").click()
    while fields.count() < len(drafts):
        page.get_by_role("button", name="Add a draft").click()
    for index, draft in enumerate(drafts):
        fields.nth(index).fill("\n".join(draft))
    page.get_by_role("button", name="Choose the soundest").click()
    page.wait_for_selector("#ranked > li")


# --- a student


def test_tutor_flags_the_sign_error_that_a_second_one_cancels(
    solver: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(solver)
    begin(page, SIGNS)
    seen = []
    for line in CANCELLING:
        type_line(page, line)
        seen.append(flagged(page))
    assert seen == [[], [], [2], [2]]  # as it lands, and ever after
    assert "Look here first" in page.locator("#lines > li").nth(2).inner_text()
    assert page.locator("#lines > li").nth(3).get_attribute("class") == "line good"
    assert page.locator("#summary").inner_text() == "Line 3 does not seem to follow."
    # the line is written again: it and what stood on it are taken back, and its text can be changed
    page.get_by_role("button", name="Write it again").click()
    until_marked(page, 2)
    assert page.get_by_label("Next line").input_value() == "-2x = 10"
    type_line(page, CLEAN[2])
    type_line(page, CLEAN[3])
    assert flagged(page) == []
    assert (
        page.locator("#summary").inner_text()
        == "Every line seems to follow from the ones before it."
    )


def test_tutor_serves_the_clean_draft_and_points_at_the_broken_lines(
    solver: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(solver)
    begin(page, SIGNS)
    write_drafts(page, [CANCELLING, CLEAN, WRONG])
    assert page.locator("#outcome").inner_text() == "Draft 2 is served."
    ranked = page.locator("#ranked > li")
    assert [h.inner_text().split("\n") for h in ranked.locator("h3").all()] == [
        ["Draft 2", "served"],
        ["Draft 1", "not served"],
        ["Draft 3", "not served"],
    ]
    found = [flagged(page, f"#ranked > li:nth-child({place}) > ol") for place in range(1, 4)]
    assert found == [[], [2], [0]]


def test_tutor_serves_none_where_every_draft_is_broken(
    solver: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(solver)
    begin(page, SIGNS)
    write_drafts(page, [CANCELLING, WRONG])
    assert page.locator("#outcome").inner_text().startswith("None is served: in every draft")
    assert page.locator("#ranked .served").count() == 0


def test_tutor_shows_exactly_what_the_server_answers(
    built_in: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(built_in)
    begin(page, SIGNS)
    for line in CANCELLING:
        type_line(page, line)
    told = ask(built_in, "/v1/score", {"problem": SIGNS, "steps": CANCELLING})
    assert shown(page) == list(zip(CANCELLING, told["scores"], strict=True))
    assert flagged(page) == ([] if told["first_error"] is None else [told["first_error"]])
    good = [score >= told["threshold"] for score in told["scores"]]
    classes = [item.get_attribute("class") for item in page.locator("#lines > li").all()]
    assert ["good" in one.split() for one in classes] == good

    candidates = [CANCELLING, CLEAN, WRONG]
    ranking = ask(built_in, "/v1/rank", {"problem": SIGNS, "candidates": candidates})
    write_drafts(page, candidates)
    best = ranking["best_sound"]
    served = [item.locator("h3").inner_text() for item in page.locator("#ranked .served").all()]
    assert served == ([] if best is None else [f"Draft {best + 1}\nserved"])
    order = sorted(ranking["order"], key=lambda index: index != best)
    for place, index in enumerate(order, 1):
        scores = ranking["candidates"][index]["scores"]
        within = f"#ranked > li:nth-child({place}) > ol"
        assert shown(page, within) == list(zip(candidates[index], scores, strict=True))


def test_tutor_says_what_a_flagged_line_looks_like(
    built_in: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(built_in)
    begin(page, SIGNS)
    told = ask(built_in, "/v1/score", {"problem": SIGNS, "steps": PLAIN_WRONG})
    with urllib.request.urlopen(f"{built_in}/info", timeout=60) as answer:
        words = json.load(answer)["error_kinds"]
    said = [None if kind is None else f"Looks like {words[kind]}." for kind in told["error_kinds"]]
    assert any(said)
    items = page.locator("#lines > li")
    for index, line in enumerate(PLAIN_WRONG):
        type_line(page, line)
        heard = page.locator("#said").text_content()
        assert heard.endswith(f" {said[index]}" if said[index] else f"{told['scores'][index]:.2f}.")
        shown_kind = items.nth(index).locator(".kind").all_inner_texts()
        assert shown_kind == ([] if said[index] is None else [said[index]])
    # the drafts say it too
    write_drafts(page, [PLAIN_WRONG])
    kinds = page.locator("#ranked > li .kind").all_inner_texts()
    assert kinds == [one for one in said if one]
    # who is overruled has nothing to say; the correction holds the mark, and no kind
    at = next(index for index, one in enumerate(said) if one)
    page.get_by_role("switch", name="Teacher").click()
    items.nth(at).get_by_label("right").check()
    assert items.nth(at).locator(".kind").count() == 0
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as TRL JSONL").click()
    (record,) = [json.loads(row) for row in Path(download.value.path()).read_text().splitlines()]
    assert record["labels"][at] is True
    assert "kind" not in json.dumps(record)


def test_tutor_with_kinds_of_error_is_accessible(
    built_in: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(built_in)
    begin(page, SIGNS)
    for line in PLAIN_WRONG:
        type_line(page, line)
    assert page.locator("#lines .kind").count() > 0
    assert violations(page) == []


def test_tutor_says_what_the_package_says_of_itself(
    built_in: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(built_in)
    with Scorer.load(threads=1) as scorer:
        manifest = scorer.package.manifest
    notice = manifest.provenance.get("notice")
    assert page.locator("#notice").is_visible() == bool(notice)
    assert str(notice or "") in page.locator("#notice").inner_text()
    assert manifest.name in page.locator("#about").inner_text()


def test_tutor_says_when_a_line_is_outside_what_the_model_knows(
    built_in: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(built_in)
    begin(page, "What is the powerhouse of the cell?")
    type_line(page, "the mitochondria", marked=False)
    error = page.locator("#line-error")
    error.filter(has_text="outside what the built-in model was trained on").wait_for()
    assert page.locator("#lines > li").count() == 0
    assert page.get_by_label("Next line").input_value() == "the mitochondria"
    write_drafts(page, [["the mitochondria is the powerhouse", "of every cell"]])
    assert page.locator("#outcome").inner_text() == "None is served: none could be judged."
    assert "outside what the built-in model" in page.locator("#ranked .why").inner_text()


def test_tutor_sets_text_as_text(solver: str, built_in: str, new_page: Callable[..., Any]) -> None:
    page = new_page(built_in)
    begin(page, f"Solve for x: 2x = 6 {HOSTILE}")
    assert HOSTILE in page.locator("#asked").inner_text()
    type_line(page, HOSTILE, marked=False)
    page.locator("#lines > li:not(.waiting), #line-error:not(:empty)").first.wait_for()
    write_drafts(page, [[HOSTILE, "x = 3"]])
    assert HOSTILE in page.locator("#ranked").inner_text()
    assert page.title() == "Line by line"
    assert page.locator("main img, main script").count() == 0


def test_tutor_keeps_the_lines_when_the_tab_is_loaded_again(
    built_in: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(built_in)
    begin(page, SIGNS)
    for line in CLEAN:
        type_line(page, line)
    before = shown(page)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    until_marked(page, 4)
    assert shown(page) == before
    assert page.locator("#asked").inner_text() == SIGNS
    type_line(page, "x = 5")
    assert len(shown(page)) == 5


# --- a teacher


def test_tutor_downloads_what_a_teacher_overruled_as_trl_records(
    solver: str, new_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = new_page(solver)
    begin(page, SIGNS)
    for line in CANCELLING:
        type_line(page, line)
    write_drafts(page, [CANCELLING, CLEAN])
    assert page.locator("#corrections").is_hidden()
    page.get_by_role("switch", name="Teacher").click()
    download = page.get_by_role("button", name="Download as TRL JSONL")
    assert download.is_disabled()
    third = page.locator("#lines > li").nth(2)
    third.get_by_role("radio", name="right").check()
    assert "teacher: right" in page.locator("#lines > li").nth(2).inner_text()
    # the served draft: its last line is marked wrong, so it is served no more
    page.locator("#ranked > li").nth(0).locator("ol > li").nth(3).get_by_label("wrong").check()
    assert page.locator("#outcome").inner_text().startswith("None is served")
    assert (
        "2 marks of the model overruled, in 2 solutions"
        in page.locator("#corrections-count").inner_text()
    )
    begin(page, "Solve for x: 2x = 6.")  # another problem: what was corrected is kept
    with page.expect_download() as saved:
        download.click()
    assert saved.value.suggested_filename == "corrections.jsonl"
    text = Path(saved.value.path()).read_text(encoding="utf-8")
    first, second = map(json.loads, text.splitlines())
    assert first["prompt"] == second["prompt"] == SIGNS
    assert (first["completions"], first["labels"]) == (CANCELLING, [True] * 4)
    assert (second["completions"], second["labels"]) == (CLEAN, [True, True, True, False])
    assert (first["overruled"], second["overruled"]) == ([2], [3])
    assert first["model_scores"] == [0.9, 0.9, 0.1, 0.9]
    # prm-edge's own reader takes them for what they are
    record, truths = read_labelled(second)
    assert (record.problem, list(record.steps)) == (SIGNS, CLEAN)
    assert [rating == 1 for rating in truths[0].ratings] == [True, True, True, False]


# --- a server that dies


def restarted(process: Process, start: Callable[..., Process], *arguments: str) -> Process:
    again = start(*arguments, port=process.port)
    again.wait_until_ready()
    return again


@contextmanager
def running(
    mode: str, package: Path
) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """The tutor's address, what kills the process that has the model, and what starts it again."""
    named = ("-m", str(package))
    start = tutor if mode == "in-process" else serve
    processes = [start(*named)]
    processes[0].wait_until_ready()
    if mode == "server":
        processes.append(tutor("--server", processes[0].url))
        processes[1].wait_until_ready()

    def kill() -> None:
        processes[0].kill()

    def begin_again() -> None:
        processes[0] = restarted(processes[0], start, *named)

    try:
        yield processes[-1].url, kill, begin_again
    finally:
        for process in processes:
            if process.process.poll() is None:
                process.kill()


@pytest.mark.parametrize("mode", ["in-process", "server"])
def test_tutor_survives_a_server_that_is_killed(
    mode: str, new_page: Callable[..., Any], tiny_package: Path
) -> None:
    with running(mode, tiny_package) as (at, kill, start):
        page = new_page(at)
        begin(page, SIGNS)
        for line in CLEAN[:2]:
            type_line(page, line)
        kill()
        type_line(page, CLEAN[2], marked=False)
        lost = page.get_by_role("alert").filter(has_text="The server does not answer")
        lost.wait_for()
        # nothing is lost, and nothing is made up
        assert page.locator("#lines > li").count() == 3
        assert "waiting for the server" in page.locator("#lines > li").nth(2).inner_text()
        page.get_by_role("button", name="Try now").click()  # of no use yet
        assert lost.is_visible()
        start()
        until_marked(page, 3)
        lost.wait_for(state="hidden")
        type_line(page, CLEAN[3])
        told = ask(at, "/v1/score", {"problem": SIGNS, "steps": CLEAN})
        assert shown(page) == list(zip(CLEAN, told["scores"], strict=True))

        # once more while nobody types: the page notices, says so, and opens the session again
        kill()
        lost.wait_for()
        start()
        lost.wait_for(state="hidden")
        page.get_by_role("status").filter(has_text="4 lines marked anew").wait_for()
        assert shown(page) == list(zip(CLEAN, told["scores"], strict=True))


def test_tutor_opens_a_session_again_that_has_ended(
    built_in: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(built_in)
    ids: list[str] = []
    page.on(
        "request",
        lambda asked: ids.extend(re.findall(r"/v1/sessions/([^/]+)/steps", asked.url)),
    )
    begin(page, SIGNS)
    for line in CLEAN[:3]:
        type_line(page, line)
    end = urllib.request.Request(f"{built_in}/v1/sessions/{ids[-1]}", method="DELETE")
    urllib.request.urlopen(end, timeout=60).close()
    type_line(page, CLEAN[3])
    page.get_by_role("status").filter(has_text="4 lines marked anew").wait_for()
    told = ask(built_in, "/v1/score", {"problem": SIGNS, "steps": CLEAN})
    assert shown(page) == list(zip(CLEAN, told["scores"], strict=True))


# --- everybody


def test_tutor_is_used_with_the_keyboard_alone(solver: str, new_page: Callable[..., Any]) -> None:
    page = new_page(solver)
    focused = "document.activeElement.id || document.activeElement.textContent.trim()"
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(page.evaluate(focused))
    assert order[:7] == [
        "Skip to your solution",
        "teacher",
        "example",
        "problem",
        "Begin",
        "next-line",
        "check",
    ]
    page.locator("#next-line").focus()
    for line in ["3x = 15", "3x = 5"]:
        page.keyboard.type(line)
        page.keyboard.press("Enter")
        page.locator("#lines > li:last-child:not(.waiting)").filter(has_text=line).wait_for()
        assert page.evaluate(focused) == "next-line"  # ready for the next
    # what a screen reader is told
    assert page.locator("#said").inner_text() == "Line 2 doubtful, score 0.10."
    assert page.locator("#said").get_attribute("role") == "status"
    page.locator("#teacher").focus()
    page.keyboard.press("Space")
    page.locator("#mark-write-1-wrong").focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == "mark-write-1-right"  # where it was, though all is redrawn
    assert "teacher: right" in page.locator("#lines > li").nth(1).inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_tutor_is_accessible_on_every_screen(
    solver: str, new_page: Callable[..., Any], scheme: str, width: int
) -> None:
    page = new_page(
        solver,
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    assert violations(page) == []
    begin(page, SIGNS)
    for line in CANCELLING:
        type_line(page, line)
    write_drafts(page, [CANCELLING, CLEAN])
    page.get_by_role("switch", name="Teacher").click()
    page.locator("#lines > li").nth(0).get_by_label("wrong").check()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

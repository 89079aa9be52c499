"""A package in the page itself: onnxruntime-web in a real Chromium against the Python runtime."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import ROOT, chromium, violations

from prm_edge_runtime import Scorer
from prm_edge_runtime.domain import embedded_domain
from prm_edge_runtime.encoding import RecipeEncoder

pytestmark = pytest.mark.browser

KINDS_IN_TURN = ("int8", "int8x2", "fp32")

EXAMPLE = ROOT / "examples" / "browser"
BUILT_IN = ROOT / "runtime" / "prm_edge_runtime" / "default_package"
V1 = ROOT / "tests" / "packages" / "v1"
# int8 packages of your own to compare too, as a PATH of folders
MORE = [Path(p) for p in os.environ.get("PRM_EDGE_TEST_PACKAGES", "").split(os.pathsep) if p]
WAIT_MS = 120_000
MAX_DIFFERENCE = 1e-5  # fp32
# int8: a value that rounds the other way is amplified, as between two CPUs; the drift budget of
# an export, for the mean over steps
MAX_MEAN_INT8 = 0.01
SOLUTIONS: list[tuple[str, list[str]]] = [
    ("Solve for x: 5 - 2(x - 3) = 1.", ["5 - 2x + 6 = 1", "11 - 2x = 1", "-2x = 10", "x = 5"]),
    ("Solve for x: 3x + 7 = 22.", ["3x = 15", "x = 5"]),
    ("Was kostet ½ × 7 − 3²? Größe: π ≈ 3,14 😀", ["½×7 = 3,5 — fertig", "3² = 9", " \t 5,5 "]),
    ("\\frac{1}{2} + \\sqrt{16}", ["\\frac{1}{2} + 4", "= 4.5 \\boxed{4.5}"]),
    ("What is 12 * 12?", ["12 * 12 = 144 " * 12, "so 144"]),
    ("7 + 5", ["12"]),
    ("A jacket costs $80 and is cut by 25%.", ["80 * 0.25 = 20", "80 - 20 = 60", "It costs $60."]),
    ("line\none", ["a\n\nb = 2", "<extra_0><|im_end|></s>[PAD] 3"]),
    ("Solve for y: -4y+9=-7", ["-4y+9-9=-7-9", "-4y=-16", "-4y/-4=-16/-4", "y=4"]),
    ("long", [f"{n} + {n} = {2 * n}" for n in range(25)]),
]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        return None


@contextmanager
def built(package: Path, out: Path) -> Iterator[str]:
    """The example with a package, served as plain files: there is no other server."""
    node = shutil.which("node")
    if node is None or not (EXAMPLE / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("needs node, and npm ci in examples/browser (make test-browser)")
    subprocess.run([node, str(EXAMPLE / "build.mjs"), str(package), str(out)], check=True)
    handler = functools.partial(_Quiet, directory=str(out))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


# Every kind of linear in one graph; and an attention's output in floats behind int8, whose width
# onnxruntime-web infers from what the package says of the projection before it.
MIXED = {
    "in-turn": KINDS_IN_TURN,
    "floats-behind-int8": ("int8", "fp32", "int8x2", "int8x2", "fp32", "int8"),
}


@pytest.fixture(scope="module")
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """int8 with several kinds of linear in one graph."""
    pytest.importorskip("torch", reason="needs the export extra")
    import checkpoints
    from int8_packages import export_int8, plan_in_turn

    folder = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        plan_in_turn(patch, MIXED[request.param])
        export_int8(checkpoints.trl_llama(folder / "tiny"), folder / "package")
    return folder / "package"


@contextmanager
def opened(browser: Any, at: str) -> Iterator[Any]:
    page = browser.new_page(reduced_motion="reduce")
    page.set_default_timeout(WAIT_MS)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(at)
    page.locator("body[data-ready]").wait_for()
    yield page
    # pupils' work never leaves the device: nothing was sent, and nobody else was asked
    assert [url for url in asked if not url.startswith((at, "data:"))] == []
    page.close()


LOAD = """async () => {
    const { Prm } = await import('/prm.js');
    window.prm = await Prm.load('package');
}"""
RUN = """async (solutions) => {
    const found = [];
    for (const [problem, steps] of solutions) {
        const { ids, reads } = window.prm.encode(problem, steps);
        found.push({ ids, reads, scores: await window.prm.score(problem, steps),
                     outside: window.prm.outside(problem, steps) !== null });
    }
    return found;
}"""


def compare(page: Any, package: Path) -> list[float]:
    """Check ids and reads of every solution; the differences of the scores, step by step."""
    page.evaluate(LOAD)
    found = page.evaluate(RUN, SOLUTIONS)
    differences: list[float] = []
    with Scorer.load(package, threads=1) as scorer:
        domain = embedded_domain(scorer.package)
        for (problem, steps), one in zip(SOLUTIONS, found, strict=True):
            encoded = scorer._encoder.encode(problem, steps)
            assert one["ids"] == encoded.ids.tolist(), problem
            assert one["reads"] == encoded.reads.tolist(), problem
            expected = scorer.score(problem, steps).scores
            assert len(one["scores"]) == len(expected)
            for got, score in zip(one["scores"], expected, strict=True):
                assert score is not None
                differences.append(abs(got - score))
            outside = domain is not None and domain.outside(problem, steps) is not None
            assert one["outside"] == outside, problem
        allowed = scorer.package.variant(scorer.variant).proof["self_test_tolerance"]
        assert page.evaluate("window.prm.selfTest()") <= allowed
    return differences


@pytest.mark.parametrize("package", [BUILT_IN, V1], ids=lambda path: path.name)
def test_browser_gives_the_scores_of_the_python_runtime(
    browser: Any, package: Path, tmp_path: Path
) -> None:
    with built(package, tmp_path / "site") as at, opened(browser, at) as page:
        assert page.locator("#state").inner_text().startswith("Ready: ")
        assert max(compare(page, package)) <= MAX_DIFFERENCE


def check_int8(browser: Any, package: Path, site: Path) -> None:
    with built(package, site) as at, opened(browser, at) as page:
        assert page.locator("#error").inner_text() == ""
        assert "(cpu-int8)" in page.locator("#state").inner_text()
        differences = compare(page, package)
    print(f"mean {sum(differences) / len(differences):.2g}, largest {max(differences):.2g}")
    assert sum(differences) / len(differences) <= MAX_MEAN_INT8


@pytest.mark.parametrize("mixed", MIXED, indirect=True)
def test_browser_runs_every_kind_of_int8(browser: Any, mixed: Path, tmp_path: Path) -> None:
    check_int8(browser, mixed, tmp_path / "site")


if MORE:  # a test without a package would be a skipped one

    @pytest.mark.parametrize("package", MORE, ids=lambda package: package.name)
    def test_browser_runs_int8_packages_of_your_own(
        browser: Any, package: Path, tmp_path: Path
    ) -> None:
        check_int8(browser, package, tmp_path / "site")


def with_file(package: Path, name: str, raw: bytes) -> dict[str, Any]:
    """Put a file into a package, and into its list; the manifest."""
    (package / name).write_bytes(raw)
    manifest: dict[str, Any] = json.loads((package / "prm_edge.json").read_text())
    manifest["files"][name] = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    return manifest


def test_browser_begins_with_the_keys_and_values_of_a_package(browser: Any, tmp_path: Path) -> None:
    package = shutil.copytree(V1, tmp_path / "package")
    with Scorer.load(V1, threads=1) as plain:
        (variant,) = plain.package.manifest.variants
        ids = plain._encoder.opening().tolist()
        before = [plain.score(*solution).scores for solution in SOLUTIONS]
    size = 2 * variant.layers * variant.kv_heads * len(ids) * variant.head_dim
    assert size > 0
    # others than the graph would compute: to leave them out is seen in the scores
    kv = np.random.default_rng(5).standard_normal(size).astype("<f4")
    manifest = with_file(package, "cpu-fp32/prefix.f32", kv.tobytes())
    told = manifest["variants"][variant.name]
    told["prefix"] = {"file": "cpu-fp32/prefix.f32", "ids": ids}
    told["files"] = sorted([*told["files"], "cpu-fp32/prefix.f32"])
    (package / "prm_edge.json").write_text(json.dumps(manifest))
    with Scorer.load(package, threads=1) as scorer:
        expected = [scorer.score(*solution).scores for solution in SOLUTIONS]
    assert any(
        a is not None and b is not None and abs(a - b) > 100 * MAX_DIFFERENCE
        for one, other in zip(before, expected, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    with built(package, tmp_path / "site") as at, opened(browser, at) as page:
        page.evaluate(LOAD)
        for found, scores in zip(page.evaluate(RUN, SOLUTIONS), expected, strict=True):
            assert found["scores"] == pytest.approx(scores, abs=MAX_DIFFERENCE)
        short = with_file(tmp_path / "site" / "package", "cpu-fp32/prefix.f32", kv.tobytes()[:-4])
        (tmp_path / "site" / "package" / "prm_edge.json").write_text(json.dumps(short))
        page.goto(f"{at}?again")
        page.locator("#error").filter(has_text="are not as many as they must be").wait_for()


@pytest.mark.parametrize("individual", [True, False])
def test_browser_knows_the_digits_that_python_knows(
    browser: Any, individual: bool, tmp_path: Path
) -> None:
    package = shutil.copytree(V1, tmp_path / "package")
    tokenizer = json.loads((package / "tokenizer.json").read_text())
    digits = {"type": "Digits", "individual_digits": individual}
    both = [digits, tokenizer["pre_tokenizer"]]
    model = tokenizer["model"]
    # of a blank and the first byte of ½ one token, unless ½ is cut off as a number
    for pair in (["Ġ", "Â"], ["2", "3"]):
        model["merges"].insert(0, pair)
        model["vocab"]["".join(pair)] = len(model["vocab"])
    texts = [("7 ½ + 23² = ٣٤", ["½23", " ½ x²³4 Ⅻ"])]

    def ids(changed: dict[str, Any]) -> list[int]:
        encoder = RecipeEncoder(json.dumps(changed).encode(), recipe)
        found: list[int] = encoder.encode(*texts[0]).ids.tolist()
        return found

    with Scorer.load(V1, threads=1) as scorer:
        recipe = scorer.recipe
    expected = ids({**tokenizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": both}})
    assert expected != ids(tokenizer)
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": both}
    manifest = with_file(package, "tokenizer.json", json.dumps(tokenizer).encode())
    (package / "prm_edge.json").write_text(json.dumps(manifest))
    with built(package, tmp_path / "site") as at, opened(browser, at) as page:
        page.evaluate(LOAD)
        encode = "(pairs) => pairs.map(([problem, steps]) => window.prm.encode(problem, steps).ids)"
        assert page.evaluate(encode, texts) == [expected]


def test_browser_page_scores_what_is_written(browser: Any, tmp_path: Path) -> None:
    problem, steps = SOLUTIONS[1]
    with built(BUILT_IN, tmp_path / "site") as at, opened(browser, at) as page:
        assert violations(page) == []
        page.get_by_label("Problem").fill(problem)
        page.get_by_label("Solution").fill("\n".join(steps))
        page.get_by_role("button", name="Score").click()
        page.locator("#scored > li").nth(1).wait_for()
        with Scorer.load(threads=1) as scorer:
            result = scorer.score(problem, steps)
        shown = [item.inner_text().split("\n") for item in page.locator("#scored > li").all()]
        assert [(one[1], one[2].split()[1]) for one in shown] == [
            (step, f"{score:.2f}") for step, score in zip(steps, result.scores, strict=True)
        ]
        assert violations(page) == []
        page.get_by_label("Problem").fill("What is the powerhouse of the cell?")
        page.get_by_label("Solution").fill("<b>the mitochondria</b>")
        page.get_by_role("button", name="Score").click()
        page.locator("#error").filter(has_text="outside what this model was trained on").wait_for()
        assert page.locator("#scored > li").count() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "format version 2 is not known"),
        ({"variants": {}}, "no variant"),
        ({"files": {}}, "is not listed in prm_edge.json"),
    ],
)
def test_browser_refuses_a_package_that_it_cannot_read(
    browser: Any, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    package = shutil.copytree(V1, tmp_path / "package")
    manifest = json.loads((package / "prm_edge.json").read_text())
    (package / "prm_edge.json").write_text(json.dumps({**manifest, **change}))
    with built(package, tmp_path / "site") as at, opened(browser, at) as page:
        assert words in page.locator("#error").inner_text()
        assert page.get_by_role("button", name="Score").is_disabled()


def test_browser_refuses_damaged_files_and_other_recipes(browser: Any, tmp_path: Path) -> None:
    package = shutil.copytree(V1, tmp_path / "package")
    graph = next(package.glob("*/model.onnx"))
    raw = bytearray(graph.read_bytes())
    raw[len(raw) // 2] ^= 1
    graph.write_bytes(raw)
    with built(package, tmp_path / "site") as at, opened(browser, at) as page:
        assert "model.onnx is damaged" in page.locator("#error").inner_text()
    manifest = json.loads((package / "prm_edge.json").read_text())
    manifest["recipe"]["encode"] = "joint"
    (package / "prm_edge.json").write_text(json.dumps(manifest))
    with built(package, tmp_path / "site") as at, opened(browser, at) as page:
        assert "is not one that this example reads" in page.locator("#error").inner_text()

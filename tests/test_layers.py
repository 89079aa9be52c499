"""The dependency rule: prm_edge -> prm_edge_export -> prm_edge_runtime, never the other way.

Read from the source of every file, imports inside functions included; nothing is imported here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "prm_edge_runtime": ROOT / "runtime" / "prm_edge_runtime",
    "prm_edge_export": ROOT / "export" / "prm_edge_export",
    "prm_edge": ROOT / "prm_edge",
}
OWN = {
    "prm_edge_runtime": set(),
    "prm_edge_export": {"prm_edge_runtime"},
    "prm_edge": {"prm_edge_export", "prm_edge_runtime"},
}
RUNTIME = {"numpy", "tokenizers", "onnxruntime"}
SERVE = {"prometheus_client", "starlette", "uvicorn"}
HEAVY = {"huggingface_hub", "onnx", "optimum", "safetensors", "torch", "transformers"}
THIRD_PARTY = {
    "prm_edge_runtime": RUNTIME,
    "prm_edge_export": RUNTIME | HEAVY | {"ml_dtypes", "tomli"},  # onnx brings ml_dtypes
    "prm_edge": RUNTIME
    | SERVE
    | {
        "backports",
        "click",
        "compression",
        "its_hub",
        "pyarrow",
        "ray",
        "rich",
        "scipy",
        "sklearn",
        "torch",
        "tqdm",
    }
    | {"transformers"},
}
# the one place for each, below the package that owns the rule
ONLY_IN = {"tokenizers": "encoding.py", "onnxruntime": "ort.py"}
# what `import prm_edge` and its command line must not load: inside functions only
LAZY = {
    "prm_edge_runtime": {"onnxruntime"},
    "prm_edge_export": set(),
    "prm_edge": HEAVY
    | {"backports", "its_hub", "onnxruntime", "prm_edge_export", "pyarrow", "scipy", "sklearn"},
}
# modules that import a computed name, and why
DYNAMIC = {"prm_edge/record.py": "TRL has moved PRMTrainer: both places are tried"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import statement: the file, the line, the top-level module and how it is done."""

    file: Path
    line: int
    module: str
    lazy: bool  # inside a function, or for the type checker alone

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def _sources(package: str) -> list[Path]:
    return sorted(FOLDERS[package].rglob("*.py"))


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module or ""]
    if isinstance(node, ast.Call):
        function = ast.unparse(node.func)
        if function.split(".")[-1] in ("import_module", "__import__") and node.args:
            first = node.args[0]
            # a computed name cannot be checked here: see DYNAMIC
            return [first.value if isinstance(first, ast.Constant) else "?"]
    return []


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _walk(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    yield node, lazy
    inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    if _is_type_checking(node):
        assert isinstance(node, ast.If)
        for child in node.body:
            yield from _walk(child, True)
        for child in node.orelse:
            yield from _walk(child, inside)
        return
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, inside)


def imports_in(file: Path) -> list[Import]:
    """Every absolute import of a file that is not of the standard library."""
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    return [
        Import(file=file, line=getattr(node, "lineno", 0), module=name.split(".")[0], lazy=lazy)
        for node, lazy in _walk(tree, False)
        for name in _names(node)
        if name.split(".")[0] not in sys.stdlib_module_names
    ]


def imports_of(package: str) -> list[Import]:
    return [found for file in _sources(package) for found in imports_in(file)]


@pytest.mark.parametrize("package", FOLDERS)
def test_layers_import_their_own_kind_downwards_only(package: str) -> None:
    known = set(FOLDERS) - {package}
    wrong = [
        str(found)
        for found in imports_of(package)
        if found.module in known and found.module not in OWN[package]
    ]
    assert wrong == []


@pytest.mark.parametrize("package", FOLDERS)
def test_layers_import_no_other_third_party(package: str) -> None:
    allowed = THIRD_PARTY[package] | OWN[package] | {package}
    wrong = [
        str(found)
        for found in imports_of(package)
        if found.module not in allowed
        and not (found.module == "?" and found.file.relative_to(ROOT).as_posix() in DYNAMIC)
    ]
    assert wrong == []


@pytest.mark.parametrize("package", FOLDERS)
def test_layers_import_lazily_what_is_heavy(package: str) -> None:
    wrong = [
        str(found)
        for found in imports_of(package)
        if found.module in LAZY[package] and not found.lazy
    ]
    assert wrong == []


def test_layers_runtime_has_one_place_for_tokenizers_and_one_for_onnxruntime() -> None:
    wrong = [
        str(found)
        for found in imports_of("prm_edge_runtime")
        if found.module in ONLY_IN and found.file.name != ONLY_IN[found.module]
    ]
    assert wrong == []


def test_layers_command_line_has_one_package_for_click() -> None:
    wrong = [
        str(found)
        for found in imports_of("prm_edge")
        if found.module in ("click", "rich", "tqdm")
        and FOLDERS["prm_edge"] / "cli" not in found.file.parents
    ]
    assert wrong == []


def test_layers_cluster_has_one_package_for_ray_and_one_module_that_needs_it() -> None:
    folder = FOLDERS["prm_edge"] / "ray"
    found = [found for found in imports_of("prm_edge") if found.module == "ray"]
    assert [str(one) for one in found if folder not in one.file.parents] == []
    assert {one.file.name for one in found if not one.lazy} == {"pipeline.py"}
    # which is imported inside functions alone
    for file in _sources("prm_edge"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        at_once = [
            ast.unparse(node)
            for node, lazy in _walk(tree, False)
            if isinstance(node, ast.ImportFrom) and not lazy
        ]
        assert not any("pipeline" in text for text in at_once), file


def test_layers_server_has_one_package_for_what_serves() -> None:
    wrong = [
        str(found)
        for found in imports_of("prm_edge")
        if found.module in SERVE and FOLDERS["prm_edge"] / "server" not in found.file.parents
    ]
    assert wrong == []
    assert {found.module for found in imports_of("prm_edge")} >= SERVE


def test_layers_server_has_one_module_for_the_scorer() -> None:
    names = {}
    for file in (FOLDERS["prm_edge"] / "server").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        names[file.name] = "_scorer." in text or "describe(" in text
    assert [name for name, knows in names.items() if knows] == ["backend.py"]


def test_layers_see_the_files() -> None:
    # a rule checked on nothing holds: each package has files, and the known imports are found
    counts = {package: len(_sources(package)) for package in FOLDERS}
    assert all(count >= 4 for count in counts.values()), counts
    runtime = {(found.module, found.lazy) for found in imports_of("prm_edge_runtime")}
    assert {("numpy", False), ("tokenizers", False), ("onnxruntime", True)} <= runtime
    assert "prm_edge_runtime" in {found.module for found in imports_of("prm_edge_export")}
    assert "prm_edge_runtime" in {found.module for found in imports_of("prm_edge")}


def test_layers_walk_finds_every_kind_of_import(tmp_path: Path) -> None:
    source = (
        "import os, torch.nn\n"
        "from transformers import AutoModel\n"
        "from . import sibling\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    import onnx\n"
        "else:\n"
        "    import safetensors\n"
        "class A:\n"
        "    import rich\n"
        "    def f(self):\n"
        "        if True:\n"
        "            import click\n"
        "        importlib.import_module('ray.data')\n"
        "        __import__(name)\n"
    )
    file = tmp_path / "module.py"
    file.write_text(source, encoding="utf-8")
    assert {(found.module, found.lazy) for found in imports_in(file)} == {
        ("torch", False),
        ("transformers", False),
        ("onnx", True),
        ("safetensors", False),
        ("rich", False),
        ("click", True),
        ("ray", True),
        ("?", True),
    }

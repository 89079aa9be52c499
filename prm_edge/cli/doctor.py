"""``prm-edge doctor``: whether this machine can be trusted with a package, and how fast it is.

Every line comes from this run: versions, libraries, the provider that really ran, and the stored
cases of the package scored on it.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from prm_edge_runtime.version import __version__

from .describe import name_package
from .group import NOT_FINISHED
from .options import engine_options, json_option, load_scorer

if TYPE_CHECKING:
    from collections.abc import Callable

    from prm_edge_runtime.scorer import Scorer

GOOD: Final = "ok"
BAD: Final = "WRONG"
TOLD: Final = "-"
RUNS: Final = 5
LIBRARIES: Final = ("numpy", "tokenizers", "click", "onnxruntime", "onnxruntime-gpu")
# as Linux names them: what decides how fast and how exactly int8 runs
CPU_FEATURES: Final = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8",  # x86
    "asimddp", "i8mm", "sve",  # Arm
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: ``state`` is ok, WRONG, or - where there is nothing to judge."""

    name: str
    state: str
    text: str


@click.command("doctor", short_help="Check this machine, and a package on it.")
@click.argument("package", metavar="[PACKAGE]", required=False, type=click.Path())
@engine_options
@json_option
def doctor_command(
    package: str | None,
    device: str | None,
    variant: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Check this machine and score the stored cases of PACKAGE on it.

    Without PACKAGE: the one of PRM_EDGE_PACKAGE, else the built-in one. Exit code 1 when anything
    is wrong.
    """
    findings = machine()
    findings += examined(package, device=device, variant=variant, threads=threads)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            click.echo(f"{finding.state:5}  {finding.name:{width}}  {finding.text}")
    if any(finding.state == BAD for finding in findings):
        raise click.exceptions.Exit(NOT_FINISHED)


def machine() -> list[Finding]:
    """What is installed, and what the processor has."""
    from prm_edge_runtime import cuda, ort
    from prm_edge_runtime.errors import RuntimeMissingError

    findings = [
        _told("prm-edge", f"{__version__}, Python {platform.python_version()}"),
        _told("system", f"{platform.system()} {platform.release()} on {platform.machine()}"),
        _told("libraries", ", ".join(f"{n} {v}" for n in LIBRARIES if (v := _version(n)))),
        _told("processor", processor()),
    ]
    clash = cuda.clash()
    if clash is not None:
        findings.append(Finding(name="installation", state=BAD, text=clash))
    try:
        runtime = ort.load_onnxruntime()
    except RuntimeMissingError as error:
        return [*findings, Finding(name="onnxruntime", state=BAD, text=str(error))]
    providers = runtime.get_available_providers()
    findings.append(_told("providers", f"offered by onnxruntime: {', '.join(providers)}"))
    off = os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
    findings.append(
        Finding(
            name="telemetry",
            state=GOOD if off else BAD,
            text="off" if off else "ORT_DISABLE_TELEMETRY is not 1",
        )
    )
    if ort.PROVIDERS["cuda"] in providers:
        findings.append(_cuda_libraries(runtime))
    return findings


def _cuda_libraries(runtime: Any) -> Finding:
    from prm_edge_runtime import cuda

    cuda.preload(runtime)
    problem = cuda.problem(runtime)
    if problem is not None:
        return Finding(name="CUDA", state=BAD, text=problem)
    major = cuda.wanted_major(runtime)
    packages = ", ".join(f"{n} {v}" for n, v in cuda.nvidia_packages().items())
    return Finding(
        name="CUDA",
        state=GOOD,
        text=f"the libraries of CUDA {major} load ({packages or 'from the system'})",
    )


def examined(package: str | None, **options: Any) -> list[Finding]:
    """The package on the device that really runs it: self-test, placement, speed."""
    from prm_edge_runtime.errors import PrmEdgeError

    try:
        with load_scorer(package, force=True, **options) as scorer:
            findings = [Finding(name="package", state=GOOD, text=name_package(scorer))]
            for name, look in (
                ("placement", _placement),
                ("self-test", _self_test),
                ("speed", _speed),
            ):
                findings.append(_examine(name, look, scorer))
    except PrmEdgeError as error:
        return [Finding(name="package", state=BAD, text=str(error))]
    return findings


def _examine(name: str, look: Callable[[Scorer], tuple[str, str]], scorer: Scorer) -> Finding:
    from prm_edge_runtime.errors import PrmEdgeError

    try:
        state, text = look(scorer)
    except PrmEdgeError as error:
        state, text = BAD, str(error)
    return Finding(name=name, state=state, text=text)


def _placement(scorer: Scorer) -> tuple[str, str]:
    from prm_edge_runtime import ort

    graph = scorer.package.path(scorer.package.variant(scorer.variant).graph)
    counts = ort.nodes_by_provider(graph, device=scorer.device)
    if not counts:
        return TOLD, "this onnxruntime does not say which provider got which node"
    text = ", ".join(f"{count} nodes on {name}" for name, count in sorted(counts.items()))
    alone = set(counts) == {ort.PROVIDERS[scorer.device]}
    return (GOOD if alone else BAD), text


def _self_test(scorer: Scorer) -> tuple[str, str]:
    from prm_edge_runtime.selftest import TOLERANCE_KEY

    worst = scorer.self_test()
    tolerance = scorer.package.variant(scorer.variant).proof[TOLERANCE_KEY]
    return GOOD, (
        f"torch's stored scores come out: largest difference {worst:.2g}, allowed {tolerance:g}"
    )


def _speed(scorer: Scorer) -> tuple[str, str]:
    from prm_edge_runtime.manifest import SELFTEST_NAME
    from prm_edge_runtime.selftest import load_cases

    cases = load_cases(scorer.package.read_bytes(SELFTEST_NAME))
    seconds = []
    for _ in range(RUNS):
        start_s = time.perf_counter()
        results = [scorer.score(case.problem, case.steps) for case in cases]
        seconds.append(time.perf_counter() - start_s)
    tokens = sum(result.n_tokens for result in results)
    steps = sum(len(result.scores) for result in results)
    middle = statistics.median(seconds)
    return TOLD, (
        f"{tokens / middle:.0f} tokens per second, {1000 * middle / steps:.2f} ms per step "
        f"(median of {RUNS} runs over {len(cases)} stored cases of {tokens} tokens)"
    )


def processor() -> str:
    """The processor's features that matter here; Linux says which, others do not."""
    flags = cpu_flags()
    if flags is None:
        return f"{os.cpu_count()} cores; which 8-bit instructions it has is not known here"
    found = [name for name in CPU_FEATURES if name in flags]
    return f"{os.cpu_count()} cores with {', '.join(found) or 'none of the 8-bit instructions'}"


def cpu_flags(source: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """Features of the first processor as the kernel names them; None where it does not say."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        text = source.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return None


def _told(name: str, text: str) -> Finding:
    return Finding(name=name, state=TOLD, text=text)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

"""What a package holds beside its graph: manifest, provenance, report, self-test, licences.

In: a plan and what was measured. Out: values, and small files in the writer's staging folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any, Final

from prm_edge_runtime import __version__
from prm_edge_runtime.domain import DOMAIN_NAME, Domain
from prm_edge_runtime.hashing import hash_file
from prm_edge_runtime.manifest import (
    DECODER,
    DEFAULT,
    SELFTEST_NAME,
    STATELESS,
    Manifest,
    Prefix,
    Scalar,
    Variant,
)
from prm_edge_runtime.selftest import dump_cases

from .graph import GRAPH_NAME
from .options import NATIVE
from .package_files import listed_files
from .plan import Plan
from .quantization.search import PREFIX_NAME, Quantized
from .writer import PackageWriter

REPORT_NAME: Final = "report.json"
KEPT_FILES: Final = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.txt")
TOOLS: Final = ("torch", "transformers", "tokenizers", "onnx", "onnxruntime", "optimum-onnx")


def new_manifest(
    plan: Plan, staging: Path, provenance: dict[str, Scalar], quantized: Quantized | None
) -> Manifest:
    """The manifest with the variant that is being made, before its proof."""
    native = plan.backend == NATIVE
    name = plan.options.variant
    decoder = plan.decoder
    variant = Variant(
        name=name,
        device=plan.options.target,
        precision=plan.options.precision,
        interface=DECODER if native else STATELESS,
        graph=f"{name}/{GRAPH_NAME}",
        files=(),
        layers=decoder.layers if native and decoder else 0,
        kv_heads=decoder.kv_heads if native and decoder else 0,
        head_dim=decoder.head_dim if native and decoder else 0,
        proof={},
        prefix=Prefix(file=f"{name}/{PREFIX_NAME}", ids=quantized.opening)
        if quantized is not None and quantized.opening
        else None,
    )
    return Manifest(
        name=plan.options.out_path.resolve().name,
        recipe=plan.recipe,
        max_tokens=plan.max_tokens,
        thresholds={DEFAULT: plan.recipe.default_threshold},
        variants=(variant,),
        files=listed_files(staging),
        provenance=provenance,
        error_kinds=plan.head.kinds,
    )


def identity(plan: Plan, texts_sha256: str) -> dict[str, Scalar]:
    """Where the weights came from, without paths of this machine."""
    whole = hashlib.sha256()
    for name, path in plan.checkpoint.identity().items():
        whole.update(f"{name} {hash_file(path).sha256}\n".encode())
    return {
        "checkpoint": plan.options.name,
        "checkpoint_sha256": whole.hexdigest(),
        **plan.checkpoint.origin,
        "architecture": str((plan.checkpoint.config.get("architectures") or ["unnamed"])[0]),
        "head": plan.head.kind,
        "backend": plan.backend,
        "prm_edge": __version__,
        "verification_texts": texts_sha256,
        **{tool: version for tool in TOOLS if (version := _version(tool)) is not None},
        **plan.notes,
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_small_files(
    plan: Plan, writer: PackageWriter, cases: list[Any], report: dict[str, Any]
) -> None:
    """Write the report, and of a new package the self-test, licences and domain too."""
    if writer.existing is None:
        writer.write_bytes(SELFTEST_NAME, dump_cases(cases))
        for name in KEPT_FILES:
            source = plan.checkpoint.find(name)
            if source.is_file():
                writer.write_bytes(name, source.read_bytes())
        domain = plan.checkpoint.root / DOMAIN_NAME
        if domain.is_file():
            writer.write_bytes(DOMAIN_NAME, Domain.from_json(domain.read_bytes()).to_json())
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    writer.write_bytes(f"{plan.options.variant}/{REPORT_NAME}", text.encode())


def license_of(plan: Plan) -> str | None:
    """The licence that the checkpoint's own model card names in its front matter."""
    path = plan.checkpoint.find("README.md")
    if not path.is_file():
        return None
    front = path.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    found = re.search(r"^license: *([A-Za-z0-9.+-]+) *$", front, re.MULTILINE)
    return found.group(1) if found else None

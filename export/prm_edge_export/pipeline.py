"""The whole road: checkpoint -> plan -> graph -> proof -> package.

Every step either succeeds or raises, and nothing is visible at OUT before all of them have.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from prm_edge_runtime import Scorer, __version__
from prm_edge_runtime.domain import DOMAIN_NAME, Domain
from prm_edge_runtime.encoding import Encoded
from prm_edge_runtime.errors import ProofError
from prm_edge_runtime.hashing import hash_file
from prm_edge_runtime.manifest import (
    CARD_NAME,
    DECODER,
    DEFAULT,
    SELFTEST_NAME,
    STATELESS,
    TOKENIZER_NAME,
    Manifest,
    Prefix,
    Scalar,
    Variant,
)
from prm_edge_runtime.package import Package
from prm_edge_runtime.selftest import dump_cases

from . import cuda_target, preflight, proof
from .card import model_card
from .checkpoint import Checkpoint
from .expect import check_expected
from .graph import GRAPH_NAME, build_decoder
from .pace import paced
from .package_files import listed_files, require_free_space
from .plan import AUTO, CUDA, NATIVE, ExportOptions, Plan, make_plan
from .quantization.kinds import MENUS
from .quantization.layers import LayerRunner, run_reference
from .quantization.search import PREFIX_NAME, Quantized, build_within_target
from .quantization.texts import Solutions, load_solutions
from .reference import refuse_unused
from .sources import open_checkpoint
from .summary import measure_speed, table
from .tokenization import check_tokenization
from .writer import PackageWriter

__all__ = ["ExportOptions", "ExportResult", "export", "preview"]

REPORT_NAME: Final = "report.json"
KEPT_FILES: Final = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.txt")
SPARE_BYTES: Final = 64 * 1024 * 1024
TOOLS: Final = ("torch", "transformers", "tokenizers", "onnx", "onnxruntime", "optimum-onnx")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """A finished package: where it is, and what was decided and measured."""

    out: Path
    report: Mapping[str, Any]


def export(options: ExportOptions, say: Say = lambda line: None) -> ExportResult:
    """Turn a checkpoint into a package that is proven equal to it.

    ``say`` receives lines for the user as the work goes on.

    Raises:
        ExportError: nothing was written, and an existing package is as it was.
    """
    with (
        _open(options, say) as checkpoint,
        PackageWriter(options.out_path, overwrite=options.overwrite, add=options.add) as writer,
    ):
        plan = make_plan(options, checkpoint)
        for reason in plan.reasons:
            say(reason)
        bundled = proof.BUDGETS[plan.options.precision].texts
        texts, texts_sha256 = proof.texts_for(plan.recipe, options.verify, bundled)
        records = [(text.problem, text.steps) for text in texts]
        agreed = check_tokenization(plan.family, plan.encoder, plan.tokenizer, plan.files, records)
        say(f"tokenization: {agreed} records encoded exactly as transformers does")
        identity = _identity(plan, texts_sha256)
        writer.check_addable(
            recipe=plan.recipe,
            max_tokens=plan.max_tokens,
            tokenizer=plan.files.raw,
            provenance=identity,
            error_kinds=plan.head.kinds,
        )
        half = None
        if plan.options.target == CUDA:
            half = cuda_target.decide(
                plan,
                texts,
                writer.staging,
                open_choice=options.precision == AUTO,
                say=say,
            )
            decided = replace(plan.options, precision=half.precision)
            plan = replace(plan, options=decided)
        report = _write(plan, writer, texts, identity, half, say)
    say(f"wrote {options.out_path}")
    return ExportResult(out=options.out_path, report=report)


def _open(options: ExportOptions, say: Say = lambda line: None) -> Checkpoint:
    return open_checkpoint(
        options.checkpoint, revision=options.revision, base=options.base, say=say
    )


def _write(
    plan: Plan,
    writer: PackageWriter,
    texts: list[proof.Text],
    identity: dict[str, Scalar],
    half: cuda_target.Half | None,
    say: Say,
) -> dict[str, Any]:
    options = plan.options
    folder = writer.variant_dir(options.variant)
    records = _records(plan, texts)
    _preflight(plan, folder, records, say)
    reference, quantized = _build(plan, folder, records, half, say)
    writer.write_bytes(TOKENIZER_NAME, plan.files.raw)
    manifest = _manifest(plan, writer.staging, identity, quantized)
    package = Package(root=writer.staging, manifest=manifest, digest="0" * 64)
    speed: dict[str, float | int] | None = None
    with TemporaryDirectory(dir=writer.staging) as scratch, ExitStack() as stack:
        checked = {}
        if half is None:
            scorer = Scorer.from_package(package, manifest.variants[0])
        else:
            scorer, what = cuda_target.open_for_proof(plan, half, package, Path(scratch), say)
            checked = {"checked": what}
            say(f"checked: {what}")
        stack.enter_context(scorer)
        results = proof.compare(
            scorer,
            plan.encoder,
            reference,
            texts,
            lambda done: (
                say(f"proof: {done} of {len(texts)} solutions") if done % 20 == 0 else None
            ),
        )
        figures = proof.measure(results, scorer.threshold)
        over = proof.check_budget(figures, results, options.precision)
        for line in proof.lines(figures):
            say(line)
        if over is not None and quantized is not None:
            over = "\n".join([over, "linears that lose most:", *quantized.worst])
        if over is not None and not options.allow_drift:
            exact = "" if quantized is None else "; --precision fp32 is exact"
            raise ProofError(
                f"{over}\nnothing was written; --allow-drift records it and goes on{exact}"
            )
        if options.expect is not None:
            figures |= check_expected(scorer, options.expect)
            say(
                f"expected scores: {figures['expect_records']} records, max |dp| "
                f"{figures['expect_max_abs_dp']:.2e}"
            )
        if half is not None and checked["checked"] != cuda_target.GPU:
            figures |= cuda_target.check_itself(plan, half, package, texts)
        else:  # else it would be the speed of what it is checked with
            speed = measure_speed(scorer, [result.text for result in results])
    summary = checked | proof.summary(figures, options.precision, drift=over is not None)
    report: dict[str, Any] = {
        "variant": options.variant,
        "decisions": list(plan.reasons),
        "proof": summary,
        "provenance": identity,
        "size": {
            "bytes": sum(path.stat().st_size for path in folder.iterdir()),
            "parameters": _parameters(plan),
        },
        **({} if quantized is None else {"plan": quantized.report}),
        **({} if half is None else {"ranges": half.report}),
    }
    _write_small_files(plan, writer, proof.self_test_cases(results), report)
    variant = replace(manifest.variants[0], proof=summary)
    manifest = replace(manifest, variants=(variant,))
    kept = writer.existing.manifest.variants if writer.existing else ()
    card = model_card(replace(manifest, variants=(*kept, variant)), _license(plan))
    writer.write_bytes(CARD_NAME, card.encode())
    writer.finish(manifest)
    # not in the package: the same checkpoint gives the same bytes, and never the same speed
    report["speed"] = speed
    for line in table(report):
        say(line)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What is run: the encoded texts of the proof, and those to quantize with."""

    proof: list[Encoded]
    solutions: Solutions | None


def _records(plan: Plan, texts: list[proof.Text]) -> Records:
    encoded = [plan.encoder.encode(text.problem, text.steps) for text in texts]
    solutions = None
    if plan.options.precision in MENUS:
        path = plan.options.calibration
        solutions = load_solutions(path, plan.encoder, plan.max_tokens, texts)
    return Records(
        proof=[record for record in encoded if len(record.ids) <= plan.max_tokens],
        solutions=solutions,
    )


def _preflight(plan: Plan, folder: Path, records: Records, say: Say) -> None:
    """Say what it will take, and refuse what does not fit."""
    if plan.decoder is None or plan.backend != NATIVE:
        require_free_space(folder, _estimated_bytes(plan))
        return
    fitted = records.solutions.calibration if records.solutions else []
    planned = records.solutions.search if records.solutions else []
    needs = preflight.estimate(
        plan.decoder,
        plan.options.precision,
        preflight.lengths(
            [len(record.ids) for record in (*fitted, *planned, *records.proof)],
            [len(record.ids) for record in fitted],
        ),
        gflops=preflight.measured_gflops(),
    )
    say(needs.line())
    preflight.require(needs, folder, ignore=plan.options.ignore_limits)


def _build(
    plan: Plan, folder: Path, records: Records, half: cuda_target.Half | None, say: Say
) -> tuple[proof.Reference, Quantized | None]:
    """Write the variant's graph; return the reference, made from the same tensors."""
    if half is not None:
        cuda_target.build(plan, half, folder, say)
        return half.reference, None
    tensors = plan.checkpoint.tensors
    if records.solutions is not None and plan.decoder is not None:
        quantized = build_within_target(
            plan.decoder,
            plan.head,
            tensors,
            plan.recipe.score,
            folder,
            records.solutions,
            records.proof,
            opening=plan.encoder.opening(),
            max_tokens=plan.max_tokens,
            say=say,
            progress=paced("calibration", say),
            menu=MENUS[plan.options.precision],
        )
        for name in refuse_unused(tensors):
            say(f"not needed for scores: {name}")
        return quantized.reference, quantized
    return _build_float(plan, folder, records.proof, say), None


def _build_float(plan: Plan, folder: Path, records: Sequence[Encoded], say: Say) -> proof.Reference:
    tensors = plan.checkpoint.tensors
    if plan.backend == NATIVE and plan.decoder is not None:
        build_decoder(
            plan.decoder,
            plan.head,
            tensors,
            folder,
            max_tokens=plan.max_tokens,
            progress=paced("graph", say),
        )
        for name in refuse_unused(tensors):
            say(f"not needed for scores: {name}")
    else:
        from .optimum_backend import export_stateless

        export_stateless(plan.checkpoint, folder / GRAPH_NAME)
        say("graph: exported by optimum")
    if plan.decoder is None:
        from .encoders import load_encoder

        return load_encoder(plan.checkpoint)
    reference = run_reference(
        LayerRunner(plan.decoder, plan.head, tensors, scratch=folder),
        plan.decoder.layers,
        records,
        paced("reference", say),
    )
    refuse_unused(tensors)
    return reference


def _manifest(
    plan: Plan, staging: Path, identity: dict[str, Scalar], quantized: Quantized | None
) -> Manifest:
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
        provenance=identity,
        error_kinds=plan.head.kinds,
    )


def _identity(plan: Plan, texts_sha256: str) -> dict[str, Scalar]:
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


def _estimated_bytes(plan: Plan) -> int:
    bytes_each = cuda_target.BYTES.get(plan.options.precision, 4)
    return bytes_each * _parameters(plan) + len(plan.files.raw) + SPARE_BYTES


def _parameters(plan: Plan) -> int:
    return sum(math.prod(info.shape) for info in plan.checkpoint.tensors.info.values())


def _write_small_files(
    plan: Plan, writer: PackageWriter, cases: list[Any], report: dict[str, Any]
) -> None:
    if writer.existing is None:
        # the cases are torch's scores, the same for every variant: --add keeps the first ones
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


def _license(plan: Plan) -> str | None:
    """The licence that the checkpoint's own model card names in its front matter."""
    path = plan.checkpoint.find("README.md")
    if not path.is_file():
        return None
    front = path.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    found = re.search(r"^license: *([A-Za-z0-9.+-]+) *$", front, re.MULTILINE)
    return found.group(1) if found else None


def planned(options: ExportOptions) -> Plan:
    """What an export would decide; its checkpoint is closed again.

    Raises:
        ExportError: as :func:`export` would, before any weight is read.
    """
    with _open(options) as checkpoint:
        return make_plan(options, checkpoint)


def preview(options: ExportOptions) -> list[str]:
    """What an export would decide, and one encoded example with its read positions marked.

    Raises:
        ExportError: as :func:`export` would, before any weight is read.
    """
    with _open(options) as checkpoint:
        plan = make_plan(options, checkpoint)
        texts, _ = proof.texts_for(plan.recipe, options.verify)
        text = texts[0]
        encoded = plan.encoder.encode(text.problem, text.steps)
        reads = set(encoded.reads.tolist())
        lines = [*plan.reasons, "", "one encoded example (id, token, <-- where a score is read):"]
        for position, token in enumerate(encoded.ids.tolist()):
            shown = plan.tokenizer.convert_ids_to_tokens(token)
            mark = "  <-- read" if position in reads else ""
            lines.append(f"{position:6d}  {token:8d}  {shown!r}{mark}")
        return lines

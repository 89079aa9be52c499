"""The whole road: checkpoint -> plan -> graph -> proof -> package.

Every step either succeeds or raises, and nothing is visible at OUT before all of them have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prm_edge_runtime import Scorer
from prm_edge_runtime.encoding import Encoded
from prm_edge_runtime.errors import ProofError
from prm_edge_runtime.manifest import CARD_NAME, TOKENIZER_NAME
from prm_edge_runtime.package import Package
from prm_edge_runtime.selftest import Case

from . import cuda_target, proof, stored_cases
from .card import model_card
from .checkpoint import Checkpoint
from .contents import identity, license_of, new_manifest, write_small_files
from .expect import check_expected
from .graph import GRAPH_NAME, build_decoder
from .options import AUTO, CUDA, FP32, INT8, NATIVE, ExportOptions
from .pace import paced
from .plan import Plan, make_plan, quantizable
from .quantization.kinds import MENUS
from .quantization.layers import LayerRunner, StoredReference, run_reference
from .quantization.search import Quantized, build_within_target
from .reference import refuse_unused
from .sources import open_checkpoint
from .summary import measure_speed, table
from .workload import Workload, parameters, require_room, workload
from .writer import PackageWriter

__all__ = ["ExportOptions", "ExportResult", "export", "preview"]

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
        work = _begin(plan, writer, say)
        half = None
        if plan.options.target == CUDA:
            plan, work, half = _decided(plan, work, writer, options.precision == AUTO, say)
        report = _write(plan, writer, work, half, say)
    say(f"wrote {options.out_path}")
    # float32 is what is made unasked: exact, in seconds, for every checkpoint that can be read;
    # int8 takes minutes, and a model may not stand it
    unasked = options.precision == AUTO and plan.options.precision == FP32 and not options.add
    if unasked and quantizable(plan.backend, plan.decoder):
        say(f"smaller and faster on a CPU, in some minutes: the same with --add --precision {INT8}")
    return ExportResult(out=options.out_path, report=report)


def _open(options: ExportOptions, say: Say = lambda line: None) -> Checkpoint:
    return open_checkpoint(
        options.checkpoint, revision=options.revision, base=options.base, say=say
    )


def _begin(plan: Plan, writer: PackageWriter, say: Say) -> Workload:
    """Everything that can be refused before weights are read."""
    work = workload(plan, say)
    writer.check_addable(
        variant=plan.options.variant,
        recipe=plan.recipe,
        max_tokens=plan.max_tokens,
        tokenizer=plan.files.raw,
        provenance=identity(plan, work.texts_sha256),
        error_kinds=plan.head.kinds,
    )
    require_room(plan, work, writer.staging, say)
    return work


def _decided(
    plan: Plan, work: Workload, writer: PackageWriter, open_choice: bool, say: Say
) -> tuple[Plan, Workload, cuda_target.Half]:
    """A variant for a GPU in the precision that the model's values and weights allow."""
    assert work.measured is not None  # as the target is cuda
    half = cuda_target.decide(
        plan, work.measured, work.proof, writer.staging, open_choice=open_choice, say=say
    )
    asked, decided = plan.options, replace(plan.options, precision=half.precision)
    plan = replace(plan, options=decided, reasons=(*plan.reasons, half.reason))
    if decided != asked and asked.verify is None:  # bfloat16 is proven on more solutions
        work = _begin(plan, writer, say)
        half = replace(half, reference=_reference(plan, writer.staging, work.proof, say))
    return plan, work, half


def _write(
    plan: Plan,
    writer: PackageWriter,
    work: Workload,
    half: cuda_target.Half | None,
    say: Say,
) -> dict[str, Any]:
    options = plan.options
    provenance = identity(plan, work.texts_sha256)
    folder = writer.variant_dir(options.variant)
    reference, quantized = _build(plan, folder, work, half, say)
    writer.write_bytes(TOKENIZER_NAME, plan.files.raw)
    manifest = new_manifest(plan, writer.staging, provenance, quantized)
    package = Package(root=writer.staging, manifest=manifest, digest="0" * 64)
    proven = _prove(plan, package, writer.existing, work.texts, reference, half, quantized, say)
    report: dict[str, Any] = {
        "variant": options.variant,
        "decisions": list(plan.reasons),
        "proof": proven.summary,
        "provenance": provenance,
        "size": {
            "bytes": sum(path.stat().st_size for path in folder.iterdir()),
            "parameters": parameters(plan),
        },
        **({} if quantized is None else {"plan": quantized.report}),
        **({} if half is None else cuda_target.report(plan, half, quantized, say)),
    }
    write_small_files(plan, writer, proven.cases, report)
    variant = replace(manifest.variants[0], proof=proven.summary)
    manifest = replace(manifest, variants=(variant,))
    kept = writer.existing.manifest.variants if writer.existing else ()
    card = model_card(replace(manifest, variants=(*kept, variant)), license_of(plan))
    writer.write_bytes(CARD_NAME, card.encode())
    writer.finish(manifest)
    # not in the package: the same checkpoint gives the same bytes, and never the same speed
    report["speed"] = proven.speed
    for line in table(report):
        say(line)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """What the proof found, and the cases of the self-test that it allows for.

    ``speed``: where the variant itself has run on its device.
    """

    cases: list[Case]
    summary: dict[str, Any]
    speed: dict[str, float | int] | None


def _prove(
    plan: Plan,
    package: Package,
    existing: Package | None,
    texts: list[proof.Text],
    reference: proof.Reference,
    half: cuda_target.Half | None,
    quantized: Quantized | None,
    say: Say,
) -> Proven:
    """Run the staged package against the reference; over budget nothing is written."""
    options = plan.options
    checked: dict[str, Any] = {}
    speed = None
    with TemporaryDirectory(dir=package.root) as scratch, ExitStack() as stack:
        if half is None:
            scorer = Scorer.from_package(package, package.manifest.variants[0])
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
        if over is not None and not options.allow_drift:
            raise ProofError(_refused(over, quantized, half))
        if options.expect is not None:
            figures |= check_expected(scorer, options.expect)
            say(
                f"expected scores: {figures['expect_records']} records, max |dp| "
                f"{figures['expect_max_abs_dp']:.2e}"
            )
        cases = stored_cases.of_package(existing, results)
        limits = stored_cases.limits(scorer, cases, options.precision)
        if half is None or checked["checked"] == cuda_target.GPU:
            speed = measure_speed(scorer, [result.text for result in results])
        else:  # its speed would be that of what it is checked with
            scorer.close()  # or two graphs would be in memory
            figures |= cuda_target.check_itself(plan, half, package, texts)
    summary = checked | proof.summary(figures, limits, drift=over is not None)
    return Proven(cases=cases, summary=summary, speed=speed)


def _refused(over: str, quantized: Quantized | None, half: cuda_target.Half | None) -> str:
    exact = ""
    if quantized is not None:
        over = "\n".join([over, "linears that lose most:", *quantized.worst])
        closer = quantized.report["target"]["mean_abs_dp"] / 2
        exact = f"; --drift {closer:g} aims closer to torch, "
        exact += f"--precision {'fp32 is exact' if half is None else 'fp16 loses less'}"
    return f"{over}\nnothing was written; --allow-drift records it and goes on{exact}"


def _build(
    plan: Plan, folder: Path, work: Workload, half: cuda_target.Half | None, say: Say
) -> tuple[proof.Reference, Quantized | None]:
    """Write the variant's graph; return the reference, made from the same tensors."""
    if half is not None:
        return half.reference, cuda_target.build(plan, half, folder, work.solutions, say)
    tensors = plan.checkpoint.tensors
    if work.solutions is not None and plan.decoder is not None:
        quantized = build_within_target(
            plan.decoder,
            plan.head,
            tensors,
            plan.recipe.score,
            folder,
            work.solutions,
            work.proof,
            opening=plan.encoder.opening(),
            max_tokens=plan.max_tokens,
            say=say,
            menu=replace(MENUS[plan.options.precision], drift=plan.options.drift),
        )
        for name in refuse_unused(tensors):
            say(f"not needed for scores: {name}")
        return quantized.reference, quantized
    return _build_float(plan, folder, work.proof, say), None


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
    reference = _reference(plan, folder, records, say)
    refuse_unused(tensors)
    return reference


def _reference(plan: Plan, scratch: Path, records: Sequence[Encoded], say: Say) -> StoredReference:
    assert plan.decoder is not None  # only decoders run layer by layer
    return run_reference(
        LayerRunner(plan.decoder, plan.head, plan.checkpoint.tensors, scratch=scratch),
        plan.decoder.layers,
        records,
        paced("reference", say),
    )


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

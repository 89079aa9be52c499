"""The one place that imports onnxruntime and opens a session.

Every session is opened the same way, so that nothing can forget what keeps scores exact and
private: telemetry off before the import, exact 8-bit products on every CPU, nothing printed.
"""

from __future__ import annotations

import base64
import functools
import logging
import os
import re
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import cuda
from .cuda_options import CudaOptions
from .errors import ConfigError, DeviceError, EngineError, RuntimeMissingError

if TYPE_CHECKING:
    import onnxruntime

import numpy as np

logger = logging.getLogger("prm_edge")

MAX_THREADS: Final = 1024
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A device as onnxruntime names it, and how CUDA is used there."""

    device: str
    options: CudaOptions = field(default_factory=CudaOptions)

    @property
    def number(self) -> int:
        """Which of the devices of this kind."""
        return self.options.gpu if self.device == "cuda" else 0


# MatMulIntegerToFloat: uint8 (M, 16) times int8 (16, 32), all 127, scales 1; made with onnx.helper
_PROBE: Final = zlib.decompress(
    base64.b85decode(
        "c-rIOvYNokWy-~v$i<k%#aPV6RBR-~Sg9o9n^@von&X*QlA4}c6q4_jlb={(#haX;tCyRZT$Ep&pH?Eon6A~s!Xdz"
        "+Ai(UznB>*KQa=htG|=J}V02<E_F`dRXt3Af0dj!J3BrpK0j4n_elA`PCLvBPW+6sjE+!6vB%o*|Sd<YVs^G-J#ULQ"
        ")B*=xD-UJu{O~xRJ"
    )
)
_LARGEST: Final = 255
_PROBE_SUM: Final = 16 * _LARGEST * 127


def load_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off.

    Since 1.29 the Linux and macOS wheels send usage events unless this variable is set before the
    library is loaded (onnxruntime docs/Privacy.md).

    Raises:
        RuntimeMissingError: when neither onnxruntime nor onnxruntime-gpu is installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError(
            "onnxruntime cannot be imported "
            f"({error}); install one: pip install 'prm-edge[cpu]', or 'prm-edge[gpu]' for CUDA"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise RuntimeMissingError(
            "onnxruntime is installed but broken (it has no InferenceSession), as when onnxruntime "
            "and onnxruntime-gpu overwrite each other; run pip uninstall onnxruntime "
            "onnxruntime-gpu, then pip install 'prm-edge[cpu]' or 'prm-edge[gpu]'"
        )
    # Also when the caller had imported it before us.
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def thread_count(threads: int | None) -> int:
    """Threads for one session: the argument, else ``PRM_EDGE_THREADS``, else 0 (every core).

    Raises:
        ConfigError: when it is not a whole number from 0 to ``MAX_THREADS``.
    """
    source = "threads"
    value: object = threads
    if threads is None:
        source = "PRM_EDGE_THREADS"
        value = os.environ.get(source, "").strip() or "0"
    try:
        text, shown = str(value), repr(value)[:40]
    except ValueError:  # an int of more digits than Python writes out
        text = shown = "a far larger number"
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
    if not 0 <= number <= MAX_THREADS:
        raise ConfigError(
            f"{source} must be a whole number from 1 to {MAX_THREADS}, or 0 for every core; "
            f"got {shown}"
        )
    return number


def cuda_available() -> bool:
    """Whether the installed onnxruntime was built with the CUDA execution provider."""
    return PROVIDERS["cuda"] in load_onnxruntime().get_available_providers()


@functools.cache
def products_saturate() -> bool:
    """Whether this CPU's own uint8 x int8 kernels lose the largest sums; measured once.

    x86 CPUs without VNNI add pairs of products in 16 bits. ``session.x64quantprecision`` avoids
    that everywhere, also where it need not, and there it makes int8 take 2.3 times as long.
    """
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(_PROBE, options, providers=[PROVIDERS["cpu"]])
    # one row and several take different kernels
    runs = [session.run(None, {"a": np.full((m, 16), _LARGEST, np.uint8)})[0] for m in (1, 2, 13)]
    return any(bool((sums != _PROBE_SUM).any()) for sums in runs)


def nodes_by_provider(path: Path, *, device: str) -> dict[str, int]:
    """Open a graph and count the nodes that each provider really got.

    Empty where this onnxruntime does not report it (before 1.24).

    Raises:
        DeviceError, EngineError: as :func:`open_session`.
    """
    session = open_session(path, device=device, threads=1, record_assignment=True)
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    counts: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    return counts


def open_session(
    path: Path,
    *,
    device: str,
    threads: int,
    options: CudaOptions | None = None,
    precision: str = "",
    record_assignment: bool = False,
) -> onnxruntime.InferenceSession:
    """Open a graph on exactly the device asked for; there is no fallback.

    ``precision``: of the variant, where it is one's graph.

    Raises:
        DeviceError: when the provider is missing or the session ended up elsewhere.
        EngineError: when onnxruntime cannot load the graph.
    """
    place = Place(device=device, options=options or CudaOptions())
    config = {"session.record_ep_graph_assignment_info": "1"} if record_assignment else {}
    if device == "cpu":
        config["session.x64quantprecision"] = "1" if products_saturate() else "0"
    else:
        config |= place.options.session_options(precision)
    return _open(str(path), path, place, threads, config)


def open_copier(model: bytes, place: Place) -> onnxruntime.InferenceSession:
    """Open a small graph of ours that only copies, on the device of a model.

    Raises:
        DeviceError, EngineError: as :func:`open_session`.
    """
    # what it copies has another size each time, so that nothing of it can be replayed
    plain = replace(place, options=replace(place.options, graphs=False))
    return _open(model, "the graphs that copy keys and values", plain, 1, {})


def _open(
    model: str | bytes, shown: object, place: Place, threads: int, config: dict[str, str]
) -> onnxruntime.InferenceSession:
    ort = load_onnxruntime()
    device, provider = place.device, PROVIDERS[place.device]
    if provider not in ort.get_available_providers():
        mend = cuda.clash() or f"run pip uninstall onnxruntime, then {cuda.GPU_COMMAND}"
        raise DeviceError(
            f"device {device!r} needs {provider}, which this onnxruntime {ort.__version__} does "
            f"not have (it has {', '.join(ort.get_available_providers())}); {mend}"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors come back as exceptions; a library never prints
    arguments: dict[str, Any] = {}
    if device == "cuda":
        config = {**config, "session.disable_cpu_ep_fallback": "1"}
        arguments["provider_options"] = [place.options.provider_options(ort.__version__)]
        cuda.preload(ort)
        problem = cuda.problem(ort)
        if problem is not None:
            raise DeviceError(f"device {device!r} cannot be had: {problem}")
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    try:
        # Its own fallback would print, and go on elsewhere, here and whenever a run fails.
        session = ort.InferenceSession(
            model, options, providers=[provider], enable_fallback=0, **arguments
        )
    except Exception as error:  # onnxruntime raises many unrelated types
        if "fallback to CPU EP has been explicitly disabled" in str(error):
            raise DeviceError(
                f"device {device!r} was asked for, but onnxruntime {ort.__version__} would run "
                f"part of {shown} on the CPU: the provider could not start (driver, GPU), or has "
                "no kernel for a node of the graph; run prm-edge doctor, or pass device='cpu'"
            ) from error
        failure = cuda.failure(str(error)) if device == "cuda" else None
        if failure is not None:
            raise DeviceError(
                f"device 'cuda' (gpu {place.number}) cannot be had: {failure}"
            ) from error
        raise EngineError(f"onnxruntime {ort.__version__} cannot load {shown}: {error}") from error
    actual = session.get_providers()
    if actual[:1] != [provider]:
        raise DeviceError(
            f"device {device!r} was asked for, but onnxruntime put the session on "
            f"{', '.join(actual)}; check the CUDA and cuDNN libraries, or pass device='cpu'"
        )
    logger.debug("opened %s on %s", shown, actual)
    return session

"""The one place that opens a session: telemetry, providers, threads, and what it says without."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prm_edge_runtime import cuda, ort
from prm_edge_runtime.cuda_options import CudaOptions
from prm_edge_runtime.errors import ConfigError, DeviceError, EngineError, RuntimeMissingError


def run_python(code: str, *arguments: object, **environment: str) -> str:
    """Run code in a fresh interpreter that sees what this one sees; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TELEMETRY = """
import os, sys
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
seen = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
from prm_edge_runtime import Scorer
assert "onnxruntime" not in sys.modules
Scorer.load(sys.argv[1])
print(seen)
"""


def test_load_onnxruntime_telemetry_is_off_before_the_import(tiny_package: Path) -> None:
    assert run_python(TELEMETRY, tiny_package) == "['1']"


MISSING = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
sys.meta_path.insert(0, Block())
from prm_edge_runtime import PrmEdgeError, Scorer
try:
    Scorer.load(sys.argv[1])
except PrmEdgeError as error:
    print(type(error).__name__, isinstance(error, ImportError), error)
"""


def test_load_onnxruntime_missing_says_what_to_install(tiny_package: Path) -> None:
    said = run_python(MISSING, tiny_package)
    assert said == (
        "RuntimeMissingError True onnxruntime cannot be imported (No module named 'onnxruntime'); "
        "install one: pip install 'prm-edge[cpu]', or 'prm-edge[gpu]' for CUDA"
    )


def test_load_onnxruntime_missing_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissingError, match=r"cannot be imported .*prm-edge\[cpu\]'"):
        ort.load_onnxruntime()


def test_load_onnxruntime_broken_by_two_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(RuntimeMissingError, match=r"broken .it has no InferenceSession.*uninstall"):
        ort.load_onnxruntime()


def test_load_onnxruntime_also_when_the_caller_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRuntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert ort.load_onnxruntime() is fake
    assert fake.said == ["telemetry off"]
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


# --- threads


@pytest.mark.parametrize(
    ("threads", "environment", "expected"),
    [
        (None, None, 0),
        (None, "", 0),
        (None, "  ", 0),
        (None, "3", 3),
        (None, " 3 ", 3),
        (None, "0", 0),
        (2, "3", 2),
        (0, "3", 0),
        (2, "nonsense", 2),
        (1024, None, 1024),
    ],
)
def test_thread_count(
    threads: int | None,
    environment: str | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if environment is None:
        monkeypatch.delenv("PRM_EDGE_THREADS", raising=False)
    else:
        monkeypatch.setenv("PRM_EDGE_THREADS", environment)
    assert ort.thread_count(threads) == expected


@pytest.mark.parametrize(
    ("threads", "shown"),
    [
        (-1, "-1"),
        (1.5, "1.5"),
        (2.0, "2.0"),
        ("two", "'two'"),
        ("", "''"),
        (True, "True"),
        (False, "False"),
        ([], r"\[\]"),
        (float("nan"), "nan"),
        (1025, "1025"),
        (10**12, "1000000000000"),
        ("9" * 5000, "'9{39}"),
        ("1_0", "'1_0'"),
        ("\u0663", "'\u0663'"),  # a digit, and int() would take it
    ],
    ids=lambda value: ascii(value)[:20] if isinstance(value, str) else None,
)
def test_thread_count_refuses(threads: Any, shown: str) -> None:
    match = f"^threads must be a whole number from 1 to 1024, or 0 for every core; got {shown}$"
    with pytest.raises(ConfigError, match=match):
        ort.thread_count(threads)


def test_thread_count_refuses_what_python_does_not_write_out() -> None:
    with pytest.raises(ConfigError, match=r"^threads must be .*; got a far larger number$"):
        ort.thread_count(10**5000)


@pytest.mark.parametrize("value", ["-1", "two", "1.5", "1 2", "True", "1025", "1_0"])
def test_thread_count_refuses_and_names_the_variable(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRM_EDGE_THREADS", value)
    with pytest.raises(ConfigError, match=f"^PRM_EDGE_THREADS must be .* got '{value}'"):
        ort.thread_count(None)


# --- sessions, with a stand-in for onnxruntime that remembers what it was asked


class FakeRuntime(types.ModuleType):
    __version__ = "9.9"

    def __init__(self, *, cuda: bool = False, lands_on: str | None = None) -> None:
        super().__init__("onnxruntime")
        self.said: list[Any] = []
        self.provider_options: list[dict[str, str]] | None = None
        self.providers = [*(["CUDAExecutionProvider"] if cuda else []), "CPUExecutionProvider"]
        runtime = self

        class SessionOptions:
            def __init__(self) -> None:
                self.config: dict[str, str] = {}

            def add_session_config_entry(self, key: str, value: str) -> None:
                self.config[key] = value

        class InferenceSession:
            def __init__(
                self,
                path: str,
                options: Any,
                providers: list[str],
                enable_fallback: int,
                provider_options: list[dict[str, str]] | None = None,
            ) -> None:
                assert enable_fallback == 0
                runtime.provider_options = provider_options
                runtime.said.append((path, vars(options), providers))
                self.on = [lands_on] if lands_on else providers

            def get_providers(self) -> list[str]:
                return self.on

        self.SessionOptions = SessionOptions
        self.InferenceSession = InferenceSession

    def get_available_providers(self) -> list[str]:
        return self.providers

    def disable_telemetry_events(self) -> None:
        self.said.append("telemetry off")

    def preload_dlls(self) -> None:
        self.said.append("preloaded")


def install(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> FakeRuntime:
    fake = FakeRuntime(**arguments)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return fake


@pytest.mark.parametrize(("saturates", "precise"), [(True, "1"), (False, "0")])
def test_open_session_cpu_is_exact_on_every_x86(
    saturates: bool, precise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install(monkeypatch)
    monkeypatch.setattr(ort, "products_saturate", lambda: saturates)
    ort.open_session(Path("g.onnx"), device="cpu", threads=3)
    path, options, providers = fake.said[-1]
    assert path == "g.onnx"
    assert options["config"] == {"session.x64quantprecision": precise}
    assert options["intra_op_num_threads"] == 3
    assert options["log_severity_level"] == 4
    assert providers == ["CPUExecutionProvider"]
    assert "preloaded" not in fake.said


def test_open_session_cuda_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, cuda=True)
    ort.open_session(Path("g.onnx"), device="cuda", threads=0)
    _, options, providers = fake.said[-1]
    assert options["config"]["session.disable_cpu_ep_fallback"] == "1"
    assert providers == ["CUDAExecutionProvider"]
    assert fake.said[-2] == "preloaded"
    ort.open_session(
        Path("g.onnx"), device="cuda", threads=0, options=CudaOptions(gpu=1, memory_limit_mb=6000)
    )
    (given,) = fake.provider_options or []
    assert (given["device_id"], given["gpu_mem_limit"]) == ("1", "6000000000")
    assert given["use_tf32"] == "0"


def test_open_session_tells_cuda_alone_how_int4_is_multiplied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = install(monkeypatch, cuda=True)
    monkeypatch.setattr(ort, "products_saturate", lambda: False)
    told = []
    for device, precision in (("cuda", "int4"), ("cuda", "fp16"), ("cpu", "int4")):
        ort.open_session(Path("g.onnx"), device=device, threads=1, precision=precision)
        told.append(fake.said[-1][1]["config"].get("ep.cuda.fpa_intb_gemm"))
    assert told == ["1", None, None]


def test_place_numbers_gpus_alone() -> None:
    options = CudaOptions(gpu=2)
    assert ort.Place(device="cuda", options=options).number == 2
    assert ort.Place(device="cpu", options=options).number == 0


def test_open_session_cuda_names_missing_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, cuda=True)
    fake.cuda_version = "13.0"
    monkeypatch.setattr(cuda, "missing_libraries", lambda major: [f"libcublas.so.{major}"])
    with pytest.raises(DeviceError, match=r"'cuda' cannot be had: .*CUDA 13.*libcublas\.so\.13"):
        ort.open_session(Path("g.onnx"), device="cuda", threads=0)
    assert fake.said[-1] == "preloaded"  # no session was tried


def test_open_session_cuda_that_would_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, cuda=True)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("... but fallback to CPU EP has been explicitly disabled by the user.")

    monkeypatch.setattr(fake, "InferenceSession", refuse)
    with pytest.raises(DeviceError, match=r"would run part of g\.onnx on the CPU.*prm-edge doctor"):
        ort.open_session(Path("g.onnx"), device="cuda", threads=0)


# as onnxruntime-gpu 1.31.1 says it where a driver finds no GPU, and its source for the second one
NO_GPU = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static "
    "FromProviderOptions [ONNXRuntimeError] : 1 : FAIL : provider_options_utils.h:187 Parse Failed "
    'to parse provider option "device_id": CUDA failure 100: no CUDA-capable device is detected ; '
    "GPU=-1 ; hostname=vm ; file=cuda_execution_provider_info.cc ; line=70 ; "
    "expr=cudaGetDeviceCount(&num_devices); "
)
NO_SUCH_GPU = (
    'Parse Failed to parse provider option "device_id": Invalid device ID: 3, must be between 0 '
    "(inclusive) and 2 (exclusive)."
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NO_GPU, r"\(gpu 3\) cannot be had: CUDA failed: no CUDA-capable device is detected "
                 r"\(failure 100\); nvidia-smi .* pass device='cpu'$"),
        (NO_SUCH_GPU, r"\(gpu 3\) cannot be had: CUDA sees 2 GPUs, numbered from 0; choose"),
    ],
)  # fmt: skip
def test_open_session_cuda_says_what_cuda_reported(
    text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install(monkeypatch, cuda=True)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(ort, "products_saturate", lambda: False)
    monkeypatch.setattr(fake, "InferenceSession", refuse)
    with pytest.raises(DeviceError, match=said):
        ort.open_session(Path("g"), device="cuda", threads=0, options=CudaOptions(gpu=3))
    with pytest.raises(EngineError, match=r"^onnxruntime 9\.9 cannot load g: "):
        ort.open_session(Path("g"), device="cpu", threads=0)


def test_open_session_cuda_graph_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, cuda=True)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("Protobuf parsing failed.")

    monkeypatch.setattr(fake, "InferenceSession", refuse)
    with pytest.raises(EngineError, match=r"cannot load g: Protobuf parsing failed\.$"):
        ort.open_session(Path("g"), device="cuda", threads=0)


def test_open_session_that_landed_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, cuda=True, lands_on="CPUExecutionProvider")
    with pytest.raises(DeviceError, match=r"'cuda' was asked for, but .* on CPUExecutionProvider"):
        ort.open_session(Path("g.onnx"), device="cuda", threads=0)


def test_open_session_without_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(
        DeviceError,
        match=r"'cuda' needs CUDAExecutionProvider.*9\.9.*has CPUExec.*prm-edge\[gpu\]'",
    ):
        ort.open_session(Path("g.onnx"), device="cuda", threads=0)


@pytest.mark.parametrize("cuda", [False, True])
def test_cuda_available(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, cuda=cuda)
    assert ort.cuda_available() is cuda


# --- the real one


def test_nodes_by_provider_counts_every_node(tiny_package: Path) -> None:
    counts = ort.nodes_by_provider(tiny_package / "cpu-fp32/model.onnx", device="cpu")
    reported = hasattr(
        ort.load_onnxruntime().InferenceSession, "get_provider_graph_assignment_info"
    )
    assert list(counts) == (["CPUExecutionProvider"] if reported else [])
    assert all(count > 10 for count in counts.values())


def test_open_session_sets_the_options_for_real(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ort.load_onnxruntime()
    made: list[Any] = []

    class Options(real.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    ort.products_saturate()
    monkeypatch.setattr(real, "SessionOptions", Options)
    session = ort.open_session(tiny_package / "cpu-fp32/model.onnx", device="cpu", threads=1)
    precise = "1" if ort.products_saturate() else "0"
    assert made[0].get_session_config_entry("session.x64quantprecision") == precise
    assert made[0].intra_op_num_threads == 1
    assert session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize(("lost", "expected"), [(0, False), (1, True)])
def test_products_saturate_compares_every_sum(
    lost: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def __init__(self, model: bytes, options: Any, providers: list[str]) -> None:
            assert isinstance(model, bytes)

        def run(self, names: None, feeds: dict[str, Any]) -> list[Any]:
            rows = feeds["a"]
            assert rows.min() == 255
            sums = (rows.astype(np.int64) @ np.full((16, 32), 127)).astype(np.float32)
            sums[-1, -1] -= lost * (len(rows) > 2)
            return [sums]

    real = ort.load_onnxruntime()
    monkeypatch.setattr(real, "InferenceSession", Session)
    assert ort.products_saturate.__wrapped__() is expected


def test_products_saturate_is_what_the_kernels_do() -> None:
    # where they do not, the session option must not change a bit; where they do, it must
    real = ort.load_onnxruntime()
    values = np.random.default_rng(0).integers(200, 256, (7, 16)).astype(np.uint8)
    found = []
    for precise in "01":
        options = real.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", precise)
        session = real.InferenceSession(ort._PROBE, options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"a": values})[0])
    exact = (values.astype(np.int64) @ np.full((16, 32), 127)).astype(np.float32)
    np.testing.assert_array_equal(found[1], exact)
    assert ort.products_saturate() is bool((found[0] != exact).any())


def test_open_session_keeps_onnxruntime_from_falling_back(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # by default it prints to stdout and tries the next provider, at load and on a failed run
    real = ort.load_onnxruntime()
    tried: list[list[str]] = []

    def fail(session: Any, providers: list[str], *rest: Any) -> None:
        tried.append(providers)
        raise RuntimeError("no driver")

    graph = tiny_package / "cpu-fp32/model.onnx"
    assert not ort.open_session(graph, device="cpu", threads=1)._enable_fallback
    monkeypatch.setattr(real.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(EngineError, match=r"cannot load .*model\.onnx: no driver"):
        ort.open_session(graph, device="cpu", threads=1)
    assert tried == [["CPUExecutionProvider"]]
    assert capfd.readouterr() == ("", "")


def test_open_session_graph_that_is_none(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"^onnxruntime \d.* cannot load .*model\.onnx: "):
        ort.open_session(graph, device="cpu", threads=1)
    with pytest.raises(EngineError, match="cannot load"):
        ort.open_session(tmp_path / "absent.onnx", device="cpu", threads=1)

"""Build a TensorRT engine on the device, once, and keep its plan for the next start.

TensorRT 10 and 11 are driven alike: the network is strongly typed (10 by a flag, 11 always), so the
precision of every layer is the one in the ONNX file. A plan is bound to what it was made from and
for: the file's digest, TensorRT's version, the GPU and its driver. If any of them changes, or if
the plan is not one that this machine sealed (`plan_store.py`), the engine is built again.

API: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/ and, for 10,
https://docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-1030/api/python_api/
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydistill_edge.errors import (
    GraphError,
    HydistillError,
    MissingFileError,
    TargetUnavailableError,
)
from hydistill_edge.targets.batching import DYNAMIC_BATCH
from hydistill_edge.targets.tensorrt.cuda import Gpu
from hydistill_edge.targets.tensorrt.plan_store import PlanStore

GENERATIONS = (10, 11)
WORKSPACE_MIB = 1024
INSTALL = 'pip install "hydistill-edge[tensorrt]", or on a Jetson the JetPack package'


@dataclass(frozen=True, slots=True)
class Running:
    """Whether an engine could run on this machine; `why` is empty if so."""

    why: str = ""
    remedy: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialized engine for this machine.

    Attributes:
        data: the plan itself.
        facts: what it was made from and for.
        build_s: seconds that building took; None if it was kept from an earlier start.
        note: why it could not be kept, if it could not.
    """

    data: bytes
    facts: Mapping[str, str | int]
    build_s: float | None
    note: str = ""


def import_tensorrt() -> Any:
    """Return the module `tensorrt` of a generation that is served.

    Raises:
        TargetUnavailableError: it is not installed, lacks its libraries, or is too old or too new.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:  # OSError: the bindings without their libraries
        raise TargetUnavailableError(
            f'target "tensorrt" is not installed ({error}); run {INSTALL}'
        ) from error
    if int(tensorrt.__version__.split(".")[0]) not in GENERATIONS:
        raise TargetUnavailableError(
            f"TensorRT {tensorrt.__version__} is installed; expected 10 or 11. Change the version"
        )
    return tensorrt


def running_here() -> Running:
    """Say whether this machine has TensorRT and a GPU; nothing is left open."""
    versions = {}
    try:
        versions["tensorrt"] = str(import_tensorrt().__version__)
        gpu = Gpu()
    except TargetUnavailableError as error:
        why, _, remedy = str(error).rpartition("; ")
        return Running(why=why, remedy=remedy, versions=versions)
    return Running(versions={**versions, "gpu": gpu.name, "driver": gpu.driver})


def prepare_plan(
    model: Path,
    gpu: Gpu,
    *,
    workspace_mib: int = WORKSPACE_MIB,
    key_file: Path | None = None,
) -> Plan:
    """Return the plan of an ONNX file: the kept one if it is ours and fits, else a new one.

    Building takes minutes on a small device. The plan and the timing cache are kept beside the
    model, sealed.

    Args:
        model: the (verified) ONNX file, all weights inside.
        gpu: entered, so that its context is current.
        workspace_mib: scratch memory that the engine may use while it is built.
        key_file: where the machine's sealing key lies; None takes the user's state folder.

    Raises:
        MissingFileError: there is no such file.
        TargetUnavailableError: TensorRT is not usable here.
        GraphError: TensorRT's parser refuses the file.
        HydistillError: TensorRT cannot build an engine from it.
    """
    trt = import_tensorrt()
    try:
        onnx = model.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"{model} does not exist; unpack the bundle again") from error
    machine = {
        "tensorrt": str(trt.__version__),
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "driver": gpu.driver,
    }
    facts: dict[str, str | int] = {
        "kind": "plan",
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
        "workspace_mib": workspace_mib,
        **machine,
    }
    store = PlanStore(model.parent, key_file)
    name = f"{model.stem}.{_short(facts)}.plan"
    kept = store.read(name, facts)
    if kept is not None:
        return Plan(kept, facts, build_s=None)
    timing_facts: dict[str, str | int] = {"kind": "timing", **machine}
    timing_name = f"timing.{_short(timing_facts)}.cache"
    start = time.perf_counter()
    plan, timings = _build(trt, onnx, workspace_mib, store.read(timing_name, timing_facts) or b"")
    build_s = time.perf_counter() - start
    note = ""
    try:
        store.write(timing_name, timings, timing_facts)
        store.write(name, plan, facts)
    except OSError as error:
        note = f"the plan cannot be kept and is built at every start: {error}"
    return Plan(plan, facts, build_s, note)


def load_engine(plan: Plan) -> tuple[Any, Any]:
    """Return the runtime and the deserialized engine; the runtime must live as long.

    Only a plan from `prepare_plan` is taken: its bytes come from this process or carry this
    machine's seal. Code for the host inside a plan stays forbidden.

    Raises:
        HydistillError: TensorRT cannot read its own plan.
    """
    trt = import_tensorrt()
    log = _logger(trt)
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(plan.data)
    if engine is None:
        raise HydistillError(f"TensorRT cannot load the engine it built: {log.text()}")
    return runtime, engine


def _build(trt: Any, onnx: bytes, workspace_mib: int, timings: bytes) -> tuple[bytes, bytes]:
    """Return plan and timing cache of an ONNX file."""
    log = _logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise GraphError(f"TensorRT {trt.__version__} refuses the graph: {'; '.join(errors)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    # On by default, and would round float32 products to 10 bits: fp32 means fp32 here.
    config.clear_flag(trt.BuilderFlag.TF32)
    cache = config.create_timing_cache(timings)
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    image = network.get_input(0)
    shape = tuple(image.shape)
    if shape[0] < 0:
        profile = builder.create_optimization_profile()
        one, many = (1, *shape[1:]), (DYNAMIC_BATCH, *shape[1:])
        profile.set_shape(image.name, one, one, many)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise HydistillError(f"TensorRT {trt.__version__} cannot build an engine: {log.text()}")
    return bytes(plan), bytes(config.get_timing_cache().serialize())


def _network_flags(trt: Any) -> int:
    """Return the flags of a strongly typed network: 11 knows no other and deprecates the flag."""
    if int(trt.__version__.split(".")[0]) >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _logger(trt: Any) -> Any:
    """Return a TensorRT logger that keeps errors and warnings instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base class exists at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.WARNING):
                self.lines.append(msg)

        def text(self) -> str:
            return "; ".join(self.lines[-5:]) or "it gave no reason"

    return Log()


def _short(facts: Mapping[str, str | int]) -> str:
    text = "\n".join(f"{key}={facts[key]}" for key in sorted(facts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]

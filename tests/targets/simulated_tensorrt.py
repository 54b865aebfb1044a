"""A stand-in for TensorRT and the CUDA driver, for machines that have neither.

It computes nothing but a sum of pixels. What it is strict about is the API: names and parameters
are those of the bindings of TensorRT 10.3.0 and 11.4.0 (read from the docstrings in NVIDIA's wheels
`tensorrt_cu12_bindings` and `tensorrt_cu13_bindings`), members that a generation lacks are absent,
and every pointer handed over must be one that was allocated.
"""

# ruff: noqa: N802, N815  (functions are named as in the driver)
from __future__ import annotations

import ctypes
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

CLASSES = 3


class _Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity: type[_Severity] = _Severity

    def __init__(self) -> None:
        self.initialized = True

    def log(self, severity: _Severity, msg: str) -> None:
        raise AssertionError("a logger must override log")


class Calls(list[tuple[str, Any]]):
    """What was called, in order, with what matters of the arguments."""

    def names(self) -> list[str]:
        return [name for name, _ in self]

    def of(self, name: str) -> list[Any]:
        return [value for key, value in self if key == name]


class Memory:
    """Device and page-locked memory: ordinary memory whose addresses are known."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}

    def allocate(self, size: int) -> int:
        block = (ctypes.c_char * size)()
        address = ctypes.addressof(block)
        self.blocks[address] = block
        return address

    def free(self, address: int) -> None:
        del self.blocks[address]

    def array(self, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert size <= len(self.blocks[address]), "reads past the allocation"
        return np.frombuffer(self.blocks[address], dtype=dtype, count=int(np.prod(shape))).reshape(
            shape
        )


class SimulatedCuda:
    """`libcuda.so.1` with the functions that are used, and one GPU."""

    def __init__(self, calls: Calls, *, gpus: int = 1, name: str = "Orin") -> None:
        self.calls, self.memory = calls, Memory()
        self.gpus, self.name = gpus, name
        self.streams: set[int] = set()
        self.failing: dict[str, int] = {}
        self.retained = 0

    def __getattr__(self, name: str) -> Any:
        function = getattr(type(self), f"do_{name}", None)
        if function is None:
            raise AttributeError(f"libcuda.so.1 has no {name}")

        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            if name in self.failing:
                return self.failing[name]
            function(self, *arguments)
            return 0

        return call

    def do_cuInit(self, flags: int) -> None:
        assert flags == 0

    def do_cuGetErrorString(self, status: int, text: Any) -> None:
        text._obj.value = b"out of memory" if status == 2 else b"no CUDA-capable device"

    def do_cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = 12060

    def do_cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = self.gpus

    def do_cuDeviceGet(self, device: Any, ordinal: int) -> None:
        device._obj.value = ordinal

    def do_cuDeviceGetName(self, text: Any, size: int, device: int) -> None:
        text.value = self.name.encode()

    def do_cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:
        value._obj.value = {75: 8, 76: 7}[attribute]

    def do_cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:
        context._obj.value, self.retained = 77, self.retained + 1

    def do_cuDevicePrimaryCtxRelease_v2(self, device: int) -> None:
        self.retained -= 1

    def do_cuCtxSetCurrent(self, context: Any) -> None:
        assert context.value == 77

    def do_cuMemAlloc_v2(self, address: Any, size: int) -> None:
        address._obj.value = self.memory.allocate(size)

    def do_cuMemFree_v2(self, address: Any) -> None:
        self.memory.free(address.value)

    do_cuMemAllocHost_v2 = do_cuMemAlloc_v2
    do_cuMemFreeHost = do_cuMemFree_v2

    def do_cuMemcpyHtoDAsync_v2(self, to: int, source: int, size: int, stream: int) -> None:
        assert stream in self.streams
        assert size <= len(self.memory.blocks[to])
        ctypes.memmove(to, source, size)

    def do_cuMemcpyDtoHAsync_v2(self, to: int, source: int, size: int, stream: int) -> None:
        assert stream in self.streams
        assert size <= len(self.memory.blocks[source])
        ctypes.memmove(to, source, size)

    def do_cuStreamCreate(self, stream: Any, flags: int) -> None:
        stream._obj.value = 1000 + len(self.streams)
        self.streams.add(stream._obj.value)

    def do_cuStreamSynchronize(self, stream: int) -> None:
        assert stream in self.streams

    def do_cuStreamDestroy_v2(self, stream: Any) -> None:
        self.streams.remove(stream.value)


class NetworkDefinitionCreationFlag(IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


def simulated_tensorrt(
    version: str, calls: Calls, cuda: SimulatedCuda, *, shape: tuple[int, ...] = (1, 4, 4, 3)
) -> SimpleNamespace:
    """Return a module `tensorrt` of one generation, whose networks take images of `shape`.

    Attributes of the module that steer it: `parse_errors`, `build_fails`, `foreign_timings`.
    """
    generation = int(version.split(".")[0])
    control = SimpleNamespace(parse_errors=[], build_fails=False, foreign_timings=False)

    class BuilderFlag(IntEnum):
        TF32 = 7

    class MemoryPoolType(IntEnum):
        WORKSPACE = 0

    class TensorIOMode(IntEnum):
        NONE = 0
        INPUT = 1
        OUTPUT = 2

    class DataType(IntEnum):
        FLOAT = 0
        HALF = 1
        UINT8 = 5

    class TimingCache:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def serialize(self) -> memoryview:
            return memoryview(self.data or b"timings")

    class Config:
        def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
            calls.append(("create_timing_cache", bytes(serialized_timing_cache)))
            return TimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            if control.foreign_timings and cache.data:
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> TimingCache:
            return self._cache

        def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
            calls.append(("set_memory_pool_limit", (pool, pool_size)))

        def clear_flag(self, flag: BuilderFlag) -> None:
            calls.append(("clear_flag", flag))

        def add_optimization_profile(self, profile: Any) -> int:
            calls.append(("add_optimization_profile", profile.shapes))
            return 0

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
            self.shapes[input] = (tuple(min), tuple(opt), tuple(max))

    class Network:
        def get_input(self, index: int) -> Any:
            return SimpleNamespace(name="image", shape=shape) if index == 0 else None

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            assert logger.initialized
            self._logger = logger

        def create_network(self, flags: int = 0) -> Network:
            calls.append(("create_network", flags))
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> Any:
            calls.append(("build_serialized_network", None))
            if control.build_fails:
                self._logger.log(_Severity.ERROR, "no tactic for Conv_3")
                return None
            return memoryview(b"plan of " + version.encode())

    class ParserError:
        def __init__(self, text: str) -> None:
            self._text = text

        def desc(self) -> str:
            return self._text

    class OnnxParser:
        def __init__(self, network: Network, logger: ILogger) -> None:
            assert isinstance(network, Network)
            assert logger.initialized

        @property
        def num_errors(self) -> int:
            return len(control.parse_errors)

        def parse(self, model: bytes, path: str | None = None) -> bool:
            calls.append(("parse", bytes(model)))
            return not control.parse_errors

        def get_error(self, index: int) -> ParserError:
            return ParserError(control.parse_errors[index])

    class Context:
        def __init__(self) -> None:
            self._addresses: dict[str, int] = {}
            self._shape = shape

        def set_tensor_address(self, name: str, memory: int) -> bool:
            assert memory in cuda.memory.blocks, "not an allocated address"
            self._addresses[name] = memory
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            assert name == "image"
            self._shape = shape
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert stream_handle in cuda.streams
            pixels = cuda.memory.array(self._addresses["image"], self._shape, np.uint8)
            logits = cuda.memory.array(
                self._addresses["logits"], (self._shape[0], CLASSES), np.float32
            )
            logits[:] = pixels.sum(axis=(1, 2), dtype=np.float32)
            return True

    class Engine:
        num_io_tensors = 2

        def get_tensor_name(self, index: int) -> str:
            return ("image", "logits")[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name == "image" else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType.UINT8 if name == "image" else DataType.FLOAT

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return shape if name == "image" else (shape[0], CLASSES)

        def create_execution_context(self) -> Context:
            return Context()

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            assert logger.initialized
            self.engine_host_code_allowed = True

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            assert self.engine_host_code_allowed is False, "plans must not bring code for the host"
            calls.append(("deserialize_cuda_engine", bytes(serialized_engine)))
            return Engine() if bytes(serialized_engine) == b"plan of " + version.encode() else None

    module = SimpleNamespace(
        __version__=version,
        ILogger=ILogger,
        BuilderFlag=BuilderFlag,
        MemoryPoolType=MemoryPoolType,
        TensorIOMode=TensorIOMode,
        DataType=DataType,
        Builder=Builder,
        OnnxParser=OnnxParser,
        Runtime=Runtime,
        control=control,
    )
    if generation == 10:  # 11 keeps the name, but says that it is deprecated and ignored
        module.NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
    return module

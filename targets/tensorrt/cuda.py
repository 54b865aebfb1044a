"""The few calls of the CUDA driver that running an engine takes, through ctypes.

`libcuda.so.1` comes with the driver on every machine with an NVIDIA GPU, a Jetson included, under
the same name and with the same functions in every version. So nothing needs to be installed beside
TensorRT itself. TensorRT works in the device's primary context, which is therefore used here too.

Source: https://docs.nvidia.com/cuda/cuda-driver-api/
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hydistill_edge.errors import HydistillError, TargetUnavailableError

if TYPE_CHECKING:
    from typing_extensions import Self

LIBRARY = "libcuda.so.1"
DRIVER_FILE = Path("/proc/driver/nvidia/version")

# Function -> its parameters; each returns a status. The suffix _v2 is part of the exported name:
# cuda.h maps the plain one to it.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (POINTER(c_char), c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemAllocHost_v2": (POINTER(c_void_p), c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}
STREAM_NON_BLOCKING = 1
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76

NO_GPU_REMEDY = "run on the device itself, with its NVIDIA driver installed"


def open_library() -> Any:
    """Return the driver's library with every signature declared.

    Raises:
        TargetUnavailableError: there is no NVIDIA driver here.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise TargetUnavailableError(
            f"no NVIDIA driver here ({LIBRARY} cannot be loaded); {NO_GPU_REMEDY}"
        ) from error
    for name, parameters in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = parameters, c_int
    return library


class Gpu:
    """The first GPU of this machine: its identity, its memory and one stream.

    A context manager; what it allocated is freed on leaving. Arrays from `host_array` must not be
    used after that.

    Attributes:
        name: as the driver tells it, such as "Orin".
        compute_capability: such as "8.7".
        driver: version of the driver, as exactly as the system tells it.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = library or open_library()
        self._on_exit: list[Callable[[], None]] = []
        self._context = c_void_p()
        self._device = c_int()
        self._call("cuInit", 0)
        if self._number("cuDeviceGetCount") < 1:
            raise TargetUnavailableError(f"the NVIDIA driver finds no GPU here; {NO_GPU_REMEDY}")
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        device = self._device.value
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), device)
        self.name = text.value.decode(errors="replace")
        major = self._number("cuDeviceGetAttribute", COMPUTE_CAPABILITY_MAJOR, device)
        minor = self._number("cuDeviceGetAttribute", COMPUTE_CAPABILITY_MINOR, device)
        self.compute_capability = f"{major}.{minor}"
        self.driver = _driver_text(self._number("cuDriverGetVersion"))

    def __enter__(self) -> Self:
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device.value)
        self._on_exit.append(lambda: self._call("cuDevicePrimaryCtxRelease_v2", self._device.value))
        self.use()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.use()
        while self._on_exit:
            self._on_exit.pop()()

    def use(self) -> None:
        """Make the GPU current in the calling thread, as every call of another thread needs."""
        self._call("cuCtxSetCurrent", self._context)

    def stream(self) -> int:
        """Return the handle of a new stream."""
        handle = c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), STREAM_NON_BLOCKING)
        self._on_exit.append(lambda: self._call("cuStreamDestroy_v2", handle))
        return handle.value or 0

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of new device memory."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), size)
        self._on_exit.append(lambda: self._call("cuMemFree_v2", address))
        return address.value

    def host_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return a new array in page-locked memory, which copies need to be asynchronous."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        address = c_void_p()
        self._call("cuMemAllocHost_v2", ctypes.byref(address), size)
        self._on_exit.append(lambda: self._call("cuMemFreeHost", address))
        memory = memoryview((c_char * size).from_address(address.value or 0)).cast("B")
        return np.frombuffer(memory, dtype=kind).reshape(shape)

    def upload(self, array: NDArray[Any], address: int, stream: int) -> None:
        """Start copying an array to device memory."""
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, stream)

    def download(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Start copying device memory into an array."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, stream)

    def wait(self, stream: int) -> None:
        """Wait until everything on the stream is done."""
        self._call("cuStreamSynchronize", stream)

    def _number(self, function: str, *rest: int) -> int:
        value = c_int()
        self._call(function, ctypes.byref(value), *rest)
        return value.value

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status == 0:
            return
        text = c_char_p()
        self._library.cuGetErrorString(status, ctypes.byref(text))
        reason = (text.value or b"unknown error").decode(errors="replace")
        if function == "cuInit":
            raise TargetUnavailableError(f"the NVIDIA driver says: {reason}; {NO_GPU_REMEDY}")
        raise HydistillError(f"{function} failed with status {status}: {reason}")


def _driver_text(cuda_version: int) -> str:
    """Return the driver's release where the system tells it, with the CUDA version it speaks."""
    version = f"CUDA {cuda_version // 1000}.{cuda_version % 1000 // 10}"
    try:
        release = DRIVER_FILE.read_text(encoding="utf-8", errors="replace").splitlines()[0]
    except (OSError, IndexError):  # a Jetson's driver has no such file
        return version
    return f"{version}; {release.strip()}"

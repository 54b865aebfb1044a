"""Device profiles: what a device is, which artifacts it takes, and how fast it must answer.

A profile is one YAML file in `devices/` (or the user's own). It is read once, checked whole, and
handed on as a frozen value: builders ask it for threads, batch and instruction sets, gates for the
latency limit. Importing this module reads no file and loads neither pydantic nor yaml.
"""

from __future__ import annotations

import difflib
import functools
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from hydistill_edge.errors import ProfileError
from hydistill_edge.targets.base import Precision, TargetName

if TYPE_CHECKING:
    from pydantic import BaseModel

DEVICES = Path(__file__).parent / "devices"
HOST = "host"

Arch = Literal["x86_64", "aarch64"]
Percentile = Literal["p50", "p90", "p99"]
Scope = Literal["engine", "frame"]

# Our word for an instruction set -> the names that Linux prints in /proc/cpuinfo, any of which
# will do. Names: arch/x86/include/asm/cpufeatures.h and Documentation/arch/arm64/elf_hwcaps.rst of
# https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git
FEATURES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "x86_64": {
        "sse4_1": frozenset({"sse4_1"}),
        "avx2": frozenset({"avx2"}),
        "fma": frozenset({"fma"}),
        "avx512f": frozenset({"avx512f"}),
        "vnni": frozenset({"avx512_vnni", "avx_vnni"}),
        "avx_vnni": frozenset({"avx_vnni"}),
        "avx512_vnni": frozenset({"avx512_vnni"}),
        "avx512_bf16": frozenset({"avx512_bf16"}),
        "amx_int8": frozenset({"amx_int8"}),
    },
    "aarch64": {
        "neon": frozenset({"asimd"}),
        "fp16": frozenset({"asimdhp"}),
        "dotprod": frozenset({"asimddp"}),
        "i8mm": frozenset({"i8mm"}),
        "bf16": frozenset({"bf16"}),
        "sve": frozenset({"sve"}),
    },
}

# The generations with strongly typed networks and explicit int8, which is all that is built here.
TENSORRT_GENERATIONS = (10, 11)

# A kernel keeps some memory for itself: a device sold as "4 GiB" reports a little less.
MEMORY_SLACK = 0.9


@dataclass(frozen=True, slots=True)
class LatencyLimit:
    """The slowest answer that the device's line accepts.

    Attributes:
        percentile: which percentile is judged; only those that the measuring protocol supports.
        limit_ms: upper bound in milliseconds.
        scope: "engine" (tensors in, tensors out) or "frame" (raw pixels to decision).
    """

    percentile: Percentile
    limit_ms: float
    scope: Scope

    def __post_init__(self) -> None:
        if not 0 < self.limit_ms < 3_600_000:
            message = f"limit_ms is {self.limit_ms:g}; expected more than 0 and under an hour"
            raise ValueError(message)


@dataclass(frozen=True, slots=True)
class TargetPrecisions:
    """One runtime on this device, with the precisions that it may use.

    Attributes:
        precisions: allowed ones, in the order in which to build them.
        versions: runtime versions that the device has, as a version range such as ">=1.23,<2".
    """

    target: TargetName
    precisions: tuple[Precision, ...]
    versions: str = ""

    def __post_init__(self) -> None:
        if not self.precisions:
            raise ValueError(f'target "{self.target}" allows no precision; name at least one')
        if len(set(self.precisions)) < len(self.precisions):
            raise ValueError(f'target "{self.target}" names a precision twice: {self.precisions}')


@dataclass(frozen=True, slots=True)
class TensorRTFacts:
    """What building a TensorRT engine on the device needs to know.

    Attributes:
        generation: major version of TensorRT, 10 or 11.
        compute_capability: of the GPU, as in "8.7".
        workspace_mib: scratch memory that the engine builder may use.
    """

    generation: int
    compute_capability: str
    workspace_mib: int

    def __post_init__(self) -> None:
        if self.generation not in TENSORRT_GENERATIONS:
            raise ValueError(f"generation is {self.generation}; expected one of 10, 11")
        if self.workspace_mib < 1:
            raise ValueError(f"workspace_mib is {self.workspace_mib}; expected at least 1")


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """One kind of device.

    Attributes:
        features: instruction sets that every such device has; names as in `FEATURES`.
        cores: physical cores that the device has at least.
        threads: threads that a runtime may use for one inference.
        batch: images per inference; the graph is exported at this batch.
        memory_mib: memory of the whole device.
        model_memory_mib: memory that one loaded model may use.
        targets: allowed runtimes with their precisions, the preferred one first.
        default_precisions: what is built where the recipe names nothing.
        max_opset: newest ONNX opset that every ONNX-reading runtime here understands.
        max_ir: newest ONNX IR version, likewise.
        latency: the limit, or None where latency is only reported.
        sources: where the facts come from.
    """

    name: str = field(metadata={"pattern": r"^[a-z0-9][a-z0-9._-]*$"})
    title: str = field(metadata={"min_length": 1})
    arch: Arch
    features: tuple[str, ...]
    cores: int = field(metadata={"ge": 1, "strict": True})
    threads: int = field(metadata={"ge": 1, "strict": True})
    memory_mib: int = field(metadata={"ge": 1, "strict": True})
    model_memory_mib: int = field(metadata={"ge": 1, "strict": True})
    targets: tuple[TargetPrecisions, ...]
    default_precisions: tuple[Precision, ...]
    # One scale per channel starts with opset 13, which came with IR version 7.
    max_opset: int = field(metadata={"ge": 13, "strict": True})
    max_ir: int = field(metadata={"ge": 7, "strict": True})
    batch: int = field(default=1, metadata={"ge": 1, "strict": True})
    latency: LatencyLimit | None = None
    tensorrt: TensorRTFacts | None = None
    description: str = ""
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = [*_below_minimum(self), *_contradictions(self)]
        if problems:
            raise ProfileError(_listed(f'profile "{self.name}"', problems))

    def precisions(self, target: TargetName) -> tuple[Precision, ...]:
        """Return the precisions that `target` may use here; empty if the target is not allowed."""
        for entry in self.targets:
            if entry.target == target:
                return entry.precisions
        return ()


def list_profiles() -> list[str]:
    """Return the names of the profiles that come with the package, sorted."""
    return sorted(path.stem for path in DEVICES.glob("*.yaml"))


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """Return a profile by name ("x86-vnni"), by YAML file, or "host" for this machine's own.

    Raises:
        ProfileError: the name is unknown, or the file is not a profile; every problem of the file
            is listed.
    """
    if name_or_path == HOST:
        return load_profile(_host_profile_name())
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        if str(name_or_path) not in list_profiles():
            raise ProfileError(_unknown_name(str(name_or_path)))
        path = DEVICES / f"{name_or_path}.yaml"
    return _validated(_read_yaml(path), where=str(path))


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What `check_host` knows of a machine.

    Attributes:
        flags: instruction sets as Linux names them.
        cores: physical cores.
        memory_mib: all memory, None where the system does not tell.
    """

    arch: str
    flags: frozenset[str]
    cores: int
    memory_mib: int | None


def check_host(profile: DeviceProfile, host: HostFacts | None = None) -> list[str]:
    """Return how this machine differs from the profile; an empty list means it fits.

    Latency measured on a machine that differs is advisory.

    Args:
        profile: the device that artifacts are built for.
        host: facts of the machine, read from Linux where None.
    """
    host = host or read_host()
    if host.arch != profile.arch:
        return [f"processor is {host.arch}, the profile wants {profile.arch}"]
    known = FEATURES[profile.arch]
    mismatches = [
        f'processor lacks "{feature}" ({" or ".join(sorted(known[feature]))} in /proc/cpuinfo)'
        for feature in profile.features
        if not known[feature] & host.flags
    ]
    if host.cores < profile.cores:
        mismatches.append(f"{host.cores} cores, the profile wants at least {profile.cores}")
    wanted_mib = profile.memory_mib * MEMORY_SLACK
    if host.memory_mib is not None and host.memory_mib < wanted_mib:
        mismatches.append(
            f"{host.memory_mib} MiB of memory, the profile wants about {profile.memory_mib}"
        )
    return mismatches


def saturates_int8(profile: DeviceProfile, host: HostFacts | None = None) -> bool:
    """Return whether this machine saturates int8 sums that are exact on the device.

    An x86 processor without VNNI adds pairs of products in 16 bits; what is made for one with it
    does not keep its weights small enough for that.

    Args:
        profile: the device that int8 artifacts are built for.
        host: facts of the machine, read from Linux where None.
    """
    host = host or read_host()
    known = FEATURES["x86_64"]
    exact = known["vnni"]
    wants = any(known.get(feature, frozenset()) & exact for feature in profile.features)
    return wants and host.arch == "x86_64" and not exact & host.flags


def read_host() -> HostFacts:
    """Return the facts of this machine, from /proc and the standard library."""
    machine = platform.machine().lower()
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    cpuinfo = _text("/proc/cpuinfo")
    logical = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return HostFacts(
        arch=arch,
        flags=frozenset(_values(cpuinfo, {"flags", "Features"})),
        cores=min(_physical_cores(cpuinfo) or logical or 1, logical or 1),
        memory_mib=_memory_mib(_text("/proc/meminfo")),
    )


def _physical_cores(cpuinfo: str) -> int:
    cores = set()
    for block in cpuinfo.split("\n\n"):
        package, core = _values(block, {"physical id"}), _values(block, {"core id"})
        if core:  # ARM kernels print none: every processor is a core there
            cores.add((*package, *core))
    return len(cores)


def _values(text: str, keys: set[str]) -> list[str]:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.split()
    return []


def _memory_mib(meminfo: str) -> int | None:
    values = _values(meminfo, {"MemTotal"})
    return int(values[0]) // 1024 if values else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, or not allowed: the facts are then unknown
        return ""


def _host_profile_name() -> str:
    """Return the generic x86 profile that fits this machine's instruction sets best."""
    host = read_host()
    for name in ("x86-vnni", "x86-avx2"):
        profile = load_profile(name)
        known = FEATURES[profile.arch]
        if host.arch == profile.arch and all(known[f] & host.flags for f in profile.features):
            return name
    raise ProfileError(
        f'no generic profile fits this machine ({host.arch}); "host" knows x86-64 processors with '
        f"AVX2. Name a profile instead: {', '.join(list_profiles())}"
    )


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ProfileError(f"device profile {path} does not exist; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"device profile {path} cannot be read: {error}") from error
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, for one
        raise ProfileError(f"device profile {path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        kind = type(data).__name__
        raise ProfileError(f"device profile {path} holds a {kind}; expected keys with values")
    return {str(key): value for key, value in data.items()}


@functools.cache
def _schema() -> type[BaseModel]:
    """Return the pydantic model of the file, made from the dataclass and its field metadata."""
    from pydantic import ConfigDict, Field, create_model

    hints = get_type_hints(DeviceProfile)
    definitions: dict[str, Any] = {}
    for item in fields(DeviceProfile):
        default = ... if item.default is MISSING else item.default
        definitions[item.name] = (hints[item.name], Field(default, **item.metadata))
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    return create_model("DeviceProfileFile", __config__=config, **definitions)


def _validated(data: Mapping[str, Any], *, where: str) -> DeviceProfile:
    from pydantic import ValidationError

    nested = {"latency": LatencyLimit, "tensorrt": TensorRTFacts, "targets": TargetPrecisions}
    problems = list(_unknown_keys(data, nested))
    values: dict[str, Any] = {}
    try:
        known = {item.name for item in fields(DeviceProfile)}
        model = _schema().model_validate({k: v for k, v in data.items() if k in known})
        values = {name: getattr(model, name) for name in known}
    except ValidationError as error:
        problems += [_as_problem(item) for item in error.errors()]
    if problems:
        raise ProfileError(_listed(f"device profile {where}", problems))
    try:
        return DeviceProfile(**values)
    except ProfileError as error:
        raise ProfileError(f"{where}: {error}") from error


def _unknown_keys(data: Mapping[str, Any], nested: Mapping[str, type]) -> Iterable[str]:
    yield from _unknown(data, DeviceProfile, prefix="")
    for key, kind in nested.items():
        entries = data.get(key)
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, dict):
                yield from _unknown(entry, kind, prefix=f"{key}.")


def _unknown(data: Mapping[str, Any], kind: Any, *, prefix: str) -> Iterable[str]:
    names = [item.name for item in fields(kind)]
    for key in data:
        if key not in names:
            yield f'unknown key "{prefix}{key}"{_closest(str(key), names)}'


def _as_problem(item: Any) -> str:
    """Turn one of pydantic's errors into a line with the key, the reason and the value."""
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        return f'key "{location}" is missing'
    reason = item["msg"].removeprefix("Value error, ")
    value = item["input"]
    known = _known_names(item["loc"])
    hint = _closest(value, known) if isinstance(value, str) else ""
    shown = "" if isinstance(value, dict) else f", got {value!r}"
    return f"{location}: {reason}{shown}{hint}"


def _known_names(location: tuple[Any, ...]) -> tuple[str, ...]:
    words = {str(part) for part in location}
    if words & {"precisions", "default_precisions"}:
        return get_args(Precision)
    return get_args(TargetName) if "target" in words else ()


def _below_minimum(profile: DeviceProfile) -> Iterable[str]:
    """Check what `dataclasses.replace` could break after the file was read."""
    for item in fields(profile):
        value, minimum = getattr(profile, item.name), item.metadata.get("ge")
        if minimum is not None and value < minimum:
            yield f"{item.name} is {value}; expected at least {minimum}"


def _contradictions(profile: DeviceProfile) -> Iterable[str]:
    known = FEATURES[profile.arch]
    for feature in profile.features:
        if feature not in known:
            hint = _closest(feature, known)
            yield (
                f'feature "{feature}" is not known for {profile.arch}{hint}; '
                f"known: {', '.join(known)}"
            )
    if profile.threads > profile.cores:
        yield f"threads is {profile.threads}, but the device has {profile.cores} cores"
    if profile.model_memory_mib > profile.memory_mib:
        yield (
            f"model_memory_mib is {profile.model_memory_mib}, more than memory_mib "
            f"({profile.memory_mib})"
        )
    names = [entry.target for entry in profile.targets]
    if not names:
        yield "targets is empty; name at least one runtime"
    if len(set(names)) < len(names):
        yield f"targets names a runtime twice: {', '.join(names)}"
    if not profile.default_precisions:
        yield "default_precisions is empty; name at least one precision"
    for precision in profile.default_precisions:
        if not any(precision in entry.precisions for entry in profile.targets):
            yield f'default precision "{precision}" is allowed by no target of this device'
    if ("tensorrt" in names) != (profile.tensorrt is not None):
        yield 'target "tensorrt" and the block "tensorrt" belong together; give both or neither'


def _unknown_name(name: str) -> str:
    names = [*list_profiles(), HOST]
    return (
        f'no device profile is named "{name}"{_closest(name, names)}; known: {", ".join(names)}, '
        f"or the path of a .yaml file"
    )


def _closest(word: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(names), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _listed(where: str, problems: list[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{where}: {count}", *(f"  {line}" for line in problems)])

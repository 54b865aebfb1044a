"""The conditions block: under which circumstances a latency was measured.

A number without it cannot be compared with another one. What this machine does not tell is null.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hydistill_edge.targets.cgroup import ROOT, cpu_limit, read_text

# Instruction sets that decide which int8 and half-precision kernels a runtime takes, as Linux
# names them in /proc/cpuinfo (x86 "flags", ARM "Features").
FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "hypervisor"),
    *("asimd", "asimdhp", "fphp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)

# Variables that change how many threads a runtime takes and where they run.
ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def read_conditions(
    *,
    threads: int | None = None,
    versions: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
    root: Path = ROOT,
) -> dict[str, Any]:
    """Return the conditions of this machine and process as plain JSON values.

    Args:
        threads: that the runtime was told to take; null where it was not told.
        versions: of the runtimes, drivers and plug-ins involved, by name.
        extra: what else changes the number, such as a precision hint.
        root: where /proc and /sys stand.
    """
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    flags = cpu_flags(cpuinfo)
    return {
        "machine": platform.machine(),
        "board": read_text(root / "proc/device-tree/model"),
        "cpu": cpu_name(cpuinfo) or read_text(root / "proc/device-tree/model"),
        "cpu_flags": [flag for flag in FLAGS if flag in flags],
        "virtual": "hypervisor" in flags if flags else None,
        "cpus": os.cpu_count(),
        "affinity": _affinity(),
        "cgroup_cpus": cpu_limit(root),
        "smt": _switch(root / "sys/devices/system/cpu/smt/active"),
        "governor": _governors(root),
        "boost": _boost(root),
        "max_clock_mhz": _max_clock_mhz(root),
        "load_average": _load_average(root),
        "memory_mib": _memory_mib(root),
        "kernel": platform.release(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "versions": dict(sorted((versions or {}).items())),
        "threads": threads,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "clock": "time.perf_counter_ns",
        "garbage_collection": "on, existing objects frozen",
        **(extra or {}),
    }


def cpu_name(cpuinfo: str) -> str | None:
    """Return the processor's name from the text of /proc/cpuinfo, or None where it has none.

    ARM kernels print numbers in place of a name; they are given as they stand.
    """
    for key in ("model name", "Model", "Hardware"):
        name = _first(cpuinfo, key)
        if name:
            return name
    implementer, part = _first(cpuinfo, "CPU implementer"), _first(cpuinfo, "CPU part")
    return f"ARM implementer {implementer} part {part}" if implementer and part else None


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Return the instruction sets named in the text of /proc/cpuinfo."""
    return frozenset((_first(cpuinfo, "flags") or _first(cpuinfo, "Features") or "").split())


def _first(cpuinfo: str, key: str) -> str | None:
    match = re.search(rf"^{re.escape(key)}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match.group(1).strip() if match else None


def _affinity() -> list[int] | None:
    # Only Linux tells; elsewhere the function does not exist.
    ask = getattr(os, "sched_getaffinity", None)
    return sorted(ask(0)) if ask else None


def _governors(root: Path) -> str | None:
    files = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"))
    names = {read_text(path) for path in files} - {None}
    return ", ".join(sorted(name for name in names if name)) or None


def _boost(root: Path) -> bool | None:
    boost = _switch(root / "sys/devices/system/cpu/cpufreq/boost")
    if boost is not None:
        return boost
    no_turbo = _switch(root / "sys/devices/system/cpu/intel_pstate/no_turbo")
    return None if no_turbo is None else not no_turbo


def _switch(path: Path) -> bool | None:
    text = read_text(path)
    return None if text is None else text == "1"


def _max_clock_mhz(root: Path) -> float | None:
    text = read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    return int(text) / 1000 if text else None  # the kernel gives kHz


def _load_average(root: Path) -> list[float] | None:
    text = read_text(root / "proc/loadavg")
    return [float(part) for part in text.split()[:3]] if text else None


def _memory_mib(root: Path) -> int | None:
    text = _first(read_text(root / "proc/meminfo") or "", "MemTotal")
    return int(text.split()[0]) // 1024 if text else None

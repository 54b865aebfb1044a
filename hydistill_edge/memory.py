"""How much memory this process needed at most since it was last asked to begin counting."""

from __future__ import annotations

import sys
from pathlib import Path

_PROCESS = Path("/proc/self")

MIB = 2**20


def begin_peak() -> None:
    """Begin to count anew, where the system allows it (proc_pid_clear_refs(5))."""
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return  # the peak then is that of the whole process so far


def resident_peak_mib() -> float | None:
    """Return the peak of resident memory in MiB, None where the system does not tell it."""
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("VmHWM:")]
    return round(int(found[0][1]) / 1024, 1) if found else None


def gpu_peak_mib() -> float | None:
    """Return the peak of memory that tensors took on the GPU, None where none was used."""
    torch = sys.modules.get("torch")  # not imported for this: who used it has done so
    if torch is None or not torch.cuda.is_initialized():
        return None
    return round(float(torch.cuda.max_memory_allocated()) / MIB, 1)

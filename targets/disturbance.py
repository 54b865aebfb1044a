"""What disturbed a measurement, and the verdict: stable, unstable or throttled.

Counters are read before and after the timed calls, never in between. What a machine does not
tell cannot be ruled out, and the verdict names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hydistill_edge.targets.cgroup import ROOT, read_text, throttled_us

Verdict = Literal["stable", "unstable", "throttled"]

# Spread (standard deviation over mean) beyond which a run is not stable; trtexec's own warning
# is at 2.5 %, and a CPU shares its caches and its scheduler with the rest of the system.
GPU_COV_LIMIT = 0.025
CPU_COV_LIMIT = 0.05

# A hundredth of the CPU time taken by the hypervisor, a thousandth of the wall time held back by
# the control group, a tenth of the clock lost: above it the run shows the host, not the model.
STEAL_LIMIT = 0.01
THROTTLED_LIMIT = 0.001
CLOCK_DROP_LIMIT = 0.10

# Bits of the Raspberry Pi's firmware that hold at this moment: under-voltage, frequency capped,
# throttled, soft temperature limit.
# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
_PI_NOW = 0xF


@dataclass(frozen=True, slots=True)
class Counters:
    """State of the machine at one moment; None where it does not tell.

    Attributes:
        throttled_us: time that the control groups were held back so far.
        steal_ticks: time that the hypervisor gave to others so far.
        total_ticks: all CPU time so far, in the same ticks.
        thermal_events: times that a core slowed down for its temperature so far.
        clock_mhz: mean clock of the cores now.
        firmware_limits: bits of the firmware's limits that hold now.
        temperature_c: hottest thermal zone now.
    """

    throttled_us: int | None = None
    steal_ticks: int | None = None
    total_ticks: int | None = None
    thermal_events: int | None = None
    clock_mhz: float | None = None
    firmware_limits: int | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What happened between two moments; None where the machine does not tell.

    Attributes:
        wall_s: between the two.
        throttled_share: of the wall time, held back by the control group.
        steal_share: of the CPU time, given to others by the hypervisor.
        thermal_events: slow-downs of a core for its temperature.
        clock_drop: share of the clock lost from first to last; negative where it rose.
        firmware_limits: whether the firmware limited the clock or the voltage at either moment.
        temperature_c: hottest thermal zone at the end.
    """

    wall_s: float
    throttled_share: float | None = None
    steal_share: float | None = None
    thermal_events: int | None = None
    clock_drop: float | None = None
    firmware_limits: bool | None = None
    temperature_c: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Run:
    """What the verdict is about: one scope's spread, its disturbance, whether it had settled."""

    cov: float
    settled: bool
    disturbance: Disturbance


def read_counters(root: Path = ROOT) -> Counters:
    """Return the counters of this machine.

    Args:
        root: where /proc and /sys stand.
    """
    steal, total = _ticks(root)
    return Counters(
        throttled_us=throttled_us(root),
        steal_ticks=steal,
        total_ticks=total,
        thermal_events=_sum(
            root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"
        ),
        clock_mhz=_clock_mhz(root),
        firmware_limits=_firmware(root),
        temperature_c=_temperature(root),
    )


def between(before: Counters, after: Counters, wall_s: float) -> Disturbance:
    """Return what happened between two readings that are `wall_s` seconds apart."""
    held = _difference(before.throttled_us, after.throttled_us)
    steal = _difference(before.steal_ticks, after.steal_ticks)
    ticks = _difference(before.total_ticks, after.total_ticks)
    clocks = (before.clock_mhz, after.clock_mhz)
    firmware = [
        bits for bits in (before.firmware_limits, after.firmware_limits) if bits is not None
    ]
    return Disturbance(
        wall_s=wall_s,
        throttled_share=held / 1e6 / wall_s if held is not None and wall_s > 0 else None,
        steal_share=steal / ticks if steal is not None and ticks else None,
        thermal_events=_difference(before.thermal_events, after.thermal_events),
        clock_drop=1.0 - clocks[1] / clocks[0] if clocks[0] and clocks[1] is not None else None,
        firmware_limits=any(firmware) if firmware else None,
        temperature_c=after.temperature_c,
    )


def judge_stability(
    runs: Mapping[str, Run], *, cov_limit: float = CPU_COV_LIMIT
) -> tuple[Verdict, str]:
    """Return the verdict over all scopes and why.

    "throttled" where the machine was slowed down, else "unstable" where times spread too much or
    the hypervisor took time, else "stable".

    Args:
        runs: scope to what is known of it.
        cov_limit: largest standard deviation over mean.
    """
    slowed = [f"{scope}: {why}" for scope, run in runs.items() for why in _slowed(run)]
    spread = [f"{scope}: {why}" for scope, run in runs.items() for why in _spread(run, cov_limit)]
    unknown = _unknown([run.disturbance for run in runs.values()])
    silence = f"; this machine does not tell {', '.join(unknown)}" if unknown else ""
    if slowed:
        return "throttled", "; ".join([*slowed, *spread]) + silence
    if spread:
        return "unstable", "; ".join(spread) + silence
    return "stable", f"spread within {cov_limit:.1%}, no disturbance seen{silence}"


def _slowed(run: Run) -> list[str]:
    d, reasons = run.disturbance, []
    if d.throttled_share is not None and d.throttled_share > THROTTLED_LIMIT:
        reasons.append(f"the control group was held back for {d.throttled_share:.1%} of the time")
    if d.thermal_events:
        reasons.append(f"{d.thermal_events} thermal slow-downs of a core")
    if d.clock_drop is not None and d.clock_drop > CLOCK_DROP_LIMIT:
        reasons.append(f"the clock fell by {d.clock_drop:.0%}")
    if d.firmware_limits:
        reasons.append("the firmware limited voltage, clock or temperature")
    return reasons


def _spread(run: Run, cov_limit: float) -> list[str]:
    d, reasons = run.disturbance, []
    if run.cov > cov_limit:
        reasons.append(f"spread {run.cov:.1%} of the mean, limit {cov_limit:.1%}")
    if d.steal_share is not None and d.steal_share > STEAL_LIMIT:
        reasons.append(f"the hypervisor took {d.steal_share:.1%} of the CPU time")
    if not run.settled:
        reasons.append("the warm-up ended before the times had settled")
    return reasons


def _unknown(disturbances: list[Disturbance]) -> list[str]:
    names = {
        "throttled_share": "control-group throttling",
        "steal_share": "steal time",
        "clock_drop": "clocks",
        "temperature_c": "temperatures",
    }
    return [
        name
        for key, name in names.items()
        if any(getattr(disturbance, key) is None for disturbance in disturbances)
    ]


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def _ticks(root: Path) -> tuple[int | None, int | None]:
    """Steal and total ticks of the line "cpu" of /proc/stat, proc_stat(5)."""
    for line in (read_text(root / "proc/stat") or "").splitlines():
        parts = line.split()
        if parts and parts[0] == "cpu" and len(parts) >= 9:
            # Guest time, fields 9 and 10, is part of user time already.
            return int(parts[8]), sum(int(part) for part in parts[1:9])
    return None, None


def _sum(root: Path, pattern: str) -> int | None:
    values = _numbers(root, pattern)
    return sum(values) if values else None


def _clock_mhz(root: Path) -> float | None:
    values = _numbers(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    return sum(values) / len(values) / 1000 if values else None  # the kernel gives kHz


def _temperature(root: Path) -> float | None:
    values = _numbers(root, "sys/class/thermal/thermal_zone[0-9]*/temp")
    return max(values) / 1000 if values else None  # the kernel gives thousandths of a degree


def _firmware(root: Path) -> int | None:
    text = read_text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    return int(text, 16) & _PI_NOW if text and re.fullmatch(r"(0x)?[0-9a-fA-F]+", text) else None


def _numbers(root: Path, pattern: str) -> list[int]:
    texts = [read_text(path) for path in sorted(root.glob(pattern))]
    return [int(text) for text in texts if text and re.fullmatch(r"-?\d+", text)]

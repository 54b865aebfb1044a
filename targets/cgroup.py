"""Where Linux keeps the CPU limits of this process: control groups of version 1 and 2.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and
https://docs.kernel.org/scheduler/sched-bwc.html
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


def read_text(path: Path) -> str | None:
    """Return the stripped text of a file of the kernel, or None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None


def cpu_limit(root: Path = ROOT) -> float | None:
    """Return how many CPUs' worth of time this process may use, or None where it is not limited.

    The tightest limit of its group and the groups above counts.
    """
    limits = []
    for folder in cpu_groups(root):
        limit = _limit_v2(folder) or _limit_v1(folder)
        if limit is not None:
            limits.append(limit)
    return min(limits, default=None)


def throttled_us(root: Path = ROOT) -> int | None:
    """Return for how long the groups of this process were held back so far, in microseconds.

    None where no group tells.
    """
    found = []
    for folder in cpu_groups(root):
        text = read_text(folder / "cpu.stat") or ""
        facts = dict(line.split()[:2] for line in text.splitlines() if len(line.split()) >= 2)
        if "throttled_usec" in facts:
            found.append(int(facts["throttled_usec"]))
        elif "throttled_time" in facts:  # version 1, nanoseconds
            found.append(int(facts["throttled_time"]) // 1000)
    return sum(found) if found else None


def cpu_groups(root: Path = ROOT) -> list[Path]:
    """Return the existing folders of this process' CPU control group and of all groups above it.

    Inside a container the path is often one of the host and does not exist; the mount itself is
    then the group of the container.
    """
    folders: list[Path] = []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/cpu"]
        else:
            continue
        for mount in mounts:
            group = mount / path.lstrip("/")
            chain = [group, *(folder for folder in group.parents if folder.is_relative_to(mount))]
            folders += [folder for folder in chain if folder.is_dir() and folder not in folders]
    return folders


def _limit_v2(folder: Path) -> float | None:
    text = read_text(folder / "cpu.max")
    if not text or text.startswith("max"):
        return None
    quota, period = text.split()[:2]
    return int(quota) / int(period)


def _limit_v1(folder: Path) -> float | None:
    quota, period = (read_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    if quota is None or period is None or int(quota) <= 0:
        return None
    return int(quota) / int(period)

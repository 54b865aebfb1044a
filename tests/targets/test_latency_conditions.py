"""Conditions and disturbances are read from Linux' own files, here from a made-up machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hydistill_edge.targets.cgroup import cpu_limit, throttled_us
from hydistill_edge.targets.conditions import cpu_flags, cpu_name, read_conditions
from hydistill_edge.targets.disturbance import (
    Counters,
    Disturbance,
    Run,
    between,
    judge_stability,
    read_counters,
)

X86 = "processor\t: 0\nmodel name\t: Intel(R) N100\nflags\t\t: fpu avx2 fma avx_vnni hypervisor\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
CPU = "sys/devices/system/cpu"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_conditions_name_processor_and_instruction_sets(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": X86,
            "proc/loadavg": "0.50 0.25 0.10 1/100 4242",
            "proc/meminfo": "MemTotal:       16384 kB\n",
            f"{CPU}/cpu0/cpufreq/scaling_governor": "performance\n",
            f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave\n",
            f"{CPU}/intel_pstate/no_turbo": "1\n",
        },
    )

    found = read_conditions(threads=2, versions={"onnxruntime": "1.31.0"}, root=root)

    assert found["cpu"] == "Intel(R) N100"
    assert found["cpu_flags"] == ["avx2", "fma", "avx_vnni", "hypervisor"]
    assert (found["virtual"], found["boost"], found["memory_mib"]) == (True, False, 16)
    assert found["governor"] == "performance, powersave"
    assert found["load_average"] == [0.5, 0.25, 0.1]
    assert (found["threads"], found["versions"]) == (2, {"onnxruntime": "1.31.0"})


def test_conditions_are_null_when_the_machine_tells_nothing(tmp_path: Path) -> None:
    found = read_conditions(extra={"precision_hint": "f32"}, root=tmp_path)

    assert [found[key] for key in ("cpu", "virtual", "cgroup_cpus", "governor", "smt")] == [
        None
    ] * 5
    assert found["precision_hint"] == "f32"


def test_conditions_of_this_machine_are_json() -> None:
    json.dumps(read_conditions(), allow_nan=False)


def test_cpu_name_and_flags_come_from_arm_fields_when_there_is_no_model_name() -> None:
    assert cpu_name(ARM) == "ARM implementer 0x41 part 0xd0b"
    assert cpu_flags(ARM) == {"fp", "asimd", "asimddp"}
    assert cpu_name("") is None


def test_cgroup_limit_is_the_tightest_above_this_process_in_version_2(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/line/model\n",
            "sys/fs/cgroup/line/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/line/model/cpu.max": "max 100000\n",
            "sys/fs/cgroup/line/cpu.stat": "usage_usec 9\nthrottled_usec 1500\n",
        },
    )

    assert cpu_limit(root) == 1.5
    assert throttled_us(root) == 1500


def test_cgroup_limit_is_read_from_the_mount_in_version_1(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/cpu,cpuacct"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/x\n2:cpu,cpuacct:/not/in/this/container\n",
            f"{group}/cpu.cfs_quota_us": "50000\n",
            f"{group}/cpu.cfs_period_us": "100000\n",
            f"{group}/cpu.stat": "nr_periods 5\nthrottled_time 2000000\n",
        },
    )

    assert cpu_limit(root) == 0.5
    assert throttled_us(root) == 2000


def test_counters_read_every_source_of_a_machine(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/stat": "cpu  10 0 10 70 0 0 0 10 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n",
            f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "2000000\n",
            f"{CPU}/cpu1/cpufreq/scaling_cur_freq": "1000000\n",
            f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "3\n",
            "sys/class/thermal/thermal_zone0/temp": "61500\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50004\n",
        },
    )

    assert read_counters(root) == Counters(
        steal_ticks=10,
        total_ticks=100,
        thermal_events=3,
        clock_mhz=1500.0,
        firmware_limits=4,
        temperature_c=61.5,
    )


def test_counters_are_unknown_when_the_machine_tells_nothing(tmp_path: Path) -> None:
    assert read_counters(tmp_path) == Counters()


def test_disturbance_is_the_difference_of_two_readings() -> None:
    before = Counters(1_000, 10, 100, 1, 2000.0, 0, 50.0)
    after = Counters(501_000, 20, 300, 1, 1500.0, 1, 80.0)

    assert between(before, after, 10.0) == Disturbance(10.0, 0.05, 0.05, 0, 0.25, True, 80.0)


QUIET = Disturbance(10.0, 0.0, 0.0, 0, 0.0, False, 50.0)


@pytest.mark.parametrize(
    ("run", "verdict", "why"),
    [
        pytest.param(Run(0.01, True, QUIET), "stable", "no disturbance seen", id="quiet"),
        pytest.param(
            Run(0.01, True, Disturbance(10.0)), "stable", "does not tell", id="nothing-known"
        ),
        pytest.param(Run(0.06, True, QUIET), "unstable", "spread 6.0%", id="spread"),
        pytest.param(Run(0.01, False, QUIET), "unstable", "warm-up", id="not-settled"),
        pytest.param(
            Run(0.01, True, Disturbance(10.0, steal_share=0.02)), "unstable", "2.0%", id="steal"
        ),
        pytest.param(
            Run(0.01, True, Disturbance(10.0, throttled_share=0.01)),
            "throttled",
            "control group",
            id="quota",
        ),
        pytest.param(
            Run(0.9, True, Disturbance(10.0, clock_drop=0.2)), "throttled", "20%", id="clock"
        ),
        pytest.param(
            Run(0.01, True, Disturbance(10.0, thermal_events=2)), "throttled", "2 thermal", id="hot"
        ),
        pytest.param(
            Run(0.01, True, Disturbance(10.0, firmware_limits=True)),
            "throttled",
            "firmware",
            id="under-voltage",
        ),
    ],
)
def test_verdict_names_its_reason(run: Run, verdict: str, why: str) -> None:
    found, reason = judge_stability({"engine": run})

    assert found == verdict
    assert why in reason


def test_verdict_is_the_worst_of_the_scopes() -> None:
    runs = {"engine": Run(0.01, True, QUIET), "frame": Run(0.3, True, QUIET)}

    verdict, why = judge_stability(runs)

    assert verdict == "unstable"
    assert why.startswith("frame: ")


def test_verdict_is_stricter_on_a_gpu() -> None:
    assert judge_stability({"engine": Run(0.03, True, QUIET)}, cov_limit=0.025)[0] == "unstable"

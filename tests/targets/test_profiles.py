"""Device profiles: the shipped ones load, broken ones tell every problem, hosts are compared."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hydistill_edge.errors import ProfileError
from hydistill_edge.targets.profiles import (
    DEVICES,
    HostFacts,
    LatencyLimit,
    check_host,
    list_profiles,
    load_profile,
    read_host,
    saturates_int8,
)

SHIPPED = ["intel-n100", "jetson-orin-nano", "raspberry-pi-5", "x86-avx2", "x86-vnni"]


def write_profile(folder: Path, **changes: object) -> Path:
    data = yaml.safe_load((DEVICES / "intel-n100.yaml").read_text(encoding="utf-8"))
    data = {key: value for key, value in {**data, **changes}.items() if value != "drop"}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def test_list_profiles_names_the_five_shipped_ones() -> None:
    assert list_profiles() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_load_profile_returns_a_whole_profile_when_shipped(name: str) -> None:
    profile = load_profile(name)

    assert profile.name == name
    assert profile.latency is not None
    assert profile.sources
    assert all(profile.precisions(t.target) == t.precisions for t in profile.targets)


def test_load_profile_reads_a_users_own_file(tmp_path: Path) -> None:
    profile = load_profile(write_profile(tmp_path, name="line-7", threads=2))

    assert (profile.name, profile.threads) == ("line-7", 2)
    assert profile.latency == LatencyLimit("p99", 33.3, "frame")


@dataclasses.dataclass
class Broken:
    changes: dict[str, object]
    message: str


BROKEN = {
    "negative-limit": Broken(
        {"latency": {"percentile": "p99", "limit_ms": -5, "scope": "frame"}}, "limit_ms is -5"
    ),
    "infinite-limit": Broken(
        {"latency": {"percentile": "p99", "limit_ms": float("inf"), "scope": "frame"}}, "limit_ms"
    ),
    "unsupported-percentile": Broken(
        {"latency": {"percentile": "p99.9", "limit_ms": 5, "scope": "frame"}}, "'p50', 'p90'"
    ),
    "zero-threads": Broken({"threads": 0}, "threads: .*greater than or equal to 1, got 0"),
    "threads-that-are-no-number": Broken({"threads": True}, "threads: .*integer, got True"),
    "more-threads-than-cores": Broken({"threads": 64}, "threads is 64, but the device has 4 cores"),
    "unknown-target": Broken(
        {"targets": [{"target": "openvin", "precisions": ["int8"]}]}, 'did you mean "openvino"'
    ),
    "unknown-precision": Broken(
        {"targets": [{"target": "openvino", "precisions": ["int88"]}]}, 'did you mean "int8"'
    ),
    "unknown-key": Broken({"thread": 3}, 'unknown key "thread" .did you mean "threads"'),
    "unknown-nested-key": Broken(
        {"latency": {"percentile": "p99", "limit": 5, "limit_ms": 5, "scope": "frame"}},
        'unknown key "latency.limit"',
    ),
    "unknown-feature": Broken({"features": ["avx-vnni"]}, 'did you mean "avx_vnni"'),
    "feature-of-another-processor": Broken({"features": ["dotprod"]}, "not known for x86_64"),
    "missing-key": Broken({"arch": "drop"}, 'key "arch" is missing'),
    "no-target": Broken({"targets": []}, "targets is empty"),
    "default-nobody-allows": Broken({"default_precisions": ["bf16"]}, 'default precision "bf16"'),
    "old-opset": Broken({"max_opset": 11}, "max_opset: .*13, got 11"),
    "tensorrt-without-target": Broken(
        {"tensorrt": {"generation": 10, "compute_capability": "8.7", "workspace_mib": 64}},
        "belong together",
    ),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN.keys())
def test_load_profile_says_what_is_wrong_when_impossible(case: Broken, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=case.message):
        load_profile(write_profile(tmp_path, **case.changes))


def test_load_profile_lists_all_problems_together(tmp_path: Path) -> None:
    path = write_profile(tmp_path, threads=0, thread=3, arch="drop", max_ir="new")

    with pytest.raises(ProfileError) as caught:
        load_profile(path)

    assert "4 problems" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x86-vni", 'did you mean "x86-vnni"'),
        ("/nowhere/mine.yaml", "does not exist"),
    ],
)
def test_load_profile_names_the_known_ones_when_unknown(name: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        load_profile(name)


@pytest.mark.parametrize("text", ["[1, 2]", "{", "threads: [", "\x00", "name: 2026-13-45"])
def test_load_profile_refuses_a_file_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ProfileError, match="device profile"):
        load_profile(path)


def test_replace_is_checked_like_a_file() -> None:
    with pytest.raises(ProfileError, match="threads is 0"):
        dataclasses.replace(load_profile("x86-vnni"), threads=0)


def test_profile_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_profile("x86-vnni").threads = 2  # type: ignore[misc]


N100 = HostFacts("x86_64", frozenset({"avx2", "fma", "avx_vnni"}), 4, 7_800)


def test_check_host_finds_nothing_when_the_machine_is_the_device() -> None:
    assert check_host(load_profile("intel-n100"), N100) == []


@pytest.mark.parametrize(
    ("host", "mismatch"),
    [
        (dataclasses.replace(N100, flags=frozenset({"avx2", "fma"})), 'lacks "avx_vnni"'),
        (dataclasses.replace(N100, cores=2), "2 cores"),
        (dataclasses.replace(N100, memory_mib=2_000), "2000 MiB"),
        (dataclasses.replace(N100, arch="aarch64"), "processor is aarch64"),
    ],
    ids=["flags", "cores", "memory", "arch"],
)
def test_check_host_names_the_mismatch(host: HostFacts, mismatch: str) -> None:
    (found,) = check_host(load_profile("intel-n100"), host)

    assert mismatch in found


@pytest.mark.parametrize(
    ("device", "host", "saturates"),
    [
        ("x86-vnni", dataclasses.replace(N100, flags=frozenset({"avx2", "fma"})), True),
        ("intel-n100", dataclasses.replace(N100, flags=frozenset({"avx2", "fma"})), True),
        ("x86-vnni", N100, False),
        ("x86-avx2", dataclasses.replace(N100, flags=frozenset({"avx2", "fma"})), False),
        ("x86-vnni", dataclasses.replace(N100, arch="aarch64", flags=frozenset()), False),
        ("raspberry-pi-5", dataclasses.replace(N100, flags=frozenset()), False),
    ],
)
def test_int8_for_vnni_saturates_where_there_is_none(
    device: str, host: HostFacts, saturates: bool
) -> None:
    assert saturates_int8(load_profile(device), host) is saturates


def test_read_host_knows_this_machine() -> None:
    host = read_host()

    assert host.arch
    assert host.cores >= 1


def test_import_loads_neither_pydantic_nor_yaml() -> None:
    program = (
        "import sys, hydistill_edge.targets.profiles;"
        "sys.exit(bool({'pydantic', 'yaml'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

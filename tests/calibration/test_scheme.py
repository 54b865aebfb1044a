from __future__ import annotations

from dataclasses import dataclass

import pytest

from hydistill_edge.calibration.ranges import METHODS
from hydistill_edge.calibration.scheme import choose_scheme
from hydistill_edge.errors import InputError
from hydistill_edge.targets.profiles import list_profiles, load_profile


@dataclass(frozen=True)
class Device:
    """The three attributes of a profile that decide."""

    arch: str
    features: tuple[str, ...] = ()
    name: str = "device"


VNNI = Device("x86_64", ("avx2", "fma", "avx_vnni"))
AVX2 = Device("x86_64", ("avx2", "fma"))
ARM = Device("aarch64", ("neon", "dotprod"))


@dataclass(frozen=True)
class Case:
    """What a target on a device must get."""

    target: str
    device: Device
    name: str
    activation_type: str
    symmetric: bool
    reduce_range: bool


CASES = [
    Case("onnxruntime", VNNI, "u8s8-per-channel", "uint8", False, False),
    Case("onnxruntime", AVX2, "u8s8-per-channel-reduced", "uint8", False, True),
    Case("onnxruntime", ARM, "s8s8-per-channel", "int8", False, False),
    Case("openvino", VNNI, "nncf-mixed", "uint8", False, False),
    Case("openvino", AVX2, "nncf-mixed-overflow-fix", "uint8", False, True),
    Case("tensorrt", ARM, "explicit-symmetric-qdq", "int8", True, False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.target}-{case.name}")
def test_scheme_suits_runtime_and_processor(case: Case) -> None:
    scheme = choose_scheme(case.target, case.device)

    assert scheme.name == case.name
    assert scheme.activation_type == case.activation_type
    assert scheme.symmetric_activations is case.symmetric
    assert scheme.reduce_range is case.reduce_range
    assert scheme.per_channel
    assert scheme.reason


def test_scheme_names_differ_when_schemes_differ() -> None:
    schemes = {choose_scheme(case.target, case.device) for case in CASES}

    assert len({scheme.name for scheme in schemes}) == len(schemes)


@pytest.mark.parametrize("name", list_profiles())
def test_scheme_exists_for_every_int8_target_of_packaged_profiles(name: str) -> None:
    profile = load_profile(name)
    targets = [entry.target for entry in profile.targets if "int8" in entry.precisions]

    assert all(choose_scheme(target, profile).reason for target in targets)


@pytest.mark.parametrize("estimator", METHODS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.target}-{case.name}")
def test_scheme_takes_the_estimator_that_was_asked_for(case: Case, estimator: str) -> None:
    scheme = choose_scheme(case.target, case.device, range_estimator=estimator)

    assert scheme.range_estimator == estimator
    assert f"Ranges by {estimator.replace('minmax', 'min-max')}: " in scheme.reason


def test_scheme_takes_extremes_when_nothing_was_asked_for() -> None:
    schemes = [choose_scheme(case.target, case.device) for case in CASES]

    assert {scheme.range_estimator for scheme in schemes} == {"minmax"}


def test_scheme_refuses_unknown_estimator() -> None:
    with pytest.raises(InputError, match='did you mean "entropy"'):
        choose_scheme("onnxruntime", VNNI, range_estimator="entrophy")


def test_scheme_refuses_openvino_int8_when_device_is_arm() -> None:
    with pytest.raises(InputError, match='build int8 for "onnxruntime" there'):
        choose_scheme("openvino", ARM)


def test_scheme_refuses_unknown_target() -> None:
    with pytest.raises(InputError, match="expected one of onnxruntime, openvino, tensorrt"):
        choose_scheme("tflite", VNNI)

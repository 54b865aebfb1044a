"""How an int8 artifact is quantized, decided by runtime and device profile, with the reason.

One QDQ file for all runtimes is the slowest of all answers: an OpenVINO-style file runs slower
than float32 in ONNX Runtime, and TensorRT refuses zero points and quantized biases.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from hydistill_edge.calibration.ranges import check_method
from hydistill_edge.errors import InputError
from hydistill_edge.targets.base import Scheme


class Profile(Protocol):
    """What of a device profile decides the scheme."""

    @property
    def name(self) -> str:
        """The profile's name."""
        ...

    @property
    def arch(self) -> str:
        """Processor family: "x86_64" or "aarch64"."""
        ...

    @property
    def features(self) -> tuple[str, ...]:
        """Instruction sets that every such device has."""
        ...


VNNI = {"vnni", "avx_vnni", "avx512_vnni"}
"""Instruction sets that add int8 products in 32 bits at once."""


_RANGES = {
    "minmax": "Ranges by min-max: nothing that the calibration images reach is clipped",
    "percentile": "Ranges by percentile: the rarest values are clipped",
    "entropy": "Ranges by entropy: the distribution of the values changes least",
    "mse": "Ranges by mse: the squared error of clipping and rounding is least",
}


def choose_scheme(target: str, profile: Profile, *, range_estimator: str = "minmax") -> Scheme:
    """Return how to quantize for one runtime on one kind of device.

    Args:
        target: "onnxruntime", "openvino" or "tensorrt".
        profile: a `DeviceProfile`; its architecture and instruction sets decide.
        range_estimator: one of `calibration.ranges.METHODS`; every target takes each of them.
            `calibration.select.select_by_parity` tells which is best.

    Raises:
        InputError: there is no scheme for this target, or for its combination with the device, or
            no such estimator.
    """
    check_method(range_estimator)
    scheme = _scheme(target, profile)
    reason = f"{scheme.reason}. {_RANGES[range_estimator]}"
    return replace(scheme, range_estimator=range_estimator, reason=reason)


def _scheme(target: str, profile: Profile) -> Scheme:
    vnni = bool(VNNI & set(profile.features))
    if target == "onnxruntime":
        return _onnxruntime_x86(vnni) if profile.arch == "x86_64" else _onnxruntime_arm()
    if target == "openvino":
        if profile.arch != "x86_64":
            raise InputError(
                f'device "{profile.name}" ({profile.arch}) has no int8 scheme in "openvino", whose '
                'int8 kernels on ARM cover too little; build int8 for "onnxruntime" there'
            )
        return _openvino(vnni)
    if target == "tensorrt":
        return _TENSORRT
    raise InputError(
        f'no int8 scheme for target "{target}"; expected one of onnxruntime, openvino, tensorrt'
    )


def _onnxruntime_x86(vnni: bool) -> Scheme:
    if vnni:
        name = "u8s8-per-channel"
        why = (
            "VNNI adds products of unsigned activations and signed weights in 32 bits, so the full "
            "8 bits of both are exact"
        )
    else:
        name = "u8s8-per-channel-reduced"
        why = (
            "without VNNI pairs of products are added in 16 bits and saturate; weights of 7 bits "
            "cannot"
        )
    return Scheme(
        name=name,
        quantizer="onnxruntime",
        activation_type="uint8",
        weight_type="int8",
        symmetric_activations=False,
        per_channel=True,
        reduce_range=not vnni,
        range_estimator="minmax",
        reason=(
            f"{why}. Activations are asymmetric uint8: ONNX Runtime's fast x86 kernels take no "
            "other, and ReLU and Clip vanish into the range. Raw pixels are uint8 as they come"
        ),
    )


def _onnxruntime_arm() -> Scheme:
    return Scheme(
        name="s8s8-per-channel",
        quantizer="onnxruntime",
        activation_type="int8",
        weight_type="int8",
        symmetric_activations=False,
        per_channel=True,
        reduce_range=False,
        range_estimator="minmax",
        reason=(
            "ARM's dot product instructions multiply signed by signed, and ONNX Runtime has its "
            "symmetric kernels there for int8 activations and weights with zero point 0. The zero "
            "points of the activations are free: with symmetric ones every ReLU and Clip would "
            "stay as a float operator between two layers, and half of the levels would be unused"
        ),
    )


def _openvino(vnni: bool) -> Scheme:
    why = (
        "with VNNI, int8 sums are exact, and NNCF's overflow fix, which halves the first layer's "
        "weight range, is off"
        if vnni
        else "without VNNI, 16-bit sums saturate: NNCF's overflow fix keeps weights to 7 bits"
    )
    return Scheme(
        name="nncf-mixed" if vnni else "nncf-mixed-overflow-fix",
        quantizer="nncf",
        activation_type="uint8",
        weight_type="int8",
        symmetric_activations=False,
        per_channel=True,
        reduce_range=not vnni,
        range_estimator="minmax",
        reason=(
            f"OpenVINO's own quantizer on its own format; {why}. Preset mixed: weights symmetric, "
            "activations asymmetric where they take both signs. Images are taken together by their "
            "extremes, not by their mean as by NNCF's default, which clips the gates of "
            "squeeze-and-excitation (a steel RegNetY-400MF: 10.6 dB by default, 21.3 dB so)"
        ),
    )


_TENSORRT = Scheme(
    name="explicit-symmetric-qdq",
    quantizer="qdq",
    activation_type="int8",
    weight_type="int8",
    symmetric_activations=True,
    per_channel=True,
    reduce_range=False,
    range_estimator="minmax",
    reason=(
        "TensorRT takes explicit QDQ nodes only, symmetric with zero point 0 and without quantized "
        "biases; TensorRT 11 has no other way, and 10 takes the same file"
    ),
)

"""What a report shows about calibration, as frozen values: the images, how good, and the schemes.

`calibration_reading.py` makes them. As in `data.py`, None and empty mean "not recorded".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class QualityPart:
    """One part of the quality score: `value` in [0, 1], one is best, and its exponent."""

    name: str
    value: float | None
    weight: float | None
    why: str


@dataclass(frozen=True)
class LayerRange:
    """The range that the set gives one layer, beside what was known of real images.

    Attributes:
        covered: share of the reference's quantile range that the set's range covers.
        excess_bits: bits of resolution given away beyond all values of the reference.
        cut: share of the reference's values that are cut off; None without real images.
        signal_db: of the reference in the set's range of 8 bits; None without real images.
    """

    name: str
    low: float | None
    high: float | None
    reference_low: float | None
    reference_high: float | None
    covered: float | None
    excess_bits: float | None
    cut: float | None
    signal_db: float | None


@dataclass(frozen=True)
class Quality:
    """The score of a set, its parts with the heaviest first, and the layers compared."""

    score: float | None
    limit: float | None
    passed: bool | None
    reference: str
    parts: tuple[QualityPart, ...]
    layers: tuple[LayerRange, ...]
    advice: tuple[str, ...]

    @property
    def against_real(self) -> bool:
        """Whether real images were the reference: only they have a signal that can be lost."""
        return any(layer.signal_db is not None for layer in self.layers)


@dataclass(frozen=True)
class LayerCoverage:
    """Activation bins of one tensor, and the ranges of the set and of all candidates."""

    tensor: str
    bins: float | None
    covered: float | None
    low: float | None
    high: float | None
    candidates_low: float | None
    candidates_high: float | None


@dataclass(frozen=True)
class Coverage:
    """How the images came to be chosen; `picks` and `outliers` are (id, reason)."""

    candidates: float | None
    complete: bool | None
    picks: tuple[tuple[str, str], ...]
    outliers: tuple[tuple[str, str], ...]
    layers: tuple[LayerCoverage, ...]


@dataclass(frozen=True)
class CalibrationSet:
    """The images that ranges are taken from; equal for all artifacts that share them."""

    count: float | None
    digest: str
    per_class: Mapping[str, float | None]
    source: str
    reason: str = field(compare=False)
    coverage: Coverage | None
    quality: Quality | None


@dataclass(frozen=True)
class Estimator:
    """A range estimator that was tried; `failed` says why it has no numbers."""

    name: str
    snr_db: float | None
    agreement: float | None
    failed: str
    chosen: bool


@dataclass(frozen=True)
class Control:
    """The artifact against the float student on images that set no range."""

    images: float | None
    signal_db: float | None
    agreement: float | None


@dataclass(frozen=True)
class Calibration:
    """calibration.json of one artifact: its images, its scheme, and why this one."""

    images: CalibrationSet
    scheme: Mapping[str, str]
    reason: str
    estimators: tuple[Estimator, ...]
    estimators_reason: str
    control: Control | None

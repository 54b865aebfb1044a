"""What a report shows of the method: the documents in student/ and transfer/, as frozen values.

`method_reading.py` makes them. As in `data.py`, None and what is empty mean "not measured".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """A student as it could be deployed."""

    name: str
    params: float | None
    macs: float | None
    agreement: float | None


@dataclass(frozen=True)
class Deployment:
    """deployment.json.

    Attributes:
        head: `projector` or `folded`.
        forms: the student with its projector, and the folded one where there is one.
        parts: parameters of backbone, projector and classifier by name.
        projectors: (title, params, MACs, whether it was trained) of other projectors.
        images: held out, that agreements are measured on.
        fold: how the fold went, in a sentence; empty without one.
    """

    head: str
    forms: tuple[Form, ...]
    parts: Mapping[str, float | None]
    projectors: tuple[tuple[str, float | None, float | None, bool], ...]
    images: float | None
    fold: str


@dataclass(frozen=True)
class ComparedRow:
    """One training of a comparison."""

    name: str
    what: str
    steps: float | None
    agreement: float | None
    worst_class: str
    worst_agreement: float | None
    shifted_agreement: float | None
    per_class: tuple[tuple[str, float | None, float | None], ...]


@dataclass(frozen=True)
class Comparison:
    """comparison.json: arms or stages; `passed` is the gate's, None where there is no gate."""

    of: str
    measure: str
    shift: str
    images: float | None
    rows: tuple[ComparedRow, ...]
    passed: bool | None
    gap_points: float | None
    reasons: tuple[str, ...]
    gated: bool


@dataclass(frozen=True)
class Epoch:
    """One selection of the pool."""

    epoch: float
    pool: float | None
    selected: float | None
    teacher_share: float | None
    by_threshold: bool | None
    thresholds: tuple[float, ...]


@dataclass(frozen=True)
class SelectionAudit:
    """selection.json.

    Attributes:
        epochs: in order.
        per_class: (class, predicted, threshold, selected) of the last epoch.
        per_source: (source, images in the pool, share selected first, share selected last).
        weights: spread of the weights in the last epoch, by name.
        notes: what was odd, with the epochs that say so.
    """

    epochs: tuple[Epoch, ...]
    per_class: tuple[tuple[str, float | None, float | None, float | None], ...]
    per_source: tuple[tuple[str, float | None, float | None, float | None], ...]
    weights: Mapping[str, float | None]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class KeyLayer:
    """A layer of the teacher that could be learned from."""

    name: str
    shape: str
    influence: float | None
    chosen: bool
    bytes: float | None


@dataclass(frozen=True)
class KeyMaps:
    """Pictures of where the kept layers are active: rows of (class, images, one URI per layer)."""

    note: str
    layers: tuple[str, ...]
    rows: tuple[tuple[str, float | None, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Keys:
    """keys.json.

    Attributes:
        threshold: that the last choice was made with; None where all layers are kept.
        attention: mean weights, rows by columns; empty where there are none.
        rows: names of the rows of the attention.
        columns: names of its columns.
        by_teacher: whether its columns are the teacher's layers.
        history: (epoch, places of the kept layers).
        candidates: (rule, threshold, layers kept).
        classes: (class, images, names of the layers above the threshold) on held-out images.
        one_class_only: (layer, class).
    """

    variant: str
    top_k: float | None
    factor: float | None
    threshold: float | None
    layers: tuple[KeyLayer, ...]
    attention: tuple[tuple[float, ...], ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    by_teacher: bool
    history: tuple[tuple[float, tuple[int, ...]], ...]
    candidates: tuple[tuple[str, float | None, tuple[str, ...]], ...]
    classes: tuple[tuple[str, float | None, tuple[str, ...]], ...]
    one_class_only: tuple[tuple[str, str], ...]
    bytes_all: float | None
    bytes_used: float | None
    bytes_note: str
    maps: KeyMaps | None


@dataclass(frozen=True)
class Gan:
    """The GAN's part of the transfer set's manifest.

    Attributes:
        counts: images of each class by the teacher.
        coverage: share of the bins of real features that the images of a class reach.
        leak: what the leak check counted and measured, by name.
    """

    images: float | None
    duplicates: float | None
    hit: float | None
    entropy: float | None
    iterations: float | None
    seconds: float | None
    counts: Mapping[str, float | None]
    coverage: tuple[tuple[str, float | None], ...]
    flagged: tuple[str, ...]
    missing: tuple[str, ...]
    density: float | None
    neighbour_coverage: float | None
    leak: Mapping[str, float | None]
    pixel_diversity: float | None
    feature_diversity: float | None
    note: str


@dataclass(frozen=True)
class PilotClass:
    """What a class was given in the pilot choice, and what it lacked."""

    name: str
    wanted: float | None
    chosen: float | None
    need: Mapping[str, float | None]


@dataclass(frozen=True)
class Pilot:
    """pilot.json; `images` are (id, class, the teacher's probability, reason)."""

    kind: str
    candidates: float | None
    count: float | None
    near_duplicates: float | None
    classes: tuple[PilotClass, ...]
    images: tuple[tuple[str, str, float | None, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Collected:
    """hidfd.json: what the student was trained on."""

    arm: str
    collected: float | None
    synthetic: float | None
    inflation: float | None
    real_share: float | None
    steps: float | None
    used_images: float | None
    usual_images: float | None
    reduction: float | None


@dataclass(frozen=True)
class ClassMap:
    """Images of a few classes on a plane.

    Attributes:
        points: (x, y, place of the class, kind).
        kinds: (kind, images, share named as intended, share on a boundary).
    """

    classes: tuple[str, ...]
    points: tuple[tuple[float, float, int, str], ...]
    kinds: tuple[tuple[str, float | None, float | None, float | None], ...]


@dataclass(frozen=True)
class Compensated:
    """infer.json, and the part of the transfer set's manifest on the set it tells of.

    Attributes:
        images: natural and compensated ones, by kind.
        bytes: of natural images, compensators, labels and all of them.
        networks: (name, agreement with the teacher).
        kinds: (kind, share named as intended, BatchNorm distance, density, coverage).
        nearest: what the leak check measured, by name.
        boundary: share of the held-out images near a boundary, of student and teacher.
        pairs: (class, class, images, probability left to the other, share confused).
        note: on the scale of the networks' logits.
    """

    labels: str
    images: Mapping[str, float | None]
    bytes: Mapping[str, float | None]
    ipc: float | None
    natural_per_class: float | None
    networks: tuple[tuple[str, float | None], ...]
    kinds: tuple[
        tuple[str, float | None, float | None, float | None, float | None],
        ...,
    ]
    nearest: Mapping[str, float | None]
    boundary: Mapping[str, float | None]
    margin: float | None
    pairs: tuple[tuple[str, str, float | None, float | None, float | None], ...]
    map: ClassMap | None
    note: str
    privacy: str


@dataclass(frozen=True)
class Method:
    """All that a run's method left to tell; None where it left nothing of the kind."""

    deployment: Deployment | None = None
    comparison: Comparison | None = None
    selection: SelectionAudit | None = None
    keys: Keys | None = None
    gan: Gan | None = None
    pilot: Pilot | None = None
    collected: Collected | None = None
    compensated: Compensated | None = None

    @property
    def tells(self) -> bool:
        """Whether there is anything to show."""
        return any(
            part is not None
            for part in (
                *(self.deployment, self.comparison, self.selection, self.keys),
                *(self.gan, self.pilot, self.collected, self.compensated),
            )
        )

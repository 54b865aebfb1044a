"""Rungs R1 to R4 of the parity ladder: export, runtime, shipped precision, int8.

| rung | compares | start values, per output |
| --- | --- | --- |
| R1 | PyTorch against the exported graph, fp32 | max abs ≤ 1e-4 of scale, cosine ≥ 0.99999 |
| R2 | two runtimes at the same precision | max abs ≤ 1e-3 of scale, cosine ≥ 0.9999 |
| R3 | the shipped float precision against fp32 | cosine ≥ 0.999, SNR ≥ 30 dB, top-1 ≥ 99.5 % |
| R4 | int8 against the fp32 student | cosine ≥ 0.99, SNR ≥ 20 dB, top-1 ≥ 99 % on synthetic and
  98.5 % on real images, mean KL ≤ 0.1 nats |

R0 stands in `structure.py`, R6 in `metamorphic.py`, R7 in `pixel_path.py`, the ladder itself in
`parity.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hydistill_edge.errors import InputError
from hydistill_edge.targets.comparison import Array, Comparison, Worst, compare
from hydistill_edge.targets.gates import (
    Gate,
    agreement_gate,
    at_least,
    at_most,
    combine,
    exactly,
)

Source = Literal["synthetic", "real", "none"]


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung of the ladder, judged or not.

    Attributes:
        rung: "R0" to "R7".
        title: what was compared.
        source: where the images come from; "none" where the rung needs none.
        n: images (or facts) that were compared.
        gates: what was judged; empty where nothing was, and `note` says why.
        metrics: numbers beside the gates; None where there are none.
        worst: the samples that did worst.
        note: what a reader must know.
    """

    rung: str
    title: str
    source: Source
    n: int = 0
    gates: tuple[Gate, ...] = ()
    metrics: Mapping[str, float | int | None] | None = None
    worst: tuple[Worst, ...] = ()
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """False where a gate failed, None where one was not judged, else True."""
        return combine(self.gates)

    def to_dict(self) -> dict[str, Any]:
        """Return the rung as it stands in parity.json."""
        return {
            "rung": self.rung,
            "title": self.title,
            "source": self.source,
            "n": self.n,
            "passed": self.passed,
            "gates": [gate.to_dict() for gate in self.gates],
            "metrics": None if self.metrics is None else dict(self.metrics),
            "worst": [asdict(sample) for sample in self.worst],
            "note": self.note,
        }

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> Rung:
        """Read what `to_dict` wrote; `passed` follows from the gates.

        Raises:
            InputError: a field is missing or unknown.
        """
        rest = {key: value for key, value in fields.items() if key != "passed"}
        try:
            rest["gates"] = tuple(Gate.from_dict(gate) for gate in rest["gates"])
            rest["worst"] = tuple(Worst(**sample) for sample in rest["worst"])
            return Rung(**rest)
        except (KeyError, TypeError) as error:
            message = f"not a rung: keys {sorted(fields)}; expected those of Rung.to_dict ({error})"
            raise InputError(message) from error


@dataclass(frozen=True, slots=True)
class Limits:
    """What a numeric rung asks for; None means that the number is reported and not judged.

    Attributes:
        max_abs_over_scale: largest absolute difference, in units of the logit scale.
        cosine_min: of the worst sample.
        cosine_mean: over the samples.
        snr_db: signal to noise of all logits together.
        top1_agreement: a fraction; held against the one-sided 95 % bound.
        mean_kl: in nats.
    """

    max_abs_over_scale: float | None = None
    cosine_min: float | None = None
    cosine_mean: float | None = None
    snr_db: float | None = None
    top1_agreement: float | None = None
    mean_kl: float | None = None


# Float rungs are about every sample, so their cosine is the worst one's. From R3 on noise is
# expected: the mean is judged, and the worst sample is reported.
R1_LIMITS = Limits(max_abs_over_scale=1e-4, cosine_min=0.99999)
R2_LIMITS = Limits(max_abs_over_scale=1e-3, cosine_min=0.9999)
R3_LIMITS = Limits(cosine_mean=0.999, snr_db=30.0, top1_agreement=0.995)
# 0.1 nats: on average the probability of what the student would say shrinks by a tenth.
R4_SYNTHETIC_LIMITS = Limits(cosine_mean=0.99, snr_db=20.0, top1_agreement=0.99, mean_kl=0.1)
R4_REAL_LIMITS = Limits(cosine_mean=0.99, snr_db=20.0, top1_agreement=0.985, mean_kl=0.1)


def not_judged(rung: str, title: str, source: Source, why: str) -> Rung:
    """Return a rung that nobody judged, and why."""
    return Rung(rung, title, source, note=why)


@dataclass(frozen=True, slots=True)
class LogitRung:
    """A rung that holds candidate logits against reference logits; call it to judge.

    Attributes:
        rung: "R1" to "R4", or a name of the caller's own.
        title: what is compared.
        limits: what is asked for unless the call says otherwise.
    """

    rung: str
    title: str
    limits: Limits

    def __call__(
        self,
        reference: Array,
        candidate: Array,
        ids: Sequence[str],
        *,
        source: Source = "synthetic",
        limits: Limits | None = None,
        classes: Sequence[str] | None = None,
        note: str = "",
    ) -> Rung:
        """Judge the candidate; zero images give a rung that is not judged.

        Args:
            reference: logits, shape (N, C).
            candidate: logits of the same images, shape (N, C).
            ids: N ids, named where an image does badly.
            source: "synthetic" or "real", never mixed in one call.
            limits: in place of the rung's own.
            classes: C names for the worst images; indices where None.
            note: what a reader must know.

        Raises:
            ShapeError: logits, ids and classes that do not fit each other.
        """
        if len(reference) == 0 and len(candidate) == 0:
            why = f"there are no {source} images to judge it on"
            return not_judged(self.rung, self.title, source, why)
        comparison = compare(reference, candidate, ids, classes=classes)
        return Rung(
            rung=self.rung,
            title=self.title,
            source=source,
            n=comparison.n,
            gates=gates_of(comparison, limits or self.limits),
            metrics=comparison.metrics(),
            worst=comparison.worst,
            note=note,
        )


r1_export = LogitRung("R1", "Exported graph against PyTorch, fp32", R1_LIMITS)
r2_runtime = LogitRung("R2", "Target runtime against ONNX Runtime, same precision", R2_LIMITS)
r3_shipped_precision = LogitRung("R3", "Shipped float precision against fp32", R3_LIMITS)


def r4_int8(
    reference: Array,
    candidate: Array,
    ids: Sequence[str],
    *,
    source: Source,
    limits: Limits | None = None,
    classes: Sequence[str] | None = None,
    note: str = "",
) -> Rung:
    """Judge int8 logits against the fp32 student's, on images of one source.

    Near-ties decide nothing: agreement over all images is the gate, and the metrics give it once
    more over the decisive ones, whose float margin exceeds the int8 noise.

    Args:
        reference: fp32 logits, shape (N, C).
        candidate: int8 logits of the same images, shape (N, C).
        ids: N ids, named where an image does badly.
        source: "synthetic" or "real", never mixed: one rung for each.
        limits: the source's start values where None.
        classes: C names for the worst images; indices where None.
        note: what a reader must know.

    Raises:
        ShapeError: logits, ids and classes that do not fit each other.
    """
    start = R4_REAL_LIMITS if source == "real" else R4_SYNTHETIC_LIMITS
    rung = LogitRung("R4", f"int8 against the fp32 student, {source} images", start)
    return rung(reference, candidate, ids, source=source, limits=limits, classes=classes, note=note)


def gates_of(comparison: Comparison, limits: Limits) -> tuple[Gate, ...]:
    """Return the gates of a comparison: all values finite, then each limit that is set."""
    c = comparison
    gates = [
        exactly(
            "samples with NaN or infinity",
            c.nonfinite_reference + c.nonfinite_candidate,
            0,
            unit="samples",
            why=(
                f"{c.nonfinite_reference} in the reference, {c.nonfinite_candidate} in the "
                "candidate"
            ),
            worst=c.worst_id if c.nonfinite_reference + c.nonfinite_candidate else None,
        )
    ]
    nothing = "" if c.scale is not None else "no sample is finite on both sides"
    if limits.max_abs_over_scale is not None:
        gates.append(
            at_most(
                "largest difference",
                c.max_abs_over_scale,
                limits.max_abs_over_scale,
                unit="of scale",
                why=nothing,
                worst=c.worst_id,
            )
        )
    if limits.cosine_min is not None:
        gates.append(
            at_least(
                "smallest cosine",
                c.cosine_min,
                limits.cosine_min,
                why=nothing,
                worst=c.worst_cosine_id,
            )
        )
    if limits.cosine_mean is not None:
        gates.append(
            at_least(
                "mean cosine",
                c.cosine_mean,
                limits.cosine_mean,
                why=nothing,
                worst=c.worst_cosine_id,
            )
        )
    if limits.snr_db is not None:
        gates.append(
            at_least("SNR", c.snr_db, limits.snr_db, unit="dB", why=nothing, worst=c.worst_id)
        )
    if limits.top1_agreement is not None:
        gates.append(
            agreement_gate(c.agree, c.n, limits.top1_agreement, worst=c.worst_flip_id),
        )
    if limits.mean_kl is not None:
        gates.append(at_most("mean KL", c.mean_kl, limits.mean_kl, unit="nats", why=nothing))
    return tuple(gates)

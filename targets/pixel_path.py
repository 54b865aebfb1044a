"""Rung R7: the whole way from raw file bytes to a decision, against golden decisions.

Decoding, channel order and resizing drift between machines and are then blamed on the export, so
this rung starts at the PNG or JPEG bytes that a camera would write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hydistill_edge.errors import HydistillError
from hydistill_edge.targets.comparison import WORST, Worst
from hydistill_edge.targets.gates import exactly
from hydistill_edge.targets.rungs import Rung, Source, not_judged

Decide = Callable[[bytes], int]
"""Bytes of an encoded image to the index of the class that is decided for."""


@dataclass(frozen=True, slots=True)
class Golden:
    """An encoded image and the decision that it must get.

    Attributes:
        data: bytes of a PNG or JPEG file.
        index: index of the class.
    """

    id: str
    data: bytes
    index: int


def r7_pixel_path(
    decide: Decide,
    golden: Sequence[Golden],
    *,
    source: Source = "synthetic",
    classes: Sequence[str] | None = None,
) -> Rung:
    """Hold the decisions over golden files against the stored ones: all must be equal.

    A file that `decide` cannot read counts as a wrong decision: a decoder that refuses a golden
    file is what this rung is there to find.

    Args:
        decide: the path under test.
        golden: encoded images with their decisions.
        source: where the golden images come from.
        classes: names for the worst samples; indices where None.
    """
    title = "Raw file to decision, against golden decisions"
    if not golden:
        return not_judged("R7", title, source, "there are no golden files")

    def name(index: int) -> str:
        known = classes is not None and 0 <= index < len(classes)
        return classes[index] if known and classes is not None else str(index)

    wrong = []
    for sample in golden:
        try:
            index = decide(sample.data)
        except (HydistillError, OSError, ValueError) as error:
            wrong.append(Worst(sample.id, name(sample.index), f"cannot decide: {error}", None))
            continue
        if index != sample.index:
            wrong.append(Worst(sample.id, name(sample.index), name(int(index)), None))
    gate = exactly(
        "decisions that differ",
        len(wrong),
        0,
        unit="images",
        why=f"{len(golden) - len(wrong)} of {len(golden)} golden decisions are the same",
        worst=wrong[0].id if wrong else None,
    )
    agreement = (len(golden) - len(wrong)) / len(golden)
    return Rung(
        "R7",
        title,
        source,
        n=len(golden),
        gates=(gate,),
        metrics={"decision_agreement": agreement},
        worst=tuple(wrong[:WORST]),
    )

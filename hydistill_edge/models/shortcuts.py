"""A student whose shortcuts pool: they see all positions of the map, not a quarter of them."""

from __future__ import annotations

import torch

from hydistill_edge.models.architectures import build_network
from hydistill_edge.models.student import Student
from hydistill_edge.models.zoo import HAVE_SHORTCUTS

ZOO_PREFIX = "zoo:"


def pool_shortcuts(student: Student) -> Student:
    """Return the student with max pooling and a 1x1 convolution in its downsampling shortcuts.

    Published shortcuts are 1x1 convolutions with a stride, which look at one position of four. That
    is enough as long as the branch beside it looks at all of them; where branches are dropped, the
    shortcut carries the signal alone. The weights are taken over as they are.

    Args:
        student: of any architecture.

    Returns:
        A new student; the given one where its architecture is no residual network of the zoo, or
        where its shortcuts pool already.

    Source: Zhong and Liu 2025, arXiv:2309.04195.
    """
    name = student.architecture.removeprefix(ZOO_PREFIX)
    known = student.architecture.startswith(ZOO_PREFIX) and name in HAVE_SHORTCUTS
    if not known or student.options.get("shortcut") == "pool" or student.plan.kind != "own":
        return student
    options = {**student.options, "shortcut": "pool"}
    with torch.random.fork_rng(devices=[]):  # the fresh weights are not kept
        network = build_network(
            student.architecture,
            classes=len(student.classes),
            channels=student.channels,
            size=student.size,
            options={"width": student.width, **options},
        )
    # Pooling has no weights, so all others stand in the same order, under other names.
    weights = student.network.state_dict().values()
    network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
    network.to(next(student.network.parameters()).device).train(student.network.training)
    return Student(
        network,
        architecture=student.architecture,
        classes=student.classes,
        channels=student.channels,
        size=student.size,
        width=student.width,
        options=options,
        plan=student.plan,
        input_note=student.input_note,
    )

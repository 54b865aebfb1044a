"""Students that answer through their teacher's classifier, and what training needs of them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.anatomy import probe_input
from hydistill_edge.models.projector import (
    Parts,
    ProjectedNetwork,
    Projector,
    ProjectorForm,
    assemble,
    backbone_state,
    cut_network,
)
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.naming import PROJECTED_FORM


def project(
    student: Student, teacher: Teacher, *, form: ProjectorForm | None = None, seed: int = 0
) -> Student:
    """Return a student of the same backbone that answers through the teacher's classifier.

    Args:
        student: gives the backbone, which is copied; its own last layers are dropped.
        teacher: gives its classifier, which is copied and stays frozen.
        form: of the projector.
        seed: of the projector's weights; torch's global generator is left as it was.

    Raises:
        MethodError: the teacher's logits are no linear function of its last map's mean, or the
            classes differ.
        UsageError: a student of an ONNX file, or one that is projected already.
    """
    _check_pair(student, teacher)
    form = form or ProjectorForm()
    assert teacher.classifier is not None
    with torch.no_grad():
        example = probe_input(
            teacher.network, channels=teacher.spec.channels, size=teacher.spec.size
        )
        teacher_map = teacher.features((example * 0.25 + 0.5).clamp(0.0, 1.0)).final_map
    facts = {
        **asdict(form),
        "teacher_channels": int(teacher_map.shape[1]),
        "map_size": [int(teacher_map.shape[2]), int(teacher_map.shape[3])],
        "signed": bool((teacher_map < 0).any()),
    }
    explicit = student.plan.kind == "explicit"
    network = copy.deepcopy(_inner(student))
    channels = student.plan.network_channels if explicit else student.channels
    example = probe_input(network, channels=channels, size=student.size)
    cut = cut_network(network, example)
    made = assemble(cut, facts, classes=len(student.classes), seed=seed)
    _copy_classifier(teacher.classifier, made.classifier)
    made.to(example.device).train(student.network.training)
    plan = student.plan
    if plan.kind == "folded":
        plan = replace(plan, layer=f"backbone.{cut.name_of(plan.layer)}")
    if explicit:
        layer = copy.deepcopy(student.network.get_submodule("renormalise"))
        whole: nn.Module = nn.Sequential(OrderedDict(renormalise=layer, network=made))
    else:
        whole = made
    backbone_options = dict(student.options)
    if student.architecture.startswith("zoo:"):
        backbone_options = {"width": student.width, **backbone_options}
    return Student(
        whole,
        architecture=f"{PROJECTED_FORM}{student.architecture}" if student.architecture else "",
        classes=student.classes,
        channels=student.channels,
        size=student.size,
        width=student.width,
        options={**facts, "backbone": backbone_options},
        plan=plan,
        input_note=student.input_note,
    )


def unproject(projected: Student, plain: Student) -> Student:
    """Return the plain student with the backbone of a projected one; its last layers stay its own.

    Args:
        projected: made by `project` from `plain`, and trained since.
        plain: is copied, not changed.
    """
    folded = copy.deepcopy(plain)
    inner = _inner(folded)
    state = inner.state_dict()
    known = backbone_state(projected_network(projected).backbone)
    inner.load_state_dict({name: known.get(name, tensor) for name, tensor in state.items()})
    return folded.to(next(projected.parameters()).device)


def with_projector(projected: Student, form: ProjectorForm) -> Student:
    """Return a copy of a projected student with a fresh projector, for its size.

    Args:
        projected: made by `project`.
        form: of the new projector.
    """
    other = copy.deepcopy(projected)
    network = projected_network(other)
    first = network.projector.layers[0]
    assert isinstance(first, nn.Conv2d)
    network.projector = Projector(
        first.in_channels,
        network.classifier.in_features,
        form=form,
        signed=bool(projected.options["signed"]),
    ).to(network.classifier.weight.device)
    return other


class StudentParts(nn.Module):
    """A projected student whose forward returns all parts, for training; the weights are shared.

    Args:
        student: made by `project`.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        projected_network(student)
        self.student = student

    def forward(self, pixels: Tensor) -> Parts:
        """Return the parts for pixels as in `Student.normalize`."""
        z = self.student.normalize(pixels)
        if self.student.plan.kind == "explicit":
            z = self.student.network.get_submodule("renormalise")(z)
        return projected_network(self.student).parts(z)


def _copy_classifier(source: nn.Linear, target: nn.Linear) -> None:
    with torch.no_grad():
        target.weight.copy_(source.weight)
        bias: Tensor | None = source.bias
        target.bias.copy_(torch.zeros_like(target.bias) if bias is None else bias)


def _check_pair(student: Student, teacher: Teacher) -> None:
    if not teacher.shares_classifier or teacher.classifier is None:
        raise not_shared(teacher.shares_classifier_note)
    if student.classes != teacher.classes:
        raise MethodError(
            f"the student has the classes {', '.join(student.classes)}, the teacher "
            f"{', '.join(teacher.classes)}; expected the same in the same order"
        )
    if student.architecture.startswith("onnx:"):
        raise UsageError(
            "a student from an ONNX file cannot carry a projector: its graph is fixed; expected a "
            "network of the zoo, of torchvision or of a Python file"
        )
    if is_projected(student):
        raise UsageError(
            "this student answers through a projector already; give the backbone's own student"
        )


def not_shared(note: str) -> MethodError:
    """Return the error about a teacher whose classifier no student can take over.

    Args:
        note: what was found in it.
    """
    return MethodError(
        f"this teacher's classifier cannot be shared: {note}; expected a linear layer on the mean "
        "of the last feature map: use method kd, which needs logits only"
    )


def is_projected(student: Student) -> bool:
    """Return whether a student answers through a projector."""
    return isinstance(_inner(student), ProjectedNetwork)


def projected_network(student: Student) -> ProjectedNetwork:
    """Return the network of a student that `project` made.

    Raises:
        UsageError: the student has no projector.
    """
    network = _inner(student)
    if isinstance(network, ProjectedNetwork):
        return network
    raise UsageError(
        "this student has no projector and no shared classifier; make one with project(student, "
        "teacher)"
    )


def _inner(student: Student) -> nn.Module:
    """Return the network without the layer that brings z to its own statistics."""
    if student.plan.kind == "explicit":
        return student.network.get_submodule("network")
    return student.network

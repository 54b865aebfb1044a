"""Look at a teacher file, and write a commented recipe for it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hydistill_edge.atomic import write_text
from hydistill_edge.errors import MissingFileError, UsageError
from hydistill_edge.images.sources import Kind, kind_of
from hydistill_edge.models.architectures import build_network
from hydistill_edge.models.counting import count
from hydistill_edge.models.factoring import neighbour_share
from hydistill_edge.models.onnx_network import load_onnx
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.slimming import why_not_slim
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.models.weights import read_weights
from hydistill_edge.recipe import Recipe
from hydistill_edge.targets.profiles import load_profile

if TYPE_CHECKING:
    from hydistill_edge.targets.profiles import DeviceProfile

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.5,), (0.25,)

FACTORED_FROM = 0.9
"""Share of a teacher's work in layers that factoring pays for, from which it is proposed."""

SMALL_INPUT = 16
"""Up to this size in pixels a small residual net serves best; above, a mobile one."""


def inspect_teacher(
    weights: Path,
    *,
    architecture: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    classes: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the facts of a teacher file.

    Args:
        weights: safetensors, .pt with weights only, or .onnx.
        architecture: see `Teacher.load`; None for .onnx.
        size: input height and width in pixels; an .onnx file knows its own.
        channels: input channels; an .onnx file knows its own; default 3.
        classes: text file with one class name per line; default class_0, class_1, ...
        options: keyword arguments of the architecture's factory.

    Raises:
        TeacherError: the file cannot be used.
        UsageError: the size is missing, or says something else than the file.
        MissingFileError: a file does not exist.
    """
    if not weights.exists():
        raise MissingFileError(f"there is no teacher file {weights}")
    options = dict(options or {})
    height, width, channels = _input_size(weights, size, channels)
    if channels not in (1, 3):
        raise UsageError(f"{weights}: {channels} channels; expected 1 (grey) or 3 (RGB)")
    shape = (channels, height, width)
    names = _class_names(classes) or _numbered_classes(weights, architecture, shape, options)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else (GREY_MEAN, GREY_STD)
    teacher = Teacher.load(
        weights,
        architecture=architecture,
        classes=names,
        spec=InputSpec(height, width, channels, mean, std),
        options=options,
        base=Path.cwd(),
    )
    counted = count(teacher.network, channels=channels, size=(height, width))
    batch_norms = len(teacher.batch_norms())
    fixed = why_not_slim(teacher)
    return {
        "file": str(weights),
        "architecture": teacher.architecture,
        "input": {"height": height, "width": width, "channels": channels},
        "classes": list(names),
        "parameters": counted.params,
        "macs": counted.macs,
        "batch_norms": batch_norms,
        "images_from_nothing": "yes, from its batch norms"
        if batch_norms
        else "weak: without batch norms only the class prior remains; add a few real images",
        "can_be_slimmed": not fixed,
        "can_be_slimmed_note": fixed or "as student.architecture slimmed",
        "factored_share": round(neighbour_share(teacher), 3),
        "factored_share_note": "of its multiply-accumulates, in layers that student.architecture "
        "factored pays for",
        "shares_classifier": teacher.shares_classifier,
        "shares_classifier_note": teacher.shares_classifier_note,
        "taps": list(teacher.taps()),
        "note": teacher.note,
        "digest": teacher.digest,
    }


def write_recipe(
    out: Path,
    weights: Path,
    *,
    architecture: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    classes: Path | None = None,
    options: Mapping[str, Any] | None = None,
    images: Path | None = None,
    device: str = "host",
    replace: bool = False,
) -> dict[str, Any]:
    """Inspect a teacher and write a commented recipe for it; return the facts.

    Args:
        out: the recipe; its paths are written relative to its folder.
        weights: see `inspect_teacher`, as for the next five.
        architecture: see there.
        size: see there.
        channels: see there.
        classes: see there.
        options: see there.
        images: a few real images: a folder, .npz, .safetensors or .tar.
        device: profile to build for.
        replace: whether an existing recipe may be replaced.

    Raises:
        UsageError: the recipe exists already.
        ProfileError: there is no such device profile.
        MissingFileError: there is nothing at `images`.
        ImageSourceError: what is there holds no images.
    """
    if out.exists() and not replace:
        raise UsageError(f"{out} exists already; give another --out, or --force to replace it")
    profile = load_profile(device)
    source = None if images is None else (kind_of(images), images)
    facts = inspect_teacher(
        weights,
        architecture=architecture,
        size=size,
        channels=channels,
        classes=classes,
        options=options,
    )
    text = _recipe_text(out, weights, facts, architecture, dict(options or {}), source, profile)
    Recipe.parse(text, name=str(out), base=out.parent)  # what we write must be right
    write_text(out, text)
    return facts


def _input_size(weights: Path, size: int | None, channels: int | None) -> tuple[int, int, int]:
    if weights.suffix.lower() == ".onnx":
        found = load_onnx(weights).input
        for option, given, fixed in (
            ("--size", size, {found.height, found.width}),
            ("--channels", channels, {found.channels}),
        ):
            if given is not None and fixed - {given, None}:
                raise UsageError(
                    f"{weights} knows its own input, {found.height}x{found.width} px with "
                    f"{found.channels} channels; leave {option} {given} out"
                )
        height, width = found.height or size, found.width or size
        if height is None or width is None:
            raise UsageError(f"{weights} leaves its input size open; give it with --size")
        return height, width, found.channels or channels or 3
    if size is None:
        raise UsageError(f"{weights} holds weights only, which know no input size; give --size")
    return size, size, channels or 3


def _class_names(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MissingFileError(f"there is no class list {path}") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is no text ({error}); expected one class name per line, in UTF-8"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UsageError(f"{path} is empty; expected one class name per line, in output order")
    return names


def _numbered_classes(
    weights: Path,
    architecture: str | None,
    shape: tuple[int, int, int],
    options: Mapping[str, Any],
) -> list[str]:
    """Return class_0, class_1, ... as many as the network has outputs."""
    outputs = None
    if weights.suffix.lower() == ".onnx":
        outputs = _outputs_of(load_onnx(weights), shape)
    elif architecture is not None:
        outputs = _outputs_in(read_weights(weights), architecture, shape, options)
        if outputs is None:
            outputs = _outputs_of(_network(architecture, 2, shape, options), shape)
    # What has no outputs, or no architecture, is refused by loading it.
    return [f"class_{index}" for index in range(outputs or 2)]


def _outputs_in(
    tensors: Mapping[str, torch.Tensor],
    architecture: str,
    shape: tuple[int, int, int],
    options: Mapping[str, Any],
) -> int | None:
    """Return how many classes the weights were trained for, None where the shapes do not tell.

    The tensors that grow with the number of classes are the classifier's.
    """
    few, more = (_network(architecture, count, shape, options).state_dict() for count in (2, 3))
    for name, tensor in few.items():
        if name in tensors and name in more and tensor.shape[:1] < more[name].shape[:1]:
            return len(tensors[name])
    return None


def _network(
    architecture: str, classes: int, shape: tuple[int, int, int], options: Mapping[str, Any]
) -> torch.nn.Module:
    channels, height, width = shape
    return build_network(
        architecture,
        classes=classes,
        channels=channels,
        size=(height, width),
        options=options,
        base=Path.cwd(),
    )


def _outputs_of(network: torch.nn.Module, shape: tuple[int, int, int]) -> int:
    """Return how many outputs a network gives; a network that gives none is refused later."""
    try:
        with torch.no_grad():
            return int(network.eval()(torch.zeros(1, *shape)).shape[1])
    except Exception:  # the network's own code; loading runs it again and says what is wrong
        return 2


def _recipe_name(stem: str) -> str:
    """Return a file's name as the name of a build: plain letters, digits, dots and hyphens."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")
    return plain[:64] or "build"


def _relative(path: Path, base: Path) -> str:
    return os.path.relpath(path.absolute(), base.absolute())


def _procedural(has_real: bool, classes: int) -> list[str]:
    """Return the lines on images from formulas: for builds without real ones."""
    if has_real:
        return []
    return [
        "    # From formulas, as many of each class as the teacher sees: without real images, the",
        "    # student learns more from both.",
        f"    procedural: {{count: {max(16384, 16 * classes)}}}",
    ]


def _zoo_student(shape: Mapping[str, Any]) -> list[str]:
    small = max(shape["height"], shape["width"]) <= SMALL_INPUT
    return [
        "  # hydistill inspect and the documentation of the zoo list more, from tiny to middling.",
        f"  architecture: {'resnet8' if small else 'mobilenet_v2'}",
        f"  width: {1.0 if small else 0.5}",
    ]


def _recipe_text(
    out: Path,
    weights: Path,
    facts: Mapping[str, Any],
    architecture: str | None,
    options: Mapping[str, Any],
    source: tuple[Kind, Path] | None,
    profile: DeviceProfile,
) -> str:
    shape = facts["input"]
    grey = shape["channels"] == 1
    mean, std = (GREY_MEAN, GREY_STD) if grey else (IMAGENET_MEAN, IMAGENET_STD)
    lines = [
        "# One build: a teacher in, checked artifacts out. Run it with: hydistill build "
        + out.name,
        "# Every key: hydistill recipe schema. Every default: hydistill recipe check " + out.name,
        f"name: {json.dumps(_recipe_name(weights.stem))}",
        "seed: 0",
        "",
        "teacher:",
        f"  weights: {json.dumps(_relative(weights, out.parent))}",
    ]
    if architecture is not None:
        if ".py:" in architecture:
            file, _, factory = architecture.rpartition(":")
            architecture = f"{_relative(Path(file), out.parent)}:{factory}"
        lines.append(f"  architecture: {json.dumps(architecture)}")
    if options:
        lines.append(f"  options: {json.dumps(dict(options))}")
    lines += [
        f"  classes: {json.dumps(facts['classes'], ensure_ascii=False)}",
        "  input:",
        f"    height: {shape['height']}",
        f"    width: {shape['width']}",
        f"    channels: {shape['channels']}",
        "    # The statistics the teacher was trained with, in [0, 1] pixel units. A file does not",
        "    # tell them: these are the usual ones. CHECK THEM: wrong ones cost accuracy silently.",
        f"    mean: {list(mean)}",
        f"    std: {list(std)}",
        "",
        "images:",
    ]
    if source is not None:
        kind, images = source
        lines += [
            "  adapt: true  # resize and convert images that differ from the size above",
            "  # A few real images, without labels. They never leave the run directory unless",
            "  # may_ship says that they may.",
            "  real:",
            f"    - {{kind: {kind}, path: {json.dumps(_relative(images, out.parent))}}}",
        ]
    else:
        lines += [
            "  # A few hundred unlabelled real images help more than anything else:",
            "  # adapt: true",
            "  # real:",
            "  #   - {kind: folder, path: pilot}",
        ]
    if facts["factored_share"] >= FACTORED_FROM:
        student = [
            "  # The teacher with its layers as products of thinner ones: it keeps what it knows.",
            "  # Or one of the zoo, see docs/recipe.md: {architecture: mobilenet_v2, width: 0.5}.",
            "  architecture: factored",
            "  macs_share: 0.25  # of the teacher's multiply-accumulates, at most",
        ]
    elif facts["can_be_slimmed"]:
        student = [
            "  # The teacher with fewer channels: it keeps what it knows. Or a network of the zoo,",
            "  # see docs/recipe.md: {architecture: mobilenet_v2, width: 0.5}.",
            "  architecture: slimmed",
            "  macs_share: 0.25  # of the teacher's multiply-accumulates, at most",
        ]
    else:
        student = _zoo_student(shape)
    lines += [
        "  synthetic:",
        f"    count: {max(2048, 8 * len(facts['classes']))}  # made from the teacher alone",
        *_procedural(source is not None, len(facts["classes"])),
        "",
        "method: kd",
        "student:",
        *student,
        "",
        "targets:",
    ]
    for entry in profile.targets:
        precisions = [p for p in profile.default_precisions if p in entry.precisions]
        lines.append(
            f"  - {{target: {entry.target}, device: {profile.name}, "
            f"precisions: [{', '.join(precisions or entry.precisions[:1])}]}}"
        )
    lines += [
        "",
        "# Labelled images for the final accuracies, looked at once:",
        "# evaluation: {kind: folder, path: holdout, use_labels: true}",
        "",
    ]
    return "\n".join(lines)

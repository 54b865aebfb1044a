from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from hydistill_edge.errors import TeacherError, UsageError
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.models.zoo import create_network

CLASSES = ("a", "b", "c", "d")
SPEC = InputSpec(8, 8, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def wrap(network: nn.Module) -> Teacher:
    return Teacher.wrap(network, classes=CLASSES, spec=SPEC, name="test")


def zoo_weights(folder: Path, *, classes: int = 4) -> Path:
    torch.manual_seed(0)
    network = create_network("resnet8", classes=classes, channels=3, size=(8, 8), width=0.5)
    save_file(
        {key: t.contiguous() for key, t in network.state_dict().items()}, folder / "t.safetensors"
    )
    return folder / "t.safetensors"


def load(path: Path, architecture: str | None = "zoo:resnet8") -> Teacher:
    return Teacher.load(
        path, architecture=architecture, classes=CLASSES, spec=SPEC, options={"width": 0.5}
    )


def test_teacher_of_the_zoo_loads(tmp_path: Path) -> None:
    teacher = load(zoo_weights(tmp_path))
    assert teacher(torch.rand(2, 3, 8, 8)).shape == (2, 4)
    assert (teacher.architecture, teacher.classes) == ("zoo:resnet8", CLASSES)
    assert len(teacher.digest) == 64
    assert len(teacher.batch_norms()) == 9


def test_teacher_is_frozen_for_good(network: nn.Module) -> None:
    teacher = wrap(network).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_gradients_reach_the_pixels(network: nn.Module) -> None:
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    wrap(network)(pixels).sum().backward()
    assert pixels.grad is not None
    assert float(pixels.grad.abs().max()) > 0


def test_teacher_takes_grey_uint8_of_another_size(network: nn.Module) -> None:
    pixels = torch.randint(0, 256, (2, 1, 20, 11), dtype=torch.uint8)
    assert wrap(network)(pixels).shape == (2, 4)


def test_features_hold_the_contract_of_shared_classifiers(network: nn.Module) -> None:
    teacher = wrap(network)
    features = teacher.features(torch.rand(3, 3, 8, 8), ["0", "5"])
    assert teacher.shares_classifier
    assert teacher.classifier is network[8]
    assert features.final_map.shape == (3, 8, 4, 4)
    torch.testing.assert_close(features.penultimate, features.final_map.mean((2, 3)))
    torch.testing.assert_close(network[8](features.penultimate), features.logits)
    assert list(features.taps) == ["0", "5"]


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "regnet_y_400mf"])
def test_known_architectures_share_their_classifier(name: str) -> None:
    network = torchvision.models.get_model(name, weights=None, num_classes=4)
    spec = InputSpec(64, 64, 3, SPEC.mean, SPEC.std)
    teacher = Teacher.wrap(network, classes=CLASSES, spec=spec, name=name)
    assert teacher.shares_classifier, teacher.shares_classifier_note
    assert teacher.features(torch.rand(1, 3, 64, 64)).final_map.shape[-1] == 2


def test_note_says_why_when_the_classifier_cannot_be_shared() -> None:
    network = create_network("mobilenet_v3_small", classes=4, channels=3, size=(8, 8), width=0.25)
    teacher = wrap(network)
    assert not teacher.shares_classifier
    assert "cannot work" in teacher.shares_classifier_note
    features = teacher.features(torch.rand(2, 3, 8, 8))
    assert (features.penultimate.dim(), features.final_map.dim()) == (2, 4)


def test_convolution_as_classifier_gives_the_mean_of_the_last_map() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    teacher = wrap(network)
    features = teacher.features(torch.rand(2, 3, 8, 8))
    assert teacher.classifier is None
    torch.testing.assert_close(features.penultimate, features.final_map.mean((2, 3)))


def test_network_without_maps_has_a_map_of_one_pixel() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 4))
    features = wrap(network).features(torch.rand(2, 3, 8, 8))
    assert features.final_map.shape == (2, 5, 1, 1)


def test_unknown_tap_is_refused(network: nn.Module) -> None:
    with pytest.raises(UsageError, match='no module "layer9"'):
        wrap(network).features(torch.rand(1, 3, 8, 8), ["layer9"])


class Odd(nn.Module):
    """Returns what a test wants."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> object:
        return self.output(images) if callable(self.output) else self.output


@pytest.mark.parametrize(
    ("output", "message"),
    [
        pytest.param((torch.zeros(2, 4),), "returns tuple", id="tuple"),
        pytest.param(torch.zeros(2, 4, 8, 8), r"shape \(2, 4, 8, 8\)", id="segmentation"),
        pytest.param(torch.zeros(2, 5), "5 outputs and the class list 4", id="count"),
        pytest.param(torch.full((2, 4), float("nan")), "not finite", id="nan"),
        pytest.param(torch.full((2, 4), 0.25), "probabilities", id="softmax"),
        pytest.param(lambda images: images @ torch.ones(3, 3), "fails on an input", id="crash"),
    ],
)
def test_teacher_is_refused_when_its_output_is_no_logits(output: object, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        wrap(Odd(output))


def test_class_list_must_have_different_names(network: nn.Module) -> None:
    with pytest.raises(UsageError, match="different names"):
        Teacher.wrap(network, classes=("a", "a", "b", "c"), spec=SPEC)


def test_weights_with_another_number_of_outputs_are_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"classifier.weight has 7 outputs in the file and 4"):
        load(zoo_weights(tmp_path, classes=7))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"do not fit the architecture\n.*missing"):
        load(zoo_weights(tmp_path), "zoo:resnet20")


def test_weights_without_an_architecture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the architecture is missing"):
        load(zoo_weights(tmp_path), None)


def test_onnx_with_an_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="brings its own architecture"):
        load(tmp_path / "t.onnx")

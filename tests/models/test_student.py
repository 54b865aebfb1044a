from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from hydistill_edge.errors import MissingFileError, TeacherError, UsageError
from hydistill_edge.models.pixels import InputSpec, PixelInput
from hydistill_edge.models.student import Student

CLASSES = ("ok", "scratch", "dent", "stain")
SPEC = InputSpec(8, 8, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def random_pixels(count: int = 4, channels: int = 3, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator).byte()


def tiny() -> Student:
    return Student.create("resnet8", classes=CLASSES, channels=1, size=(8, 8), width=0.5, seed=3)


def test_student_sees_pixels_minus_128_over_64() -> None:
    pixels = random_pixels(channels=1)
    wanted = (pixels.float() - 128) / 64
    assert torch.equal(tiny().normalize(pixels), wanted)
    torch.testing.assert_close(tiny().normalize(pixels.float() / 255), wanted, atol=1e-5, rtol=0)


def test_student_adapts_channels_and_size() -> None:
    assert tiny()(torch.rand(2, 3, 20, 15)).shape == (2, 4)


def test_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    assert tiny().digest == tiny().digest
    assert torch.equal(torch.rand(1), wanted)


def test_features_do_not_disturb_training() -> None:
    student = tiny().train()
    before = student.digest
    names = student.taps()
    assert student.digest == before
    assert student.training
    assert "features.stage2" in names


def test_saved_student_describes_itself(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    description = json.loads((tmp_path / "student.json").read_text())
    assert description["architecture"] == "zoo:resnet8"
    assert description["classes"] == list(CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "student.json",
        "student.safetensors",
    ]


def test_student_trained_channels_last_comes_back_when_saved(tmp_path: Path) -> None:
    student = tiny()
    student.to(memory_format=torch.channels_last)
    student.save(tmp_path)
    assert Student.load(tmp_path).digest == student.digest


def test_load_refuses_when_weights_and_description_do_not_belong_together(tmp_path: Path) -> None:
    tiny().save(tmp_path / "a")
    other = Student.create("resnet8", classes=CLASSES, channels=1, size=(8, 8), width=0.5, seed=4)
    other.save(tmp_path / "b")
    (tmp_path / "b" / "student.safetensors").replace(tmp_path / "a" / "student.safetensors")
    with pytest.raises(TeacherError, match="another sha256"):
        Student.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "not JSON", id="broken"),
        pytest.param('{"schema_version": 99}', "schema version 99", id="newer"),
        pytest.param("[]", "schema version None", id="list"),
    ],
)
def test_load_refuses_a_broken_description(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "student.json").write_text(text)
    with pytest.raises(TeacherError, match=message):
        Student.load(tmp_path)


def test_load_tells_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"student\.json"):
        Student.load(tmp_path)


def test_student_factory_must_be_of_the_zoo() -> None:
    with pytest.raises(UsageError, match="expected a network of the zoo"):
        Student.create("torchvision:vgg11", classes=CLASSES, channels=3, size=(8, 8))


@pytest.mark.parametrize("channels", [1, 3])
def test_explicit_normalisation_equals_the_original_network(
    network: nn.Module, channels: int
) -> None:
    student = Student.adopt(
        network, spec=SPEC, classes=CLASSES, channels=channels, fold=False
    ).eval()
    pixels = random_pixels(channels=channels)
    torch.testing.assert_close(
        student(pixels), network(PixelInput(SPEC)(pixels)), atol=1e-4, rtol=1e-4
    )
    assert student.plan.kind == "explicit"
    assert "as asked" in student.input_note


@pytest.mark.parametrize("channels", [1, 3])
def test_folding_is_exact_when_the_first_convolution_has_no_padding(
    network: nn.Module, channels: int
) -> None:
    network[0].padding = (0, 0)
    student = Student.adopt(network, spec=SPEC, classes=CLASSES, channels=channels).eval()
    pixels = random_pixels(channels=channels)
    torch.testing.assert_close(
        student(pixels), network(PixelInput(SPEC)(pixels)), atol=1e-4, rtol=1e-4
    )
    assert student.plan.kind == "folded"
    assert student.network[0].in_channels == channels


def test_folding_states_the_border_error_when_the_first_convolution_pads(
    network: nn.Module,
) -> None:
    student = Student.adopt(network, spec=SPEC, classes=CLASSES).eval()
    pixels = random_pixels(32)
    difference = (student(pixels) - network(PixelInput(SPEC)(pixels))).abs().max()
    assert 0 < difference < 0.3 * student(pixels).abs().max()
    assert "32 images of random pixels" in student.input_note
    assert "fine-tuning" in student.input_note


def test_normalisation_stays_explicit_when_the_first_operation_is_no_plain_convolution() -> None:
    network = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 4))
    student = Student.adopt(network, spec=SPEC, classes=CLASSES)
    assert student.plan.kind == "explicit"
    assert "no plain convolution" in student.input_note


class SkipFromInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(192, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc((self.conv(images) + images).flatten(1))
        return logits


def test_normalisation_stays_explicit_when_the_input_is_read_elsewhere_too() -> None:
    student = Student.adopt(SkipFromInput(), spec=SPEC, classes=CLASSES)
    assert student.plan.kind == "explicit"
    assert "elsewhere" in student.input_note


@pytest.mark.parametrize("fold", [True, False])
def test_adopted_torchvision_network_comes_back_when_saved(tmp_path: Path, fold: bool) -> None:
    spec = InputSpec(32, 32, 3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=4).eval()
    student = Student.adopt(
        network,
        spec=spec,
        classes=CLASSES,
        architecture="torchvision:shufflenet_v2_x0_5",
        channels=1,
        fold=fold,
    ).eval()
    student.save(tmp_path)
    again = Student.load(tmp_path)
    pixels = random_pixels(channels=1, side=32)
    assert torch.equal(again(pixels), student(pixels))
    assert again.input_note == student.input_note


def test_adopted_network_without_a_name_cannot_be_saved(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="architecture="):
        Student.adopt(network, spec=SPEC, classes=CLASSES).save(tmp_path)


def test_student_folder_never_decides_which_code_runs(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 4))\n"
    )
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 4))
    student = Student.adopt(network, spec=SPEC, classes=CLASSES, architecture="net.py:build").eval()
    student.save(tmp_path / "s")
    with pytest.raises(UsageError, match="may not decide which code"):
        Student.load(tmp_path / "s", base=tmp_path)
    again = Student.load(tmp_path / "s", architecture="net.py:build", base=tmp_path)
    assert torch.equal(again(random_pixels()), student(random_pixels()))


def test_adopting_refuses_channels_that_no_rule_covers(network: nn.Module) -> None:
    with pytest.raises(UsageError, match="2 pixel channels"):
        Student.adopt(network, spec=SPEC, classes=CLASSES, channels=2)


def test_statistics_of_batch_norms_are_held_inside_the_block_alone() -> None:
    student = Student.create("resnet8", classes=CLASSES, channels=1, size=(8, 8))
    norms = [part for part in student.modules() if isinstance(part, nn.BatchNorm2d)]
    with student.held_statistics():
        student.train()
        assert student.training
        assert student.network.training
        assert not any(norm.training for norm in norms)
        copied = copy.deepcopy(student).eval().train()  # as an averaged network is made
        assert not any(
            part.training for part in copied.modules() if isinstance(part, nn.BatchNorm2d)
        )
    student.train()
    assert all(norm.training for norm in norms)

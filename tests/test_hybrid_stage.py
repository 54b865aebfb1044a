"""The images stage with a pilot choice and a GAN."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hydistill_edge.errors import RecipeError
from hydistill_edge.images.content_hash import content_hashes
from hydistill_edge.images.sources import LoadedImages, SourceSpec
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.recipe import Pilot, Recipe
from hydistill_edge.stages import images as stage
from hydistill_edge.synthesis.gan import GanSettings
from hydistill_edge.synthesis.procedural_set import ProceduralSettings

CLASSES = ("dark", "light")
TINY = GanSettings(iterations=3, batch=8, width=8, records=1)
GOOD = """\
name: widgets
method: hidfd
teacher:
  weights: teacher.safetensors
  architecture: torchvision:resnet18
  classes: [scratch, dent]
  input: {height: 32, width: 32, channels: 3, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}
student:
  architecture: resnet8
targets:
  - {target: onnxruntime, device: x86-vnni}
"""


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.append(nn.Linear(2, 2))
    weights = network.state_dict()
    weights["0.weight"].copy_(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1))
    weights["0.bias"].fill_(2.0)
    weights["4.weight"].copy_(torch.tensor([[9.0, -9.0], [-9.0, 9.0]]))
    return Teacher.wrap(network, classes=CLASSES, spec=InputSpec(8, 8, 1, (0.5,), (0.25,)))


def loaded(name: str, count: int, *, may_ship: bool = True) -> LoadedImages:
    choice = np.random.default_rng(count)
    level = np.where(np.arange(count) % 2, 200, 50)[:, None, None, None]
    images = (level + choice.integers(-45, 45, (count, 8, 8, 1))).astype(np.uint8)
    spec = SourceSpec(kind="folder", path=Path(name), may_ship=may_ship, licence="ours")
    return LoadedImages(
        images=images,
        labels=None,
        ids=[f"{name}:{row}" for row in range(count)],
        class_names=None,
        hashes=content_hashes(images),
        skipped=[],
        spec=spec,
        addresses=[f"https://example.org/{name}/{row}" for row in range(count)],
    )


def cut(source: LoadedImages, size: int = 7) -> list[LoadedImages]:
    """Return a source in pieces."""
    return [
        replace(
            source,
            images=source.images[start : start + size],
            ids=source.ids[start : start + size],
            hashes=source.hashes[start : start + size],
            addresses=(source.addresses or [])[start : start + size],
        )
        for start in range(0, len(source), size)
    ]


def work(teacher: Teacher, sources: list[LoadedImages], **images: Any) -> Any:
    section = {
        "real": [source.spec for source in sources],
        "pilot": None,
        "synthetic": SimpleNamespace(
            count=6, maker="gan", gan=TINY, procedural=ProceduralSettings()
        ),
        **images,
    }
    recipe = SimpleNamespace(
        images=SimpleNamespace(**section),
        seed=3,
        image_size=lambda: (8, 8, 1),
        class_names=lambda: CLASSES,
    )
    return SimpleNamespace(
        recipe=recipe, teacher=teacher, torch_device="cpu", report=lambda *_: None
    )


def failing(_writer: TransferSetWriter, **_: Any) -> None:
    if _["details"]:
        raise RuntimeError("failing")


def make(
    monkeypatch: pytest.MonkeyPatch, folder: Path, job: Any, sources: list[LoadedImages]
) -> TransferSet:
    given = {source.spec.path: source for source in sources}
    monkeypatch.setattr(stage, "pieces", lambda _work, spec: iter(cut(given[spec.path])))
    folder.mkdir()
    stage._make(job, folder)
    return TransferSet.open(folder)


def test_gan_learns_from_the_real_images_and_joins_them(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [loaded("a", 10), loaded("b", 4)]
    made = make(monkeypatch, tmp_path / "set", work(teacher, sources), sources)
    counts = {origin: int((made.origins == origin).sum()) for origin in ("real", "synthetic")}
    assert counts == {"real": 14, "synthetic": 6}
    assert made.manifest["method"] == "real and gan"
    told = made.manifest["details"]["gan"]
    assert (told["count"], told["iterations"]) == (6, 3)
    assert set(told["leak"]) >= {"near_copies", "exact_copies"}
    assert not (tmp_path / "set" / stage.CHECKPOINTS).exists()


@pytest.mark.parametrize("may_ship", [True, False])
def test_gan_images_ship_where_the_images_it_was_shown_may(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_ship: bool
) -> None:
    sources = [loaded("a", 10), loaded("b", 4, may_ship=may_ship)]
    made = make(monkeypatch, tmp_path / "set", work(teacher, sources), sources)
    assert set(made.may_ship[made.origins == "synthetic"].tolist()) == {may_ship}


def test_pilot_keeps_the_chosen_images_with_their_facts_and_says_why(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [loaded("a", 10), loaded("b", 30)]
    job = work(teacher, sources, pilot=Pilot(count=12))
    made = make(monkeypatch, tmp_path / "set", job, sources)
    real = np.flatnonzero(made.origins == "real")
    told = json.loads((tmp_path / "set" / "pilot.json").read_text())
    ids = [made.ids[row] for row in real.tolist()]
    assert sorted(ids) == sorted(entry["id"] for entry in told["images"])
    assert (told["candidates"], told["count"]) == (40, 12)
    assert [entry["chosen"] for entry in told["per_class"]] == [6, 6]
    assert all(
        made.addresses[row] == f"https://example.org/{made.ids[row].replace(':', '/')}"
        for row in real.tolist()
    )


def test_strategic_pilot_looks_at_the_synthetic_images_of_an_earlier_run(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [loaded("a", 40)]
    (tmp_path / "run").mkdir()
    make(monkeypatch, tmp_path / "run" / "transfer", work(teacher, sources), sources)
    pilot = Pilot(kind="strategic", count=12, after=str(tmp_path / "run"))
    make(monkeypatch, tmp_path / "set", work(teacher, sources, pilot=pilot), sources)
    told = json.loads((tmp_path / "set" / "pilot.json").read_text())
    assert told["kind"] == "strategic"
    assert "quota" in told["images"][0]["reason"]


@pytest.mark.parametrize("pilot", [None, Pilot(count=12)], ids=["all", "pilot"])
def test_set_is_the_same_when_its_images_are_read_in_pieces_and_again(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pilot: Pilot | None
) -> None:
    sources = [loaded("a", 10), loaded("b", 30)]
    job = work(teacher, sources, pilot=pilot)
    monkeypatch.setattr(stage, "KEPT_BYTES", 0)
    streamed = make(monkeypatch, tmp_path / "streamed", job, sources)
    monkeypatch.undo()
    monkeypatch.setattr(f"{__name__}.cut", lambda source: [source])
    whole = make(monkeypatch, tmp_path / "whole", job, sources)
    for manifest in (streamed.manifest, whole.manifest):
        del manifest["details"]["gan"]["seconds"]
    assert [shard["sha256"] for shard in streamed.manifest["shards"]] == [
        shard["sha256"] for shard in whole.manifest["shards"]
    ]
    assert streamed.manifest["details"] == whole.manifest["details"]


def test_interrupted_gan_goes_on_from_its_checkpoint(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [loaded("a", 10)]
    job = work(teacher, sources)
    job.recipe.images.synthetic.gan = replace(TINY, checkpoint_seconds=0.0)
    given = {source.spec.path: source for source in sources}
    monkeypatch.setattr(stage, "pieces", lambda _work, spec: iter([given[spec.path]]))
    monkeypatch.setattr(TransferSetWriter, "describe", failing)  # after the training
    (tmp_path / "set").mkdir()
    with pytest.raises(RuntimeError, match="failing"):
        stage._make(job, tmp_path / "set")
    assert (tmp_path / "set" / stage.CHECKPOINTS / "gan.safetensors").is_file()


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("{synthetic: {maker: gan}}", "images.synthetic.maker: gan learns from real images"),
        ("{pilot: {count: 10}}", "images.pilot: nothing to choose from"),
        ("{pilot: {kind: strategic}}", "give after together with kind strategic"),
        ("{pilot: {kind: random, after: run}}", "give after together with kind strategic"),
        ("{synthetic: {gan: {blent: 1}}}", 'did you mean "blend"?'),
        ("{synthetic: {gan: {ema: 2}}}", "gan settings: ema is 2"),
    ],
    ids=["no-real", "nothing-to-choose", "strategic", "random-after", "misspelt", "range"],
)
def test_recipe_is_refused_when_its_images_cannot_be_made(images: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(f"images: {images}\n{GOOD}")
    assert said in str(caught.value)


def test_recipe_of_the_whole_method_is_read(tmp_path: Path) -> None:
    text = """\
images:
  real: [{kind: folder, path: pool, origin: web}]
  pilot: {kind: strategic, count: 100, after: runs/first}
  synthetic: {count: 500, maker: gan, gan: {iterations: 10, blend: 0.0}}
training: {inflation: 5, projector: {kind: depthwise}}
"""
    recipe = Recipe.parse(text + GOOD, base=tmp_path)
    assert recipe.images.synthetic.gan.blend == 0.0
    assert recipe.training.projector.kind == "depthwise"
    assert tmp_path / "runs" / "first" in recipe.files()
    again = Recipe.parse(recipe.to_yaml())
    assert again.to_dict() == recipe.to_dict()

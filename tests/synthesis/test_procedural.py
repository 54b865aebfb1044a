"""Images from formulas: what depends on what, and that they are as different as they claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hydistill_edge.errors import UsageError
from hydistill_edge.synthesis.procedural import MEAN, draw
from hydistill_edge.synthesis.procedural_set import (
    PIECE,
    Answer,
    ProceduralSet,
    ProceduralSettings,
    draw_set,
)

GREY = {"size": (16, 16), "channels": 1}


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (12, 40)), (3, (33, 17))])
def test_images_have_the_size_that_was_asked_for(channels: int, size: tuple[int, int]) -> None:
    images = draw(0, 5, size=size, channels=channels)
    assert images.shape == (5, *size, channels)
    assert images.dtype == np.uint8


def test_an_image_depends_on_its_number_and_the_seed_alone() -> None:
    together, apart = draw(0, 6, **GREY), draw(4, 2, **GREY)
    assert (together[4:] == apart).all()
    assert (together != draw(0, 6, **GREY, seed=1)).any(axis=(1, 2, 3)).all()


def test_no_two_images_are_alike_and_none_is_flat() -> None:
    images = draw(0, 200, **GREY)
    assert len({image.tobytes() for image in images}) == 200
    assert images.std(axis=(1, 2, 3)).min() > 1


def test_brightness_and_contrast_go_by_the_normalization() -> None:
    dark = draw(0, 400, **GREY, mean=(0.2,), std=(0.1,)) / 255
    bright = draw(0, 400, **GREY, mean=(0.7,), std=(0.1,)) / 255
    assert dark.mean() == pytest.approx(0.2, abs=0.04)
    assert bright.mean() == pytest.approx(0.7, abs=0.04)
    assert np.median(dark.std(axis=(1, 2, 3))) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(("mean", "std"), [((0.0,), (1.0,)), ((0.5,), (0.5,))])
def test_a_normalization_that_is_not_of_pixels_is_not_taken_for_one(
    mean: tuple[float], std: tuple[float]
) -> None:
    images = draw(0, 50, **GREY, mean=mean, std=std)
    assert (images == draw(0, 50, **GREY)).all()
    assert images.mean() / 255 == pytest.approx(MEAN, abs=0.1)


def test_there_are_fine_and_coarse_images_and_such_with_a_direction() -> None:
    images = draw(0, 300, size=(32, 32), channels=1)[..., 0].astype(float)
    centered = images - images.mean(axis=(1, 2), keepdims=True)
    power = (centered**2).mean(axis=(1, 2))
    right = (np.diff(images, axis=2) ** 2).mean(axis=(1, 2)) / power
    down = (np.diff(images, axis=1) ** 2).mean(axis=(1, 2)) / power
    # White noise has 2, a slope nearly 0.
    assert np.quantile(right, 0.05) < 0.1
    assert np.quantile(right, 0.95) > 0.7
    ratio = np.log(right / down)
    assert (ratio > 1).sum() > 15
    assert (ratio < -1).sum() > 15
    assert ratio.mean() == pytest.approx(0, abs=0.3)


def test_colors_differ_between_images() -> None:
    images = draw(0, 100, size=(16, 16), channels=3).astype(float)
    casts = images.mean(axis=(1, 2))
    assert (casts - casts.mean(axis=1, keepdims=True)).std() > 5
    # Light and shade are common to the channels, as they are in photographs.
    pairs = [np.corrcoef(image[..., 0].ravel(), image[..., 1].ravel())[0, 1] for image in images]
    assert np.median(pairs) > 0.5


def by_brightness(images: np.ndarray) -> Answer:
    """Return the answer of a teacher with three classes; the last one is rare; all images fit."""
    mean = images.mean(axis=(1, 2, 3)) / 255
    logits = 20 * np.stack([0.5 - mean, mean - 0.5, 4 * (mean - 0.7)], axis=1)
    return Answer(logits.astype(np.float32), np.zeros(len(images), np.float32))


def drawn_set(ask: Any, classes: int = 3, progress: Any = None, **settings: Any) -> ProceduralSet:
    return draw_set(
        ask,
        ProceduralSettings(**settings),
        classes=classes,
        **GREY,
        mean=(0.5,),
        std=(0.2,),
        progress=progress,
    )


CLASSES = ["dark", "bright", "white"]


def test_every_class_gets_the_same_number() -> None:
    found = drawn_set(by_brightness, count=100, draws=100)
    assert np.bincount(found.logits.argmax(axis=1)).tolist() == [34, 33, 33]
    assert found.kept.tolist() == found.wanted.tolist() == [34, 33, 33]
    assert found.note(CLASSES) == ""
    assert found.drawn == found.seen.sum()
    assert found.drawn < 100 * 100  # it ends when every class has its share
    # Each is what its number says, with the logits that the teacher gave it.
    assert len(set(found.ids)) == 100
    kind, number = found.ids[7].split("-")
    assert kind == "procedural"
    assert (found.images[7] == draw(int(number), 1, **GREY)[0]).all()
    assert (found.logits == by_brightness(found.images).logits).all()


def test_a_class_that_the_teacher_does_not_see_is_told() -> None:
    def blind(images: np.ndarray) -> Answer:
        logits, misfit = by_brightness(images)
        return Answer(logits - np.array([0, 0, 100], np.float32), misfit)

    reports = []
    found = drawn_set(
        blind,
        count=90,
        draws=PIECE // 90 + 3,
        progress=lambda done, total: reports.append((done, total)),
    )
    assert np.bincount(found.logits.argmax(axis=1), minlength=3).tolist() == [30, 30, 0]
    assert found.drawn == 90 * (PIECE // 90 + 3)  # more than a piece, not a whole number of them
    assert "white (0 of 30)" in found.note(CLASSES)
    assert "raise draws" in found.note(CLASSES)
    assert reports[-1] == (60, 90)
    told = found.to_dict(CLASSES)
    assert told["count"] == 60
    assert sum(told["seen"].values()) == found.drawn
    assert sum(told["kept"].values()) == 60


def test_what_is_rare_is_crossed_out_of_the_few_that_were_drawn() -> None:
    few = drawn_set(by_brightness, count=900, draws=2, crosses=0)
    assert 2 <= few.kept[2] < 300
    assert "white" in few.note(CLASSES)

    found = drawn_set(by_brightness, count=900, draws=2)
    assert found.kept.tolist() == [300, 300, 300]
    assert found.note(CLASSES) == ""
    assert found.drawn == few.drawn  # before a drawing is crossed, all of them are made
    crossed = [row for row, name in enumerate(found.ids) if name.startswith("crossed")]
    assert len(crossed) == found.to_dict(CLASSES)["crossed"] == 900 - len(few.images)
    assert set(found.logits[crossed].argmax(axis=1)) == {2}
    assert (found.logits == by_brightness(found.images).logits).all()
    assert len({image.tobytes() for image in found.images}) == 900


def test_a_class_that_cannot_be_crossed_does_not_starve_another() -> None:
    """Class "twin" is seen in the very first drawing alone; its crossings are of class "dark"."""
    first = draw(0, 1, **GREY)[0].tobytes()

    def ask(images: np.ndarray) -> Answer:
        logits, misfit = by_brightness(images)
        twin = np.array([20.0 if image.tobytes() == first else -99.0 for image in images])
        return Answer(np.column_stack([logits, twin]).astype(np.float32), misfit)

    found = drawn_set(ask, classes=4, count=1200, draws=2, crosses=8)
    assert found.kept.tolist() == [300, 300, 300, 1]
    assert found.note([*CLASSES, "twin"]).startswith("the teacher saw too little of twin (1 of")


def test_images_like_nothing_that_the_teacher_knows_are_left_out() -> None:
    def fussy(images: np.ndarray) -> Answer:
        return Answer(by_brightness(images).logits, images.std(axis=(1, 2, 3)) / 40)

    def contrast(found: ProceduralSet) -> float:
        return float(found.images.std(axis=(1, 2, 3)).max())

    found = drawn_set(fussy, count=90, draws=100)
    assert contrast(found) <= 40
    assert found.misfits > 0
    every = drawn_set(fussy, count=90, draws=100, only_fitting=False)
    assert contrast(every) > 60
    assert every.misfits == 0


def test_sure_answers_come_first_and_others_fill_what_is_missing() -> None:
    # Brightness 0.5 is the border of two classes: no answer is sure there.
    def least(found: ProceduralSet) -> float:
        odds = np.exp(found.logits - found.logits.max(axis=1, keepdims=True))
        return float((1 / odds.sum(axis=1)).min())

    assert least(drawn_set(by_brightness, count=60, draws=50, confidence=0.9)) >= 0.9
    assert least(drawn_set(by_brightness, count=60, draws=50, confidence=0.0)) < 0.7

    def unsure(images: np.ndarray) -> Answer:
        return Answer(0.1 * by_brightness(images).logits, np.zeros(len(images), np.float32))

    found = drawn_set(unsure, count=90, draws=20, crosses=0, confidence=1.0)
    assert found.kept.tolist() == [30, 30, 30]
    # Of all that were seen, those of the highest probability were taken: the darkest here.
    darkest = np.argsort(unsure(draw(0, found.drawn, **GREY)).logits[:, 0])[-30:]
    assert {f"procedural-{number:06d}" for number in darkest} <= set(found.ids)


def test_fewer_images_than_classes_are_refused() -> None:
    with pytest.raises(UsageError, match="2 procedural images cannot cover 3 classes"):
        drawn_set(by_brightness, count=2)


def test_all_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(
        UsageError, match=r"count is -1.*draws is 0.*crosses is -2.*confidence is 2"
    ):
        ProceduralSettings(count=-1, draws=0, crosses=-2, confidence=2)

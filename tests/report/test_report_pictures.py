from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from hydistill_edge.report.pictures import GAP, MAX_CLASSES, MAX_PER_CLASS, read_pictures

RNG = np.random.default_rng(0)


def save_preview(folder: Path, labels: list[int], channels: int = 3, **more: np.ndarray) -> None:
    images = RNG.integers(0, 256, (len(labels), 8, 8, channels), np.uint8)
    np.savez(folder / "preview.npz", **({"images": images, "labels": np.array(labels)} | more))


def decode(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_strips_show_each_class_once_when_a_preview_is_there(tmp_path: Path) -> None:
    save_preview(tmp_path, [1, 0, 1])

    pictures = read_pictures(tmp_path, ("scratch", "dent"))

    assert [(strip.name, strip.count) for strip in pictures.strips] == [("scratch", 1), ("dent", 2)]
    assert decode(pictures.strips[1].uri).size == (2 * 8 + GAP, 8)


def test_strip_keeps_the_pixels_of_a_grey_image(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (1, 8, 8, 1), np.uint8)
    save_preview(tmp_path, [0], images=images)

    strip = read_pictures(tmp_path, ("a",)).strips[0]

    pixels = np.asarray(decode(strip.uri).convert("RGBA"))
    assert (pixels[..., :3] == images[0]).all()
    assert (pixels[..., 3] == 255).all()


def test_strips_are_cut_when_there_are_many_images_or_classes(tmp_path: Path) -> None:
    save_preview(tmp_path, list(range(MAX_CLASSES + 3)) + [0] * MAX_PER_CLASS)

    pictures = read_pictures(tmp_path, ())

    assert (len(pictures.strips), pictures.classes) == (MAX_CLASSES, MAX_CLASSES + 3)
    assert (pictures.strips[0].name, pictures.strips[0].count) == ("class 0", MAX_PER_CLASS + 1)
    assert pictures.strips[0].width == MAX_PER_CLASS * (8 + GAP) - GAP


def test_images_are_found_by_id_when_the_preview_has_ids(tmp_path: Path) -> None:
    save_preview(tmp_path, [0, 0], ids=np.array(["a", "b"]))

    by_id = dict(read_pictures(tmp_path, ("x",)).by_id)

    assert sorted(by_id) == ["a", "b"]
    assert decode(by_id["b"]).size == (8, 8)


def test_preview_is_a_problem_when_it_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "preview.npz").write_bytes(b"not a zip")

    pictures = read_pictures(tmp_path, ())

    assert pictures.strips == ()
    assert pictures.problems[0].startswith("preview.npz could not be read")


def test_preview_is_a_problem_when_it_needs_pickle(tmp_path: Path) -> None:
    save_preview(tmp_path, [0], images=np.array([object()], dtype=object))

    assert "allow_pickle=False" in read_pictures(tmp_path, ()).problems[0]


def test_preview_is_a_problem_when_images_are_floats(tmp_path: Path) -> None:
    save_preview(tmp_path, [0], images=np.zeros((1, 8, 8, 3), np.float32))

    assert "expected uint8 (N, H, W, 1 or 3)" in read_pictures(tmp_path, ()).problems[0]


def test_ready_made_pictures_are_taken_by_name_and_fakes_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "report/images"
    folder.mkdir(parents=True)
    Image.new("L", (6, 4)).save(folder / "dent.png")
    (folder / "fake.png").write_bytes(b"<svg onload=alert(1)>")

    pictures = read_pictures(tmp_path, ())

    assert [(strip.name, strip.width, strip.height) for strip in pictures.strips] == [
        ("dent", 6, 4)
    ]
    assert pictures.problems == ("report/images/fake.png is no PNG of at most 2 MB; left out",)


def test_no_pictures_are_no_problem(tmp_path: Path) -> None:
    assert read_pictures(tmp_path, ()).problems == ()

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hydistill_edge.errors import ImageSourceError, MissingFileError
from hydistill_edge.images.readers import undo_delta
from hydistill_edge.images.rows import select_rows
from hydistill_edge.images.safetensors_map import write_safetensors
from hydistill_edge.images.sources import SourceSpec, iterate_source, load_source


def random_images(count: int, size: int = 6, channels: int = 3) -> NDArray[np.uint8]:
    shape = (count, size, size, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze()).save(path)


def save_npz(path: Path, **arrays: Any) -> SourceSpec:
    np.savez_compressed(path, **arrays)
    return SourceSpec("npz", path, use_labels="labels" in arrays)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images in class folders: cat/a.png, cat/deep/b.png, dog/c.png."""
    for name, image in zip(("cat/a", "cat/deep/b", "dog/c"), random_images(3), strict=True):
        save_png(tmp_path / "photos" / f"{name}.png", image)
    return tmp_path / "photos"


# -- folder ----------------------------------------------------------------------------------------


def test_folder_gives_sorted_ids_when_it_is_nested(photos: Path) -> None:
    (photos / "notes.txt").write_text("not an image")
    loaded = load_source(SourceSpec("folder", photos))
    assert loaded.ids == ["photos:cat/a.png", "photos:cat/deep/b.png", "photos:dog/c.png"]
    assert (loaded.images == random_images(3)).all()
    assert loaded.labels is None
    assert loaded.class_names is None


def test_folder_labels_come_from_the_first_level_when_asked_for(photos: Path) -> None:
    loaded = load_source(SourceSpec("folder", photos, use_labels=True))
    assert loaded.class_names == ("cat", "dog")
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 0, 1]


def test_folder_labels_are_the_teachers_when_its_classes_are_given(photos: Path) -> None:
    spec = SourceSpec("folder", photos, use_labels=True)
    loaded = load_source(spec, classes=["dog", "cat"])
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [1, 1, 0]


def test_folder_is_refused_when_one_class_is_missing(photos: Path) -> None:
    spec = SourceSpec("folder", photos, use_labels=True)
    with pytest.raises(ImageSourceError, match='no image of the class "fish"'):
        load_source(spec, classes=["cat", "dog", "fish"])


def test_folder_is_accepted_when_a_missing_class_is_allowed(photos: Path) -> None:
    spec = SourceSpec("folder", photos, use_labels=True)
    assert len(load_source(spec, classes=["cat", "dog", "fish"], all_classes=False)) == 3


def test_folder_is_refused_when_a_class_folder_is_empty(photos: Path) -> None:
    (photos / "fish").mkdir()
    spec = SourceSpec("folder", photos, use_labels=True)
    with pytest.raises(ImageSourceError, match='no image of the class "fish"'):
        load_source(spec, classes=["cat", "dog", "fish"])


def test_folder_is_refused_when_the_teacher_does_not_know_a_class(photos: Path) -> None:
    spec = SourceSpec("folder", photos, use_labels=True)
    with pytest.raises(ImageSourceError, match='does not know: "dog"; expected "cat"'):
        load_source(spec, classes=["cat"])


def test_folder_is_refused_when_labels_are_wanted_and_it_is_flat(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", random_images(1)[0])
    with pytest.raises(ImageSourceError, match=r"1 images lie outside class folders.*a\.png"):
        load_source(SourceSpec("folder", tmp_path, use_labels=True))


def test_folder_is_refused_when_it_holds_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageSourceError, match=r"no image in it; expected \.png"):
        load_source(SourceSpec("folder", tmp_path))


def test_folder_is_missing_when_the_path_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        load_source(SourceSpec("folder", tmp_path / "nowhere"))


# -- broken images ---------------------------------------------------------------------------------


@pytest.fixture
def damaged(photos: Path) -> Path:
    """The same three images; the first is cut in half."""
    path = photos / "cat" / "a.png"
    path.write_bytes(path.read_bytes()[:60])
    return photos


def test_broken_images_are_listed_and_counted_when_refused(damaged: Path) -> None:
    (damaged / "dog" / "z.png").write_bytes(b"noise")
    with pytest.raises(
        ImageSourceError, match=r"(?s)2 of 4 images.*a\.png: truncated.*z\.png: not"
    ):
        load_source(SourceSpec("folder", damaged))


def test_broken_images_are_skipped_and_listed_when_asked_for(damaged: Path) -> None:
    loaded = load_source(SourceSpec("folder", damaged, on_corrupt="skip", use_labels=True))
    assert loaded.ids == ["photos:cat/deep/b.png", "photos:dog/c.png"]
    assert (loaded.images == random_images(3)[1:]).all()
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 1]
    assert [image.id for image in loaded.skipped] == ["photos:cat/a.png"]
    assert "truncated" in loaded.skipped[0].reason


def test_source_is_refused_when_every_image_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"noise")
    with pytest.raises(ImageSourceError, match=r"all 1 images are broken.*a\.png"):
        load_source(SourceSpec("folder", tmp_path, on_corrupt="skip"))


def test_dangling_link_counts_as_broken_when_skipping(photos: Path) -> None:
    (photos / "cat" / "0.png").symlink_to(photos / "gone.png")
    loaded = load_source(SourceSpec("folder", photos, on_corrupt="skip"))
    assert len(loaded) == 3
    assert "gone" in loaded.skipped[0].reason or "0.png" in loaded.skipped[0].reason


# -- size and channels -----------------------------------------------------------------------------


def test_other_sizes_are_refused_with_the_sizes_when_adapt_is_off(photos: Path) -> None:
    save_png(photos / "dog" / "wide.png", np.zeros((4, 9, 3), np.uint8))
    with pytest.raises(ImageSourceError, match=r"1 of 4 images are not 6x6x3: found 4x9x3 \(1\)"):
        load_source(SourceSpec("folder", photos))


def test_other_channels_are_refused_when_adapt_is_off(photos: Path) -> None:
    with pytest.raises(ImageSourceError, match=r"3 of 3 images are not 6x6x1: found 6x6x3 \(3\)"):
        load_source(SourceSpec("folder", photos), size=(6, 6), channels=1)


def test_images_are_converted_and_resized_when_adapt_is_on(photos: Path) -> None:
    save_png(photos / "dog" / "wide.png", np.zeros((4, 9, 3), np.uint8))
    loaded = load_source(SourceSpec("folder", photos), size=(8, 5), channels=1, adapt=True)
    assert loaded.images.shape == (4, 8, 5, 1)


def test_adapt_is_refused_when_no_size_is_given(photos: Path) -> None:
    with pytest.raises(ImageSourceError, match="adapt needs the size"):
        load_source(SourceSpec("folder", photos), adapt=True)


# -- npz -------------------------------------------------------------------------------------------


def test_npz_gives_images_and_labels_when_asked_for(tmp_path: Path) -> None:
    names = np.array(["ok", "bad"])
    spec = save_npz(tmp_path / "line.npz", images=random_images(3), labels=[1, 0, -1],
                    class_names=names)  # fmt: skip
    loaded = load_source(spec)
    assert loaded.ids == ["line:0", "line:1", "line:2"]
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [1, 0, -1]
    assert loaded.class_names == ("ok", "bad")


def test_npz_gets_a_channel_axis_when_images_are_grey(tmp_path: Path) -> None:
    grey = random_images(2, channels=1)
    spec = save_npz(tmp_path / "grey.npz", images=grey[..., 0])
    assert (load_source(spec).images == grey).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_undoes_differences_when_images_are_stored_as_such(
    tmp_path: Path, channels: int
) -> None:
    images = random_images(4, channels=channels)
    spec = save_npz(tmp_path / "set.npz", images_delta=differences(images))
    assert (load_source(spec).images == images).all()


def differences(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    planes = images.transpose(3, 0, 1, 2).copy()
    if len(planes) == 3:
        planes[0] -= planes[1]
        planes[2] -= planes[1]
    planes = np.diff(planes, axis=3, prepend=np.zeros_like(planes[:, :, :, :1]))
    delta: NDArray[np.uint8] = np.diff(planes, axis=2, prepend=np.zeros_like(planes[:, :, :1]))
    return delta


def test_differences_are_undone_by_hand_when_the_image_is_2_by_2() -> None:
    delta = np.array([[[[10, 250], [1, 0]]]], np.uint8)  # rows: 10, 260 % 256 = 4; then +1, +1
    assert undo_delta(delta)[0, :, :, 0].tolist() == [[10, 4], [11, 5]]


@pytest.mark.parametrize("content", ["cut", "noise", "npy", "empty"])
def test_npz_gives_one_clear_error_when_it_is_no_whole_archive(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=random_images(20))
    whole = path.read_bytes()
    np.save(tmp_path / "set.npy", random_images(2))
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "noise": np.random.default_rng(0).bytes(300),
            "npy": (tmp_path / "set.npy").read_bytes(),
            "empty": b"",
        }[content]
    )
    with pytest.raises(ImageSourceError, match=r"set\.npz: truncated, corrupt or no \.npz"):
        load_source(SourceSpec("npz", path))


def test_npz_gives_one_clear_error_when_a_byte_inside_is_altered(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=random_images(20))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ImageSourceError, match="truncated, corrupt"):
        load_source(SourceSpec("npz", path))


def test_npz_runs_no_code_when_it_holds_pickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.array([object()], dtype=object))
    with pytest.raises(ImageSourceError, match="allow_pickle=False"):
        load_source(SourceSpec("npz", tmp_path / "set.npz"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": random_images(1)}, 'no array "images".*found pixels'),
        ({"images": np.zeros((2, 4, 4, 3), np.float32)}, "float32; expected"),
        ({"images": np.zeros((2, 3, 8, 8), np.uint8)}, "channels seem to come second"),
        ({"images": random_images(2), "labels": [0]}, r"labels have shape \(1,\)"),
        ({"images": random_images(1), "labels": [0.5]}, "dtype float64; expected"),
        ({"images": random_images(1), "labels": [2], "class_names": ["a", "b"]}, "from 2 to 2"),
        ({"images_delta": np.zeros((2, 2, 2), np.uint8)}, "images_delta has shape"),
    ],
    ids=["name", "dtype", "layout", "label count", "label dtype", "label range", "delta"],
)
def test_npz_is_refused_when_arrays_do_not_fit(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImageSourceError, match=message):
        load_source(save_npz(tmp_path / "set.npz", **arrays))


def test_npz_is_refused_when_labels_are_wanted_and_there_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=random_images(1))
    with pytest.raises(ImageSourceError, match="set has no labels"):
        load_source(SourceSpec("npz", tmp_path / "set.npz", use_labels=True))


def test_npz_is_refused_when_a_label_is_beyond_the_teachers_classes(tmp_path: Path) -> None:
    spec = save_npz(tmp_path / "set.npz", images=random_images(2), labels=[0, 7])
    with pytest.raises(ImageSourceError, match="the label 7; expected 0 to 1"):
        load_source(spec, classes=["a", "b"])


def test_npz_pixels_fit_the_published_digest_when_the_shared_set_is_there(
    shared_dir: Path,
) -> None:
    import hashlib

    folder = shared_dir / "data" / "cifar10"
    if not (folder / "test.npz").is_file():
        pytest.skip(f"{folder} has no test.npz")
    loaded = load_source(SourceSpec("npz", folder / "test.npz", use_labels=True))
    readme = (folder / "README.md").read_text()
    assert loaded.labels is not None
    assert loaded.images.shape == (8000, 32, 32, 3)
    assert f"images {hashlib.sha256(loaded.images.tobytes()).hexdigest()}" in readme
    assert f"labels {hashlib.sha256(loaded.labels.tobytes()).hexdigest()}" in readme


# -- safetensors, torchvision ----------------------------------------------------------------------


def test_safetensors_gives_images_and_labels_when_asked_for(tmp_path: Path) -> None:
    tensors = {"images": random_images(3), "labels": np.array([1, 0, 1])}
    write_safetensors(tmp_path / "set.safetensors", tensors, {"class_names": '["ok", "bad"]'})
    loaded = load_source(SourceSpec("safetensors", tmp_path / "set.safetensors", use_labels=True))
    assert (loaded.images == tensors["images"]).all()
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [1, 0, 1]
    assert loaded.class_names == ("ok", "bad")


@pytest.mark.parametrize("cut", [4, 100, -3], ids=["in the length", "in the header", "in pixels"])
def test_safetensors_is_refused_when_it_is_torn(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "set.safetensors"
    write_safetensors(path, {"images": random_images(3)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ImageSourceError, match=r"set\.safetensors: torn"):
        load_source(SourceSpec("safetensors", path))


def test_safetensors_is_refused_when_it_has_no_images(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "weights.safetensors", {"conv.weight": np.zeros(3)})
    with pytest.raises(ImageSourceError, match=r'no tensor "images"; found conv\.weight'):
        load_source(SourceSpec("safetensors", tmp_path / "weights.safetensors"))


def test_torchvision_gives_images_when_the_data_set_is_made_up() -> None:
    options = {"size": 3, "image_size": (3, 8, 8), "num_classes": 4}
    spec = SourceSpec("torchvision", dataset="FakeData", options=options, use_labels=True)
    loaded = load_source(spec)
    assert loaded.images.shape == (3, 8, 8, 3)
    assert loaded.ids == ["fakedata:0", "fakedata:1", "fakedata:2"]
    assert loaded.labels is not None
    assert 0 <= loaded.labels.min() <= loaded.labels.max() < 4


def test_torchvision_downloads_nothing_when_files_are_missing(tmp_path: Path) -> None:
    spec = SourceSpec("torchvision", tmp_path, dataset="CIFAR10")
    with pytest.raises(MissingFileError, match="never downloaded"):
        load_source(spec)
    assert list(tmp_path.iterdir()) == []


def test_torchvision_names_close_ones_when_the_name_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ImageSourceError, match="did you mean CIFAR10"):
        load_source(SourceSpec("torchvision", tmp_path, dataset="Cifar-10"))


def test_torchvision_is_refused_when_an_option_is_unknown(tmp_path: Path) -> None:
    spec = SourceSpec("torchvision", dataset="FakeData", options={"sizes": 3})
    with pytest.raises(ImageSourceError, match=r"does not take these options.*sizes"):
        load_source(spec)


# -- rows, batches, provenance ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "limit", "expected"),
    [
        ("", None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("2:5", None, [2, 3, 4]),
        ("::4", None, [0, 4, 8]),
        ("1:9:3", 2, [1, 4]),
        ("-2:", None, [8, 9]),
        ("", 3, [0, 1, 2]),
    ],
)
def test_rows_are_taken_like_a_slice_when_written_as_one(
    rows: str, limit: int | None, expected: list[int]
) -> None:
    assert list(select_rows(10, rows=rows, limit=limit)) == expected


def test_rows_are_limited_after_shuffling_when_both_are_asked_for() -> None:
    chosen = list(select_rows(100, rows="0:50", shuffle_seed=1, limit=5))
    assert len(set(chosen)) == 5
    assert chosen != sorted(chosen)
    assert max(chosen) < 50
    assert chosen == list(select_rows(100, rows="0:50", shuffle_seed=1, limit=5))


@pytest.mark.parametrize("rows", ["5", "a:b", "::0", "::-1", "1:2:3:4"])
def test_rows_are_refused_when_they_are_no_slice(rows: str) -> None:
    with pytest.raises(ImageSourceError, match="cannot be read; expected a slice"):
        SourceSpec("folder", "photos", rows=rows)


def test_source_is_refused_when_rows_leave_nothing(photos: Path) -> None:
    with pytest.raises(ImageSourceError, match='rows "5:" leave none of its 3 images'):
        load_source(SourceSpec("folder", photos, rows="5:"))


def test_batches_add_up_to_the_whole_when_iterated(tmp_path: Path) -> None:
    spec = save_npz(tmp_path / "set.npz", images=random_images(10), labels=np.arange(10))
    whole = load_source(spec)
    batches = list(iterate_source(spec, batch=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert (np.concatenate([batch.images for batch in batches]) == whole.images).all()
    assert (np.concatenate([batch.hashes for batch in batches]) == whole.hashes).all()
    assert [name for batch in batches for name in batch.ids] == whole.ids


def test_iterating_names_the_missing_class_when_all_was_read(photos: Path) -> None:
    spec = SourceSpec("folder", photos, use_labels=True)
    batches = iterate_source(spec, batch=2, classes=["cat", "dog", "fish"])
    assert [len(next(batches)), len(next(batches))] == [2, 1]
    with pytest.raises(ImageSourceError, match='"fish"'):
        next(batches)


def test_spec_lists_every_problem_when_several_fields_are_wrong() -> None:
    kind: Any = "folders"
    with pytest.raises(ImageSourceError) as caught:
        SourceSpec(kind, limit=0, may_ship=True, options={"download": True})
    message = str(caught.value)
    assert "did you mean folder?" in message
    for part in ("path is empty", "limit 0", "may_ship without a licence", "download"):
        assert part in message


def test_spec_is_plain_when_written_as_json(photos: Path) -> None:
    from dataclasses import asdict

    assert json.loads(json.dumps(asdict(SourceSpec("folder", str(photos)))))["kind"] == "folder"

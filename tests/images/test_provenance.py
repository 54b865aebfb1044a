"""Where collected images come from, and which are barred."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hydistill_edge.errors import ImageSourceError, MissingFileError
from hydistill_edge.images.content_hash import content_hashes
from hydistill_edge.images.provenance import read_exclusions, read_provenance
from hydistill_edge.images.sources import LoadedImages, SourceSpec, load_source

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def load(photos: Path, **fields: object) -> LoadedImages:
    spec = SourceSpec("folder", photos, name="web", origin="web", licence="unknown", **fields)  # type: ignore[arg-type]
    return load_source(spec)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("table.csv", ("id,address,licence", "1.png,https://a.example/1,CC0", "2.png,,")),
        (
            "table.jsonl",
            ('{"id": "1.png", "address": "https://a.example/1", "licence": "CC0"}', "",
             '{"id": "2.png"}'),
        ),
    ],
    ids=["csv", "jsonl"],
)  # fmt: skip
def test_table_gives_address_and_licence_of_each_image(
    photos: Path, tmp_path: Path, name: str, lines: tuple[str, ...]
) -> None:
    loaded = load(photos, provenance=write(tmp_path / name, *lines))
    assert loaded.addresses == ["", "https://a.example/1", "", ""]
    assert loaded.licences == ["unknown", "CC0", "unknown", "unknown"]


def test_nothing_is_told_of_single_images_when_there_is_no_table(photos: Path) -> None:
    loaded = load(photos)
    assert (loaded.addresses, loaded.licences, loaded.spec.licence) == (None, None, "unknown")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("id,address", "1.png,a", "1.png,b"), r"line 3: the id '1.png' stands twice"),
        (("id,address", ",a"), r"line 2: the id '' is missing"),
        (("key,address", "1.png,a"), "first line is key, address"),
        (("id,address", '"' + 200_000 * "x"), "no CSV table .*save it again"),
    ],
    ids=["twice", "missing", "header", "open quote"],
)
def test_table_is_refused_when_it_is_none(
    tmp_path: Path, lines: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ImageSourceError, match=said):
        read_provenance(write(tmp_path / "table.csv", *lines))


def test_rows_of_an_array_are_named_by_number_from_zero_on(tmp_path: Path) -> None:
    lines = ('{"id": 0, "address": "https://a.example/0"}', '{"id": 1}')
    table = read_provenance(write(tmp_path / "table.jsonl", *lines))
    assert table.of("0") == ("https://a.example/0", "")


def test_first_entry_counts_when_an_editor_put_a_mark_in_front(tmp_path: Path) -> None:
    barred = read_exclusions(write(tmp_path / "barred.txt", "\ufeffweb:0.png", "web:1.png"))
    assert barred.has("web:0.png")
    table = read_provenance(write(tmp_path / "table.csv", "\ufeffid,licence", "0.png,CC0"))
    assert table.of("0.png") == ("", "CC0")


def test_excluded_images_are_left_out_and_named(photos: Path, tmp_path: Path) -> None:
    digest = content_hashes(IMAGES)[2].tobytes().hex()
    table = write(tmp_path / "t.csv", "id,address", "3.png,https://a.example/3")
    barred = write(
        tmp_path / "barred.txt",
        *("# asked to be removed", "", "web:0.png", f"sha256:{digest}", "https://a.example/3"),
    )
    loaded = load(photos, exclude=barred, provenance=table)
    assert loaded.ids == ["web:1.png"]
    assert sorted(loaded.excluded) == ["web:0.png", "web:2.png", "web:3.png"]
    assert loaded.skipped == []
    np.testing.assert_array_equal(loaded.images, IMAGES[[1]])


def test_source_is_refused_when_all_of_it_is_excluded(photos: Path, tmp_path: Path) -> None:
    barred = write(tmp_path / "barred.txt", *(f"web:{number}.png" for number in range(4)))
    with pytest.raises(ImageSourceError, match="all 4 images are on the exclusion list"):
        load(photos, exclude=barred)


def test_exclusion_list_is_refused_when_a_hash_is_none(tmp_path: Path) -> None:
    with pytest.raises(ImageSourceError, match=r"barred\.txt: 'sha256:12' is no sha256"):
        read_exclusions(write(tmp_path / "barred.txt", "sha256:12"))


def test_missing_files_are_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"absent\.txt"):
        load(photos, exclude=tmp_path / "absent.txt")
    with pytest.raises(MissingFileError, match=r"absent\.csv"):
        load(photos, provenance=tmp_path / "absent.csv")

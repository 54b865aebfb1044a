"""Real images of several sources, in pieces, kept where they are few."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hydistill_edge.errors import ImageSourceError
from hydistill_edge.images.content_hash import content_hashes
from hydistill_edge.images.real_images import RealImages
from hydistill_edge.images.sources import LoadedImages, Skipped, SourceSpec

SPECS = [
    SourceSpec("folder", Path("a"), origin="web"),
    SourceSpec("folder", Path("b"), origin="real"),
]
PIECE_BYTES = 5 * 16


class Files:
    """Stands for sources on a disk: each gives 4 pieces of 5 images, whose pixels are counted."""

    def __init__(self, pieces: int = 4) -> None:
        self.reads = 0
        self.pieces = pieces
        self.alive: list[weakref.ref[LoadedImages]] = []
        self.most = 0

    def read(self, spec: SourceSpec) -> Iterator[LoadedImages]:
        self.reads += 1
        for place in range(self.pieces):
            values = np.arange(5 * place, 5 * place + 5) + 100 * (str(spec.path) == "b")
            images = np.broadcast_to(values[:, None, None, None], (5, 4, 4, 1)).astype(np.uint8)
            piece = LoadedImages(
                images=images,
                labels=None,
                ids=[f"{spec.path}:{value}" for value in values],
                class_names=None,
                hashes=content_hashes(images),
                skipped=[Skipped(f"{spec.path}:broken-{place}", "torn")],
                spec=spec,
                excluded=["x"],
            )
            self.alive.append(weakref.ref(piece))
            gc.collect()
            self.most = max(self.most, sum(entry() is not None for entry in self.alive))
            yield piece
            del piece, images


def values(real: RealImages) -> list[int]:
    return [int(value) for piece in real for value in piece.images[:, 0, 0, 0]]


EVERYTHING = [*range(20), *range(100, 120)]


def test_few_images_are_read_once() -> None:
    files = Files()
    real = RealImages(SPECS, files.read, kept_bytes=2**20)
    assert (values(real), values(real), len(real)) == (EVERYTHING, EVERYTHING, 40)
    assert files.reads == len(SPECS)


def test_many_images_are_read_in_every_pass_and_never_held() -> None:
    files = Files(pieces=12)
    real = RealImages(SPECS, files.read, kept_bytes=2 * PIECE_BYTES)
    first, again = values(real), values(real)
    assert first == again
    assert len(first) == 120
    assert files.reads == 2 * len(SPECS)
    assert files.most <= 4  # two kept until they are too many, the last and the next


def test_skipped_and_excluded_images_are_counted_in_the_first_pass_alone() -> None:
    real = RealImages(SPECS, Files().read, kept_bytes=0)
    values(real), values(real)
    assert (len(real.skipped), real.excluded) == (8, 8)
    assert real.skipped[4].id == "b:broken-0"


@pytest.mark.parametrize("kept_bytes", [0, 2 * PIECE_BYTES, 2**20], ids=["none", "chosen", "all"])
def test_chosen_images_keep_the_order_of_the_sources(kept_bytes: int) -> None:
    files = Files()
    real = RealImages(SPECS, files.read, kept_bytes=kept_bytes)
    values(real)
    real.choose(np.array([39, 0, 20, 7]))
    assert values(real) == [0, 7, 100, 119]
    assert [piece.ids for piece in real] == [["a:0"], ["a:7"], ["b:100"], ["b:119"]]
    assert len(real) == 4
    assert files.reads // len(SPECS) == {0: 3, 2 * PIECE_BYTES: 2, 2**20: 1}[kept_bytes]


@pytest.mark.parametrize("kept_bytes", [0, 2**20], ids=["none", "all"])
def test_second_choice_is_among_the_images_that_the_first_one_left(kept_bytes: int) -> None:
    real = RealImages(SPECS, Files().read, kept_bytes=kept_bytes)
    values(real)
    real.choose(np.array([39, 0, 20, 7]))
    values(real)
    real.choose(np.array([3, 1]))
    assert values(real) == [7, 119]


def test_some_are_evenly_spaced_among_real_ones() -> None:
    real = RealImages(SPECS, Files().read, kept_bytes=0)
    found = real.some(5, least=2)
    assert found is not None
    assert found[:, 0, 0, 0].tolist() == [100, 104, 109, 114, 119]
    assert real.some(5, least=21) is None


def test_sources_that_change_between_two_passes_are_refused() -> None:
    files = Files()
    real = RealImages(SPECS, files.read, kept_bytes=0)
    values(real)
    files.pieces = 3
    with pytest.raises(ImageSourceError, match="40 images at first and 30 now"):
        values(real)

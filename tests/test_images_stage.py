"""Which real images the inversion hears of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hydistill_edge.images.real_images import RealImages
from hydistill_edge.images.sources import LoadedImages, SourceSpec
from hydistill_edge.stages.images import (
    MAX_REFERENCE,
    MIN_REFERENCE,
    reference_images,
    state,
)


def loaded(count: int, origin: str = "real", value: int = 0) -> LoadedImages:
    return LoadedImages(
        images=np.full((count, 4, 4, 1), value, np.uint8),
        labels=None,
        ids=[f"folder:{row}" for row in range(count)],
        class_names=None,
        hashes=np.zeros((count, 32), np.uint8),
        skipped=[],
        spec=SourceSpec(kind="folder", path=Path("factory"), origin=origin),  # type: ignore[arg-type]
    )


def real_images(sources: list[LoadedImages]) -> RealImages:
    given = iter(sources)
    return RealImages(
        [source.spec for source in sources], lambda _: iter([next(given)]), kept_bytes=2**20
    )


@pytest.mark.parametrize(
    "sources",
    [[], [loaded(MIN_REFERENCE - 1)], [loaded(100, "web")], [loaded(9), loaded(100, "synthetic")]],
    ids=["none", "too-few", "web", "real-too-few"],
)
def test_no_reference_is_taken_when_real_images_are_too_few(sources: list[LoadedImages]) -> None:
    assert reference_images(real_images(sources)) is None


def test_reference_is_from_all_over_the_real_sources() -> None:
    sources = [loaded(600, value=1), loaded(50, "web", 9), loaded(200, value=2)]
    found = reference_images(real_images(sources))
    assert found is not None
    assert found.shape == (MAX_REFERENCE, 4, 4, 1)
    assert np.bincount(found[:, 0, 0, 0]).tolist() == pytest.approx([0, 192, 64], abs=2)


def test_state_of_a_source_changes_with_its_exclusion_list(tmp_path: Path) -> None:
    barred = tmp_path / "barred.txt"
    spec = SourceSpec("folder", tmp_path / "photos", exclude=barred)
    (tmp_path / "photos").mkdir()
    barred.write_text("")
    before = state(spec)
    barred.write_text("photos:1.png\n")
    assert state(spec) != before
    assert state(SourceSpec("folder", tmp_path / "photos")) == before[0]


@pytest.mark.parametrize("pattern", ["pool-*.tar", "pool-*/part.tar"])
def test_state_of_shards_changes_with_every_file_that_the_pattern_means(
    pattern: str, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        shard = tmp_path / pattern.replace("*", name)
        shard.parent.mkdir(exist_ok=True)
        shard.write_bytes(b"first")
    before = state(SourceSpec("shards", tmp_path / pattern))
    shard.write_bytes(b"changed")

    assert state(SourceSpec("shards", tmp_path / pattern)) != before

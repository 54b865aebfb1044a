"""Reading, comparing and pooling the keys of several sites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hydistill_edge.errors import MissingFileError, UsageError
from hydistill_edge.methods.key_report import (
    Layer,
    bytes_used,
    candidates,
    pool_keys,
    read_keys,
)


def site(scores: list[float], *, images: int = 10, digest: str = "d", top_k: int = 1) -> Any:
    layers = [
        {"layer": name, "influence": score, "chosen": score >= 0.3}
        for name, score in zip("abc", scores, strict=True)
    ]
    return {
        "schema_version": 1,
        "images": images,
        "top_k": top_k,
        "teacher": {"digest": digest},
        "layers": layers,
        "student_layers": [{}],
    }


def test_pooled_influence_is_weighted_by_images() -> None:
    pooled = pool_keys([site([0.2, 0.3, 0.5], images=30), site([0.6, 0.3, 0.1], images=10)])
    assert [row["influence"] for row in pooled["layers"]] == pytest.approx([0.3, 0.3, 0.4])
    assert (pooled["sites"], pooled["images"]) == (2, 40)
    assert pooled["threshold"] == pytest.approx(1 / 3)
    assert pooled["keys"] == ["c"]
    last = pooled["layers"][2]
    assert (last["lowest"], last["highest"], last["chosen_at"]) == (0.1, 0.5, 1)


def test_order_of_sites_does_not_matter() -> None:
    sites = [site([0.2, 0.3, 0.5], images=30), site([0.6, 0.3, 0.1])]
    forward, backward = pool_keys(sites), pool_keys(sites[::-1])
    assert forward["keys"] == backward["keys"]
    assert [row["influence"] for row in forward["layers"]] == pytest.approx(
        [row["influence"] for row in backward["layers"]]
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (site([0.2, 0.3, 0.5], digest="e"), "site 2 has teacher e, site 1 d"),
        (site([0.2, 0.3, 0.5], top_k=2), "top_k 2"),
        (site([0.2, 0.3, float("nan")]), "no influence for each layer"),
        (site([0.2, 0.3, 0.5], images=0), "images is 0"),
        ({"schema_version": 2}, "schema version 2"),
        ([], "schema version None"),
    ],
    ids=["teacher", "top_k", "nan", "no images", "version", "no mapping"],
)
def test_sites_are_refused_when_they_cannot_be_compared(other: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pool_keys([site([0.2, 0.3, 0.5]), other])


def test_pooling_is_refused_when_there_is_no_site() -> None:
    with pytest.raises(UsageError, match="no site's keys"):
        pool_keys([])


def test_keys_file_is_read_back_and_refused_when_it_is_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps(site([0.2, 0.3, 0.5])))
    (tmp_path / "noise.json").write_text("{")
    assert read_keys(tmp_path / "keys.json") == site([0.2, 0.3, 0.5])
    with pytest.raises(UsageError, match="not JSON"):
        read_keys(tmp_path / "noise.json")
    with pytest.raises(MissingFileError, match=r"absent\.json"):
        read_keys(tmp_path / "absent.json")


def test_candidates_start_with_the_widest_gap() -> None:
    found = candidates("abcd", [0.1, 0.35, 0.15, 0.4])
    assert found[0]["rule"] == "in the widest gap"
    assert found[0]["threshold"] == pytest.approx(0.25)
    assert [row["layers"] for row in found] == [
        ["b", "d"],
        ["b", "c", "d"],
        ["b", "d"],
        ["d"],
    ]


def test_bytes_of_all_keys_are_those_of_whole_maps() -> None:
    layers = [Layer("a", (4, 8, 8)), Layer("b", (6, 2, 2))]
    assert bytes_used(layers, (0, 1), [None, None]) == 4 * (256 + 24)
    assert bytes_used(layers, (1,), [None, None]) == 4 * (4 + 24)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydistill_edge.images.packed_strings import PackedStrings


@given(st.lists(st.text()))
def test_strings_come_back_when_packed(strings: list[str]) -> None:
    assert list(PackedStrings.pack(strings)) == strings


def test_odd_file_names_come_back_when_packed() -> None:
    name = b"line-\xff.png".decode("utf-8", "surrogateescape")
    assert PackedStrings.pack([name])[0] == name


def test_strings_are_taken_by_place_slice_and_array_when_asked() -> None:
    strings = PackedStrings.pack(["ä", "", "ccc"])
    assert (strings[-1], strings[:2]) == ("ccc", ["ä", ""])
    assert strings.take(np.array([2, 0])) == ["ccc", "ä"]
    assert "ccc" in strings


def test_parts_follow_each_other_when_joined() -> None:
    parts = [PackedStrings.pack(part) for part in (["a", "bb"], [], ["c"])]
    assert list(PackedStrings.join(parts)) == ["a", "bb", "c"]


def test_index_is_refused_when_outside() -> None:
    with pytest.raises(IndexError):
        PackedStrings.pack(["a"])[1]


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2], [0, 4, 3]])
def test_offsets_are_refused_when_they_do_not_rise_to_the_end(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="do not rise"):
        PackedStrings(np.array(offsets, np.int64), np.zeros(3, np.uint8))

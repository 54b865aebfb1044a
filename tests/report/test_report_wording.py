from __future__ import annotations

import pytest

from hydistill_edge.report import wording

THIN, MINUS = wording.THIN, wording.MINUS


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.3, "0.3"),
        (0.34567, "0.346"),
        (1234, "1230"),
        (-2.5, f"{MINUS}2.5"),
        (3.1e-7, "3.10e-07"),
        (2e9, "2.00e+09"),
    ],
)
def test_significant_keeps_three_digits(value: float, shown: str) -> None:
    assert wording.significant(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.3, "0.300"), (12, "12.0"), (345.6, "346"), (1234, "1230")]
)
def test_significant_keeps_zeros_when_asked(value: float, shown: str) -> None:
    assert wording.significant(value, zeros=True) == shown


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [
        (None, "not measured"),
        (0.0, f"0.0{THIN}%"),
        (0.9812, f"98.1{THIN}%"),
        (0.99949, f"99.9{THIN}%"),
        (0.9996, f"99.96{THIN}%"),
        (0.99999, f"99.99{THIN}%"),
        (1.0, f"100.0{THIN}%"),
    ],
)
def test_percent_never_rounds_up_to_all(fraction: float | None, shown: str) -> None:
    assert wording.percent(fraction) == shown


def test_points_carry_their_sign() -> None:
    assert wording.points(-0.0141) == f"{MINUS}1.4 points"
    assert wording.points(0.006) == "+0.6 points"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "not measured"), (0, f"0{THIN}B"), (999, f"999{THIN}B"), (24_812, f"24.8{THIN}kB")],
)
def test_size_is_decimal(value: float | None, shown: str) -> None:
    assert wording.size(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.41, f"0.41{THIN}s"), (59.9, f"59.9{THIN}s"), (59.96, f"1{THIN}min 00{THIN}s")],
)
def test_seconds_become_minutes(value: float, shown: str) -> None:
    assert wording.seconds(value) == shown


def test_limit_tells_its_direction() -> None:
    assert wording.limit(20.0, "dB", "at_least") == f"≥ 20{THIN}dB"
    assert wording.limit(1.0, "ms", "at_most") == f"≤ 1{THIN}ms"
    assert wording.limit(0.99, "fraction", "at_least") == f"≥ 99.0{THIN}%"
    assert wording.limit(None, "ms", "at_most") == "none"


def test_listing_reads_as_in_a_sentence() -> None:
    assert [wording.listing(list("abc")[:n]) for n in range(4)] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_amounts_and_counts_are_readable() -> None:
    assert wording.amount(19_600) == f"19.6{THIN}k"
    assert wording.amount(480) == "480"
    assert wording.count(12_345) == f"12{THIN}345"
    assert wording.plural(1, "gate") == "1 gate"
    assert wording.plural(2, "gate") == "2 gates"

"""Numbers and answers as a reader meets them: units, rounding, and what stands for "none"."""

from __future__ import annotations

from collections.abc import Sequence

NONE = "not measured"
MINUS = "\N{MINUS SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"

VERDICTS: dict[bool | None, str] = {True: "passed", False: "failed", None: "not judged"}


def verdict(passed: bool | None) -> str:
    """Return the word for an answer: passed, failed or not judged."""
    return VERDICTS[passed]


def significant(value: float, *, zeros: bool = False) -> str:
    """Return a number rounded to three digits, without an exponent where one can read it.

    With `zeros` it keeps those at the end: a measured 0.300 and not a chosen 0.3.
    """
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return _signed(f"{value:.2e}")
    shown = f"{value:#.3g}" if zeros else f"{value:.3g}"
    return _signed(f"{float(shown):.0f}" if "e" in shown else shown.removesuffix("."))


def percent(fraction: float | None) -> str:
    """Return a fraction in percent; a value below 1 is never rounded up to 100 %."""
    if fraction is None:
        return NONE
    digits = 2 if 0.9995 <= fraction < 1 else 1
    shown = min(100 * fraction, 99.99) if fraction < 1 else 100 * fraction
    return f"{_signed(f'{shown:.{digits}f}')}{THIN}%"


def points(difference: float) -> str:
    """Return a difference of fractions in percentage points, with its sign."""
    return f"{_signed(f'{100 * difference:+.1f}')} points"


def count(value: float | None) -> str:
    """Return a whole number with its thousands apart."""
    return NONE if value is None else f"{value:,.0f}".replace(",", THIN)


def amount(value: float | None) -> str:
    """Return a large number in thousands, millions or billions: 19.6 k, 1.23 M."""
    if value is None:
        return NONE
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{significant(value / size)}{THIN}{letter}"
    return significant(value)


def size(value: float | None) -> str:
    """Return bytes in the decimal units that disks and networks use: 45.2 kB."""
    if value is None:
        return NONE
    for unit, letter in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{significant(value / unit)}{THIN}{letter}"
    return f"{value:.0f}{THIN}B"


def mebibytes(value: float | None) -> str:
    """Return memory that is counted in MiB: 812 MiB, 3.2 GiB."""
    if value is None:
        return NONE
    if value >= 1024:
        return f"{significant(value / 1024)}{THIN}GiB"
    return f"{value:.0f}{THIN}MiB"


def one_in(share: float) -> str:
    """Return a small share as a fraction: 1/120."""
    if not 0 < share < 0.5:
        return percent(share)
    return f"1/{round(1 / share):,}".replace(",", THIN)


def milliseconds(value: float | None) -> str:
    """Return a time in ms, three digits."""
    return NONE if value is None else f"{significant(value, zeros=True)}{THIN}ms"


def seconds(value: float | None) -> str:
    """Return a duration: 0.41 s, 12.3 s, 2 min 05 s."""
    if value is None:
        return NONE
    if value < 59.95:
        return f"{significant(value)}{THIN}s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}{THIN}min {rest:02d}{THIN}s"


def in_unit(value: float | None, unit: str) -> str:
    """Return a value in a gate's unit; fractions are shown in percent."""
    if value is None:
        return NONE
    if unit == "fraction":
        return percent(value)
    if unit == "ms":
        return milliseconds(value)
    return f"{significant(value)}{THIN}{unit}".rstrip(THIN)


def bits(value: float | None) -> str:
    """Return a number of bits with one decimal: 0.4 bits."""
    return NONE if value is None else f"{_signed(f'{value:.1f}')}{THIN}bits"


def interval(low: float | None, high: float | None) -> str:
    """Return the two ends of a range: "0.2 to 7.05"."""
    if low is None or high is None:
        return NONE
    return f"{significant(low)} to {significant(high)}"


def limit(value: float | None, unit: str, direction: str) -> str:
    """Return a gate's limit with the direction in which it holds: "at least 20 dB"."""
    if value is None:
        return "none"
    sign = {"at_least": "≥ ", "at_most": "≤ ", "exactly": "= "}.get(direction, "")
    return sign + (f"{significant(value)}{THIN}ms" if unit == "ms" else in_unit(value, unit))


def listing(parts: Sequence[str]) -> str:
    """Return parts as a list in a sentence: "a, b and c"."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def plural(number: int, noun: str) -> str:
    """Return a count with its noun: "1 artifact", "3 artifacts"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _signed(text: str) -> str:
    """Write a leading hyphen as the minus sign it is."""
    return MINUS + text[1:] if text.startswith("-") else text


def printable(page: str) -> str:
    """Return a page without what HTML forbids, in a class name for one: replaced, not dropped."""
    return page.translate(_UNPRINTABLE).encode("utf-8", "replace").decode("utf-8")


_UNPRINTABLE = {
    code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"
}

"""The latency gate: the bounded percentile of one scope against the device profile's limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from hydistill_edge.targets.distribution import Distribution
from hydistill_edge.targets.gates import Gate
from hydistill_edge.targets.percentiles import queries_needed, share_of


class LatencyLimit(Protocol):
    """What a device profile asks for (`profiles.LatencyLimit`)."""

    @property
    def percentile(self) -> str:
        """Which one, such as "p99"."""
        ...

    @property
    def limit_ms(self) -> float:
        """Upper bound in milliseconds."""
        ...

    @property
    def scope(self) -> str:
        """Which scope, "engine" or "frame"."""
        ...


def latency_gate(
    limit: LatencyLimit, scopes: Mapping[str, Distribution], *, advisory_why: str = ""
) -> Gate:
    """Judge the bounded percentile, the value that the true one does not exceed at 99 %.

    Not judged, with the number all the same, where the measurement is advisory; not judged
    without a number where the scope was not measured or has too few queries.

    Args:
        limit: percentile, scope and upper bound.
        scopes: what was measured.
        advisory_why: why the measurement is advisory; empty where it counts.

    Raises:
        UsageError: a percentile that the protocol does not know.
    """
    share = share_of(limit.percentile)
    measured = scopes.get(limit.scope)
    value = measured.bounded[limit.percentile] if measured else None
    passed: bool | None = None
    if measured is None:
        why = f"the scope {limit.scope} was not measured"
    elif value is None:
        needed = queries_needed(share)
        why = f"{measured.n} queries do not support {limit.percentile}; it takes {needed}"
    elif advisory_why:
        side = "within" if value <= limit.limit_ms else "above"
        why = f"advisory, {side} the limit: {advisory_why}"
    else:
        passed = value <= limit.limit_ms
        why = f"{measured.n} queries, 99% confidence"
    return Gate(
        name=f"{limit.scope} latency {limit.percentile}, upper bound",
        passed=passed,
        value=value,
        limit=limit.limit_ms,
        direction="at_most",
        unit="ms",
        why=why,
    )

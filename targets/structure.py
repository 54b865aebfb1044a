"""Rung R0: the facts of a file are those that were ordered.

Names, dtypes, shapes, opset, IR version, domains and metadata are compared as plain values: a
device that has no `onnx` can judge what its runtime tells it.
"""

from __future__ import annotations

from collections.abc import Mapping

from hydistill_edge.targets.gates import Gate, at_most
from hydistill_edge.targets.rungs import Rung


def r0_structure(
    expected: Mapping[str, object],
    found: Mapping[str, object],
    *,
    ceilings: Mapping[str, float] | None = None,
) -> Rung:
    """Hold the facts of a file against what was ordered: equal, or at most a ceiling.

    Args:
        expected: fact to value, such as "input shape" to [1, 32, 32, 3]; lists and tuples are one.
        found: the same facts as read back from the file; more facts do no harm.
        ceilings: facts that are numbers with an upper limit, such as "opset" on an old device.
    """
    gates = [_equal(name, want, found) for name, want in expected.items()]
    gates += [_below(name, limit, found) for name, limit in (ceilings or {}).items()]
    return Rung("R0", "Structure of the file", "none", n=len(gates), gates=tuple(gates))


def _equal(name: str, want: object, found: Mapping[str, object]) -> Gate:
    if name in found and _plain(found[name]) == _plain(want):
        return Gate(name, True, None, None, "exactly", why=f"{want}")
    why = f"the file says {found.get(name, 'nothing')}, expected {want}"
    return Gate(name, False, None, None, "exactly", why=why)


def _below(name: str, limit: float, found: Mapping[str, object]) -> Gate:
    value = found.get(name)
    if isinstance(value, int | float):
        return at_most(name, float(value), limit)
    why = f"the file says {found.get(name, 'nothing')}, expected a number up to {limit:g}"
    return Gate(name, False, None, limit, "at_most", why=why)


def _plain(value: object) -> object:
    """Return tuples as lists: what JSON brings back of one is the other."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

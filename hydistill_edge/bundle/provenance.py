"""Provenance: from which bytes, by which steps, with which tools an artifact was made.

The file is an in-toto Statement with a SLSA provenance predicate, so that existing tools can read
and sign it. It claims no SLSA level: it says what was done, not on how trusted a machine.

    teacher ──► transfer set ──► student ──► graph ──► artifact
                     └───────► calibration ────────────┘

Formats: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and
https://slsa.dev/spec/v1.0/provenance

The bytes depend on nothing but the arguments. There is no wall clock in them; a time stands there
only where SOURCE_DATE_EPOCH is given (https://reproducible-builds.org/specs/source-date-epoch/).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from hydistill_edge.errors import UsageError

if TYPE_CHECKING:
    from hydistill_edge.bundle.manifest import Digests, Manifest

PROVENANCE_NAME = "evidence/provenance.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:hydistill-edge:build:1"
BUILDER_ID = "urn:hydistill-edge:builder:local"

# Product of a step: what it is made from. Missing links (no teacher, a float artifact) drop out.
_CHAIN: dict[str, tuple[str, tuple[str, ...]]] = {
    "transfer": ("label", ("teacher",)),
    "student": ("distill", ("teacher", "transfer")),
    "graph": ("export", ("student",)),
    "calibration": ("choose-calibration", ("transfer",)),
}


def provenance(
    *,
    subjects: Mapping[str, str],
    digests: Digests,
    target: str,
    device: str,
    precision: str,
    tools: Mapping[str, str],
    seeds: Mapping[str, int],
    scheme: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    source_date_epoch: int | None = None,
) -> dict[str, Any]:
    """Return the statement about one artifact, as plain values.

    Args:
        subjects: path in the bundle to SHA-256 (hex) of every model file.
        digests: what it was made from.
        target: runtime of the artifact.
        device: name of the device profile.
        precision: of the artifact.
        tools: name to version of every tool that took part.
        seeds: name to seed of every random stream.
        scheme: `Scheme.to_dict()` of an int8 artifact.
        parameters: what the user chose (method, recipe digest); plain JSON values.
        source_date_epoch: seconds since 1970 (UTC), or None for no time at all.

    Raises:
        UsageError: no subject, or a time that is no time.
    """
    if not subjects:
        raise UsageError("provenance needs at least one model file to speak about; got none")
    known = {name: value for name, value in asdict(digests).items() if value is not None}
    chosen = {"device": device, "precision": precision, "target": target, **(parameters or {})}
    chain = _chain(known, subjects, scheme, seeds)
    return {
        "_type": STATEMENT_TYPE,
        "subject": [_described(path, subjects[path]) for path in sorted(subjects)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": chosen,
                "internalParameters": {"chain": chain, "scheme": scheme, "seeds": dict(seeds)},
                "resolvedDependencies": [_described(name, known[name]) for name in sorted(known)],
            },
            "runDetails": {
                "builder": {"id": BUILDER_ID, "version": dict(tools)},
                "metadata": _metadata(source_date_epoch),
            },
        },
    }


def to_json(statement: Mapping[str, Any]) -> bytes:
    """Return the one byte form of a statement: ASCII, sorted keys."""
    text = json.dumps(statement, indent=1, sort_keys=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def read_source_date_epoch(environment: Mapping[str, str]) -> int | None:
    """Return SOURCE_DATE_EPOCH of an environment, or None where it is not set.

    Raises:
        UsageError: it is not a whole number of seconds.
    """
    text = environment.get("SOURCE_DATE_EPOCH")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"SOURCE_DATE_EPOCH is {text!r}; expected whole seconds since 1970")
    return int(text)


def statement_problems(statement: Any, manifest: Manifest) -> list[str]:
    """Return where a statement and the manifest beside it disagree."""
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE:
        return [f"not an in-toto statement; expected _type {STATEMENT_TYPE}"]
    subjects = {listed.path: listed.sha256 for listed in manifest.with_role("model")}
    sources = {k: v for k, v in asdict(manifest.digests).items() if v is not None}
    definition = ("predicate", "buildDefinition")
    expected: dict[tuple[str, ...], Any] = {
        ("subject",): [_described(path, subjects[path]) for path in sorted(subjects)],
        (*definition, "resolvedDependencies"): [
            _described(name, sources[name]) for name in sorted(sources)
        ],
        (*definition, "externalParameters", "target"): manifest.target,
        (*definition, "externalParameters", "device"): manifest.device,
        (*definition, "externalParameters", "precision"): manifest.precision,
    }
    return [
        f"{'.'.join(path)}: not what the manifest says; pack the bundle again"
        for path, value in expected.items()
        if _at(statement, path) != value
    ]


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _described(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def _chain(
    known: Mapping[str, str],
    subjects: Mapping[str, str],
    scheme: Mapping[str, Any] | None,
    seeds: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Return the steps in order: what each was made from and what came out."""
    steps = [
        _step(step, sources, known, {product: known[product]})
        for product, (step, sources) in _CHAIN.items()
        if product in known
    ]
    sources = ("graph",) if "graph" in known else ("student",)
    last = _step("build", (*sources, "calibration"), known, subjects)
    last["scheme"] = scheme["name"] if scheme is not None and "name" in scheme else None
    for step in steps:
        step["seed"] = seeds.get(step["step"])
    return [*steps, last]


def _step(
    step: str, sources: tuple[str, ...], known: Mapping[str, str], products: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "step": step,
        "materials": [_described(name, known[name]) for name in sources if name in known],
        "products": [_described(name, products[name]) for name in sorted(products)],
    }


def _metadata(source_date_epoch: int | None) -> dict[str, str]:
    if source_date_epoch is None:
        return {}
    try:
        moment = datetime.fromtimestamp(source_date_epoch, tz=timezone.utc)
    except (OverflowError, ValueError, OSError) as error:
        raise UsageError(
            f"SOURCE_DATE_EPOCH {source_date_epoch} is no time; expected seconds since 1970"
        ) from error
    return {"finishedOn": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}

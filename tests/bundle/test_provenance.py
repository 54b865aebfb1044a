"""Provenance: a chain of digests, equal bytes for equal inputs, checked with the bundle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from hydistill_edge.bundle.manifest import Digests, Manifest
from hydistill_edge.bundle.pack import pack, verify
from hydistill_edge.bundle.provenance import provenance, read_source_date_epoch, to_json
from hydistill_edge.errors import BundleError, UsageError

MODEL = hashlib.sha256(b"weights" * 20).hexdigest()


def statement(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "subjects": {"model/model.onnx": MODEL},
        "digests": Digests(student="1" * 64, teacher="2" * 64, calibration="3" * 64),
        "target": "onnxruntime",
        "device": "x86-vnni",
        "precision": "int8",
        "tools": {"torch": "2.15"},
        "seeds": {"distill": 7},
        "scheme": {"name": "u8s8-per-channel"},
    }
    return provenance(**{**fields, **changes})


def test_provenance_is_a_statement_whose_chain_ends_in_the_artifact() -> None:
    made = statement()

    assert made["_type"] == "https://in-toto.io/Statement/v1"
    assert made["subject"] == [{"name": "model/model.onnx", "digest": {"sha256": MODEL}}]
    chain = made["predicate"]["buildDefinition"]["internalParameters"]["chain"]
    assert [step["step"] for step in chain] == ["distill", "choose-calibration", "build"]
    assert [item["name"] for item in chain[0]["materials"]] == ["teacher"]
    assert chain[0]["seed"] == 7
    assert [item["name"] for item in chain[-1]["materials"]] == ["student", "calibration"]
    assert chain[-1]["products"] == made["subject"]


def test_provenance_has_no_clock_in_it_when_no_time_is_given() -> None:
    assert to_json(statement()) == to_json(statement())
    assert statement()["predicate"]["runDetails"]["metadata"] == {}
    timed = statement(source_date_epoch=86400)["predicate"]["runDetails"]["metadata"]
    assert timed == {"finishedOn": "1970-01-02T00:00:00Z"}


def test_source_date_epoch_is_read_when_it_is_set() -> None:
    assert read_source_date_epoch({}) is None
    assert read_source_date_epoch({"SOURCE_DATE_EPOCH": "12"}) == 12
    with pytest.raises(UsageError, match="expected whole seconds"):
        read_source_date_epoch({"SOURCE_DATE_EPOCH": "yesterday"})
    with pytest.raises(UsageError, match="is no time"):
        statement(source_date_epoch=10**30)


def test_provenance_is_refused_when_it_speaks_about_nothing() -> None:
    with pytest.raises(UsageError, match="at least one model file"):
        statement(subjects={})


def test_bundle_is_accepted_when_provenance_and_manifest_agree(
    tmp_path: Path, contents: dict[str, bytes], manifest: Manifest
) -> None:
    contents["evidence/provenance.json"] = to_json(statement())

    assert verify(pack(contents, manifest, tmp_path / "a.hydistill")).with_role("evidence")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (to_json(statement(subjects={"model/model.onnx": "0" * 64})), "subject: not what"),
        (to_json(statement(digests=Digests(student="0" * 64))), "resolvedDependencies: not what"),
        (to_json(statement(precision="fp32")), "precision: not what"),
        (b'{"_type": "https://in-toto.io/Statement/v1", "predicate": 3}', "5 problems"),
        (b"[]", "not an in-toto statement"),
        (b"{", "not readable as JSON"),
    ],
    ids=["subject", "sources", "precision", "empty", "list", "torn"],
)
def test_bundle_is_refused_when_the_provenance_is_of_another(
    tmp_path: Path,
    contents: dict[str, bytes],
    manifest: Manifest,
    data: bytes,
    expected: str,
) -> None:
    contents["evidence/provenance.json"] = data

    with pytest.raises(BundleError, match=expected):
        pack(contents, manifest, tmp_path / "a.hydistill")

"""What a manifest accepts, and that everything else is refused in one message."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydistill_edge.bundle.manifest import (
    BundledFile,
    Golden,
    GoldenImage,
    Manifest,
    Reject,
    role_of,
)
from hydistill_edge.bundle.pack import inspect
from hydistill_edge.errors import BundleError


@pytest.fixture
def tree(bundle: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(inspect(bundle).to_json())
    return loaded


def refusal(tree: object) -> str:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(tree, indent=1, sort_keys=True).encode() + b"\n")
    return str(caught.value)


def test_manifest_is_unchanged_when_written_and_read(bundle: Path) -> None:
    manifest = inspect(bundle)

    assert Manifest.from_json(manifest.to_json()) == manifest


def test_manifest_lists_every_problem_when_several_fields_are_wrong(tree: dict[str, Any]) -> None:
    del tree["precision"]
    tree["colour"] = "blue"
    tree["input"]["height"] = "8"
    tree["files"][0]["size"] = True

    message = refusal(tree)

    assert "4 problems" in message
    assert "precision: missing" in message
    assert "colour: unknown" in message
    assert "input.height: expected an integer, found '8'" in message
    assert "files[0].size: expected an integer, found True" in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("target", "tflite", "expected one of onnxruntime, openvino, tensorrt"),
        ("precision", "int4", "expected one of fp32"),
        ("name", "../up", "expected 1 to 64 letters"),
        ("entry", "labels.txt", "expected one of the files in model/"),
        ("classes", ["good", "good"], "stands there 2 times"),
        ("classes", ["good", "b\x1b[31mad"], "without control characters"),
        ("classes", "good", "expected a list"),
        ("batch", 0, "expected 1 to 1024"),
        ("tools", {"numpy": 2}, "tools.numpy: expected a string"),
        ("reject", {"temperature": 1.0}, "reject.thresholds: missing"),
        ("digests", {}, "digests.student: missing"),
    ],
)
def test_manifest_is_refused_when_a_value_is_wrong(
    tree: dict[str, Any], key: str, value: object, expected: str
) -> None:
    tree[key] = value

    assert expected in refusal(tree)


def test_manifest_is_refused_when_its_schema_is_newer(tree: dict[str, Any]) -> None:
    assert "schema version 2; this program reads version 1" in refusal(
        tree | {"schema_version": 2, "new": 1}
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[" * 100_000, "not readable as JSON"),
        (b'{"a": 1, "a": 2}', "stands there twice"),
        (b'{"a": NaN}', "not a JSON number"),
        (b"\xff\xfe", "not readable as JSON"),
        (b" " * (4 * 1024 * 1024 + 1), "at most"),
        (b"[]", "expected an object"),
        (b"9" * 5000, "not readable as JSON"),
    ],
    ids=["deep", "repeated key", "NaN", "not ASCII", "large", "a list", "long number"],
)
def test_manifest_is_refused_when_the_json_is_hostile(data: bytes, expected: str) -> None:
    with pytest.raises(BundleError, match=expected):
        Manifest.from_json(data)


def test_manifest_is_refused_when_it_was_edited_by_hand(bundle: Path) -> None:
    data = inspect(bundle).to_json().replace(b"\n ", b"\n  ", 1)

    with pytest.raises(BundleError, match="edited after packing"):
        Manifest.from_json(data)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"temperature": float("inf")}, "expected a finite number above 0"),
        ({"thresholds": (0.5,)}, "expected one per class, 2"),
        ({"thresholds": (0.5, float("nan"))}, "expected 0 to 1"),
        ({"fitted_on": "guess"}, "expected one of labels, teacher"),
    ],
)
def test_reject_rule_is_refused_when_a_value_is_impossible(
    make: Callable[..., Manifest], changes: dict[str, Any], expected: str
) -> None:
    fields = {**vars(make().reject), **changes}

    with pytest.raises(BundleError, match=expected):
        make(reject=Reject(**fields)).to_json()


@pytest.mark.parametrize(
    ("golden", "expected"),
    [
        (Golden((), "golden/a.f32"), "come together"),
        (Golden((GoldenImage("golden/0.jpg", "a", "synthetic"),), "golden/a.f32"), "a PNG"),
        (Golden((GoldenImage("golden/0.png", "a", "found"),), "golden/a.f32"), "one of real"),
        (Golden((GoldenImage("golden/0.png", "a", "real"),), "golden/0.png"), "named twice"),
    ],
)
def test_golden_images_are_refused_when_they_do_not_fit(
    make: Callable[..., Manifest], golden: Golden, expected: str
) -> None:
    with pytest.raises(BundleError, match=expected):
        make(golden=golden).to_json()


def test_golden_logits_are_refused_when_their_size_is_wrong(
    make: Callable[..., Manifest],
) -> None:
    files = tuple(
        BundledFile(path, "0" * 64, 9, role_of(path))
        for path in ("golden/0000.png", "golden/student.f32", "labels.txt", "model/model.onnx")
    )

    with pytest.raises(BundleError, match="9 bytes; 8 hold one row per image"):
        make(files=files).to_json()


@pytest.mark.parametrize("path", ["run.sh", "model/a/b", "model/", "evidence/notes.json", "golden"])
def test_role_is_refused_when_a_bundle_has_no_such_place(path: str) -> None:
    with pytest.raises(BundleError, match="has no place in a bundle"):
        role_of(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.data())
def test_manifest_raises_only_bundle_errors_when_any_value_is_replaced(
    bundle_tree: dict[str, Any], data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(bundle_tree)))
    changed = {**bundle_tree, key: data.draw(json_values)}

    with contextlib.suppress(BundleError):
        Manifest.from_json(json.dumps(changed, indent=1, sort_keys=True).encode() + b"\n")


@pytest.fixture(scope="session")
def bundle_tree(bundle_bytes: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("tree") / "a.hydistill"
    path.write_bytes(bundle_bytes)
    loaded: dict[str, Any] = json.loads(inspect(path).to_json())
    return loaded

"""Signed export, import and comparison of key influences, from the command line."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hydistill_edge.errors import UsageError
from hydistill_edge.key_sharing import new_keys


def keys(scores: list[float], *, images: int = 10, digest: str = "d" * 64) -> dict[str, Any]:
    return {
        "schema_version": 1, "method": "rtk", "variant": "rtk", "images": images, "top_k": 1,
        "threshold_factor": 1.0, "threshold": 0.33,
        "teacher": {"architecture": "zoo:resnet8", "digest": digest},
        "student": {"architecture": "zoo:resnet8"},
        "layers": [
            {"layer": name, "shape": [4, 8, 8], "influence": score, "chosen": score >= 0.3,
             "channels": None, "bytes": 1024}
            for name, score in zip("abc", scores, strict=True)
        ],
        "student_layers": [{"layer": "s", "shape": [4, 8, 8]}],
        "maps": {"layers": ["c"], "classes": [{"class": "secret", "maps": [[[1.0]]]}]},
        "held_out": {"classes": [{"class": "secret", "influences": [1, 2, 3]}]},
        "history": [{"epoch": 1, "chosen": [0]}],
    }  # fmt: skip


@pytest.fixture
def sites(hydistill: Any, tmp_path: Path) -> Path:
    """Two sites with a pair of keys, a keys.json and its export each."""
    for site, scores, images in (("munich", [0.2, 0.3, 0.5], 30), ("lyon", [0.6, 0.3, 0.1], 10)):
        run = tmp_path / site
        (run / "student").mkdir(parents=True)
        (run / "student" / "keys.json").write_text(json.dumps(keys(scores, images=images)))
        assert hydistill("keys", "new", "--out", tmp_path / f"{site}.pem").code == 0
        arguments = ("--key", tmp_path / f"{site}.pem", "--site", site)
        answer = hydistill("keys", "export", run, *arguments, "--out", tmp_path / f"{site}.json")
        assert answer.code == 0, answer.err
    return tmp_path


def payload(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.b64decode(json.loads(file.read_text())["payload"]))
    return found


def test_export_is_read_back_by_who_trusts_the_site(sites: Path, hydistill: Any) -> None:
    trust = ("--trust", sites / "lyon.pem.pub", "--trust", sites / "munich.pem.pub")
    answer = hydistill("keys", "import", sites / "munich.json", *trust, "--json")
    told = answer.value
    assert (answer.code, told["site"], told["document"]["images"]) == (0, "munich", 30)
    assert [row["influence"] for row in told["document"]["layers"]] == [0.2, 0.3, 0.5]
    out = sites / "plain.json"
    assert hydistill("keys", "import", sites / "munich.json", *trust, "--out", out).code == 0
    assert json.loads(out.read_text()) == told["document"]


def test_export_holds_influences_and_nothing_of_images_or_classes(sites: Path) -> None:
    shared = payload(sites / "munich.json")
    assert set(shared) == {
        *("schema_version", "method", "variant", "images", "top_k", "threshold_factor"),
        *("threshold", "site", "teacher", "student", "layers", "student_layers"),
    }
    assert "secret" not in json.dumps(shared)
    assert set(shared["layers"][0]) == {"layer", "shape", "influence", "chosen"}


def test_export_is_a_dsse_envelope_and_the_same_twice(sites: Path, hydistill: Any) -> None:
    first = (sites / "munich.json").read_text()
    again = ("--key", sites / "munich.pem", "--site", "munich", "--out", sites / "again.json")
    assert hydistill("keys", "export", sites / "munich", *again).code == 0
    assert (sites / "again.json").read_text() == first
    assert set(json.loads(first)) == {"payloadType", "payload", "signatures"}


def test_sites_are_compared_and_pooled_by_their_images(sites: Path, hydistill: Any) -> None:
    trust = ("--trust", sites / "lyon.pem.pub", "--trust", sites / "munich.pem.pub")
    files = (sites / "munich.json", sites / "lyon.json")
    pooled = hydistill("keys", "compare", *files, *trust, "--json").value
    assert [site["site"] for site in pooled["sites"]] == ["munich", "lyon"]
    assert [row["influence"] for row in pooled["layers"]] == pytest.approx([0.3, 0.3, 0.4])
    shown = hydistill("keys", "compare", *files, *trust)
    assert shown.out.endswith(f"training.keys: [{', '.join(pooled['keys'])}]\n")


def alter(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    envelope = json.loads(file.read_text())
    change(envelope)
    file.write_text(json.dumps(envelope))


def other_contents(envelope: dict[str, Any]) -> None:
    shared = json.loads(base64.b64decode(envelope["payload"])) | {"images": 10**6}
    envelope["payload"] = base64.b64encode(json.dumps(shared).encode()).decode()


def other_signature(envelope: dict[str, Any]) -> None:
    envelope["signatures"][0]["sig"] = base64.b64encode(bytes(64)).decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_contents, "does not fit the contents"),
        (other_signature, "does not fit the contents"),
        (lambda e: e.update(signatures=[]), "signed by nobody, and trusted are"),
        (lambda e: e.update(payloadType="text"), "no signed keys (ValueError: payloadType 'text')"),
        (lambda e: e.update(payload="%"), "no signed keys"),
        (lambda e: e.pop("payload"), "no signed keys (KeyError"),
        (lambda e: e.update(signatures=[3]), "no signed keys (TypeError"),
    ],
    ids=["contents", "signature", "unsigned", "type", "base64", "no-payload", "no-object"],
)
def test_export_is_refused_when_it_was_altered(
    sites: Path, refused: Any, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    alter(sites / "munich.json", change)
    trust = ("--trust", sites / "munich.pem.pub")
    refused("keys", "import", sites / "munich.json", *trust, code=2, says=(said,))
    refused("keys", "compare", sites / "munich.json", *trust, code=2, says=(said,))


def test_export_of_another_site_is_refused_until_its_key_is_trusted(
    sites: Path, refused: Any
) -> None:
    trust = ("--trust", sites / "lyon.pem.pub")
    says = ("signed by ", "and trusted are", "name it with --trust")
    refused("keys", "import", sites / "munich.json", *trust, code=2, says=says)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ("export", "nowhere", "--key", "munich.pem", "--site", "x"),
            3,
            "expected a run directory",
        ),
        (("export", "munich", "--key", "munich.pem.pub", "--site", "x"), 2, "no Ed25519 private"),
        (("export", "munich", "--key", "munich.pem", "--site", " "), 2, "site is empty"),
        (("import", "munich/student/keys.json", "--trust", "munich.pem.pub"), 2, "no signed keys"),
        (("import", "munich.json", "--trust", "absent.pub"), 3, "hydistill keys new"),
        (("new", "--out", "munich.pem"), 2, "exists already"),
    ],
    ids=["no-run", "public-key", "no-site", "unsigned", "no-trusted-key", "existing"],
)
def test_wrong_use_ends_in_one_clear_error(
    sites: Path,
    refused: Any,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(sites)
    refused("keys", *arguments, code=code, says=(said,))


def test_private_key_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    new_keys(tmp_path / "site.pem")
    assert stat.S_IMODE((tmp_path / "site.pem").stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="exists already"):
        new_keys(tmp_path / "site.pem")

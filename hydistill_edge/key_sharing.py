"""Sharing which teacher layers mattered, signed and without images: between sites, or with a peer.

An export holds the influences of a run's `keys.json` and the name of the site, and nothing that
images could be told from: no maps, no numbers by class. It is a DSSE envelope, as supply-chain
tools use it, with one Ed25519 signature. Who imports it names the public keys that are trusted.

Format: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydistill_edge import ed25519
from hydistill_edge.atomic import write_text
from hydistill_edge.errors import MissingFileError, SignatureError, UsageError
from hydistill_edge.run_directory import write_json

PAYLOAD_TYPE = "application/vnd.hydistill.keys+json"
MAX_BYTES = 16 * 2**20
"""Of an export; an honest one has a few kilobytes."""

_SHARED = (
    "schema_version",
    "method",
    "variant",
    "images",
    "top_k",
    "threshold_factor",
    "threshold",
)
_OF_A_LAYER = ("layer", "shape", "influence", "chosen")


@dataclass(frozen=True)
class Imported:
    """An export whose signature holds.

    Attributes:
        site: who made it, as they call themselves.
        key_id: of the key that signed it.
        document: the influences, as `pool_keys` takes them.
    """

    site: str
    key_id: str
    document: Mapping[str, Any]


def new_keys(path: Path) -> tuple[Path, str]:
    """Write a pair of keys: the private one to `path`, readable by its owner alone.

    Returns:
        The file of the public one, `path` with `.pub` behind it, and its id.

    Raises:
        UsageError: one of the files exists; a private key is never replaced.
    """
    public_path = path.with_name(path.name + ".pub")
    for file in (path, public_path):
        if file.exists():
            raise UsageError(f"{file} exists already; give another --out: keys are not replaced")
    private = ed25519.new_private_key()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file_object:
        file_object.write(ed25519.private_pem(private))
    public = ed25519.public_key(private)
    write_text(public_path, ed25519.public_pem(public))
    return public_path, ed25519.key_id(public)


def export_keys(source: Path, out: Path, *, key: Path, site: str) -> dict[str, Any]:
    """Write the influences of a run, signed.

    Args:
        source: a run directory of method rtk, or its `keys.json`.
        out: the file to write.
        key: the private key's file.
        site: who exports.

    Returns:
        What was signed.

    Raises:
        MissingFileError: no such run or key.
        UsageError: no site's name, or keys without influences.
        SignatureError: the key's file holds none.
    """
    from hydistill_edge.methods.key_report import KEYS_FILE, read_keys

    if not site.strip():
        raise UsageError("site is empty; expected the name that others know this site by")
    file = source / "student" / KEYS_FILE if source.is_dir() else source
    if not file.is_file():
        raise MissingFileError(f"{file}: no such file; expected a run directory of method rtk")
    found = read_keys(file)
    private = ed25519.read_private(key)
    shared = {
        **{name: found[name] for name in _SHARED if name in found},
        "site": site,
        "teacher": found["teacher"],
        "student": found.get("student"),
        "layers": [
            {name: row[name] for name in _OF_A_LAYER if name in row} for row in found["layers"]
        ],
        "student_layers": found["student_layers"],
    }
    payload = json.dumps(shared, sort_keys=True, separators=(",", ":")).encode()
    signature = ed25519.sign(private, _signed_bytes(payload))
    write_json(
        out,
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode("ascii"),
            "signatures": [
                {
                    "keyid": ed25519.key_id(ed25519.public_key(private)),
                    "sig": base64.b64encode(signature).decode("ascii"),
                }
            ],
        },
    )
    return shared


def import_keys(file: Path, *, trusted: Sequence[Path], out: Path | None = None) -> Imported:
    """Read an export and check its signature.

    Args:
        file: what `export_keys` wrote, here or at another site.
        trusted: files of public keys; one of them must have signed it.
        out: where to write the influences, without signature; None for nowhere.

    Raises:
        MissingFileError: no such file or key.
        SignatureError: it is no export, nobody trusted has signed it, or it was altered since.
        UsageError: no trusted key, or keys of another schema.
    """
    if not trusted:
        raise UsageError("no trusted key; name the public key of the site with --trust")
    from hydistill_edge.methods.key_report import check_keys

    keys = {ed25519.key_id(public): public for public in map(ed25519.read_public, trusted)}
    payload, signatures = _read_envelope(file)
    known = [(name, signature) for name, signature in signatures if name in keys]
    if not known:
        signers = ", ".join(name for name, _ in signatures) or "nobody"
        raise SignatureError(
            f"{file}: signed by {signers}, and trusted are {', '.join(keys)}; ask the site for its "
            "public key, over another way than this file came, and name it with --trust"
        )
    name, signature = known[0]
    if not ed25519.verify(keys[name], _signed_bytes(payload), signature):
        raise SignatureError(
            f"{file}: the signature of key {name} does not fit the contents: the file was altered "
            "or damaged after it was signed; have it sent again"
        )
    document = json.loads(payload)
    check_keys(document, str(file))
    if out is not None:
        write_json(out, document)
    return Imported(str(document.get("site", "")), name, document)


def compare_keys(
    files: Sequence[Path], *, trusted: Sequence[Path], factor: float = 1.0
) -> dict[str, Any]:
    """Return the influences of several sites beside each other, and pooled.

    Args:
        files: exports.
        trusted: files of public keys.
        factor: of the pooled threshold over the mean influence.

    Returns:
        What `pool_keys` gives, with the `sites` as a list (site, key, images, influences, chosen).

    Raises:
        MissingFileError: no such file or key.
        SignatureError: a signature does not hold.
        UsageError: no file, or sites that cannot be compared.
    """
    from hydistill_edge.methods.key_report import pool_keys

    found = [import_keys(file, trusted=trusted) for file in files]
    pooled = pool_keys([entry.document for entry in found], factor=factor)
    sites = [
        {
            "site": entry.site,
            "key": entry.key_id,
            "images": entry.document["images"],
            "influences": [row["influence"] for row in entry.document["layers"]],
            "chosen": [row["layer"] for row in entry.document["layers"] if row["chosen"]],
        }
        for entry in found
    ]
    return {**pooled, "sites": sites}


def _signed_bytes(payload: bytes) -> bytes:
    """Return what is signed: type and contents with their lengths, so that neither can shift."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _read_envelope(file: Path) -> tuple[bytes, list[tuple[str, bytes]]]:
    if not file.is_file():
        raise MissingFileError(f"{file}: no such file; expected what `hydistill keys export` wrote")
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{file.stat().st_size:,} bytes, at most {MAX_BYTES:,}")
        value = json.loads(file.read_text(encoding="utf-8"))
        if value["payloadType"] != PAYLOAD_TYPE:
            raise ValueError(f"payloadType {value['payloadType']!r}")
        payload = base64.b64decode(value["payload"], validate=True)
        if not isinstance(json.loads(payload), dict):
            raise ValueError("the payload is no object")
        signatures = [
            (str(entry["keyid"]), base64.b64decode(entry["sig"], validate=True))
            for entry in value["signatures"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise SignatureError(
            f"{file}: no signed keys ({type(error).__name__}: {error}); expected what `hydistill "
            "keys export` wrote"
        ) from error
    return payload, signatures

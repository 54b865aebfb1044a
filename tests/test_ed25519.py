"""Ed25519 against the vectors of RFC 8032, against OpenSSL, and against tampering."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hydistill_edge import ed25519
from hydistill_edge.errors import MissingFileError, SignatureError

OPENSSL = shutil.which("openssl")
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the group
VECTORS = {  # RFC 8032, section 7.1: secret key, public key, message, signature
    "empty": (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    "one-byte": (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    "two-bytes": (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_keys_and_signatures_are_those_of_the_standard(name: str) -> None:
    private, public, message, signature = (bytes.fromhex(text) for text in VECTORS[name])
    assert ed25519.public_key(private) == public
    assert ed25519.sign(private, message) == signature
    assert ed25519.verify(public, message, signature)


@pytest.mark.parametrize("place", [0, 31, 32, 63], ids=["point", "sign", "scalar", "top"])
def test_signature_is_refused_when_one_bit_differs(place: int) -> None:
    _, public, message, signature = (bytes.fromhex(text) for text in VECTORS["two-bytes"])
    altered = bytearray(signature)
    altered[place] ^= 1
    assert not ed25519.verify(public, message, bytes(altered))
    assert not ed25519.verify(public, message + b"x", signature)


def test_signature_is_refused_when_its_scalar_is_not_the_smallest() -> None:
    _, public, message, signature = (bytes.fromhex(text) for text in VECTORS["two-bytes"])
    larger = int.from_bytes(signature[32:], "little") + ORDER
    second = signature[:32] + larger.to_bytes(32, "little")
    assert not ed25519.verify(public, message, second)


@pytest.mark.parametrize(
    ("public", "signature"),
    [
        (b"", bytes(64)),
        (bytes(32), b""),
        (b"\xff" * 32, bytes(64)),
        (b"\x02" + bytes(31), bytes(64)),
    ],
    ids=["no-key", "no-signature", "beyond-the-field", "off-the-curve"],
)
def test_what_is_no_key_or_no_signature_is_refused(public: bytes, signature: bytes) -> None:
    assert not ed25519.verify(public, b"", signature)


def test_key_files_are_read_back_and_others_refused(tmp_path: Path) -> None:
    private = ed25519.new_private_key()
    (tmp_path / "key").write_text(ed25519.private_pem(private))
    (tmp_path / "key.pub").write_text(ed25519.public_pem(ed25519.public_key(private)))
    assert ed25519.read_private(tmp_path / "key") == private
    assert ed25519.read_public(tmp_path / "key.pub") == ed25519.public_key(private)
    with pytest.raises(SignatureError, match="no Ed25519 private key in PEM"):
        ed25519.read_private(tmp_path / "key.pub")
    (tmp_path / "key.pub").write_text(
        "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"
    )
    with pytest.raises(SignatureError, match="no Ed25519 public key in PEM"):
        ed25519.read_public(tmp_path / "key.pub")
    with pytest.raises(MissingFileError, match="hydistill keys new"):
        ed25519.read_private(tmp_path / "absent")


@pytest.mark.skipif(OPENSSL is None, reason="no openssl here to compare with")
def test_openssl_reads_our_keys_and_accepts_our_signature(tmp_path: Path) -> None:
    private = ed25519.new_private_key()
    (tmp_path / "key.pub").write_text(ed25519.public_pem(ed25519.public_key(private)))
    (tmp_path / "message").write_bytes(b"influences")
    (tmp_path / "sig").write_bytes(ed25519.sign(private, b"influences"))
    command = [
        str(OPENSSL), "pkeyutl", "-verify", "-pubin", "-inkey", "key.pub", "-rawin", "-in",
        "message", "-sigfile", "sig",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Verified Successfully" in done.stdout, done.stderr


@pytest.mark.skipif(OPENSSL is None, reason="no openssl here to compare with")
def test_keys_made_by_openssl_are_read(tmp_path: Path) -> None:
    for arguments in (
        ["genpkey", "-algorithm", "ed25519", "-out", "key"],
        ["pkey", "-in", "key", "-pubout", "-out", "key.pub"],
    ):
        subprocess.run([str(OPENSSL), *arguments], cwd=tmp_path, capture_output=True, check=True)
    public = ed25519.read_public(tmp_path / "key.pub")
    assert ed25519.public_key(ed25519.read_private(tmp_path / "key")) == public

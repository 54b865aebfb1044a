"""Ed25519 keys and signatures as bytes, and the PEM files that hold the keys.

Source: Josefsson and Liusvaara 2017, RFC 8032; key files as in RFC 8410 (what
`openssl genpkey -algorithm ed25519` writes). The arithmetic is that of the package `cryptography`,
which is loaded when the first key is used.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from hydistill_edge.errors import MissingFileError, SignatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

KEY_BYTES = 32


def new_private_key() -> bytes:
    """Return 32 random bytes of the system's best source."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> bytes:
    """Return the public key of a private one, each 32 bytes."""
    return _private(private).public_key().public_bytes_raw()


def sign(private: bytes, message: bytes) -> bytes:
    """Return the signature of a message, 64 bytes."""
    return _private(private).sign(message)


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether a signature is that of a message by the holder of a key."""
    from cryptography.exceptions import InvalidSignature

    if len(public) != KEY_BYTES:
        return False
    try:
        _public(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def key_id(public: bytes) -> str:
    """Return the name of a public key: the first 16 hexadecimal digits of its sha256."""
    return hashlib.sha256(public).hexdigest()[:16]


def private_pem(private: bytes) -> str:
    """Return a private key as PEM (PKCS #8)."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = _private(private).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem.decode("ascii")


def public_pem(public: bytes) -> str:
    """Return a public key as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = _public(public).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode("ascii")


def read_private(path: Path) -> bytes:
    """Read a private key's PEM file.

    Raises:
        MissingFileError: there is no such file.
        SignatureError: it holds no Ed25519 private key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError) as error:  # TypeError: it is encrypted
        raise _no_key(path, "private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private key")
    return key.private_bytes_raw()


def read_public(path: Path) -> bytes:
    """Read a public key's PEM file.

    Raises:
        MissingFileError: there is no such file.
        SignatureError: it holds no Ed25519 public key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path))
    except ValueError as error:
        raise _no_key(path, "public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public key")
    return key.public_bytes_raw()


def _private(data: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(data)


def _public(data: bytes) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(data)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; `hydistill keys new` makes a pair of keys")
    return path.read_bytes()


def _no_key(path: Path, what: str) -> SignatureError:
    return SignatureError(
        f"{path}: no Ed25519 {what} in PEM; expected the file that `hydistill keys new` or "
        "`openssl genpkey -algorithm ed25519` wrote"
    )

"""Ed25519 signatures with the standard library alone, and the PEM files that hold their keys.

Source: Josefsson and Liusvaara 2017, RFC 8032, section 5.1; key files as in RFC 8410 (what
`openssl genpkey -algorithm ed25519` writes). Arithmetic is that of Python's integers, whose time
depends on their values: sign on a machine of your own, not where others can measure it. Verifying
holds no secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from pathlib import Path

from hydistill_edge.errors import MissingFileError, SignatureError

KEY_BYTES = 32
SIGNATURE_BYTES = 64

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT_OF_MINUS_ONE = pow(2, (_P - 1) // 4, _P)

_Point = tuple[int, int, int, int]  # extended homogeneous: x = X/Z, y = Y/Z, x y = T/Z
_NEUTRAL: _Point = (0, 1, 1, 0)

_PRIVATE = bytes.fromhex("302e020100300506032b657004220420")  # DER in front of the 32 bytes
_PUBLIC = bytes.fromhex("302a300506032b6570032100")


def new_private_key() -> bytes:
    """Return 32 random bytes of the system's best source."""
    return secrets.token_bytes(KEY_BYTES)


def public_key(private: bytes) -> bytes:
    """Return the public key of a private one, each 32 bytes."""
    return _encoded(_times(_expanded(private)[0], _BASE))


def sign(private: bytes, message: bytes) -> bytes:
    """Return the signature of a message, 64 bytes."""
    scalar, prefix = _expanded(private)
    own = _encoded(_times(scalar, _BASE))
    nonce = _number(hashlib.sha512(prefix + message).digest()) % _ORDER
    point = _encoded(_times(nonce, _BASE))
    challenge = _number(hashlib.sha512(point + own + message).digest()) % _ORDER
    return point + ((nonce + challenge * scalar) % _ORDER).to_bytes(32, "little")


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether a signature is that of a message by the holder of a key."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    own, point = _decoded(public), _decoded(signature[:32])
    scalar = _number(signature[32:])
    if own is None or point is None or scalar >= _ORDER:
        return False
    challenge = _number(hashlib.sha512(signature[:32] + public + message).digest()) % _ORDER
    return _same(_times(scalar, _BASE), _sum(point, _times(challenge, own)))


def key_id(public: bytes) -> str:
    """Return the name of a public key: the first 16 hexadecimal digits of its sha256."""
    return hashlib.sha256(public).hexdigest()[:16]


def private_pem(private: bytes) -> str:
    """Return a private key as PEM (PKCS #8)."""
    return _pem("PRIVATE KEY", _PRIVATE + private)


def public_pem(public: bytes) -> str:
    """Return a public key as PEM."""
    return _pem("PUBLIC KEY", _PUBLIC + public)


def read_private(path: Path) -> bytes:
    """Read a private key's PEM file.

    Raises:
        MissingFileError: there is no such file.
        SignatureError: it holds no Ed25519 private key.
    """
    return _read(path, "PRIVATE KEY", _PRIVATE)


def read_public(path: Path) -> bytes:
    """Read a public key's PEM file.

    Raises:
        MissingFileError: there is no such file.
        SignatureError: it holds no Ed25519 public key.
    """
    return _read(path, "PUBLIC KEY", _PUBLIC)


def _pem(title: str, der: bytes) -> str:
    text = base64.b64encode(der).decode("ascii")
    return f"-----BEGIN {title}-----\n{text}\n-----END {title}-----\n"


def _read(path: Path, title: str, prefix: bytes) -> bytes:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; `hydistill keys new` makes a pair of keys")
    text = path.read_text(encoding="ascii", errors="replace")
    match = re.search(rf"-----BEGIN {title}-----([A-Za-z0-9+/=\s]+)-----END {title}-----", text)
    try:
        der = base64.b64decode("".join(match[1].split()), validate=True) if match else b""
    except binascii.Error:
        der = b""
    if not der.startswith(prefix) or len(der) != len(prefix) + KEY_BYTES:
        raise SignatureError(
            f"{path}: no Ed25519 {title.lower()} in PEM; expected the file that `hydistill keys "
            f"new` or `openssl genpkey -algorithm ed25519` wrote"
        )
    return der[len(prefix) :]


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _expanded(private: bytes) -> tuple[int, bytes]:
    """Return the secret scalar and the prefix of nonces (section 5.1.5)."""
    digest = hashlib.sha512(private).digest()
    scalar = _number(digest[:32])
    scalar &= (1 << 254) - 8
    return scalar | (1 << 254), digest[32:]


def _sum(first: _Point, second: _Point) -> _Point:
    a = (first[1] - first[0]) * (second[1] - second[0]) % _P
    b = (first[1] + first[0]) * (second[1] + second[0]) % _P
    c = 2 * first[3] * second[3] * _D % _P
    d = 2 * first[2] * second[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(scalar: int, point: _Point) -> _Point:
    found = _NEUTRAL
    while scalar > 0:
        if scalar & 1:
            found = _sum(found, point)
        point = _sum(point, point)
        scalar >>= 1
    return found


def _same(first: _Point, second: _Point) -> bool:
    return all((first[place] * second[2] - second[place] * first[2]) % _P == 0 for place in (0, 1))


def _encoded(point: _Point) -> bytes:
    inverse = pow(point[2], -1, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | ((x & 1) << 255)).to_bytes(32, "little")


def _decoded(data: bytes) -> _Point | None:
    """Return the point of an encoding, None where there is none (section 5.1.3)."""
    y = _number(data)
    sign_bit, y = y >> 255, y & ((1 << 255) - 1)
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT_OF_MINUS_ONE % _P
    if (x * x - square) % _P or (x == 0 and sign_bit):
        return None
    if x & 1 != sign_bit:
        x = _P - x
    return x, y, 1, x * y % _P


def _base() -> _Point:
    found = _decoded((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
    assert found is not None
    return found


_BASE = _base()

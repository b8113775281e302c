"""Key derivation, its self-test, and what a file with a secret must be like; nothing in here knows the database."""

from __future__ import annotations

import os
import stat

# Bound when this module is loaded: what another function puts into these modules later does not reach it.
from hashlib import sha256, sha512
from hmac import compare_digest
from os import urandom

__all__ = ["MODE", "USER", "compare_digest", "digest", "expand", "extract", "fault", "self_test", "urandom"]

#: Type, mode and owner of a file with a secret.
MODE = stat.S_IFREG | 0o400
USER = os.geteuid()


def digest(key: bytes, message: bytes, algorithm: str) -> bytes:
    """Return an HMAC (RFC 2104). `hmac.digest` takes half as long again: OpenSSL looks the algorithm up on each call."""
    make, block = _HASHES[algorithm]
    if len(key) > block:
        key = make(key).digest()
    padded = key.ljust(block, b"\0")
    inner = make(padded.translate(_INNER))
    inner.update(message)
    return make(padded.translate(_OUTER) + inner.digest()).digest()


def extract(salt: bytes, secret: bytes, algorithm: str = "sha512") -> bytes:
    """Return a pseudorandom key from a secret (RFC 5869, section 2.2)."""
    return digest(salt, secret, algorithm)


def expand(key: bytes, info: bytes, length: int = 64, algorithm: str = "sha512") -> bytes:
    """Return `length` bytes from a pseudorandom key (RFC 5869, section 2.3); uniformly random bytes are one (section 3.3)."""
    result = block = digest(key, info + b"\x01", algorithm)
    counter = 1
    while len(result) < length:
        counter += 1
        block = digest(key, block + info + bytes([counter]), algorithm)
        result += block
    return result[:length]


def self_test() -> bool:
    """Tell whether this interpreter's HMAC, HKDF and comparison do what RFC 4231 (case 2) and RFC 5869 (case 1) say."""
    mac = bytes.fromhex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
    secret, salt, info = b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA))
    derived = bytes.fromhex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    return (
        digest(b"Jefe", b"what do ya want for nothing?", "sha256") == mac
        and expand(extract(salt, secret, "sha256"), info, 42, "sha256") == derived
        and compare_digest(mac, bytes(mac))
        and not compare_digest(mac, bytes(32))
        and len({urandom(16) for _ in range(4)}) == 4
    )


def fault(status: os.stat_result) -> str:
    """Return what is wrong with a file for a secret."""
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_uid != USER:
        return f"belongs to user {status.st_uid}, not to the server's, {USER}"
    return f"has mode {stat.S_IMODE(status.st_mode):04o}"


_HASHES = {"sha256": (sha256, 64), "sha512": (sha512, 128)}
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))

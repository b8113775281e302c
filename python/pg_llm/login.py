"""Codes that change with time, as authenticators show them (RFC 6238, with HMAC-SHA-1 as these use it)."""

from __future__ import annotations

import base64
import struct

from .secret import compare_digest, digest, urandom

#: Seconds that a code is valid for, and its digits: what every authenticator takes for granted.
PERIOD = 30
DIGITS = 6

#: Codes of so many periods before and after the present one count too, for clocks that are not quite right.
SKEW = 1

_SECRET_BYTES = 20


def new_secret() -> str:
    """Return a new secret in base 32."""
    return base64.b32encode(urandom(_SECRET_BYTES)).decode()


def step(secret: str | None, code: str | None, at: float, last_step: int) -> int | None:
    """Return the time step that a code is of, if it is a present one after `last_step`; else None. All candidates are compared."""
    if secret is None or code is None:
        return None
    key = base64.b32decode(secret)
    given = "".join(code.split()).encode()
    present = int(at) // PERIOD
    found = None
    for candidate in range(present - SKEW, present + SKEW + 1):
        if compare_digest(_code(key, candidate), given) and candidate > last_step:
            found = candidate
    return found


def _code(key: bytes, counter: int) -> bytes:
    """Return the code of a counter (RFC 4226, section 5.3)."""
    mac = digest(key, struct.pack(">q", counter), "sha1")
    offset = mac[-1] & 15
    (number,) = struct.unpack_from(">I", mac, offset)
    return str((number & 0x7FFFFFFF) % 10**DIGITS).zfill(DIGITS).encode()

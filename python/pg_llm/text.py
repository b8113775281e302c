"""Text as models give it, made storable without losing anything.

PostgreSQL's text holds neither NUL nor lone surrogates, and jsonb refuses their escapes. Each becomes MARK and four hexadecimal
digits; so does MARK itself, which makes the way back unambiguous.
"""

from __future__ import annotations

import re

#: SYMBOL FOR ESCAPE: printable, and all but unused in real text.
MARK = "\u241b"

_UNSTORABLE = re.compile(f"[\x00\ud800-\udfff{MARK}]")
_MARKED = re.compile(f"{MARK}([0-9A-F]{{4}})")

#: A surrogate pair, any other escape (RFC 8259, section 7), or a MARK: taken in turn, so that `\\u0000` after a backslash is no NUL.
_JSON_ESCAPE = re.compile(
    rf"\\u[dD][89abAB][0-9a-fA-F]{{2}}\\u[dD][c-fC-F][0-9a-fA-F]{{2}}|\\u(?P<code>[0-9a-fA-F]{{4}})|\\.|(?P<mark>{MARK})",
    re.DOTALL,
)


def clean(text: str) -> str:
    """Return `text` with NUL, surrogates and MARK marked."""
    return _UNSTORABLE.sub(lambda match: _marked(ord(match[0])), text)


def clean_bytes(data: bytes) -> str:
    """Return the clean text of UTF-8 bytes; a byte that is not UTF-8 is marked as U+DC80 to U+DCFF (PEP 383)."""
    return clean(data.decode("utf-8", "surrogateescape"))


def original_bytes(text: str) -> bytes:
    """Return the bytes that `clean_bytes` was given."""
    return _MARKED.sub(lambda match: chr(int(match[1], 16)), text).encode("utf-8", "surrogateescape")


def clean_json(document: str) -> str:
    """Return a JSON text whose escapes jsonb accepts; all else, whether it is JSON or not, stays as it is."""
    return _JSON_ESCAPE.sub(_clean_escape, document)


def _clean_escape(match: re.Match[str]) -> str:
    if match["mark"]:
        return _marked(ord(MARK))
    code = int(match["code"] or "20", 16)
    return _marked(code) if _UNSTORABLE.match(chr(code)) else match[0]


def _marked(code: int) -> str:
    return f"{MARK}{code:04X}"

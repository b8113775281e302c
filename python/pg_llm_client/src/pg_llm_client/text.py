"""JSON that PostgreSQL can store, without losing anything.

jsonb refuses NUL and lone surrogates. Each becomes MARK and four hexadecimal digits, and so does MARK itself, as `llm.clean_jsonb` has it.
"""

from __future__ import annotations

import json
import re
from typing import Any

#: SYMBOL FOR ESCAPE: printable, and all but unused in real text.
MARK = "\u241b"

_UNSTORABLE = re.compile(f"[\x00\ud800-\udfff{MARK}]")
_MARKED = re.compile(f"{MARK}([0-9A-F]{{4}})")

#: How the JSON of such a character begins. A backslash or a surrogate pair before it looks the same, and is found out by cleaning.
_SUSPECT = re.compile(r"\\u(0000|d[89a-f]|241b)")


def dumps(value: object) -> str:
    """Return the JSON of a value that jsonb takes."""
    document = json.dumps(value, separators=(",", ":"))
    if _SUSPECT.search(document):
        document = json.dumps(_changed(value, clean), separators=(",", ":"), ensure_ascii=False)
    return document


def loads(document: str) -> Any:
    """Return the value that `dumps` was given, from the text of the jsonb."""
    value = json.loads(document)
    return _changed(value, original) if MARK in document else value


def clean(text: str) -> str:
    """Return text with NUL, lone surrogates and MARK marked."""
    return _UNSTORABLE.sub(lambda match: f"{MARK}{ord(match[0]):04X}", text)


def is_clean(text: str) -> bool:
    """Return whether `clean` would change nothing."""
    return _UNSTORABLE.search(text) is None


def original(text: str) -> str:
    """Return what `clean` was given."""
    return _MARKED.sub(lambda match: chr(int(match[1], 16)), text) if MARK in text else text


def _changed(value: Any, change: Any) -> Any:
    match value:
        case str():
            return change(value)
        case dict():
            return {change(key) if isinstance(key, str) else key: _changed(item, change) for key, item in value.items()}
        case list() | tuple():
            return [_changed(item, change) for item in value]
    return value

"""Keys such as a.b[].c[0], which lead to values in a payload."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from . import spi

_STEP = re.compile(r'\.?(?:"(?P<quoted>[^"\\]*)"|(?P<raw>[^."\[\]\\]+))|\[(?P<index>\d{0,9})\]')

#: A name, an index, or None for each element.
type Step = str | int | None


def values_path(key: str | None) -> str:
    """Return the jsonpath of a key. Raises `spi.InvalidParameter`."""
    return path(steps(key, "the key"))


def steps(key: Any, place: str) -> list[Step]:
    """Return the steps of a key such as a.b[].c[0]: names, indexes, and None for each element."""
    found: list[Step] = []
    at = 0
    while isinstance(key, str) and (step := _STEP.match(key, at)) and (step.start() > 0) == step[0].startswith((".", "[")):
        name = step["quoted"] if step["quoted"] is not None else step["raw"]
        found.append(name if name is not None else int(step["index"]) if step["index"] else None)
        at = step.end()
    if not found or at < len(key):
        raise wrong(place, f"{json.dumps(key, ensure_ascii=False)[:100]} is no key", 'Keys are such as a, a.b, a[].b, a[0], "a.b".c.')
    return found


def path(along: Iterable[Step]) -> str:
    """Return a jsonpath that leads along steps wherever they exist: strict, because lax goes through arrays by itself."""
    written = "strict $"
    for step in along:
        match step:
            case None:
                written += ' ? (@.type() == "array")[*]'
            case int():
                written += f' ? (@.type() == "array" && exists(@[{step}]))[{step}]'
            case _:
                written += f" ? (exists(@.{json.dumps(step)})).{json.dumps(step)}"
    return written


def wrapped(along: list[Step], value: Any) -> Any:
    """Return a payload with nothing but a value where steps lead to."""
    for step in reversed(along):
        value = [value] if step is None else {step: value}
    return value


def wrong(place: str, problem: str, hint: str) -> spi.InvalidParameter:
    """Return the error about a place in a filter."""
    return spi.InvalidParameter(f"the filter is wrong at {place}: {problem}", hint=hint)

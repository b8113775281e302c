"""Values of channels on their way to the server and back: what is stored already is not sent again."""

from __future__ import annotations

import threading
from base64 import b64decode, b64encode
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

#: A value as large as this is part of its checkpoint, since a row of its own would be larger.
SMALL = 128

#: Heads of msgpack lists and mappings by first byte: their own length (msgpack specification, "Formats").
_HEADS = dict.fromkeys(range(0x80, 0xA0), 1) | {0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5}

#: What tells a value of a channel from others: thread, namespace, channel.
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Known:
    """A value that the server has: the pieces of a log up to a number, whose digest and content these are."""

    log: str
    number: int
    digest: str
    body: bytes


class Memory:
    """The values that were read or written last, up to a number of bytes in all."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._values: OrderedDict[Key, Known] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Known | None:
        """Return what is known of a channel."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: Key, value: Known) -> None:
        """Remember a value, and forget the oldest ones when that is too much."""
        with self._lock:
            self._forget(key)
            self._values[key] = value
            self._used += len(value.body)
            while self._used > self._size and self._values:
                self._forget(next(iter(self._values)))

    def forget(self, key: Key) -> None:
        """Forget what is known of a channel."""
        with self._lock:
            self._forget(key)

    def _forget(self, key: Key) -> None:
        value = self._values.pop(key, None)
        if value:
            self._used -= len(value.body)


class Parcel:
    """The changed values of a checkpoint, as `llm.put_checkpoint()` takes them."""

    def __init__(self) -> None:
        self.channels: dict[str, list[Any]] = {}
        self.contents: list[bytes] = []
        self._bodies: dict[str, bytes] = {}

    def add(self, channel: str, type_: str, data: bytes, known: Known | None) -> None:
        """Add a value: what goes beyond the known one, if that is how this one begins."""
        if len(data) <= SMALL:
            self.channels[channel] = [type_, _text(data)]
            return
        size = _HEADS.get(data[0], 0) if type_ == "msgpack" else 0
        head, body = data[:size], data[size:]
        keep = _common(known.body, body) if known else 0
        if keep < SMALL:
            known, keep = None, 0
        self._bodies[channel] = body
        self.contents.append(body[keep:])
        log = [known.log, known.number] if known else [None, None]
        self.channels[channel] = [type_, *log, _text(head), keep, len(self.contents), known.digest if known else None]

    def known(self, stored: dict[str, list[Any]]) -> dict[str, Known]:
        """Return what is known now, by what the server says it stored."""
        return {
            channel: Known(stored[channel][1], stored[channel][2], stored[channel][4], body) for channel, body in self._bodies.items()
        }


def unpacked(channels: dict[str, list[Any]], contents: list[bytes]) -> dict[str, tuple[str, bytes, Known | None]]:
    """Return the type, the bytes and what is known of each value, as the server returned them."""
    bodies = iter(contents)
    values: dict[str, tuple[str, bytes, Known | None]] = {}
    for channel, value in channels.items():
        if len(value) == 2:
            values[channel] = value[0], b64decode(value[1]), None
        else:
            body = next(bodies)
            values[channel] = value[0], b64decode(value[3]) + body, Known(value[1], value[2], value[4], body)
    return values


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _common(one: bytes, other: bytes) -> int:
    """Return how many bytes both begin with."""
    if other.startswith(one):
        return len(one)
    same, differs = 0, min(len(one), len(other)) + 1
    while differs - same > 1:
        middle = (same + differs) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            differs = middle
    return same

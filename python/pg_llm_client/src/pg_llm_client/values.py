"""Values of channels on their way to the server and back: what is stored already is not sent again."""

from __future__ import annotations

import pickle
import threading
from base64 import b64decode, b64encode
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ormsgpack

#: A value as large as this is part of its checkpoint, since a row of its own would be larger.
SMALL = 128

#: Heads of msgpack lists and mappings by first byte: their own length (msgpack specification, "Formats").
_HEADS = dict.fromkeys(range(0x80, 0xA0), 1) | {0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5}

#: Where LangChain's messages are defined: plain data, which a pickle copies as it is.
MESSAGES = "langchain_core.messages."

#: How LangGraph's serializer packs, but for what it has to be told how: that fails here.
_PLAIN = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_REPLACE_SURROGATES
)

#: A thread and a namespace of it.
Place = tuple[str, str]


@dataclass(frozen=True)
class Known:
    """A value that the server has: the pieces of a log up to a number, whose digest and content these are."""

    log: str
    number: int
    digest: str
    body: bytes
    copies: Copies
    looks: Looks

    @property
    def weight(self) -> int:
        """The bytes that it takes."""
        return len(self.body) + sum(map(len, self.copies.parts)) + len(self.looks.fields)


@dataclass(frozen=True)
class Looks:
    """What the first messages of a list, `size` bytes of its body, were when they were serialized: comparing is faster than serializing again.

    `fields` are packed as the serializer packs them, so that what is the same here is the same there.
    """

    types: tuple[type, ...] = ()
    fields: bytes = b""
    size: int = 0


@dataclass(frozen=True)
class Copies:
    """The first messages of a list, `count` in `size` bytes of its body, as pickles of what was loaded: copying is faster than loading."""

    parts: tuple[bytes, ...] = ()
    count: int = 0
    size: int = 0


class Memory:
    """The values that were read or written last, up to a number of bytes in all."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._values: OrderedDict[Place, dict[str, Known]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, place: Place) -> dict[str, Known]:
        """Return what is known of each channel of a thread."""
        with self._lock:
            return dict(self._values.get(place, {}))

    def put(self, place: Place, values: dict[str, Known]) -> None:
        """Remember values of a thread, and forget the threads that were used longest ago when that is too much."""
        with self._lock:
            before = self._values.pop(place, {})
            self._values[place] = before | values
            self._used += _weight(self._values[place]) - _weight(before)
            while self._used > self._size:
                self._used -= _weight(self._values.popitem(last=False)[1])


def _weight(values: dict[str, Known]) -> int:
    return sum(value.weight for value in values.values())


class Parcel:
    """The changed values of a checkpoint, as `llm.put_checkpoint()` takes them."""

    def __init__(self) -> None:
        self.channels: dict[str, list[Any]] = {}
        self.contents: list[bytes] = []
        self._bodies: dict[str, tuple[bytes, Copies, Looks]] = {}

    def add(self, channel: str, value: Any, known: Known | None, dumps: Callable[[Any], tuple[str, bytes]]) -> None:
        """Add a value: what goes beyond the known one, if that is how this one begins."""
        type_, head, body, looks = _encoded(value, known, dumps)
        if len(head) + len(body) <= SMALL:
            self.channels[channel] = [type_, _text(head + body)]
            return
        keep = _common(known.body, body) if known else 0
        if keep < SMALL:
            known, keep = None, 0
        self._bodies[channel] = body, known.copies if known and known.copies.size <= keep else Copies(), looks
        self.contents.append(body[keep:])
        log = [known.log, known.number] if known else [None, None]
        self.channels[channel] = [type_, *log, _text(head), keep, len(self.contents), known.digest if known else None]

    def known(self, stored: dict[str, list[Any]]) -> dict[str, Known]:
        """Return what is known now, by what the server says it stored."""
        return {channel: _known(stored[channel], *remembered) for channel, remembered in self._bodies.items()}


def loaded(stored: list[Any], content: bytes, number: int, before: Known | None, loads: Callable[[tuple[str, bytes]], Any]) -> tuple[Any, Known]:
    """Return a value that is in a log, and what is known of it now: `content` comes after the value that the log has up to `number`.

    Messages that were loaded before are copied.
    """
    if number:
        assert before
        assert before.number == number
        content = before.body + content
    return _decoded(stored, content, before, loads)


def _encoded(value: Any, known: Known | None, dumps: Callable[[Any], tuple[str, bytes]]) -> tuple[str, bytes, bytes, Looks]:
    """Return a value's type, head and body, and what its messages are. Messages that were serialized before are not serialized again."""
    # Looked at first: what another thread changes from now on is found out next time.
    types, fields = _look(value)
    before = known.looks if known else Looks()
    if known and before.types and types[: len(before.types)] == before.types and fields.startswith(before.fields):
        type_, rest = dumps(value[len(before.types) :])
        if size := _head_size(type_, rest):
            body = known.body[: before.size] + rest[size:]
            return type_, _head(len(types)), body, Looks(types, fields, len(body))
    type_, data = dumps(value)
    size = _head_size(type_, data)
    return type_, data[:size], data[size:], Looks(types, fields, len(data) - size) if size else Looks()


def _head_size(type_: str, data: bytes) -> int:
    return _HEADS.get(data[0], 0) if type_ == "msgpack" else 0


def _look(value: Any) -> tuple[tuple[type, ...], bytes]:
    """Return types and fields of a list of messages; nothing of any other value."""
    if type(value) is not list or not value or not all(type(element).__module__.startswith(MESSAGES) for element in value):
        return (), b""
    try:
        packed = ormsgpack.packb([(element.__dict__, element.__pydantic_extra__) for element in value], option=_PLAIN)
    except (ormsgpack.MsgpackEncodeError, AttributeError):
        return (), b""
    return tuple(map(type, value)), packed[_HEADS[packed[0]] :]


def _decoded(stored: list[Any], body: bytes, before: Known | None, loads: Callable[[tuple[str, bytes]], Any]) -> tuple[Any, Known]:
    type_, head = stored[0], b64decode(stored[3])
    count = _count(head) if type_ == "msgpack" else None
    if count is None:
        return loads((type_, head + body)), _known(stored, body, Copies(), Looks())
    copies = before.copies if before else Copies()
    if not before or count < copies.count or body[: copies.size] != before.body[: copies.size]:
        copies = Copies()
    looks = before.looks if before and body.startswith(before.body[: before.looks.size]) else Looks()
    value = [message for part in copies.parts for message in pickle.loads(part)]  # noqa: S301 - of this process, from its own memory
    rest = loads((type_, _head(count - copies.count) + body[copies.size :]))
    if rest and all(type(element).__module__.startswith(MESSAGES) for element in rest):
        copies = Copies((*copies.parts, pickle.dumps(rest)), count, len(body))
    return value + rest, _known(stored, body, copies, looks)


def _known(stored: list[Any], body: bytes, copies: Copies, looks: Looks) -> Known:
    return Known(stored[1], stored[2], stored[4], body, copies, looks)


def _count(head: bytes) -> int | None:
    """Return how many elements a msgpack list has by its head; None for what is no list."""
    if not head or not (0x90 <= head[0] < 0xA0 or head[0] in (0xDC, 0xDD)):
        return None
    return head[0] & 0x0F if len(head) == 1 else int.from_bytes(head[1:], "big")


def _head(count: int) -> bytes:
    """Return the head of a msgpack list."""
    return b"\xdc" + count.to_bytes(2, "big") if count < 2**16 else b"\xdd" + count.to_bytes(4, "big")


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

"""Caches in each backend that never answer with less than what has committed.

All backends map one small file. It has 65,536 words; a cached row belongs to the word that its key hashes to. A writer raises the
word to its transaction id before it changes the row. A reader that misses remembers the word, then reads the row, and keeps it
only if every transaction up to that word is over in its snapshot: from then on an equal word means an unchanged row. The proof,
and what it rests on, is in docs/coherence.md.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from . import spi

#: Relative to the data directory, which is every backend's working directory; base backups leave this folder out.
PATH = "pg_stat_tmp/pg_llm.coherence.1"

WORDS = 65_536

#: Counters, one slot a backend and namespace: whoever owns a slot writes it without a lock.
SLOTS = 4_096
_PID, _NAMESPACE, _NAMESPACE_REST, _HITS, _MISSES, _EVICTIONS, _ENTRIES, _BYTES = range(8)
_SLOT_WIDTH = 8

#: The postmaster's start in microseconds: which life of the server the words belong to.
_SERVER_START = WORDS
_FIRST_SLOT = WORDS + 8
_LENGTH = 8 * (_FIRST_SLOT + SLOTS * _SLOT_WIDTH)

#: What an entry costs beside its text: dictionary, tuples, strings' headers (sys.getsizeof, rounded up).
_ENTRY_OVERHEAD = 500

type Key = tuple[str, ...]

_FACTS = spi.plan(
    """
    select
        pg_is_in_recovery() as in_recovery,
        pg_snapshot_xmin(pg_current_snapshot())::text as horizon,
        (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint as server_start
    """
)

_NEWEST_TRANSACTION = spi.plan("select llm._newest_transaction() as transaction")

_SETTINGS = spi.plan(
    """
    select
        greatest(coalesce(nullif(current_setting('llm.coherence_max_entries', true), ''), '10000')::integer, 0) as max_entries,
        greatest(pg_size_bytes(coalesce(nullif(current_setting('llm.coherence_max_bytes', true), ''), '10 MB')), 0) as max_bytes,
        extract(epoch from coalesce(nullif(current_setting('llm.coherence_ttl', true), ''), '1 hour')::interval)::double precision as ttl,
        extract(epoch from coalesce(nullif(current_setting('llm.coherence_idle', true), ''), '30 min')::interval)::double precision as idle
    """
)

_BACKENDS = spi.plan("select pid from pg_stat_activity")

_DATABASE = spi.plan("select oid::text from pg_database where datname = current_database()")


class SharedFile:
    """The mapped file: words, the server's start, counters."""

    def __init__(self) -> None:
        self._file = os.open(PATH, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self._locked():
                if os.fstat(self._file).st_size < _LENGTH:
                    # A sparse file on a full disk would kill the server at the first write to it (SIGBUS).
                    os.posix_fallocate(self._file, 0, _LENGTH)
            self.cells = memoryview(mmap.mmap(self._file, _LENGTH)).cast("Q")
        except OSError:
            self.close()
            raise

    def is_deleted(self) -> bool:
        """Tell whether other backends may use another file by now."""
        return os.fstat(self._file).st_nlink == 0

    def close(self) -> None:
        """Let go of the file; the mapping goes with the last view of it."""
        os.close(self._file)

    def raise_word(self, word: int, transaction: int) -> None:
        """Raise a word to a transaction id. Words never fall."""
        cells = self.cells
        if cells[word] < transaction:
            # Not _locked(): every write pays for this, and a context manager costs more than the lock.
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                cells[word] = max(cells[word], transaction)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def raise_every_word(self, transaction: int) -> None:
        """Raise all words to a transaction id."""
        with self._locked():
            for word in range(WORDS):
                self.cells[word] = max(self.cells[word], transaction)

    def begin_life(self, server_start: int, newest_transaction: int) -> None:
        """Let the words begin at the present: a transaction prepared before this start, or on the old primary, raised none here."""
        self.raise_every_word(newest_transaction)
        self.cells[_SERVER_START] = server_start

    def claim_slot(self, namespace: str, pid: int) -> int:
        """Return the first cell of a counter slot for this backend: one of this namespace that a backend left, else a fresh one, else any left."""
        name = _namespace_cells(namespace)
        with self._locked():
            used = list(self.slots())
            left = [slot for slot, cells in used if not _is_alive(cells[_PID])]
            same = [slot for slot in left if (self.cells[slot + _NAMESPACE], self.cells[slot + _NAMESPACE_REST]) == name]
            fresh = [_FIRST_SLOT + len(used) * _SLOT_WIDTH] if len(used) < SLOTS else []
            slot = next(iter(same or fresh or left), _FIRST_SLOT + (SLOTS - 1) * _SLOT_WIDTH)
            if slot not in same:
                self.cells[slot + _NAMESPACE], self.cells[slot + _NAMESPACE_REST] = name
                self.cells[slot + _HITS] = self.cells[slot + _MISSES] = self.cells[slot + _EVICTIONS] = 0
            self.cells[slot + _ENTRIES] = self.cells[slot + _BYTES] = 0
            self.cells[slot + _PID] = pid
        return slot

    def slots(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each slot that was ever claimed: its first cell and its contents. They lie without gaps."""
        for slot in range(_FIRST_SLOT, _FIRST_SLOT + SLOTS * _SLOT_WIDTH, _SLOT_WIDTH):
            cells = self.cells[slot : slot + _SLOT_WIDTH].tolist()
            if not cells[_NAMESPACE]:
                break
            yield slot, cells

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


class Entry:
    """A cached value: the words that it depends on as they were before it was read, and when it ends."""

    __slots__ = ("expires", "size", "used", "value", "words")

    def __init__(self, value: Any, size: int, words: tuple[tuple[int, int], ...], now: float, ttl: float) -> None:
        self.value = value
        self.size = size
        self.words = words
        self.used = now
        self.expires = now + ttl


class Cache:
    """A bounded cache of one kind of row. Make one per module, give it a namespace of at most 16 ASCII characters, and:

    * `read(*key)` returns the value and its size in bytes, or None when nothing may be kept; a value of None is kept, and says that the
      table is to be asked;
    * `depends(*key)` names the rows that the value comes from, each as the key that the table's trigger raises.
    """

    def __init__(
        self,
        namespace: str,
        read: Callable[..., tuple[Any, int] | None],
        depends: Callable[..., tuple[Key, ...]] = lambda *key: (key,),
    ) -> None:
        self.namespace = namespace
        self._read = read
        self._depends = depends
        self._entries: OrderedDict[Key, Entry] = spi.session().setdefault(f"pg_llm {namespace} {__name__}", OrderedDict())
        self._shared: SharedFile | None = None
        self._cells = memoryview(b"")
        self._bytes = 0
        self._slot = self._hits = self._misses = 0
        self._max_entries = self._max_bytes = 0
        self._ttl = self._idle = 0.0

    def get(self, *key: str) -> Any:
        """Return the value of a key as this transaction may see it, cached or read; None when `read` gave none."""
        entry = self._entries.get(key)
        if entry is None:
            return self._fill(key)
        cells = self._cells
        for word, value in entry.words:
            if cells[word] != value:
                return self._fill(key)
        now = monotonic()
        if now >= entry.expires or now - entry.used >= self._idle:
            return self._fill(key)
        entry.used = now
        self._entries.move_to_end(key)
        cells[self._misses if entry.value is None else self._hits] += 1
        return entry.value

    def peek(self, *key: str) -> Entry | None:
        """Return the valid entry of a key without reading, counting or touching it."""
        entry = self._entries.get(key)
        return entry if entry is not None and self._is_valid(entry) else None

    def counter(self) -> tuple[memoryview, int]:
        """Return where hits are counted: the cells and the number of one."""
        return self._cells, self._hits

    def entries(self) -> list[tuple[Key, Entry, bool]]:
        """Return all entries, least recently used first, each with whether it is valid."""
        return [(key, entry, self._is_valid(entry)) for key, entry in self._entries.items()]

    def _is_valid(self, entry: Entry) -> bool:
        now = monotonic()
        return all(self._cells[word] == value for word, value in entry.words) and now < entry.expires and now - entry.used < self._idle

    def _fill(self, key: Key) -> Any:
        shared = self._attach()
        self._drop(key)
        self._cells[self._misses] += 1

        # The order is the protocol: the words, then the facts of the snapshot, then the row.
        words = tuple((word, shared.cells[word]) for word in (_word(self.namespace, name) for name in self._depends(*key)))
        facts = _FACTS.row()
        found = self._read(*key)
        if found is None:
            return None
        value, size = found
        if not facts["in_recovery"] and self._is_settled(shared, words, facts):
            self._keep(key, Entry(value, size + _ENTRY_OVERHEAD, words, monotonic(), self._ttl))
        return value

    def _is_settled(self, shared: SharedFile, words: tuple[tuple[int, int], ...], facts: dict[str, Any]) -> bool:
        if shared.cells[_SERVER_START] != facts["server_start"]:
            newest = _NEWEST_TRANSACTION.row()["transaction"]
            if newest is not None:
                shared.begin_life(facts["server_start"], newest)
            return False
        horizon = int(facts["horizon"])
        return all(value < horizon for _, value in words)

    def _keep(self, key: Key, entry: Entry) -> None:
        if entry.size > self._max_bytes:
            return
        self._entries[key] = entry
        self._bytes += entry.size
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self._cells[self._slot + _EVICTIONS] += 1
        self._count()

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size
            self._count()

    def _count(self) -> None:
        self._cells[self._slot + _ENTRIES] = len(self._entries)
        self._cells[self._slot + _BYTES] = self._bytes

    def _attach(self) -> SharedFile:
        shared = shared_file()
        if shared is not self._shared:
            self._entries.clear()
            self._bytes = 0
            self._shared, self._cells = shared, shared.cells
            self._slot = shared.claim_slot(self.namespace, os.getpid())
            self._hits, self._misses = self._slot + _HITS, self._slot + _MISSES
            settings = _SETTINGS.row()
            self._max_entries, self._max_bytes = settings["max_entries"], settings["max_bytes"]
            self._ttl, self._idle = settings["ttl"], settings["idle"]
        return shared


class Answer:
    """The only entry of a cache, for a question that every call asks: found without a look-up, and never moved."""

    def __init__(self, namespace: str, read: Callable[[], tuple[Any, int] | None]) -> None:
        self._cache = Cache(namespace, read)
        self._words: tuple[tuple[int, int], ...] = ()
        self._cells = memoryview(b"")
        self._hits = 0
        self._value: Any = None
        self._expires = 0.0

    def get(self) -> Any:
        """Return the answer as this transaction may see it, cached or read."""
        if monotonic() < self._expires:
            cells = self._cells
            for word, value in self._words:
                if cells[word] != value:
                    break
            else:
                cells[self._hits] += 1
                return self._value
        value = self._cache.get()
        entry = self._cache.peek()
        if entry is None:
            self._expires = 0.0
        else:
            self._words, self._value, self._expires = entry.words, entry.value, entry.expires
            self._cells, self._hits = self._cache.counter()
        return value


_attached: SharedFile | None = None


def shared_file() -> SharedFile:
    """Return this backend's mapping of the shared file, made anew when somebody deleted the file.

    Raises `spi.InputOutput` when the file cannot be made: a write that no other backend learns of must not commit.
    """
    global _attached
    if _attached is None or _attached.is_deleted():
        if _attached is not None:
            _attached.close()
        try:
            _attached = SharedFile()
        except OSError as error:
            _attached = None
            raise spi.InputOutput(
                f"the file {PATH} that keeps the caches coherent cannot be used: {error.strerror}",
                hint="The server needs to write that file in its data directory, 800 kB.",
            ) from error
    return _attached


def raise_word(namespace: str, key: list[str | None], transaction: int) -> bool:
    """Make every backend read a row anew that `transaction` is about to change; a part that is null fails its constraint later. Return True."""
    shared_file().raise_word(_word(namespace, tuple(part or "" for part in key)), transaction)
    return True


def raise_every_word(transaction: int) -> None:
    """Make every backend read everything anew."""
    shared_file().raise_every_word(transaction)


def statistics() -> list[tuple[str, int, int, int, int, int, int, float | None]]:
    """Return a row a namespace: name, backends, entries, bytes, hits, misses, evictions, hit ratio."""
    alive = {row["pid"] for row in _BACKENDS.rows()}
    totals: dict[str, list[int]] = {}
    for _, cells in shared_file().slots():
        total = totals.setdefault(_namespace_name(cells[_NAMESPACE], cells[_NAMESPACE_REST]), [0] * 6)
        is_live = cells[_PID] in alive
        held = (1, cells[_ENTRIES], cells[_BYTES]) if is_live else (0, 0, 0)
        for column, value in enumerate((*held, cells[_HITS], cells[_MISSES], cells[_EVICTIONS])):
            total[column] += value
    return [
        (name, *total, total[3] / (total[3] + total[4]) if total[3] + total[4] else None)  # type: ignore[misc]
        for name, total in sorted(totals.items())
    ]


def _word(namespace: str, key: Key) -> int:
    # crc32, because Python's own hash differs from process to process.
    start = _starts.get(namespace)
    if start is None:
        start = _starts[namespace] = zlib.crc32(f"{_DATABASE.row()['oid']}\x1f{namespace}\x1f".encode())
    return zlib.crc32("\x1f".join(key).encode(), start) % WORDS


#: The checksum of database and namespace, from which that of a key goes on.
_starts: dict[str, int] = {}


def _is_alive(pid: int) -> bool:
    if pid == 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # gone; or another user's, who got its number
        return False
    return True


def _namespace_cells(namespace: str) -> tuple[int, int]:
    name = namespace.encode("ascii").ljust(16, b"\0")
    return int.from_bytes(name[:8], "little"), int.from_bytes(name[8:16], "little")


def _namespace_name(first: int, rest: int) -> str:
    return (first.to_bytes(8, "little") + rest.to_bytes(8, "little")).rstrip(b"\0").decode("ascii")

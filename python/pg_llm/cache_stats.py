"""What is counted of the cache, for all backends: reads, evictions, and how much was written since somebody looked at a namespace's size.

All backends map one small file, as coherence.py does. A namespace has a line of eight cells: a hash of database, tenant and namespace says which.
Reads are counted without a lock, so that a few can get lost when two backends count at one moment: they are statistics.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from hashlib import blake2b

from . import spi

#: Relative to the data directory, which is every backend's working directory.
PATH = "pg_stat_tmp/pg_llm.cache.1"

LINES = 16_384
_NAME, _HITS, _MISSES, _EVICTIONS, _ENTRIES, _BYTES, _ROOM_ENTRIES, _ROOM_BYTES = range(8)
_WIDTH = 8
_LENGTH = 8 * LINES * _WIDTH

#: How far from the line that its hash names a namespace may be; where all are taken, the last is shared.
_PROBES = 64

_DATABASE = spi.plan("select oid::text from pg_database where datname = current_database()")


class Board:
    """The mapped file."""

    def __init__(self) -> None:
        self._file = os.open(PATH, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(self._file).st_size < _LENGTH:
                # A sparse file on a full disk would kill the server at the first write to it (SIGBUS).
                os.posix_fallocate(self._file, 0, _LENGTH)
            self.cells = memoryview(mmap.mmap(self._file, _LENGTH)).cast("Q")
        except OSError:
            os.close(self._file)
            raise
        self._lines: dict[tuple[str, str], int] = {}

    def is_deleted(self) -> bool:
        """Tell whether other backends may use another file by now."""
        return os.fstat(self._file).st_nlink == 0

    def close(self) -> None:
        """Let go of the file; the mapping goes with the last view of it."""
        os.close(self._file)

    def lock(self) -> None:
        """Wait until no other backend has the lock."""
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def unlock(self) -> None:
        """Give the lock back."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def line(self, tenant: str, namespace: str) -> int:
        """Return the first cell of a namespace's line."""
        line = self._lines.get((tenant, namespace))
        if line is None:
            if len(self._lines) >= LINES:
                self._lines.clear()
            line = self._lines[tenant, namespace] = self._claim(_name(tenant, namespace))
        return line

    def _claim(self, name: int) -> int:
        self.lock()
        try:
            for probe in range(_PROBES):
                line = (name + probe) % LINES * _WIDTH
                if self.cells[line] in (0, name):
                    self.cells[line] = name
                    break
        finally:
            self.unlock()
        return line


_attached: Board | None = None


def _board() -> Board:
    global _attached
    if _attached is None or _attached.is_deleted():
        if _attached is not None:
            _attached.close()
        try:
            _attached = Board()
        except OSError as error:
            _attached = None
            raise spi.InputOutput(
                f"the file {PATH} cannot count what the cache does: {error.strerror}",
                hint="The server needs to write that file in its data directory, 1 MB.",
            ) from error
    return _attached


def note_reads(tenant: str | None, namespace: str | None, hits: int, misses: int) -> None:
    """Count reads of a namespace."""
    if tenant is not None and namespace is not None:
        board = _board()
        line = board.line(tenant, namespace)
        board.cells[line + _HITS] += hits
        board.cells[line + _MISSES] += misses


def note_writes(tenant: str, namespace: str, entries: int, size: int) -> bool:
    """Count what was written to a namespace; return whether there was room for less since somebody looked, to one caller."""
    board = _board()
    line = board.line(tenant, namespace)
    cells = board.cells
    board.lock()
    try:
        cells[line + _ENTRIES] += entries
        cells[line + _BYTES] += size
        is_due = cells[line + _ENTRIES] > cells[line + _ROOM_ENTRIES] or cells[line + _BYTES] > cells[line + _ROOM_BYTES]
        if is_due:
            cells[line + _ENTRIES] = cells[line + _BYTES] = 0
    finally:
        board.unlock()
    return is_due


def note_evictions(tenant: str, namespace: str, evictions: int, room_entries: int | None, room_bytes: int | None) -> None:
    """Count evictions, and say how much may be written before somebody looks again; None: any number."""
    board = _board()
    line = board.line(tenant, namespace)
    board.lock()
    try:
        board.cells[line + _EVICTIONS] += evictions
        board.cells[line + _ROOM_ENTRIES] = 2**63 if room_entries is None else room_entries
        board.cells[line + _ROOM_BYTES] = 2**63 if room_bytes is None else room_bytes
    finally:
        board.unlock()


def counts(tenant: str, namespace: str) -> tuple[int, int, int]:
    """Return hits, misses and evictions of a namespace."""
    board = _board()
    hits, misses, evictions = board.cells[(line := board.line(tenant, namespace)) + _HITS : line + _EVICTIONS + 1].tolist()
    return hits, misses, evictions


def _name(tenant: str, namespace: str) -> int:
    text = f"{_DATABASE.row()['oid']}\x1f{tenant}\x1f{namespace}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") or 1

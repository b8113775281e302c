"""Token buckets in shared memory, which no transaction undoes and no transaction locks.

All backends map one file of 16,384 sets of eight slots. A subject hashes to a set, and has one of its slots while any of its tokens are gone: a full
bucket is the same as none, so that slots need no cleaning. Whoever looks for a slot holds a lock on the set (a byte of the file), for microseconds.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from hashlib import sha256
from time import monotonic

from . import spi

#: As the file of coherence.py: relative to the data directory, not in base backups.
PATH = "pg_stat_tmp/pg_llm.rate_limits.1"

SETS = 16_384
WAYS = 8

#: After so many seconds a backend looks whether somebody has deleted the file.
LOOK_AGAIN = 1.0

#: A slot: the subject's hash in two integers, and of its bucket how long it takes to fill, what is gone of it, as of when, and when it will be full.
_SLOT = "QQdddd"
_WIDTH = len(_SLOT)
_SET = struct.Struct("=" + _SLOT * WAYS)
_ONE = struct.Struct("=" + _SLOT)
_NOTHING = (0, 0, 0.0, 0.0, 0.0, 0.0)
_LENGTH = SETS * _SET.size

_SUBJECT = struct.Struct("=QQ")


class Slots:
    """The mapped file."""

    def __init__(self) -> None:
        self.database = _DATABASE.row()["oid"]
        self.file = os.open(PATH, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(self.file).st_size < _LENGTH:
                # Zeros are free slots, whoever else is writing them.
                os.posix_fallocate(self.file, 0, _LENGTH)
            self.memory = mmap.mmap(self.file, _LENGTH)
        except OSError:
            os.close(self.file)
            raise

    def is_deleted(self) -> bool:
        """Tell whether other backends may use another file by now."""
        return os.fstat(self.file).st_nlink == 0


_DATABASE = spi.plan("select oid::bigint from pg_database where datname = current_database()")

_mapped: Slots | None = None
_looked_at = 0.0


def _slots() -> Slots:
    global _mapped, _looked_at
    if _mapped is not None and monotonic() - _looked_at < LOOK_AGAIN:
        return _mapped
    _looked_at = monotonic()
    if _mapped is None or _mapped.is_deleted():
        try:
            new = Slots()
        except OSError as error:
            raise spi.InputOutput(
                f"rate limits cannot be counted in {PATH}: {error.strerror}",
                hint="The server needs to write that file in its data directory, 6 MB. p_transactional => true keeps limits in a table.",
            ) from error
        if _mapped is not None:
            os.close(_mapped.file)
        _mapped = new
    return _mapped


def answer(tenant: str, resource: str, identifier: str, limit: int, window: float, cost: int) -> tuple[bool, int, str | None, str | None]:
    """Return what `llm.rate_limit()` answers: allowed, remaining, retry_after, reset_after; `window` in seconds, a cost of 0 only asks."""
    subject = sha256(f"{tenant}\x1f{resource}\x1f{identifier}".encode()).digest()[:16]
    asked = max(cost, 1)
    used = take(subject, limit, window, asked, cost > 0, None)
    if used >= 0:
        return True, int(limit - used), "0 s", f"{used * window / limit:f} s"
    used = -1 - used
    # A microsecond more, because it is rounded.
    retry_after = f"{(used + asked - limit) * window / limit + 1e-6:f} s" if asked <= limit else None
    return False, max(int(limit - used), 0), retry_after, f"{used * window / limit:f} s" if limit else None if used else "0 s"


def take(subject: bytes, limit: float, window: float, cost: float, is_taken: bool, now: float | None) -> float:
    """Take tokens from a bucket, if there are enough.

    Return how many are gone then, or, when there are not enough, -1 minus how many are gone. `window`: seconds in which an empty bucket fills;
    `is_taken`: false only asks; `now`: None for the clock, which is not that of the day: it never goes back while the machine is up.
    """
    slots = _slots()
    first, second = _SUBJECT.unpack(subject)
    first ^= slots.database
    number = first % SETS
    fcntl.lockf(slots.file, fcntl.LOCK_EX, 1, number)
    try:
        if now is None:
            now = monotonic()
        cells = _SET.unpack_from(slots.memory, number * _SET.size)
        slot, used = _find(cells, first, second, window), 0.0
        if slot >= 0:
            _, _, _, used, used_at, full_at = cells[slot : slot + _WIDTH]
            # What seems to be of the future is from before the machine was started.
            used = max(used - (now - used_at) * limit / window, 0.0) if used_at <= now < full_at else 0.0
        if used + cost > limit:
            return -1 - used
        if is_taken:
            used += cost
            if slot < 0:
                slot = _first_to_be_full(cells, now)
            _ONE.pack_into(slots.memory, number * _SET.size + 8 * slot, first, second, window, used, now, now + used * window / limit)
        return used
    finally:
        fcntl.lockf(slots.file, fcntl.LOCK_UN, 1, number)


def fill(subject: bytes) -> int:
    """Fill all buckets of a subject, and return how many were not full, as far as that is known."""
    slots = _slots()
    first, second = _SUBJECT.unpack(subject)
    first ^= slots.database
    number = first % SETS
    filled = 0
    fcntl.lockf(slots.file, fcntl.LOCK_EX, 1, number)
    try:
        cells = _SET.unpack_from(slots.memory, number * _SET.size)
        for slot in range(0, len(cells), _WIDTH):
            if cells[slot] == first and cells[slot + 1] == second:
                _ONE.pack_into(slots.memory, number * _SET.size + 8 * slot, *_NOTHING)
                filled += 1
    finally:
        fcntl.lockf(slots.file, fcntl.LOCK_UN, 1, number)
    return filled


def _find(cells: tuple[float, ...], first: int, second: int, window: float) -> int:
    if first in cells[::_WIDTH]:
        for slot in range(0, len(cells), _WIDTH):
            if cells[slot] == first and cells[slot + 1] == second and cells[slot + 2] == window:
                return slot
    return -1


def _first_to_be_full(cells: tuple[float, ...], now: float) -> int:
    """Return the slot that is free, or will be first: when all are in use, that subject begins anew."""
    return min(range(0, len(cells), _WIDTH), key=lambda slot: cells[slot + 5] if cells[slot + 4] <= now else 0.0)

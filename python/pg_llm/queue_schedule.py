"""When a cron expression is due, by the clock of a time zone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from . import spi

#: 29 February comes after eight years at the latest (1896 to 1904, 2096 to 2104), on a given day of the week within forty.
YEARS = 41

_NAMES = {
    "month": {name: number for number, name in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1)},
    "day of week": {name: number for number, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])},
}
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7))
_SHORT = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0", "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
_PART = re.compile(r"(?:(\*)|([a-z]{3}|\d{1,2})(?:-([a-z]{3}|\d{1,2}))?)(?:/(\d{1,2}))?\Z", re.ASCII)


class Cron(NamedTuple):
    """A cron expression, taken apart."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    is_any_day: bool
    """Both kinds of days are given: either will do."""
    is_hourly: bool
    """It follows the hours as they pass, not those of the clock."""

    def has(self, day: date) -> bool:
        """Tell whether it is due on a day."""
        if day.month not in self.months:
            return False
        by_date, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_date or by_week if self.is_any_day else by_date and by_week


def next_cron(cron: str, after: str, time_zone: str) -> str | None:
    """Return the first moment after another at which an expression is due, or None; moments as the server writes them, in UTC."""
    try:
        moment = datetime.fromisoformat(after).astimezone(UTC)
    except ValueError:
        raise spi.InvalidParameter(f"no calendar says what is due after {after}", hint="Give a moment of the years 1 to 9999.") from None
    try:
        found = next_due(_parsed(cron), moment, _zone(time_zone))
    except OverflowError:
        return None
    return found.isoformat() if found else None


def next_due(cron: Cron, after: datetime, zone: ZoneInfo) -> datetime | None:
    """Return the first moment after another at which an expression is due."""
    # From the day before: what was due in a gap of the clock at its end may have been due yesterday.
    first = after.astimezone(zone).date() - timedelta(days=1)
    for number in range(YEARS * 366):
        day = first + timedelta(days=number)
        if cron.has(day) and (due := min((moment for moment in _moments(cron, day, zone) if moment > after), default=None)):
            return due
    return None


def _moments(cron: Cron, day: date, zone: ZoneInfo) -> Iterator[datetime]:
    """Yield, in UTC, when an expression is due on a day."""
    for hour in sorted(cron.hours):
        for minute in sorted(cron.minutes):
            local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
            earlier, later = (local.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
            if earlier.astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None):
                # The clock skips this time.
                if not cron.is_hourly:
                    yield _end_of_gap(later, earlier, zone)
            else:
                yield earlier
                if cron.is_hourly:
                    yield later


def _end_of_gap(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """Return the first moment, between two, at which the clock is as after the change."""
    offset = after.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) / 2
        if middle.astimezone(zone).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after.replace(microsecond=0)


@lru_cache(maxsize=100)
def _parsed(cron: str) -> Cron:
    fields = _SHORT.get(cron.strip().lower(), cron).lower().split()
    if len(fields) != len(_FIELDS):
        raise _wrong(cron, f"it has {len(fields)} fields")
    minutes, hours, days, months, weekdays = (_values(cron, field, *bounds) for field, bounds in zip(fields, _FIELDS, strict=True))
    return Cron(
        minutes, hours, days, months, frozenset(day % 7 for day in weekdays),
        is_any_day=not fields[2].startswith("*") and not fields[4].startswith("*"),
        is_hourly=fields[1].startswith("*"),
    )  # fmt: skip


def _values(cron: str, field: str, name: str, lowest: int, highest: int) -> frozenset[int]:
    found: set[int] = set()
    for part in field.split(","):
        match = _PART.match(part)
        if not match:
            raise _wrong(cron, f"{part!r} is no {name}")
        star, first, last, step = match.groups()
        numbers = [_number(cron, word, name) for word in (first, last) if word]
        begin = numbers[0] if numbers else lowest
        end = numbers[-1] if not star and (len(numbers) == 2 or not step) else highest - (name == "day of week" and not numbers)
        if not lowest <= begin <= end <= highest or step == "0":
            raise _wrong(cron, f"{part!r} is no {name}")
        found.update(range(begin, end + 1, int(step or 1)))
    return frozenset(found)


def _number(cron: str, word: str, name: str) -> int:
    if word.isdigit():
        return int(word)
    if word not in _NAMES.get(name, ()):
        raise _wrong(cron, f"{word!r} is no {name}")
    return _NAMES[name][word]


def _wrong(cron: str, why: str) -> spi.InvalidParameter:
    return spi.InvalidParameter(
        f"{cron[:200]!r} is no cron expression: {why}",
        hint="Give minute, hour, day of month, month and day of week, such as 30 7 * * mon-fri, or @hourly, @daily, @weekly, @monthly, @yearly.",
    )


@lru_cache(maxsize=100)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise spi.InvalidParameter(f"time zone {name[:100]!r} is unknown", hint="Give a name of pg_timezone_names, such as Europe/Oslo.") from None

"""Cron expressions, time zones and their changes of the clock, and jobs that come again."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from psycopg.errors import InvalidParameterValue, ObjectNotInPrerequisiteState

from tests.support import Client, Database, at_once, in_tenant, raises

#: Expression, zone, after when, and when it is due; all in UTC.
DUE = (
    ("* * * * *", "UTC", "2026-01-01 00:00:00", "2026-01-01 00:01:00"),
    ("* * * * *", "UTC", "2026-01-01 00:00:59.9", "2026-01-01 00:01:00"),
    ("*/15 * * * *", "UTC", "2026-01-01 00:16:00", "2026-01-01 00:30:00"),
    ("5/20 * * * *", "UTC", "2026-01-01 00:26:00", "2026-01-01 00:45:00"),
    ("30 7 * * mon-fri", "UTC", "2026-01-02 08:00:00", "2026-01-05 07:30:00"),
    ("0 0 1,15 * *", "UTC", "2026-01-01 00:00:00", "2026-01-15 00:00:00"),
    ("0 0 13 * fri", "UTC", "2026-01-01 00:00:00", "2026-01-02 00:00:00"),
    ("0 0 */2 * fri", "UTC", "2026-01-01 00:00:00", "2026-01-09 00:00:00"),
    ("0 0 29 feb *", "UTC", "2026-01-01 00:00:00", "2028-02-29 00:00:00"),
    ("0 12 29 2 *", "UTC", "2097-01-01 00:00:00", "2104-02-29 12:00:00"),
    ("@monthly", "Europe/Oslo", "2026-06-15 00:00:00", "2026-06-30 22:00:00"),
    ("0 0 * * 7", "UTC", "2026-01-01 00:00:00", "2026-01-04 00:00:00"),
    # The clock goes from 2 to 3 in the night of 29 March, and from 3 to 2 in that of 25 October.
    ("30 2 * * *", "Europe/Oslo", "2026-03-28 12:00:00", "2026-03-29 01:00:00"),
    ("30 2 * * *", "Europe/Oslo", "2026-03-29 01:00:00", "2026-03-30 00:30:00"),
    ("0,30 2 * * *", "Europe/Oslo", "2026-03-29 01:00:00", "2026-03-30 00:00:00"),
    ("30 * * * *", "Europe/Oslo", "2026-03-29 00:30:00", "2026-03-29 01:30:00"),
    ("30 2 * * *", "Europe/Oslo", "2026-10-24 12:00:00", "2026-10-25 00:30:00"),
    ("30 2 * * *", "Europe/Oslo", "2026-10-25 00:30:00", "2026-10-26 01:30:00"),
    ("30 * * * *", "Europe/Oslo", "2026-10-25 00:30:00", "2026-10-25 01:30:00"),
    ("0 0 * * *", "America/Sao_Paulo", "2018-11-03 12:00:00", "2018-11-04 03:00:00"),
    ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 00:00:00", "2026-10-03 15:30:00"),
    ("0 12 30 12 *", "Pacific/Apia", "2011-01-01 00:00:00", "2011-12-30 10:00:00"),
    ("0 9 * * *", "Asia/Kathmandu", "2026-01-01 00:00:00", "2026-01-01 03:15:00"),
)


def test_an_expression_is_due_when_the_clock_of_its_zone_says_so(db: Client) -> None:
    for cron, zone, after, due in DUE:
        found = db.one("select llm.next_cron(%s, %s::timestamp at time zone 'UTC', %s) at time zone 'UTC'", cron, after, zone)
        assert found == datetime.fromisoformat(due), (cron, zone, after)
    db.run("set timezone = 'Asia/Tokyo'").run("set datestyle = 'German'")
    assert db.one("select llm.next_cron('@daily', '2026-01-01T12:00:00Z', 'UTC') = '2026-01-02T00:00:00Z'")
    assert db.one("select llm.next_cron('0 0 30 2 *', now())") is None


HOURS = {"*": range(24), "2": [2], "0,2,23": [0, 2, 23], "1-3": [1, 2, 3], "*/6": [0, 6, 12, 18]}
MINUTES = {"0": [0], "30": [30], "*/20": [0, 20, 40], "5,59": [5, 59]}


def test_nothing_is_due_in_between(db: Client) -> None:
    """Against a walk minute by minute, near the changes of three clocks: due then, or when the gap ends; once where an hour comes twice."""
    chance = random.Random(7)
    for _ in range(60):
        hours, minutes = chance.choice(list(HOURS)), chance.choice(list(MINUTES))
        name, change = chance.choice(
            [("Europe/Oslo", "2026-03-29"), ("Europe/Oslo", "2026-10-25"), ("America/New_York", "2026-03-08"), ("Australia/Lord_Howe", "2026-04-04")]
        )
        zone = ZoneInfo(name)
        after = datetime.fromisoformat(change).replace(tzinfo=UTC) + timedelta(minutes=chance.randrange(-600, 1440))
        due = db.one("select llm.next_cron(%s, %s, %s)", f"{minutes} {hours} * * *", after, name)
        assert due > after
        minute, offset = after + timedelta(minutes=1), (after + timedelta(minutes=1)).astimezone(zone).utcoffset()
        while minute <= due:
            local = minute.astimezone(zone)
            fits = local.hour in HOURS[hours] and local.minute in MINUTES[minutes] and (not local.fold or hours.startswith("*"))
            ends_gap = not hours.startswith("*") and offset is not None and local.utcoffset() != offset
            assert fits == (minute == due) or ends_gap, (minutes, hours, name, after, due, minute)
            minute, offset = minute + timedelta(minutes=1), local.utcoffset()


def test_what_is_no_expression_is_refused(db: Client) -> None:
    for wrong in ("", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "*/0 * * * *", "5-1 * * * *", "a * * * *",
                  "* * * mon *", "* * * * foo", "-1 * * * *", "1,, * * * *", "@never", "* * * * * *", "٣ * * * *"):  # fmt: skip
        with raises(InvalidParameterValue, match="is no cron expression", hint="minute, hour, day of month"):
            db.run("select llm.next_cron(%s, now())", wrong)
    for zone in ("Nowhere/City", "../etc/passwd", "", "/etc/passwd", "\N{WAVE DASH}"):
        with raises(InvalidParameterValue, match="time zone .* is unknown", hint="pg_timezone_names"):
            db.run("select llm.next_cron('* * * * *', now(), %s)", zone)
    for moment in ("infinity", "-infinity", "0044-03-15 BC"):
        with raises(InvalidParameterValue, match="no calendar says what is due after", hint="1 to 9999"):
            db.run("select llm.next_cron('* * * * *', %s)", moment)
    assert db.one("select llm.next_cron('* * * * *', '9999-12-31 23:59:30Z')") is None


def due(db: Client, **columns: Any) -> None:
    """Let schedules be due some time ago."""
    db.run("update llm.job_schedules set next_at = now() - %s::interval", columns.get("since", "1 minute"))


def test_a_schedule_is_fired_once_whatever_number_of_schedulers(bound: Client, db: Client, database: Database) -> None:
    first = bound.one("select llm.schedule_job('nightly', 'q', '0 3 * * *', '{\"report\": 1}', 'Europe/Oslo', 7, 'g', 2)")
    assert first == bound.one("select llm.next_cron('0 3 * * *', clock_timestamp(), 'Europe/Oslo')")
    assert bound.one("select llm.fire_schedules()") == 0
    clients = database.clients(12, "app")
    for turn in range(1, 6):
        due(db, since=f"{turn} days")
        assert sorted(at_once(clients, "select llm.fire_schedules()")) == [0] * 11 + [1]
    rows = bound.rows("select payload, priority, group_key from llm.list_jobs('q')")
    assert rows == [({"report": 1}, 7, "g")] * 5, "once each, however many days nobody called"
    assert bound.row("select next_at = %s, last_job = (select max(id) from llm.jobs) from llm.job_schedules", first) == (True, True)
    due(db)
    db.run("call llm.tend_queues()")
    assert bound.one("select count(*) from llm.jobs") == 6


def test_a_rolled_back_firing_is_none(bound: Client, db: Client) -> None:
    bound.run("select llm.schedule_job('s', 'q', '@daily')")
    due(db)
    bound.run("begin")
    assert bound.one("select llm.fire_schedules()") == 1
    bound.run("rollback")
    assert bound.one("select llm.fire_schedules()") == 1


def test_a_schedule_is_changed_and_ended(bound: Client, db: Client) -> None:
    bound.run("select llm.schedule_job('s', 'q', '@daily')")
    due(db)
    before = bound.one("select next_at from llm.job_schedules")
    assert bound.one("select llm.schedule_job('s', 'q2', '@daily', '{\"a\": 1}')") == before, "what is due stays due"
    assert bound.one("select llm.schedule_job('s', 'q2', '@hourly')") > before
    assert bound.row("select queue, payload from llm.job_schedules") == ("q2", {})
    assert bound.one("select llm.unschedule_job('s')") is True
    assert bound.one("select llm.unschedule_job('s')") is False


def test_a_schedule_that_fails_says_why_and_spoils_no_other(bound: Client, db: Client) -> None:
    bound.run("select llm.schedule_job('a', 'q', '@daily')").run("select llm.schedule_job('b', 'q', '@daily')")
    due(db)
    db.run("update llm.job_schedules set time_zone = 'Gone/Zone' where name = 'a'")
    assert bound.one("select llm.fire_schedules()") == 1
    rows = bound.rows("select name, last_error, next_at is null from llm.job_schedules order by name")
    assert re.search("time zone 'Gone/Zone' is unknown", rows[0][1])
    assert [row[2] for row in rows] == [True, False]
    assert bound.column("select subject from llm.queue_alerts() where alert = 'schedule'") == ["a"]


def test_schedules_are_a_tenants(bound: Client, db: Client, database: Database) -> None:
    """RLS-04"""
    bound.run("select llm.schedule_job('s', 'q', '@daily')")
    due(db)
    other = in_tenant(database.client("admin"), "other")
    assert other.one("select llm.fire_schedules()") == 0
    assert other.one("select llm.unschedule_job('s')") is False
    assert other.rows("select * from llm.job_schedules") == []


def test_misuse_is_told(bound: Client, admin: Client) -> None:
    for wrong in ("'', 'q', '@daily'", "null, 'q', '@daily'", "'s', 'q', '0 0 30 2 *'", "'s', 'q', '@daily', null",
                  "'s', 'q', '@daily', p_group => ''", "'s', 'q', null"):  # fmt: skip
        with raises(InvalidParameterValue, match="schedule .* cannot be like this: cron .* in time zone", hint="a day that comes"):
            bound.run(f"select llm.schedule_job({wrong})")
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        admin.run("select llm.fire_schedules()")

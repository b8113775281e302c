"""How much of streams is kept."""

from __future__ import annotations

import pytest
from psycopg.errors import InvalidParameterValue, ObjectNotInPrerequisiteState

from tests.support import Client, Database, raises
from tests.test_stream import ANNE, append, read

TRIM = "call llm.trim_streams()"


def age(db: Client, interval: str, stream: str = "s", payloads: str = "0,1,2,3,4,5,6,7,8,9") -> None:
    """Let entries be older."""
    db.run("update llm.stream_entries set at = at - %s::interval where stream = %s and payload::text = any (string_to_array(%s, ','))",
           interval, stream, payloads)  # fmt: skip


def test_a_stream_is_cut_to_its_newest_entries(bound: Client) -> None:
    positions = append(bound, *range(10))
    assert bound.one("select llm.stream_trim('s', 4)") == 6
    assert read(bound) == [6, 7, 8, 9]
    assert read(bound, positions[2]) == [6, 7, 8, 9]
    assert bound.one("select llm.stream_trim('s', 100)") == 0
    assert bound.one("select llm.stream_length('s')") == 4
    append(bound, 10)
    assert bound.row("select length, first_position, last_position, max_length, max_age, waiting from llm.stream_info('s')") == (
        5, positions[6], bound.one("select llm.stream_end('s')"), None, None, 0,
    )  # fmt: skip
    assert bound.one("select llm.stream_trim('s', 0)") == 5
    assert read(bound) == []
    append(bound, 11)
    assert read(bound) == [11]


def test_entries_of_transactions_at_work_are_not_cut_off(database: Database, bound: Client) -> None:
    slow = database.client("app").run("begin")
    append(slow, "slow")
    append(bound, 1, 2)
    assert bound.one("select llm.stream_trim('s', 0)") == 0
    slow.run("commit")
    assert read(bound) == ["slow", 1, 2]


def test_a_policy_is_carried_out_by_the_upkeep(db: Client, bound: Client) -> None:
    bound.run("select llm.set_stream_policy('s', 3)")
    append(bound, *range(5))
    append(bound, *range(5), stream="other")
    assert read(bound) == [0, 1, 2, 3, 4]
    db.run(TRIM)
    assert read(bound) == [2, 3, 4]
    assert read(bound, stream="other") == [0, 1, 2, 3, 4]
    assert bound.row("select max_length, max_age from llm.stream_info('s')") == (3, None)
    bound.run("select llm.set_stream_policy('s')")
    append(bound, 5, 6)
    db.run(TRIM)
    assert read(bound) == [2, 3, 4, 5, 6]


def test_metrics_are_kept_to_ten_thousand_entries_and_a_day(db: Client, bound: Client) -> None:
    bound.run("select llm.metric_record_all(array_fill('m'::text, '{10005}'), array(select i::float8 from generate_series(1, 10005) i))")
    bound.run("select llm.metric_record('n', 7), llm.metric_record('n', 8)")
    with db.tenant("globex"):
        db.run("select llm.metric_record('other', 9)")
    db.run("update llm.stream_entries set at = at - interval '25 hours' where stream = 'metrics:n' and value = 8")
    db.run(TRIM)
    assert bound.row("select count, min, max, is_whole from llm.metric_window('m')") == (10_000, 6, 10_005, False)
    assert bound.row("select length, max_length, max_age::text from llm.stream_info('metrics:m')") == (10_000, 10_000, "24:00:00")
    assert bound.column("select value from llm.stream_read('metrics:n')") == [7]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Australia/Lord_Howe"])
def test_a_day_is_24_hours_in_every_time_zone(db: Client, bound: Client, zone: str) -> None:
    """Q-13: retention, and which partition an entry is in, on days that have 23 or 25 hours there."""
    bound.run("select set_config('timezone', %s, false)", zone).run("select llm.set_stream_policy('s', null, '2 days')")
    db.run("select set_config('timezone', %s, false)", zone)
    assert bound.one("select max_age::text from llm.stream_info('s')") == "48:00:00"
    assert db.one("select now() - (llm._stream_window('acme', 's', null)).since = interval '48 hours'")
    append(bound, 1)
    assert db.one("select (tableoid::regclass::text ~ to_char(at at time zone 'UTC', 'YYYYMMDD')) from llm.stream_entries")
    bounds = "select llm._partition_slot('1 day', at::timestamptz) from unnest(%s::text[]) at"
    for days in (["2026-03-08 06:59Z", "2026-11-01 05:30Z"], ["2026-04-04 15:15Z", "2026-10-03 15:45Z"], ["2026-03-29 00:59Z", "2026-10-25 00:59Z"]):
        assert [at.timestamp() % 86400 for at in db.column(bounds, days)] == [0, 0]


def test_what_is_too_old_is_not_read(db: Client, bound: Client) -> None:
    positions = append(bound, 1, 2, 3)
    bound.run("select llm.set_stream_policy('s', p_max_age => '1 hour')")
    age(db, "2 hours", payloads="1,3")
    assert read(bound) == [2]
    assert read(bound, positions[1]) == []
    assert bound.one("select llm.stream_length('s')") == 1


def test_a_partition_with_nothing_to_read_is_emptied(db: Client, bound: Client) -> None:
    append(bound, 1, 2, 3)
    append(bound, 1, stream="kept")
    age(db, "1 day")
    age(db, "1 day", stream="kept")
    yesterday = db.one("select distinct tableoid::regclass::text from llm.stream_entries")
    assert db.one(TRIM) == 0
    bound.run("select llm.stream_trim('s', 1)")
    assert db.one(TRIM) == 0
    bound.run("select llm.stream_trim('s', 0), llm.set_stream_policy('kept', p_max_age => '1 hour')")
    assert db.one(f"select count(*) from {yesterday}") == 4
    assert db.one(TRIM) == 1
    assert db.one(f"select pg_relation_size('{yesterday}')") == 0
    assert db.one(TRIM) == 0
    assert db.rows("select action from llm.partition_plan() where table_name = 'llm.stream_entries' and action <> 'keep'") == []


def test_a_partition_in_use_is_left_alone(db: Client, database: Database, bound: Client) -> None:
    append(bound, 1)
    age(db, "1 day")
    bound.run("select llm.stream_trim('s', 0)")
    user = database.client("app").run("begin").run("select count(*) from llm.stream_entries")
    user.run("select * from llm.stream_read('s')")
    assert db.one(TRIM) == 0
    user.run("commit")
    assert db.one(TRIM) == 1


def test_partitions_past_retention_are_dropped(db: Client, bound: Client) -> None:
    append(bound, 1, 2)
    db.run("select llm._make_partition('llm.stream_entries', llm._partition_slot('1 day', now() - interval '9 days'), '1 day')")
    age(db, "9 days", payloads="1")
    db.run("set client_min_messages = error").run("call llm.manage_partitions()")
    assert read(bound) == [2]
    assert db.one("select count(*) from llm.stream_entries") == 1


def test_a_retention_that_was_chosen_stays(db: Client) -> None:
    days = "select retention_days from llm.partition_sets where parent = 'llm.stream_entries'"
    assert db.one(days) == 7
    db.run("select llm.create_partitions(('llm.stream_entries', 'at', 'daily', null)::llm.partition_strategy)").run("select llm.setup()")
    assert db.one(days) is None


def test_streams_are_listed(bound: Client) -> None:
    for stream in ("b", "a", "B", "é"):
        append(bound, 1, 2, stream=stream)
    assert bound.column("select llm.list_streams()") == ["B", "a", "b", "é"]


def test_what_cannot_be_kept_is_refused(bound: Client) -> None:
    for arguments in ("0", "-1", "null, '0'", "null, '-1 day'", "null, '100 years'"):
        with raises(InvalidParameterValue, match="a stream cannot be kept to", hint="at least one entry"):
            bound.run(f"select llm.set_stream_policy('s', {arguments})")
    for length in (-1, None):
        with raises(InvalidParameterValue, match="a stream cannot be cut to", hint="how many of the newest"):
            bound.run("select llm.stream_trim('s', %s)", length)
    with raises(ObjectNotInPrerequisiteState, match="sees only the entries that concern him", hint="set_user"), bound.transaction():
        bound.run("select llm.set_user(%s)", ANNE).run("select llm.stream_trim('s', 1)")

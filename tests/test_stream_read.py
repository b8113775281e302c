"""Reading streams: several, by time, from an old snapshot."""

from __future__ import annotations

import json

from psycopg.errors import InvalidParameterValue

from tests.support import Client, Database, raises
from tests.test_stream import Reader, append


def test_several_streams_are_read_at_once(bound: Client) -> None:
    (one,) = append(bound, 1, stream="a")
    append(bound, 2, stream="a")
    append(bound, 3, stream="b")
    found = bound.rows("select stream, payload from llm.stream_read_many(%s) order by 2", json.dumps({"a": one, "b": None, "c": None}))
    assert found == [("a", 2), ("b", 3)]
    with raises(InvalidParameterValue, match="these are not streams: 1", hint="object of positions"):
        bound.run("select * from llm.stream_read_many('1')")


def test_a_range_of_time_is_read_in_both_directions(db: Client, bound: Client) -> None:
    append(bound, 1, 2, 3)
    db.run("update llm.stream_entries set at = at - interval '1 hour' where payload = '1'")
    assert bound.column("select payload from llm.stream_range('s')") == [1, 2, 3]
    assert bound.column("select payload from llm.stream_range('s', p_newest_first => true, p_limit => 2)") == [3, 2]
    assert bound.column("select payload from llm.stream_range('s', now() - interval '10 minutes')") == [2, 3]
    assert bound.column("select payload from llm.stream_range('s', p_to => now() - interval '10 minutes')") == [1]


def test_a_reader_with_an_old_snapshot_misses_nothing_afterwards(database: Database, bound: Client) -> None:
    slow, reader = database.client("app"), Reader(database.client("app"))
    slow.run("begin")
    append(slow, "slow")
    reader.client.run("begin isolation level repeatable read")
    reader.poll()
    append(bound, "quick")
    slow.run("commit")
    reader.poll()
    reader.client.run("commit")
    assert reader.seen == []
    reader.poll()
    assert reader.seen == ["slow", "quick"]


def test_what_is_no_position_is_refused(bound: Client) -> None:
    for position in ("", "1", "1-2", "1-2-x", "0", "-1-2-3", "9" * 30 + "-1-1"):
        with raises(InvalidParameterValue, match="is not a position of a stream", hint="as it was read"):
            bound.run("select * from llm.stream_read('s', %s)", position)


def test_a_reader_looks_at_no_more_entries_than_it_returns(db: Client, database: Database, bound: Client) -> None:
    """However many there are before and behind, and however many wait for an older transaction."""
    middle = bound.one("select (llm.stream_append_all('s', array_fill('1'::text, '{6000}')))[3000]")
    bound.run("select llm.group_create('s', 'g', %s)", middle)
    db.run("vacuum analyze llm.stream_entries")
    reader = database.client("app")
    with db.transaction():
        db.run("select pg_current_xact_id()")
        bound.run("select llm.stream_append_all('s', array_fill('2'::text, '{3000}'))")
        end = bound.one("select llm.stream_end('s')")
        for call, expected in (
            (f"llm.stream_read('s', '{middle}', 5)", 5),
            (f"llm.stream_read('s', '{end}', 5)", 0),
            ("llm.group_read('s', 'g', 'ann', 5)", 5),
        ):
            reader.run(f"select * from {call}")
            plan = reader.one(f"explain (analyze, buffers, format json) select * from {call}")[0]["Plan"]
            assert plan["Actual Rows"] == expected
            assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 90

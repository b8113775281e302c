"""Metrics: what was measured, summed up by windows of time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import ceil, floor
from random import Random
from statistics import fmean

import pytest
from psycopg.errors import DatetimeFieldOverflow, InvalidParameterValue, InvalidTextRepresentation, ObjectNotInPrerequisiteState

from tests.support import Client, Database, at_once, raises

HOUR = timedelta(hours=1)


def percentile(values: list[float], share: float) -> float:
    """Return a percentile, interpolated (method 7 of Hyndman and Fan, 1996)."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low, high = ordered[floor(place)], ordered[ceil(place)]
    return low + (high - low) * (place - floor(place))


def test_what_was_recorded_is_summed_up(bound: Client) -> None:
    for value in (4, 1.5, 2):
        bound.run("select llm.metric_record('latency', %s)", value)
    bound.run("select llm.metric_record('other', 100)")
    row = bound.row("select count, min, max, avg, sum, percentiles, is_whole, ends_at - begins_at from llm.metric_window('latency')")
    assert row == (3, 1.5, 4, 2.5, 7.5, [2, pytest.approx(3.8), pytest.approx(3.96)], True, timedelta(minutes=5))
    assert bound.row("select count, min, avg, percentiles from llm.metric_window('nothing')") == (0, None, None, None)
    assert bound.column("select value from llm.stream_read('metrics:latency')") == [4, 1.5, 2]


def test_windows_are_as_an_oracle_computes_them(bound: Client) -> None:
    random = Random(7)
    until = datetime.now(UTC)
    recorded = [(until - timedelta(seconds=random.uniform(-60, 7300)), random.lognormvariate(3, 1)) for _ in range(2000)]
    recorded += [(until - HOUR, 1.0), (until - 2 * HOUR, 2.0), (until, 3.0)]
    times, values = [at for at, _ in recorded], [value for _, value in recorded]
    assert bound.one("select llm.metric_record_all(array_fill('m'::text, array[%s]), %s, %s)", len(recorded), values, times) == len(recorded)
    rows = bound.rows("select * from llm.metric_window('m', '2 hours', '7 minutes', %s, '{0,0.5,0.9,1}')", until)
    assert len(rows) == 18
    for number, (begins_at, ends_at, count, least, most, mean, total, percentiles, is_whole) in enumerate(rows):
        assert begins_at == until - 2 * HOUR + number * timedelta(minutes=7)
        assert ends_at == min(begins_at + timedelta(minutes=7), until)
        expected = [value for at, value in recorded if begins_at <= at < ends_at]
        assert (count, least, most, is_whole) == (len(expected), min(expected), max(expected), True)
        assert (mean, total) == (pytest.approx(fmean(expected)), pytest.approx(sum(expected)))
        assert percentiles == [pytest.approx(percentile(expected, share)) for share in (0, 0.5, 0.9, 1)]
    assert rows[-1][1] == until


@pytest.mark.parametrize("zone", ["America/New_York", "Australia/Lord_Howe", "Europe/Berlin"])
def test_windows_do_not_depend_on_the_time_zone(bound: Client, zone: str) -> None:
    """Q-13: nor do days with 23 or 25 hours."""
    query = "select begins_at, ends_at from llm.metric_window('m', '3 days', '1 day', %s)"
    for until in ("2026-03-09 12:00Z", "2026-04-06 12:00Z", "2026-10-26 12:00Z", "2026-11-02 12:00Z"):
        bound.run("set timezone = 'UTC'")
        expected = bound.rows(query, until)
        bound.run("select set_config('timezone', %s, false)", zone)
        assert bound.rows(query, until) == expected
        assert {(end.timestamp() - begin.timestamp()) for begin, end in expected} == {86400}


def test_labels_choose(bound: Client) -> None:
    for model, value in (("a", 1), ("b", 2), ("a", 3)):
        bound.run("select llm.metric_record('m', %s, jsonb_build_object('model', %s::text, 'n', %s)::text)", value, model, value)
    assert bound.row("select count, sum from llm.metric_window('m', p_labels => '{\"model\": \"a\"}')") == (2, 4)


def test_what_was_trimmed_is_told(db: Client, bound: Client) -> None:
    """Never silently short."""
    bound.run("select llm.metric_record_all(array_fill('m'::text, '{20}'), array(select i::float8 from generate_series(1, 20) i))")
    bound.run("select llm.set_stream_policy('metrics:m', 5, '1 hour')")
    db.run("call llm.trim_streams()")
    rows = bound.rows("select count, min, is_whole from llm.metric_window('m', '2 hours', '1 hour')")
    assert rows == [(0, None, False), (5, 16, False)]
    bound.run("select llm.metric_record('n', 1)")
    assert bound.rows("select count, is_whole from llm.metric_window('n', '26 hours', '13 hours')") == [(0, False), (1, True)]


def test_consumers_share_metrics(bound: Client) -> None:
    bound.run("select llm.group_create('metrics:m', 'alerts')").run("select llm.metric_record('m', 1), llm.metric_record('m', 2)")
    assert bound.column("select value from llm.group_read('metrics:m', 'alerts', 'ann')") == [1, 2]


def test_no_value_is_lost_when_many_record_at_once(database: Database, bound: Client) -> None:
    """Q-07: no counter that all wait for."""
    clients = database.clients(8, "app")
    at_once(clients, "select count(llm.metric_record('m', i)) from generate_series(1, 200) i")
    assert bound.row("select count, sum from llm.metric_window('m')") == (1600, 8 * 20100)


def test_metrics_are_a_tenants_own(app: Client) -> None:
    for tenant, value in (("acme", 1), ("globex", 2)):
        with app.tenant(tenant):
            app.run("select llm.metric_record('m', %s)", value)
    with app.tenant("acme"):
        assert app.row("select count, sum from llm.metric_window('m')") == (1, 1)
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        app.run("select llm.metric_record('m', 1)")


def test_what_is_no_metric_is_refused(bound: Client) -> None:
    for call in ("llm.metric_record(%s, 1)", "llm.metric_record_all(array[%s], '{1}')"):
        for name in ("", None, "x" * 193):
            with raises(InvalidParameterValue, match="a metric has a name of", hint="1 to 192 bytes"):
                bound.run(f"select {call}", name)
    for value in ("NaN", "Infinity", "-Infinity", None):
        for call in ("llm.metric_record('m', %s)", "llm.metric_record_all('{m}', array[%s::float8])"):
            with raises(InvalidParameterValue, match="cannot be a value of metric m", hint="finite"):
                bound.run(f"select {call}", value)
    for arguments, counts in (
        ("'{1,2}'", (2, "<NULL>", "<NULL>")),
        ("null", ("<NULL>", "<NULL>", "<NULL>")),
        ("'{1}', '{}'", (1, 0, "<NULL>")),
        ("'{1}', null, '{}'", (1, "<NULL>", 0)),
    ):
        values, times, labels = counts
        message = f"there are 1 metrics, {values} values, {times} times and {labels} labels"
        with raises(InvalidParameterValue, match=message, hint="as many of each"):
            bound.run(f"select llm.metric_record_all('{{m}}', {arguments})")
    with raises(DatetimeFieldOverflow, match="too far from now"):
        bound.run("select llm.metric_record_all('{m,m}', '{1,2}', '{2020-01-01,2100-01-01}')")
    with raises(InvalidTextRepresentation):
        bound.run("select llm.metric_record('m', 1, 'x')")
    for arguments in (
        "'0'",
        "'-1 day'",
        "'1 day', '0'",
        "'1 day', '1 second'",
        "'1 day', p_percentiles => '{1.5}'",
        "'1 day', p_percentiles => '{-0.1}'",
    ):
        with raises(InvalidParameterValue, match="a metric cannot be summed up", hint="at most 10,000 steps"):
            bound.run(f"select * from llm.metric_window('m', {arguments})")
    assert bound.row("select count, percentiles from llm.metric_window('m', p_percentiles => null)") == (0, None)

"""Partitions looked after: the plan, its execution, guards, monitoring, and what calls it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.errors import InvalidParameterValue, InvalidTransactionTermination, ObjectNotInPrerequisiteState, RaiseException

from tests.conftest import new_cluster
from tests.support import Client, Database, at_once, forget_own_partitions, raises, wait_until
from tests.test_partition import create, events
from tools.cluster import Installation

ACTIONS = "select action, partition_name, reason from llm.partition_plan() where action <> 'keep' order by begins_at, action"
DUE = "select distinct action from llm.partition_plan() where action <> 'keep'"
MANAGE = "call llm.manage_partitions()"


@pytest.fixture
def db(db: Client) -> Client:
    """A superuser's client of a database in which nothing is kept in partitions yet."""
    return forget_own_partitions(db)


@pytest.fixture
def quiet(db: Client) -> Client:
    """A superuser's client that is not told of warnings."""
    return db.run("set client_min_messages = error")


@pytest.fixture
def daily(quiet: Client) -> Client:
    """A client of a database with a table in daily partitions, kept for 3 days, and one partition that is long past that."""
    events(quiet)
    create(quiet, "daily", 3)
    quiet.run("create table public.old partition of public.events for values from ('2020-01-01') to ('2020-01-02')")
    assert quiet.row(MANAGE) == (True,)
    return quiet.run("create table public.old partition of public.events for values from ('2020-01-01') to ('2020-01-02')")


def idle(db: Client, days: int) -> None:
    """Let the world be as if nobody had looked after the table for some days."""
    db.run(
        f"""
        do $$ declare p record; begin
            for p in
                select * from llm._partitions('public.events')
                where not is_default and ends_at > now() - interval '{days} days' + interval '5 days'
            loop
                execute format('drop table %s', p.partition);
            end loop;
        end $$
        """
    )
    db.run("update llm.partition_sets set created_at = now() - interval '1 year', last_run_at = now() - %s * interval '1 day',"
           " last_ok_at = now() - %s * interval '1 day'", days, days)  # fmt: skip


def failures(db: Client) -> dict[str, str]:
    """Return what the doctor says of partitions."""
    return {name: detail for name, ok, detail, _ in db.rows("select * from llm._doctor_partitions()") if not ok}


def test_the_plan_says_what_would_be_done_and_why_and_does_nothing(daily: Client) -> None:
    daily.run("insert into public.events (at) values (now() - interval '2 days'), ('0001-01-01'), (now() + interval '5 years')")
    daily.run("drop table public.events_p" + daily.one("select to_char(now() + interval '2 days', 'YYYYMMDD')"))
    daily.run("delete from public.events where at = now() - interval '2 days'")
    before = daily.rows("select oid from pg_class order by 1")
    plan = daily.rows("select action, partition_name, ends_at - begins_at, reason from llm.partition_plan() order by begins_at nulls first, action")
    assert [(action, reason) for action, _, _, reason in plan if "kept until" not in reason] == [
        ("keep", "rows in public.events_default: 1, too far from now for a partition of their own"),
        ("drop", "its rows were due at 2020-01-05 00:00:00+00"),
        ("make", "made ahead"),
        ("keep", "rows in public.events_default: 1, too far from now for a partition of their own"),
    ]
    assert len(plan) == 4 + 7
    assert daily.rows("select oid from pg_class order by 1") == before
    assert daily.rows("select * from llm.partition_plan('public.events')") == daily.rows("select * from llm.partition_plan()")
    assert daily.rows("select * from llm.partition_plan('llm.config')") == []


def test_what_is_planned_is_done_and_then_nothing_is_left(daily: Client) -> None:
    daily.run("drop table public.events_p" + daily.one("select to_char(now() + interval '2 days', 'YYYYMMDD')"))
    planned = daily.rows(ACTIONS)
    assert [action for action, *_ in planned] == ["drop", "make"]
    assert daily.row(MANAGE) == (True,)
    assert sorted(daily.one("select last_actions from llm.partition_status")) == [f"{action} {name}" for action, name, _ in planned]
    assert daily.rows(ACTIONS) == []
    assert daily.row(MANAGE) == (True,)
    assert daily.one("select last_actions from llm.partition_status") == []


def test_only_partitions_that_are_past_retention_as_a_whole_are_dropped(daily: Client) -> None:
    daily.run("drop table public.old")
    daily.run("insert into public.events (at) select now() - n * interval '1 hour' from generate_series(0, 71) n")
    daily.run("update llm.partition_sets set retention_days = 1")
    assert daily.row(MANAGE) == (True,)
    assert daily.rows(DUE) == []
    # Yesterday has rows of less than a day ago.
    assert daily.one("select min(at) > now() - interval '2 days' from public.events") is True
    assert daily.one("select count(*) >= 24 from public.events where at > now() - interval '1 day'") is True
    assert daily.one("select min(begins_at) = date_trunc('day', now()) - interval '1 day' from llm._partitions('public.events')") is True


def test_without_retention_nothing_is_ever_dropped(daily: Client) -> None:
    daily.run("update llm.partition_sets set retention_days = null")
    assert daily.row("select action, reason from llm.partition_plan() where partition_name like '%old'") == ("keep", "kept for ever")
    assert "drop" not in daily.column(DUE)


def test_rows_that_are_past_retention_when_they_come_are_dropped_with_a_partition_of_their_own(daily: Client) -> None:
    daily.run("insert into public.events (at) values (now() - interval '100 days'), (now())")
    assert daily.row(MANAGE) == (True,)
    assert daily.one("select count(*) from public.events") == 2, "the plan was made before"
    assert "drop" in daily.column(DUE)
    assert daily.row(MANAGE) == (True,)
    assert daily.one("select count(*) from public.events") == 1


def test_part_01_rows_of_impossible_times_stop_nothing(daily: Client) -> None:
    daily.run("insert into public.events (at) values (now() + interval '3 days'), (now() + interval '10 years'), ('0001-01-01'), ('-infinity')")
    assert daily.row(MANAGE) == (True,)
    idle(daily, 5)
    assert daily.row(MANAGE) == (True,)
    assert daily.row("select is_ahead, default_bytes > 0 from llm.partition_status") == (True, True)
    assert daily.one("select count(*) from public.events_default") == 3
    assert daily.one("select ends_at < now() + interval '5 days' from llm.partition_status") is True, "none is made for them"
    assert failures(daily) == {"default partitions are empty": "public.events"}


def test_part_01_a_row_in_the_way_of_the_next_partition_is_moved_into_it(daily: Client) -> None:
    """pg_partman's own maintenance stops there, for this table and for all that come after it."""
    daily.run("drop table public.old").run("set timezone = 'UTC'")
    daily.run("drop table public.events_p" + daily.one("select to_char(now() + interval '4 days', 'YYYYMMDD')"))
    daily.run("insert into public.events (at) values (now() + interval '4 days')")
    partman = daily.one("select extnamespace::regnamespace::text from pg_extension where extname = 'pg_partman'")
    with raises(RaiseException, "updated partition constraint for default partition"):
        daily.run(f"select {partman}.run_maintenance('public.events')")
    assert daily.row(MANAGE) == (True,)
    assert daily.one("select tableoid::regclass::text = 'events_p' || to_char(at, 'YYYYMMDD') from public.events") is True


@pytest.mark.parametrize("days", [5, 12, 30])
def test_part_02_an_idle_table_has_its_partitions(daily: Client, days: int) -> None:
    """PART-02: for up to 3 times premake and beyond; no row came in the meantime, and no gap is left."""
    idle(daily, days)
    assert set(failures(daily)) == {"partitions are looked after", "partitions are made ahead"}
    assert daily.row(MANAGE) == (True,)
    rows = daily.rows("select begins_at, ends_at from llm._partitions('public.events') where not is_default order by 1")
    assert len(rows) == 3 + 1 + 4 or days == 5
    assert [begin for begin, _ in rows[1:]] == [end for _, end in rows[:-1]]
    assert daily.one("select is_ahead from llm.partition_status") is True
    assert failures(daily) == {}


def test_part_02_pg_partmans_own_maintenance_does_so_too(daily: Client) -> None:
    daily.run("drop table public.old").run("update llm.partition_sets set retention_days = null")
    idle(daily, 12)
    daily.run("create table public.first partition of public.events for values from ('2026-01-01') to ('2026-01-02')")
    partman = daily.one("select extnamespace::regnamespace::text from pg_extension where extname = 'pg_partman'")
    daily.run("set timezone = 'UTC'").run(f"select {partman}.run_maintenance('public.events')")
    assert daily.one("select is_ahead from llm.partition_status") is True


def test_part_05_two_days_without_maintenance_lose_no_row(daily: Client, database: Database) -> None:
    """PART-05: the doctor says so, rows land in the default partition, and come where they belong later."""
    daily.run("drop table public.old")
    idle(daily, 7)
    daily.run("insert into public.events (at) select now() - n * interval '1 hour' from generate_series(0, 48) n")
    for user in ("postgres", "admin", "auditor"):
        found = failures(database.client(user))
        assert set(found) == {"partitions are looked after", "partitions are made ahead", "default partitions are empty"}
        assert found["partitions are looked after"].startswith("public.events: last at ")
    assert daily.row(MANAGE) == (True,)
    assert failures(daily) == {}
    assert daily.one("select count(*) from public.events") == 49
    assert daily.one("select count(*) from public.events_default") == 0


def test_part_06_a_thousand_partitions(daily: Client) -> None:
    """PART-06: with pruning a query plans and locks one of them; looking after them locks a few at a time.

    A thousand, because making 3,000 takes 15 s (each looks at all that are there); bench_partition plans over 3,000.
    """
    daily.run("drop table public.old").run("update llm.partition_sets set retention_days = null, created_at = now()")
    daily.run("alter event trigger llm_protect_new_partitions disable")
    daily.run(
        """
        do $$ begin
            for n in 4..1000 loop
                execute format('create table public.many_%s partition of public.events for values from (%L) to (%L)', n,
                               date_trunc('day', now(), 'UTC') - n * interval '1 day', date_trunc('day', now(), 'UTC') - (n - 1) * interval '1 day');
                -- In one transaction they would all stay locked.
                if n % 100 = 0 then commit; end if;
            end loop;
        end $$
        """
    )
    assert daily.one("select partitions from llm.partition_status") > 1000
    with daily.transaction():
        # A constant is compared while planning: others are not even locked.
        daily.run("explain select * from public.events where at = '" + daily.one("select (now() - interval '7 days')::text") + "'")
        assert daily.one("select count(*) from pg_locks where pid = pg_backend_pid() and relation::regclass::text ~ 'many|events'") <= 3
    daily.run("drop table public.many_500").run("insert into public.events (at) select now() - interval '500 days'")
    daily.run("update llm.partition_sets set retention_days = 990")
    assert daily.row("select count(*) filter (where action = 'move'), count(*) filter (where action = 'drop') from llm.partition_plan()") == (1, 10)
    assert daily.row(MANAGE) == (True,)
    assert daily.rows(DUE) == []


GUARD = """
create table public.tombstones (name text, transaction_id xid8 default pg_current_xact_id());
create function llm.guard(p_partition regclass) returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    insert into public.tombstones (name) values (p_partition);
    return current_setting('guard.answer', true)::boolean;
end $$;
"""


@pytest.fixture
def guarded(daily: Client) -> Client:
    """A client of a database whose table's partitions are guarded."""
    daily.run(GUARD)
    assert daily.one("select llm.create_partitions(('public.events', 'at', 'daily', 3)::llm.partition_strategy, 'guard')") is True
    assert daily.one("select llm.create_partitions(('public.events', 'at', 'daily', 3)::llm.partition_strategy, 'guard')") is False
    assert daily.one("select llm.create_partitions(('public.events', 'at', 'daily', 3)::llm.partition_strategy)") is False
    return daily


@pytest.mark.parametrize("answer", ["false", ""])
def test_a_guard_that_does_not_agree_keeps_a_partition(guarded: Client, answer: str) -> None:
    """Null is no agreement either."""
    guarded.run("select set_config('guard.answer', nullif(%s, ''), false)", answer) if answer else guarded.run("create or replace function"
        " llm.guard(p_partition regclass) returns boolean language plpgsql as 'begin return null; end'")  # fmt: skip
    assert guarded.row("select action, reason from llm.partition_plan() where partition_name like '%old'") == (
        "keep", "its rows were due at 2020-01-05 00:00:00+00, but llm.guard() does not agree",
    )  # fmt: skip
    assert guarded.rows("select from public.tombstones") == [], "a plan leaves nothing behind"
    assert guarded.row(MANAGE) == (True,)
    assert guarded.one("select to_regclass('public.old') is not null") is True


def test_a_guard_that_agrees_writes_in_the_dropping_transaction(guarded: Client, database: Database) -> None:
    guarded.run("set guard.answer = true")
    assert "drop" in guarded.column(DUE)
    assert guarded.rows("select from public.tombstones") == []
    # The drop fails after the guard agreed: its record goes with it.
    guarded.run("create view public.v as select * from public.old")
    assert guarded.row(MANAGE) == (False,)
    assert guarded.rows("select from public.tombstones") == []
    guarded.run("drop view public.v")
    assert guarded.row(MANAGE) == (True,)
    assert guarded.column("select name from public.tombstones") == ["public.old"]
    assert guarded.one("select to_regclass('public.old') is null") is True


def test_a_guard_that_changes_its_mind_is_heard(guarded: Client) -> None:
    guarded.run("create or replace function llm.guard(p_partition regclass) returns boolean language plpgsql as 'begin"
                " insert into public.tombstones values (p_partition); return false; end'")  # fmt: skip
    assert guarded.one("select llm._drop_partition('public.events', 'public.old')") is False
    assert guarded.one("select llm._drop_partition('public.events', 'public.events_default')") is False
    guarded.run("set guard.answer = true")
    assert guarded.one("select to_regclass('public.old') is not null") is True


def test_a_guard_that_is_gone_or_fails_keeps_all_and_is_told(guarded: Client) -> None:
    guarded.run("drop function llm.guard(regclass)")
    guarded.run("drop table public.events_p" + guarded.one("select to_char(now() + interval '2 days', 'YYYYMMDD')"))
    assert guarded.row(MANAGE) == (False,)
    assert "cannot plan: function llm.guard" in guarded.one("select last_error from llm.partition_status")
    assert guarded.one("select to_regclass('public.old') is not null") is True


def test_a_failure_is_a_warning_and_stays_until_it_is_mended(daily: Client, database: Database) -> None:
    told: list[str] = []
    daily.run("create view public.v as select * from public.old").run("reset client_min_messages")
    daily.connection.add_notice_handler(lambda diag: told.append(f"{diag.severity}: {diag.message_primary}"))
    assert daily.row(MANAGE) == (False,)
    assert told == ["WARNING: partitions of public.events: cannot drop public.old: cannot drop table public.old because other objects depend on it"]
    assert daily.one("select last_error from llm.partition_status") == told[0].removeprefix("WARNING: partitions of public.events: ")
    assert daily.one("select last_ok_at < last_run_at from llm.partition_status") is True
    daily.run("update llm.partition_sets set last_ok_at = now() - interval '3 days'")
    assert "cannot drop public.old" in failures(database.client("auditor"))["partitions are looked after"]
    daily.run("drop view public.v")
    assert daily.row(MANAGE) == (True,)
    assert daily.row("select last_error, last_ok_at >= last_run_at, is_late from llm.partition_status") == (None, True, False)
    partman = daily.one("select extnamespace::regnamespace::text from pg_extension where extname = 'pg_partman'")
    assert daily.one(f"select maintenance_last_run = (select last_ok_at from llm.partition_status) from {partman}.part_config") is True


def test_who_examines_needs_no_right_on_the_tables(quiet: Client, database: Database) -> None:
    quiet.run("create schema private")
    create(events(quiet, name="private.events"), "daily", 3, "private.events")
    for user in ("admin", "auditor"):
        assert database.client(user).row("select parent, is_ahead, partitions from llm.partition_status") == ("private.events", True, 6)
        assert failures(database.client(user)) == {}


def test_hourly_partitions_are_late_after_two_hours(quiet: Client) -> None:
    events(quiet)
    create(quiet, "hourly", 1)
    for hours, late in ((1, False), (3, True)):
        quiet.run("update llm.partition_sets set last_ok_at = now() - %s * interval '1 hour'", hours)
        assert ("partitions are looked after" in failures(quiet)) is late


def test_a_table_that_is_gone_is_forgotten(daily: Client) -> None:
    daily.run("drop table public.events")
    assert daily.rows("select table_name, action from llm.partition_plan()") == [("public.events", "forget")]
    assert failures(daily) == {"partitions are made ahead": "public.events"}
    assert daily.row(MANAGE) == (True,)
    assert failures(daily) == {}
    partman = daily.one("select extnamespace::regnamespace::text from pg_extension where extname = 'pg_partman'")
    assert daily.rows(f"select parent_table from {partman}.part_config where parent_table like 'public%'") == []


def test_a_detached_table_of_the_partitions_name_is_left_alone(daily: Client) -> None:
    name = "public.events_p" + daily.one("select to_char(now() + interval '1 day', 'YYYYMMDD')")
    daily.run(f"alter table public.events detach partition {name}")
    assert daily.row("select action, reason from llm.partition_plan() where partition_name = %s", name) == (
        "keep", "missing, but a table of this name is there: attach it, or rename it",
    )  # fmt: skip
    assert daily.row(MANAGE) == (True,)
    assert failures(daily) == {"partitions are made ahead": "public.events"}


def test_several_at_once_do_everything_once(daily: Client, database: Database) -> None:
    """HA-08: each step looks again before it acts."""
    idle(daily, 5)
    for n in range(20):
        daily.run(f"create table public.old_{n} partition of public.events for values from ('2019-03-{n + 1:02}') to ('2019-03-{n + 2:02}')")
    daily.run("insert into public.events (at) select now() - n * interval '1 hour' from generate_series(0, 47) n")
    steps = daily.rows("select p::text from llm.partition_plan() p where action <> 'keep'")
    clients = database.clients(4)
    for client in clients:
        client.run("set client_min_messages = error")
    assert at_once(clients, MANAGE) == [True] * 4
    assert daily.row("select last_error, (select count(*) from public.events) from llm.partition_status") == (None, 48)
    assert daily.rows(DUE) == []
    # A plan that is out of date does no harm.
    for (step,) in steps:
        daily.run("select llm._carry_out(%s::llm.partition_action)", step)
    assert daily.rows(DUE) == []
    assert failures(daily) == {}


def test_inside_a_transaction_it_is_refused(daily: Client) -> None:
    with raises(InvalidTransactionTermination), daily.transaction():
        daily.run(MANAGE)


def test_without_storage_it_says_what_is_missing(daily: Client) -> None:
    daily.run("update llm.schema_migrations set checksum = '' where name = 'pg_llm'")
    with raises(ObjectNotInPrerequisiteState, "storage of pg_llm", hint="llm.setup"):
        daily.run(MANAGE)


def test_a_hostile_search_path_is_not_followed(daily: Client) -> None:
    """SEC-02: the one function that cannot pin it."""
    daily.run("create schema hostile").run("create domain hostile.text as pg_catalog.text check (false)")
    daily.run("create function hostile.pg_sleep(double precision) returns void language plpgsql as 'begin raise exception ''hostile''; end'")
    daily.run("create table hostile.partition_sets (parent text)").run("set search_path = hostile, pg_catalog")
    assert daily.row(MANAGE) == (True,)
    assert daily.one("select last_actions from llm.partition_status") == ["drop public.old"]


def test_what_there_is_to_call_it_is_explained(daily: Client, database: Database) -> None:
    ways = {scheduler: (ready, step) for scheduler, ready, step in daily.rows("select * from llm.schedule_maintenance(p_schedule => '5 4 * * *')")}
    assert [ready for ready, _ in ways.values()] == [False] * 3
    assert "shared_preload_libraries" in ways["pg_cron"][1]
    assert f"'5 4 * * *', 'call llm.manage_partitions()', '{database.name}');" in ways["pg_cron"][1]
    assert f"'* * * * *', 'call llm.index_new_messages()', '{database.name}');" in ways["pg_cron"][1]
    assert f"pg_partman_bgw.dbname = '{database.name}'" in ways["pg_partman_bgw"][1]
    assert "pg_partman_bgw.role = 'postgres'" in ways["pg_partman_bgw"][1]
    assert ways["the system's cron"][1].splitlines() == [
        f'5 4 * * * psql -X -d {database.name} -c "call llm.manage_partitions()"',
        f'* * * * * psql -X -d {database.name} -c "call llm.index_new_messages()"',
        f'* * * * * psql -X -d {database.name} -c "call llm.maintain()"',
        f'*/5 * * * * psql -X -d {database.name} -c "call llm.clean_cache()"',
        f'*/5 * * * * psql -X -d {database.name} -c "call llm.expire_rate_limits()"',
        f'41 * * * * psql -X -d {database.name} -c "call llm.expire_semantic_cache()"',
        f'* * * * * psql -X -d {database.name} -c "call llm.trim_streams()"',
        f'* * * * * psql -X -d {database.name} -c "call llm.tend_queues()"',
    ]
    with raises(InvalidParameterValue, "scheduler at is unknown", hint="pg_cron"):
        daily.run("select llm.schedule_maintenance('at')")


@pytest.fixture(scope="module")
def scheduled(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A superuser's client of a database for which pg_cron and pg_partman's background worker run."""
    settings = ("shared_preload_libraries=pg_cron,pg_partman_bgw", "cron.database_name=scheduled", "cron.use_background_workers=on",
                "pg_partman_bgw.interval=1", "pg_partman_bgw.role=postgres", "max_worker_processes=20")  # fmt: skip
    with new_cluster(installation, tmp_path_factory.mktemp("schedulers"), *settings) as cluster:
        with cluster.connect() as connection:
            connection.execute("create database scheduled template template_llm")
            # Not earlier: without its database the worker ends, and comes back after ten minutes.
            connection.execute("alter system set pg_partman_bgw.dbname = 'scheduled'")
            connection.execute("select pg_reload_conf()")
        database = Database(cluster, "scheduled")
        yield database.client().run("set client_min_messages = error")
        database.close()


def lacking(db: Client, table: str) -> str:
    """Make a table that lacks its last partition, and return a query for how many it has."""
    create(events(db, name=table), "daily", 1, table)
    db.run(f"drop table {table}_p" + db.one("select to_char(now() + interval '4 days', 'YYYYMMDD')"))
    return f"select partitions from llm.partition_status where parent = '{table}'"


def test_pg_cron_calls_it(scheduled: Client) -> None:
    partitions = lacking(scheduled, "public.by_cron")
    scheduled.run("create extension pg_cron")
    for _ in range(2):
        assert scheduled.rows("select scheduler, is_ready from llm.schedule_maintenance(p_schedule => '1 seconds')") == [("pg_cron", True)]
    assert scheduled.rows("select schedule, command from cron.job order by jobid") == [
        ("1 seconds", "call llm.manage_partitions()"),
        ("* * * * *", "call llm.index_new_messages()"),
        ("* * * * *", "call llm.maintain()"),
        ("*/5 * * * *", "call llm.clean_cache()"),
        ("*/5 * * * *", "call llm.expire_rate_limits()"),
        ("41 * * * *", "call llm.expire_semantic_cache()"),
        ("* * * * *", "call llm.trim_streams()"),
        ("* * * * *", "call llm.tend_queues()"),
    ]
    scheduled.wait("select last_ok_at is not null from llm.partition_status where parent = 'public.by_cron'")
    assert scheduled.one(partitions) == 6
    scheduled.run("select cron.unschedule('llm.manage_partitions')")


def test_pg_partmans_background_worker_makes_partitions(scheduled: Client) -> None:
    """And only where it is asked to: it works in its session's time zone."""
    partitions = lacking(scheduled, "public.by_worker")
    partman = scheduled.one("select extnamespace::regnamespace::text from pg_extension where extname = 'pg_partman'")
    modes = f"select distinct automatic_maintenance from {partman}.part_config where parent_table like 'public.%'"
    assert scheduled.column(modes) == ["off"]
    assert scheduled.rows("select scheduler, is_ready from llm.schedule_maintenance('pg_partman_bgw')") == [("pg_partman_bgw", True)]
    wait_until(lambda: scheduled.one(partitions) >= 6)
    lacking(scheduled, "public.later")
    assert scheduled.column(modes) == ["on"]

"""How queues fare, what is wrong with them, and who holds the horizon back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue

from tests.conftest import new_database
from tests.support import Client, Database, in_tenant, raises
from tools.cluster import Cluster

HOLDERS = "select kind, holder, pid, remedy from llm.horizon_holders('0 s', 1)"


def test_stats_count_jobs_by_state(bound: Client, db: Client) -> None:
    bound.run("select llm.enqueue_many('q', array_fill('{}'::jsonb, array[5]))").run("select llm.set_queue('empty')")
    bound.run("select llm.enqueue_many('q', array_fill('{}'::jsonb, array[2]), p_groups => '{g,g}')").run("select llm.enqueue('q', p_delay => '1 h')")
    ((first, token),) = bound.rows("select id, token from llm.claim_jobs('q', 1, p_worker => 'a')")
    bound.rows("select id from llm.claim_jobs('q', 2, p_worker => 'b')")
    bound.run("select llm.fail_jobs(%s, %s, 'x', p_retry => false)", [first], token)
    db.run("update llm.jobs set due_at = now() - interval '1 s' where id = (select min(id) from llm.jobs where token is not null)")
    stats = "select queue, ready, waiting, scheduled, running, overdue, dead, oldest_ready > '0', workers from llm.queue_stats order by queue"
    assert bound.rows(stats) == [("empty", 0, 0, 0, 0, 0, 0, None, 0), ("q", 3, 1, 1, 2, 1, 1, True, 1)]


def test_alerts_say_what_is_wrong_and_what_to_do(bound: Client, db: Client) -> None:
    assert bound.rows("select * from llm.queue_alerts()") == []
    bound.run("select llm.enqueue_many('q', array_fill('{}'::jsonb, array[3]))").run("select llm.schedule_job('s', 'q', '@daily')")
    rows = bound.rows("select id, token from llm.claim_jobs('q', 2)")
    bound.run("select llm.fail_jobs(%s, %s, 'x', p_retry => false)", [rows[0][0]], rows[0][1])
    db.run("update llm.jobs set due_at = now() - interval '1 s', created_at = now() - interval '1 h'")
    db.run("update llm.job_schedules set next_at = now() - interval '1 h'")
    alerts = bound.rows("select alert, subject, detail from llm.queue_alerts()")
    assert [(alert, subject) for alert, subject, _ in alerts] == [
        ("dead letters", "q"), ("late", "q"), ("overdue", "q"), ("schedule", "s")
    ]  # fmt: skip
    bound.run("select llm.pause_queue('q')")
    db.run("update llm.queues set paused_at = now() - interval '1 h'")
    assert "paused" in bound.column("select alert from llm.queue_alerts()")
    with raises(InvalidParameterValue, match="jobs of the last .* cannot be measured", hint="a second"):
        bound.run("select llm.queue_metrics('0 s')")


def test_who_pins_the_horizon_is_named_at_the_first_look(db: Client, database: Database) -> None:
    """Q-02: a session in a transaction, with the statement that ends it."""
    assert db.rows(HOLDERS) == []
    holder = database.client("app").run("set application_name = 'the long report'")
    holder.run("begin isolation level repeatable read").run("select count(*) from llm.config")
    ((kind, who, pid, remedy),) = db.rows(HOLDERS)
    assert (kind, who, pid) == ("session", "app (the long report, idle in transaction)", holder.connection.info.backend_pid)
    assert f"pg_terminate_backend({pid})" in remedy
    assert db.rows("select subject from llm.queue_alerts('0 s') where alert = 'horizon'") == [(f"session {who}",)]
    assert db.rows("select * from llm.horizon_holders('1 hour')") == []
    holder.run("rollback")
    assert db.rows(HOLDERS) == []


def test_a_prepared_transaction_that_pins_the_horizon_is_named(db: Client, database: Database) -> None:
    """Q-02"""
    database.client().run("begin").run("create table public.t ()").run("prepare transaction 'forgotten'")
    try:
        ((kind, who, _, remedy),) = db.rows(HOLDERS)
        assert (kind, who) == ("prepared transaction", "forgotten")
        assert "rollback prepared 'forgotten'" in remedy
    finally:
        db.run("rollback prepared 'forgotten'")


@pytest.fixture
def slotted(own_cluster: Cluster) -> Iterator[Database]:
    """A database of a server that has a replication slot with an xmin, whose standby is gone."""
    yield from new_database(own_cluster)


def test_a_replication_slot_that_pins_the_horizon_is_named(slotted: Database, tmp_path: Path) -> None:
    """Q-02: a standby with feedback."""
    db = slotted.client()
    db.run("select pg_create_physical_replication_slot('standby_7', true)")
    standby = slotted.cluster.standby(tmp_path / "standby")
    try:
        with standby.connect() as connection:
            for setting in ("hot_standby_feedback = on", "primary_slot_name = 'standby_7'", "wal_receiver_status_interval = '1 s'"):
                connection.execute(f"alter system set {setting}")
            connection.execute("select pg_reload_conf()")
        db.wait("select xmin is not null from pg_replication_slots")
    finally:
        standby.stop()
    for _ in range(3):
        db.run("select pg_current_xact_id()")
    kinds = dict(db.rows("select kind, holder from llm.horizon_holders('1 hour', 1)"))
    assert kinds == {"replication slot": "standby_7"}


def test_tenants_with_work_are_known_to_a_worker_of_all(bound: Client, database: Database) -> None:
    bound.run("select llm.enqueue_many('q', array['{}', '{}']::jsonb[])").run("select id from llm.claim_jobs('q')")
    admin = database.client("admin")
    with admin.tenant("other"):
        admin.run("select llm.enqueue('q', p_delay => '1 hour')").run("select llm.enqueue('p')").run("select llm.pause_queue('p')")
    assert admin.rows("select * from llm.queue_backlog()") == [
        ("acme", "q", 1, 1, 0), ("other", "p", 0, 0, 0), ("other", "q", 0, 0, 0)
    ]  # fmt: skip
    with raises(InsufficientPrivilege, match="permission denied"):
        bound.run("select llm.queue_backlog()")


def test_tending_needs_no_worker(bound: Client, db: Client) -> None:
    bound.run("select llm.set_queue('q', 1)").run("select llm.enqueue('q')").run("select id from llm.claim_jobs('q')")
    other = in_tenant(db, "other")
    other.run("select llm.enqueue('q', p_delay => '1 hour')").run("commit")
    db.run("update llm.jobs set due_at = now() - interval '1 s', place = case lane when 1000 then 0 else place end")
    db.run("call llm.tend_queues()")
    assert db.rows("select tenant_id, lane from llm.jobs order by 1") == [("acme", 1002), ("other", 0)]


def test_a_soak_leaves_tables_small_and_dead_rows_few(bound: Client, db: Client) -> None:
    """Q-03, in short: fifty times as many jobs as are there at a time take no fifty times the room, once vacuumed as autovacuum would."""
    bound.run("select llm.set_queue('q')")
    sizes = []
    for turn in range(6):
        for _ in range(10 if turn else 2):
            bound.run("select llm.enqueue_many('q', array_fill('{\"a\": 1}'::jsonb, array[200]))")
            rows = bound.rows("select id, token from llm.claim_jobs('q', 200)")
            bound.run("select llm.complete_jobs(%s, %s)", [row[0] for row in rows], rows[0][1])
        db.run("vacuum llm.jobs")
        sizes.append(db.one("select pg_total_relation_size('llm.jobs')"))
    assert sizes[-1] <= 3 * sizes[1], sizes
    options = dict(option.split("=") for option in db.one("select reloptions from pg_class where oid = 'llm.jobs'::regclass"))
    assert (options["autovacuum_vacuum_scale_factor"], options["autovacuum_vacuum_threshold"]) == ("0", "1000")

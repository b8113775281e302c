"""Looking after queues, and what is kept of jobs that are done."""

from __future__ import annotations

from psycopg.errors import InvalidParameterValue

from tests.support import Client, Database, in_tenant, raises


def claim(client: Client, limit: int = 1) -> tuple[list[int], int]:
    rows = client.rows("select id, token from llm.claim_jobs('q', %s, p_worker => 'w')", limit)
    return [row[0] for row in rows], rows[0][1] if rows else 0


def test_a_queue_keeps_what_is_done_with_its_result(bound: Client) -> None:
    bound.run("select llm.set_queue('q', p_archive => true, p_base_delay => '0')")
    ids = bound.one("select llm.enqueue_many('q', array['{\"a\": 1}', '{\"a\": 2}', '{\"a\": 3}']::jsonb[])")
    done, token = claim(bound, 2)
    assert bound.row("select state from llm.job_result(%s)", ids[0]) == ("running",)
    bound.run("select llm.complete_jobs(%s, %s, array['\"one\"', null]::jsonb[])", done, token)
    assert bound.row("select state, result, attempts, last_error from llm.job_result(%s)", ids[0]) == ("done", "one", 1, None)
    assert bound.rows("select id, payload, result, worker, finished_at >= claimed_at from llm.job_archive order by id") == [
        (ids[0], {"a": 1}, "one", "w", True),
        (ids[1], {"a": 2}, None, "w", True),
    ]
    assert bound.row("select state from llm.job_result(%s)", ids[2]) == ("ready",)
    assert bound.rows("select 1 from llm.job_result(0)") == []
    (row,) = bound.rows("select queue, done, per_second > 0, failed_attempts, wait_p50 >= '0', run_p95 >= '0' from llm.queue_metrics('1 hour')")
    assert row == ("q", 2, True, 0, True, True)


def test_the_archive_is_in_daily_partitions_that_are_dropped(bound: Client, db: Client) -> None:
    assert db.row("select partition_interval::text, retention_days from llm.partition_sets where parent = 'llm.job_archive'") == ("1 day", 30)
    db.run("select llm.create_partitions(('llm.job_archive', 'finished_at', 'daily', 7)::llm.partition_strategy)")
    db.run("select llm.setup()")
    assert db.one("select retention_days from llm.partition_sets where parent = 'llm.job_archive'") == 7, "as somebody has said"
    with db.tenant("acme"):
        db.run("insert into llm.job_archive (id, queue, priority, attempts, created_at, finished_at, payload)"
               " values (1, 'q', 0, 1, now(), now() - interval '20 days', '{}')")  # fmt: skip
    db.run("call llm.manage_partitions()")
    db.run("call llm.manage_partitions()")
    assert db.one("select count(*) from llm.job_archive") == 0


def test_a_paused_queue_takes_jobs_and_gives_none(bound: Client) -> None:
    bound.run("select llm.enqueue_many('q', array['{}', '{}', '{}']::jsonb[])")
    ids, token = claim(bound)
    assert bound.one("select llm.pause_queue('q')") is True
    assert bound.one("select llm.pause_queue('q')") is False
    assert claim(bound, 9) == ([], 0)
    bound.run("select llm.enqueue('q')").run("select llm.complete_jobs(%s, %s)", ids, token)
    assert bound.row("select ready, paused_at is not null from llm.queue_stats") == (3, True)
    assert bound.one("select llm.resume_queue('q')") is True
    assert bound.one("select llm.resume_queue('q')") is False
    assert len(claim(bound, 9)[0]) == 3


def test_jobs_are_listed_cancelled_and_purged(bound: Client, db: Client) -> None:
    ready = bound.one("select llm.enqueue_many('q', array_fill('{}'::jsonb, array[4]))")
    later = bound.one("select llm.enqueue('q', p_delay => '1 hour')")
    ids, token = claim(bound, 2)
    bound.run("select llm.fail_jobs(%s, %s, 'bad', p_retry => false)", ids[:1], token)
    assert bound.rows("select id, state, worker, due_at is null from llm.list_jobs('q')") == [
        (ready[0], "dead", "w", False), (ready[1], "running", "w", False), (ready[2], "ready", None, True), (ready[3], "ready", None, True),
        (later, "scheduled", None, False),
    ]  # fmt: skip
    assert bound.column("select id from llm.list_jobs('q', 'ready', 1, %s)", ready[2]) == [ready[3]]
    assert bound.one("select llm.cancel_jobs(%s)", [ready[1], ready[2]]) == [ready[2]], "not what a worker has"
    assert bound.one("select llm.cancel_jobs(%s, true)", [ready[1]]) == [ready[1]]
    db.run("update llm.jobs set created_at = now() - interval '2 days' where id = %s", ready[0])
    assert bound.one("select llm.purge_queue('q', 'all', '1 day')") == 1
    assert bound.one("select llm.purge_queue('q')") == 1
    assert bound.one("select llm.purge_queue('q', 'scheduled')") == 1
    assert bound.rows("select 1 from llm.list_jobs('q')") == []
    with raises(InvalidParameterValue, match="jobs cannot be in state 'x'", hint="ready, waiting"):
        bound.run("select llm.purge_queue('q', 'x')")


def test_a_key_is_free_when_its_job_was_cancelled_or_given_up(bound: Client) -> None:
    put = "select llm.enqueue('q', p_dedup_key => 'k')"
    first = bound.one(put)
    bound.run("select llm.cancel_jobs(%s)", [first])
    second = bound.one(put)
    assert second > first
    bound.run("select llm.fail_jobs(%s, %s, 'x', p_retry => false)", *claim(bound))
    assert bound.one(put) > second
    assert bound.one("select llm.retry_dead_jobs('q', %s)", [second]) == 1


def test_what_concerns_a_user_is_forgotten_with_him(bound: Client, db: Client) -> None:
    user = "018f2f6e-0000-7000-8000-00000000000a"
    bound.run("select llm.set_queue('q', p_archive => true)")
    bound.run("select llm.enqueue_many('q', array['{}', '{}', '{}']::jsonb[], p_user_ids => %s::uuid[])", [user, user, None])
    bound.run("select llm.complete_jobs(%s, %s)", *claim(bound))
    with db.tenant("acme"):
        found = dict(db.rows("select relation, rows from llm.forget_user(%s, 'asked') where relation ~ 'llm.job'", user))
    assert (found["llm.jobs"], found["llm.job_archive"]) == (1, 1)
    assert bound.one("select count(*) from llm.jobs") == 1


def test_all_this_is_a_tenants(bound: Client, database: Database) -> None:
    """RLS-04"""
    bound.run("select llm.set_queue('q', p_archive => true)")
    ids = bound.one("select llm.enqueue_many('q', array['{}', '{}']::jsonb[])")
    bound.run("select llm.complete_jobs(%s, %s)", *claim(bound))
    other = in_tenant(database.client("admin"), "other")
    assert other.one("select llm.cancel_jobs(%s, true)", ids) == []
    assert other.one("select llm.purge_queue('q', 'all')") == 0
    assert other.one("select llm.pause_queue('q')") is False
    for read in ("llm.list_jobs('q')", "llm.job_archive", "llm.queue_stats", "llm.queue_metrics()", f"llm.job_result({ids[0]})"):
        assert other.rows(f"select * from {read}") == []

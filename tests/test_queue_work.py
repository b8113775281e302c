"""What becomes of jobs that were claimed."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.errors import InvalidParameterValue, ObjectNotInPrerequisiteState

from tests.conftest import new_database
from tests.support import Client, Database, in_tenant, raises, wait_until
from tools.cluster import Cluster

CLAIM = "select id, token from llm.claim_jobs('q', %s)"


@pytest.fixture
def q(bound: Client) -> Client:
    """A client bound to acme, with a queue of which nobody waits for a delay."""
    return bound.run("select llm.set_queue('q', p_max_attempts => 3, p_base_delay => '0')")


def enqueue(client: Client, count: int) -> list[int]:
    ids: list[int] = client.one("select llm.enqueue_many('q', array_fill('{}'::jsonb, array[%s::integer]))", count)
    return ids


def claim(client: Client, limit: int = 1) -> tuple[list[int], int | None]:
    """Return ids and token of claimed jobs."""
    rows = client.rows(CLAIM, limit)
    return sorted(row[0] for row in rows), rows[0][1] if rows else None


def complete(client: Client, ids: list[int], token: int | None, **more: Any) -> list[int]:
    done: list[int] = client.one("select llm.complete_jobs(%s, %s, p_strict => %s)", ids, token, more.get("strict", True))
    return done


def over(db: Client) -> None:
    """Let all leases and delays be over, and sweeps due."""
    db.run("update llm.jobs set due_at = now() - interval '1 s', place = case lane when 1000 then 0 else place end where lane = 1000 or token > 0")


def test_a_claimed_job_is_nobody_elses_until_its_lease_is_over(q: Client, db: Client, database: Database) -> None:
    (job,) = enqueue(q, 1)
    row = q.row("select id, attempt, payload, priority, group_key, lease_until - now() from llm.claim_jobs('q', p_lease => '10 minutes')")
    assert row[:5] == (job, 1, {}, 0, None)
    assert 595 < row[5].total_seconds() < 605
    assert claim(database.client("app"), 9) == ([], None)
    over(db)
    assert claim(database.client("app"), 9)[0] == [job]


def test_a_stale_holder_is_refused_and_changes_nothing(q: Client, db: Client, database: Database) -> None:
    """Q-01: fencing."""
    jobs, token = enqueue(q, 3), None
    slow = database.client("app")
    ids, token = claim(slow, 3)
    over(db)
    again, newer = claim(q, 1)
    assert newer is not None and token is not None and newer > token
    stored = db.rows("select * from llm.jobs order by id")
    for statement in (
        "select llm.complete_jobs(%s, %s)",
        "select llm.fail_jobs(%s, %s, 'x')",
        "select * from llm.claim_jobs('q', 5, p_done => %s, p_token => %s)",
    ):
        with raises(ObjectNotInPrerequisiteState, match=f"is not held by claim {token}", hint="drop the result", detail="Nothing was changed"):
            slow.run(statement, ids, token)
        assert db.rows("select * from llm.jobs order by id") == stored
    assert slow.one("select llm.extend_jobs(%s, %s)", ids, token) == []
    assert complete(slow, ids, token, strict=False) == []
    assert slow.row("select * from llm.fail_jobs(%s, %s, 'x', p_strict => false)", ids, token) == (0, 0)
    assert db.rows("select * from llm.jobs order by id") == stored
    assert complete(q, again, newer) == again
    with raises(ObjectNotInPrerequisiteState, match=f"job {again[0]} is not held by claim {newer}"):
        complete(q, again, newer)
    assert jobs == ids


def test_a_lease_that_is_over_counts_until_the_job_is_given_back(q: Client, db: Client) -> None:
    first, second = enqueue(q, 2)
    ids, token = claim(q, 2)
    over(db)
    assert complete(q, [first], token) == [first]
    assert q.one("select llm.extend_jobs(%s, %s, '1 hour')", ids, token) == [second]
    assert claim(q, 5) == ([], None)
    assert complete(q, [second], token) == [second]


def test_completing_and_claiming_are_one_call(q: Client) -> None:
    enqueue(q, 3)
    ids, token = claim(q, 2)
    row = q.row("select id, token from llm.claim_jobs('q', 2, p_done => %s, p_token => %s)", ids, token)
    assert q.one("select count(*) from llm.jobs") == 1
    assert q.rows("select id from llm.claim_jobs('q', 0, p_done => %s, p_token => %s)", [row[0]], row[1]) == []
    assert q.one("select count(*) from llm.jobs") == 0


def test_a_failed_job_comes_back_later_each_time_and_is_given_up_at_last(bound: Client, db: Client) -> None:
    """Q-04"""
    bound.run("select llm.set_queue('q', 4, p_base_delay => '1 minute', p_max_delay => '3 minutes')")
    (poison, healthy) = enqueue(bound, 2)
    delays = []
    for attempt in range(1, 5):
        ids, token = claim(bound)
        if attempt == 1:
            assert complete(bound, *claim(bound)) == [healthy]
        assert ids == [poison]
        assert bound.row("select * from llm.fail_jobs(%s, %s, %s)", ids, token, f"error {attempt}") == ((1, 0) if attempt < 4 else (0, 1))
        if attempt < 4:
            assert claim(bound) == ([], None)
            delays.append(bound.one("select extract(epoch from due_at - due_set_at)::float8 from llm.jobs"))
        over(db)
    assert 30 <= delays[0] <= 60 <= delays[1] <= 120
    assert 90 <= delays[2] <= 180
    enqueue(bound, 1)
    assert claim(bound, 5)[0] != [poison]
    assert bound.row("select state, attempts, last_error from llm.list_jobs('q', 'dead')") == ("dead", 4, "error 4")
    assert bound.one("select llm.retry_dead_jobs('q')") == 1
    assert complete(bound, *claim(bound)) == [poison]


def test_a_job_that_no_worker_survives_is_given_up(q: Client, db: Client) -> None:
    """Q-04"""
    (poison,) = enqueue(q, 1)
    for _ in range(3):
        assert claim(q)[0] == [poison]
        over(db)
    assert claim(q)[0] == []
    assert q.row("select state, last_error from llm.list_jobs('q')") == ("dead", "the worker that claimed it did not come back")


def test_a_failure_may_be_for_good_or_say_when_to_come_back(q: Client) -> None:
    ids, token = enqueue(q, 2), claim(q, 2)[1]
    assert q.row("select * from llm.fail_jobs(%s, %s, 'never', p_retry => false)", ids[:1], token) == (0, 1)
    assert q.row("select * from llm.fail_jobs(%s, %s, '429', p_delay => '1 hour')", ids[1:], token) == (1, 0)
    assert q.rows("select state, due_at - now() > interval '59 minutes' from llm.list_jobs('q')") == [("dead", False), ("scheduled", True)]
    one = q.one("select llm.enqueue('q', p_max_attempts => 1)")
    assert q.row("select * from llm.fail_jobs(%s, %s, null)", [one], claim(q)[1]) == (0, 1)


def test_workers_killed_at_random_lose_no_job_and_complete_none_twice(q: Client, database: Database) -> None:
    """Q-01: eight workers, whose backends are killed now and then; a ledger that is written with the completion."""
    db = database.client()
    db.run("create table public.ledger (job bigint)").run("grant insert on public.ledger to app")
    q.run("select llm.set_queue('q', 1000, '50 milliseconds')")
    ids = enqueue(q, 300)
    stop = threading.Event()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        client = database.cluster.connect(database.name, "app")
        while not stop.is_set():
            try:
                rows = client.execute("select id, token from llm.claim_jobs('q', 4)").fetchall()
                for job, token in rows:
                    if chance.random() < 0.05:
                        db_kill(client)
                    with client.transaction():
                        if client.execute("select llm.complete_jobs(%s, %s, p_strict => false)", [[job], token]).fetchone() == ([job],):
                            client.execute("insert into public.ledger values (%s)", [job])
            except psycopg.OperationalError:
                client = database.cluster.connect(database.name, "app")
        client.close()

    def db_kill(client: psycopg.Connection) -> None:
        with database.cluster.connect(database.name) as killer:
            killer.execute("select pg_terminate_backend(%s)", [client.info.backend_pid])

    with ThreadPoolExecutor(8) as pool:
        working = [pool.submit(work, seed) for seed in range(8)]
        try:
            wait_until(lambda: db.one("select count(*) from llm.jobs") == 0)
        finally:
            stop.set()
        for each in working:
            each.result()
    assert sorted(db.column("select job from public.ledger")) == ids


def test_a_crash_of_the_server_loses_no_job_and_no_completion(own_cluster: Cluster) -> None:
    """Q-01: kill -9."""
    for database in new_database(own_cluster):
        database.client().run("select llm.bind_role('app', 'acme')")
        app = database.client("app").run("select llm.set_queue('q', p_archive => true)")
        ids = enqueue(app, 10)
        done, token = claim(app, 4)
        complete(app, done[:2], token)
        database.close()
        own_cluster.crash()
        own_cluster.start()
        app = database.client("app")
        assert app.column("select id from llm.list_jobs('q')") == ids[2:]
        assert app.column("select id from llm.job_archive order by id") == ids[:2]
        assert complete(app, done[2:], token) == done[2:], "the lease goes on"
        assert claim(app, 100)[0] == ids[4:]


def test_the_clock_of_the_server_alone_decides_and_may_go_back(q: Client, db: Client) -> None:
    """Q-05: an hour back leaves no lease an hour longer; an hour ahead ends leases, and the late worker is fenced off."""
    enqueue(q, 3)
    q.run("select llm.enqueue('q', p_delay => '30 seconds')")
    ids, token = claim(q, 3)
    q.run("select llm.fail_jobs(%s, %s, 'x', p_delay => '1 minute')", ids[:1], token)
    # As if all this had been done by a clock that was an hour ahead.
    db.run("update llm.jobs set due_at = due_at + interval '1 hour', due_set_at = due_set_at + interval '1 hour'")
    db.run("update llm.jobs set place = extract(epoch from due_at) * 1000000 where lane = 1000")
    db.run("call llm.tend_queues()")
    left = q.column("select round(extract(epoch from due_at - now()))::int from llm.jobs order by id")
    assert all(each <= expected for each, expected in zip(left, (60, 60, 60, 30), strict=True))
    assert q.one("select bool_and(place between (extract(epoch from now()) * 1000000) and (extract(epoch from now()) + 61) * 1000000)"
                 " from llm.jobs where lane = 1000")  # fmt: skip
    over(db)
    again, newer = claim(q, 9)
    assert set(again) >= set(ids)
    with raises(ObjectNotInPrerequisiteState, match="is not held by claim"):
        complete(q, ids[1:], token)
    assert sorted(complete(q, again, newer)) == again


def test_jobs_are_a_tenants_and_a_users(q: Client, database: Database) -> None:
    """RLS-04"""
    first, second = "018f2f6e-0000-7000-8000-00000000000a", "018f2f6e-0000-7000-8000-00000000000b"
    mine, others = q.one("select llm.enqueue_many('q', array['{}', '{}']::jsonb[], p_user_ids => %s::uuid[])", [first, second])
    other = in_tenant(database.client("admin"), "other")
    assert other.rows(CLAIM, 9) == []
    q.run("begin").run("select llm.set_user(%s)", second)
    assert q.one("select llm.enqueue('q')") > others
    ids, token = claim(q, 9)
    assert mine not in ids
    assert q.column("select distinct user_id::text from llm.jobs") == [second]
    q.run("commit").run("begin").run("select llm.set_user(%s)", first)
    assert complete(q, ids, token, strict=False) == []
    assert q.one("select llm.extend_jobs(%s, %s)", ids, token) == []
    assert q.one("select llm.cancel_jobs(%s, true)", ids) == []
    q.run("commit")
    for refused in ("llm.complete_jobs(%s, %s)", "llm.fail_jobs(%s, %s, 'x')"):
        with raises(ObjectNotInPrerequisiteState, match="is not held by claim"), other.transaction():
            other.run(f"select {refused}", ids, token)
    assert complete(q, ids, token) == ids


def test_misuse_is_told(q: Client, admin: Client) -> None:
    assert q.rows("select * from llm.claim_jobs('nobody has it')") == []
    for wrong in ("-1", "10001", "null", "1, '0 s'", "1, '2 days'"):
        with raises(InvalidParameterValue, match="jobs cannot be claimed for", hint="up to 10,000"):
            q.run(f"select llm.claim_jobs('q', {wrong})")
    with raises(InvalidParameterValue, match="a lease cannot last"):
        q.run("select llm.extend_jobs('{}', 1, '2 days')")
    with raises(InvalidParameterValue, match="a job cannot come back after"):
        q.run("select llm.fail_jobs('{}', 1, 'x', p_delay => '-1 s')")
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        admin.run("select llm.claim_jobs('q')")
    assert complete(q, [], None) == []
    with raises(ObjectNotInPrerequisiteState, match="job null is not held by claim 1"):
        q.run("select llm.complete_jobs(array[null]::bigint[], 1)")

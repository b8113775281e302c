"""Claiming jobs: in order, skipping what others have, reading nothing that is gone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import Client, Database, in_tenant

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


def test_an_open_claim_is_skipped_not_waited_for(q: Client, database: Database) -> None:
    first, second = enqueue(q, 2)
    with q.transaction():
        assert claim(q)[0] == [first]
        assert claim(database.client("app"), 5)[0] == [second]


def test_no_job_is_skipped_by_claims_that_begin_where_the_last_ones_ended(q: Client, database: Database) -> None:
    """Q-02: jobs that were put in early and committed late, rolled-back claims, retries, while marks move on; other sessions' marks too."""
    late, holder = database.client("app"), database.client("app")
    early = late.run("begin").one("select llm.enqueue('q')")
    first = enqueue(q, 50)
    with pytest.raises(ZeroDivisionError), holder.transaction():
        assert claim(holder, 2)[0] == first[:2]
        for _ in range(100):
            enqueue(q, 5)
            ids, token = claim(q, 5)
            complete(q, ids, token)
            assert not {early, *first[:2]} & set(ids)
        raise ZeroDivisionError
    late.run("commit")
    found: list[int] = []
    retried = False
    while rows := q.rows(CLAIM, 7):
        ids, token = [row[0] for row in rows], rows[0][1]
        if not retried:
            retried = q.row("select * from llm.fail_jobs(%s, %s, 'x')", ids, token) == (len(ids), 0)
        else:
            found += complete(q, ids, token)
    assert {early, *first[:2]} <= set(found)
    assert q.one("select count(*) from llm.jobs") == 0


def test_claims_do_not_read_what_is_gone_though_the_horizon_is_pinned(q: Client, database: Database) -> None:
    """Q-02: buffers that a claim reads do not grow with the jobs that were done while a reader kept all of their rows."""
    reader = database.client()
    reader.run("begin isolation level repeatable read").run("select count(*) from llm.jobs")
    app_hits = "select heap_blks_hit + idx_blks_hit from pg_statio_all_tables where relid = 'llm.jobs'::regclass"
    watcher = database.client()

    def cost() -> int:
        """Return how many blocks one claim touches."""
        q.run("select pg_stat_force_next_flush()")
        before = watcher.one(app_hits)
        for _ in range(10):
            ids, token = claim(q)
            complete(q, ids, token)
        q.run("select pg_stat_force_next_flush()").run("select 1")
        return int(watcher.one(app_hits)) - int(before)

    enqueue(q, 100)
    few = cost()
    for _ in range(40):
        enqueue(q, 100)
        ids, token = claim(q, 100)
        complete(q, ids, token)
    many = cost()
    assert many < 4 * few + 500, (few, many)


def test_a_mark_of_another_queue_or_of_a_forged_setting_hides_nothing_of_others(q: Client, database: Database) -> None:
    enqueue(q, 400)
    for _ in range(4):
        complete(q, *claim(q, 90))
    other = in_tenant(database.client("admin"), "other")
    other.run("select llm.enqueue('q')")
    assert len(other.rows(CLAIM, 5)) == 1
    q.run("select llm.enqueue('q2')")
    assert len(q.rows("select id from llm.claim_jobs('q2', 5)")) == 1

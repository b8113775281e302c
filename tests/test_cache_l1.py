"""What backends keep of the cache: never older than what has committed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Event

import psycopg
import pytest

from tests.support import Client, Database, wait_until
from tests.test_cache import age

GET = "select llm.cache_get_l1('k', 'n')"


@pytest.fixture
def kept(bound: Client) -> Client:
    """A client of a namespace that backends keep."""
    return bound.run("select llm.set_cache_policy(p_l1 => true, p_namespace => 'n')").run("select llm.cache_get_l1('first', 'n')")


def hits(client: Client) -> int:
    """Return how many reads were answered by backends."""
    return int(client.one("select coalesce(sum(hits), 0) from llm.coherence_stats() where namespace = 'cache'"))


def keep(client: Client) -> None:
    """Read until the backend itself answers: as soon as no older transaction runs."""
    before = hits(client)
    wait_until(lambda: client.one(GET) is not None and hits(client) > before)


def test_a_backend_answers_itself(kept: Client, database: Database) -> None:
    kept.run("select llm.cache_set('k', '{\"a\": [1]}', p_namespace => 'n')")
    keep(kept)
    before = hits(kept)
    assert [kept.one(GET) for _ in range(5)] == [{"a": [1]}] * 5
    assert hits(kept) == before + 5
    other = database.client("app")
    for change, now in (
        ("cache_set('k', '2', p_namespace => 'n')", 2),
        ("cache_delete('k', 'n')", None),
        ("cache_set_nx('k', '3', p_namespace => 'n')", 3),
        ("cache_invalidate('*', 'n')", None),
        ("cache_set('k', '4', p_namespace => 'n', p_tags => '{t}')", 4),
        ("cache_invalidate_tag('t')", None),
        ("cache_set('k', '5', p_namespace => 'n')", 5),
        ("cache_clear('n')", None),
    ):
        other.run(f"select llm.{change}")
        assert kept.one(GET) == other.one(GET) == now
        if now is not None:
            keep(kept)


def test_what_is_not_committed_is_not_kept(kept: Client, database: Database) -> None:
    other = database.client("app")
    for start in (None, 1):
        with pytest.raises(ZeroDivisionError), kept.transaction():
            kept.run("select llm.cache_set('k', '2', p_namespace => 'n')")
            assert [kept.one(GET) for _ in range(3)] == [2] * 3
            assert other.one(GET) == start
            _ = 1 / 0
        assert kept.one(GET) == other.one(GET) == start
        kept.run("select llm.cache_set('k', '1', p_namespace => 'n')")


def test_what_is_kept_expires(kept: Client, db: Client) -> None:
    kept.run("select llm.cache_set('k', '1', 1000, 'n')")
    keep(kept)
    # Past its end, by an update that tells no backend: only the time kept with it can end it.
    db.run("alter table llm.cache_entries disable trigger coherence_update")
    age(db, 1_001)
    db.run("alter table llm.cache_entries enable always trigger coherence_update")
    assert kept.one(GET) == 1
    age(db, 0)
    assert kept.one(GET) is None
    kept.run("select llm.cache_set('k', '1', 0.001, 'n')")
    wait_until(lambda: kept.one(GET) is None)


def test_what_may_not_be_kept_is_read(kept: Client, bound: Client) -> None:
    before = hits(kept)
    token = kept.one("select llm.cache_token()")
    kept.run("select llm.cache_set('k', '1', p_namespace => 'n', p_depends_on => '{m}', p_token => %s)", token)
    assert [kept.one(GET) for _ in range(3)] == [1] * 3
    kept.run("select llm.cache_bump('m')")
    assert kept.one(GET) is None
    kept.run("select llm.cache_set('k', to_jsonb(repeat('x', 5000)), p_namespace => 'n')")
    assert [len(kept.one(GET)) for _ in range(3)] == [5_000] * 3
    kept.run("select llm.set_cache_policy(p_l1 => true, p_idle => 60, p_namespace => 'n')").run("select llm.cache_set('k', '1', p_namespace => 'n')")
    assert [kept.one(GET) for _ in range(3)] == [1] * 3
    kept.run("select llm.set_cache_policy(p_namespace => 'n')").run("select llm.cache_set('k', '2', p_namespace => 'n')")
    assert [kept.one(GET) for _ in range(3)] == [2] * 3
    assert hits(kept) == before
    assert kept.one("select llm.cache_get_l1(null, 'n')") is None


def test_what_is_kept_is_a_tenants(app: Client) -> None:
    for tenant in ("a", "b"):
        with app.tenant(tenant):
            app.run("select llm.set_cache_policy(p_l1 => true, p_namespace => 'n')").run(
                "select llm.cache_set('k', to_jsonb(%s::text), p_namespace => 'n')", tenant
            )
    for _ in range(3):
        for tenant in ("a", "b"):
            with app.tenant(tenant):
                assert app.one(GET) == tenant


def test_no_read_is_ever_older_than_what_has_committed(database: Database, kept: Client, db: Client) -> None:
    """Writers, some of whom roll back, delete, evict; readers who compare with the table, in one snapshot and in many."""
    stop, wrong, reads = Event(), [], 0

    def write(seed: int) -> None:
        random, client = Random(seed), database.client("app")
        while not stop.is_set():
            key = f"k{random.randrange(3)}"
            with client.transaction():
                match random.randrange(4):
                    case 0:
                        client.run("select llm.cache_delete(%s, 'n')", key)
                    case _:
                        client.run("select llm.cache_set(%s, to_jsonb(%s::int), p_namespace => 'n')", key, random.randrange(1_000_000))
                if random.random() < 0.25:
                    raise psycopg.Rollback

    def read(seed: int) -> None:
        nonlocal reads
        random, client = Random(seed), database.client("app")
        try:
            for _ in range(600):
                key = f"k{random.randrange(3)}"
                with client.transaction():
                    client.run("set transaction isolation level repeatable read")
                    kept_value, stored = client.row("select llm.cache_get_l1(%s, 'n'), llm.cache_get(%s, 'n')", key, key)
                    if kept_value != stored:
                        wrong.append((key, kept_value, stored))
                client.one("select llm.cache_get_l1(%s, 'n')", key)
                reads += 1
        finally:
            stop.set()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, 0), pool.submit(write, 1), pool.submit(read, 2), pool.submit(read, 3)]:
            done.result()
    assert wrong == []
    assert reads >= 600
    assert hits(kept) > 0

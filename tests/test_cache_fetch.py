"""One of many computes a value; the others wait, or get the old one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg.errors import InvalidParameterValue

from tests.support import Client, Database, raises, wait_until
from tests.test_cache import age

FETCH = "select value, is_stale, must_compute, token from llm.cache_fetch('k', p_stale_for => %s, p_wait => %s)"


def fetch(client: Client, stale_for: float = 0, wait: float = 0) -> tuple[Any, ...]:
    """Return value, is_stale, must_compute, token."""
    return client.row(FETCH, stale_for, wait)


def test_q_14_of_fifty_one_computes(database: Database, bound: Client) -> None:
    """Q-14: the others wait for it."""
    clients = database.clients(50, "app")

    def work(client: Client) -> tuple[bool, Any]:
        value, _, must_compute, token = fetch(client, wait=60)
        if not must_compute:
            return False, value
        # Computed while all others ask: they are asleep in llm.cache_fetch() then, which this waits for.
        wait_until(lambda: bound.one("select count(*) from pg_stat_activity where wait_event = 'PgSleep'") >= 40)
        assert client.one("select llm.cache_set('k', '\"computed\"', p_token => %s)", token) is True
        return True, "computed"

    with ThreadPoolExecutor(50) as pool:
        done = list(pool.map(work, clients))
    assert sum(computed for computed, _ in done) == 1
    assert {value for _, value in done} == {"computed"}


def test_q_14_others_get_the_value_that_expired(database: Database, bound: Client, db: Client) -> None:
    """Q-14: at once, for a while."""
    other = database.client("app")
    bound.run("select llm.cache_set('k', '1', 60)")
    assert fetch(bound) == (1, False, False, None)
    age(db, 61)
    assert fetch(bound, stale_for=30)[2] is True
    assert fetch(other, stale_for=30) == (1, True, False, None)
    assert other.row("select value, is_stale, must_compute, retry_after between 1 and 30 from llm.cache_fetch('k', p_wait => 0)") == (
        None,
        False,
        False,
        True,
    )
    age(db, 29.5)
    assert fetch(other, stale_for=30)[:2] == (None, False)


def test_what_is_outdated_is_never_served(database: Database, bound: Client) -> None:
    other = database.client("app")
    token = fetch(bound)[3]
    assert bound.one("select llm.cache_set('k', '1', p_depends_on => '{m}', p_token => %s)", token) is True
    assert fetch(other, stale_for=100) == (1, False, False, None)
    bound.run("select llm.cache_bump('m')")
    token = fetch(bound, stale_for=100)[3]
    assert fetch(other, stale_for=100) == (None, False, False, None)
    # What was computed before a second change is refused, and the task is free at once.
    bound.run("select llm.cache_bump('m')")
    assert bound.one("select llm.cache_set('k', '2', p_depends_on => '{m}', p_token => %s)", token) is False
    assert fetch(other, stale_for=100)[2] is True


def test_who_dies_over_it_does_not_block(database: Database, bound: Client, db: Client) -> None:
    dead, heir = database.clients(2, "app")
    token = fetch(dead)[3]
    dead.close()
    assert fetch(heir)[2] is False
    age(db, 31)
    taken = fetch(heir)[3]
    assert taken is not None
    assert bound.one("select llm.cache_set('k', '\"late\"', p_token => %s)", token) is False
    assert heir.one("select llm.cache_set('k', '\"in time\"', p_token => %s)", taken) is True
    assert fetch(bound)[0] == "in time"


def test_who_is_late_but_alone_may_set_it(bound: Client, db: Client) -> None:
    token = fetch(bound)[3]
    age(db, 31)
    assert bound.one("select llm.cache_set('k', '1', p_token => %s)", token) is True
    assert bound.one("select llm.cache_set('k', '2', p_token => %s)", token) is False
    assert bound.one("select llm.cache_get('k')") == 1


def test_who_gives_up_says_so(database: Database, bound: Client) -> None:
    other = database.client("app")
    token = fetch(bound)[3]
    assert fetch(other)[2] is False
    assert bound.one("select llm.cache_release('k', %s)", token) is True
    assert bound.one("select llm.cache_release('k', %s)", token) is False
    assert fetch(other)[2] is True
    with raises(InvalidParameterValue, match="'nonsense' is not a token of the cache", hint="cache_fetch"):
        bound.run("select llm.cache_release('k', 'nonsense')")


@pytest.mark.parametrize("change", ["cache_delete('k')", "cache_invalidate('*')", "cache_clear()", "cache_set('k', '\"newer\"')"])
def test_what_was_changed_meanwhile_is_not_put_back(bound: Client, change: str) -> None:
    """A lease is of the entry that it was given for (Nishtala et al. 2013)."""
    token = fetch(bound)[3]
    bound.run(f"select llm.{change}")
    assert bound.one("select llm.cache_set('k', '\"old\"', p_token => %s)", token) is False
    assert bound.one("select llm.cache_get('k')") == ("newer" if "newer" in change else None)


def test_nobody_waits_for_a_transaction_that_computes(database: Database, bound: Client) -> None:
    other = database.client("app").run("set lock_timeout = '10s'")
    with bound.transaction():
        token = fetch(bound)[3]
        assert fetch(other) == (None, False, False, None)
        bound.run("select llm.cache_set('k', '1', p_token => %s)", token)
        assert fetch(other) == (None, False, False, None)
    assert fetch(other)[0] == 1
    # When it is rolled back the task is free.
    bound.run("select llm.cache_delete('k')").run("begin")
    assert fetch(bound)[2] is True
    bound.run("rollback")
    assert fetch(other)[2] is True


def test_a_transaction_of_one_snapshot_does_not_wait(database: Database, bound: Client) -> None:
    other = database.client("app")
    fetch(bound)
    with other.transaction():
        other.run("set transaction isolation level repeatable read").run("set local statement_timeout = '20s'")
        assert fetch(other, wait=60) == (None, False, False, None)


def test_bytes_are_fetched(bound: Client) -> None:
    token = fetch(bound)[3]
    assert bound.one("select llm.cache_set_bytes('k', '\\x00ff', p_token => %s)", token) is True
    assert bound.one("select bytes from llm.cache_fetch('k')") == b"\0\xff"
    assert bound.one("select bytes from llm.cache_fetch('k', 'other')") is None


def test_a_lease_is_no_value(bound: Client) -> None:
    fetch(bound)
    assert bound.one("select llm.cache_get('k')") is None
    assert bound.rows("select * from llm.cache_keys()") == []
    assert bound.one("select llm.cache_delete('k')") is False
    fetch(bound)
    assert bound.one("select llm.cache_set_nx('k', '1')") is True

"""Policies: how large a namespace gets, what goes first, what is compressed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from psycopg.errors import InvalidParameterValue, ObjectNotInPrerequisiteState
from psycopg.types.json import Jsonb

from tests.support import Client, Database, raises
from tests.test_cache import age


def test_a_policy_is_kept_and_replaced(bound: Client, db: Client) -> None:
    policy = bound.row("select (llm.set_cache_policy(1000000, 500, 60, false, 0.8, 30, true, 'n')).*")
    assert policy == ("n", 1_000_000, 500, 60, False, 0.8, 30, True)
    assert bound.row("select (llm.set_cache_policy(p_default_ttl => 1.5, p_namespace => 'n')).*") == ("n", None, None, 1.5, True, 0.9, None, False)
    assert bound.rows("select namespace, default_ttl from llm.cache_policies") == [("n", 1.5)]


@pytest.mark.parametrize(
    "arguments", ["p_max_size => 0", "p_max_entries => -1", "p_default_ttl => 0", "p_idle => -5", "p_eviction_threshold => 0.1",
                  "p_eviction_threshold => 1.1", "p_use_compression => null", "p_namespace => null"],
)  # fmt: skip
def test_what_is_no_policy_is_refused(bound: Client, arguments: str) -> None:
    with raises(InvalidParameterValue, match="this is no policy of a cache: ", hint="0.2 to 1"):
        bound.run(f"select llm.set_cache_policy({arguments})")


def test_a_policy_is_a_tenants(app: Client) -> None:
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        app.run("select llm.set_cache_policy()")
    with app.tenant("a"):
        app.run("select llm.set_cache_policy(p_default_ttl => 60)")
    with app.tenant("b"):
        assert app.rows("select * from llm.cache_policies") == []
        app.run("select llm.cache_set('k', '1')")
        assert app.one("select llm.cache_ttl('k')") == -1


def test_the_default_time_to_live_is_of_the_policy(bound: Client) -> None:
    bound.run("select llm.set_cache_policy(p_default_ttl => 100, p_namespace => 'n')")
    for ttl, left in ((None, 100), (10, 10), (float("inf"), -1)):
        bound.run("select llm.cache_set('k', '1', %s, 'n')", ttl)
        assert bound.one("select llm.cache_ttl('k', 'n')") == left


def test_the_least_recently_used_go_first(bound: Client, db: Client) -> None:
    # With an idle time each of these reads is noted, else some are.
    bound.run("select llm.set_cache_policy(p_max_entries => 100, p_idle => 30000)")
    bound.run("select llm.cache_set_many(%s)", Jsonb({f"old {number}": 1 for number in range(80)}))
    age(db, 3_600)
    for number in range(10, 20):
        assert bound.one(f"select llm.cache_get('old {number}')") == 1
    for number in range(60):
        bound.run(f"select llm.cache_set('new {number}', '1')")
    left = set(bound.column("select * from llm.cache_keys()"))
    assert {f"old {number}" for number in range(10, 20)} <= left
    assert {f"new {number}" for number in range(60)} <= left
    assert 80 <= len(left) <= 100
    assert bound.one("select evictions from llm.cache_stats()") == 140 - len(left)


def test_what_has_expired_goes_before_what_is_used(bound: Client, db: Client) -> None:
    bound.run("select llm.set_cache_policy(p_max_entries => 100)")
    bound.run("select llm.cache_set_many(%s)", Jsonb({f"used {number}": 1 for number in range(40)}))
    bound.run("select llm.cache_set_many(%s, 60)", Jsonb({f"short {number}": 1 for number in range(45)}))
    age(db, 61)
    bound.run("select llm.cache_set_many(%s)", Jsonb({f"new {number}": 1 for number in range(40)}))
    assert len(bound.column("select * from llm.cache_keys('used')")) == 40
    assert bound.one("select evictions from llm.cache_stats()") == 0


def test_a_namespace_stays_within_its_size_while_many_write(database: Database, bound: Client) -> None:
    """Never more than 10 % over it, and not emptied for it."""
    limit = 400_000
    bound.run("select llm.set_cache_policy(p_max_size => %s)", limit)
    usage = "select bytes from llm._cache_usage('acme', 'default')"
    measure = database.client()

    def write(seed: int) -> list[int]:
        random, client, found = Random(seed), database.client("app"), []
        for number in range(300):
            client.run("select llm.cache_set_bytes(%s, %s)", f"key {random.randrange(2_000)}", random.randbytes(random.randrange(4_000)))
            if number % 10 == 0 and seed == 0:
                found.append(measure.one(usage))
        return found

    with ThreadPoolExecutor(4) as pool:
        sizes = next(iter(list(pool.map(write, range(4)))))
    assert max(sizes) <= limit * 1.1
    assert min(sizes[len(sizes) // 2 :]) >= limit * 0.7
    assert bound.one("select memory_used <= %s and evictions > 100 from llm.cache_stats()", limit)


def test_a_smaller_policy_applies_at_once(bound: Client) -> None:
    bound.run("select llm.cache_set('k' || i, '1') from generate_series(1, 300) i")
    bound.run("select llm.set_cache_policy(p_max_entries => 200, p_eviction_threshold => 0.5)")
    assert bound.one("select entries from llm.cache_stats()") == 80
    assert bound.one("select llm.apply_eviction_policy()") == 0
    # Those that came last are left.
    assert "k300" in bound.column("select * from llm.cache_keys()")


def test_a_transaction_of_one_snapshot_sets_beyond_the_limit(bound: Client) -> None:
    """Evicting could fail it, where others evict, too."""
    bound.run("select llm.set_cache_policy(p_max_entries => 10)")
    with bound.transaction():
        bound.run("set transaction isolation level repeatable read").run("select llm.cache_set('k' || i, '1') from generate_series(1, 30) i")
    assert bound.one("select entries from llm.cache_stats()") == 30
    assert bound.one("select llm.apply_eviction_policy('default')") == 22
    assert bound.one("select entries from llm.cache_stats()") == 8


def test_long_values_are_compressed_unless_the_policy_says_no(bound: Client) -> None:
    bound.run("select llm.set_cache_policy(p_use_compression => false, p_namespace => 'plain')")
    text, content = "the model said so. " * 1_000, b"abc" * 5_000
    for namespace in ("default", "plain"):
        bound.run("select llm.cache_set_text('t', %s, p_namespace => %s), llm.cache_set_bytes('b', %s, p_namespace => %s)", text, namespace,
                  content, namespace)  # fmt: skip
        assert bound.one("select llm.cache_get_text('t', %s)", namespace) == text
        assert bound.one("select llm.cache_get_bytes('b', %s)", namespace) == content
    used = dict(bound.rows("select namespace, memory_used from llm.cache_stats()"))
    assert used["plain"] > len(text) + len(content)
    assert used["default"] < used["plain"] / 20
    assert set(bound.column("select pg_column_compression(coalesce(value::text, 'x')) is null from llm.cache_entries where namespace = 'plain'"))
    methods = "select distinct coalesce(pg_column_compression(value), pg_column_compression(bytes)) from llm.cache_entries where namespace = %s"
    assert bound.column(methods, "default") == ["lz4"]
    assert bound.column(methods, "plain") == [None]


def test_what_can_no_longer_be_read_is_deleted(bound: Client, db: Client) -> None:
    bound.run("select llm.cache_set('short', '1', 60), llm.cache_set('long', '1'), llm.cache_fetch('leased')")
    token = bound.one("select llm.cache_token()")
    bound.run("select llm.cache_set('outdated', '1', p_depends_on => '{m}', p_token => %s)", token).run("select llm.cache_bump('m')")
    assert bound.one("select llm.optimize_cache_usage()") == 1
    age(db, 100)
    # It is kept an hour, for llm.cache_fetch(); the lease has ended.
    assert bound.one("select llm.optimize_cache_usage()") == 1
    age(db, 3_600)
    assert bound.one("select llm.optimize_cache_usage()") == 1
    assert bound.column("select key from llm.cache_entries") == ["long"]


def test_the_cache_of_all_tenants_is_cleaned(app: Client, db: Client) -> None:
    for tenant in ("a", "b"):
        with app.tenant(tenant):
            app.run("select llm.cache_set('short', '1', 60), llm.cache_set('long', '1')")
    age(db, 4_000)
    db.run("call llm.clean_cache()")
    assert db.rows("select tenant_id, key from llm.cache_entries order by 1, 2") == [("a", "long"), ("b", "long")]

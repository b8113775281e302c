"""The cache: values by key, for a time, shared by all sessions of a tenant."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.errors import CheckViolation, InvalidParameterValue, NullValueNotAllowed, ObjectNotInPrerequisiteState
from psycopg.types.json import Jsonb

from tests.conftest import new_cluster, new_database
from tests.support import Client, Database, at_once, raises
from tools.cluster import Cluster, Installation

GET = "select llm.cache_get('k')"


@pytest.fixture(scope="module")
def server(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server of this module's own, to crash and to follow."""
    with new_cluster(installation, tmp_path_factory.mktemp("server")) as server:
        yield server


def age(db: Client, seconds: float) -> None:
    """Let time pass for all entries."""
    db.run(
        "update llm.cache_entries"
        " set created_at = created_at - d, expires_at = expires_at - d, used_at = used_at - d, leased_until = leased_until - d"
        " from make_interval(secs => %s) d",
        seconds,
    )


@pytest.mark.parametrize("value", [None, True, 1.5, "text", "", [1, [2]], {"a": {"b": "ä"}}, "x" * 100_000], ids=lambda value: str(value)[:20])
def test_any_json_comes_back(bound: Client, value: object) -> None:
    assert bound.one("select llm.cache_set('k', %s)", Jsonb(value)) is True
    assert bound.rows(GET) == [(value,)]
    assert bound.one("select llm.cache_get('k') is null") is False


def test_texts_and_bytes_come_back(bound: Client) -> None:
    for text in ("", "plain", "ä€😀", "a\nb\t\\\"'", "y" * 9_000):
        assert bound.one("select llm.cache_set_text('t', %s)", text) is True
        assert bound.one("select llm.cache_get_text('t')") == text
        assert bound.one("select llm.cache_get('t')") == text
    for content in (b"", b"\0\xff", bytes(range(256)) * 40):
        assert bound.one("select llm.cache_set_bytes('b', %s)", content) is True
        assert bound.one("select llm.cache_get_bytes('b')") == content
    bound.run("select llm.cache_set('k', '{\"a\": 1}')")
    assert bound.one("select llm.cache_get_text('k')") == '{"a": 1}'
    assert bound.one("select llm.cache_get_bytes('k')") is None
    assert bound.one("select llm.cache_get('b')") is None


def test_the_last_value_counts_in_every_session(database: Database, bound: Client) -> None:
    other = database.client("app")
    for number in range(5):
        bound.run("select llm.cache_set('k', to_jsonb(%s::int))", number)
        assert other.one(GET) == bound.one(GET) == number
    assert other.one("select llm.cache_delete('k')") is True
    assert bound.one(GET) is None
    assert bound.one("select llm.cache_delete('k')") is False


def test_a_write_is_part_of_its_transaction(database: Database, bound: Client) -> None:
    other = database.client("app")
    bound.run("select llm.cache_set('k', '1')").run("begin").run("select llm.cache_set('k', '2')")
    assert (bound.one(GET), other.one(GET)) == (2, 1)
    bound.run("rollback")
    assert bound.one(GET) == 1


def test_an_entry_expires(db: Client, bound: Client) -> None:
    bound.run("select llm.cache_set_ex('k', '1', 60)").run("select llm.cache_set('always', '1')").run("select llm.cache_set('l', '1', 'infinity')")
    age(db, 58)
    assert (bound.one(GET), bound.one("select llm.cache_ttl('k')")) == (1, 2)
    age(db, 3)
    assert (bound.one(GET), bound.one("select llm.cache_ttl('k')")) == (None, -2)
    age(db, 1e9)
    assert bound.one("select array[llm.cache_ttl('always'), llm.cache_ttl('l')]") == [-1, -1]
    assert bound.one("select llm.cache_delete('k')") is False


def test_an_entry_that_is_not_used_expires(db: Client, bound: Client) -> None:
    bound.run("select llm.set_cache_policy(p_idle => 100)").run("select llm.cache_set('k', '1'), llm.cache_set('left', '1')")
    for _ in range(5):
        age(db, 60)
        assert bound.one(GET) == 1
    assert bound.one("select llm.cache_get('left')") is None
    age(db, 101)
    assert bound.one(GET) is None


def test_reading_touches_only_now_and_then(db: Client, bound: Client) -> None:
    """An UPDATE for each hit would make reads writes."""
    version = "select array_agg(ctid::text order by key) from llm.cache_entries"
    bound.run("select llm.cache_set('k' || i, '1') from generate_series(1, 640) i")
    age(db, 1_000)
    before = db.one(version)
    # A read of each, and one in 64 is noted: 0 or more than 40 of them, once in ten thousand runs.
    assert bound.one("select count(llm.cache_get('k' || i)) from generate_series(1, 640) i") == 640
    touched = sum(now != then for now, then in zip(db.one(version), before, strict=True))
    assert 1 <= touched <= 40
    assert bound.one("select count(*) from llm.cache_entries where used_at > now() - interval '100 s'") == touched
    assert bound.one("select count(*) from llm.cache_get_many(array(select 'k' || i from generate_series(1, 640) i))") == 640
    assert touched <= bound.one("select sum(uses) from llm.cache_entries") <= 80


def test_what_may_be_idle_is_touched_when_that_is_due(db: Client, bound: Client) -> None:
    version = "select ctid::text from llm.cache_entries"
    bound.run("select llm.set_cache_policy(p_idle => 600)").run("select llm.cache_set('k', '1')")
    age(db, 61)
    # Not in a transaction that only reads, or that would fail because another has touched it.
    with bound.transaction():
        bound.run("set transaction read only").run(GET)
    with bound.transaction():
        bound.run("set transaction isolation level repeatable read").run("select count(*) from llm.cache_entries")
        age(db, 1)
        before = db.one(version)
        assert bound.one(GET) == 1
    assert db.one(version) == before
    assert bound.one(GET) == 1
    assert db.one(version) != before
    assert bound.one("select used_at > now() - interval '5 s' and uses = 1 from llm.cache_entries")


def test_a_read_does_not_wait_for_a_writer(db: Client, bound: Client, database: Database) -> None:
    bound.run("select llm.set_cache_policy(p_idle => 600)").run("select llm.cache_set('k', '1')")
    age(db, 100)
    other = database.client("app").run("set lock_timeout = '5s'")
    bound.run("begin").run("select llm.cache_set('k', '2')")
    assert other.one(GET) == 1
    bound.run("rollback")


def test_of_many_who_set_what_is_not_there_one_does(database: Database, bound: Client, db: Client) -> None:
    """Q-16: SETNX."""
    clients = database.clients(8, "app")
    for _ in range(5):
        assert sorted(at_once(clients, "select llm.cache_set_nx('k', '1', 60)")) == [False] * 7 + [True]
        age(db, 61)
    assert bound.one("select llm.cache_set_nx('k', '2')") is True
    assert bound.one("select llm.cache_set_nx('k', '3')") is False
    assert bound.one(GET) == 2


def test_namespaces_are_apart_and_cleared_apart(bound: Client) -> None:
    for namespace in ("a", "b", "default"):
        bound.run("select llm.cache_set('k', to_jsonb(%s::text), p_namespace => %s)", namespace, namespace)
    assert bound.one("select llm.cache_get('k', 'a') || llm.cache_get('k', 'b') || llm.cache_get('k')") == ["a", "b", "default"]
    assert bound.one("select llm.cache_clear('a')") == 1
    assert bound.one("select llm.cache_get('k', 'a')") is None
    assert bound.one("select llm.cache_clear()") == 2
    assert bound.one(GET) is None


def test_tenants_are_apart(database: Database) -> None:
    one, two = database.clients(2, "app")
    with one.tenant("a"):
        one.run("select llm.cache_set('k', '\"of a\"', p_tags => '{t}')")
    with two.tenant("b"):
        assert two.one(GET) is None
        assert two.rows("select * from llm.cache_keys()") == two.rows("select * from llm.cache_stats() where entries > 0") == []
        assert two.one("select llm.cache_clear() + llm.cache_invalidate('*') + llm.cache_invalidate_tag('t') + llm.cache_delete_many('{k}')") == 0
        assert two.one("select llm.cache_set_nx('k', '\"of b\"')") is True
        two.run("select llm.cache_bump('m')")
    with one.tenant("a"):
        assert one.one(GET) == "of a"
        assert one.one("select count(*) from llm.cache_entries") == 1


def test_without_a_tenant_nothing_is_read_or_written(app: Client) -> None:
    assert app.one(GET) is None
    assert app.rows("select * from llm.cache_get_many('{k}')") == app.rows("select * from llm.cache_stats()") == []
    for call in ("set('k', '1')", "delete('k')", "clear()", "fetch('k')", "bump('k')", "invalidate('k')", "invalidate_tag('k')"):
        with raises(ObjectNotInPrerequisiteState, match="no tenant is set, and the cache is a tenant's", hint="set_tenant"):
            app.run(f"select llm.cache_{call}")


def test_a_role_that_is_bound_cannot_read_another_tenants(database: Database, db: Client, app: Client) -> None:
    with app.tenant("victim"):
        app.run("select llm.cache_set('k', '\"of victim\"')")
    db.run("select llm.bind_role('app', 'acme')")
    with app.transaction():
        app.run("select set_config('llm.tenant', 'victim', true), set_config('llm.tenant_set_at', date_part('epoch', now())::text, true)")
        assert app.one(GET) is None
        assert app.rows("select * from llm.cache_get_many('{k}')") == []
        assert app.one("select llm.cache_get_l1('k')") is None
    # A role that works for a tenant through SET ROLE.
    db.run("select llm.bind_role('app', null)").run("select llm.bind_role('reader', 'acme')").run("grant reader to app")
    with app.transaction():
        app.run("select llm.set_tenant('victim')")
        assert app.one(GET) == "of victim"
        app.run("set local role reader")
        assert app.one(GET) is None
    db.run("revoke reader from app")


@pytest.mark.parametrize(
    ("call", "error", "match", "hint"),
    [
        ("set(null, '1')", NullValueNotAllowed, "the key of the cache, or the value of NULL, is null", "cache_delete"),
        ("set('k', null)", NullValueNotAllowed, "the value of 'k', is null", "JSON null"),
        ("set_bytes('k', null)", NullValueNotAllowed, "the value of 'k', is null", ""),
        ("fetch(null)", NullValueNotAllowed, "the key of the cache", ""),
        ("set('k', '1', 0)", InvalidParameterValue, "the cache cannot keep 'k' for 0 s", "seconds and more than 0"),
        ("set('k', '1', -1.5)", InvalidParameterValue, "cannot keep 'k' for -1.5 s", ""),
        ("set('k', '1', 'nan')", InvalidParameterValue, "cannot keep 'k' for NaN s", ""),
        ("set_ex('k', '1', null)", InvalidParameterValue, "cannot keep 'k' for 0 s", ""),
        ("set('', '1')", CheckViolation, "cache_entries_key_check", ""),
        ("set(repeat('k', 1001), '1')", CheckViolation, "cache_entries_key_check", ""),
        ("set('k', '1', p_namespace => '')", CheckViolation, "cache_entries_namespace_check", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_cached_is_refused(bound: Client, call: str, error: type[Exception], match: str, hint: str) -> None:
    with raises(error, match=match, hint=hint):  # type: ignore[arg-type]
        bound.run(f"select llm.cache_{call}")
    assert bound.one("select count(*) from llm.cache_entries") == 0


def test_q_10_after_a_crash_the_cache_is_empty_and_works(server: Cluster) -> None:
    """Q-10, Q-12"""
    for database in new_database(server):
        database.client().run("select llm.bind_role('app', 'acme')")
        client = database.client("app")
        client.run("select llm.set_cache_policy(p_default_ttl => 60, p_l1 => true)").run("select llm.cache_set('k', '1')")
        token = client.one("select llm.cache_token()")
        lease = client.one("select token from llm.cache_fetch('other')")
        assert client.one("select llm.cache_get_l1('k')") == 1
        database.close()
        server.crash()
        server.start()

        client = database.client("app")
        assert client.one(GET) is client.one("select llm.cache_get_l1('k')") is None
        assert client.rows("select * from llm.cache_get_many('{k}')") == []
        assert client.one("select llm.cache_ttl('k')") == -2
        # What was computed before the crash is not taken, though this life has a name by now: transaction ids may come again.
        assert client.one("select llm.cache_token()").split("/")[0] != token.split("/")[0]
        assert client.one("select llm.cache_set('k', '1', p_depends_on => '{m}', p_token => %s)", token) is False
        assert client.one("select llm.cache_set('other', '1', p_token => %s)", lease) is False
        assert client.one("select llm.cache_release('other', %s)", lease) is False
        assert client.one("select must_compute from llm.cache_fetch('other')") is True
        token = client.one("select llm.cache_token()")
        assert client.one("select llm.cache_set('k', '2', p_depends_on => '{m}', p_token => %s)", token) is True
        assert client.one(GET) == 2
        assert client.one("select llm.cache_ttl('k')") == 60
        database.close()


def test_a_standby_computes(server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    """HA-07: where the cache cannot be read it is empty; where it cannot be written nothing is kept, and nobody is told to wait."""
    for database in new_database(server):
        database.client().run("select llm.bind_role('app', 'acme')")
        client = database.client("app").run("select llm.set_cache_policy(p_l1 => true)").run("select llm.cache_set('k', '1')")
        standby = server.standby(tmp_path_factory.mktemp("standby"))
        written = client.one("select pg_current_wal_lsn()::text")
        reader = Database(standby, database.name)
        try:
            there = reader.client("app")
            there.wait("select pg_last_wal_replay_lsn() >= %s::text::pg_lsn", written)
            assert there.row("select llm.cache_get('k'), llm.cache_get_l1('k'), llm.cache_get_bytes('k'), llm.cache_token()") == (None,) * 4
            assert there.one("select llm.cache_set('k', '1')") is there.one("select llm.cache_delete('k')") is False
            assert there.row("select * from llm.cache_fetch('k')") == (None, None, False, True, None, None)
            assert there.row("select namespace, entries from llm.cache_stats()") == ("default", 0)
            assert there.rows("select * from llm.cache_keys()") == there.rows("select * from llm.cache_get_many('{k}')") == []
            assert there.one("select llm.cache_clear() + llm.cache_invalidate('*') + llm.cache_invalidate_tag('t') + llm.optimize_cache_usage()") == 0
            assert there.one("select llm.apply_eviction_policy() + llm.cache_delete_many('{k}')") == 0
            assert there.one("select llm.cache_release('k', 'x')") is False
        finally:
            reader.close()
            standby.stop()
        database.close()

"""Configuration as it changes: watching, notifications, and the functions of the cache."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from tests.support import Client, Database, raises

SAVE = "select llm.save_config(%s, %s)"


def save(client: Client, key: str, value: Any = 1, tenant: str = "acme") -> None:
    with client.tenant(tenant):
        client.run(SAVE, key, Jsonb(value))


def watch(client: Client, after: int | None = None, prefix: str = "", limit: int = 1000) -> list[tuple[int, str]]:
    """The id and key of each change that acme sees."""
    with client.tenant("acme"):
        return client.rows("select id, key from llm.watch_config(%s, %s, %s)", after, prefix, limit)


def until_settled(client: Client) -> None:
    """Wait until no other transaction of the server is open, as those of autovacuum."""
    newest = client.one("select pg_current_xact_id()::text")
    client.wait("select pg_snapshot_xmin(pg_current_snapshot()) > %s::xid8", newest)


def test_a_watcher_gets_each_change_once_in_order(app: Client) -> None:
    for key in "abc":
        save(app, key)
    until_settled(app)
    first = watch(app, limit=2)
    rest = watch(app, after=first[-1][0])
    assert [key for _, key in first + rest] == ["a", "b", "c"]
    assert watch(app, after=rest[-1][0]) == []
    save(app, "a", 2)
    until_settled(app)
    assert [key for _, key in watch(app, after=rest[-1][0])] == ["a"]


def test_a_change_tells_what_who_when_and_why(app: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.save_config('k', '1', p_reason => 'first')").run("select llm.delete_config('k')")
    until_settled(app)
    with app.tenant("acme"):
        changes = app.rows("select tenant_id, key, value, version, operation, changed_by, reason from llm.watch_config()")
        assert app.one("select bool_and(changed_at between now() - interval '1 minute' and now()) from llm.watch_config()") is True
    assert changes == [("acme", "k", 1, 1, "insert", "app", "first"), ("acme", "k", None, 2, "delete", "app", None)]


def test_a_watcher_gets_global_changes_but_no_other_tenants(app: Client, db: Client) -> None:
    save(app, "own")
    save(app, "foreign", tenant="globex")
    db.run(SAVE, "global", Jsonb(1))
    until_settled(app)
    assert [key for _, key in watch(app)] == ["own", "global"]
    until_settled(db)
    assert db.column("select key from llm.watch_config()") == ["global"]


def test_a_watcher_can_ask_for_a_prefix(app: Client) -> None:
    for key in ("a%b", "aXb", "b"):
        save(app, key)
    until_settled(app)
    assert [key for _, key in watch(app, prefix="a%")] == ["a%b"]


def test_no_change_is_lost_while_an_older_transaction_is_open(app: Client, database: Database) -> None:
    """The older change has the lower transaction id but may get the higher change id, or commit last."""
    older, watcher = database.clients(2, "app")
    older.run("begin").run("select llm.set_tenant('acme')").run(SAVE, "older", Jsonb(1))
    save(app, "younger")
    assert watch(watcher) == []
    older.run(SAVE, "older, late", Jsonb(1)).run("commit")
    until_settled(app)
    changes = watch(watcher)
    assert sorted(key for _, key in changes) == ["older", "older, late", "younger"]
    seen = [changes[0]]
    while more := watch(watcher, after=seen[-1][0], limit=1):
        seen += more
    assert seen == changes


def test_a_change_of_a_transaction_that_is_rolled_back_never_appears(app: Client, database: Database) -> None:
    doomed = database.client("app")
    doomed.run("begin").run("select llm.set_tenant('acme')").run(SAVE, "doomed", Jsonb(1))
    save(app, "kept")
    doomed.run("rollback")
    until_settled(app)
    assert [key for _, key in watch(app)] == ["kept"]


def test_an_unknown_change_is_refused(app: Client) -> None:
    save(app, "foreign", tenant="globex")
    (foreign,) = database_ids(app)
    for unknown in (foreign, 10**12, -1):
        with raises(errors.NoDataFound, f"configuration change {unknown} does not exist", hint="Start again without p_after"):
            watch(app, after=unknown)


def database_ids(client: Client) -> list[int]:
    with client.tenant("globex"):
        return client.column("select id from llm.config_history")


def test_history_of_another_server_is_refused_until_setup(app: Client, db: Client) -> None:
    save(app, "k")
    db.run("update llm.config_history set transaction_id = '9000000000'").run("update llm.schema_migrations set server_id = server_id + 1")
    with raises(errors.ObjectNotInPrerequisiteState, "restored from another server", hint=r"llm\.setup\(\)"):
        watch(app)
    db.run("select llm.setup()")
    assert [key for _, key in watch(app)] == ["k"]


def notifications(client: Client) -> int:
    """How many have arrived: the server sends them before it answers the next statement."""
    client.run("select 1")
    return len(list(client.connection.notifies(timeout=0)))


def test_nobody_is_notified_unless_asked(app: Client, db: Client) -> None:
    db.run("listen llm_config")
    save(app, "k")
    assert notifications(db) == 0


@pytest.mark.parametrize(
    "change",
    [
        "select llm.save_configs('{\"a\": 1, \"b\": 2, \"c\": 3}')",
        "select llm.delete_config('k')",
        "update llm.config set value = '7'",
        "truncate llm.config",
    ],
)
def test_a_transaction_notifies_once(change: str, database: Database, db: Client) -> None:
    listener = database.client("nobody").run("listen llm_config")
    db.run(SAVE, "k", Jsonb(1)).run("set llm.config_notify = on")
    with db.transaction():
        db.run(change).run(change)
    assert notifications(listener) == 1
    db.run("begin").run(SAVE, "k", Jsonb(2)).run("rollback")
    assert notifications(listener) == 0


# The cache


def is_cached(client: Client, key: str) -> tuple[Any, ...]:
    return client.row("select llm.get_cached_config(%s), (llm.config_access(%s)).cached", key, key)


@pytest.fixture
def cached(database: Database) -> Client:
    """A client that has the value of k in its cache."""
    client = database.client()
    client.run(SAVE, "k", Jsonb({"a": 1}))
    client.wait("select llm.cache_config('k')")
    return client


def test_a_value_is_cached_ahead_of_its_use(cached: Client) -> None:
    assert is_cached(cached, "k") == ({"a": 1}, True)
    assert cached.one("select cached from llm.load_configs()") is True


def test_nothing_is_cached_before_it_is_read(database: Database, cached: Client) -> None:
    fresh = database.client()
    assert is_cached(fresh, "k") == (None, False)
    assert fresh.one("select llm.cache_config('unknown')") is False
    assert fresh.rows("select * from llm.config_cache()") == []


def test_the_cache_lists_what_it_holds_for_the_tenant(cached: Client) -> None:
    cached.run(SAVE, "other", Jsonb(2))
    cached.wait("select llm.cache_config('other')")
    rows = cached.rows("select key, value, valid, expires_at > now(), expires_at < now() + interval '1 hour 1 minute' from llm.config_cache()")
    assert rows == [("k", {"a": 1}, True, True, True), ("other", 2, True, True, True)]
    with cached.tenant("acme"):
        assert cached.rows("select * from llm.config_cache()") == []


def test_an_entry_is_not_valid_once_its_row_changed(cached: Client, db: Client) -> None:
    db.run(SAVE, "k", Jsonb(2))
    assert cached.rows("select key, valid from llm.config_cache()") == [("k", False)]
    assert is_cached(cached, "k") == (None, False)
    assert cached.one("select llm.load_config('k')") == 2


@pytest.mark.parametrize("key", ["k", None])
def test_every_backend_reads_anew_what_is_invalidated(database: Database, cached: Client, key: str | None) -> None:
    database.client("app").run("select llm.invalidate_config_cache(%s)", key)
    assert is_cached(cached, "k") == (None, False)
    cached.wait("select llm.cache_config('k')")
    assert is_cached(cached, "k") == ({"a": 1}, True)


def test_an_invalidation_of_one_key_leaves_the_others(database: Database, cached: Client) -> None:
    database.client("app").run("select llm.invalidate_config_cache('another')")
    assert is_cached(cached, "k") == ({"a": 1}, True)


def test_what_a_transaction_changed_it_reads_from_the_table(cached: Client) -> None:
    with cached.transaction():
        cached.run(SAVE, "k", Jsonb(2))
        assert cached.one("select llm.cache_config('k')") is False
        assert is_cached(cached, "k") == (None, False)
        assert cached.one("select llm.load_config('k')") == 2


def test_ones_own_changes_are_no_restore_from_another_server(app: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.save_config('k', '1')")
        assert app.rows("select * from llm.watch_config()") == []

"""On a streaming standby, and after it was promoted: reads work and are right, and nothing is ever stale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.errors import FeatureNotSupported, ReadOnlySqlTransaction

from tests.conftest import new_cluster, new_database
from tests.security.support import answers, functions, relations, unlogged_relations
from tests.support import Client, Database, in_tenant, raises, wait_until
from tools.cluster import Cluster, Installation


@pytest.fixture(scope="module")
def server(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A primary."""
    with new_cluster(installation, tmp_path_factory.mktemp("primary")) as server:
        yield server


@pytest.fixture(scope="module")
def following(server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A standby of it, which is only read."""
    with stopped_at_the_end(server.standby(tmp_path_factory.mktemp("following"))) as standby:
        yield standby


@pytest.fixture
def primary(server: Cluster) -> Iterator[Database]:
    """A new database of the primary, with key k of tenant a."""
    for database in new_database(server):
        save(database.client(), "first")
        yield database


@pytest.fixture
def standby(primary: Database, following: Cluster) -> Iterator[Database]:
    """The same database on the standby."""
    database = Database(following, primary.name)
    replay(primary, following)
    yield database
    database.close()


@pytest.fixture
def heir(primary: Database, tmp_path: Path) -> Iterator[Database]:
    """The same database on a standby of the test's own, to promote."""
    with stopped_at_the_end(primary.cluster.standby(tmp_path / "heir")) as standby:
        database = Database(standby, primary.name)
        replay(primary, standby)
        yield database
        database.close()


@contextmanager
def stopped_at_the_end(server: Cluster) -> Iterator[Cluster]:
    """Stop a server at last."""
    try:
        yield server
    finally:
        server.stop()


def save(client: Client, value: str, key: str = "k") -> None:
    """Save a value for tenant a."""
    with client.tenant("a"):
        client.run("select llm.save_config(%s, to_jsonb(%s::text))", key, value)


def load(client: Client) -> str:
    """Load key k of tenant a, which a read of the table must confirm."""
    with client.transaction():
        client.run("set transaction isolation level repeatable read").run("select llm.set_tenant('a')")
        value, stored = client.row("select llm.load_config('k'), llm.load_config('k', p_cached => false)")
        assert value == stored
        return str(value)


def is_cached(client: Client) -> bool:
    """Tell whether the backend's cache would take, or holds, key k of tenant a."""
    with client.tenant("a"):
        return bool(client.one("select llm.cache_config('k')"))


def replay(primary: Database, standby: Cluster) -> None:
    """Wait until a standby has replayed what the primary has written."""
    written = primary.client().one("select pg_current_wal_lsn()::text")
    with standby.connect() as connection:
        client = Client(connection)
        client.wait("select pg_last_wal_replay_lsn() >= %s::text::pg_lsn", written)


#: Where nothing can be written, uses of a key are not counted, nor are queries logged, and both are let through.
UNCOUNTED = {"_log_query", "_reserve_uses"}

#: Where nothing can be cached, this is what functions that would set an entry answer, so that whoever computed goes on.
UNCACHED = ([(False,)], [(0,)])
SETTERS = {
    "_cache_put", "cache_release", "cache_set", "cache_set_bytes", "cache_set_ex", "cache_set_many", "cache_set_many_bytes", "cache_set_nx",
    "cache_set_text",
}  # fmt: skip


#: What a standby says of an unlogged table: nothing of it gets there.
UNLOGGED = ("0A000", "cannot access temporary or unlogged relations during recovery")


def test_every_function_answers_as_on_the_primary_or_says_that_it_cannot_write(primary: Database, standby: Database) -> None:
    """HA-07"""
    refused = set()
    for user in ("reader", "app", "admin", "auditor", "postgres"):
        granted = functions(primary.client(), user)
        # A primary that keeps nothing in its cache answers as a standby, which never does.
        expected = answers(primary.client(user).run("set llm.coherence_max_entries = 0"), granted)
        found = answers(standby.client(user), granted)
        for function in granted:
            outcome = found[function.signature]
            if function.name in SETTERS:
                assert outcome in UNCACHED, (function.signature, outcome)
            elif outcome != expected[function.signature] and function.name not in UNCOUNTED:
                assert function.volatility == "v" and isinstance(outcome, tuple), (function.signature, outcome, expected[function.signature])
                assert outcome[0] == "25006" or outcome == UNLOGGED, (function.signature, outcome)
                refused.add(function.name)
    assert {"save_config", "save_configs", "delete_config", "bind_role", "setup"} <= refused


def test_every_table_is_read_but_unlogged_ones(primary: Database, standby: Database) -> None:
    """HA-07: those do not exist there, so functions that read them answer as if they were empty."""
    reader, unlogged = standby.client(), unlogged_relations(primary.client())
    assert "llm.cache_entries" in unlogged
    for table in relations(primary.client(), "rpvm"):
        try:
            reader.rows(f"select * from {table} limit 1")
        except FeatureNotSupported as error:
            assert (error.sqlstate, error.diag.message_primary) == UNLOGGED
            assert table in unlogged, table
        else:
            assert table not in unlogged, table


def test_a_write_is_refused(standby: Database) -> None:
    """HA-07"""
    app = standby.client("app")
    for write in (
        "llm.save_config('k', '1')",
        "llm.save_configs('{\"k\": 1}')",
        "llm.delete_config('k')",
        "llm.rollback_config(p_at => '2000-01-01')",
    ):
        with raises(ReadOnlySqlTransaction, match="read-only transaction"), app.tenant("a"):
            app.run(f"select {write}")


def test_a_standby_limits_rates_for_itself(standby: Database) -> None:
    """HA-07"""
    app = standby.client("app")
    limit = "select allowed from llm.rate_limit('api', 'standby', 1, '1 hour', p_transactional => %s)"
    with app.tenant("a"):
        assert [app.one(limit, False), app.one(limit, False)] == [True, False]
        with raises(ReadOnlySqlTransaction, match="a standby counts nothing in tables", hint="p_transactional"):
            app.run(limit, True)


def test_on_a_standby_the_semantic_cache_is_empty(standby: Database) -> None:
    """HA-07"""
    app = standby.client("app")
    look = "select * from llm.semantic_cache_get('q', '[1,2]', 0.9, 'm', p_shadow => %s)"
    with app.tenant("a"):
        assert app.rows(look, False) == []
        with raises(ReadOnlySqlTransaction, match="a standby records no look-ups", hint="on the primary"):
            app.run(look, True)


def test_on_a_standby_nobody_tries_a_broken_service(primary: Database, standby: Database) -> None:
    """HA-07"""
    writer, app = primary.client("app"), standby.client("app")
    with writer.tenant("a"):
        writer.run("select llm.set_breaker('model', 1, '1 ms')").run("select llm.breaker_failure('model')")
    replay(primary, standby.cluster)
    with app.tenant("a"):
        assert app.column("select allowed from unnest(array['model', 'other']) s, llm.breaker_allow(s)") == [False, True]


def test_reads_follow_the_primary_and_are_never_cached(primary: Database, standby: Database) -> None:
    """HA-07"""
    writer, reader = primary.client("app"), standby.client("reader")
    assert load(reader) == "first"
    for number in range(20):
        save(writer, f"value {number}")
        replay(primary, standby.cluster)
        assert load(reader) == load(reader) == f"value {number}"
        assert not is_cached(reader)
        with reader.tenant("a"):
            assert reader.one("select cached from llm.config_access('k')") is False
            assert reader.one("select llm.get_cached_config('k')") is None
    assert reader.one("select sum(entries) from llm.coherence_stats()") == 0
    assert reader.one("select sum(misses) from llm.coherence_stats()") > 0


def test_a_stream_is_read_up_to_what_was_at_work(primary: Database, standby: Database) -> None:
    """HA-07: transactions open on the primary hold readers of the standby back, also those that did more than 64 savepoints, or were prepared."""
    slow, quick, reader = primary.client("app"), primary.client("app"), standby.client("reader")
    in_tenant(slow, "a").run("select llm.stream_append('s', '1')")
    for _ in range(70):
        with slow.transaction():
            slow.run("select llm.stream_append('s', '2')")
    prepared = in_tenant(primary.client(), "a")
    prepared.run("select llm.stream_append('s', '3')").run("prepare transaction 'stream'")
    with quick.tenant("a"):
        quick.run("select llm.stream_append('s', '4')")

    def read(after: str | None = None) -> list[tuple[str, int]]:
        replay(primary, standby.cluster)
        with reader.tenant("a"):
            return reader.rows("select position, payload from llm.stream_read('s', %s)", after)

    assert read() == []
    slow.run("commit")
    seen = read()
    assert [payload for _, payload in seen] == [1, *[2] * 70]
    assert read(seen[-1][0]) == []
    primary.client().run("commit prepared 'stream'")
    assert [payload for _, payload in read(seen[-1][0])] == [3, 4]
    with reader.tenant("a"):
        assert reader.one("select (llm.stream_info('s')).waiting") == 0
    with quick.tenant("a"):
        assert quick.column("select position from llm.stream_read('s')")[:71] == [position for position, _ in seen]


def test_a_session_that_survives_the_promotion_begins_to_cache(heir: Database) -> None:
    """HA-07"""
    survivor = heir.client("app")
    assert load(survivor) == "first"
    assert not is_cached(survivor)
    heir.cluster.promote()

    assert load(survivor) == "first"
    writer = heir.client("app")
    save(writer, "something", key="another key")
    wait_until(lambda: is_cached(survivor))
    with survivor.tenant("a"):
        assert survivor.one("select cached from llm.config_access('k')") is True
    for number in range(20):
        save(writer, f"value {number}")
        assert load(survivor) == f"value {number}"
        assert load(writer) == f"value {number}"


def prepare(client: Client, value: str) -> None:
    """Leave a prepared transaction that changes key k."""
    client.run("begin").run("select llm.set_tenant('a')").run("select llm.save_config('k', to_jsonb(%s::text))", value)
    client.run("prepare transaction 'open'")


def check_prepared(database: Database, readers: list[Client], before: str, after: str) -> None:
    """Read while the prepared transaction is open, between writes of others; commit it; read again."""
    writer = database.client("app")
    for number in range(5):
        save(writer, str(number), key="another key")
        assert [load(reader) for reader in readers] == [before] * len(readers)
    database.client().run("commit prepared 'open'")
    assert [load(reader) for reader in readers] == [after] * len(readers)
    save(writer, "done", key="another key")
    wait_until(lambda: all(is_cached(reader) for reader in readers))
    assert [load(reader) for reader in readers] == [after] * len(readers)


def test_a_transaction_prepared_before_the_promotion_is_never_missed(primary: Database, heir: Database) -> None:
    """HA-07"""
    reader = heir.client("app")
    prepare(primary.client(), "second")
    try:
        replay(primary, heir.cluster)
        assert load(reader) == "first"
        heir.cluster.promote()
        check_prepared(heir, [reader, *heir.clients(2, "app")], "first", "second")
    finally:
        primary.client().run("rollback prepared 'open'")


def test_a_transaction_prepared_before_a_restart_is_never_missed(own_cluster: Cluster) -> None:
    """HA-07: nor when the file that it told is lost, as in a base backup."""
    for database in new_database(own_cluster):
        save(database.client(), "first")
        for end, before, after in ((own_cluster.stop, "first", "second"), (own_cluster.crash, "second", "third")):
            assert load(database.client("app")) == before
            prepare(database.client(), after)
            database.close()
            end()
            for file in Path(own_cluster.datadir).glob("pg_stat_tmp/pg_llm*"):
                file.unlink()
            own_cluster.start()
            check_prepared(database, database.clients(3, "app"), before, after)

"""The coherent cache, step by step: for each order in which a writer and a reader can meet, what the reader may answer."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest

from tests.conftest import new_database
from tests.support import Client, Database
from tools.cluster import Cluster

READ = "select llm.load_config(%s)"
SAVE = "select llm.save_config(%s, to_jsonb(%s::text))"


def begin(client: Client, isolation: str = "read committed", tenant: str = "acme") -> Client:
    """Open a transaction and, in REPEATABLE READ, take its snapshot."""
    return client.run(f"begin isolation level {isolation}").run("select llm.set_tenant(%s)", tenant)


def read(client: Client, key: str = "k") -> Any:
    """Read in a transaction of its own."""
    with client.tenant("acme"):
        return client.one(READ, key)


def is_cached(client: Client, key: str = "k") -> bool:
    with client.tenant("acme"):
        return client.one("select llm.get_cached_config(%s)", key) is not None


def save(client: Client, value: str, key: str = "k") -> None:
    with client.tenant("acme"):
        client.run(SAVE, key, value)


def warm(client: Client, key: str = "k") -> Any:
    """Read until the value is cached: the server's own transactions can hold it up."""
    for _ in range(10_000):
        value = read(client, key)
        if is_cached(client, key):
            return value
    raise AssertionError(f"{key} is not cached after 10,000 reads")


@pytest.fixture
def writer(database: Database) -> Client:
    client = database.client("app")
    save(client, "old")
    return client


@pytest.fixture
def reader(database: Database, writer: Client) -> Client:
    """A reader that holds the value in its cache."""
    client = database.client("reader")
    assert warm(client) == "old"
    return client


def test_what_an_open_writer_changes_is_read_but_not_kept(writer: Client, reader: Client, database: Database) -> None:
    begin(writer).run(SAVE, "k", "new")
    fresh = database.client("reader")
    assert [read(reader), read(fresh)] == ["old", "old"]
    assert [is_cached(reader), is_cached(fresh)] == [False, False]
    writer.run("commit")
    assert [read(reader), read(fresh)] == ["new", "new"]
    assert [warm(reader), warm(fresh)] == ["new", "new"]


def test_a_writer_sees_its_own_change_until_it_is_rolled_back(writer: Client, reader: Client) -> None:
    assert warm(writer) == "old"
    begin(writer).run(SAVE, "k", "new")
    assert writer.one(READ, "k") == "new"
    writer.run("rollback")
    assert [read(writer), read(reader)] == ["old", "old"]
    assert [warm(writer), warm(reader)] == ["old", "old"]


def test_a_savepoint_that_is_rolled_back_takes_its_change_along(writer: Client, reader: Client) -> None:
    begin(writer).run(SAVE, "k", "first").run("savepoint s").run(SAVE, "k", "second")
    assert writer.one(READ, "k") == "second"
    writer.run("rollback to s")
    assert writer.one(READ, "k") == "first"
    writer.run("commit")
    assert [read(writer), read(reader)] == ["first", "first"]


def test_a_change_only_inside_a_savepoint_that_is_rolled_back_is_seen_by_nobody(writer: Client, reader: Client) -> None:
    begin(writer).run("savepoint s").run(SAVE, "k", "new").run("rollback to s")
    assert [writer.one(READ, "k"), read(reader)] == ["old", "old"]
    writer.run("commit")
    assert [read(writer), read(reader)] == ["old", "old"]


def test_repeatable_read_answers_from_its_snapshot_and_leaves_nothing_behind(writer: Client, reader: Client) -> None:
    begin(reader, "repeatable read")
    save(writer, "new")
    for _ in range(3):
        assert reader.one(READ, "k") == "old"
    reader.run("commit")
    assert read(reader) == "new"


def test_a_snapshot_older_than_the_first_read_is_not_kept(writer: Client, database: Database) -> None:
    fresh = database.client("reader")
    begin(fresh, "repeatable read")
    save(writer, "new")
    for _ in range(3):
        assert fresh.one(READ, "k") == "old"
    fresh.run("commit")
    assert read(fresh) == "new"


def test_a_cursor_that_reads_late_by_an_old_snapshot_leaves_nothing_behind(writer: Client, database: Database) -> None:
    fresh = database.client("reader")
    begin(fresh).run("declare c cursor for select llm.load_config('k') from generate_series(1, 3)")
    save(writer, "new")
    assert fresh.column("fetch 2 from c") == ["old", "old"]
    assert fresh.one(READ, "k") == "new"
    fresh.run("commit")
    assert read(fresh) == "new"


def test_a_commit_between_the_word_and_the_row_is_noticed(writer: Client, database: Database, db: Client) -> None:
    fresh = database.client("reader")
    pid = fresh.connection.info.backend_pid
    begin(writer).run("lock table llm.config in access exclusive mode")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(read, fresh)
        db.wait("select count(*) from pg_locks where pid = %s and not granted", pid)
        writer.run(SAVE, "k", "new").run("commit")
        assert answer.result() in ("old", "new")
    assert read(fresh) == "new"


def test_an_older_transaction_that_writes_after_a_younger_one_is_noticed(writer: Client, reader: Client, database: Database) -> None:
    older = database.client("app")
    begin(older).run("select pg_current_xact_id()")
    save(writer, "younger")
    assert [read(reader), is_cached(reader)] == ["younger", False]
    older.run(SAVE, "k", "older")
    assert read(reader) == "younger"
    older.run("commit")
    assert read(reader) == "older"


def test_a_value_that_did_not_exist_is_noticed_when_it_does(writer: Client, reader: Client) -> None:
    assert [read(reader, "unknown") for _ in range(3)] == [None] * 3
    save(writer, "now", "unknown")
    assert read(reader, "unknown") == "now"


def test_a_tenants_value_that_appears_or_goes_is_noticed(writer: Client, reader: Client, db: Client) -> None:
    db.run(SAVE, "shared", "global")
    assert warm(reader, "shared") == "global"
    save(writer, "own", "shared")
    assert warm(reader, "shared") == "own"
    db.run(SAVE, "shared", "global, changed")
    assert read(reader, "shared") == "own"
    with writer.tenant("acme"):
        writer.run("select llm.delete_config('shared')")
    assert warm(reader, "shared") == "global, changed"
    db.run("select llm.delete_config('shared')")
    assert read(reader, "shared") is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("update llm.config set value = '\"new\"' where key = 'k'", "new"),
        ("delete from llm.config where key = 'k'", None),
        ("update llm.config set key = 'moved' where key = 'k'", None),
        ("update llm.config set tenant_id = 'globex' where key = 'k'", None),
        ("update llm.config set key = 'k' where key = 'other'", "other"),
        ("update llm.config set tenant_id = 'acme', key = 'k' where key = 'foreign'", "foreign"),
        ("insert into llm.config values ('acme', 'k', '\"new\"') on conflict (tenant_id, key) do update set value = excluded.value", "new"),
        ("merge into llm.config c using (select) s on c.key = 'k' when matched then update set value = '\"new\"'", "new"),
        ("merge into llm.config c using (select) s on c.key = 'k' when matched then delete", None),
        ("with d as (delete from llm.config where key = 'k') select llm.save_config('elsewhere', '1')", None),
        ("truncate llm.config", None),
        ("set local session_replication_role = replica; update llm.config set value = '\"new\"' where key = 'k'", "new"),
        ("set local session_replication_role = replica; truncate llm.config", None),
        ("alter table llm.config add column extra text default ''; update llm.config set value = '\"new\"'", "new"),
    ],
)
def test_every_way_to_change_a_row_is_noticed(change: str, expected: str | None, reader: Client, db: Client) -> None:
    frees_the_key = "where key in ('other', 'foreign')" if expected in ("other", "foreign") else "where false"
    db.run("insert into llm.config (tenant_id, key, value) values ('acme', 'other', '\"other\"'), ('globex', 'foreign', '\"foreign\"')")
    if expected in ("other", "foreign"):
        db.run("delete from llm.config where key = 'k'")
        assert read(reader) is None
    else:
        assert warm(reader) == "old"
    with db.transaction():
        db.run(change)
        before = None if frees_the_key != "where false" else "old"
        if "truncate" not in change and "alter" not in change:
            assert [read(reader), read(reader)] == [before, before]
    assert read(reader) == expected


def test_copy_is_noticed(reader: Client, db: Client) -> None:
    assert read(reader, "copied") is None
    with db.connection.cursor() as cursor, cursor.copy("copy llm.config (tenant_id, key, value) from stdin") as copy:
        copy.write_row(("acme", "copied", '"new"'))
    assert read(reader, "copied") == "new"


def test_a_prepared_transaction_counts_as_open_until_it_is_committed(writer: Client, reader: Client, db: Client) -> None:
    begin(writer).run(SAVE, "k", "new").run("prepare transaction 'coherence'")
    try:
        assert [read(reader), is_cached(reader)] == ["old", False]
    finally:
        db.run("commit prepared 'coherence'")
    assert warm(reader) == "new"


def test_a_prepared_transaction_that_is_rolled_back_changes_nothing(writer: Client, reader: Client, db: Client) -> None:
    begin(writer).run(SAVE, "k", "new").run("prepare transaction 'coherence'")
    db.run("rollback prepared 'coherence'")
    assert warm(reader) == "old"


def test_keys_that_share_a_word_stay_right(writer: Client, database: Database, db: Client) -> None:
    """The word of a key is crc32 of database, namespace and key, modulo 65,536."""
    oid = db.one("select oid::text from pg_database where datname = current_database()")

    def word(key: str) -> int:
        return zlib.crc32("\x1f".join((oid, "config", "acme", key)).encode()) % 65_536

    twin = next(key for key in (f"twin-{number}" for number in count()) if word(key) == word("k"))
    save(writer, "old", twin)
    reader = database.client("reader")
    assert [warm(reader), warm(reader, twin)] == ["old", "old"]
    begin(writer).run(SAVE, "k", "new")
    assert [is_cached(reader), is_cached(reader, twin)] == [False, False]
    assert [read(reader), read(reader, twin)] == ["old", "old"]
    writer.run("commit")
    assert [warm(reader), warm(reader, twin)] == ["new", "old"]


def test_setup_makes_every_backend_read_anew(reader: Client, db: Client) -> None:
    db.run("select llm.setup()")
    assert not is_cached(reader)
    assert warm(reader) == "old"


def test_an_extension_that_is_dropped_and_made_again_serves_no_old_value(reader: Client, db: Client) -> None:
    db.run("drop extension pg_llm cascade")
    db.run("update llm.config set value = '\"new\"'")
    db.run("set client_min_messages = error").run("create extension pg_llm").run("select llm.setup()")
    assert warm(reader) == "new"


def test_a_role_that_is_bound_while_others_read_is_noticed(writer: Client, reader: Client, db: Client) -> None:
    with writer.tenant("globex"):
        writer.run(SAVE, "k", "of globex")
    with reader.transaction():
        reader.run("select llm.set_tenant('acme')")
        assert reader.one(READ, "k") == "old"
        db.run("select llm.bind_role('reader', 'globex')")
        assert reader.one(READ, "k") == "of globex"
    db.run("select llm.bind_role('reader', null)")
    assert read(reader) == "old"


def test_a_snapshot_older_than_the_cache_is_answered_by_the_table_on_request(writer: Client, reader: Client, db: Client) -> None:
    """A cached value is never too old, but can be too new for an imported snapshot, or for a cursor in READ COMMITTED."""
    db.run("begin isolation level repeatable read")
    snapshot = db.one("select pg_export_snapshot()")
    save(writer, "new")
    assert warm(reader) == "new"
    reader.run("begin isolation level repeatable read").run(f"set transaction snapshot '{snapshot}'")
    reader.run("select llm.set_tenant('acme')")
    assert reader.one("select llm.load_config('k', p_cached => false)") == "old"
    reader.run("commit")
    assert read(reader) == "new"


def test_a_file_that_is_deleted_is_made_anew_without_an_old_snapshot_getting_into_it(own_cluster: Cluster) -> None:
    for database in new_database(own_cluster):
        writer, reader, db = database.client("app"), database.client("reader"), database.client()
        save(writer, "old")
        begin(reader, "repeatable read")
        save(writer, "new")
        delete_words(db)
        for _ in range(3):
            assert reader.one(READ, "k") == "old"
        reader.run("commit")
        assert read(reader) == "new"


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_the_first_reader_of_a_server_keeps_nobody_from_caching(own_cluster: Cluster, isolation: str) -> None:
    for database in new_database(own_cluster):
        save(database.client("app"), "old")
        first = begin(database.client("reader"), isolation)
        assert first.one(READ, "k") == "old"
        assert warm(database.client("reader")) == "old"


def test_prepared_transactions_count_as_open_after_any_restart(own_cluster: Cluster) -> None:
    with own_cluster.connect() as connection:
        connection.execute("create database kept template template_llm")
    for stop in (own_cluster.stop, own_cluster.crash):
        for is_deleted in (False, True):
            database = Database(own_cluster, "kept")
            writer, db = database.client("app"), database.client()
            save(writer, "old")
            begin(writer).run(SAVE, "k", "new").run("prepare transaction 'coherence'")
            if is_deleted:
                delete_words(db)
            database.close()
            stop()
            own_cluster.start()
            reader, db = database.client("reader"), database.client()
            assert [read(reader) for _ in range(3)] == ["old"] * 3
            assert not is_cached(reader)
            db.run("commit prepared 'coherence'")
            assert warm(reader) == "new"
            database.close()


def test_a_snapshot_from_before_a_promotion_leaves_nothing_behind(own_cluster: Cluster) -> None:
    for original in new_database(own_cluster):
        writer = original.client("app")
        save(writer, "old")
        standby = own_cluster.standby(own_cluster.directory.parent / "standby")
        replica = Database(standby, original.name)
        try:
            reader, db = replica.client("reader"), replica.client()
            begin(reader, "repeatable read")
            save(writer, "new")
            end = writer.one("select pg_current_wal_flush_lsn()")
            db.wait("select pg_last_wal_replay_lsn() >= %s", end)
            standby.promote()
            for _ in range(3):
                assert reader.one(READ, "k") == "old"
            reader.run("commit")
            assert read(reader) == "new"
        finally:
            replica.close()
            standby.stop()


def delete_words(db: Client) -> None:
    """Remove the shared file, as an administrator might who clears temporary files."""
    db.run("copy (select) to program 'rm pg_stat_tmp/pg_llm.coherence.1'")

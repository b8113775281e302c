"""The coherent cache of one backend: what it holds, how much, and what it tells about itself."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import errors

from tests.conftest import new_cluster, new_database
from tests.support import Client, Database, raises, wait_until
from tools.cluster import Cluster, Installation

LOAD = "select llm.load_config(%s)"

#: Where the counters of the first backend begin in the shared file: after 65,536 words and the header, 8 bytes each.
FIRST_SLOT = (65_536 + 8) * 8


@pytest.fixture(scope="module")
def quiet_cluster(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server whose counters only these tests move."""
    with new_cluster(installation, tmp_path_factory.mktemp("quiet")) as cluster:
        yield cluster


@pytest.fixture
def database(quiet_cluster: Cluster) -> Iterator[Database]:
    for database in new_database(quiet_cluster):
        db = database.client()
        db.run("select llm.save_configs((select jsonb_object_agg('key-' || i, 'value-' || i) from generate_series(0, 9) i))")
        until_settled(db)
        yield database


def until_settled(db: Client) -> None:
    """Wait until no open transaction keeps caches from being filled."""
    newest = db.one("select pg_current_xact_id()::text")
    db.wait("select pg_snapshot_xmin(pg_current_snapshot()) > %s::xid8", newest)
    # The first read after a server's start only begins its life.
    db.run(LOAD, "key-0")


def stats(db: Client, namespace: str = "config") -> dict[str, Any]:
    rows = db.rows("select to_jsonb(s) from llm.coherence_stats() s where namespace = %s", namespace)
    return rows[0][0] if rows else dict.fromkeys(("backends", "entries", "bytes", "hits", "misses", "evictions"), 0)


def cached_keys(client: Client) -> list[str]:
    """The keys in a client's cache, least recently used first."""
    return client.column("select key from llm.config_cache() where valid")


def limited(database: Database, **settings: str) -> Client:
    """A client whose cache has other limits: they are read when it first caches."""
    client = database.client()
    for name, value in settings.items():
        client.run(f"set llm.coherence_{name} = '{value}'")
    return client


def wait_until_gone(db: Client, pid: int) -> None:
    db.wait("select not exists (select from pg_stat_activity where pid = %s)", pid)


def test_values_are_kept_in_gd(db: Client) -> None:
    db.run(LOAD, "key-1")
    db.run("""
        do language plpython3u $$
        names = [name for name in GD if name.startswith("pg_llm config ")]
        values = [entry.value for name in names for entry in GD[name].values()]
        assert '"value-1"' in values, values
        $$
    """)


def test_statistics_cover_all_backends(database: Database, db: Client) -> None:
    before = stats(db)
    clients = database.clients(3)
    for client in clients:
        for _ in range(4):
            client.run(LOAD, "key-1")
    after = stats(db)
    assert {name: after[name] - before[name] for name in ("backends", "entries", "hits", "misses", "evictions")} == {
        "backends": 3,
        "entries": 3,
        "hits": 9,
        "misses": 3,
        "evictions": 0,
    }
    assert after["bytes"] - before["bytes"] >= 3 * len('"value-1"')
    assert after["hit_ratio"] == after["hits"] / (after["hits"] + after["misses"])


def test_an_answer_that_is_asked_for_at_each_call_is_counted_too(database: Database, db: Client) -> None:
    before = stats(db, "tenant_roles")
    client = database.client()
    for _ in range(4):
        client.run(LOAD, "key-1")
    after = stats(db, "tenant_roles")
    assert {name: after[name] - before[name] for name in ("entries", "hits", "misses")} == {"entries": 1, "hits": 3, "misses": 1}


def test_the_entries_of_a_backend_that_is_gone_do_not_count_but_its_hits_do(database: Database, db: Client) -> None:
    before = stats(db)
    client = database.client()
    pid = client.connection.info.backend_pid
    for _ in range(4):
        client.run(LOAD, "key-1")
    client.close()
    wait_until_gone(db, pid)
    after = stats(db)
    for name, counted in (("backends", 0), ("entries", 0), ("bytes", 0), ("hits", 3), ("misses", 1)):
        assert after[name] - before[name] == counted, name


def test_a_backend_that_takes_over_a_slot_forgets_no_hits(database: Database, db: Client) -> None:
    """A slot that a backend left for one namespace must not be taken for another while there are fresh ones."""
    for _ in range(5):
        client = database.client()
        pid = client.connection.info.backend_pid
        client.run(LOAD, "key-1").run(LOAD, "key-1")
        hits = stats(db)["hits"]
        client.close()
        wait_until_gone(db, pid)
        for other in database.clients(3):
            # Needs to know whether any role is bound, which has a namespace of its own, and nothing else.
            other.run("select llm.get_cached_config('key-1')")
        assert stats(db)["hits"] >= hits


def test_slots_of_another_users_process_do_not_stop_a_reader(quiet_cluster: Cluster, database: Database, db: Client) -> None:
    """After a restart of the machine the process that left a slot can be anybody's."""
    with Path(quiet_cluster.datadir, "pg_stat_tmp", "pg_llm.coherence.1").open("r+b") as file, mmap.mmap(file.fileno(), 0) as cells:
        original = cells[FIRST_SLOT : FIRST_SLOT + 8]
        cells[FIRST_SLOT : FIRST_SLOT + 8] = (1).to_bytes(8, "little")
        try:
            assert database.client().one(LOAD, "key-1") == "value-1"
        finally:
            cells[FIRST_SLOT : FIRST_SLOT + 8] = original


def test_the_least_recently_used_entry_is_evicted(database: Database, db: Client) -> None:
    client = limited(database, max_entries="3")
    for key in ("key-1", "key-2", "key-3", "key-1", "key-4"):
        client.run(LOAD, key)
    assert cached_keys(client) == ["key-3", "key-1", "key-4"]
    before = stats(db)
    client.run(LOAD, "key-5")
    after = stats(db)
    assert after["evictions"] - before["evictions"] == 1
    assert after["entries"] == before["entries"]
    assert [client.one(LOAD, f"key-{number}") for number in range(10)] == [f"value-{number}" for number in range(10)]


def test_a_cache_holds_no_more_bytes_than_it_may(database: Database, db: Client) -> None:
    client = limited(database, max_bytes="64 kB")
    before = stats(db)
    for number in range(50):
        client.run("select llm.save_config(%s, to_jsonb(repeat('x', 10000)))", f"large-{number}")
    for number in range(50):
        assert len(client.one(LOAD, f"large-{number}")) == 10_000
    after = stats(db)
    assert 0 < after["bytes"] - before["bytes"] <= 65_536
    assert 1 <= after["entries"] - before["entries"] <= 6
    assert cached_keys(client)[-1] == "large-49"


def test_bytes_are_counted_as_python_holds_them(database: Database, db: Client) -> None:
    """One character outside of Latin-1 makes Python hold each character of a string in two or four bytes."""
    client = database.client()
    client.run("select llm.save_config('emoji', to_jsonb(repeat('🦙', 5000)))")
    before = stats(db)
    client.run(LOAD, "emoji").run("select llm.cache_config('emoji')")
    assert cached_keys(client) == ["emoji"]
    assert stats(db)["bytes"] - before["bytes"] >= 4 * 5_000


def test_a_cache_without_room_answers_from_the_table(database: Database) -> None:
    for settings in ({"max_entries": "0"}, {"max_bytes": "0"}, {"ttl": "0 s"}, {"idle": "0 s"}):
        client = limited(database, **settings)
        assert [client.one(LOAD, "key-1") for _ in range(3)] == ["value-1"] * 3
        assert cached_keys(client) == []


def test_limits_below_zero_are_no_room(database: Database) -> None:
    for settings in ({"max_entries": "-1"}, {"max_bytes": "-1"}, {"ttl": "-1 s"}, {"idle": "-1 s"}):
        client = limited(database, **settings)
        assert [client.one(LOAD, "key-1") for _ in range(3)] == ["value-1"] * 3


def test_an_entry_ends_after_its_time_however_often_it_is_used(database: Database, db: Client) -> None:
    client = limited(database, ttl="20 ms")
    before = stats(db)["misses"]
    while stats(db)["misses"] - before < 3:
        assert client.one(LOAD, "key-1") == "value-1"


def test_an_entry_that_nobody_uses_ends(database: Database) -> None:
    client = limited(database, idle="20 ms")
    client.run(LOAD, "key-1")
    wait_until(lambda: not cached_keys(client))
    assert client.one(LOAD, "key-1") == "value-1"


def test_a_use_begins_the_idle_time_anew(db: Client) -> None:
    db.run(LOAD, "key-1")
    db.run("""
        do language plpython3u $$
        entry = next(GD[name] for name in GD if name.startswith("pg_llm config "))["", "key-1"]
        before = entry.used
        plpy.execute("select llm.load_config('key-1')")
        assert entry.used > before, (entry.used, before)
        $$
    """)


def test_a_value_that_is_too_large_is_right_but_not_cached(database: Database, db: Client) -> None:
    client = database.client()
    client.run("select llm.save_config('string', to_jsonb(repeat('x', 70000)))")
    client.run("select llm.save_config('object', jsonb_build_object('x', repeat('x', 5000)))")
    for _ in range(3):
        assert client.one(LOAD, "string") == "x" * 70_000
        assert client.one(LOAD, "object") == {"x": "x" * 5_000}
    assert client.one("select llm.cache_config('string')") is False
    assert client.one("select llm.cache_config('object')") is False
    client.run("select llm.save_config('string', '\"small\"')")
    assert client.one(LOAD, "string") == "small"
    assert client.one("select llm.cache_config('string')") is True


def test_an_unknown_key_is_no_hit(database: Database, db: Client) -> None:
    client = database.client()
    client.run(LOAD, "unknown")
    before = stats(db)
    assert [client.one("select llm.load_config('unknown', '7')") for _ in range(3)] == [7] * 3
    after = stats(db)
    assert after["hits"] == before["hits"]
    assert after["misses"] - before["misses"] == 3


def test_a_read_only_transaction_fills_the_cache(database: Database) -> None:
    client = database.client().run("set default_transaction_read_only = on")
    assert client.one(LOAD, "key-1") == "value-1"
    assert cached_keys(client) == ["key-1"]


def test_two_databases_do_not_see_each_others_values(quiet_cluster: Cluster, database: Database, db: Client) -> None:
    for other in new_database(quiet_cluster):
        stranger = other.client()
        stranger.run("select llm.save_config('key-1', '\"elsewhere\"')")
        assert [db.one(LOAD, "key-1"), stranger.one(LOAD, "key-1")] == ["value-1", "elsewhere"]


def test_without_its_file_nothing_is_written_and_the_table_still_answers(own_cluster: Cluster) -> None:
    for database in new_database(own_cluster):
        db = database.client()
        db.run("select llm.save_config('k', '\"old\"')")
        folder = Path(own_cluster.datadir, "pg_stat_tmp")
        (folder / "pg_llm.coherence.1").unlink()
        folder.chmod(0o500)
        try:
            for client in (db, database.client()):
                with raises(errors.IoError, "cannot be used: Permission denied", hint="needs to write that file"):
                    client.run("select llm.save_config('k', '\"new\"')")
                with raises(errors.IoError, "cannot be used"):
                    client.run("insert into llm.config (tenant_id, key, value) values ('*', 'direct', '1')")
                assert client.one("select llm.load_config('k', p_cached => false)") == "old"
            assert db.one("select count(*) from llm.config_history") == 1
        finally:
            folder.chmod(0o700)
        assert db.run("select llm.save_config('k', '\"new\"')").one(LOAD, "k") == "new"
        assert db.column("select ok from llm.doctor() where name = 'caches share one file'") == [True]

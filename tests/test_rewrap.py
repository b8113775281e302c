"""Encrypting anew what older versions of keys encrypted, while all goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from threading import Event

import psycopg
import pytest
from psycopg.errors import DependentObjectsStillExist, InsufficientPrivilege, InvalidParameterValue, ObjectNotInPrerequisiteState, UndefinedObject

from tests.conftest import new_database
from tests.support import Client, Database, raises, wait_until
from tools.cluster import Cluster

ROWS = 2000

WRONG = "select count(*) from notes where llm.decrypt_data(body, null, 'public.notes', 'body', id::text) <> 'note ' || id"
VERSIONS = "select get_byte(body, 21) as version, count(*) from notes group by 1 order by 1"


@pytest.fixture
def notes(db: Client, app: Client, master_key: Path) -> Client:
    """An application's client of a table whose rows the first version of tenant a's key encrypted; there is a second one."""
    db.run("create table public.notes (id bigint primary key, body bytea)").run("grant all on public.notes to app")
    db.run("select llm.register_encrypted_column('notes', 'body', 'id')")
    with app.tenant("a"):
        app.run("select llm.encrypt_data('the first use')")
    with app.tenant("a"):
        insert = "insert into notes select i, llm.encrypt_data('note ' || i, null, 'public.notes', 'body', i::text) from generate_series(1, %s) i"
        app.run(insert, ROWS)
        app.run("select llm.rotate_key()")
    return app


def test_every_value_is_encrypted_anew(notes: Client, db: Client) -> None:
    with notes.tenant("a"):
        assert notes.rows("select * from llm.encrypted_values()") == [("public.notes", "body", 1, ROWS)]
    assert notes.row("call llm.rewrap('notes', 'body', 'a', 700)") == ("done", ROWS)
    with notes.tenant("a"):
        assert notes.rows(VERSIONS) == [(2, ROWS)]
        assert notes.one(WRONG) == 0
        progress = notes.row("select table_name, column_name, rewrapped, last_row, finished_at >= started_at from llm.rewraps")
        assert progress == ("public.notes", "body", ROWS, str(ROWS), True)
    assert notes.row("call llm.rewrap('notes', 'body', 'a')") == ("done", 0)
    with notes.tenant("b"):
        assert notes.rows("select * from llm.rewraps") == []


def test_tenants_whose_rows_have_the_same_numbers_do_not_mix(db: Client, app: Client, master_key: Path) -> None:
    db.run("create table public.shared (tenant text, id bigint, body bytea, primary key (tenant, id))").run("grant all on public.shared to app")
    db.run("select llm.register_encrypted_column('shared', 'body', 'id')")
    for tenant in ("a", "b", "c"):
        with app.tenant(tenant):
            insert = "insert into shared select %s, i, llm.encrypt_data(%s, null, 'public.shared', 'body', i::text) from generate_series(1, 50) i"
            app.run(insert, tenant, tenant)
            app.run("select llm.rotate_key()")
    for tenant in ("a", "b"):
        assert app.row("call llm.rewrap('shared', 'body', %s, 7)", tenant) == ("done", 50)
    versions = app.rows("select tenant, get_byte(body, 21), count(*) from shared group by 1, 2 order by 1")
    assert versions == [("a", 2, 50), ("b", 2, 50), ("c", 1, 50)]
    for tenant in ("a", "b", "c"):
        with app.tenant(tenant):
            texts = app.column(
                "select distinct llm.decrypt_data(body, null, 'public.shared', 'body', id::text) from shared where tenant = %s", tenant
            )
            assert texts == [tenant]


def test_progress_is_visible(notes: Client, database: Database) -> None:
    other = database.client("app")
    with notes.tenant("a"):
        step = notes.row("select outcome, rewrapped, last_row from llm._rewrap_batch('notes', 'body', 500, null, true, false)")
        assert step == ("more", 500, "500")
    with other.tenant("a"):
        assert other.row("select rewrapped, last_row, finished_at from llm.rewraps") == (500, "500", None)


def test_values_that_are_compressed_stay_so(notes: Client) -> None:
    with notes.tenant("a"):
        notes.run("select llm.rewrap_value(null)")
        value = notes.one("select llm.encrypt_data(repeat('x', 1000), '(,,,t)')")
        notes.run("select llm.rotate_key()")
        newer = notes.one("select llm.rewrap_value(%s)", value)
        assert (len(newer), newer[1], newer[21]) == (len(value), 1, 3)
        assert notes.one("select llm.decrypt_data(%s) = repeat('x', 1000)", newer)


def test_a_column_is_registered_first(notes: Client, db: Client, database: Database) -> None:
    db.run("create table public.other (id bigint primary key, body bytea, title text)").run("grant all on public.other to app")
    with raises(UndefinedObject, match="column body of public.other is not registered", hint="llm.register_encrypted_column"):
        notes.run("call llm.rewrap('other', 'body', 'a')")
    for column, row in (("title", "id"), ("missing", "id"), ("body", "missing")):
        with raises(UndefinedObject, match="table public.other has no column", hint="values of llm.encrypt_data"):
            db.run("select llm.register_encrypted_column('other', %s, %s)", column, row)
    with raises(InsufficientPrivilege, match="permission denied for function"):
        notes.run("select llm.register_encrypted_column('other', 'body', 'id')")
    admin = database.client("admin")
    assert admin.one("select llm.register_encrypted_column('other', 'body', 'id', 'o')") is True
    assert admin.one("select llm.register_encrypted_column('other', 'body', 'id', 'o')") is False
    with notes.tenant("a"):
        notes.run("insert into other values (1, llm.encrypt_data('x', null, 'o', 'body', '1'))").run("select llm.rotate_key()")
    assert notes.row("call llm.rewrap('other', 'body', 'a')") == ("done", 1)


def test_old_versions_are_retired_when_nothing_needs_them(notes: Client, database: Database) -> None:
    admin = database.client("admin")
    database.client().run("grant select on public.notes to admin")
    with notes.tenant("a"):
        old = notes.one("select llm.encrypt_data('x')")
        notes.run("select llm.rotate_key()")
    with raises(InsufficientPrivilege, match="permission denied for function"), notes.tenant("a"):
        notes.run("select llm.set_min_decryption_version(null, 2)")
    counts = f"^{ROWS} in public.notes.body with version 1.$"
    refused = raises(DependentObjectsStillExist, match=f"{ROWS} values are encrypted with versions before 3", detail=counts, hint="llm.rewrap")
    with refused, admin.tenant("a"):
        admin.run("select llm.set_min_decryption_version(null, 3)")
    notes.run("call llm.rewrap('notes', 'body', 'a')")
    for version in (0, None):
        with raises(InvalidParameterValue, match="cannot decrypt from version", hint="Take 1 to 3"), admin.tenant("a"):
            admin.run("select llm.set_min_decryption_version(null, %s::int)", version)
    with admin.tenant("a"):
        admin.run("select llm.set_min_decryption_version(null, 3)")
    with raises(ObjectNotInPrerequisiteState, match="version 2 of key .* no longer decrypts", hint="set_min_decryption_version"), notes.tenant("a"):
        notes.run("select llm.decrypt_data(%s)", old)
    with notes.tenant("a"):
        assert notes.one(WRONG) == 0


def test_enc_11_of_two_at_once_one_is_busy(notes: Client, database: Database) -> None:
    first, second = database.clients(2, "app")
    with first.tenant("a"):
        first.run("select llm._rewrap_batch('notes', 'body', 10, null, true, false)")
        assert second.row("call llm.rewrap('notes', 'body', 'a')") == ("busy", 0)
    assert second.row("call llm.rewrap('notes', 'body', 'a')") == ("done", ROWS - 10)
    with ThreadPoolExecutor(2) as pool:
        with notes.tenant("a"):
            notes.run("select llm.rotate_key()")
        outcomes = list(pool.map(lambda client: client.row("call llm.rewrap('notes', 'body', 'a', 100)"), (first, second)))
    assert sum(count for _, count in outcomes) == ROWS or "busy" in dict(outcomes)
    assert first.row("call llm.rewrap('notes', 'body', 'a')")[0] == "done"
    with notes.tenant("a"):
        assert notes.rows(VERSIONS) == [(3, ROWS)]


def test_enc_09_a_rewrap_that_is_killed_goes_on_where_it_was(notes: Client, database: Database, db: Client) -> None:
    """A backend that dies by SIGKILL takes the whole server down and through recovery; SIGTERM ends it alone, at any point."""
    chance = Random(7)
    left = ROWS
    for _ in range(20):
        worker = database.client("app")
        pid = worker.connection.info.backend_pid
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(worker.row, "call llm.rewrap('notes', 'body', 'a', 20)")
            target = max(left - chance.randrange(1, 100), 0)
            while not call.done() and left > target:
                left = stale(notes)
            os.kill(pid, signal.SIGTERM)
            with suppress(psycopg.OperationalError):
                call.result()
        left = stale(notes)
        with notes.tenant("a"):
            assert notes.one(WRONG) == 0
    assert notes.row("call llm.rewrap('notes', 'body', 'a')") == ("done", left)
    with notes.tenant("a"):
        assert notes.rows(VERSIONS) == [(2, ROWS)]
        assert notes.one(WRONG) == 0


def stale(client: Client) -> int:
    with client.tenant("a"):
        return int(client.one("select count(*) from notes where get_byte(body, 21) = 1"))


def test_enc_09_a_server_that_crashes_loses_no_value(own_database: Database, tmp_path: Path) -> None:
    cluster, name = own_database.cluster, own_database.name
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o700)
    db = own_database.client()
    db.run("select llm.add_master_key(%s)", str(directory)).run("create table public.notes (id bigint primary key, body bytea)")
    db.run("grant all on public.notes to app").run("select llm.register_encrypted_column('notes', 'body', 'id')")
    app = own_database.client("app")
    with app.tenant("a"):
        app.run("select llm.encrypt_data('the first use')")
    with app.tenant("a"):
        app.run("insert into notes select i, llm.encrypt_data('note ' || i, null, 'public.notes', 'body', i::text) from generate_series(1, 2000) i")
        app.run("select llm.rotate_key()")
    for number in range(3):
        worker = Client(cluster.connect(name, "app"))
        watcher = Client(cluster.connect(name, "app"))
        before = stale(watcher)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(worker.row, "call llm.rewrap('notes', 'body', 'a', 20)")
            wait_until(lambda: stale(watcher) <= before - 100 * (number + 1))  # noqa: B023 - asked at once
            os.kill(worker.connection.info.backend_pid, signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                call.result()
        cluster.crash()
        cluster.start()
        survivor = Client(cluster.connect(name, "app"))
        with survivor.tenant("a"):
            assert survivor.one(WRONG) == 0
            assert survivor.one("select count(*) from notes") == 2000
        for client in (survivor, worker, watcher):
            client.close()
    last = Client(cluster.connect(name, "app"))
    assert last.row("call llm.rewrap('notes', 'body', 'a')")[0] == "done"
    with last.tenant("a"):
        assert last.rows(VERSIONS) == [(2, 2000)]
        assert last.one(WRONG) == 0
    last.close()


@pytest.fixture
def own_database(own_cluster: Cluster) -> Iterator[Database]:
    """A database of a server of the test's own."""
    yield from new_database(own_cluster)


def test_enc_10_readers_and_writers_notice_nothing(notes: Client, database: Database) -> None:
    stop = Event()
    chances = Random(3)

    def work(client: Client, seed: int) -> int:
        chance = Random(seed)
        count = 0
        while not stop.is_set() or count < 20:
            row = chance.randrange(1, ROWS + 1)
            with client.tenant("a"):
                if chance.random() < 0.3:
                    client.run("update notes set body = llm.encrypt_data('note ' || id, null, 'public.notes', 'body', id::text) where id = %s", row)
                else:
                    text = client.one("select llm.decrypt_data(body, null, 'public.notes', 'body', id::text) from notes where id = %s", row)
                    assert text == f"note {row}"
            count += 1
        return count

    clients = database.clients(8, "app")
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(work, client, chances.randrange(10**6)) for client in clients]
        try:
            for _ in range(2):
                with notes.tenant("a"):
                    assert notes.one("select llm.rotate_key()") is True
                assert notes.row("call llm.rewrap('notes', 'body', 'a', 100)")[0] == "done"
        finally:
            stop.set()
        assert sum(call.result() for call in calls) >= 160
    with notes.tenant("a"):
        assert notes.one(WRONG) == 0
        assert notes.rows(VERSIONS) == [(4, ROWS)]

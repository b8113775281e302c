"""Contents are stored once, counted, and gone with the last that refers to them."""

from __future__ import annotations

import pytest
from psycopg.errors import InsufficientPrivilege

from tests.support import Client, Database, at_once, raises
from tests.test_checkpoint import LONG, put
from tools.cluster import Cluster

REFS = "select tenant_id, refs from llm.checkpoint_blobs order by 1, 2"


def test_equal_contents_are_stored_once_a_tenant(app: Client, db: Client) -> None:
    for tenant in ("a", "b"):
        with app.tenant(tenant):
            put(app, "t", 1, one=LONG, two=LONG)
            put(app, "u", 1, one=LONG)
    assert db.rows(REFS) == [("a", 3), ("b", 3)]
    assert db.rows("select * from llm.verify_checkpoints()") == []


def test_a_rollback_leaves_references_as_they_were(app: Client, db: Client) -> None:
    with app.tenant("a"):
        put(app, "t", 1, one=LONG)
    with app.connection.transaction(force_rollback=True):
        app.run("select llm.set_tenant('a')")
        put(app, "t", 2, one=LONG, two=b"other" * 1_000)
        app.run("select llm.delete_checkpoint_thread('t')")
    assert db.rows(REFS) == [("a", 1)]
    assert db.rows("select * from llm.verify_checkpoints()") == []


@pytest.mark.parametrize(
    "statement",
    [
        "delete from llm.checkpoint_threads where thread_id = 't'",
        "delete from llm.checkpoint_pieces where thread_no = (select thread_no from llm.checkpoint_threads where thread_id = 't')",
    ],
)
def test_references_are_counted_however_rows_go(app: Client, db: Client, statement: str) -> None:
    with app.tenant("a"):
        put(app, "t", 1, one=LONG, two=LONG)
        put(app, "u", 1, one=LONG)
    db.run(statement)
    assert db.rows(REFS) == [("a", 1)]
    db.run("delete from llm.checkpoint_threads")
    assert db.rows(REFS) == []


def test_threads_begun_and_deleted_at_once_leave_no_reference_behind(database: Database, db: Client) -> None:
    clients = database.clients(8, "app")
    for number, client in enumerate(clients):
        client.run(f"create temp table own as select 't{number}'::text as thread")
    statement = """
        with put as materialized (
            select stored from own, llm.set_tenant('a') t cross join lateral llm.put_checkpoint(
                case when t is not null then own.thread end, '', '1', null, '{}', '{}',
                '{"x": ["bytes", null, null, "", 0, 1, null]}', array[convert_to(repeat('long ', 1000), 'UTF8')]
            )
        )
        select stored from put
    """
    delete = "select llm.delete_checkpoint_thread(case when t is not null then own.thread end) from own, llm.set_tenant('a') t"
    for _ in range(5):
        assert at_once(clients, statement) == [True] * 8
        assert at_once(clients[:4], delete) == [True] * 4
        assert db.rows(REFS) == [("a", 4)]
        assert db.rows("select * from llm.verify_checkpoints()") == []
        assert at_once(clients[4:], delete) == [True] * 4
        assert db.rows(REFS) == []


def test_a_crash_leaves_references_right(own_cluster: Cluster) -> None:
    with own_cluster.connect() as connection:
        connection.execute("create database crashed template template_llm")
    database = Database(own_cluster, "crashed")
    app, other = database.clients(2, "app")
    with app.tenant("a"):
        put(app, "t", 1, one=LONG)
    other.run("begin").run("select llm.set_tenant('a')")
    put(other, "u", 1, one=LONG, two=b"other" * 1_000)
    other.run("select llm.delete_checkpoint_thread('t')")
    own_cluster.crash()
    database.close()
    own_cluster.start()
    db = database.client()
    assert db.rows(REFS) == [("a", 1)]
    assert db.rows("select * from llm.verify_checkpoints()") == []
    database.close()


def test_wrong_counts_and_contents_are_found(app: Client, db: Client) -> None:
    with app.tenant("a"):
        put(app, "t", 1, one=LONG)
    db.run("update llm.checkpoint_blobs set refs = 7")
    assert db.rows("select tenant_id, refs, counted, is_intact from llm.verify_checkpoints()") == [("a", 7, 1, True)]
    db.run("update llm.checkpoint_blobs set refs = 1, content = 'changed'")
    assert db.rows("select tenant_id, refs, counted, is_intact from llm.verify_checkpoints()") == [("a", 1, 1, False)]


def test_nobody_writes_contents_past_the_functions(database: Database, app: Client) -> None:
    """RLS-12"""
    with app.tenant("a"):
        put(app, "t", 1, one=LONG)
    for user in ("app", "admin", "reader"):
        client = database.client(user)
        for table in ("checkpoint_threads", "checkpoint_pieces", "checkpoint_blobs", "checkpoint_writes", "checkpoints"):
            with raises(InsufficientPrivilege), client.tenant("a"):
                client.run(f"delete from llm.{table}")


def test_a_user_reads_contents_by_functions_alone(app: Client) -> None:
    """RLS-04: of a shared content it is not known whose it is."""
    with app.tenant("a"):
        put(app, "t", 1, one=LONG)
        assert app.one("select count(*) from llm.checkpoint_blobs") == 1
        app.run("select llm.set_user('00000000-0000-0000-0000-000000000001')")
        for table in ("checkpoint_threads", "checkpoint_pieces", "checkpoint_blobs", "checkpoint_writes", "checkpoints"):
            assert app.one(f"select count(*) from llm.{table}") == 0

"""Maintenance of collections: off the writers' path, crash-proof, and without a moment in which a search finds less."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg.errors import ActiveSqlTransaction, InsufficientPrivilege, InvalidTransactionTermination, QueryCanceled, UndefinedObject

from tests.conftest import new_database
from tests.support import Client, Database, raises, wait_until
from tests.test_segment import indexes, load, maintain, segments
from tools.cluster import Cluster

#: How the indexes of all segments are.
STATES = "select llm._index_state(index_name) from llm.segments"


def prepare(database: Database) -> tuple[Client, Client]:
    """Make collection docs with a segment of 120 points and a tail of 100, and return a superuser's and an application's client."""
    db, app = database.client(), database.client("app")
    db.run("select llm.bind_role('app', 'acme')")
    db.run("select llm.create_collection('docs', 3, p_indexing_threshold => 100, p_max_segment_size => 400, p_ef_construction => 40)")
    load(app, 1, 120)
    maintain(db)
    load(app, 121, 220)
    return db, app


@pytest.fixture
def docs(database: Database) -> Client:
    """A superuser's client of a database with collection docs: a segment of 120 points and a tail of 100."""
    return prepare(database)[0]


def run_statements(db: Client) -> list[str]:
    """Run what there is to be run, as psql's gexec does, until there is nothing, and return it."""
    ran: list[str] = []
    while statements := db.column("select * from llm.index_statements()"):
        for statement in statements:
            db.run(statement)
        ran += statements
    return ran


def test_statements_build_and_drop_indexes_while_writers_go_on(docs: Client) -> None:
    assert docs.one("call llm.maintain()") == 1
    ran = run_statements(docs)
    assert [statement.partition(" index_")[0] for statement in ran] == ["create index concurrently if not exists"]
    assert segments(docs) == [(1, 121, 120, "ready"), (121, 221, 100, "ready")]
    assert docs.one("call llm.maintain()") == 0


def test_merged_segments_are_dropped_after_the_wider_one_is_there(database: Database, docs: Client) -> None:
    app = database.client("app")
    load(app, 221, 260)
    assert docs.one("call llm.maintain()") == 1
    assert segments(docs) == [(1, 121, 120, "ready"), (1, 261, 260, "building")]
    docs.run(docs.one("select * from llm.index_statements()"))
    drop = docs.column("select * from llm.index_statements()")
    assert drop == ["drop index concurrently if exists llm.index_docs_s1"]
    assert segments(docs) == [(1, 121, 120, "retiring"), (1, 261, 260, "ready")]
    assert len(indexes(docs)) == 2
    docs.run(drop[0])
    assert docs.column("select * from llm.index_statements()") == []
    assert indexes(docs) == ["((number >= 1) AND (number < 261))"]


def test_a_writer_does_not_wait_for_an_index_that_is_built_by_statement(database: Database, docs: Client) -> None:
    """The builder waits for this open transaction, not the other way round."""
    app, other, builder = *database.clients(2, "app"), database.client()
    other.run("set lock_timeout = '5s'")
    statement = docs.one("select * from llm.index_statements()")
    with app.transaction():
        load(app, 221, 223)
        builder.connection.pgconn.send_query(statement.encode())
        wait_until(lambda: "being built" in docs.column(STATES))
        load(other, 231, 233)
        other.run("select llm.delete_points('docs', '{1}')").run("""select llm.set_payload('docs', '{2}', '{"k": 1}')""")
        assert docs.column("select state from llm.segments order by segment") == ["ready", "building"]
        assert docs.column("select * from llm.index_statements()") == []
    while builder.connection.pgconn.get_result():
        pass
    docs.run("call llm.maintain()")
    assert [state for *_, state in segments(docs)] == ["ready", "ready"]


def test_an_interrupted_build_is_dropped_and_tried_again(database: Database, docs: Client) -> None:
    app, builder = database.client("app"), database.client()
    statement = docs.one("select * from llm.index_statements()")
    pid = builder.one("select pg_backend_pid()")
    with app.transaction():
        load(app, 221, 223)
        builder.connection.pgconn.send_query(statement.encode())
        wait_until(lambda: "being built" in docs.column(STATES))
        docs.run("select pg_terminate_backend(%s, 10000)", pid)
    assert docs.column("select state from llm.segments order by segment") == ["ready", "building"]
    name = docs.one("select index_name from llm.segments where state = 'building'")
    assert run_statements(docs) == [f"drop index concurrently if exists llm.{name}", statement]
    assert [state for *_, state in segments(docs)] == ["ready", "ready"]


@pytest.mark.parametrize("waiting", [False, True], ids=["by statement", "by maintain"])
def test_a_crash_while_building_leaves_the_old_index_and_the_task(own_cluster: Cluster, waiting: bool) -> None:
    for database in new_database(own_cluster):
        db, app = prepare(database)
        before = segments(db)
        builder = database.client()
        statement = db.one("select * from llm.index_statements()")
        with pytest.raises(Exception, match=r"closed|terminat"), app.transaction():
            load(app, 221, 223)
            builder.connection.pgconn.send_query(b"call llm.maintain('docs', true)" if waiting else statement.encode())
            db.wait("select exists (select from pg_locks where not granted)")
            own_cluster.crash()
            app.run("select 1")
        own_cluster.start()
        db = database.client()
        assert before[0] in segments(db)
        assert "((number >= 1) AND (number < 121))" in indexes(db)
        ran = run_statements(db)
        assert statement in ran
        assert segments(db) == [(1, 121, 120, "ready"), (121, 221, 100, "ready")]


def test_an_index_that_cannot_be_built_is_told_and_tried_again(docs: Client) -> None:
    docs.run("create table llm_blocker (id integer)")
    docs.run("select llm._plan_segment('docs')")
    docs.run("update llm.segments set settings = replace(settings, 'm = 16', 'm = 1000') where state = 'building'")
    docs.run("call llm.maintain('docs', true)")
    state, attempts, error = docs.row("select state, attempts, last_error from llm.segment_progress where state = 'building'")
    assert (state, attempts) == ("building", 1)
    assert "1000" in error
    assert docs.row("select ok, detail ~ 'of docs: .*1000' from llm.doctor() where name = 'vector indexes can be built'") == (False, True)
    docs.run("update llm.segments set settings = replace(settings, 'm = 1000', 'm = 16') where state = 'building'")
    docs.run("call llm.maintain('docs', true)")
    assert [state for *_, state in segments(docs)] == ["ready", "ready"]
    assert docs.one("select ok from llm.doctor() where name = 'vector indexes can be built'") is True


def test_searches_find_everything_while_indexes_are_swapped(database: Database, docs: Client) -> None:
    """Also a plan made for the old segments: it asks for the same numbers, whichever index serves them."""
    readers = database.clients(2, "app")
    done = threading.Event()
    nearest = "select count(*) from (select id from llm.points_docs where number >= %s and number < %s order by embedding <=> '[1,2,3]' limit 50) p"

    def search(client: Client) -> set[int]:
        counts = set()
        client.run("set hnsw.ef_search = 200").run("set enable_seqscan = off").run("set enable_sort = off")
        while not done.is_set():
            counts.add(client.one(nearest, 1, 121) + client.one(nearest, 121, 10_000))
        return counts

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(search, reader) for reader in readers]
        writer = database.client("app")
        for start in range(221, 400, 60):
            load(writer, start, start + 59)
            docs.run("call llm.maintain()")
            run_statements(docs)
        done.set()
        assert [future.result() for future in found] == [{100}, {100}]
    assert sum(rows for _, _, rows, state in segments(docs) if state == "ready") == 400


def test_maintenance_is_not_for_applications_nor_inside_a_transaction(docs: Client, app: Client, admin: Client) -> None:
    for client in (app, admin):
        with raises(InsufficientPrivilege):
            client.run("call llm.maintain()")
        with raises(InsufficientPrivilege):
            client.run("select llm.index_statements()")
    with pytest.raises(InvalidTransactionTermination), docs.transaction():
        docs.run("call llm.maintain()")
    with pytest.raises(ActiveSqlTransaction), docs.transaction():
        docs.run(docs.one("select * from llm.index_statements()"))
    with raises(UndefinedObject, "collection 'dogs' does not exist"):
        docs.run("call llm.maintain('dogs')")


def test_vec_04_no_parallel_worker_builds_an_index_while_pgvector_is_unsafe(docs: Client) -> None:
    """CVE-2026-3172. PostgreSQL itself says how many it asks for."""
    is_safe = docs.one("select llm._parallel_builds_are_safe()")
    said: list[str] = []
    docs.connection.add_notice_handler(lambda diagnostic: said.append(diagnostic.message_primary or ""))
    docs.run("set max_parallel_maintenance_workers = 2").run("set min_parallel_table_scan_size = 0").run("set client_min_messages = debug1")

    def workers() -> list[str]:
        built = [text for text in said if re.match('building index "index_docs_s', text)]
        said.clear()
        return ["none" if text.endswith("serially") else "some" for text in built]

    docs.run("call llm.maintain(p_lock_writers => true)")
    assert workers() == ["some" if is_safe else "none"]
    docs.run("select llm.alter_collection('docs', p_m => 8)")
    assert len(run_statements(docs)) == 4
    assert workers() == ["some" if is_safe else "none"] * 2
    docs.run("alter table llm.points_docs reset (parallel_workers)").run("select llm.alter_collection('docs', p_m => 9)")
    docs.run(next(each for each in docs.column("select llm.index_statements()") if each.startswith("create")))
    assert workers() == ["some"], "which is what would be seen"


def test_a_segment_is_searched_once_its_index_is_ready_not_before(database: Database, docs: Client) -> None:
    """Whoever looks while the index is being built, or after that was interrupted."""
    (statement,) = docs.column("select llm.index_statements()")
    holder, builder = database.client("app"), database.client()
    published = "select count(*) from llm.segments where state = 'ready'"
    holder.run("begin").run("select llm.set_payload('docs', '{150}', '{\"k\": 1}')")
    with ThreadPoolExecutor(1) as pool:
        built = pool.submit(builder.run, statement)
        docs.wait("select 'being built' in (select llm._index_state(index_name) from llm.segments)")
        docs.run("call llm.maintain()")
        assert docs.column("select llm.index_statements()") == []
        assert docs.one(published) == 1
        builder.connection.cancel()
        with pytest.raises(QueryCanceled):
            built.result()
    holder.run("commit")
    docs.run("call llm.maintain()")
    assert "interrupted" in docs.column(STATES)
    assert docs.one(published) == 1
    run_statements(docs)
    docs.run("call llm.maintain()")
    assert docs.one(published) == 2


def test_an_index_that_somebody_dropped_is_built_again(docs: Client) -> None:
    maintain(docs)
    docs.run("drop index llm.index_docs_s1")
    assert [statement.partition(" on ")[0] for statement in run_statements(docs)] == ["create index concurrently if not exists index_docs_s1"]
    docs.run("drop index llm.index_docs_s1")
    maintain(docs)
    assert segments(docs) == [(1, 121, 120, "ready"), (121, 221, 100, "ready")]
    assert docs.column(STATES) == ["ready", "ready"]


def test_two_maintainers_at_once_do_everything_once(database: Database, docs: Client) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda client: client.run("call llm.maintain('docs', true)"), database.clients(3)))
    maintain(docs)
    assert segments(docs) == [(1, 121, 120, "ready"), (121, 221, 100, "ready")]
    assert len(indexes(docs)) == 2
    assert docs.one("select count(*) from llm.points_docs where words is null") == 0


def test_payload_indexes_are_made_with_the_collection_and_altered_by_maintenance(docs: Client) -> None:
    fields = "select array(select relname::text from pg_class where relname ~ '^index_docs_p' and relkind = 'i' order by 1)"
    assert docs.one(fields) == []
    docs.run("""select llm.alter_collection('docs', p_payload_indexes => '{"section": "keyword", "size": "integer"}')""")
    ran = run_statements(docs)
    assert any("using gin (payload jsonb_path_ops)" in statement for statement in ran)
    assert any("(tenant_id, (payload -> 'size'))" in statement for statement in ran)
    assert len(docs.one(fields)) == 2
    docs.run("""select llm.alter_collection('docs', p_payload_indexes => '{"section": "keyword"}')""")
    docs.run("call llm.maintain('docs', true)")
    assert docs.one(fields) == ["index_docs_payload"]
    docs.run("""select llm.create_collection('other', 3, p_payload_indexes => '{"it''s; --": "float"}')""")
    assert docs.one("select count(*) from pg_indexes where tablename = 'points_other' and indexdef ~ 'it''''s; --'") == 1

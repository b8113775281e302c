"""Collections: what may be made, and what becomes of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg.errors import DuplicateObject, InsufficientPrivilege, InvalidParameterValue, UndefinedObject

from tests.support import Client, Database, raises


def test_a_collection_has_the_settings_of_the_seed_unless_told(admin: Client) -> None:
    settings = "m, ef_construction, full_scan_threshold, indexing_threshold, max_segment_size, deleted_threshold, distance, element, index_kind"
    found = admin.row(f"select {settings} from llm.create_collection('docs', 3)")
    assert found == (16, 100, 10_000, 20_000, 200_000, 0.2, "cosine", "vector", "hnsw")


@pytest.mark.parametrize(
    ("arguments", "match", "hint"),
    [
        ("'Docs', 3", "be called 'Docs'", "lower-case"),
        ("'docs; drop', 3", "be called", "lower-case"),
        ("null, 3", "be called null", "lower-case"),
        ("repeat('a', 41), 3", "be called", "1 to 40"),
        ("'docs', 0", "have 0 dimensions", "1 to 16,000"),
        ("'docs', 16001", "have 16001 dimensions", "1 to 16,000"),
        ("'docs', 2001", "index 2001 dimensions of vector", "4,000 of halfvec"),
        ("'docs', 4001, p_element => 'halfvec'", "index 4001 dimensions of halfvec", "needs no index"),
        ("'docs', 3, 'hamming'", "have distance 'hamming'", "inner_product"),
        ("'docs', 3, p_element => 'int8'", "have element 'int8'", "halfvec"),
        ("'docs', 3, p_index_kind => 'flat'", "have index kind 'flat'", "ivfflat"),
        ("'docs', 3, 'l1', p_index_kind => 'ivfflat'", "use ivfflat for distance l1", "Use hnsw"),
        ("'docs', 3, p_m => 1", "have m 1", "2 to 100"),
        ("'docs', 3, p_m => 60", "have m 60 and ef_construction 100", "twice m"),
        ("'docs', 3, p_lists => 0", "have 0 lists", "null"),
        ("'docs', 3, p_ef_search => 0", "searched with ef_search 0", "1 to 1,000"),
        ("'docs', 3, p_indexing_threshold => 0", "indexing_threshold 0", "at least"),
        ("'docs', 3, p_deleted_threshold => 'NaN'", "have deleted_threshold NaN", "at most 1"),
        ("'docs', 3, p_payload_indexes => '{\"a\": \"number\"}'", "index payload fields", "keyword"),
        ("'docs', 3, p_payload_indexes => '{\"a\": 1}'", "index payload fields", "keyword"),
        ("'docs', 3, p_payload_indexes => '{\"a\": {\"b\": \"integer\"}}'", "index payload fields", "keyword"),
        ("'docs', 3, p_payload_indexes => '{\"\": \"integer\"}'", "index payload fields", "keyword"),
        ("'docs', 3, p_payload_indexes => '[]'", "index payload fields", "keyword"),
        ("'docs', 3, p_on_disk => null", "leave on_disk", "true or false"),
        ("'docs', 3, p_model => ''", "be of model ''", "1 to 200"),
        ("'docs', 3, p_model => repeat('m', 201)", "be of model", "1 to 200"),
        ("'docs', 3, p_language => 'klingon'", "be of language 'klingon'", "english"),
    ],
)
def test_vec_03_settings_that_make_no_sense_are_refused(admin: Client, arguments: str, match: str, hint: str) -> None:
    with raises(InvalidParameterValue, f"^a collection cannot .*{match}", hint=hint):
        admin.run(f"select llm.create_collection({arguments})")
    assert admin.rows("select * from llm.list_collections()") == []


@pytest.mark.parametrize(
    "arguments",
    [
        "16000, p_index_kind => 'none'",
        "16000, p_element => 'bit'",
        "4000, p_element => 'halfvec'",
        "2000",
    ],
)
def test_the_widest_vectors_can_be_stored(admin: Client, arguments: str) -> None:
    assert admin.one(f"select name from llm.create_collection('wide', {arguments})") == "wide"


def test_a_name_is_taken_once(admin: Client) -> None:
    admin.run("select llm.create_collection('docs', 3)")
    with raises(DuplicateObject, "docs exists already", hint="alter_collection"):
        admin.run("select llm.create_collection('docs', 4)")


def test_collections_with_names_like_those_of_indexes_are_apart(db: Client, admin: Client, acme: Client) -> None:
    """Such as of the first segment of docs, of its payload, and of its sequence of numbers."""
    likely = ("docs_s1", "docs_payload", "docs_p8ce4b16b22", "docs_number_seq")
    for name in (*likely, "docs"):
        admin.run("select llm.create_collection(%s, 3, p_indexing_threshold => 2, p_payload_indexes => '{\"k\": \"integer\"}')", name)
    for name in (*likely, "docs"):
        acme.run("select llm.upsert_points(%s, '[{\"id\": 1, \"embedding\": [1,2,3]}, {\"id\": 2, \"embedding\": [1,2,4]}]')", name)
    acme.run("commit")
    db.run("call llm.maintain(p_lock_writers => true)")
    assert db.column("select llm.index_statements()") == []
    assert sorted(db.column("select collection from llm.segments s where to_regclass('llm.' || s.index_name) is not null")) == sorted(
        (*likely, "docs")
    )
    with raises(DuplicateObject, "cannot be called docs_pkey, which is an index or a sequence of another one", hint="another name"):
        admin.run("select llm.create_collection('docs_pkey', 3)")


def test_only_administrators_make_collections(app: Client) -> None:
    for call in ("create_collection('docs', 3)", "alter_collection('docs')", "drop_collection('docs')", "create_default_collections()"):
        with raises(InsufficientPrivilege):
            app.run(f"select llm.{call}")


def test_dropping_takes_everything_of_a_collection(db: Client, admin: Client) -> None:
    admin.run("select llm.create_collection('docs', 3)").run("select llm.create_collection('docs_2', 3)")
    assert admin.one("select llm.drop_collection('docs')") is True
    assert admin.one("select llm.drop_collection('docs')") is False
    assert admin.column("select name from llm.list_collections()") == ["docs_2"]
    assert db.column("select relation from llm.personal_data where relation like 'llm.points%'") == ["llm.points_docs_2"]
    assert db.column("select relname::text from pg_class where relname like 'points%' and relkind = 'r'") == ["points_docs_2"]
    assert admin.one("select name from llm.create_collection('docs', 5)") == "docs"


def test_altering_changes_what_is_given(admin: Client) -> None:
    admin.run("select llm.create_collection('docs', 3, p_model => 'first')")
    changed = admin.row("select ef_search, model, m, version from llm.alter_collection('docs', p_ef_search => 80, p_model => 'second')")
    assert changed == (80, "second", 16, 2)
    with raises(InvalidParameterValue, "have m 99"):
        admin.run("select llm.alter_collection('docs', p_m => 99)")
    with raises(UndefinedObject, "collection 'dogs' does not exist", hint="list_collections"):
        admin.run("select llm.alter_collection('dogs', p_m => 99)")


def test_who_alters_at_once_undoes_nothing_of_the_other(database: Database, db: Client, admin: Client) -> None:
    admin.run("select llm.create_collection('docs', 3)").run("begin").run("select llm.alter_collection('docs', p_m => 20)")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(database.client("admin").run, "select llm.alter_collection('docs', p_ef_search => 80)")
        db.wait("select exists (select from pg_locks where not granted)")
        admin.run("commit")
        other.result()
    assert admin.row("select m, ef_search, version from llm.list_collections()") == (20, 80, 3)


def test_only_llm_owner_makes_tables_in_the_schema(database: Database) -> None:
    for role in ("app", "admin", "reader", "auditor", "nobody"):
        with raises(InsufficientPrivilege, "permission denied for schema llm"):
            database.client(role).run("create table llm.points_mine (tenant_id text)")


def test_the_table_of_points_is_protected(db: Client, admin: Client) -> None:
    admin.run("select llm.create_collection('docs', 3)")
    assert db.row("select relowner::regrole::text, relrowsecurity, relforcerowsecurity from pg_class where oid = 'llm.points_docs'::regclass") == (
        "llm_owner",
        True,
        True,
    )
    assert db.column("select name from llm.doctor() where not ok and (name like '%polic%' or name like '%create%' or name like '%personal%')") == []
    for command in ("insert into llm.points_docs (id) values ('x')", "update llm.points_docs set content = ''", "delete from llm.points_docs"):
        with raises(InsufficientPrivilege, "permission denied for table points_docs"):
            admin.run(command)


def test_vec_04_indexes_are_built_serially_while_pgvector_is_unsafe(db: Client, admin: Client) -> None:
    """By whomever: the table itself says so, and a dump keeps that."""
    admin.run("select llm.create_collection('docs', 3)")
    version = db.one("select extversion from pg_extension where extname = 'vector'")
    is_safe = tuple(map(int, version.split("."))) >= (0, 8, 2)
    serial = "select coalesce('parallel_workers=0' = any (reloptions), false) from pg_class where oid = 'llm.points_docs'::regclass"
    assert db.one(serial) is not is_safe
    db.run(f"alter table llm.points_docs {'set (parallel_workers = 0)' if is_safe else 'reset (parallel_workers)'}")
    safely = "select ok from llm.doctor() where name = 'vector indexes are built safely'"
    assert db.one(safely) is is_safe
    db.run("call llm.maintain()")
    assert db.one(serial) is not is_safe
    assert db.one(safely) is True


def test_a_collection_that_is_dropped_is_gone_for_sessions_that_used_it(admin: Client, acme: Client) -> None:
    admin.run("select llm.create_collection('docs', 3)")
    acme.run("select llm.count_points('docs')").run("commit").run("begin").run("select llm.set_tenant('acme')")
    admin.run("select llm.drop_collection('docs')")
    with raises(UndefinedObject, "collection 'docs' does not exist"):
        acme.run("select llm.count_points('docs')")

"""Collections through dumps: their settings, points, and the definitions of their indexes."""

from __future__ import annotations

from tests.lifecycle.support import Mover, contents
from tests.support import Client, Database
from tests.test_segment import load, segments
from tools.cluster import Cluster

INDEXES = "select indexname::text, indexdef from pg_indexes where schemaname = 'llm' and tablename like 'points%%' order by 1"
OPTIONS = "select relname::text, reloptions from pg_class where relname like 'points%%' order by 1"
POLICIES = "select tablename::text, policyname::text, permissive, roles::text, qual from pg_policies where tablename like 'points%%' order by 1, 2"


def test_a_dump_brings_back_collections_with_their_indexes(database: Database, db: Client, elsewhere: Cluster, mover: Mover) -> None:
    app = database.client("app")
    db.run("select llm.bind_role('app', 'acme')")
    db.run(
        "select llm.create_collection('docs', 3, p_element => 'halfvec', p_indexing_threshold => 100, p_ef_construction => 40, p_ef_search => 77,"
        """ p_payload_indexes => '{"size": "integer"}')"""
    )
    load(app, 1, 150)
    db.run("call llm.maintain(p_lock_writers => true)")
    load(app, 151, 155)

    moved = mover.restore(mover.dump(database, "-Fc"), elsewhere, "-1")
    restored = moved.client()
    for statement in (INDEXES, OPTIONS, POLICIES, "select ef_search, element, version from llm.collections"):
        assert restored.rows(statement) == db.rows(statement)
    assert contents(restored)["llm.points_docs"] == contents(db)["llm.points_docs"]
    assert segments(restored) == segments(db) == [(1, 151, 150, "ready")]

    restored.run("select llm.setup()")
    with restored.tenant("acme"):
        assert restored.row("select * from llm.upsert_points('docs', '{\"id\": 1, \"embedding\": [3, 2, 1]}')") == (0, 1, 0)
        assert restored.one("select number from llm.points_docs where id = '1'") > 155
        load(restored, 200, 210)
    restored.run("call llm.maintain(p_lock_writers => true)")
    assert [state for *_, state in segments(restored)] == ["ready", "ready"]
    assert restored.one("select count(*) from llm.points_docs") == 166
    assert restored.column("select name from llm.doctor() where not ok and (name like '%vector%' or name like '%polic%')") == []


def test_the_points_that_were_kept_are_a_tenants_again_after_setup(database: Database, db: Client) -> None:
    """DR-04: policies and defaults of tables that no file names."""
    db.run("select llm.create_collection('docs', 3)")
    app = database.client("app")
    for tenant in ("acme", "other"):
        with app.tenant(tenant):
            app.run("select llm.upsert_points('docs', '{\"id\": 1, \"embedding\": [1, 2, 3]}')")
    policies = db.rows(POLICIES)
    db.run("set client_min_messages = error").run("drop extension pg_llm cascade").run("create extension pg_llm").run("select llm.setup()")
    assert db.rows(POLICIES) == policies != []
    with app.tenant("acme"):
        assert app.column("select tenant_id from llm.points_docs") == ["acme"]
        assert app.row("select * from llm.upsert_points('docs', '{\"id\": 2, \"embedding\": [3, 2, 1]}')") == (1, 0, 0)

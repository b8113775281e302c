"""What collections there are, and how large they are."""

from __future__ import annotations

from psycopg.errors import UndefinedObject

from tests.support import Client, Database, in_tenant, raises


def test_the_default_collections_are_those_of_the_seed(admin: Client) -> None:
    names = ["code_embeddings", "documentation_embeddings", "conversation_embeddings", "incident_knowledge"]
    assert admin.column("select llm.create_default_collections()") == names
    assert admin.column("select llm.create_default_collections()") == []
    found = admin.rows("select name, dimensions, distance, on_disk, array(select jsonb_object_keys(payload_indexes)) from llm.list_collections()")
    assert {row[0]: row[1:4] for row in found} == {name: (1536, "cosine", name == "conversation_embeddings") for name in names}
    assert {row[0]: set(row[4]) for row in found} == {
        "code_embeddings": {"file_path", "function_name", "language", "project_id"},
        "documentation_embeddings": {"title", "section", "url", "indexed_at"},
        "conversation_embeddings": {"conversation_id", "message_id", "user_id", "timestamp"},
        "incident_knowledge": {"incident_id", "severity", "services", "resolution"},
    }


def test_a_default_collection_that_was_dropped_comes_back(admin: Client) -> None:
    admin.run("select llm.create_default_collections()").run("select llm.drop_collection('code_embeddings')")
    assert admin.column("select llm.create_default_collections()") == ["code_embeddings"]


def test_an_alias_stands_for_a_default_collection(admin: Client) -> None:
    admin.run("select llm.create_collection('code_2', 3)").run("select llm.set_collection_alias('code_embeddings', 'code_2')")
    assert "code_embeddings" not in admin.column("select llm.create_default_collections()")


def test_info_counts_the_points_of_the_tenant_and_of_the_user(database: Database, db: Client, admin: Client, acme: Client) -> None:
    admin.run("select llm.create_collection('docs', 3, p_indexing_threshold => 3)")
    user, other = (acme.one("select llm.create_user(%s)", f"{name}@x.org") for name in "ab")
    acme.run("""select llm.upsert_points('docs', '[{"id": 1, "embedding": [1, 2, 3]}, {"id": 2, "embedding": [1, 2, 4], "content": "two"}]')""")
    acme.run("select llm.upsert_points('docs', p_ids => '{3, 4}', p_contents => '{three, four}', p_user_ids => %s)", [user, other]).run("commit")
    counts = "select points, pending, tail, without_words, segments, building from llm.collection_info('docs')"
    in_tenant(acme, "acme")
    assert acme.row(counts) == (4, 2, 4, 3, 0, 0)
    acme.run("select llm.set_user(%s)", user)
    assert acme.row(counts) == (1, 1, 1, 1, 0, 0)
    globex = in_tenant(database.client("app"), "globex")
    assert globex.row(counts) == (0, 0, 0, 0, 0, 0)
    assert globex.one("select table_bytes > 0 and index_bytes > 0 from llm.collection_info('docs')") is True
    globex.run("""select llm.upsert_points('docs', '{"id": 1, "embedding": [3, 2, 1]}')""").run("commit")
    acme.run("commit")
    db.run("call llm.maintain(p_lock_writers => true)")
    assert in_tenant(acme, "acme").row(counts) == (4, 2, 0, 0, 1, 0)
    with raises(UndefinedObject, "collection 'dogs' does not exist", hint="create_collection"):
        acme.run("select llm.collection_info('dogs')")

"""Two models side by side: the same contents, compared, and switched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg.errors import DuplicateObject, InsufficientPrivilege, InvalidParameterValue, ObjectNotInPrerequisiteState

from tests.support import Client, Database, raises


@pytest.fixture
def docs(admin: Client, bound: Client) -> Client:
    """A client bound to acme, with a collection old of three points, which the alias docs leads to."""
    admin.run("select llm.create_collection('old', 3, p_model => 'm')").run("select llm.set_collection_alias('docs', 'old')")
    upsert(bound, "docs", a=[1, 0, 0], b=[0, 1, 0], c=[0, 0.1, 1])
    return bound


def upsert(client: Client, collection: str, **vectors: list[float] | None) -> None:
    points = [{"id": name, "content": f"text {name}", "embedding": vector, "payload": {"of": name}} for name, vector in vectors.items()]
    client.run("select llm.upsert_points(%s, %s)", collection, json.dumps(points))


def embed(client: Client, collection: str, vector: str = "[1,1]") -> int:
    """Give every job of a collection a vector, as a worker does; return how many."""
    rows = client.rows("select id, token from llm.claim_embedding_jobs(%s)", collection)
    if rows:
        ids = [row[0] for row in rows]
        client.run("select llm.complete_embedding_jobs(%s, %s, array_fill(%s::vector, array[%s]))", ids, rows[0][1], vector, len(ids))
    return len(rows)


def contents(client: Client, collection: str) -> list[tuple[Any, ...]]:
    return client.rows(f"select id, content, payload ->> 'of', model from llm.points_{collection} order by id")


def test_a_copy_has_the_contents_of_all_tenants_and_their_vectors_to_come(docs: Client, admin: Client, database: Database) -> None:
    other = database.client("admin")
    with other.tenant("other"):
        upsert(other, "docs", x=[1, 2, 3])
    assert admin.one("select llm.copy_for_model('docs', 'new', 'n', 2)") == 4
    assert contents(docs, "new") == [(name, f"text {name}", name, "n") for name in "abc"]
    assert docs.one("select count(*) from llm.points_new where embedding is not null") == 0
    assert embed(docs, "new") == 3
    with other.tenant("other"):
        assert contents(other, "new") == [("x", "text x", "x", "n")]
    assert admin.row("select dimensions, model, distance from llm.list_collections() where name = 'new'") == (2, "n", "cosine")


@pytest.mark.parametrize(("written", "mirrored"), [("old", "new"), ("new", "old")])
def test_what_is_written_to_one_is_written_to_the_other(docs: Client, admin: Client, written: str, mirrored: str) -> None:
    admin.run("select llm.copy_for_model('old', 'new', 'n', 3)").run("select llm.set_embedding_model('old', 'm')")
    embed(docs, "new", "[7,7,7]")
    models = {"old": "m", "new": "n"}
    docs.run(f"select llm.delete_points('{written}', array['b'])")
    upsert(docs, written, d=None)
    docs.run("""select llm.upsert_points(%s, '{"id": "c", "content": "changed", "embedding": [5, 5, 5], "payload": {"of": "C"}}')""", written)
    docs.run(f"""select llm.set_payload('{written}', array['a'], '{{"of": "A"}}')""")
    for collection in (written, mirrored):
        model = models[collection]
        assert contents(docs, collection) == [
            ("a", "text a", "A", model), ("c", "changed", "C", model), ("d", "text d", "d", model)
        ]  # fmt: skip
    vectors = f"select id, embedding::text from llm.points_{mirrored} order by id"
    kept = "[7,7,7]" if mirrored == "new" else "[1,0,0]"
    assert docs.rows(vectors) == [("a", kept), ("c", None), ("d", None)], "only what changed is embedded again"
    assert docs.column("select point_id from llm.embedding_jobs where collection = %s order by point_id", mirrored) == ["c", "d"]


def test_models_are_compared_and_switched_in_one_transaction(docs: Client, admin: Client) -> None:
    admin.run("select llm.copy_for_model('docs', 'new', 'n', 3)")
    compare = "select compared, overlap, same_first, least_overlap, least_alike from llm.compare_collections('docs', 'new', p_k => 1)"
    assert docs.row(compare) == (0, None, None, None, None)
    upsert(docs, "new", a=[1, 0, 0], b=[0, 1, 0], c=[1, 0.1, 0])
    assert docs.row(compare) == (3, pytest.approx(1 / 3), pytest.approx(1 / 3), 0, "a"), "b finds c in one, a finds c in the other"
    assert docs.one("select compared from llm.compare_collections('old', 'new', p_ids => array['a', 'b', 'x'])") == 2
    assert docs.one("select overlap from llm.compare_collections('old', 'old')") == 1
    found = "select id from llm.vector_search('docs', '[1,0.1,0]', 1)"
    assert docs.column(found) == ["a"]
    admin.run("select llm.set_collection_alias('docs', 'new')")
    assert docs.column(found) == ["c"]
    admin.run("select llm.set_collection_alias('docs', 'old')")
    assert docs.column(found) == ["a"]


def test_dropping_one_parts_them(docs: Client, admin: Client, db: Client) -> None:
    admin.run("select llm.copy_for_model('old', 'new', 'n')").run("select llm.set_collection_alias('docs', 'new')")
    admin.run("select llm.drop_collection('old')")
    upsert(docs, "docs", z=None)
    assert [row[0] for row in contents(docs, "new")] == ["a", "b", "c", "z"]
    assert db.column("select tgname::text from pg_trigger where tgname like 'mirror%%'") == []
    assert db.one("select count(*) from llm.collection_copies") == 0


def test_a_forgotten_user_is_forgotten_in_both(docs: Client, admin: Client, db: Client) -> None:
    user = docs.one("select llm.create_user('a@x.org')")
    docs.run("select llm.upsert_points('docs', p_ids => array['u'], p_contents => array['of a user'], p_user_ids => %s)", [user])
    admin.run("select llm.copy_for_model('old', 'new', 'n')")
    assert docs.one("select user_id from llm.points_new where id = 'u'") == user
    with db.tenant("acme"):
        db.run("select llm.forget_user(%s)", user)
    assert db.one("select count(*) from llm.points_new where id = 'u'") == 0


def test_misuse_is_told(docs: Client, admin: Client) -> None:
    with raises(DuplicateObject, "exists already"):
        admin.run("select llm.copy_for_model('old', 'old', 'n')")
    with raises(InvalidParameterValue, "a copy of collection old needs a model", hint="another model"):
        admin.run("select llm.copy_for_model('docs', 'new', null)")
    for wrong in ("0, 1", "1, 0", "null, 1", "1, 1001"):
        with raises(InvalidParameterValue, "collections cannot be compared by", hint="1 to 10,000 points"):
            docs.run(f"select llm.compare_collections('old', 'docs', {wrong})")
    with raises(ObjectNotInPrerequisiteState, "no tenant is set"):
        admin.run("select llm.compare_collections('old', 'old')")
    with raises(InsufficientPrivilege):
        docs.run("select llm.copy_for_model('old', 'new', 'n')")

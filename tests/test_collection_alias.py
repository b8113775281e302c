"""Aliases lead to collections, for everybody at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg.errors import DuplicateObject, InsufficientPrivilege, InvalidParameterValue, UndefinedObject

from tests.support import Client, Database, raises

FOUND = "select id from llm.vector_search('docs', '[1,2,3]')"


@pytest.fixture
def docs(admin: Client, bound: Client) -> Client:
    """A client bound to acme, with collections one and two, and an alias docs for one."""
    for name, identifier in (("one", "a"), ("two", "b")):
        admin.run("select llm.create_collection(%s, 3)", name)
        bound.run("select llm.upsert_points(%s, p_ids => %s, p_embeddings => array['[1,2,3]']::vector[])", name, [identifier])
    assert admin.one("select llm.set_collection_alias('docs', 'one')") is None
    return bound


def test_points_are_written_read_and_searched_by_an_alias(docs: Client, admin: Client, db: Client) -> None:
    docs.run("""select llm.upsert_points('docs', '{"id": "c", "embedding": [1, 2, 3], "content": "cats"}')""")
    assert docs.column(f"{FOUND} order by 1") == ["a", "c"]
    assert docs.column("select id from llm.hybrid_search('docs', 'cats', '[1,2,3]') order by 1") == ["a", "c"]
    assert docs.column("select id from llm.get_points('docs', array['a', 'b', 'c'])") == ["a", "c"]
    assert docs.one("select points from llm.collection_info('docs')") == 2
    assert docs.one("select llm.delete_points('docs', array['c'])") == 1
    assert docs.one("select collection from llm.search_report()") == "one"
    assert admin.one("select ef_search from llm.alter_collection('docs', p_ef_search => 77)") == 77
    assert admin.column("select ef_search from llm.list_collections() order by name") == [77, 40]
    db.run("call llm.maintain('docs')")


def test_an_alias_is_switched_when_its_transaction_commits(docs: Client, admin: Client) -> None:
    assert docs.column(FOUND) == ["a"]
    admin.run("begin")
    assert admin.one("select llm.set_collection_alias('docs', 'two')") == "one"
    assert docs.column(FOUND) == ["a"]
    admin.run("rollback")
    assert docs.column(FOUND) == ["a"]
    admin.run("select llm.set_collection_alias('docs', 'two')")
    assert docs.column(FOUND) == ["b"]
    with docs.transaction():
        docs.run("set transaction isolation level repeatable read")
        assert docs.column(FOUND) == ["b"]
        admin.run("select llm.set_collection_alias('docs', 'one')")
        assert docs.column(FOUND) == ["b"], "as its snapshot has it"
    assert docs.column(FOUND) == ["a"]


def test_searches_go_on_while_an_alias_is_switched(docs: Client, admin: Client, database: Database) -> None:
    def search(client: Client) -> set[str]:
        return {identifier for _ in range(150) for identifier in client.column(FOUND)}

    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(search, client) for client in database.clients(3, "app")]
        while not all(each.done() for each in searches):
            for name in ("two", "one"):
                admin.run("select llm.set_collection_alias('docs', %s)", name)
    for each in searches:
        assert each.result() <= {"a", "b"}


def test_an_alias_goes_with_its_collection_or_by_itself(docs: Client, admin: Client) -> None:
    assert docs.column(FOUND) == ["a"]
    assert admin.one("select llm.drop_collection('docs')") is False
    assert admin.one("select llm.set_collection_alias('docs', null)") == "one"
    with raises(UndefinedObject, "collection 'docs' does not exist"):
        docs.run(FOUND)
    admin.run("select llm.set_collection_alias('docs', 'one')")
    assert docs.column(FOUND) == ["a"]
    admin.run("select llm.drop_collection('one')")
    with raises(UndefinedObject, "collection 'docs' does not exist"):
        docs.run(FOUND)
    with raises(UndefinedObject, "collection 'docs' does not exist"):
        docs.run("select llm.count_points('docs')")
    admin.run("select llm.create_collection('docs', 3)")


def test_a_name_is_a_collections_or_an_aliass(docs: Client, admin: Client) -> None:
    with raises(DuplicateObject, "a collection cannot be called docs, which is an alias", hint="set_collection_alias"):
        admin.run("select llm.create_collection('docs', 3)")
    with raises(DuplicateObject, "alias two is the name of a collection", hint="no collection has"):
        admin.run("select llm.set_collection_alias('two', 'one')")
    for wrong in ("Docs", "a b", "x" * 41, None):
        with raises(InvalidParameterValue, "an alias cannot be called", hint="lower-case"):
            admin.run("select llm.set_collection_alias(%s, 'one')", wrong)
    with raises(UndefinedObject, "does not exist"):
        admin.run("select llm.set_collection_alias('other', 'three')")
    admin.run("select llm.set_collection_alias('more', 'docs')")
    assert admin.rows("select alias, collection from llm.collection_aliases order by 1") == [("docs", "one"), ("more", "one")]
    with raises(InsufficientPrivilege):
        docs.run("select llm.set_collection_alias('docs', 'two')")

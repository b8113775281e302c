"""Reading points, changing their payloads, deleting them."""

from __future__ import annotations

from uuid import UUID

import pytest
from psycopg.errors import InvalidParameterValue, UndefinedObject

from tests.support import Client, Database, in_tenant, next_transaction, raises


@pytest.fixture
def docs(admin: Client, acme: Client) -> Client:
    """An application's client in a transaction for tenant acme, with five points a to e in collection docs."""
    admin.run("select llm.create_collection('docs', 3)")
    acme.run(
        "select llm.upsert_points('docs', p_ids => '{a,b,c,d,e}', p_contents => '{1,2,3,4,5}', p_embeddings => array_fill('[1,2,3]'::vector, '{5}'),"
        """ p_payloads => array_fill('{"k": 1, "l": {"m": 2}}'::jsonb, '{5}'))"""
    )
    return next_transaction(acme)


@pytest.fixture
def users(docs: Client) -> list[UUID]:
    """Two users of acme, the owners of points a and b."""
    users = [docs.one("select llm.create_user(%s)", f"{name}@x.org") for name in "ab"]
    docs.run("select llm.upsert_points('docs', p_ids => '{a,b}', p_contents => '{1,2}', p_user_ids => %s)", users)
    next_transaction(docs)
    return users


def test_points_come_in_the_order_of_their_ids_as_asked(docs: Client) -> None:
    assert docs.rows("select id, content, embedding::text, payload from llm.get_points('docs', '{d,x,b}')") == [
        ("d", "4", None, {"k": 1, "l": {"m": 2}}),
        ("b", "2", None, {"k": 1, "l": {"m": 2}}),
    ]
    assert docs.column("select embedding::text from llm.get_points('docs', '{a}', p_with_vectors => true)") == ["[1,2,3]"]


def test_scrolling_gives_every_point_once(docs: Client) -> None:
    seen: list[str] = []
    while page := docs.column("select id from llm.scroll_points('docs', %s, 2)", seen[-1] if seen else None):
        seen += page
    assert seen == list("abcde")
    assert docs.column("select embedding::text from llm.scroll_points('docs', 'd', p_with_vectors => true)") == ["[1,2,3]"]
    for arguments in ("null, -1", "null, -1, p_filter => '{}'"):
        with raises(InvalidParameterValue, "a page cannot have -1 points", hint="0 or more"), docs.transaction():
            docs.run(f"select llm.scroll_points('docs', {arguments})")


def test_deleting_is_for_good(docs: Client) -> None:
    assert docs.one("select llm.delete_points('docs', '{a,c,x,a}')") == 2
    assert docs.one("select llm.delete_points('docs', '{a}')") == 0
    assert docs.one("select llm.count_points('docs')") == 3
    assert docs.column("select id from llm.points_docs order by id") == ["b", "d", "e"]


def test_a_payload_is_changed_field_by_field(docs: Client) -> None:
    assert docs.one("""select llm.set_payload('docs', '{a,b,x}', '{"k": 2, "n": null}')""") == 2
    assert docs.one("select llm.set_payload('docs', '{b}', p_remove => '{l,k}')") == 1
    assert docs.column("select payload from llm.get_points('docs', '{a,b,c}')") == [
        {"k": 2, "n": None, "l": {"m": 2}},
        {"n": None},
        {"k": 1, "l": {"m": 2}},
    ]
    assert docs.column("select id from llm.points_docs order by number") == ["c", "d", "e", "a", "b"]
    assert docs.one("""select llm.set_payload('docs', '{c}', '{"k": 1}')""") == 0
    for payload in ("[]", "null", "1", None):
        with raises(InvalidParameterValue, "this is not a payload: ", hint="p_remove"), docs.transaction():
            docs.run("select llm.set_payload('docs', '{a}', %s)", payload)


@pytest.mark.parametrize(
    "call",
    ["get_points('dogs', '{a}')", "scroll_points('dogs')", "count_points('dogs')", "set_payload('dogs', '{a}')", "delete_points('dogs', '{a}')"],
)
def test_an_unknown_collection_is_refused(docs: Client, call: str) -> None:
    with raises(UndefinedObject, "collection 'dogs' does not exist", hint="list_collections"):
        docs.run(f"select llm.{call}")


def test_a_tenant_has_nothing_of_another(database: Database, docs: Client) -> None:
    docs.run("commit")
    globex = in_tenant(database.client("app"), "globex")
    assert globex.rows("select * from llm.get_points('docs', '{a,b}')") == []
    assert globex.rows("select * from llm.scroll_points('docs')") == []
    assert globex.rows("select * from llm.points_docs") == []
    assert globex.one("select llm.count_points('docs')") == 0
    assert globex.one("""select llm.set_payload('docs', '{a}', '{"k": 2}')""") == 0
    assert globex.one("select llm.delete_points('docs', '{a}')") == 0
    assert in_tenant(docs, "acme").one("select llm.count_points('docs')") == 5


def test_a_user_has_his_own_points_only(docs: Client, users: list[UUID]) -> None:
    docs.run("select llm.set_user(%s)", users[0])
    assert docs.column("select id from llm.get_points('docs', '{a,b,c}')") == ["a"]
    assert docs.column("select id from llm.scroll_points('docs')") == ["a"]
    assert docs.column("select id from llm.points_docs") == ["a"]
    assert docs.one("select llm.count_points('docs')") == 1
    assert docs.one("""select llm.set_payload('docs', '{a,b,c}', '{"k": 2}')""") == 1
    assert docs.one("select llm.delete_points('docs', '{a,b,c}')") == 1
    docs.run("select llm.set_user(null)")
    assert docs.column("select id from llm.scroll_points('docs')") == list("bcde")
    assert docs.column("select payload -> 'k' from llm.get_points('docs', '{b,c}')") == [None, 1]


def test_a_reader_reads_and_does_not_write(database: Database, docs: Client) -> None:
    docs.run("commit")
    reader = in_tenant(database.client("reader"), "acme")
    assert reader.one("select llm.count_points('docs')") == 5
    for call in ("upsert_points('docs', '[]')", "set_payload('docs', '{a}')", "delete_points('docs', '{a}')"):
        with pytest.raises(Exception, match="permission denied"), reader.transaction():
            reader.run(f"select llm.{call}")

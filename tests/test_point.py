"""Writing points."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from psycopg.errors import (
    ArraySubscriptError,
    DataException,
    InsufficientPrivilege,
    InvalidParameterValue,
    InvalidTextRepresentation,
    NumericValueOutOfRange,
    ObjectNotInPrerequisiteState,
    ProgramLimitExceeded,
    UndefinedObject,
)

from tests.support import Client, Database, in_tenant, next_transaction, raises


@pytest.fixture
def docs(admin: Client, acme: Client) -> Client:
    """An application's client in a transaction for tenant acme, with a collection docs of three dimensions."""
    admin.run("select llm.create_collection('docs', 3, p_model => 'small')")
    return acme


@pytest.fixture
def users(docs: Client) -> tuple[UUID, UUID]:
    """Two users of acme."""
    first, second = (docs.one("select llm.create_user(%s)", f"{name}@x.org") for name in "ab")
    next_transaction(docs)
    return first, second


def upsert(client: Client, *points: dict[str, Any]) -> tuple[int, int, int]:
    """Write points and return how many were new, changed and as they were."""
    found: tuple[int, int, int] = client.row("select * from llm.upsert_points('docs', %s)", json.dumps(points))
    return found


def stored(client: Client, identifier: str = "a") -> tuple[Any, ...]:
    """Return what is stored of a point."""
    return client.row("select content, embedding::text, model, payload, user_id from llm.points_docs where id = %s", identifier)


def test_points_are_written_as_objects_or_as_arrays(docs: Client) -> None:
    assert upsert(docs, {"id": "a", "embedding": [1, 2, 3], "content": "x"}, {"id": 1, "embedding": "[1,2,4]", "payload": {"k": [1]}}) == (2, 0, 0)
    assert docs.row("select * from llm.upsert_points('docs', %s)", '{"id": "b", "content": "y"}') == (1, 0, 0)
    arrays = "select * from llm.upsert_points('docs', p_ids => %s, p_embeddings => %s, p_contents => %s, p_payloads => %s::jsonb[])"
    assert docs.row(arrays, ["c", "d"], ["[1,1,1]", None], [None, "z"], ['{"k": 2}', None]) == (2, 0, 0)
    assert docs.rows("select id, content, embedding::text, payload from llm.points_docs order by id") == [
        ("1", None, "[1,2,4]", {"k": [1]}),
        ("a", "x", "[1,2,3]", {}),
        ("b", "y", None, {}),
        ("c", None, "[1,1,1]", {"k": 2}),
        ("d", "z", None, {}),
    ]
    assert upsert(docs) == (0, 0, 0)
    assert docs.row("select * from llm.upsert_points('docs', p_ids => '{}')") == (0, 0, 0)


@pytest.mark.parametrize("element", ["vector", "halfvec", "bit"])
def test_vectors_of_every_element_are_stored(admin: Client, acme: Client, element: str) -> None:
    admin.run("select llm.create_collection('docs', 3, p_element => %s)", element)
    assert upsert(acme, {"id": "a", "embedding": [0.5, -2, 3]}) == (1, 0, 0)
    assert upsert(acme, {"id": "a", "embedding": [0.5, -2, 3]}) == (0, 0, 1)
    assert upsert(acme, {"id": "a", "embedding": [0.5, -2, 4]}) == (0, 1, 0)
    assert stored(acme)[1] == "[0.5,-2,4]"


def test_what_is_unchanged_is_not_touched(docs: Client) -> None:
    point = {"id": "a", "embedding": [1, 2, 3], "content": "x", "payload": {"k": 1}}
    upsert(docs, point)
    version = "select ctid::text, xmin::text, xmax::text, number from llm.points_docs"
    before = next_transaction(docs).row(version)
    assert upsert(docs, point) == (0, 0, 1)
    del point["embedding"]
    assert upsert(docs, point) == (0, 0, 1)
    assert docs.row(version) == before


@pytest.mark.parametrize("change", [{"content": "y"}, {"embedding": [1, 2, 4]}, {"payload": {"k": 2}}, {"payload": {}}, {"content": None}], ids=str)
def test_whatever_changes_moves_a_point_to_the_tail(docs: Client, change: dict[str, Any]) -> None:
    point = {"id": "a", "embedding": [1, 2, 3], "content": "x", "payload": {"k": 1}}
    upsert(docs, point, {"id": "b", "content": "last"})
    assert upsert(docs, point | change) == (0, 1, 0)
    assert docs.column("select id from llm.points_docs order by number") == ["b", "a"]
    content, embedding, _, payload, _ = stored(docs)
    new = point | change
    assert (content, json.loads(embedding), payload) == (new["content"], new["embedding"], new["payload"])


def test_new_content_makes_the_vector_pending(docs: Client) -> None:
    point = {"id": "a", "embedding": [1, 2, 3], "content": "x"}
    upsert(docs, point)
    upsert(docs, {"id": "a", "content": "x", "payload": {"k": 1}})
    assert stored(docs) == ("x", "[1,2,3]", "small", {"k": 1}, None)
    upsert(docs, {"id": "a", "content": "y"})
    assert stored(docs) == ("y", None, "small", {}, None)


def test_a_collection_has_the_vectors_of_one_model(docs: Client, admin: Client) -> None:
    """Those of two cannot be compared. A collection without a model takes what it is told."""
    write = "select unchanged from llm.upsert_points(%s, p_ids => '{a}', p_contents => '{x}', p_embeddings => %s::text[]::vector[], p_model => %s)"
    refused = "points of model 'large' cannot be written to collection docs, whose model is 'small'"
    with raises(InvalidParameterValue, refused, hint="copy_for_model"), docs.transaction():
        docs.run(write, "docs", ["[1,2,3]"], "large")
    assert docs.one(write, "docs", ["[1,2,3]"], "small") == 0
    assert docs.one(write, "docs", None, None) == 1
    docs.run("commit")
    with raises(ObjectNotInPrerequisiteState, "collection docs has vectors of model 'small'", hint="copy_for_model"):
        admin.run("select llm.alter_collection('docs', p_model => 'large')")
    admin.run("select llm.create_collection('any', 3)")
    in_tenant(docs, "acme")
    assert docs.one(write, "any", ["[1,2,3]"], "small") == 0
    assert docs.one(write, "any", None, "large") == 0
    assert docs.row("select model, embedding from llm.points_any") == ("large", None), "another model's vector is pending"
    docs.run(write, "any", ["[1,2,3]"], "large").run("commit")
    with raises(ObjectNotInPrerequisiteState, "collection any has vectors of model 'large'"):
        admin.run("select llm.alter_collection('any', p_model => 'small')")
    assert admin.one("select model from llm.alter_collection('any', p_model => 'large')") == "large"


def test_of_points_with_the_same_id_the_last_counts(docs: Client) -> None:
    assert upsert(docs, *({"id": "a", "content": str(number)} for number in range(5))) == (1, 0, 0)
    assert stored(docs)[0] == "4"


def test_a_batch_is_written_as_a_whole_or_not_at_all(docs: Client) -> None:
    with raises(InvalidParameterValue), docs.transaction():
        upsert(docs, {"id": "a", "content": "x"}, {"id": "b", "embedding": [1, 2]})
    assert docs.one("select llm.count_points('docs')") == 0


@pytest.mark.parametrize(
    ("point", "match", "hint"),
    [
        ({"content": "x"}, "the id of a point has no bytes", "1 to 500"),
        ({"id": "", "content": "x"}, "the id of a point has 0 bytes", "1 to 500"),
        ({"id": "é" * 251, "content": "x"}, "the id of a point has 502 bytes", "1 to 500"),
        ({"id": "a"}, "point 'a' has neither content nor a vector", "set_payload"),
        ({"id": "a", "content": "x", "payload": [1]}, "the payload of point 'a' is of type array", "JSON object"),
        ({"id": "a", "embedding": [1, 2]}, "the vector of point 'a' has 2 dimensions, those of collection docs have 3", "model"),
        ({"id": "a", "embedding": [0, 0, 0]}, "the vector of point 'a' is zero", "without|no direction"),
        ({"id": "a", "embedding": [1e-16, 0, 0]}, "the vector of point 'a' is [0-9.]+e-1[67] long", "from 1e-15 to"),
        ({"id": "a", "embedding": [0, 1e16, 0]}, "the vector of point 'a' is [0-9.]+e[+]1[56] long", "Normalize"),
        ({"id": "a", "embedding": "abc"}, "a point cannot be read: .*abc", "array of numbers"),
        ({"id": "a", "embedding": [1, None, 2]}, "a point cannot be read: .*null", "array of numbers"),
        ({"id": "a", "content": "x", "user_id": "me"}, "a point cannot be read: .*uuid.*me", "UUID"),
    ],
)
def test_vec_03_points_that_a_collection_cannot_hold_are_refused(docs: Client, point: dict[str, Any], match: str, hint: str) -> None:
    with raises(InvalidParameterValue, match, hint=hint):
        upsert(docs, {"id": "good", "content": "good"}, point)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e39", "x"])
def test_vec_03_what_is_no_number_is_refused(docs: Client, value: str) -> None:
    for statement, argument in (
        ("select llm.upsert_points('docs', %s)", json.dumps({"id": "a", "embedding": f"[1,2,{value}]"})),
        ("select llm.upsert_points('docs', p_ids => '{a}', p_embeddings => %s)", [f"[1,2,{value}]"]),
    ):
        with pytest.raises((DataException, InvalidParameterValue, InvalidTextRepresentation, NumericValueOutOfRange)), docs.transaction():
            docs.run(statement, argument)
    with raises(ProgramLimitExceeded, "vector cannot have more than 16000 dimensions"):
        upsert(docs, {"id": "a", "embedding": [1] * 16_001})


def test_vec_03_a_zero_vector_has_a_distance_but_by_cosine(admin: Client, acme: Client) -> None:
    admin.run("select llm.create_collection('docs', 3, 'l2')")
    assert upsert(acme, {"id": "a", "embedding": [0, 0, 0]}, {"id": "b", "embedding": [1e-30, 0, 1e30]}) == (2, 0, 0)


def test_vec_03_what_is_zero_as_halfvec_is_refused(admin: Client, acme: Client) -> None:
    admin.run("select llm.create_collection('docs', 3, p_element => 'halfvec')")
    assert upsert(acme, {"id": "a", "embedding": [1e-3, 1e-4, 0]}) == (1, 0, 0)
    with raises(InvalidParameterValue, "the vector of point 'b' is [0-9.]+e-(09|10) long", hint="halfvec is from 0.001 to"):
        upsert(acme, {"id": "b", "embedding": [1e-9, 0, 0]})


@pytest.mark.parametrize("points", ["1", "null", "[1]", "[null]", '["a"]', '[{"id": "a", "content": "x"}, []]'])
def test_what_are_no_points_is_refused(docs: Client, points: str) -> None:
    with raises(InvalidParameterValue, "these are not points: ", hint="array of objects"):
        docs.run("select llm.upsert_points('docs', %s)", points)


def test_arrays_are_of_one_length_and_not_beside_objects(docs: Client) -> None:
    with raises(ArraySubscriptError, "there are 2 ids, and another number of vectors", hint="same length"), docs.transaction():
        docs.run("select llm.upsert_points('docs', p_ids => '{a, b}', p_contents => '{x}')")
    for arguments in ("", ", '[]', '{a}'"):
        with raises(InvalidParameterValue, "points are given neither as objects nor as arrays", hint="p_points alone"), docs.transaction():
            docs.run(f"select llm.upsert_points('docs'{arguments})")


def test_points_need_a_collection_and_a_tenant(docs: Client) -> None:
    with raises(UndefinedObject, "collection 'dogs' does not exist", hint="create_collection"), docs.transaction():
        docs.run("select llm.upsert_points('dogs', '[]')")
    docs.run("commit")
    with raises(ObjectNotInPrerequisiteState, "points are a tenant's, and no tenant is set", hint="set_tenant"):
        upsert(docs, {"id": "a", "content": "x"})


def test_tenants_have_points_of_their_own_under_the_same_ids(database: Database, docs: Client) -> None:
    globex = in_tenant(database.client("app"), "globex")
    for client, content in ((docs, "of acme"), (globex, "of globex")):
        assert upsert(client, {"id": "a", "content": content}) == (1, 0, 0)
        next_transaction(client)
    assert (stored(docs)[0], stored(globex)[0]) == ("of acme", "of globex")
    assert upsert(globex, {"id": "a", "content": "of globex"}) == (0, 0, 1)


def test_users_do_not_write_each_others_points(docs: Client, users: tuple[UUID, UUID]) -> None:
    mine, other = users
    docs.run("select llm.set_user(%s)", other)
    upsert(docs, {"id": "a", "content": "theirs"})
    next_transaction(docs).run("select llm.set_user(%s)", mine)
    for identifier in ("a", "shared"):
        if identifier == "shared":
            docs.run("select llm.set_user(null)")
            upsert(docs, {"id": "shared", "content": "of nobody"})
            docs.run("select llm.set_user(%s)", mine)
        with raises(InsufficientPrivilege, f"point '{identifier}' is not of this user", hint="another id"), docs.transaction():
            upsert(docs, {"id": identifier, "content": "mine now"})
    with raises(InsufficientPrivilege, "point 'b' cannot be written for user", hint="set_user"), docs.transaction():
        upsert(docs, {"id": "b", "content": "x", "user_id": str(other)})
    assert upsert(docs, {"id": "b", "content": "x"}) == (1, 0, 0)
    assert stored(docs, "b")[4] == mine
    docs.run("select llm.set_user(null)")
    assert stored(docs)[0] == "theirs"


def test_a_point_without_a_user_set_is_for_whom_it_says(docs: Client, users: tuple[UUID, UUID]) -> None:
    first, second = users
    upsert(docs, {"id": "a", "content": "x", "user_id": str(first)}, {"id": "b", "content": "x"})
    assert (stored(docs, "a")[4], stored(docs, "b")[4]) == (first, None)
    assert upsert(docs, {"id": "a", "content": "x", "user_id": str(second)}) == (0, 1, 0)
    assert stored(docs, "a")[4] == second


def test_q_06_overlapping_batches_at_once_do_not_deadlock(database: Database, admin: Client, db: Client) -> None:
    admin.run("select llm.create_collection('docs', 3)")
    db.run("select llm.bind_role('app', 'acme')")
    clients = database.clients(8, "app")

    def write(number: int) -> None:
        chance = random.Random(number)
        for round_number in range(25):
            ids = [str(chance.randrange(60)) for _ in range(40)]
            points = [{"id": identifier, "content": f"{number} {round_number}"} for identifier in ids]
            clients[number].run("select llm.upsert_points('docs', %s)", json.dumps(points))
            if round_number % 5 == 0:
                clients[number].run("select llm.delete_points('docs', %s)", ids[:10])
                clients[number].run("""select llm.set_payload('docs', %s, '{"k": 1}')""", ids[10:30])

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(write, range(len(clients))))
    assert db.one("select count(*) = count(distinct number) and count(*) > 0 from llm.points_docs") is True


def test_the_same_new_point_written_at_once_by_many_is_one(database: Database, admin: Client, db: Client) -> None:
    admin.run("select llm.create_collection('docs', 3)")
    db.run("select llm.bind_role('app', 'acme')")
    clients = database.clients(8, "app")
    with ThreadPoolExecutor(len(clients)) as pool:
        results = list(pool.map(lambda client: upsert(client, {"id": "a", "content": "x"}), clients))
    assert sum(inserted for inserted, _, _ in results) == 1
    assert all(sum(result) == 1 for result in results)


def test_forgetting_a_user_takes_his_points(db: Client, admin: Client, docs: Client, users: tuple[UUID, UUID]) -> None:
    mine, other = users
    for user in (mine, other):
        upsert(docs, {"id": str(user), "content": "x", "user_id": str(user)})
    docs.run("commit")
    with admin.tenant("acme"):
        admin.run("select llm.forget_user(%s)", mine)
    assert db.column("select user_id from llm.points_docs") == [other]


def test_words_are_found_later_and_say_whose_they_are(db: Client, docs: Client, users: tuple[UUID, UUID]) -> None:
    upsert(docs, {"id": "a", "content": "The mice ran", "user_id": str(users[0])}, {"id": "b", "embedding": [1, 2, 3]})
    docs.run("commit")
    assert db.column("select words from llm.points_docs where words is not null") == []
    db.run("call llm.maintain()")
    found = (
        "select id from llm.points_docs"
        " where words @@ to_tsquery('english', 'mouse | mice') and words @@ quote_literal(llm._search_mark(%s, %s))::tsquery"
    )
    assert db.column(found, "t", "acme") == ["a"]
    assert db.column(found, "t", "globex") == []
    assert db.column(found, "u", str(users[0])) == ["a"]
    assert db.column(found, "u", str(users[1])) == []
    in_tenant(docs, "acme")
    upsert(docs, {"id": "a", "content": "The mice ran", "user_id": str(users[0]), "payload": {"k": 1}})
    assert docs.one("select words is not null from llm.points_docs where id = 'a'") is True
    upsert(docs, {"id": "a", "content": "The mice ran", "user_id": str(users[1])})
    assert docs.one("select words is null from llm.points_docs where id = 'a'") is True


def test_hostile_texts_are_stored_as_they_are(docs: Client) -> None:
    texts: Iterator[str] = iter(("'; drop table llm.collections; --", "$upsert$", "%1$s", "{}", "\\", "\u202e", "a" * 100_000))
    for text in texts:
        identifier = text[:100]
        assert upsert(docs, {"id": identifier, "content": text, "payload": {text[:100]: text}}) == (1, 0, 0)
        assert stored(docs, identifier)[0] == text

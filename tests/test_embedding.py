"""Embeddings of things, by their kind and UUID, in a collection of their own."""

from __future__ import annotations

from uuid import UUID

import pytest
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue, UndefinedObject

from tests.support import Client, Database, raises

STORE = "select llm.store_embedding(%s, %s, %s, %s)"


@pytest.fixture
def acme(admin: Client, bound: Client) -> Client:
    """A client bound to acme, with the collection embeddings of three dimensions."""
    assert admin.one("select llm.create_embeddings(p_dimensions => 3)") is True
    return bound


def test_the_collection_is_the_seeds(admin: Client) -> None:
    assert admin.one("select llm.create_embeddings()") is True
    assert admin.one("select llm.create_embeddings()") is False
    admin.run("select llm.set_collection_alias('things', 'embeddings')")
    assert admin.one("select llm.create_embeddings('things')") is False
    assert admin.row("select name, dimensions, distance, index_kind, lists from llm.list_collections()") == (
        "embeddings", 1536, "cosine", "ivfflat", 100
    )  # fmt: skip


def test_what_is_similar_is_found_with_all_that_was_stored(acme: Client) -> None:
    near = acme.one(STORE, "message", UUID(int=1), "[1,0.1,0]", '{"model": "m"}')
    acme.one(STORE, "document", UUID(int=2), "[1,0.5,0]", "{}")
    acme.one(STORE, "message", UUID(int=3), "[0,1,0]", "{}")
    found = acme.rows("select id, content_type, content_id, embedding::text, metadata, similarity from llm.search_similar('[1,0,0]', 10)")
    assert found[0][:5] == (near, "message", UUID(int=1), "[1,0.1,0]", {"model": "m"})
    assert [row[2] for row in found] == [UUID(int=1), UUID(int=2)], "more similar than 0.7"
    assert found[1][5] == pytest.approx(1 / 1.25**0.5)
    ids = "select content_id from llm.search_similar('[1,0,0]'"
    assert acme.column(f"{ids}, p_threshold => null)") == [UUID(int=1), UUID(int=2), UUID(int=3)]
    assert acme.column(f"{ids}, p_threshold => null, p_content_type => 'message')") == [UUID(int=1), UUID(int=3)]
    assert acme.column(f"{ids}, 1)") == [UUID(int=1)]
    acme.one(STORE, "message", UUID(int=4), "[1,0,0]", "{}")
    assert acme.column(f"{ids}, p_threshold => 1)") == [], "not more than 1"


def test_an_id_that_is_there_is_written_again(acme: Client) -> None:
    for vector in ("[1,0,0]", "[0,1,0]"):
        acme.one("select llm.store_embedding('message', %s, %s, p_id => %s)", UUID(int=1), vector, UUID(int=9))
    assert acme.column("select id from llm.search_similar('[0,1,0]')") == [UUID(int=9)]
    assert acme.column("select id from llm.search_similar('[1,0,0]')") == []


def test_embeddings_are_a_tenants(acme: Client, database: Database) -> None:
    acme.one(STORE, "message", UUID(int=1), "[1,0,0]", "{}")
    other = database.client("admin")
    with other.tenant("other"):
        assert other.column("select id from llm.search_similar('[1,0,0]')") == []
        assert other.row("select total_vectors, sampled from llm.analyze_vector_distribution()") == (0, 0)


def test_lists_go_by_the_number_of_vectors(acme: Client, admin: Client) -> None:
    acme.run("select llm.upsert_points('embeddings', p_ids => array_agg(i::text), p_embeddings => array_agg(format('[1,%s,1]', i)::vector))"
             " from generate_series(1, 5000) i")  # fmt: skip
    optimize = "select * from llm.optimize_index(p_rule => %s)"
    assert admin.row(optimize, "seed") == (5000, 100, 70, 5, 70)
    assert admin.row("select * from llm.optimize_index()") == (5000, 70, 70, 5, 5)
    assert admin.one("select lists from llm.list_collections()") == 5
    version = admin.one("select version from llm.list_collections()")
    admin.run("select llm.optimize_index()")
    assert admin.one("select version from llm.list_collections()") == version, "nothing to build"
    with raises(InvalidParameterValue, "there is no rule 'x' for lists", hint="pgvector"):
        admin.run(optimize, "x")
    with raises(InsufficientPrivilege):
        acme.run("select llm.optimize_index()")


def test_few_vectors_get_few_lists(acme: Client, admin: Client) -> None:
    assert admin.row("select vectors, lists_by_seed, lists_by_pgvector from llm.optimize_index()") == (0, 64, 1)


def test_a_distribution_is_told_by_norms_and_pairs(acme: Client) -> None:
    for number, vector in enumerate(("[3,4,0]", "[3,4,0]", "[6,8,0]")):
        acme.one(STORE, "message", UUID(int=number), vector, "{}")
    found = acme.row("select * from llm.analyze_vector_distribution()")
    assert found[:6] == (3, 3, 3, 5, pytest.approx(20 / 3), 10)
    assert found[6:] == (pytest.approx((50 / 9) ** 0.5), pytest.approx(1), pytest.approx(0, abs=1e-6), 1)
    assert acme.one("select sampled from llm.analyze_vector_distribution(p_sample => 2)") == 2
    for wrong in (0, 1, 100001, None):
        with raises(InvalidParameterValue, "a distribution cannot be told by", hint="2 to 100,000"):
            acme.run("select llm.analyze_vector_distribution(p_sample => %s::integer)", wrong)


@pytest.mark.parametrize(
    "arguments", [("", UUID(int=1), "[1,2,3]"), ("x" * 51, UUID(int=1), "[1,2,3]"), ("m", None, "[1,2,3]"), ("m", UUID(int=1), None)]
)
def test_what_is_no_embedding_is_refused(acme: Client, arguments: tuple[object, ...]) -> None:
    with raises(InvalidParameterValue, "an embedding has no content type, no content id or no vector", hint="UUID"):
        acme.run("select llm.store_embedding(%s, %s, %s)", *arguments)
    with raises(UndefinedObject, "does not exist"):
        acme.run("select llm.search_similar('[1,2,3]', p_collection => 'x')")
    acme.run("select llm.upsert_points('embeddings', p_ids => '{a}', p_embeddings => array['[1,2,3]']::vector[])")
    with raises(InvalidParameterValue, "collection embeddings has points that are no embeddings: .*\"a\"", hint="llm.store_embedding"):
        acme.run("select llm.search_similar('[1,2,3]')")

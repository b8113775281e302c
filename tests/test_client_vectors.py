"""LangChain's vector store, as its published suite and applications use it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import UUID

import psycopg
import psycopg_pool
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests.vectorstores import EMBEDDING_SIZE, VectorStoreIntegrationTests
from psycopg.errors import InvalidParameterValue, ObjectNotInPrerequisiteState

from pg_llm_client import PgLlmVectorStore
from tests.support import Client, Database, raises


class Letters(Embeddings):
    """Texts with the same letters are near."""

    def embed_query(self, text: str) -> list[float]:
        """Return how often a, b and c stand in a text."""
        return [text.count(letter) + 0.01 for letter in "abc"]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each."""
        return [self.embed_query(text) for text in texts]


def found(documents: list[Document]) -> list[str]:
    return [document.page_content for document in documents]


class TestPublishedSuite(VectorStoreIntegrationTests):
    """All that LangChain asks of a vector store, synchronous and asynchronous."""

    @pytest.fixture
    def vectorstore(self, database: Database) -> PgLlmVectorStore:
        database.client("admin").run("select llm.create_collection('suite', %s)", EMBEDDING_SIZE)
        return PgLlmVectorStore(database.client("app").connection, "suite", self.get_embeddings(), tenant="a")


@pytest.fixture
def store(database: Database) -> PgLlmVectorStore:
    """A store of tenant a with the texts a, aab, bb and c."""
    database.client("admin").run("select llm.create_collection('docs', 3)")
    store = PgLlmVectorStore(database.client("app").connection, "docs", Letters(), tenant="a")
    store.add_texts(["aaa", "aab", "bb", "c"], [{"n": number, "odd key.x": [number]} for number in range(4)], ids=list("wxyz"))
    return store


def test_filters_are_values_of_keys_or_filters_of_pg_llm(store: PgLlmVectorStore) -> None:
    search = store.similarity_search
    assert found(search("a", 2)) == ["aaa", "aab"]
    assert found(search("a", filter={"n": 2})) == ["bb"]
    assert found(search("a", filter={"n": [2, 1]})) == ["aab", "bb"]
    assert found(search("a", filter={"odd key.x": 3})) == ["c"]
    assert found(search("b", filter={"must": [{"key": "n", "range": {"gte": 2}}]})) == ["bb", "c"]
    with raises(InvalidParameterValue, "the filter is wrong"):
        search("a", filter={"must": [{"key": "n"}]})


def test_scores_are_similarities(store: PgLlmVectorStore) -> None:
    (first, score), (_, second) = store.similarity_search_with_score("aaaa", 2)
    assert first == Document(id="w", page_content="aaa", metadata={"n": 0, "odd key.x": [0]})
    assert 0.85 < second < 0.95 < score <= 1
    assert found([document for document, _ in store.similarity_search_with_relevance_scores("a", score_threshold=0.95)]) == ["aaa"]
    assert found(store.similarity_search("a", score_threshold=0.5)) == ["aaa", "aab"]
    assert found(store.similarity_search_by_vector([0, 0, 1], 1)) == ["c"]


def test_words_and_vectors_find_together(store: PgLlmVectorStore) -> None:
    assert store.hybrid_search("bb", 2)[0][0].id == "y"


def test_diverse_documents_are_not_just_the_nearest(store: PgLlmVectorStore) -> None:
    assert found(store.similarity_search("aab", 2)) == ["aab", "aaa"]
    assert found(store.max_marginal_relevance_search("aab", 2, lambda_mult=0.2)) != ["aab", "aaa"]
    assert store.max_marginal_relevance_search("aab", 2, filter={"n": 9}) == []


def test_what_json_cannot_hold_comes_back(store: PgLlmVectorStore) -> None:
    odd = Document(id="odd", page_content="nul \0 surrogate \ud800", metadata={"k\0": "\udfff"})
    store.add_documents([odd])
    assert store.get_by_ids(["odd"]) == [odd]


def test_all_are_deleted_only_when_no_ids_are_given(store: PgLlmVectorStore) -> None:
    store.delete([])
    assert len(store.get_by_ids(list("wxyz"))) == 4
    store.delete()
    assert store.get_by_ids(list("wxyz")) == []
    assert store.add_texts([]) == []


def test_documents_are_a_tenants_and_a_users(store: PgLlmVectorStore, database: Database) -> None:
    """RLS-04"""
    connection = database.client("app").connection
    ann, bob = (PgLlmVectorStore(connection, "docs", Letters(), tenant="a", user_id=UUID(int=number)) for number in (1, 2))
    ann.add_texts(["abc of ann"], ids=["ann's"])
    assert found(ann.similarity_search("abc")) == ["abc of ann"]
    assert bob.similarity_search("abc") == []
    bob.delete()
    assert len(ann.get_by_ids(["ann's"])) == 1
    assert len(store.get_by_ids(["ann's"])) == 1
    assert PgLlmVectorStore(connection, "docs", Letters(), tenant="b").similarity_search("abc") == []
    with raises(ObjectNotInPrerequisiteState, "no tenant is set"):
        PgLlmVectorStore(connection, "docs", Letters()).similarity_search("abc")


def test_texts_without_an_embedding_wait_for_workers(store: PgLlmVectorStore, database: Database) -> None:
    database.client("admin").run("select llm.set_embedding_model('docs', 'm')")
    client = database.client("app")
    waiting = PgLlmVectorStore(client.connection, "docs", tenant="a")
    (identifier,) = waiting.add_texts(["later"])
    with client.tenant("a"):
        assert client.column("select point_id from llm.embedding_jobs") == [identifier]
    with pytest.raises(ValueError, match="has no embedding"):
        waiting.similarity_search("later")
    assert found(waiting.similarity_search_by_vector([1, 0, 0], 1)) == ["aaa"]


def test_misuse_is_told(store: PgLlmVectorStore) -> None:
    with pytest.raises(ValueError, match="there are 2 texts and 1 metadatas"):
        store.add_texts(["a", "b"], [{}])
    with pytest.raises(ValueError, match="there are 1 texts and 2 ids"):
        store.add_texts(["a"], ids=["a", "b"])
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.add_texts(["a"], [{"x": {1}}])


@pytest.fixture
def pool(database: Database) -> Iterator[psycopg_pool.ConnectionPool]:
    """A pool of connections."""
    with psycopg_pool.ConnectionPool(database.cluster.dsn(database.name, "app"), min_size=1, kwargs={"autocommit": True}) as connections:
        yield connections


def test_a_retriever_and_a_pool(database: Database, db: Client, pool: psycopg_pool.ConnectionPool) -> None:
    db.run("select llm.create_collection('docs', 3)").run("select llm.set_collection_alias('texts', 'docs')")
    store = PgLlmVectorStore.from_texts(["aaa", "bbb"], Letters(), connection=pool, collection="texts", tenant="a")
    assert found(store.as_retriever(search_kwargs={"k": 1}).invoke("b")) == ["bbb"]
    assert found(store.as_retriever(search_type="mmr", search_kwargs={"k": 1}).invoke("b")) == ["bbb"]
    assert store.embeddings is not None


def test_everything_is_asynchronous_too(database: Database, db: Client) -> None:
    db.run("select llm.create_collection('docs', 3)")

    async def run() -> None:
        dsn = database.cluster.dsn(database.name, "app")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            store = await PgLlmVectorStore.afrom_texts(["aaa", "aab", "c"], Letters(), connection=connection, collection="docs", tenant="a")
            assert found(await store.asimilarity_search("a", 1)) == ["aaa"]
            assert found(await store.asimilarity_search_by_vector([0, 0, 1], 1)) == ["c"]
            assert [document.page_content for document, _ in await store.ahybrid_search("c", 1)] == ["c"]
            assert len(await store.amax_marginal_relevance_search("a", 2)) == 2
            with pytest.raises(TypeError, match="asynchronous"):
                store.similarity_search("a")

    asyncio.run(run())

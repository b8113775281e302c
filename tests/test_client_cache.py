"""LangChain's caches and byte store, as their published suites and applications use them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import UUID, uuid4

import psycopg
import psycopg_pool
import pytest
from langchain_core.caches import BaseCache
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from langchain_core.stores import BaseStore
from langchain_tests.integration_tests import AsyncCacheTestSuite, BaseStoreAsyncTests, BaseStoreSyncTests, SyncCacheTestSuite

from pg_llm_client import PgLlmByteStore, PgLlmCache, PgLlmSemanticCache
from tests.conftest import new_database
from tests.support import Database
from tools.cluster import Cluster

ANN, BOB = UUID(int=1), UUID(int=2)


class Letters(Embeddings):
    """Texts with the same letters are near."""

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed_query(self, text: str) -> list[float]:
        """Return how often a, b and c stand in a text."""
        self.embedded.append(text)
        return [text.count(letter) + 0.01 for letter in "abc"]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each."""
        return [self.embed_query(text) for text in texts]


@pytest.fixture(scope="module")
def one_database(cluster: Cluster) -> Iterator[Database]:
    """A database for all published suites, each test of which works for another tenant."""
    yield from new_database(cluster)


@pytest.fixture(scope="module")
def pool(one_database: Database) -> Iterator[psycopg_pool.ConnectionPool]:
    """A pool of connections, which any number of event loops may use."""
    dsn = one_database.cluster.dsn(one_database.name, "app")
    with psycopg_pool.ConnectionPool(dsn, min_size=1, kwargs={"autocommit": True}) as connections:
        yield connections


@pytest.fixture
def tenant() -> str:
    """A tenant that nobody has been."""
    return uuid4().hex


class TestPublishedSuite(SyncCacheTestSuite):
    """All that LangChain asks of a cache."""

    @pytest.fixture
    def cache(self, pool: psycopg_pool.ConnectionPool, tenant: str) -> BaseCache:
        return PgLlmCache(pool, tenant=tenant)


class TestPublishedSuiteAsynchronously(AsyncCacheTestSuite):
    """All that LangChain asks of a cache whose methods do not block."""

    @pytest.fixture
    def cache(self, pool: psycopg_pool.ConnectionPool, tenant: str) -> BaseCache:
        return PgLlmCache(pool, tenant=tenant)


class TestPublishedSuiteBySimilarity(SyncCacheTestSuite):
    """The same of the semantic cache."""

    @pytest.fixture
    def cache(self, pool: psycopg_pool.ConnectionPool, tenant: str) -> BaseCache:
        return PgLlmSemanticCache(pool, DeterministicFakeEmbedding(size=8), threshold=0.99, tenant=tenant)


class TestPublishedSuiteBySimilarityAsynchronously(AsyncCacheTestSuite):
    """The same of the semantic cache, not blocking."""

    @pytest.fixture
    def cache(self, pool: psycopg_pool.ConnectionPool, tenant: str) -> BaseCache:
        return PgLlmSemanticCache(pool, DeterministicFakeEmbedding(size=8), threshold=0.99, tenant=tenant)


class TestPublishedSuiteOfStores(BaseStoreSyncTests[bytes]):
    """All that LangChain asks of a byte store."""

    @pytest.fixture
    def kv_store(self, pool: psycopg_pool.ConnectionPool, tenant: str) -> BaseStore[str, bytes]:
        return PgLlmByteStore(pool, tenant=tenant)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return (b"foo", b"\0\xff", b"")


class TestPublishedSuiteOfStoresAsynchronously(BaseStoreAsyncTests[bytes]):
    """All that LangChain asks of a byte store whose methods do not block."""

    @pytest.fixture
    def kv_store(self, pool: psycopg_pool.ConnectionPool, tenant: str) -> BaseStore[str, bytes]:
        return PgLlmByteStore(pool, tenant=tenant)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return (b"foo", b"\0\xff", b"")


def test_answers_come_back_as_they_were(database: Database) -> None:
    message = AIMessage("ü \0 \ud800", response_metadata={"model": "m"}, usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3})
    calls = AIMessage("", tool_calls=[{"name": "f", "args": {"x": [1]}, "id": "1"}])
    answers: list[Generation] = [
        Generation(text="plain", generation_info={"finish": "stop", "n": 1.5}),
        GenerationChunk(text="\0"),
        ChatGeneration(message=message, generation_info={"a": None}),
        ChatGeneration(message=calls),
        ChatGenerationChunk(message=AIMessageChunk(content="part")),
    ]
    connection = database.client("app").connection
    cache, similar = PgLlmCache(connection, tenant="a"), PgLlmSemanticCache(connection, Letters(), threshold=0.9, tenant="a")
    for each in (cache, similar):
        each.update("prompt \0 \ud800", "model", answers)
        found = each.lookup("prompt \0 \ud800", "model")
        assert found == answers
        assert [type(answer) for answer in found] == [type(answer) for answer in answers]


def test_what_json_has_no_place_for_is_not_cached_and_fails_nothing(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    connection = database.client("app").connection
    for cache in (PgLlmCache(connection, tenant="a"), PgLlmSemanticCache(connection, Letters(), threshold=0.9, tenant="a")):
        cache.update("p", "m", [Generation(text="x", generation_info={"odd": {1}})])
        assert cache.lookup("p", "m") is None
    assert caplog.text.count("an answer is not cached") == 2


def test_a_model_is_asked_once(database: Database) -> None:
    """In LangChain: the second answer of the list is never given."""
    model = FakeListChatModel(responses=["first", "second"], cache=PgLlmCache(database.client("app").connection, tenant="a"))
    assert [model.invoke("hello").content for _ in range(3)] == ["first"] * 3
    assert model.invoke("good-bye").content == "second"


def test_similar_prompts_have_one_answer(database: Database) -> None:
    letters = Letters()
    cache = PgLlmSemanticCache(database.client("app").connection, letters, threshold=0.95, tenant="a", ttl=3600)
    cache.update("aaab", "m", [Generation(text="x")])
    letters.embedded.clear()
    assert cache.lookup("aaab", "m") == [Generation(text="x")]
    assert letters.embedded == [], "the very same prompt needs no embedding"
    assert cache.lookup("aaaaab", "m") == [Generation(text="x")]
    assert cache.lookup("abb", "m") is None
    assert cache.lookup("aaaaab", "n") is None


@pytest.mark.parametrize("kind", ["exact", "similar"])
def test_answers_are_a_tenants_and_a_users(database: Database, kind: str) -> None:
    """RLS-04"""
    connection = database.client("app").connection

    def cache(tenant: str, user: UUID | None = None) -> BaseCache:
        if kind == "exact":
            return PgLlmCache(connection, tenant=tenant, user_id=user)
        return PgLlmSemanticCache(connection, Letters(), threshold=0.5, tenant=tenant, user_id=user)

    caches = [cache("a", ANN), cache("a", BOB), cache("a"), cache("b", ANN)]
    for number, each in enumerate(caches):
        assert each.lookup("abc", "m") is None
        each.update("abc", "m", [Generation(text=str(number))])
    caches[0].clear()
    assert [each.lookup("abc", "m") for each in caches] == [None, *([Generation(text=str(number))] for number in (1, 2, 3))]
    caches[2].clear()
    assert caches[2].lookup("abc", "m") is None
    assert caches[3].lookup("abc", "m") is not None


def test_a_shared_answer_is_all_users(database: Database) -> None:
    connection = database.client("app").connection
    ann, bob = (PgLlmSemanticCache(connection, Letters(), threshold=0.9, shared=True, tenant="a", user_id=user) for user in (ANN, BOB))
    ann.update("abc", "m", [Generation(text="x")])
    assert bob.lookup("abc", "m") == [Generation(text="x")]


def test_a_store_keeps_odd_keys_and_its_namespace_and_tenant_apart(database: Database) -> None:
    connection = database.client("app").connection
    store, other, elsewhere = (
        PgLlmByteStore(connection, tenant="a", ttl=3600),
        PgLlmByteStore(connection, "other", tenant="a"),
        PgLlmByteStore(connection, tenant="b"),
    )
    keys = ["a%", "a_b", "a\0", "ab", "\ud800", "é"]
    store.mset([(key, key.encode("utf-8", "surrogatepass")) for key in keys] + [("ab", b"last")])
    assert store.mget(["ab", "none", "\ud800", "ab"]) == [b"last", None, b"\xed\xa0\x80", b"last"]
    assert sorted(store.yield_keys()) == sorted(keys)
    assert (list(store.yield_keys(prefix="a%")), list(store.yield_keys(prefix="a\0")), list(store.yield_keys(prefix="a_"))) == (
        ["a%"],
        ["a\0"],
        ["a_b"],
    )
    assert (list(other.yield_keys()), list(elsewhere.yield_keys())) == ([], [])
    store.mset([])
    store.mdelete([*keys, "none"])
    assert list(store.yield_keys()) == []


def test_everything_is_asynchronous_on_a_connection_too(database: Database) -> None:
    async def run() -> None:
        dsn = database.cluster.dsn(database.name, "app")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            answer = [Generation(text="x")]
            for cache in (PgLlmCache(connection, tenant="a"), PgLlmSemanticCache(connection, Letters(), threshold=0.9, tenant="a")):
                await cache.aupdate("abc", "m", answer)
                assert await cache.alookup("abc", "m") == answer
                await cache.aclear()
                assert await cache.alookup("abc", "m") is None
                with pytest.raises(TypeError, match="asynchronous"):
                    cache.lookup("abc", "m")
            store = PgLlmByteStore(connection, tenant="a")
            await store.amset([("k", b"v")])
            assert await store.amget(["k"]) == [b"v"]
            assert [key async for key in store.ayield_keys(prefix="k")] == ["k"]
            await store.amdelete(["k"])
            assert await store.amget(["k"]) == [None]

    asyncio.run(run())

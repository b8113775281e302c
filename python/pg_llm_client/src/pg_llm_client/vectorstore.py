"""A LangChain vector store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID, uuid4

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from . import text
from .connection import Server, Steps, literal, vector_type

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from .connection import AnyConnection

Found: TypeAlias = "list[tuple[Document, float]]"

#: What a filter of pg_llm has; any other dictionary says which values keys have.
_CLAUSES = {"must", "should", "must_not", "min_should"}


class PgLlmVectorStore(VectorStore):
    """The points of a collection in a database with pg_llm, as documents.

    `connection`, `tenant` and `user_id` are as for `PgLlmSaver`. Without `embedding`, texts are stored without vectors, as jobs for workers
    if the collection has a model, and are searched by vector.
    """

    def __init__(
        self,
        connection: AnyConnection,
        collection: str,
        embedding: Embeddings | None = None,
        *,
        tenant: str | None = None,
        user_id: UUID | None = None,
    ) -> None:
        self.collection = collection
        self._embedding = embedding
        self._server = Server(connection, tenant=tenant, user_id=user_id)
        self._vector = ""

    @property
    def embeddings(self) -> Embeddings | None:
        """What embeds texts and queries."""
        return self._embedding

    # Writing

    def add_texts(
        self, texts: Iterable[str], metadatas: list[dict[str, Any]] | None = None, *, ids: Sequence[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        """Write texts, new ones or in place of those with the same ids: all of them, or none. Return their ids."""
        texts = list(texts)
        vectors = self._embedding.embed_documents(texts) if self._embedding and texts else None
        return self._server.run(self._add(texts, vectors, metadatas, ids))

    async def aadd_texts(
        self, texts: Iterable[str], metadatas: list[dict[str, Any]] | None = None, *, ids: Sequence[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        """As `add_texts`."""
        texts = list(texts)
        vectors = await self._embedding.aembed_documents(texts) if self._embedding and texts else None
        return await self._server.arun(self._add(texts, vectors, metadatas, ids))

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Delete documents; without ids all of them."""
        return self._server.run(self._delete(ids))

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """As `delete`."""
        return await self._server.arun(self._delete(ids))

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> PgLlmVectorStore:
        """Return a store with texts in it. Further arguments: `connection`, `collection`, `tenant`, `user_id`."""
        store = cls(embedding=embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> PgLlmVectorStore:
        """As `from_texts`."""
        store = cls(embedding=embedding, **kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    # Reading

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids, in their order, as far as they exist."""
        return self._server.run(self._get(ids))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """As `get_by_ids`."""
        return await self._server.arun(self._get(ids))

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the documents nearest to a text. `filter`: keys of the metadata with their values, or a filter of pg_llm."""
        return _documents(self.similarity_search_with_score(query, k, **kwargs))

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """As `similarity_search`."""
        return _documents(await self.asimilarity_search_with_score(query, k, **kwargs))

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> Found:
        """As `similarity_search`, with scores: the higher the nearer."""
        return self._server.run(self._search(self._embedder().embed_query(query), k, **kwargs))

    async def asimilarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> Found:
        """As `similarity_search_with_score`."""
        return await self._server.arun(self._search(await self._embedder().aembed_query(query), k, **kwargs))

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """As `similarity_search`, by a vector."""
        return _documents(self._server.run(self._search(embedding, k, **kwargs)))

    async def asimilarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """As `similarity_search_by_vector`."""
        return _documents(await self._server.arun(self._search(embedding, k, **kwargs)))

    def hybrid_search(self, query: str, k: int = 4, **kwargs: Any) -> Found:
        """Return the documents that words, vector and spelling of a text find together, with scores."""
        return self._server.run(self._hybrid(query, self._embedder().embed_query(query), k, **kwargs))

    async def ahybrid_search(self, query: str, k: int = 4, **kwargs: Any) -> Found:
        """As `hybrid_search`."""
        return await self._server.arun(self._hybrid(query, await self._embedder().aembed_query(query), k, **kwargs))

    def max_marginal_relevance_search(self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any) -> list[Document]:
        """Of the `fetch_k` nearest documents return k that are near, and unlike each other. Needs numpy, as everywhere in LangChain."""
        return self.max_marginal_relevance_search_by_vector(self._embedder().embed_query(query), k, fetch_k, lambda_mult, **kwargs)

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search`."""
        vector = await self._embedder().aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, by a vector."""
        return self._server.run(self._diverse(embedding, k, fetch_k, lambda_mult, **kwargs))

    async def amax_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search_by_vector`."""
        return await self._server.arun(self._diverse(embedding, k, fetch_k, lambda_mult, **kwargs))

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        # Of cosine similarity; of what points away from the query nothing is relevant.
        return lambda score: min(max(score, 0.0), 1.0)

    # What is asked of the server

    def _embedder(self) -> Embeddings:
        if self._embedding is None:
            raise ValueError("this store has no embedding: search by vector, or give it one")
        return self._embedding

    def _vector_type(self) -> Steps[str]:
        if not self._vector:
            self._vector = yield from vector_type()
        return self._vector

    def _add(
        self,
        texts: Sequence[str],
        vectors: list[list[float]] | None,
        metadatas: list[dict[str, Any]] | None,
        ids: Sequence[str | None] | None,
    ) -> Steps[list[str]]:
        for name, given in (("metadatas", metadatas), ("ids", ids)):
            if given and len(given) != len(texts):
                raise ValueError(f"there are {len(texts)} texts and {len(given)} {name}")
        names = [given or str(uuid4()) for given in ids or [None] * len(texts)]
        if names:
            vector = yield from self._vector_type()
            yield (
                "r",
                "upsert_points",
                f"text, jsonb, text[], {vector}[], text[], jsonb[]",
                [
                    self.collection,
                    None,
                    names,
                    None if vectors is None else list(map(literal, vectors)),
                    list(map(text.clean, texts)),
                    list(map(text.dumps, metadatas or [{}] * len(texts))),
                ],
            )
        return names

    def _delete(self, ids: list[str] | None) -> Steps[bool]:
        yield "r", "delete_points", "text, text[], jsonb", [self.collection, ids, "{}" if ids is None else None]
        return True

    def _get(self, ids: Sequence[str]) -> Steps[list[Document]]:
        rows = yield "r.id, r.content, r.payload::text", "get_points", "text, text[], boolean", [self.collection, list(ids), False]
        return [_document(*row) for row in rows]

    def _search(
        self,
        vector: list[float],
        k: int,
        filter: dict[str, Any] | None = None,  # noqa: A002 - as other stores name it
        *,
        score_threshold: float | None = None,
        ef: int | None = None,
        exact: bool = False,
    ) -> Steps[Found]:
        rows = yield (
            "r.id, r.content, r.payload::text, r.score",
            "vector_search",
            f"text, {(yield from self._vector_type())}, integer, jsonb, float8, integer, boolean",
            [self.collection, literal(vector), k, _filter(filter), score_threshold, ef, exact],
        )
        return [(_document(*row[:3]), row[3]) for row in rows]

    def _hybrid(
        self,
        query: str,
        vector: list[float],
        k: int,
        filter: dict[str, Any] | None = None,  # noqa: A002 - as other stores name it
    ) -> Steps[Found]:
        rows = yield (
            "r.id, r.content, r.payload::text, r.score",
            "hybrid_search",
            f"text, text, {(yield from self._vector_type())}, integer, jsonb",
            [self.collection, text.clean(query), literal(vector), k, _filter(filter)],
        )
        return [(_document(*row[:3]), row[3]) for row in rows]

    def _diverse(self, vector: list[float], k: int, fetch_k: int, lambda_mult: float, **kwargs: Any) -> Steps[list[Document]]:
        import numpy as np
        from langchain_core.vectorstores.utils import maximal_marginal_relevance

        found = _documents((yield from self._search(vector, fetch_k, **kwargs)))
        ids = [document.id for document in found]
        rows = yield "r.id, r.embedding::text", "get_points", "text, text[], boolean", [self.collection, ids, True]
        stored = {identifier: json.loads(embedding) for identifier, embedding in rows if embedding}
        # What was deleted between the two calls is gone.
        found = [document for document in found if document.id in stored]
        chosen = maximal_marginal_relevance(np.array(vector), [stored[document.id] for document in found], lambda_mult, k) if found else []
        return [found[number] for number in chosen]


def _document(identifier: str, content: str | None, payload: str) -> Document:
    return Document(id=identifier, page_content=text.original(content or ""), metadata=text.loads(payload))


def _documents(found: Found) -> list[Document]:
    return [document for document, _ in found]


def _filter(wanted: dict[str, Any] | None) -> str | None:
    if not wanted:
        return None
    if wanted.keys() <= _CLAUSES:
        return text.dumps(wanted)
    matches = [
        {"key": f'"{key}"', "match": {"any": list(value)} if isinstance(value, (list, tuple, set)) else {"value": value}}
        for key, value in wanted.items()
    ]
    return text.dumps({"must": matches})

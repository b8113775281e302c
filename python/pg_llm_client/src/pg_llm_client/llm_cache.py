"""LangChain caches of what language models answered: by the very same prompt, and by similar ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.caches import BaseCache
from langchain_core.messages import message_to_dict, messages_from_dict
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk

from . import text
from .connection import Server, Steps, literal, vector_type

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from .connection import AnyConnection

_logger = logging.getLogger(__name__)


class PgLlmCache(BaseCache):
    """What was answered to the very same prompt of the very same model with the same parameters, in the cache of a database with pg_llm.

    `connection`, `tenant` and `user_id` are as for `PgLlmSaver`; with `user_id` answers are that user's alone. `namespace`: of the cache, whose
    policy holds; `ttl`: for how many seconds answers are kept, None for as long as the namespace says.
    """

    def __init__(
        self,
        connection: AnyConnection,
        *,
        namespace: str = "langchain",
        ttl: float | None = None,
        tenant: str | None = None,
        user_id: UUID | None = None,
    ) -> None:
        self.namespace = namespace
        self.ttl = ttl
        self._whose = f"{user_id}:" if user_id else ""
        self._server = Server(connection, tenant=tenant, user_id=user_id)

    def lookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """Return what was answered, None when that is not known."""
        return self._server.run(self._lookup(prompt, llm_string))

    async def alookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """As `lookup`."""
        return await self._server.arun(self._lookup(prompt, llm_string))

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Keep an answer."""
        self._server.run(self._update(prompt, llm_string, return_val))

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """As `update`."""
        await self._server.arun(self._update(prompt, llm_string, return_val))

    def clear(self, **kwargs: Any) -> None:
        """Forget all answers of the namespace; with a user, that user's."""
        self._server.run(self._clear())

    async def aclear(self, **kwargs: Any) -> None:
        """As `clear`."""
        await self._server.arun(self._clear())

    def _key(self, prompt: str, llm_string: str) -> str:
        return self._whose + sha256("\0".join((str(len(prompt)), prompt, llm_string)).encode("utf-8", "surrogatepass")).hexdigest()

    def _lookup(self, prompt: str, llm_string: str) -> Steps[list[Generation] | None]:
        ((found,),) = yield "r::text", "cache_get", "text, text", [self._key(prompt, llm_string), self.namespace]
        return None if found is None else generations(found)

    def _update(self, prompt: str, llm_string: str, answer: Sequence[Generation]) -> Steps[None]:
        document = json_of(answer)
        if document is not None:
            yield "r", "cache_set", "text, jsonb, float8, text", [self._key(prompt, llm_string), document, self.ttl, self.namespace]

    def _clear(self) -> Steps[None]:
        if self._whose:
            yield "r", "cache_invalidate", "text, text", [f"{self._whose}*", self.namespace]
        else:
            yield "r", "cache_clear", "text", [self.namespace]


class PgLlmSemanticCache(BaseCache):
    """What was answered to a prompt, or to one that is similar enough, in the semantic cache of a database with pg_llm.

    `connection`, `tenant` and `user_id` are as for `PgLlmSaver`. Answers are that user's alone, unless they are `shared`. `threshold`: the least
    cosine similarity of two prompts with one answer: measure it with `llm.semantic_cache_report()`; `name`: what is cleared together; `ttl`: for how
    many seconds answers are kept, None for ever.
    """

    def __init__(
        self,
        connection: AnyConnection,
        embedding: Embeddings,
        *,
        threshold: float,
        name: str = "langchain",
        ttl: float | None = None,
        shared: bool = False,
        tenant: str | None = None,
        user_id: UUID | None = None,
    ) -> None:
        self.threshold = threshold
        self.name = name
        self.ttl = ttl
        self.shared = shared
        self._embedding = embedding
        self._server = Server(connection, tenant=tenant, user_id=user_id)
        self._vector = ""

    def lookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """Return what was answered to this prompt, or to one like it; None when that is not known."""
        found = self._server.run(self._lookup(prompt, llm_string, None))
        return found or self._server.run(self._lookup(prompt, llm_string, self._embedding.embed_query(prompt)))

    async def alookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """As `lookup`."""
        found = await self._server.arun(self._lookup(prompt, llm_string, None))
        return found or await self._server.arun(self._lookup(prompt, llm_string, await self._embedding.aembed_query(prompt)))

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Keep an answer."""
        self._server.run(self._update(prompt, llm_string, self._embedding.embed_query(prompt), return_val))

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """As `update`."""
        await self._server.arun(self._update(prompt, llm_string, await self._embedding.aembed_query(prompt), return_val))

    def clear(self, **kwargs: Any) -> None:
        """Forget all answers under this name; with a user, those of that user."""
        self._server.run(self._clear())

    async def aclear(self, **kwargs: Any) -> None:
        """As `clear`."""
        await self._server.arun(self._clear())

    def _vector_type(self) -> Steps[str]:
        if not self._vector:
            self._vector = yield from vector_type()
        return self._vector

    def _lookup(self, prompt: str, llm_string: str, vector: list[float] | None) -> Steps[list[Generation] | None]:
        rows = yield (
            "r.answer::text",
            "semantic_cache_get",
            f"text, {(yield from self._vector_type())}, float8, text, text, jsonb, boolean",
            [text.clean(prompt), vector and literal(vector), self.threshold, self.name, text.clean(llm_string), "{}", self.shared],
        )
        return generations(rows[0][0]) if rows else None

    def _update(self, prompt: str, llm_string: str, vector: list[float], answer: Sequence[Generation]) -> Steps[None]:
        document = json_of(answer)
        if document is not None:
            yield (
                "r",
                "semantic_cache_set",
                f"text, {(yield from self._vector_type())}, jsonb, text, text, jsonb, boolean, float8",
                [text.clean(prompt), literal(vector), document, self.name, text.clean(llm_string), "{}", self.shared, self.ttl],
            )

    def _clear(self) -> Steps[None]:
        yield "r", "semantic_cache_invalidate", "text, text", [None, self.name]


def json_of(answer: Sequence[Generation]) -> str | None:
    """Return the JSON of an answer; None, and a warning, when it holds what JSON has no place for: not to be cached must not fail a call."""
    try:
        return text.dumps([_element(generation) for generation in answer])
    except TypeError as error:
        _logger.warning("an answer is not cached: %s", error)
        return None


def generations(document: str) -> list[Generation]:
    """Return the answer whose JSON `json_of` made."""
    return [_generation(element) for element in text.loads(document)]


def _element(generation: Generation) -> dict[str, Any]:
    info = generation.generation_info
    if isinstance(generation, ChatGeneration):
        kind = "chat chunk" if isinstance(generation, ChatGenerationChunk) else "chat"
        return {"kind": kind, "message": message_to_dict(generation.message), "info": info}
    return {"kind": "text chunk" if isinstance(generation, GenerationChunk) else "text", "text": generation.text, "info": info}


def _generation(element: dict[str, Any]) -> Generation:
    info = element["info"]
    if "message" in element:
        (message,) = messages_from_dict([element["message"]])
        chat: type[ChatGeneration] = ChatGenerationChunk if element["kind"] == "chat chunk" else ChatGeneration
        return chat(message=message, generation_info=info)
    plain: type[Generation] = GenerationChunk if element["kind"] == "text chunk" else Generation
    return plain(text=element["text"], generation_info=info)

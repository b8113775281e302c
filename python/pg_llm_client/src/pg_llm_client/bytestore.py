"""A LangChain byte store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

from langchain_core.stores import ByteStore

from . import text
from .connection import Server, Steps

if TYPE_CHECKING:
    from .connection import AnyConnection


class PgLlmByteStore(ByteStore):
    """Bytes by key, in the cache of a database with pg_llm: for what can be computed again, as embeddings can.

    `connection` and `tenant` are as for `PgLlmSaver`. `namespace`: of the cache, whose policy holds; `ttl`: for how many seconds values are kept,
    None for as long as the namespace says.
    """

    def __init__(self, connection: AnyConnection, namespace: str = "bytes", *, ttl: float | None = None, tenant: str | None = None) -> None:
        self.namespace = namespace
        self.ttl = ttl
        self._server = Server(connection, tenant=tenant, user_id=None)

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the value of each key, None where there is none."""
        return self._server.run(self._get(keys))

    async def amget(self, keys: Sequence[str]) -> list[bytes | None]:
        """As `mget`."""
        return await self._server.arun(self._get(keys))

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Set values: all of them, or none."""
        self._server.run(self._set(key_value_pairs))

    async def amset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """As `mset`."""
        await self._server.arun(self._set(key_value_pairs))

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete keys, as far as they are there."""
        self._server.run(self._delete(keys))

    async def amdelete(self, keys: Sequence[str]) -> None:
        """As `mdelete`."""
        await self._server.arun(self._delete(keys))

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Yield the keys that begin with a prefix, or all, in order."""
        yield from self._server.run(self._keys(prefix))

    async def ayield_keys(self, *, prefix: str | None = None) -> AsyncIterator[str]:
        """As `yield_keys`."""
        for key in await self._server.arun(self._keys(prefix)):
            yield key

    def _get(self, keys: Sequence[str]) -> Steps[list[bytes | None]]:
        names = list(map(text.clean, keys))
        rows = yield "r.key, r.bytes", "cache_get_many_bytes", "text[], text", [names, self.namespace]
        found: dict[str, bytes] = dict(rows)
        return [found.get(name) for name in names]

    def _set(self, pairs: Sequence[tuple[str, bytes]]) -> Steps[None]:
        values = {text.clean(key): value for key, value in pairs}
        if values:
            yield (
                "r",
                "cache_set_many_bytes",
                "text[], bytea[], float8, text",
                [list(values), list(values.values()), self.ttl, self.namespace],
            )

    def _delete(self, keys: Sequence[str]) -> Steps[None]:
        yield "r", "cache_delete_many", "text[], text", [list(map(text.clean, keys)), self.namespace]

    def _keys(self, prefix: str | None) -> Steps[list[str]]:
        rows = yield "r", "cache_keys", "text, text", [text.clean(prefix or ""), self.namespace]
        return [text.original(key) for (key,) in rows]

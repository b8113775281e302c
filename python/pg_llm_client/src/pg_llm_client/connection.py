"""How the classes of this package reach the server: a connection or a pool, synchronous or not, for a tenant and a user."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

    AnyConnection: TypeAlias = (
        psycopg.Connection[Any]
        | ConnectionPool[psycopg.Connection[Any]]
        | psycopg.AsyncConnection[Any]
        | AsyncConnectionPool[psycopg.AsyncConnection[Any]]
    )

Row: TypeAlias = "tuple[Any, ...]"

#: A call of a function r of the server, as (columns, function, casts of its arguments, arguments); it is sent its rows. What is joined to r follows
#: the function's name, after a blank.
Call: TypeAlias = "tuple[str, str, str, Sequence[object]]"

T = TypeVar("T")

#: What is to be asked, without knowing how: yields calls, is sent their rows, returns a result.
Steps: TypeAlias = Generator[Call, "list[Row]", T]


class Server:
    """A connection or pool, and whom to work for. One statement a call, so that each is a transaction where the connection commits by itself."""

    def __init__(self, connection: AnyConnection, *, tenant: str | None, user_id: UUID | None) -> None:
        self._connection: Any = connection
        self._tenant = tenant
        self._user_id = user_id
        self._is_pool = not isinstance(connection, (psycopg.Connection, psycopg.AsyncConnection))
        self._is_async = isinstance(connection, psycopg.AsyncConnection) or type(connection).__name__.startswith("Async")
        self._lock = threading.RLock()
        self._async_lock = asyncio.Lock()

    def run(self, steps: Steps[T]) -> T:
        """Take the steps, and return what they come to."""
        if self._is_async:
            steps.close()
            raise TypeError("the connection is asynchronous: use the asynchronous methods, or give a psycopg.Connection or ConnectionPool")
        try:
            call = next(steps)
            while True:
                call = steps.send(self._rows(call))
        except StopIteration as end:
            result: T = end.value
            return result

    async def arun(self, steps: Steps[T]) -> T:
        """Take the steps, without blocking the event loop."""
        if not self._is_async:
            return await asyncio.to_thread(self.run, steps)
        try:
            call = next(steps)
            while True:
                call = steps.send(await self._arows(call))
        except StopIteration as end:
            result: T = end.value
            return result

    def _rows(self, call: Call) -> list[Row]:
        statement, arguments = self._statement(call)
        with self._one() as connection, connection.cursor(binary=True, row_factory=psycopg.rows.tuple_row) as cursor:
            return cursor.execute(statement, arguments).fetchall()

    async def _arows(self, call: Call) -> list[Row]:
        statement, arguments = self._statement(call)
        async with self._aone() as connection, connection.cursor(binary=True, row_factory=psycopg.rows.tuple_row) as cursor:
            await cursor.execute(statement, arguments)
            return await cursor.fetchall()

    @contextmanager
    def _one(self) -> Iterator[psycopg.Connection[TupleRow]]:
        if self._is_pool:
            with self._connection.connection() as connection:
                yield connection
        else:
            with self._lock:
                yield self._connection

    @asynccontextmanager
    async def _aone(self) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        if self._is_pool:
            async with self._connection.connection() as connection:
                yield connection
        else:
            async with self._async_lock:
                yield self._connection

    def _statement(self, call: Call) -> tuple[bytes, list[object]]:
        """Return the statement of a call, with tenant and user set first: what follows refers to them, so that it is evaluated after them."""
        columns, function, casts, arguments = call
        whom: list[object] = []
        sources = []
        after = ""
        if self._tenant is not None:
            sources.append("llm.set_tenant(%s::text) t")
            whom.append(self._tenant)
            after = "t is not null"
        if self._user_id is not None:
            sources.append(f"llm.set_user({_when(after, '%s::uuid')}) u")
            whom.append(self._user_id)
            after = "u is not null"
        name, _, joined = function.partition(" ")
        first, *others = casts.split(", ")
        sources.append(f"llm.{name}({', '.join([_when(after, f'%s::{first}'), *map(_argument, others)])}) r {joined}")
        statement = f"select {columns} from {' cross join lateral '.join(sources)}"  # noqa: S608 - of constants of this package
        return statement.encode(), [*whom, *arguments]


def _argument(cast: str) -> str:
    """Return the argument for a cast, which may have the name of the argument before it."""
    *name, cast = cast.rpartition(" ")
    return f"{''.join(name)}%s::{cast}"


def _when(condition: str, expression: str) -> str:
    return f"case when {condition} then {expression} end" if condition else expression


def literal(vector: Iterable[float]) -> str:
    """Return a vector as PostgreSQL reads it."""
    return f"[{','.join(map(str, map(float, vector)))}]"


def vector_type() -> Steps[str]:
    """Return the name of pgvector's type, with the schema that it is in."""
    schema = "(select e.extnamespace::pg_catalog.regnamespace::pg_catalog.text from pg_catalog.pg_extension e where e.extname = 'vector')"
    ((found,),) = yield schema, "clean_text", "bytea", [b""]
    return f"{found}.vector"

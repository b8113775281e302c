"""What tests speak in: clients of a database, and errors with their HINT and SQLSTATE."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any, Self

import psycopg
import pytest

from tools.cluster import Cluster


class Client:
    """A connection in autocommit mode."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection

    def rows(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        cursor = self.connection.execute(statement, arguments or None)
        return cursor.fetchall() if cursor.description else []

    def wait(self, statement: str, *arguments: object) -> None:
        """Ask until the only value of a statement is true."""
        wait_until(lambda: self.one(statement, *arguments))

    def run(self, statement: str, *arguments: object) -> Self:
        """Run a statement for its effect."""
        self.rows(statement, *arguments)
        return self

    def row(self, statement: str, *arguments: object) -> tuple[Any, ...]:
        """Return the only row of a statement."""
        (row,) = self.rows(statement, *arguments)
        return row

    def one(self, statement: str, *arguments: object) -> Any:
        """Return the only value of a statement."""
        (value,) = self.row(statement, *arguments)
        return value

    def column(self, statement: str, *arguments: object) -> list[Any]:
        """Return the first column of a statement."""
        return [row[0] for row in self.rows(statement, *arguments)]

    def transaction(self) -> Any:
        """Return a context in which statements are one transaction (or, inside another, a savepoint)."""
        return self.connection.transaction()

    @contextmanager
    def tenant(self, tenant: str) -> Iterator[Self]:
        """Open a transaction that works for a tenant."""
        with self.transaction():
            self.run("select llm.set_tenant(%s)", tenant)
            yield self

    def close(self) -> None:
        """Disconnect."""
        self.connection.close()


class Database:
    """A database of a cluster with pg_llm in it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self._open = ExitStack()

    def client(self, user: str = "postgres") -> Client:
        """Return a new client; it is disconnected when the test ends."""
        client = Client(self.cluster.connect(self.name, user))
        self._open.callback(client.close)
        return client

    def clients(self, count: int, user: str = "postgres") -> list[Client]:
        """Return several new clients."""
        return [self.client(user) for _ in range(count)]

    def close(self) -> None:
        """Disconnect all clients."""
        self._open.close()


def in_tenant(client: Client, tenant: str) -> Client:
    """Begin a transaction that works for a tenant."""
    return client.run("begin").run("select llm.set_tenant(%s)", tenant)


def next_transaction(client: Client) -> Client:
    """Commit, and go on for the same tenant."""
    tenant = client.one("select llm.current_tenant()")
    return in_tenant(client.run("commit"), tenant)


def config_history(client: Client, key: str) -> list[tuple[Any, ...]]:
    """Return operation, value and version of each change of a configuration key."""
    return client.rows("select operation, value, version from llm.config_history where key = %s order by id", key)


def forget_own_partitions(db: Client) -> Client:
    """Let nothing be kept in partitions, not even pg_llm's own tables."""
    partman = db.one("select extnamespace::regnamespace::text from pg_extension where extname = 'pg_partman'")
    return db.run("delete from llm.partition_sets").run(f"delete from {partman}.part_config")


def wait_until(condition: Callable[[], object]) -> None:
    """Ask until a condition holds; fail after two minutes: what never comes is a failure, too."""
    give_up = monotonic() + 120
    while not condition():
        assert monotonic() < give_up, "waited in vain"


def at_once(clients: list[Client], statement: str, *arguments: object) -> list[Any]:
    """Run a statement on all clients at the same moment and return each one's value."""
    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(lambda client: client.one(statement, *arguments), clients))


@contextmanager
def raises(error: type[psycopg.Error], match: str = "", *, hint: str = "", detail: str = "") -> Iterator[pytest.ExceptionInfo[psycopg.Error]]:
    """Expect an error of the server whose message, HINT and DETAIL contain these patterns."""
    with pytest.raises(error) as caught:
        yield caught
    diag = caught.value.diag
    for pattern, found in ((match, diag.message_primary), (hint, diag.message_hint), (detail, diag.message_detail)):
        assert re.search(pattern, found or ""), f"{pattern!r} is not in {found!r}"

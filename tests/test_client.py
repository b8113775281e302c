"""The Python client, as LangGraph and LangChain use it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import psycopg
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from pg_llm_client import PgLlmSaver

from tests.support import Database


def test_the_saver_conforms_to_langgraphs_own_suite(database: Database) -> None:
    @checkpointer_test(name="PgLlmSaver")
    async def saver() -> AsyncGenerator[BaseCheckpointSaver, None]:
        dsn = database.cluster.dsn(database.name, "app")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            yield PgLlmSaver(connection, tenant="a")

    report = asyncio.run(validate(saver))
    assert {name: result.failures for name, result in report.results.items() if not result.passed} == {}

"""Words of messages: found at once, and by the index once that has come to them."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from psycopg.errors import InvalidParameterValue, InvalidTransactionTermination

from tests.support import Client, Database, raises

TEXTS = [
    "An index speeds up a query.",
    "The planner chose a sequential scan.", "Vacuum removes dead tuples; the INDEX shrinks not.", "Índice, 索引, индекс",
    "An index on an index of an index",
]  # fmt: skip


@pytest.fixture
def conversation(bound: Client) -> UUID:
    """A conversation with the texts."""
    created: UUID = bound.one("select llm.create_conversation('talk')")
    bound.run("select llm.append_messages(%s, %s)", created, json.dumps([{"role": "user", "content": text} for text in TEXTS]))
    return created


def found(client: Client, query: str, arguments: str = "") -> list[int]:
    return client.column(f"select seq from llm.search_messages(%s{arguments})", query)


@pytest.mark.parametrize("indexed", [0, 2, 100])
def test_words_are_found_wherever_the_index_is(bound: Client, conversation: UUID, indexed: int) -> None:
    """Not yet begun, half done, and done."""
    bound.run("select llm.index_messages(%s)", indexed)
    assert sorted(found(bound, "index")) == [1, 3, 5]
    assert found(bound, "index")[0] == 5
    assert found(bound, "index -tuples -query") == [5]
    assert found(bound, '"sequential scan"') == [2]
    assert found(bound, '"scan sequential"') == []
    assert sorted(found(bound, "vacuum or planner")) == [2, 3]
    assert found(bound, "ИНДЕКС") == [4]
    assert found(bound, "索引") == [4]
    assert [len(found(bound, "index", f", p_limit => 2, p_offset => {offset}")) for offset in (0, 2, 4)] == [2, 1, 0]
    assert bound.one("select headline from llm.search_messages('planner')") == "«planner» chose a sequential scan"


def test_the_index_comes_to_all_and_is_told_of_what_follows(bound: Client, db: Client, conversation: UUID) -> None:
    assert [bound.one("select llm.index_messages(2)") for _ in range(4)] == [2, 2, 1, 0]
    assert db.one("select count(*) from llm.message_queue") == 0
    bound.run("select llm.fork_conversation(%s, 1)", conversation).run("select llm.append_message(%s, 'user', 'forked index')", conversation)
    assert db.one("select count(*) from llm.message_queue") == 1
    assert bound.one("select llm.index_messages()") == 1
    assert db.one("select count(*) from llm.message_index") == 6
    assert 6 in found(bound, "index")


def test_a_conversation_somebody_writes_to_comes_later(bound: Client, database: Database, conversation: UUID) -> None:
    writer = database.client("app")
    with writer.transaction():
        writer.run("select llm.append_message(%s, 'user', 'more')", conversation)
        assert bound.one("select llm.index_messages()") == 0
    assert bound.one("select llm.index_messages()") == 6


def test_one_call_indexes_the_new_messages_of_all_tenants(bound: Client, db: Client) -> None:
    """As a scheduler makes it."""
    count = 2 * 2000 + 1
    batch = json.dumps([{"role": "user", "content": "word"}] * count)
    bound.run("select llm.append_messages(%s, %s, null, true)", UUID(int=21), batch)
    with db.tenant("other"):
        db.run("select llm.append_messages(%s, %s, null, true)", UUID(int=22), json.dumps([{"role": "user", "content": "word"}]))
    db.run("call llm.index_new_messages()")
    assert db.one("select count(*) from llm.message_index") == count + 1
    assert db.one("select count(*) from llm.message_queue") == 0
    with raises(InvalidTransactionTermination), bound.transaction():
        bound.run("select llm.append_messages(%s, %s)", UUID(int=21), batch).run("call llm.index_new_messages()")


def test_a_search_stays_in_its_conversation(bound: Client, conversation: UUID) -> None:
    other = bound.one("select llm.create_conversation('other')")
    bound.run("select llm.append_message(%s, 'user', 'another index')", other)
    for _ in range(2):
        assert bound.column("select conversation_id from llm.search_messages('index', %s)", other) == [other]
        assert len(found(bound, "index")) == 4
        bound.run("select llm.index_messages()")


def test_a_search_uses_the_index(bound: Client, db: Client, conversation: UUID) -> None:
    many = json.dumps([{"role": "user", "content": f"filler number{number} words"} for number in range(5000)])
    bound.run("select llm.append_messages(%s, %s)", conversation, many).run("select llm.index_messages(10000)")
    db.run("analyze llm.message_index").run("select pg_stat_reset_single_table_counters('llm.message_index_search'::regclass)")
    assert len(found(bound, "number77")) == 1
    bound.run("select pg_stat_force_next_flush()")
    assert db.one("select idx_scan from pg_stat_user_indexes where indexrelname = 'message_index_search'") == 1


@pytest.mark.parametrize("query", ["", "!!!", "-"])
def test_a_search_for_nothing_is_refused(bound: Client, query: str) -> None:
    with raises(InvalidParameterValue, match="there is no word to search for in ", hint="words in quotes"):
        found(bound, query)


@pytest.mark.parametrize("query", ["\x01tacme", "'", "\\", "a & | !", "a:*", "(((", "tenant':a"])
def test_no_query_is_an_error_of_syntax(bound: Client, conversation: UUID, query: str) -> None:
    assert set(found(bound, query + " index")) <= {1, 3, 5}

"""Several messages in one statement: a batch, and a turn."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from psycopg.errors import InvalidParameterValue, NoDataFound
from psycopg.types.json import Jsonb

from tests.support import Client, raises

ID = UUID(int=10)


@pytest.fixture
def conversation(bound: Client) -> UUID:
    """An empty conversation of bound."""
    created: UUID = bound.one("select llm.create_conversation('talk')")
    return created


def test_a_turn_appends_and_reads_in_one_statement(bound: Client, conversation: UUID) -> None:
    turn = "select seq, role, content, token_count, metadata from llm.append_and_read(%s, %s, %s"
    assert bound.rows(f"{turn}, p_token_count => 3, p_metadata => %s)", conversation, "user", "one", Jsonb({"k": 1})) == [
        (1, "user", "one", 3, {"k": 1})
    ]
    bound.run("select llm.append_message(%s, 'assistant', 'two')", conversation)
    three = f"{turn}, p_message_id => %s, p_limit => 2)"
    assert [row[:3] for row in bound.rows(three, conversation, "user", "three", ID)] == [(2, "assistant", "two"), (3, "user", "three")]
    assert [row[0] for row in bound.rows(three, conversation, "user", "three", ID)] == [2, 3], "sent again, it is appended again"
    assert bound.one("select last_seq from llm.get_conversation(%s)", conversation) == 3
    bound.run("select llm.fork_conversation(%s, 1)", conversation)
    parts = "select seq, content from llm.append_and_read(%s, 'user', p_parts => %s)"
    assert bound.rows(parts, conversation, r'"four\u0000"') == [(1, "one"), (4, "four\u241b0000")]
    with raises(InvalidParameterValue, "the message has role 'robot'", hint="assistant"):
        bound.run(turn + ")", conversation, "robot", "x")
    with raises(NoDataFound, "does not exist", hint="list_conversations"):
        bound.run(turn + ")", UUID(int=404), "user", "x")


def test_a_turn_is_of_the_own_tenant_and_user(bound: Client, db: Client, conversation: UUID) -> None:
    turn = "select content from llm.append_and_read(%s, 'user', 'x')"
    with db.tenant("other"), raises(NoDataFound, "does not exist", hint="another user"):
        db.run(turn, conversation)
    with bound.transaction():
        bound.run("select llm.set_user(%s)", ID)
        with raises(NoDataFound, "does not exist", hint="another user"), bound.transaction():
            bound.run(turn, conversation)
    assert bound.one("select last_seq from llm.get_conversation(%s)", conversation) == 0


def test_ids_of_messages_are_uuids_of_version_7_in_the_order_of_time(bound: Client, db: Client, conversation: UUID) -> None:
    before = db.one("select floor(extract(epoch from clock_timestamp()) * 1000)::bigint")
    bound.run("select llm.append_messages(%s, %s)", conversation, json.dumps([{"role": "user", "content": "x"}] * 500))
    for _ in range(3):
        bound.run("select llm.append_message(%s, 'user', 'x')", conversation)
    after = db.one("select ceil(extract(epoch from clock_timestamp()) * 1000)::bigint")
    ids = bound.column("select message_id from llm.get_messages(%s, p_limit => null)", conversation)
    assert {(each.version, each.variant) for each in ids} == {(7, UUID(int=0x8000 << 48).variant)}
    times = [each.int >> 64 for each in ids]
    assert times == sorted(times)
    assert len(set(times)) > 100, "the bits after the version do not count the fraction of a millisecond"
    assert all(before <= each.int >> 80 <= after for each in ids)

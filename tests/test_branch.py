"""Branches of conversations: forked, edited, nested, read as one."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from psycopg.errors import NoDataFound, ProgramLimitExceeded

from tests.support import Client, Database, at_once, raises


@pytest.fixture
def conversation(bound: Client) -> UUID:
    """A conversation with messages a to e."""
    created: UUID = bound.one("select llm.create_conversation('talk')")
    add(bound, created, "abcde")
    return created


def add(client: Client, conversation: UUID, contents: str, branch: int | None = None) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    client.run("select llm.append_messages(%s, %s, %s)", conversation, json.dumps(messages), branch)


def said(client: Client, conversation: UUID, arguments: str = "p_limit => null", *values: object) -> str:
    return "".join(client.column(f"select content #>> '{{}}' from llm.get_messages(%s, {arguments})", conversation, *values))


def message(client: Client, conversation: UUID, content: str) -> Any:
    return client.one("select message_id from llm.messages where conversation_id = %s and content #>> '{}' = %s", conversation, content)


def test_a_fork_shares_what_was_before_and_nothing_after(bound: Client, conversation: UUID) -> None:
    assert bound.one("select llm.fork_conversation(%s, 3, p_name => 'other')", conversation) == 1
    add(bound, conversation, "xy")
    assert said(bound, conversation) == "abcxy"
    assert said(bound, conversation, "p_branch => 0") == "abcde"
    add(bound, conversation, "f", 0)
    assert said(bound, conversation) == "abcxy"
    assert said(bound, conversation, "p_branch => 0") == "abcdef"
    assert bound.rows("select branch, parent_branch, forked_at, name, is_active, message_count, last_seq from llm.branches(%s)", conversation) == [
        (0, None, None, None, False, 6, 8), (1, 0, 3, "other", True, 2, 7),
    ]  # fmt: skip
    assert bound.one("select llm.count_messages(%s)", conversation) == 5
    assert bound.column("select seq from llm.get_messages(%s, p_limit => null)", conversation) == [1, 2, 3, 6, 7]


def test_a_branch_is_chosen(bound: Client, conversation: UUID) -> None:
    bound.run("select llm.fork_conversation(%s, 1)", conversation).run("select llm.select_branch(%s, 0)", conversation)
    add(bound, conversation, "f")
    assert said(bound, conversation) == "abcdef"
    assert said(bound, conversation, "p_branch => 1") == "a"
    with raises(NoDataFound, match=f"conversation {conversation} has no branch 2", hint="the first is 0"):
        bound.run("select llm.select_branch(%s, 2)", conversation)


def test_an_edit_loses_nothing(bound: Client, conversation: UUID) -> None:
    edited = bound.row("select branch, seq, is_new from llm.edit_message(%s, 'C', p_name => 'edited')", message(bound, conversation, "c"))
    assert edited == (1, 6, True)
    assert said(bound, conversation) == "abC"
    assert said(bound, conversation, "p_branch => 0") == "abcde"
    assert bound.one("select role from llm.get_message(%s)", message(bound, conversation, "C")) == "user"
    bound.run("select llm.edit_message(%s, 'A')", message(bound, conversation, "a"))
    assert said(bound, conversation) == "A"
    # Edited again, it is a sibling, not a child.
    bound.run("select llm.edit_message(%s, 'Ć')", message(bound, conversation, "C"))
    assert said(bound, conversation) == "abĆ"
    assert bound.rows("select parent_branch, forked_at from llm.branches(%s) where branch > 0", conversation) == [(0, 2), (0, 0), (0, 2)]


def test_pages_go_through_branches_both_ways(bound: Client, conversation: UUID) -> None:
    bound.run("select llm.fork_conversation(%s, 4)", conversation)
    add(bound, conversation, "fg")
    bound.run("select llm.fork_conversation(%s, 6)", conversation)
    add(bound, conversation, "hij")
    whole = "abcdfhij"
    assert said(bound, conversation) == whole
    pages: list[str] = []
    before = None
    while page := bound.rows("select seq, content #>> '{}' from llm.get_messages(%s, p_before => %s, p_limit => 3)", conversation, before):
        pages.insert(0, "".join(content for _, content in page))
        before = page[0][0]
    assert pages == ["ab", "cdf", "hij"]
    pages, after = [], 0
    while page := bound.rows("select seq, content #>> '{}' from llm.get_messages(%s, p_after => %s, p_limit => 3)", conversation, after):
        pages.append("".join(content for _, content in page))
        after = page[-1][0]
    assert pages == ["abc", "dfh", "ij"]
    assert said(bound, conversation, "p_after => 2, p_before => 8") == "cdf"
    assert said(bound, conversation, "p_limit => 0") == ""


def test_a_branch_of_a_branch_of_a_thousand_is_read_and_no_more_are_made(bound: Client, conversation: UUID) -> None:
    with bound.transaction():
        for number in range(1000):
            bound.run("select llm.fork_conversation(%s)", conversation)
            bound.run("select llm.append_message(%s, 'user', %s)", conversation, chr(0x4E00 + number))
    assert said(bound, conversation) == "abcde" + "".join(chr(0x4E00 + number) for number in range(1000))
    assert said(bound, conversation, "p_limit => 3") == "".join(chr(0x4E00 + number) for number in range(997, 1000))
    assert said(bound, conversation, "p_after => 3, p_limit => 3") == "de一"
    assert len(bound.rows("select * from llm.context_window(%s, 1000000)", conversation)) == 1005
    with raises(ProgramLimitExceeded, match="branch 1000 of conversation .* is forked from 1000 others in turn", hint="new conversation"):
        bound.run("select llm.fork_conversation(%s)", conversation)


def test_a_fork_needs_a_message_of_its_branch(bound: Client, conversation: UUID) -> None:
    bound.run("select llm.fork_conversation(%s, 2)", conversation)
    for at in (3, 99, -1):
        with raises(NoDataFound, match=f"branch 1 of conversation {conversation} has no message {at}", hint="or at 0"):
            bound.run("select llm.fork_conversation(%s, %s)", conversation, at)
    with raises(NoDataFound, match="has no branch 7"):
        bound.run("select llm.fork_conversation(%s, p_branch => 7)", conversation)
    assert bound.one("select llm.fork_conversation(%s, 0)", conversation) == 2
    assert said(bound, conversation) == ""


def test_forks_at_the_same_moment_are_as_many(database: Database, bound: Client, conversation: UUID) -> None:
    assert sorted(at_once(database.clients(16, "app"), "select llm.fork_conversation(%s, 2)", conversation)) == list(range(1, 17))
    assert len(bound.rows("select * from llm.branches(%s)", conversation)) == 17

"""Context windows: what is in them, why, and that it fits."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.errors import NoDataFound, ProgramLimitExceeded

from tests.support import Client, raises


@pytest.fixture
def conversation(bound: Client) -> UUID:
    """A conversation with a system prompt of 10 tokens, and 100 messages of 10 tokens each."""
    created: UUID = bound.one("select llm.create_conversation('talk')")
    messages = [{"role": "system", "content": "Be brief.", "token_count": 10}]
    messages += [
        {"role": "assistant" if number % 2 else "user", "content": f"message about topic{number}", "token_count": 10} for number in range(1, 101)
    ]
    bound.run("select llm.append_messages(%s, %s)", created, json.dumps(messages))
    return created


def window(client: Client, conversation: UUID, tokens: int, arguments: str = "", *values: object) -> list[tuple[int, str]]:
    """Return numbers and reasons, after a look at the budget and the order."""
    rows = client.rows(f"select seq, reason, token_count from llm.context_window(%s, %s{arguments})", conversation, tokens, *values)
    assert sum(count for *_, count in rows) <= tokens
    assert [seq for seq, *_ in rows] == sorted(seq for seq, *_ in rows)
    return [(seq, reason) for seq, reason, _ in rows]


def message(client: Client, conversation: UUID, seq: int) -> UUID:
    found: UUID = client.one("select message_id from llm.messages where conversation_id = %s and seq = %s", conversation, seq)
    return found


def newest(first: int, last: int = 101) -> list[tuple[int, str]]:
    return [(seq, "newest") for seq in range(first, last + 1)]


def test_the_newest_that_fit_are_in_it(bound: Client, conversation: UUID) -> None:
    assert window(bound, conversation, 59) == [(1, "system"), *newest(98)]
    assert window(bound, conversation, 60) == [(1, "system"), *newest(97)]
    assert window(bound, conversation, 20) == [(1, "system"), *newest(101)]
    assert window(bound, conversation, 1010) == [(1, "system"), *newest(2)]


def test_what_is_pinned_is_in_it(bound: Client, conversation: UUID) -> None:
    bound.run("select llm.pin_message(%s)", message(bound, conversation, 5))
    assert window(bound, conversation, 50) == [(1, "system"), (5, "pinned"), *newest(99)]
    bound.run("select llm.pin_message(%s, false)", message(bound, conversation, 5))
    assert window(bound, conversation, 50) == [(1, "system"), *newest(98)]


def test_the_latest_summary_stands_for_what_is_left_out(bound: Client, conversation: UUID) -> None:
    bound.run("select llm.save_summary(%s, 30, 'early', 10)", conversation).run("select llm.save_summary(%s, 50, 'So far.', 20)", conversation)
    assert window(bound, conversation, 60) == [(1, "system"), (50, "summary"), *newest(99)]
    assert bound.row("select message_id, role, content, is_estimated from llm.context_window(%s, 60) where reason = 'summary'", conversation) == (
        None, "system", "So far.", False,
    )  # fmt: skip
    assert window(bound, conversation, 1010) == [(1, "system"), *newest(2)]
    assert (30, "summary") in window(bound, conversation, 40)
    bound.run("select llm.save_summary(%s, 50, 'Shorter.', 5)", conversation)
    assert (50, "summary") in window(bound, conversation, 40)
    with raises(NoDataFound, match="has no message 500 to sum up to", hint="last message that the summary covers"):
        bound.run("select llm.save_summary(%s, 500, 'x')", conversation)


def test_what_is_recalled_takes_a_quarter_at_most(bound: Client, conversation: UUID) -> None:
    recalled = [message(bound, conversation, seq) for seq in (10, 20, 30, 40)]
    assert window(bound, conversation, 90, ", p_recalled => %s", recalled) == [(1, "system"), (10, "recalled"), (20, "recalled"), *newest(96)]
    words = window(bound, conversation, 90, ", p_query => 'What did you say of topic33 and topic44?'")
    assert [seq for seq, reason in words if reason == "recalled"] == [34, 45]
    bound.run("select llm.index_messages()")
    assert window(bound, conversation, 90, ", p_query => 'What did you say of topic33 and topic44?'") == words
    assert window(bound, conversation, 90, ", p_query => 'or !! :*'") == [(1, "system"), *newest(94)]


def test_what_is_not_of_the_conversation_is_not_recalled(bound: Client, conversation: UUID) -> None:
    other = bound.one("select llm.create_conversation('other')")
    foreign = bound.one("select message_id from llm.append_message(%s, 'user', 'message about topic33')", other)
    assert window(bound, conversation, 90, ", p_recalled => %s", [foreign]) == [(1, "system"), *newest(94)]
    deleted = message(bound, conversation, 10)
    bound.run("select llm.delete_message(%s)", deleted)
    assert (10, "recalled") not in window(bound, conversation, 90, ", p_recalled => %s", [deleted])


def test_a_result_of_a_tool_comes_with_its_call(bound: Client, conversation: UUID) -> None:
    bound.run("select llm.append_message(%s, 'assistant', 'call', p_token_count => 10)", conversation)
    for result in ("one", "two"):
        bound.run("select llm.append_message(%s, 'tool', %s, p_token_count => 10)", conversation, result)
    bound.run("select llm.append_message(%s, 'assistant', 'so', p_token_count => 10)", conversation)
    assert window(bound, conversation, 40) == [(1, "system"), (105, "newest")]
    assert window(bound, conversation, 50) == [(1, "system"), *newest(102, 105)]


def test_unknown_tokens_are_estimated_and_said_to_be(bound: Client) -> None:
    conversation = bound.one("select llm.create_conversation('talk')")
    bound.run("select llm.append_message(%s, 'user', %s)", conversation, "x" * 398)
    assert bound.row("select token_count, is_estimated from llm.context_window(%s, 1000)", conversation) == (104, True)


def test_what_cannot_fit_is_an_error(bound: Client, conversation: UUID) -> None:
    for tokens in (5, 15):
        with raises(
            ProgramLimitExceeded,
            match=f"{tokens} tokens are too few for conversation",
            hint="unpin some",
            detail="System and pinned messages take 10",
        ):
            bound.run("select * from llm.context_window(%s, %s)", conversation, tokens)
    assert bound.rows("select * from llm.context_window(%s, 0)", bound.one("select llm.create_conversation('empty')")) == []


def test_a_window_is_of_its_branch(bound: Client, conversation: UUID) -> None:
    bound.run("select llm.save_summary(%s, 50, 'So far.', 10)", conversation).run("select llm.fork_conversation(%s, 5)", conversation)
    bound.run("select llm.append_message(%s, 'user', 'forked', p_token_count => 10)", conversation)
    assert window(bound, conversation, 40) == [(1, "system"), *newest(4, 5), (102, "newest")]
    assert (50, "summary") in window(bound, conversation, 60, ", p_branch => 0")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=20),
    tokens=st.integers(0, 400),
    recalled=st.sets(st.integers(1, 20)),
)
def test_a_window_never_exceeds_its_tokens(bound: Client, sizes: list[tuple[int, bool]], tokens: int, recalled: set[int]) -> None:
    conversation = bound.one("select llm.create_conversation('any')")
    messages = [{"role": "user", "content": "x", "token_count": size, "is_pinned": pinned and size < 5} for size, pinned in sizes]
    bound.run("select llm.append_messages(%s, %s)", conversation, json.dumps(messages))
    ids = bound.column("select message_id from llm.messages where conversation_id = %s and seq = any (%s)", conversation, list(recalled))
    try:
        got = window(bound, conversation, tokens, ", p_recalled => %s", ids)
    except ProgramLimitExceeded:
        assert tokens < sum(size for size, pinned in sizes if pinned and size < 5) + sizes[-1][0]
        return
    assert len(sizes) in [seq for seq, _ in got]
    assert len(set(got)) == len(got)

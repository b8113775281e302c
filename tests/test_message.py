"""Messages: read, streamed, corrected, rated, pinned, deleted."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

import pytest
from psycopg.errors import InvalidParameterValue, NoDataFound, ObjectNotInPrerequisiteState

from tests.support import Client, raises

ID = UUID(int=10)


@pytest.fixture
def conversation(bound: Client) -> UUID:
    """A conversation with one message, whose id is ID."""
    created: UUID = bound.one("select llm.create_conversation('talk')")
    bound.run("select llm.append_message(%s, 'user', 'Hello', p_message_id => %s, p_token_count => 3, p_cost => 0.5)", created, ID)
    return created


def counters(client: Client, conversation: UUID) -> tuple[object, ...]:
    return client.row("select last_seq, message_count, token_count, cost from llm.get_conversation(%s)", conversation)


def test_messages_come_in_the_order_asked_for(bound: Client, conversation: UUID) -> None:
    other = bound.one("select message_id from llm.append_message(%s, 'assistant', 'Hi')", conversation)
    assert bound.column("select message_id from llm.get_messages_by_id(%s)", [other, UUID(int=99), ID]) == [other, ID]
    assert bound.one("select llm.message_exists(%s)", ID) is True
    assert bound.one("select llm.message_exists(%s)", UUID(int=99)) is False


def test_pages_of_what_does_not_exist_are_refused(bound: Client, conversation: UUID) -> None:
    for branch in (-1, 1):
        with raises(NoDataFound, f"has no branch {branch}", hint="the first is 0"):
            bound.run("select llm.get_messages(%s, p_branch => %s)", conversation, branch)
    with raises(NoDataFound, "does not exist", hint="list_conversations"):
        bound.run("select llm.get_messages(%s)", UUID(int=404))


def test_an_answer_is_streamed_and_ends(bound: Client, conversation: UUID) -> None:
    answer = bound.one("select message_id from llm.append_message(%s, 'assistant', '', p_status => 'streaming')", conversation)
    for content in ("I", "I see", "I see."):
        assert bound.row("select content, status from llm.update_message(%s, %s)", answer, content) == (content, "streaming")
    end = (
        "select content, status, token_count, cost"
        " from llm.update_message(%s, p_parts => %s, p_status => 'complete', p_token_count => 4, p_cost => 0.1)"
    )
    assert bound.row(end, answer, '[{"type": "text", "text": "I see.\\u0000"}]') == (
        [{"type": "text", "text": "I see.␛0000"}], "complete", 4, Decimal("0.1"),
    )  # fmt: skip
    assert counters(bound, conversation) == (2, 2, 7, Decimal("0.6"))
    with raises(ObjectNotInPrerequisiteState, match=f"message {answer} is complete", hint="llm.edit_message"):
        bound.run("select llm.update_message(%s, 'No.')", answer)
    with raises(ObjectNotInPrerequisiteState, match="is complete"):
        bound.run("select llm.update_message(%s, p_status => 'failed')", answer)
    assert bound.one("select token_count from llm.update_message(%s, p_token_count => 5)", answer) == 5
    assert counters(bound, conversation) == (2, 2, 8, Decimal("0.6"))


def test_a_streamed_answer_is_found_by_what_it_says_now(bound: Client, conversation: UUID) -> None:
    answer = bound.one("select message_id from llm.append_message(%s, 'assistant', 'before', p_status => 'streaming')", conversation)
    bound.run("select llm.index_messages()").run("select llm.update_message(%s, 'afterwards')", answer)
    assert bound.column("select message_id from llm.search_messages('afterwards')") == [answer]
    assert bound.rows("select * from llm.search_messages('before')") == []


def test_a_repeated_append_of_an_answer_that_went_on_is_the_same(bound: Client, conversation: UUID) -> None:
    append = "select is_new from llm.append_message(%s, 'assistant', '', p_status => 'streaming', p_message_id => %s)"
    assert bound.one(append, conversation, UUID(int=11)) is True
    bound.run("select llm.update_message(%s, 'more')", UUID(int=11))
    assert bound.one(append, conversation, UUID(int=11)) is False


def test_a_bad_change_is_refused(bound: Client, conversation: UUID) -> None:
    answer = bound.one("select message_id from llm.append_message(%s, 'assistant', '', p_status => 'streaming')", conversation)
    for arguments, match in (("p_parts => '[7]'", "neither text nor parts"), ("p_status => 'late'", "has status 'late'")):
        with raises(InvalidParameterValue, match=match):
            bound.run(f"select llm.update_message(%s, {arguments})", answer)
    with raises(InvalidParameterValue, match="a rating of 5", hint="-1, 0 and 1"):
        bound.run("select llm.rate_message(%s, 5)", answer)


def test_a_rating_is_kept_and_taken_back(bound: Client, conversation: UUID) -> None:
    rated = "select rating, feedback from llm.get_message(%s)"
    assert bound.run("select llm.rate_message(%s, 1, 'helpful')", ID).row(rated, ID) == (1, "helpful")
    assert bound.run("select llm.rate_message(%s, -1)", ID).row(rated, ID) == (-1, None)
    assert bound.run("select llm.rate_message(%s, null)", ID).row(rated, ID) == (None, None)


def test_a_deleted_message_is_not_counted_and_its_number_not_given_again(bound: Client, conversation: UUID) -> None:
    bound.run("select llm.delete_message(%s)", ID)
    assert counters(bound, conversation) == (1, 0, 0, 0)
    assert bound.rows("select * from llm.get_messages(%s)", conversation) == []
    assert bound.one("select seq from llm.append_message(%s, 'user', 'next')", conversation) == 2
    with raises(NoDataFound, match=f"message {ID} does not exist"):
        bound.run("select llm.delete_message(%s)", ID)
    assert bound.one("select llm.count_messages(%s)", conversation) == 1

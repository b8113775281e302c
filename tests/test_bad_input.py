"""Users, sessions, chat, memory, tools and checkpoints: what cannot be is refused in the user's words, with a hint."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import CheckViolation, InvalidParameterValue, InvalidTextRepresentation, NotNullViolation

from tests.support import Client, Database, raises

ANN, TALK, SAID, OPENED = (UUID(int=number) for number in (1, 2, 3, 4))

#: Calls, with what is told of them.
CALLS = (
    ("create_user(null)", NotNullViolation, "a user without a username", "logs in by"),
    ("create_user('')", CheckViolation, "a username of 0 characters$", "320 printable"),
    ("create_user(e'a\\nb')", CheckViolation, "a username of 3 characters, not all printable", ""),
    ("update_user(%(user)s, p_username => repeat('x', 321))", CheckViolation, "a username of 321 characters$", ""),
    ("create_user('bob', p_email => 'a')", CheckViolation, "an e-mail address of 1 characters", "null for none"),
    ("update_user(%(user)s, p_preferences => '[]')", CheckViolation, "preferences that are array", "JSON object"),
    ("create_user_api_key(%(user)s, '')", CheckViolation, "an API key with a name of 0 characters", "1 to 200"),
    ("create_user_api_key(%(user)s, null)", CheckViolation, "an API key with a name of no characters", ""),
    ("create_session(%(user)s, p_metadata => '1')", CheckViolation, "a session whose metadata are number, its context object", "JSON objects"),
    ("update_session(%(session)s, null, '[]')", CheckViolation, "metadata are not given, its context array", ""),
    ("open_session(%(user)s, p_device => '')", CheckViolation, "a device of 0 characters", "null for none"),
    ("create_session(%(user)s, p_lifetime => '10001 years')", InvalidParameterValue, "a duration of 10001 years", "at most 10000 years, or infinity"),
    ("expire_sessions(-1)", InvalidParameterValue, "a page of -1 rows after 0", "null for all"),
    ("purge_sessions(now(), -1)", InvalidParameterValue, "a page of -1 rows", ""),
    ("get_cached_history(%(session)s, -1)", InvalidParameterValue, "a page of -1 rows", ""),
    ("list_conversations(p_limit => null, p_offset => -1)", InvalidParameterValue, "a page of all rows after -1", ""),
    ("get_messages(%(talk)s, p_limit => -1)", InvalidParameterValue, "a page of -1 rows", ""),
    ("append_and_read(%(talk)s, 'user', 'x', p_limit => -1)", InvalidParameterValue, "a page of -1 rows", ""),
    ("search_messages('hello', p_offset => -1)", InvalidParameterValue, "a page of 20 rows after -1", ""),
    ("list_memories(p_limit => -1)", InvalidParameterValue, "a page of -1 rows", ""),
    ("search_memories('hello', p_limit => -1)", InvalidParameterValue, "a page of -1 rows", ""),
    ("list_tools(p_limit => -1)", InvalidParameterValue, "a page of -1 rows", ""),
    ("list_tool_calls(p_limit => -1)", InvalidParameterValue, "a page of -1 rows", ""),
    ("list_checkpoints(p_limit => -1)", InvalidParameterValue, "a page of -1 rows", ""),
    ("append_message(%(talk)s, 'user', 'x', p_token_count => -1)", InvalidParameterValue, "the message has -1 tokens, and cost unknown", "finite"),
    ("append_message(%(talk)s, 'user', 'x', p_cost => 'NaN')", InvalidParameterValue, "the message has unknown tokens, and cost NaN", ""),
    ("append_message(%(talk)s, 'user', 'x', p_cost => 'Infinity')", InvalidParameterValue, "cost Infinity", ""),
    ("update_message(%(said)s, p_cost => -1)", InvalidParameterValue, "cost -1", ""),
    ("append_message(%(talk)s, 'user', p_parts => 'x')", InvalidTextRepresentation, "this is not JSON: 'x'", "double quotes"),
    ("append_messages(%(talk)s, '')", InvalidTextRepresentation, "this is not JSON: ''", ""),
    ("import_conversation('{')", InvalidTextRepresentation, "this is not JSON: '{'", ""),
    ("save_summary(%(talk)s, 1, null)", InvalidParameterValue, "a summary of no characters and unknown tokens", "p_summary"),
    ("save_summary(%(talk)s, 1, 'all', -1)", InvalidParameterValue, "a summary of 3 characters and -1 tokens", ""),
    ("context_window(%(talk)s, null)", InvalidParameterValue, "a context window of no tokens", "p_max_tokens"),
    ("context_window(%(talk)s, -9223372036854775808)", InvalidParameterValue, "a context window of -9223372036854775808 tokens", ""),
    ("remember('agent', 'a', 'p', '1', p_valid_from => 'infinity')", InvalidParameterValue, "a fact cannot hold from infinity until ever", ""),
    ("log_tool_call('t', '{}', p_duration => '10001 years')", InvalidParameterValue, "in 10001 years", ""),
)

#: Fields of a batch that are not what they should be.
FIELDS = (
    '"message_id": "x"', '"token_count": 1.5', '"token_count": 3000000000', '"cost": "much"', '"is_pinned": "perhaps"', '"created_at": "soon"',
    '"created_at": "2026-13-01"',
)  # fmt: skip


@pytest.fixture
def acme(app: Client) -> Iterator[Client]:
    """An application's client in a transaction for tenant acme, where somebody has said something in a session."""
    with app.tenant("acme"):
        app.run("select llm.create_user('ann', p_user_id => %s)", ANN)
        app.run("insert into llm.sessions (session_id, user_id) values (%s, %s)", OPENED, ANN)
        app.run("select llm.create_conversation(p_conversation_id => %s, p_session_id => %s)", TALK, OPENED)
        app.run("select llm.append_message(%s, 'user', 'hello', p_message_id => %s)", TALK, SAID)
        yield app


def test_what_cannot_be_is_told_with_a_hint(acme: Client) -> None:
    for call, error, match, hint in CALLS:
        statement = "select * from llm." + call % {"user": f"'{ANN}'", "session": f"'{OPENED}'", "talk": f"'{TALK}'", "said": f"'{SAID}'"}
        with raises(error, match=match, hint=hint or "."), acme.transaction():
            acme.connection.execute(statement.encode())


def test_a_batch_names_the_message_and_its_field(acme: Client) -> None:
    for field in FIELDS:
        name = field.split('"')[1]
        batch = f'[{{"role": "user", "content": "a"}}, {{"role": "user", "content": "b", {field}}}]'
        with raises(InvalidParameterValue, match=f"message 1 has {name} ", hint="of type"), acme.transaction():
            acme.run("select llm.append_messages(%s, %s)", TALK, batch)
    with raises(InvalidParameterValue, match="message 0 has -1 tokens, and cost unknown"), acme.transaction():
        acme.run("select llm.append_messages(%s, %s)", TALK, '[{"role": "user", "content": "a", "token_count": -1}]')
    assert acme.one("select llm.count_messages(%s)", TALK) == 1


def test_null_is_no_filter(acme: Client) -> None:
    acme.run("""select llm.register_tool('t', '{"type": "object", "properties": {}}')""")
    acme.run("select llm.put_checkpoint('t', '', '1', null, '{}')")
    for call in (
        "llm.list_conversations(p_from => null, p_to => null, p_tags => null)", "llm.list_tools(null)", "llm.list_checkpoints(p_filter => null)",
        "llm.search_messages('hello', p_offset => null)",
    ):  # fmt: skip
        assert len(acme.rows(f"select * from {call}")) == 1, call
    assert acme.one("select llm.count_conversations(p_from => null, p_to => null, p_tags => null)") == 1
    assert acme.rows("select * from llm.search_messages('hello', p_offset => 9223372036854775807)") == []


def test_nulls_and_unknown_ids_are_told_with_a_hint(acme: Client, database: Database) -> None:
    """Every function of these rooms, by the catalogue, with each argument null in turn, and none that is known."""
    found = database.client().rows(
        "select p.proname, p.pronargs, p.proargnames, array(select format_type(t, null) from unnest(p.proargtypes) t) from pg_proc p"
        " where p.pronamespace = 'llm'::regnamespace and p.prokind = 'f' and p.proname !~ '^_' and has_function_privilege('app', p.oid, 'execute')"
        " and p.proname ~ '(user|session|conversation|message|branch|summary|context_window|memor|tool|checkpoint)' order by p.oid"
    )
    assert len(found) > 60
    values = {"uuid": UUID(int=99), "text": "x", "jsonb": "{}", "integer": 1, "bigint": 1, "boolean": True}
    bare = []
    for name, count, names, types in found:
        arguments = list(zip((names or [])[:count], types, strict=True))
        for absent in (None, *range(count)):
            given = [None if place == absent else values.get(type_) for place, (_, type_) in enumerate(arguments)]
            call = ", ".join(f"{argument} => %s::{type_}" for argument, type_ in arguments)
            try:
                with acme.transaction():
                    acme.connection.execute(f"select * from llm.{name}({call})", given)
            except psycopg.Error as error:
                if not error.diag.message_hint:
                    bare.append((name, given, str(error)))
    assert bare == []

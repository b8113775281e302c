"""Conversations: created, listed, changed, deleted, counted."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue, NoDataFound, ObjectNotInPrerequisiteState, UniqueViolation
from psycopg.types.json import Jsonb

from tests.support import Client, Database, at_once, raises

ANN, BOB = UUID(int=1), UUID(int=2)
ID = UUID(int=10)


def titles(client: Client, arguments: str = "", *values: object) -> list[str]:
    return client.column(f"select title from llm.list_conversations({arguments})", *values)


def counters(client: Client, conversation: UUID) -> tuple[Any, ...]:
    return client.row("select last_seq, message_count, token_count, cost from llm.get_conversation(%s)", conversation)


def test_a_conversation_is_as_it_was_created(bound: Client) -> None:
    conversation = bound.one(
        "select llm.create_conversation('Indexes', %s, %s, '{sql,help}', '{\"model\": \"m\"}', '{\"file\": 1}', '{\"x\": 2}')", ANN, UUID(int=7)
    )
    assert bound.row("select * from llm.get_conversation(%s)", conversation)[:12] == (
        conversation, ANN, UUID(int=7), "Indexes", ["sql", "help"], {"model": "m"}, {"file": 1}, {"x": 2}, 0, 0, 0, 0
    )  # fmt: skip
    assert bound.one("select llm.conversation_exists(%s)", conversation) is True


def test_a_repeated_creation_makes_no_second_conversation(database: Database, bound: Client) -> None:
    """Q-16"""
    clients = database.clients(16, "app")
    assert set(at_once(clients, "select llm.create_conversation('once', p_conversation_id => %s)", ID)) == {ID}
    assert titles(bound) == ["once"]
    with raises(UniqueViolation, match=f"conversation {ID} cannot be created", hint="taken"):
        bound.run("select llm.create_conversation('other', p_user_id => %s, p_conversation_id => %s)", ANN, ID)


def test_many_are_created_at_once_or_none(bound: Client) -> None:
    given = [
        {"title": "b", "conversation_id": str(UUID(int=12)), "tags": ["t"]},
        {"title": "a", "conversation_id": str(UUID(int=11))},
        {"title": "c"},
    ]
    created = bound.column("select llm.create_conversations(%s)", Jsonb(given))
    assert created[:2] == [UUID(int=11), UUID(int=12)]
    assert bound.column("select title from llm.get_conversations(%s)", [*reversed(created), UUID(int=99)]) == ["c", "b", "a"]
    with raises(UniqueViolation):
        bound.run("select llm.create_conversations(%s)", Jsonb([{"title": "d"}, {"conversation_id": str(UUID(int=11)), "user_id": str(ANN)}]))
    assert bound.one("select llm.count_conversations()") == 3


@pytest.mark.parametrize("given", ["{}", "[1]", "null", '"x"'])
def test_what_is_no_list_of_conversations_is_refused(bound: Client, given: str) -> None:
    with raises(InvalidParameterValue, match="these are not conversations: ", hint="array of objects"):
        bound.run("select llm.create_conversations(%s)", given)


def test_pages_of_a_list_miss_nothing_and_repeat_nothing(bound: Client) -> None:
    with bound.transaction():
        for number in range(25):
            bound.run(
                "select llm.create_conversation(%s, p_user_id => %s, p_tags => %s)",
                str(number),
                ANN if number % 2 else BOB,
                ["t"] if number < 5 else [],
            )
    assert titles(bound, "p_limit => 1000") == [str(number) for number in reversed(range(25))]
    seen: list[str] = []
    last = None
    while page := bound.rows("select conversation_id, title from llm.list_conversations(p_user_id => %s, p_limit => 5, p_after => %s)", ANN, last):
        seen += [title for _, title in page]
        last = page[-1][0]
    assert seen == [str(number) for number in reversed(range(25)) if number % 2]
    assert titles(bound, "p_tags => '{t}', p_limit => 2, p_offset => 1") == ["3", "2"]
    assert bound.one("select llm.count_conversations(p_user_id => %s, p_tags => '{t}')", BOB) == 3
    assert titles(bound, "p_from => now() + interval '1 day'") == []
    with raises(NoDataFound, match="does not exist"):
        titles(bound, "p_after => %s", ID)


def test_what_is_null_stays_in_an_update(bound: Client) -> None:
    conversation = bound.one("select llm.create_conversation('old', p_tags => '{a}', p_context => '{\"k\": 1}')")
    assert bound.row("select title, tags, context from llm.update_conversation(%s, 'new')", conversation) == ("new", ["a"], {"k": 1})
    assert bound.row("select title, tags, context from llm.update_conversation(%s, p_tags => '{}', p_context => '{}')", conversation) == (
        "new",
        [],
        {},
    )
    with raises(NoDataFound, match=f"conversation {ID} does not exist", hint="list_conversations"):
        bound.run("select llm.update_conversation(%s, 'x')", ID)


def test_a_deleted_conversation_is_nowhere(bound: Client, db: Client) -> None:
    conversation = bound.one("select llm.create_conversation('gone', p_session_id => %s)", UUID(int=7))
    message = bound.one("select message_id from llm.append_message(%s, 'user', 'secret word', p_is_pinned => true)", conversation)
    bound.run("select llm.index_messages()")
    assert bound.one("select count(*) from llm.session_history") == 1
    assert bound.one("select llm.delete_conversation(%s)", conversation) is True
    assert bound.one("select llm.delete_conversation(%s)", conversation) is False
    assert titles(bound) == []
    assert bound.one("select llm.count_conversations()") == 0
    assert bound.one("select llm.conversation_exists(%s)", conversation) is False
    assert bound.one("select llm.message_exists(%s)", message) is False
    assert bound.rows("select * from llm.get_messages_by_id(%s)", [message]) == []
    assert bound.rows("select * from llm.search_messages('secret')") == []
    for relation in ("conversations", "messages", "session_history"):
        assert bound.one(f"select count(*) from llm.{relation}") == 0
    for call in (
        "get_conversation(%s)", "update_conversation(%s, 'x')", "get_messages(%s)", "count_messages(%s)", "append_message(%s, 'user', 'x')",
        "append_messages(%s, '[{\"role\": \"user\", \"content\": \"x\"}]')", "branches(%s)", "fork_conversation(%s)", "select_branch(%s, 0)",
        "context_window(%s, 100)", "save_summary(%s, 1, 'x')", "export_conversation(%s)",
    ):  # fmt: skip
        with raises(NoDataFound, match="does not exist"):
            bound.run(f"select * from llm.{call}", conversation)
    for call in (
        "get_message(%s)",
        "update_message(%s, 'x')",
        "delete_message(%s)",
        "rate_message(%s, 1)",
        "pin_message(%s)",
        "edit_message(%s, 'x')",
    ):
        with raises(NoDataFound, match=f"message {message} does not exist", hint="get_messages"):
            bound.run(f"select * from llm.{call}", message)
    assert db.one("select count(*) from llm.messages") == 1


def test_a_restored_conversation_has_what_it_had(bound: Client) -> None:
    conversation = bound.one("select llm.create_conversation('back')")
    first, second = (bound.one("select message_id from llm.append_message(%s, 'user', 'x', p_token_count => 2)", conversation) for _ in range(2))
    bound.run("select llm.delete_message(%s)", first).run("select llm.delete_conversation(%s)", conversation)
    assert bound.one("select llm.restore_conversation(%s)", conversation) is True
    assert bound.column("select message_id from llm.get_messages(%s)", conversation) == [second]
    assert counters(bound, conversation) == (2, 1, 2, 0)
    assert bound.one("select llm.restore_conversation(%s)", conversation) is False


def test_a_purge_removes_what_was_deleted_long_ago_with_all_that_is_its(bound: Client, db: Client, database: Database) -> None:
    old, new, live = (bound.one("select llm.create_conversation(%s)", title) for title in ("old", "new", "live"))
    for conversation in (old, new, live):
        bound.run("select llm.append_message(%s, 'user', 'x')", conversation)
        bound.run("select llm.fork_conversation(%s)", conversation).run("select llm.save_summary(%s, 1, 's')", conversation)
    bound.run("select llm.index_messages(2)")
    for conversation in (old, new):
        bound.run("select llm.delete_conversation(%s)", conversation)
    db.run("update llm.conversations set deleted_at = now() - interval '40 days' where conversation_id = %s", old)
    db.run("select llm.bind_role('admin', 'acme')")
    with raises(InsufficientPrivilege):
        bound.run("select llm.purge_conversations()")
    admin = database.client("admin")
    assert admin.one("select llm.purge_conversations()") == 1
    assert admin.one("select llm.purge_conversations('infinity', 0)") == 0
    assert admin.one("select llm.purge_conversations('infinity')") == 1
    for table in ("conversations", "messages", "branches", "summaries"):
        assert db.one(f"select count(*) from llm.{table}") == 1, table
    assert db.one("select count(*) from llm.message_index i where not exists (select from llm.messages m where m.message_id = i.message_id)") == 0
    assert bound.one("select llm.restore_conversation(%s)", old) is False


def test_users_of_a_tenant_and_tenants_are_apart(db: Client, database: Database) -> None:
    """RLS-02, RLS-04: two tenants with two users each, through every function."""
    app = database.client("app")
    owners = {}
    for tenant in ("acme", "globex"):
        for user in (ANN, BOB):
            with app.tenant(tenant):
                app.run("select llm.set_user(%s)", user)
                conversation = app.one("select llm.create_conversation(%s, p_session_id => %s)", f"{tenant} {user}", UUID(int=7))
                message = app.one("select message_id from llm.append_message(%s, 'user', 'secret word', p_is_pinned => true)", conversation)
                owners[tenant, user] = conversation, message
                if user == BOB:
                    app.run("select llm.index_messages()")
    for (tenant, user), (own, _) in owners.items():
        for conversation, message in (pair for key, pair in owners.items() if key != (tenant, user)):
            with app.tenant(tenant):
                app.run("select llm.set_user(%s)", user)
                assert app.column("select conversation_id from llm.list_conversations()") == [own]
                assert app.column("select conversation_id from llm.search_messages('secret')") == [own]
                assert app.rows("select * from llm.list_conversations(p_user_id => %s)", BOB if user == ANN else ANN) == []
                assert app.column("select conversation_id from llm.session_history") == [own]
                for relation in ("conversations", "messages"):
                    assert app.column(f"select conversation_id from llm.{relation}") == [own]
                assert app.one("select llm.conversation_exists(%s)", conversation) is False
                assert app.one("select llm.message_exists(%s)", message) is False
                assert app.one("select llm.delete_conversation(%s)", conversation) is False
                assert app.one("select llm.restore_conversation(%s)", conversation) is False
                for call, argument in (
                    ("get_conversation(%s)", conversation), ("update_conversation(%s, 'x')", conversation), ("get_messages(%s)", conversation),
                    ("append_message(%s, 'user', 'x')", conversation), ("branches(%s)", conversation), ("fork_conversation(%s)", conversation),
                    ("append_messages(%s, '[{\"role\": \"user\", \"content\": \"x\"}]')", conversation), ("select_branch(%s, 0)", conversation),
                    ("context_window(%s, 100)", conversation), ("save_summary(%s, 1, 'x')", conversation), ("export_conversation(%s)", conversation),
                    (f"append_message(%s, 'user', 'x', p_message_id => '{message}')", conversation),
                    ("get_message(%s)", message), ("update_message(%s, 'x')", message), ("delete_message(%s)", message),
                    ("rate_message(%s, 1)", message), ("pin_message(%s)", message), ("edit_message(%s, 'x')", message),
                ):  # fmt: skip
                    with raises(NoDataFound, match="does not exist"), app.transaction():
                        app.run(f"select * from llm.{call}", argument)
                with raises(InsufficientPrivilege, match="user_isolation"), app.transaction():
                    app.run("select llm.create_conversation('x', %s)", BOB if user == ANN else ANN)
                recalled = app.column("select seq from llm.context_window(%s, 1000, 'secret', %s)", own, [message])
                assert recalled == [1]
    with app.tenant("acme"):
        assert app.one("select llm.count_conversations()") == 2
        assert app.one("select llm.count_conversations(%s)", ANN) == 1
    assert db.one("select count(*) from llm.messages") == 4


def test_ids_of_another_tenant_are_free(database: Database) -> None:
    """RLS-12: whether another tenant has an id cannot be learned."""
    app = database.client("app")
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            assert app.one("select llm.create_conversation(%s, p_conversation_id => %s)", tenant, ID) == ID
            assert app.row("select seq, is_new from llm.append_message(%s, 'user', 'x', p_message_id => %s)", ID, ID) == (1, True)
    with app.tenant("acme"):
        assert titles(app) == ["acme"]


def test_without_a_tenant_there_are_no_conversations(app: Client, db: Client) -> None:
    for client in (app, db):
        with raises(ObjectNotInPrerequisiteState, match="conversations are a tenant's, and no tenant is set", hint="llm.set_tenant"):
            client.run("select llm.create_conversation('x')")
        with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
            client.run("select * from llm.list_conversations()")


def test_an_application_changes_tables_by_functions_alone(bound: Client) -> None:
    conversation = bound.one("select llm.create_conversation('x')")
    bound.run("select llm.append_message(%s, 'user', 'x')", conversation)
    for statement in (
        "update llm.conversations set message_count = 7", "delete from llm.messages", "insert into llm.branches select * from llm.branches",
        "update llm.messages set cost = 0", "select * from llm.message_index", "select * from llm.message_queue",
    ):  # fmt: skip
        with raises(InsufficientPrivilege, match="permission denied"):
            bound.run(statement)

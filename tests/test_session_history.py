"""The history of a session: what was said in its conversations."""

from __future__ import annotations

from uuid import UUID

import pytest
from psycopg.errors import ObjectNotInPrerequisiteState

from tests.support import Client, Database, raises

ANN, BOB = UUID(int=1), UUID(int=2)


@pytest.fixture
def said(app: Client) -> dict[str, UUID]:
    """A session of ann of each tenant, with a conversation of five messages; and the conversations."""
    made = {}
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            app.run("select llm.create_user('ann', p_user_id => %s), llm.create_user('bob', p_user_id => %s)", ANN, BOB)
            app.run("select llm.set_user(%s)", ANN)
            made[tenant] = app.one("select llm.create_session(%s)", ANN)
            made[f"talk of {tenant}"] = app.one("select llm.create_conversation(p_session_id => %s)", made[tenant])
            for number in range(1, 6):
                role = "user" if number % 2 else "assistant"
                app.run("select llm.append_message(%s, %s, %s)", made[f"talk of {tenant}"], role, f"{number} at {tenant}")
    return made


def history(client: Client, session: UUID, limit: int = 50, user: UUID | None = None, tenant: str = "acme") -> list[str]:
    """Return the texts of a session's history."""
    with client.tenant(tenant):
        client.run("select llm.set_user(%s)", user)
        return client.column("select message from llm.get_cached_history(%s, %s)", session, limit)


def test_the_history_is_the_newest_messages_in_their_order(said: dict[str, UUID], app: Client) -> None:
    assert history(app, said["acme"]) == [f"{number} at acme" for number in range(1, 6)]
    assert history(app, said["acme"], 2) == ["4 at acme", "5 at acme"]
    with app.tenant("acme"):
        assert app.column("select role from llm.get_cached_history(%s, 2)", said["acme"]) == ["assistant", "user"]
        assert app.one("select llm.cache_session(%s)", said["acme"]) == 5
        assert app.one("select llm.invalidate_session_cache(%s)", said["acme"]) is True


def test_what_was_just_said_is_in_it(said: dict[str, UUID], app: Client, database: Database) -> None:
    assert len(history(app, said["acme"])) == 5
    other = database.client("app")
    with other.tenant("acme"):
        other.run("select llm.append_message(%s, 'assistant', '6')", said["talk of acme"])
    assert history(app, said["acme"])[-1] == "6"
    with other.tenant("acme"):
        second = other.one("select llm.create_conversation(p_session_id => %s)", said["acme"])
        other.run("""select llm.append_message(%s, 'user', p_parts => '[{"type": "text", "text": "another talk"}]')""", second)
    assert history(app, said["acme"], 2) == ["6", "another talk"]
    with other.tenant("acme"):
        other.run("select llm.delete_conversation(%s)", said["talk of acme"])
    assert history(app, said["acme"]) == ["another talk"]


def test_the_history_outlives_the_session(said: dict[str, UUID], app: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.end_session(%s)", said["acme"])
    assert len(history(app, said["acme"])) == 5


def test_others_history_is_unknown(said: dict[str, UUID], app: Client) -> None:
    """RLS-04: of another tenant, and of another user of this one."""
    assert history(app, said["globex"]) == []
    assert history(app, said["acme"], user=BOB) == []
    assert len(history(app, said["acme"], user=ANN)) == 5
    with app.tenant("acme"):
        assert app.one("select llm.cache_session(%s)", said["globex"]) == 0
        assert app.one("select llm.invalidate_session_cache(%s)", said["globex"]) is False
    for call in ("get_cached_history", "cache_session", "invalidate_session_cache"):
        with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
            app.run(f"select llm.{call}(%s)", said["acme"])

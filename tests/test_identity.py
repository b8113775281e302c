"""Users of a tenant, and the user of a transaction."""

from __future__ import annotations

from uuid import UUID

import pytest
from psycopg.errors import InsufficientPrivilege, InvalidTextRepresentation, ObjectNotInPrerequisiteState

from tests.support import Client, raises

ANN, BOB = UUID(int=1), UUID(int=2)


@pytest.fixture
def users(db: Client) -> Client:
    """A superuser's client of a database in which tenants acme and globex have users ann and bob each."""
    db.run("""
        insert into llm.users (tenant_id, user_id, username)
        select t, u, n from unnest(array['acme', 'globex']) t, (values (%s::uuid, 'ann'), (%s, 'bob')) u (u, n)
        """, ANN, BOB)  # fmt: skip
    return db


def test_a_user_lasts_as_long_as_its_transaction(app: Client) -> None:
    assert app.one("select llm.current_user_id()") is None
    with app.tenant("acme"):
        assert app.one("select llm.set_user(%s)", ANN) == ANN
        assert app.one("select llm.current_user_id()") == ANN
        assert app.one("select llm.set_user(null)") is None
        assert app.one("select llm.current_user_id()") is None
    assert app.one("select llm.current_user_id()") is None


def test_a_user_set_by_hand_is_refused(app: Client) -> None:
    app.run("set llm.user_id = '00000000-0000-0000-0000-000000000001'")
    with raises(
        ObjectNotInPrerequisiteState, match=r"user .*1 was not set by llm.set_user\(\) in this transaction", hint="after llm.set_tenant", detail="pool"
    ):
        app.run("select llm.current_user_id()")
    with raises(InvalidTextRepresentation):
        app.run("select llm.set_user('ann')")


def test_a_user_sees_and_writes_rows_of_his_own_only(users: Client, app: Client) -> None:
    """RLS-02"""
    with app.tenant("acme"):
        assert app.column("select username from llm.users order by 1") == ["ann", "bob"]
        app.run("select llm.set_user(%s)", ANN)
        assert app.rows("select tenant_id, username from llm.users") == [("acme", "ann")]
        assert app.column("update llm.users set display_name = 'x' returning username") == ["ann"]
        assert app.column("delete from llm.users where username = 'bob' returning username") == []
        with raises(InsufficientPrivilege, match="user_isolation"), app.transaction():
            app.run("insert into llm.users (user_id, username) values (%s, 'eve')", UUID(int=3))
    assert users.one("select count(*) from llm.users where display_name = 'x'") == 1


def test_a_softly_deleted_user_is_not_seen_by_applications(users: Client, app: Client) -> None:
    users.run("update llm.users set deleted_at = now() where username = 'ann' and tenant_id = 'acme'")
    with app.tenant("acme"):
        assert app.column("select username from llm.users") == ["bob"]
        app.run("insert into llm.users (username) values ('ANN')")

"""Users of a tenant, and the user of a transaction."""

from __future__ import annotations

from uuid import UUID

import pytest
from psycopg.errors import (
    InsufficientPrivilege,
    IntegrityError,
    InvalidParameterValue,
    InvalidTextRepresentation,
    ObjectNotInPrerequisiteState,
    UniqueViolation,
)

from tests.support import Client, Database, raises

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
        ObjectNotInPrerequisiteState,
        match=r"user .*1 was not set by llm.set_user\(\) in this transaction",
        hint="after llm.set_tenant",
        detail="pool",
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


def test_users_are_made_read_and_changed(users: Client, app: Client) -> None:
    with app.tenant("acme"):
        eve = app.one("select llm.create_user('Eve@example.com', p_email => 'eve@example.com', p_preferences => '{\"theme\": \"dark\", \"a\": 1}')")
        assert app.row("select username, email, display_name, preferences from llm.get_user(%s)", eve) == (
            "Eve@example.com", "eve@example.com", None, {"theme": "dark", "a": 1}
        )  # fmt: skip
        assert app.one("select user_id from llm.get_user(p_username => 'EVE@EXAMPLE.COM')") == eve
        assert app.one("""select llm.update_user(%s, p_display_name => 'Eve', p_preferences => '{"a": null, "b": [1]}')""", eve) is True
        assert app.row("select username, display_name, preferences from llm.get_user(%s)", eve) == (
            "Eve@example.com", "Eve", {"theme": "dark", "b": [1]}
        )  # fmt: skip
        assert app.one("select llm.create_user('me', p_user_id => %s)", UUID(int=5)) == UUID(int=5)
        assert app.rows("select * from llm.get_user()") == []


def test_a_username_is_one_of_a_kind_in_its_tenant(users: Client, app: Client) -> None:
    """RLS-12"""
    users.run("insert into llm.users (tenant_id, username) values ('globex', 'zoe')")
    with app.tenant("acme"):
        with raises(UniqueViolation, match="user Ann exists already", hint="whatever its case"), app.transaction():
            app.run("select llm.create_user('Ann')")
        with raises(UniqueViolation, match="username BOB is taken", hint="one of a kind"), app.transaction():
            app.run("select llm.update_user(%s, 'BOB')", ANN)
        app.run("select llm.create_user('zoe')")


def test_a_bad_username_is_refused(app: Client) -> None:
    for name in ("", "x" * 321, "a\nb", None):
        with app.tenant("acme"), raises(IntegrityError, match="a user(name of .* characters| without a username)", hint="320 printable|logs in by"):
            app.run("select llm.create_user(%s)", name)


def test_others_users_are_unknown(users: Client, app: Client) -> None:
    """RLS-04: another tenant's, and, once a user is set, another user's."""
    zoe = users.one("insert into llm.users (tenant_id, username) values ('globex', 'zoe') returning user_id")
    for setting, stranger in ((None, zoe), (ANN, zoe), (ANN, BOB)):
        with app.tenant("acme"):
            app.run("select llm.set_user(%s)", setting)
            assert app.rows("select * from llm.get_user(%s)", stranger) == []
            assert app.one("select llm.update_user(%s, 'x')", stranger) is False
            assert app.one("select llm.delete_user(%s)", stranger) is False
    with app.tenant("acme"):
        assert app.rows("select * from llm.get_user(p_username => 'zoe')") == []
        assert app.one("select llm.update_user(%s, 'annie')", ANN) is True
    assert users.column("select username from llm.users order by tenant_id, 1") == ["annie", "bob", "ann", "bob", "zoe"]


def test_a_deleted_user_is_gone_for_all_but_administrators(users: Client, app: Client, database: Database) -> None:
    with app.tenant("acme"):
        assert app.one("select llm.delete_user(%s)", ANN) is True
        assert app.one("select llm.delete_user(%s)", ANN) is False
        assert app.rows("select * from llm.get_user(%s)", ANN) == []
        assert app.one("select llm.update_user(%s, 'x')", ANN) is False
        assert app.one("select count(*) from llm.users where username = 'ann'") == 0
        with raises(InsufficientPrivilege, match="not_deleted"), app.transaction():
            app.run("update llm.users set deleted_at = now() where user_id = %s", BOB)
        with raises(InsufficientPrivilege, match="permission denied for function restore_user"), app.transaction():
            app.run("select llm.restore_user(%s)", ANN)
        assert app.one("select llm.create_user('ann')") != ANN
    reader = database.client("reader")
    with reader.tenant("acme"):
        assert reader.one("select count(*) from llm.users where user_id = %s", ANN) == 0
    admin = database.client("admin")
    with admin.tenant("acme"):
        assert admin.one("select count(*) from llm.users where username = 'ann'") == 2
        with raises(UniqueViolation, match=f"the username of user {ANN} is taken by now", hint="Rename one of the two"), admin.transaction():
            admin.run("select llm.restore_user(%s)", ANN)
        admin.run("update llm.users set username = 'ann2' where user_id = %s", ANN)
        assert admin.one("select llm.restore_user(%s)", ANN) is True
        assert admin.one("select llm.restore_user(%s)", ANN) is False
    with app.tenant("acme"):
        assert app.one("select username from llm.get_user(%s)", ANN) == "ann2"
    with app.tenant("globex"):
        assert app.one("select username from llm.get_user(%s)", ANN) == "ann", "of another tenant, with the same id"


def test_deleted_users_are_purged(users: Client, database: Database) -> None:
    users.run("update llm.users set deleted_at = '2020-01-01' where username = 'ann'")
    users.run("select llm.save_config('login/bcrypt_cost', '4')")
    admin = database.client("admin")
    with admin.tenant("acme"):
        admin.run("select llm.set_password(%s, 'a password')", BOB)
        admin.run("select llm.delete_user(%s)", BOB)
        assert admin.one("select llm.purge_users('2020-01-01')") == 0
        assert admin.one("select llm.purge_users(now())") == 1
        assert admin.one("select llm.purge_users(now() + interval '1 s')") == 1
    assert users.rows("select tenant_id, username from llm.users order by 2") == [("globex", "ann"), ("globex", "bob")]
    assert users.one("select count(*) from llm.user_credentials") == 0


def test_without_a_tenant_there_are_no_users(database: Database) -> None:
    admin = database.client("admin")
    for call in ("create_user('x')", "get_user()", "update_user(null)", "delete_user(null)", "restore_user(null)", "purge_users(now())"):
        with raises(ObjectNotInPrerequisiteState, match="no tenant is set", hint="llm.set_tenant"):
            admin.run(f"select llm.{call}")


def test_a_duration_is_hours(db: Client) -> None:
    """Q-13: a day of a time zone with summer time has 23 to 25 hours."""
    for given, hours in (("1 day", "24:00:00"), ("1 month", "720:00:00"), ("90 seconds", "00:01:30"), ("infinity", "infinity")):
        assert db.one("select llm._in_hours(%s::interval)::text", given) == hours
    for bad in ("0", "-1 second"):
        with raises(InvalidParameterValue, match="a duration of", hint="positive"):
            db.run("select llm._in_hours(%s::interval)", bad)

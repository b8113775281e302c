"""The tenant of a transaction, and of a role."""

from __future__ import annotations

import pytest
from psycopg.errors import (
    CheckViolation,
    InsufficientPrivilege,
    InvalidParameterValue,
    ObjectNotInPrerequisiteState,
    UndefinedObject,
)

from tests.support import Client, Database, raises


def test_a_tenant_lasts_as_long_as_its_transaction(app: Client) -> None:
    assert app.one("select llm.current_tenant()") is None
    with app.transaction():
        assert app.one("select llm.set_tenant('acme')") == "acme"
        assert app.one("select llm.current_tenant()") == "acme"
    assert app.one("select llm.current_tenant()") is None


def test_a_tenant_ends_with_the_savepoint_that_set_it(app: Client) -> None:
    with app.tenant("outer"):
        with pytest.raises(ZeroDivisionError), app.tenant("inner"):
            assert app.one("select llm.current_tenant()") == "inner"
            raise ZeroDivisionError
        assert app.one("select llm.current_tenant()") == "outer"
        with app.tenant("released"):
            pass
        assert app.one("select llm.current_tenant()") == "released"
    with pytest.raises(ZeroDivisionError), app.tenant("acme"):
        raise ZeroDivisionError
    assert app.one("select llm.current_tenant()") is None


@pytest.mark.parametrize("tenant", [None, "", "*", "x" * 101, "a\nb", "a\x01b", "\x7f", "a\tb"])
def test_a_tenant_has_a_printable_name(app: Client, tenant: str | None) -> None:
    with raises(InvalidParameterValue, match="(?s)tenant .* cannot be set", hint="1 to 100 printable characters"):
        app.run("select llm.set_tenant(%s)", tenant)


@pytest.mark.parametrize("tenant", ["a", "x" * 100, "ü" * 100, "a b", "'", '"', "a.b/c", "**", "\\"])
def test_a_tenant_may_have_any_printable_name(app: Client, tenant: str) -> None:
    with app.tenant(tenant):
        app.run("select llm.save_config('k', '1')")
        assert app.one("select llm.current_tenant()") == tenant
        assert app.column("select tenant_id from llm.config") == [tenant]


def test_a_tenant_set_by_hand_is_refused(app: Client) -> None:
    app.run("set llm.tenant = 'it''s'")
    with raises(
        ObjectNotInPrerequisiteState,
        match=r"tenant it's was not set by llm.set_tenant\(\) in this transaction",
        hint=r"select llm.set_tenant\('…'\); as the first statement",
        detail="reaches the next client of a connection pool",
    ):
        app.run("select llm.current_tenant()")


def test_without_a_tenant_an_application_writes_nothing(app: Client) -> None:
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set", hint=r"llm.set_tenant\('…'\)", detail="only llm_admin may write"):
        app.run("select llm.save_config('k', '1')")


# Bound roles


def test_a_bound_role_has_its_tenant_whatever_it_sets(database: Database, app: Client) -> None:
    admin = database.client("admin")
    admin.run("select llm.bind_role('app', 'acme')")
    assert app.one("select llm.current_tenant()") == "acme"
    assert app.one("select llm.set_tenant('acme')") == "acme"
    app.run("set llm.tenant = 'other'")
    assert app.one("select llm.current_tenant()") == "acme"
    with raises(InsufficientPrivilege, match="role app works for tenant acme only", hint="llm_admin can change it"):
        app.run("select llm.set_tenant('other')")
    app.run("reset llm.tenant")

    admin.run("select llm.bind_role('app', 'other')")
    assert app.one("select llm.current_tenant()") == "other"
    admin.run("select llm.bind_role('app', null)")
    assert app.one("select llm.current_tenant()") is None


def test_a_role_that_another_acts_as_has_its_tenant_in_functions_of_the_owner_too(db: Client, database: Database) -> None:
    db.run("create role acting in role llm_app").run("grant acting to app with inherit false").run("select llm.bind_role('acting', 'acme')")
    try:
        app = database.client("app")
        with app.tenant("other"):
            app.run("set local role acting")
            app.run("select llm.save_config('k', '1')")
            assert app.one("select llm.current_tenant()") == "acme"
        assert db.rows("select tenant_id, key from llm.config") == [("acme", "k")]

        # Administration through a role that is acted as.
        db.run("grant llm_admin to acting").run("select llm.bind_role('acting', null)")
        app.run("set role acting").run("select llm.save_config('g', '1')")
        app.run("reset role")
        with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
            app.run("select llm.save_config('g', '2')")
        assert db.rows("select tenant_id, key, value from llm.config where key = 'g'") == [("*", "g", 1)]
    finally:
        db.run("revoke acting from app")
        db.run("drop role acting")


def test_a_binding_concerns_no_other_role(db: Client, database: Database) -> None:
    db.run("select llm.bind_role('app', 'acme')")
    reader = database.client("reader")
    assert reader.one("select llm.current_tenant()") is None
    assert reader.rows("select * from llm.tenant_roles") == []
    assert database.client("app").column("select tenant_id from llm.tenant_roles") == ["acme"]


def test_only_roles_that_exist_are_bound(database: Database) -> None:
    admin = database.client("admin")
    for name in ("no such role", "x'; drop table llm.config; --", ""):
        with raises(UndefinedObject, match=f"role {name} does not exist", hint="Create the role first"):
            admin.run("select llm.bind_role(%s, 'acme')", name)


@pytest.mark.parametrize("tenant", ["", "*", "x" * 101])
def test_a_role_is_bound_to_a_tenant_with_a_name(database: Database, tenant: str) -> None:
    with raises(CheckViolation, match="tenant_roles"):
        database.client("admin").run("select llm.bind_role('app', %s)", tenant)


@pytest.mark.parametrize("user", ["app", "reader", "auditor"])
def test_only_administrators_bind_roles(database: Database, user: str) -> None:
    client = database.client(user)
    with raises(InsufficientPrivilege, match="bind_role"):
        client.run("select llm.bind_role('app', 'acme')")
    with raises(InsufficientPrivilege, match="tenant_roles"):
        client.run("insert into llm.tenant_roles (role_name, tenant_id) values ('app', 'acme')")

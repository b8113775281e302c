"""Reads by the cache under attack: a backend's memory is shared by all roles and tenants that it serves."""

from __future__ import annotations

import re

import pytest
from psycopg.errors import InsufficientPrivilege, ObjectNotInPrerequisiteState

from tests.support import Client, Database, raises

FORGE = "select set_config('llm.tenant', %s, true), set_config('llm.tenant_set_at', date_part('epoch', now())::text, true)"


@pytest.fixture
def values(db: Client) -> Client:
    """The superuser's client, after tenants a and b and nobody in particular have each saved key k."""
    db.run("""select llm.save_config('k', '"global"')""")
    for tenant in ("a", "b"):
        with db.tenant(tenant):
            db.run("select llm.save_config('k', to_jsonb('of ' || %s::text))", tenant)
    return db


def fill_cache(client: Client, tenant: str) -> None:
    """Read key k as a tenant until this backend has it in its cache."""
    with client.tenant(tenant):
        client.run("select llm.cache_config('k')")
        assert client.one("select llm.get_cached_config('k')") == f"of {tenant}"


def test_a_bound_role_does_not_read_another_tenant_from_the_cache(values: Client, app: Client) -> None:
    values.run("select llm.bind_role('app', 'a')")
    assert app.one("select llm._cached_config('k', 'b')") in (None, "of a")
    assert app.one("select llm.load_config('k')") == "of a"
    with app.transaction():
        app.run(FORGE, "b")
        assert app.one("select llm._cached_config('k', 'b')") in (None, "of a")
        assert app.one("select llm.load_config('k')") == "of a"
        assert app.one("select llm.load_config('k', p_cached => false)") == "of a"
        assert app.column("select tenant_id from llm.config order by 1") == ["*", "a"]


def test_a_bound_role_does_not_read_what_another_role_cached_in_its_backend(values: Client) -> None:
    fill_cache(values, "b")
    values.run("select llm.bind_role('app', 'a')")
    fill_cache(values, "b")
    values.run("set role app")
    for claimed in ("b", "*", "", None):
        assert values.one("select llm._cached_config('k', %s)", claimed) in (None, "of a")
        assert values.one("select llm._config_is_cached('k', %s)", claimed) in (False, values.one("select llm.get_cached_config('k')") is not None)
    assert values.one("select llm.load_config('k')") == "of a"
    assert "of b" not in str(values.rows("select * from llm.config_cache()"))


def test_a_claimed_tenant_does_not_poison_the_victims_cache(values: Client, app: Client) -> None:
    with values.tenant("victim"):
        values.run("""select llm.save_config('k', '"of victim"')""")
    for _ in range(3):
        assert app.one("select llm._cached_config('k', 'victim')") in (None, "global")
    with app.tenant("a"):
        for _ in range(3):
            assert app.one("select llm._cached_config('k', 'victim')") in (None, "of a")
    with app.tenant("victim"):
        assert app.one("select llm.load_config('k')") == "of victim"
        assert app.one("select llm.load_config('k')") == "of victim"
    with app.tenant("a"):
        assert app.one("select llm.load_config('k')") == "of a"


def test_a_binding_counts_at_once_in_sessions_that_cached_that_there_is_none(values: Client, database: Database) -> None:
    sessions = database.clients(3, "app")
    for session in sessions:
        fill_cache(session, "b")
    values.run("select llm.bind_role('app', 'a')")
    for session in sessions:
        assert session.one("select llm._cached_config('k', 'b')") in (None, "of a")
        assert session.one("select llm.load_config('k')") == "of a"
    values.run("select llm.bind_role('app', null)")
    for session in sessions:
        with session.tenant("b"):
            assert session.one("select llm.load_config('k')") == "of b"


def test_a_binding_that_is_not_committed_counts_for_nobody_else(values: Client, app: Client) -> None:
    fill_cache(app, "b")
    with values.transaction():
        values.run("select llm.bind_role('app', 'a')")
        with app.tenant("b"):
            assert app.one("select llm.load_config('k')") == "of b"
    assert app.one("select llm.load_config('k')") == "of a"


def test_a_bound_role_does_not_escape_through_a_role_it_is_a_member_of(values: Client, app: Client) -> None:
    values.run("select llm.bind_role('app', 'a')")
    app.run("set role llm_app")
    with raises(InsufficientPrivilege, match="works for tenant a only"), app.transaction():
        app.run("select llm.set_tenant('b')")
    with app.transaction():
        app.run(FORGE, "b")
        assert app.one("select llm.load_config('k')") == "of a"
        assert app.one("select llm.load_config('k', p_cached => false)") == "of a"
        assert app.column("select tenant_id from llm.config order by 1") == ["*", "a"]


def test_an_app_does_not_raise_words(app: Client) -> None:
    with raises(InsufficientPrivilege, match="_coherence_raise"):
        app.run("select llm._coherence_raise('config', array['a', 'k'], '9000000000'::xid8)")
    with raises(InsufficientPrivilege, match="_coherence_raise_all"):
        app.run("select llm._coherence_raise_all()")
    with raises(InsufficientPrivilege, match="_coherence_raise_every_word"):
        app.run("select llm._coherence_raise_every_word('9000000000'::xid8)")


@pytest.mark.parametrize(
    "statement",
    [
        """select llm.save_config('k', '"forged"')""",
        """select llm.save_configs('{"k": "forged"}')""",
        "select llm.delete_config('k')",
        """insert into llm.config (tenant_id, key, value) values ('*', 'new', '"forged"')""",
        """update llm.config set value = '"forged"' where tenant_id = '*'""",
        "delete from llm.config where tenant_id = '*'",
    ],
)
def test_an_app_that_forges_the_global_tenant_does_not_change_what_is_global(values: Client, app: Client, statement: str) -> None:
    try:
        with app.transaction():
            app.run(FORGE, "*")
            app.run(statement)
    except (InsufficientPrivilege, ObjectNotInPrerequisiteState):
        pass
    assert values.rows("select key, value from llm.config where tenant_id = '*'") == [("k", "global")]


def test_forged_settings_reach_no_further_than_set_tenant(values: Client, app: Client) -> None:
    """Without a binding the application is trusted with the choice of tenant, not with anything else."""
    with app.transaction():
        app.run(FORGE, "b")
        assert app.one("select llm.load_config('k')") == "of b"
        assert app.column("select tenant_id from llm.config order by 1") == ["*", "b"]
    with raises(ObjectNotInPrerequisiteState, match="was not set by llm.set_tenant"), app.transaction():
        app.run("select set_config('llm.tenant', 'b', true), set_config('llm.tenant_set_at', '0', true)")
        app.run("select llm.load_config('k')")


def test_cache_listings_show_the_current_tenant_only(values: Client) -> None:
    """One backend that served everybody, as behind a connection pool."""
    values.run("select llm.bind_role('reader', 'a')")
    for tenant in ("a", "b"):
        fill_cache(values, tenant)
    values.run("select llm.cache_config('k')")
    for role in ("app", "reader", "admin"):
        values.run(f"set role {role}")
        for tenant in ("a",) if role == "reader" else ("a", "b"):
            with values.tenant(tenant):
                assert [value for _, value in values.rows("select key, value from llm.config_cache()")] == [f"of {tenant}"]
                assert values.one("select llm.get_cached_config('k')") == f"of {tenant}"
        if role != "reader":
            assert values.one("select llm.get_cached_config('k')") == "global"
            assert values.column("select value from llm.config_cache()") == ["global"]


def test_an_app_does_not_write_history_in_another_name(values: Client, app: Client) -> None:
    for name in ("admin", "postgres", "llm_admin"):
        with raises(InsufficientPrivilege), app.transaction():
            app.run("select set_config('role', %s, true)", name)
    with app.tenant("a"):
        app.run("select set_config('session_authorization', 'app', true), set_config('application_name', 'admin', true)")
        app.run("select llm.save_config('k', '1')")
    app.run("set role llm_app")
    with app.tenant("a"):
        app.run("select llm.save_config('k', '2')")
    written = values.column("select changed_by from llm.config_history where tenant_id = 'a' and version > 1")
    assert len(written) == 2
    assert all("app" in re.findall(r"\w+", name) for name in written), written

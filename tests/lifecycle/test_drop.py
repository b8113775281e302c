"""DROP EXTENSION, and what a second installation makes of the storage that was kept."""

from __future__ import annotations

import pytest
from psycopg.errors import DependentObjectsStillExist, ObjectNotInPrerequisiteState

from tests.lifecycle.releases import NOW
from tests.lifecycle.support import contents, differences, fingerprint, user_data
from tests.support import Client, Database, raises


@pytest.fixture
def superuser(filled: Database) -> Client:
    """A superuser's client of the filled database."""
    return filled.client()


def test_the_extension_cannot_be_dropped_by_mistake(superuser: Client) -> None:
    """DR-04"""
    before = fingerprint(superuser), contents(superuser)
    with raises(DependentObjectsStillExist):
        superuser.run("drop extension pg_llm")
    assert (fingerprint(superuser), contents(superuser)) == before


def test_a_drop_keeps_every_row_and_shows_none_of_a_tenant(superuser: Client, filled: Database) -> None:
    """DR-04: what is left is default-deny."""
    before = contents(superuser)
    superuser.run("drop extension pg_llm cascade")
    assert contents(superuser) == before
    assert superuser.rows("select from pg_proc where pronamespace = 'llm'::regnamespace") == []
    tables = superuser.column(
        "select c.oid::regclass::text from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'"
        " where c.relnamespace = 'llm'::regnamespace and c.relkind in ('r', 'p') and c.oid <> 'llm.tenant_roles'::regclass"
    )
    for user in ("app", "reader", "admin"):
        client = filled.client(user)
        with client.transaction():
            client.run("select set_config('llm.tenant', 'acme', true), set_config('llm.tenant_set_at', date_part('epoch', now())::text, true)")
            for table in tables:
                if client.one("select has_column_privilege(%s, 'tenant_id', 'select')", table):
                    assert client.one(f"select count(*) filter (where tenant_id <> '*') from {table}") == 0


def test_the_storage_that_was_kept_serves_again_after_setup(superuser: Client, filled: Database) -> None:
    """DR-04: triggers, policies, defaults and every row; nothing works in between, nothing is answered from a cache of before."""
    app = filled.client("app")
    before = fingerprint(superuser)
    assert app.column("select llm.load_config('limit') from generate_series(1, 2)") == [11, 11]

    superuser.run("drop extension pg_llm cascade").run("update llm.config set value = '12' where key = 'limit'")
    rows = user_data(superuser)
    notices: list[tuple[str | None, str | None]] = []
    superuser.connection.add_notice_handler(lambda diag: notices.append((diag.message_primary, diag.message_hint)))
    superuser.run(f"create extension pg_llm version '{NOW}'")
    assert ("storage of an earlier pg_llm was kept", "Run: select llm.setup();") in notices

    for client in (app, superuser):
        for statement in ("select llm.load_config('limit')", "select llm.save_config('k', '1')"):
            with raises(ObjectNotInPrerequisiteState, hint=r"select llm.setup\(\)"):
                client.run(statement)
    assert superuser.rows("select * from llm.setup()") == []
    assert app.one("select llm.load_config('limit')") == 12
    assert differences(fingerprint(superuser), before) == []
    assert user_data(superuser) == rows
    assert superuser.rows("select * from llm.doctor() where not ok and name in (select name from llm._doctor_storage())") == []


def test_a_reinstallation_in_one_transaction_loses_nothing(superuser: Client, filled: Database) -> None:
    app = filled.client("app")
    before = fingerprint(superuser), user_data(superuser)
    assert app.one("select llm.load_config('limit')") == 11
    with superuser.transaction():
        superuser.run("drop extension pg_llm cascade").run(f"create extension pg_llm version '{NOW}'").run("select llm.setup()")
    assert (fingerprint(superuser), user_data(superuser)) == before
    assert app.one("select llm.load_config('limit')") == 11


def test_a_drop_of_extension_and_schema_leaves_room_for_a_new_beginning(db: Client, bare: Database) -> None:
    """SEC-19: the roles are still there, with members, and are taken as they are."""
    again = bare.client().run(f"create extension pg_llm version '{NOW}'")
    assert differences(fingerprint(again), fingerprint(db)) == []
    again.run("select llm.save_config('k', '1')")
    assert bare.client("app").one("select llm.load_config('k')") == 1


def test_a_second_database_of_the_server_changes_nothing_in_the_first(bare: Database, db: Client) -> None:
    """SEC-19"""
    roles = (
        "select rolname, rolcanlogin, rolsuper, rolinherit,"
        " array(select m.member::regrole::text from pg_auth_members m where m.roleid = r.oid order by 1) from pg_roles r order by 1"
    )
    before = fingerprint(db), db.rows(roles)
    second = bare.client().run("create extension pg_llm").run("select llm.save_config('k', '1')")
    second.run("drop extension pg_llm cascade").run("drop schema llm cascade")
    assert (fingerprint(db), db.rows(roles)) == before

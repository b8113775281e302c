"""CREATE EXTENSION where somebody was before it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from psycopg import Error
from psycopg.errors import InsufficientPrivilege

from tests.lifecycle.releases import NEXT, NOW
from tests.lifecycle.support import Mover, differences, fingerprint
from tests.support import Client, Database, raises
from tools.cluster import Cluster

#: What CREATE EXTENSION may not leave behind when it refuses.
TRACES = """
    select 'extension', extname from pg_extension where extname = 'pg_llm'
    union all select 'role', rolname from pg_roles where rolname like 'llm%'
    union all select 'namespace', n.nspname || coalesce(n.nspacl::text, '') from pg_namespace n where nspname = 'llm'
    union all select 'class', oid::regclass::text from pg_class where relnamespace = to_regnamespace('llm')
    union all select 'function', oid::regprocedure::text from pg_proc where pronamespace = to_regnamespace('llm')
    union all select 'type', oid::regtype::text from pg_type where typnamespace = to_regnamespace('llm')
"""

#: Pairs of types of which pg_catalog lacks most operators, so that a planted one fits better than any cast.
HOSTILE_OPERATORS = """
do $plant$
declare
    v_types text[] := array['text', 'name', 'oid', 'regclass', 'regrole', 'regnamespace', '"char"', 'integer', 'bigint', 'boolean', 'jsonb', 'xid8'];
    v_left text; v_right text; v_operator text;
begin
    create schema hostile;
    create sequence hostile.calls;
    foreach v_left in array v_types loop
        foreach v_right in array v_types loop
            execute format('create function hostile.compare(%s, %s) returns boolean language sql'
                           ' as $$ select nextval(''hostile.calls'') is not null $$', v_left, v_right);
            execute format('create function hostile.join(%s, %s) returns text language sql'
                           ' as $$ select nextval(''hostile.calls'')::text $$', v_left, v_right);
            foreach v_operator in array array['=', '<>', '<', '>', '>=', '<=', '~~', '~'] loop
                execute format('create operator hostile.%s (leftarg = %s, rightarg = %s, function = hostile.compare)',
                               v_operator, v_left, v_right);
            end loop;
            execute format('create operator hostile.|| (leftarg = %s, rightarg = %s, function = hostile.join)', v_left, v_right);
        end loop;
    end loop;
end
$plant$
"""

#: Functions that the scripts call, with arguments for which the true ones need a cast or are polymorphic.
HOSTILE_FUNCTIONS = """
do $plant$
declare
    v_function text; v_arguments text;
begin
    foreach v_function in array array[
        'format', 'to_regclass', 'to_regrole', 'to_regnamespace', 'current_setting', 'hashtext', 'quote_ident', 'pg_advisory_xact_lock', 'aclexplode',
        'pg_describe_object', 'pg_get_userbyid', 'pg_identify_object', 'clock_timestamp', 'now', 'set_config'
    ] loop
        foreach v_arguments in array array[
            '', 'text', 'name', 'oid', 'integer', 'regclass', 'text, text', 'text, name', 'text, regrole', 'text, oid', 'text, regclass',
            'text, boolean', 'text, text, text', 'text, text, name', 'text, text, boolean', 'regclass, oid, integer', 'oid, oid, integer'
        ] loop
            execute format('create function hostile.%I(%s) returns text language sql'
                           ' as $$ select nextval(''hostile.calls'')::text $$', v_function, v_arguments);
        end loop;
    end loop;
end
$plant$
"""


@pytest.fixture
def mallory(bare: Database) -> Iterator[Client]:
    """A client of a database without pg_llm, as an unprivileged owner of a schema named llm."""
    superuser = bare.client().run("create role mallory login").run("create schema llm authorization mallory")
    mallory = bare.client("mallory")
    yield mallory
    mallory.close()
    superuser.run("drop schema if exists llm cascade").run("drop owned by mallory").run("drop role mallory")


@pytest.fixture
def admitted(bare: Database) -> Client:
    """A superuser's client of a database without pg_llm, in which schema llm is his own."""
    return bare.client().run("create schema llm")


def refuses(client: Client, message: str, hint: str = "") -> None:
    before = sorted(client.rows(TRACES))
    with raises(InsufficientPrivilege, f"pg_llm is not installed: {message}", hint=hint):
        client.run("create extension pg_llm cascade")
    assert sorted(client.rows(TRACES)) == before


def test_a_schema_of_an_unprivileged_user_is_refused(mallory: Client, bare: Database) -> None:
    """SEC-14"""
    refuses(bare.client(), "schema llm belongs to mallory, who is not a superuser", "drop the schema")


@pytest.mark.parametrize("grantee", ["PUBLIC", "app"])
def test_a_schema_in_which_others_may_create_is_refused(admitted: Client, grantee: str) -> None:
    """SEC-14"""
    admitted.run(f"grant create on schema llm to {grantee}")
    refuses(admitted, f"{grantee} may create objects in schema llm", "superuser own it alone")


@pytest.mark.parametrize(
    ("plant", "described"),
    [
        ("create function llm.mine() returns integer language sql as 'select 1'", "function llm.mine"),
        ("create procedure llm.mine() language sql as 'select 1'", "function llm.mine"),
        ("create aggregate llm.mine(integer) (sfunc = int4pl, stype = integer)", "function llm.mine"),
        ("create table llm.mine (n integer)", "(table|type) llm.mine"),
        ("create view llm.mine as select 1", "(view|type) llm.mine"),
        ("create sequence llm.mine", "sequence llm.mine"),
        ("create type llm.mine as enum ('a')", "type llm.mine"),
        ("create domain llm.mine as integer", "type llm.mine"),
        ("create operator llm.<-> (leftarg = text, rightarg = text, function = texteq)", "operator llm.<->"),
        ("create collation llm.mine (provider = libc, locale = 'C')", "collation llm.mine"),
        ("create text search configuration llm.mine (copy = simple)", "text search configuration llm.mine"),
        # Our own names: nothing may be replaced, or taken for granted because it is there.
        ("create table llm.schema_migrations (name text, version text, checksum text)", "(table|type) llm.schema_migrations"),
        ("create type llm.migration as (name text)", "(type|composite type) llm.migration"),
        ("create function llm.version() returns text language sql as 'select 1::text'", "function llm.version"),
    ],
)
def test_a_schema_that_holds_anything_is_refused(mallory: Client, bare: Database, plant: str, described: str) -> None:
    """SEC-14, SEC-15: made by an unprivileged user before the schema became a superuser's."""
    mallory.run(plant)
    refuses(bare.client().run("alter schema llm owner to postgres"), f"schema llm holds {described}.* belongs to mallory", "drop the schema")


@pytest.mark.parametrize("plant", ["table llm.mine (n integer)", "function llm.mine() returns integer language sql as 'select 1'"])
def test_a_schema_that_holds_a_superusers_object_is_refused(admitted: Client, plant: str) -> None:
    """SEC-14"""
    refuses(admitted.run(f"create {plant}"), "schema llm holds .*mine.* belongs to postgres", "drop the schema")


@pytest.mark.parametrize("name", ["config", "schema_migrations"])
def test_tables_of_the_owner_role_with_our_names_are_not_taken_over_unseen(admitted: Client, name: str) -> None:
    """SEC-15: as part of the storage, or as somebody made them with llm_owner's rights."""
    admitted.run(f"create table llm.{name} (tenant_id text)").run(f"alter table llm.{name} owner to llm_owner")
    before = sorted(admitted.rows(TRACES))
    with pytest.raises(Error):
        admitted.run("create extension pg_llm cascade")
    assert sorted(admitted.rows(TRACES)) == before


@pytest.mark.parametrize(
    ("role", "statements", "offence"),
    [
        ("llm_app", "alter role llm_app login", "it has attributes beyond NOLOGIN"),
        ("llm_owner", "alter role llm_owner superuser", "it has attributes beyond NOLOGIN"),
        ("llm_reader", "alter role llm_reader bypassrls", "it has attributes beyond NOLOGIN"),
        ("llm_app", "create role other; grant other to llm_app", "it is a member of another role"),
        ("llm_owner", "create role other; grant llm_owner to other", "it has members"),
        ("llm_admin", "create role other; grant llm_admin to other with admin option", "a role that is not a superuser administers it"),
        (
            "llm_auditor",
            """
            create role boss superuser; grant llm_auditor to boss with admin option;
            create role other; grant llm_auditor to other granted by boss; alter role boss nosuperuser
            """,
            "a role that is not a superuser (granted|administers) it",
        ),
    ],
)
def test_a_role_that_somebody_prepared_is_refused(elsewhere: Cluster, mover: Mover, role: str, statements: str, offence: str) -> None:
    """SEC-18"""
    client = mover.empty(elsewhere).client().run(f"create role {role}").run(statements)
    refuses(client, f"role {role} exists, but {offence}", f"Drop role {role}")


def test_a_role_that_an_unprivileged_user_made_is_refused(elsewhere: Cluster, mover: Mover) -> None:
    """SEC-18: who may create roles administers those that he makes."""
    database = mover.empty(elsewhere)
    superuser = database.client().run("create role mallory login createrole")
    for role, offence in (("llm_owner", "it has members"), ("llm_app", "a role that is not a superuser administers it")):
        database.client("mallory").run(f"create role {role}")
        refuses(superuser, f"role {role} exists, but {offence}")
        superuser.run(f"drop role {role}")


def test_plain_roles_and_an_empty_schema_are_accepted(elsewhere: Cluster, mover: Mover, db: Client) -> None:
    client = mover.empty(elsewhere).client().run("create schema llm")
    for role in ("llm_owner", "llm_admin", "llm_app", "llm_reader", "llm_auditor"):
        client.run(f"create role {role}")
    client.run("set client_min_messages = warning").run(f"create extension pg_llm version '{NOW}' cascade")
    assert differences(fingerprint(client), fingerprint(db)) == []


def test_hostile_operators_and_functions_are_never_called(bare: Database, fresh: Client) -> None:
    """SEC-16: first on the search path, and in a schema of the extensions that pg_llm requires, while it is installed, updated and set up."""
    client = bare.client().run(HOSTILE_OPERATORS).run(HOSTILE_FUNCTIONS)
    client.run("alter extension vector set schema hostile").run(f"alter database {bare.name} set search_path = hostile, public")
    client.run("set search_path = hostile, pg_catalog, public")
    assert client.one("select 'llm'::name = 'llm'::text from nextval('hostile.calls')") is True
    planted = client.one("select last_value from hostile.calls")
    assert planted > 1

    client.run(f"create extension pg_llm version '{NOW}'").run("select llm.setup()")
    client.run(f"alter extension pg_llm update to '{NEXT}'").run("select llm.setup()").run("select llm.migrate_down()").run("select llm.setup()")
    assert client.one("select last_value from hostile.calls") == planted
    client.run("set search_path = public")
    found, expected = (
        {kind: [(re.sub(r"\b(hostile|public)\.", "", str(row)),) for row in rows] for kind, rows in fingerprint(each).items()}
        for each in (client, fresh)
    )
    assert differences(found, expected) == []

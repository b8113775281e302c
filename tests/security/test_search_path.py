"""Names that somebody else planted: functions of pg_llm find their own tables, operators, types and functions whatever the caller's path."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from psycopg import sql

from tests.security.support import answers, changed, functions, relations
from tests.security.traps import plant, plant_overloads
from tests.support import Client, Database

CALLERS = ("postgres", "admin", "app", "reader", "auditor")

#: A value of each type for the rows of forged tables. A column of another type needs a line here.
FORGED: dict[str, Any] = {
    "bigint": 666,
    "bigint[]": [666],
    "boolean": True,
    "bytea": b"FORGED",
    "double precision": 666.0,
    "inet": "6.6.6.6",
    "int8multirange": "{[666,667)}",
    "int8range": "[666,667)",
    "integer": 666,
    "integer[]": [666],
    "interval": timedelta(days=666),
    "jsonb": '"FORGED"',
    "name": "FORGED",
    "numeric": 666,
    "pg_snapshot": "666:666:",
    "text": "FORGED",
    "text[]": ["FORGED"],
    "timestamp with time zone": datetime.fromisoformat("1999-01-01T00:00:00+00:00"),
    "timestamp with time zone[]": [datetime.fromisoformat("1999-01-01T00:00:00+00:00")],
    "tstzrange": "[1999-01-01,)",
    "uuid": UUID(int=666),
    "vector": "[6,6,6]",
    "smallint": 1,
    "tsvector": "forged",
    "xid8": "666",
}


@pytest.fixture
def stored(db: Client) -> Client:
    """A superuser's client, after key `probe` was saved globally and for tenant a, with a point `probe` in collection `probe`."""
    db.run("""select llm.save_config('probe', '"global"')""")
    db.run("select llm.create_collection('probe', 3)")
    with db.tenant("a"):
        db.run("""select llm.save_config('probe', '"of a"'), llm.save_config('probe', '"of a, changed"')""")
        db.run("""select llm.upsert_points('probe', '{"id": "probe", "content": "probe", "embedding": [1, 2, 3]}')""")
    return db


def forge_tables(client: Client, db: Client) -> None:
    """Make a temporary table named like each of ours, with rows that sample arguments would find, and like each of the system's, empty."""
    for table in relations(db, "rpvm"):
        name = sql.Identifier(table.removeprefix("llm."))
        columns = dict(db.rows(_COLUMNS, table))
        missing = set(columns.values()) - FORGED.keys()
        assert not missing, f"{table} has columns of {missing}: add a value to FORGED"
        definition = sql.SQL(", ").join(sql.SQL("{} " + kind).format(sql.Identifier(column)) for column, kind in columns.items())
        client.connection.execute(sql.SQL("create temp table {} ({})").format(name, definition))
        for tenant in ("a", "*"):
            found = {"tenant_id": tenant, "key": "probe", "role_name": client.one("select current_user")}
            row = sql.SQL(", ").join(sql.Literal(found.get(column, FORGED[kind])) for column, kind in columns.items())
            client.connection.execute(sql.SQL("insert into pg_temp.{} values ({})").format(name, row))
    for (name,) in db.rows("select relname from pg_class where relnamespace = 'pg_catalog'::regnamespace and relkind in ('r', 'v')"):
        client.connection.execute(sql.SQL("create temp table {} ()").format(sql.Identifier(name)))
    client.run("set search_path = pg_temp, llm, pg_catalog")


_COLUMNS = """
    select attname::text, format_type(atttypid, null)
    from pg_attribute
    where attrelid = %s::text::regclass and attnum > 0 and not attisdropped
    order by attnum
"""


@pytest.mark.parametrize("user", CALLERS)
def test_temporary_tables_do_not_stand_in_for_ours(stored: Client, database: Database, user: str) -> None:
    """SEC-01"""
    granted = functions(stored, user)
    clean = answers(database.client(user), granted)
    hostile = database.client(user)
    forge_tables(hostile, stored)
    assert hostile.column("select key from config") == ["probe", "probe"]
    assert changed(answers(hostile, granted), clean) == {}


@pytest.mark.parametrize("user", CALLERS)
def test_operators_functions_types_and_casts_of_others_are_not_taken(stored: Client, database: Database, user: str) -> None:
    """SEC-02 and SEC-03"""
    granted = functions(stored, user)
    clean = answers(database.client(user), granted)
    traps = plant(stored)
    victim = traps.watch(database.client(user)).run("set search_path = evil, pg_catalog, llm")
    assert changed(answers(victim, granted), clean) == {}
    assert traps.caught() == set()


@pytest.mark.parametrize("bait", ["lower('A'::pg_catalog.text)", "1 operator(evil.=) 1", "1 = 1", "'1'::jsonb", "('a'::pg_catalog.text)::evil.bait"])
def test_the_traps_work(db: Client, bait: str) -> None:
    """SEC-02 and SEC-03: what the test above relies on."""
    traps = plant(db)
    with db.transaction():
        db.run("set local search_path = evil, pg_catalog")
        db.run(f"select {bait}")
    assert len(traps.caught()) == 1


@pytest.mark.parametrize("user", CALLERS)
def test_overloads_planted_beside_our_functions_are_not_called(stored: Client, database: Database, user: str) -> None:
    """SEC-04"""
    granted = [function for function in functions(stored, user) if "doctor" not in function.name]
    clean = answers(database.client(user), granted)
    traps = plant_overloads(stored)
    assert changed(answers(traps.watch(database.client(user)), granted), clean) == {}
    assert traps.caught() == set()


def test_whoever_may_create_in_the_schema_is_reported(db: Client) -> None:
    """SEC-04"""
    db.run("grant create on schema llm to nobody")
    assert "nobody" in str([detail for _, ok, detail, _ in db.rows("select * from llm.doctor()") if not ok])


def test_a_planted_function_is_reported(db: Client) -> None:
    """SEC-04"""
    db.run("grant create on schema llm to nobody").run("set role nobody")
    db.run("create function llm._stored_config(name) returns jsonb language sql as 'select null::pg_catalog.jsonb'").run("reset role")
    assert "_stored_config(name)" in str([detail for _, ok, detail, _ in db.rows("select * from llm.doctor()") if not ok])


def test_maintenance_needs_no_search_path(stored: Client, database: Database) -> None:
    """SEC-05"""
    stored.run("set search_path = ''")
    stored.run(f"reindex database {database.name}")
    stored.run("analyze")
    stored.run("vacuum full llm.config")
    with stored.tenant("a"):
        assert stored.one("select llm.load_config('probe', p_cached => false)") == "of a, changed"

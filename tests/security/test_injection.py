"""Text that tries to be more than text, in every argument that takes some."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests.security.corpus import CORPUS
from tests.security.support import SAMPLES, TEXT_TYPES, Function, functions
from tests.support import Client, Database

#: What no text may lead to: a syntax error, an unknown table, column, function or parameter, a failure inside.
_LEAKS = ("42601", "42P01", "42703", "42883", "42P02", "42P18", "XX", "38")

#: The arguments are tried in so many tests, which may run side by side.
PARTS = 8

_FINGERPRINT = """
    select md5(string_agg(o.line, '|' order by o.line))
    from (
        select format('%s %s %s', oid, relname, relacl) from pg_class where relnamespace in ('llm'::regnamespace, 'public'::regnamespace)
        union all
        select format('%s %s %s', oid, proacl, md5(prosrc)) from pg_proc where pronamespace in ('llm'::regnamespace, 'public'::regnamespace)
        union all
        select format('%s %s', oid, pg_get_expr(polqual, polrelid)) from pg_policy
        union all
        select format('%s %s', oid, tgenabled) from pg_trigger
        union all
        select format('%s %s', nspname, nspacl) from pg_namespace where nspname !~ '^pg_'
        union all
        select format('%s %s %s', rolname, rolsuper, rolcanlogin) from pg_roles
        union all
        select format('%s %s', roleid, member) from pg_auth_members
    ) o (line)
"""


@pytest.fixture
def victim(db: Client) -> Client:
    """A superuser's client of a database with a canary that anybody may kill, and a secret of tenant b."""
    db.run("select llm.save_config('login/bcrypt_cost', '4')")  # hashes that are quickly computed
    db.run("create table public.canary (song text)").run("insert into public.canary values ('tweet')").run("grant all on public.canary to public")
    with db.tenant("b"):
        db.run("""select llm.save_config('secret', '"secret of b"')""")
    return db


def state(db: Client) -> tuple[Any, ...]:
    """Return what no text may change. Some are good names for a collection, which may be made."""
    db.run("select llm.drop_collection(c.name) from llm.collections c")
    return db.one(_FINGERPRINT), db.column("select song from public.canary"), db.rows("select t::text from llm.config t where tenant_id <> 'a'")


def text_arguments(granted: list[Function]) -> list[tuple[Function, int]]:
    """Return each argument that takes text."""
    return [(function, position) for function in granted for position, kind in enumerate(function.types) if kind in TEXT_TYPES]


def inject(client: Client, function: Function, position: int, texts: Iterable[str]) -> None:
    """Call a function for tenant a with each text in one argument, and look at what it answers."""
    cursor = psycopg.ClientCursor(client.connection)
    statement = "select llm.set_tenant('a'); " + function.call.as_string(client.connection)
    arguments = function.arguments(SAMPLES | {"bigint": None})
    kind = function.types[position]
    for text in texts:
        values: dict[str, list[Any]] = {"jsonb": [Jsonb(text), Jsonb({text: text})], "text[]": [[text, text]]}
        for value in values.get(kind, [text]):
            arguments[position] = value
            try:
                cursor.execute(statement, arguments)
                cursor.nextset()
                answer = str(cursor.fetchall())
            except psycopg.Error as error:
                answer = f"{error} {error.diag.message_detail} {error.diag.message_hint}"
                assert not (error.sqlstate or "XX").startswith(_LEAKS), (
                    f"{function.signature}, argument {position + 1}, {text!r}: {error.sqlstate} {error}"
                )
            assert "secret of b" not in answer, f"{function.signature}, argument {position + 1}, {text!r}"


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("user", ["app", "admin"])
def test_no_text_of_the_corpus_does_anything_but_be_text(victim: Client, database: Database, user: str, part: int) -> None:
    """SEC-08: an administrator calls what an application cannot."""
    assert len(set(CORPUS)) >= 200
    tried = set() if user == "app" else {function.signature for function in functions(victim, "app")}
    granted = [function for function in functions(victim, user) if function.signature not in tried]
    client = database.client(user)
    before = state(victim)
    for function, position in text_arguments(granted)[part::PARTS]:
        inject(client, function, position, CORPUS)
    assert state(victim) == before


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=3, max_size=5))
def test_no_text_at_all_does_anything_but_be_text(victim: Client, app: Client, texts: list[str]) -> None:
    """SEC-08"""
    before = state(victim)
    for function, position in text_arguments(functions(victim, "app")):
        inject(app, function, position, texts)
    assert state(victim) == before

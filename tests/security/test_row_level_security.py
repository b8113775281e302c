"""Rows of a tenant are that tenant's: as an application's role, by any statement and by any function."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import FeatureNotSupported, InsufficientPrivilege, ObjectNotInPrerequisiteState
from psycopg.types.json import Jsonb

from tests.security.support import SAMPLES, functions, tenant_tables
from tests.support import Client, Database, raises

TENANTS = ("a", "b", "c")
KEY = UUID(int=7)

#: The user of each tenant whose rows there are.
USER = UUID(int=1)

#: One row of each table with a tenant_id, for a tenant. A new table needs a line here.
ROWS: dict[str, Callable[[str], dict[str, Any]]] = {
    "llm.audit_log": lambda tenant: {"user_id": "u", "action": "a", "object_type": "o", "object_id": f"secret of {tenant}", "application": "x"},
    "llm.sensitive_log": lambda tenant: {
        "audit_log_id": 1, "audit_timestamp": datetime(2026, 1, 1, tzinfo=UTC), "encrypted_details": b"x", "access_level": f"secret of {tenant}"
    },
    "llm.cache_entries": lambda tenant: {"namespace": "default", "key": "k", "value": Jsonb(f"secret of {tenant}")},
    "llm.cache_bumps": lambda tenant: {"word": 1},
    "llm.cache_policies": lambda tenant: {"namespace": f"secret of {tenant}"},
    "llm.cache_uses": lambda tenant: {"namespace": "n", "key": f"secret of {tenant}", "uses": 1, "last_used_at": datetime(2026, 1, 1, tzinfo=UTC)},
    "llm.checkpoint_blobs": lambda tenant: {"hash": bytes(32), "refs": 1, "content": b"secret of " + tenant.encode()},
    "llm.checkpoint_pieces": lambda tenant: {"thread_no": 1, "log_id": KEY, "number": 1, "ends_at": 1, "digest": bytes(16), "content": b"x"},
    "llm.checkpoint_threads": lambda tenant: {"thread_id": f"secret of {tenant}"},
    "llm.checkpoint_writes": lambda tenant: {
        "thread_no": 1, "checkpoint_ns": "", "checkpoint_id": "c", "task_id": "t", "idx": 0, "task_path": "", "channel": "c", "type": "t",
        "content": b"x",
    },
    "llm.checkpoints": lambda tenant: {
        "thread_no": 1, "checkpoint_ns": "", "checkpoint_id": "c", "checkpoint": Jsonb(1), "metadata": Jsonb({}), "channels": Jsonb({})
    },
    "llm.config": lambda tenant: {"key": "k", "value": Jsonb(f"secret of {tenant}")},
    "llm.config_history": lambda tenant: {
        "key": "in history only", "value": Jsonb(f"secret of {tenant}"), "version": 1, "operation": "insert", "changed_by": "somebody"
    },
    "llm.conversations": lambda tenant: {"conversation_id": UUID(int=1), "title": f"secret of {tenant}"},
    "llm.messages": lambda tenant: {
        "conversation_id": UUID(int=1), "seq": 1, "message_id": UUID(int=2), "role": "user", "content": Jsonb(f"secret of {tenant}")
    },
    "llm.message_index": lambda tenant: {"search": f"'secret' 'of' '{tenant}'", "message_id": UUID(int=2)},
    "llm.message_queue": lambda tenant: {"conversation_id": UUID(int=1)},
    "llm.branches": lambda tenant: {"conversation_id": UUID(int=1), "branch": 1, "parent_branch": 0, "forked_at": 0, "name": f"secret of {tenant}"},
    "llm.channel_subscribers": lambda tenant: {"patterns": ["*"], "presence": "1 hour", "subscriber": f"secret of {tenant}"},
    "llm.consumer_groups": lambda tenant: {"stream": "s", "group_name": f"secret of {tenant}"},
    "llm.group_deliveries": lambda tenant: {
        "stream": "s", "group_name": "g", "era": 1, "transaction_id": "3", "number": 1, "at": datetime(2026, 1, 1, tzinfo=UTC),
        "consumer": f"secret of {tenant}",
    },
    "llm.stream_entries": lambda tenant: {"stream": "s", "era": 1, "transaction_id": "3", "payload": Jsonb(f"secret of {tenant}")},
    "llm.streams": lambda tenant: {"stream": f"secret of {tenant}"},
    "llm.summaries": lambda tenant: {"conversation_id": UUID(int=1), "branch": 0, "upto": 1, "summary": f"secret of {tenant}"},
    "llm.data_key_versions": lambda tenant: {"key_id": KEY, "version": 1, "wrapped": b"secret of " + tenant.encode()},
    "llm.data_keys": lambda tenant: {"key_id": KEY, "tenant_key_id": KEY, "kind": "data"},
    "llm.embedding_jobs": lambda tenant: {"collection": "c", "point_id": f"secret of {tenant}", "content_hash": b"x"},
    "llm.queues": lambda tenant: {"queue": f"secret of {tenant}"},
    "llm.jobs": lambda tenant: {"queue": "q", "lane": 0, "place": 1, "priority": 0, "payload": Jsonb(f"secret of {tenant}")},
    "llm.job_keys": lambda tenant: {"queue": "q", "job_id": 1, "dedup_key": f"secret of {tenant}"},
    "llm.job_groups": lambda tenant: {"queue": "q", "group_key": f"secret of {tenant}"},
    "llm.job_turns": lambda tenant: {"queue": "q", "job_id": 1, "group_key": f"secret of {tenant}"},
    "llm.job_schedules": lambda tenant: {"name": "s", "queue": "q", "cron": "@daily", "payload": Jsonb(f"secret of {tenant}")},
    "llm.job_archive": lambda tenant: {
        "id": 1, "queue": "q", "priority": 0, "attempts": 1, "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "payload": Jsonb(f"secret of {tenant}"),
    },
    "llm.key_events": lambda tenant: {"event": f"secret of {tenant}"},
    "llm.key_usage": lambda tenant: {"key_id": KEY, "version": 1, "uses": 1},
    "llm.personal_keys": lambda tenant: {"user_id": KEY, "key_id": KEY},
    "llm.rewraps": lambda tenant: {"table_name": "t", "column_name": "c"},
    "llm.tenant_keys": lambda tenant: {"id": KEY, "master_version": 1, "wrapped": b"secret of " + tenant.encode()},
    "llm.search_queries": lambda tenant: {"embedding": "[1,2]", "collection": f"secret of {tenant}"},
    "llm.recall_measurements": lambda tenant: {
        "collection": f"secret of {tenant}", "source": "points", "is_filtered": False, "queries": 1, "k": 1, "ef": 1, "plan": "exact", "recall": 1,
        "p50_ms": 1, "p95_ms": 1, "exact_p50_ms": 1,
    },
    "llm.search_evaluations": lambda tenant: {
        "collection": "c", "measured_at": datetime(2026, 1, 1, tzinfo=UTC), "method": "text", "queries": 1, "k": 1, "hit_rate": 1, "mrr": 1,
        "ndcg": 1, "missing": 0, "p50_ms": 1, "p95_ms": 1, "settings": Jsonb({}), "note": f"secret of {tenant}",
    },
    "llm.memories": lambda tenant: {"scope": "agent", "owner": "a", "predicate": "p", "value": Jsonb(f"secret of {tenant}"), "content": ""},
    "llm.tools": lambda tenant: {"name": "t", "version": 1, "arguments": Jsonb({"secret of": tenant}), "description": f"secret of {tenant}"},
    "llm.tool_calls": lambda tenant: {"tool": "t", "arguments": Jsonb(f"secret of {tenant}"), "error": f"secret of {tenant}"},
    "llm.rate_limits": lambda tenant: {
        "subject": b"secret of " + tenant.encode(), "algorithm": "token_bucket", "per": "1 s", "used": 1, "used_at": datetime(2026, 1, 1, tzinfo=UTC)
    },
    "llm.semantic_entries": lambda tenant: {
        "scope": bytes(32), "model": "m", "prompt": f"secret of {tenant}", "prompt_hash": bytes(32), "answer": Jsonb(f"secret of {tenant}")
    },
    "llm.semantic_lookups": lambda tenant: {"model": "m", "prompt": f"secret of {tenant}"},
    "llm.breakers": lambda tenant: {"service": "s", "last_error": f"secret of {tenant}"},
    "llm.users": lambda tenant: {"user_id": USER, "username": f"secret of {tenant}"},
    "llm.user_credentials": lambda tenant: {"user_id": USER, "password_hash": f"secret of {tenant}"},
    "llm.user_api_keys": lambda tenant: {
        "user_id": USER, "name": f"secret of {tenant}", "key_prefix": "x" * 16, "key_salt": b"x" * 16, "key_hash": b"x" * 32
    },
    "llm.sessions": lambda tenant: {"user_id": USER, "metadata": Jsonb({"secret of": tenant})},
    "llm.tenant_roles": lambda tenant: {"role_name": f"role of {tenant}"},
}  # fmt: skip


def row(table: str, tenant: str) -> dict[str, Any]:
    """Return a row for a table."""
    assert table in ROWS, f"tests know no row for {table}: add a line to ROWS in {__name__}"
    return {"tenant_id": tenant} | ROWS[table](tenant)


def insert(table: str, values: dict[str, Any], suffix: str = "") -> str:
    """Return an INSERT of a row."""
    columns, constants = map(sql.Identifier, values), map(sql.Literal, values.values())
    statement = sql.SQL("insert into {} ({}) values ({}) ").format(sql.SQL(table), sql.SQL(", ").join(columns), sql.SQL(", ").join(constants))
    return statement.as_string() + suffix


@pytest.fixture
def rows(db: Client) -> Client:
    """A superuser's client, after each tenant table got a row of each tenant, and a global one where that is allowed."""
    db.run("set session_replication_role = replica")  # foreign keys do not care for the order of tables
    for table in tenant_tables(db):
        for tenant in (*TENANTS, "*"):
            try:
                db.run(insert(table, row(table, tenant)))
            except psycopg.errors.CheckViolation:
                assert tenant == "*"
    db.run("insert into llm.config (tenant_id, key, value) values ('*', 'login/bcrypt_cost', '4')")  # hashes that are quickly computed
    return db.run("reset session_replication_role")


def test_every_tenant_table_is_protected(db: Client) -> None:
    """RLS-01"""
    tables = tenant_tables(db)
    assert {"llm.config", "llm.config_history", "llm.tenant_roles"} <= set(tables)
    for table in tables:
        assert db.row("select relrowsecurity, relforcerowsecurity from pg_class where oid = %s::text::regclass", table) == (True, True), table
        assert db.one("select relowner::regrole::text from pg_class where oid = %s::text::regclass", table) == "llm_owner"


def test_every_granted_command_has_a_policy_that_checks_what_is_written(db: Client) -> None:
    """RLS-01"""
    for table in tenant_tables(db):
        policies = db.rows("select cmd, roles::text[], qual, with_check from pg_policies where format('%%I.%%I', schemaname, tablename) = %s", table)
        for role in ("llm_admin", "llm_app", "llm_reader", "llm_auditor"):
            for command in ("SELECT", "INSERT", "UPDATE", "DELETE"):
                if not db.one("select has_table_privilege(%s, %s, %s)", role, table, command):
                    continue
                fitting = [policy for policy in policies if policy[0] in (command, "ALL") and set(policy[1]) & {"public", role}]
                assert fitting, f"{role} has {command} on {table} without a policy"
                if command in ("INSERT", "UPDATE"):
                    assert all(with_check for *_, with_check in fitting), f"a policy of {table} lets {command} write any row"
        for _, roles, qual, with_check in policies:
            if set(roles) & {"public", "llm_app", "llm_reader"}:
                assert "true" not in (qual, with_check), f"a policy of {table} is open to {roles}"


def visible(db: Client, table: str, tenant: str) -> set[str]:
    """Return the tenants whose rows an application of a tenant is meant to see: its own, and global ones where a policy says so."""
    policies = db.column("select qual from pg_policies where format('%%I.%%I', schemaname, tablename) = %s and roles = '{public}'", table)
    own = {tenant} if any("llm.current_tenant()" in qual for qual in policies) else set()
    return own | ({"*"} if any("tenant_id = '*'" in qual for qual in policies) else set())


def stored(db: Client, table: str, tenant: str) -> list[tuple[Any, ...]]:
    """Return all rows of a table that are not a tenant's."""
    return db.rows(f"select t::text from {table} t where tenant_id <> %s order by 1", tenant)


def attempt(client: Client, tenant: str, statement: str) -> tuple[str, int, list[str]]:
    """Run a statement for a tenant; return the SQLSTATE, how many rows it touched, and the tenants that it returned."""
    try:
        with client.tenant(tenant):
            cursor = client.connection.execute(statement)
            return "", cursor.rowcount, [str(row[0]) for row in cursor.fetchall()] if cursor.description else []
    except psycopg.Error as error:
        return error.sqlstate or "", 0, []


@pytest.mark.parametrize("user", ["app", "reader"])
@pytest.mark.parametrize("tenant", TENANTS)
def test_a_tenant_reads_its_own_rows(rows: Client, database: Database, user: str, tenant: str) -> None:
    """RLS-02: SELECT, and COPY."""
    client = database.client(user)
    for table in tenant_tables(rows, user):
        expected = visible(rows, table, tenant)
        with client.tenant(tenant):
            assert set(client.column(f"select tenant_id from {table}")) == expected, table
            # COPY of a partitioned table itself reads it without its partitions, where there is row-level security.
            is_partitioned = rows.one("select relkind = 'p' from pg_class where oid = %s::text::regclass", table)
            source = f"(select tenant_id from {table})" if is_partitioned else f"{table} (tenant_id)"
            with client.connection.cursor().copy(f"copy {source} to stdout") as copy:
                assert {values[0] for values in copy.rows()} == expected, table
            for other in {*TENANTS, "*"} - expected:
                assert client.rows(f"select 1 from {table} where tenant_id = %s", other) == []


@pytest.mark.parametrize("tenant", TENANTS)
def test_a_tenant_writes_its_own_rows_only(rows: Client, database: Database, app: Client, tenant: str) -> None:
    """RLS-02: INSERT, ON CONFLICT, UPDATE, DELETE, MERGE and RETURNING against each other tenant and what is global."""
    for table in tenant_tables(rows):
        for victim in {*TENANTS, "*"} - {tenant}:
            before = stored(rows, table, tenant)
            values = row(table, victim)
            names = ", ".join(values)
            constants = ", ".join(sql.Literal(value).as_string() for value in values.values())
            column = list(values)[-1]
            merge = f"merge into {table} t using (values ({constants})) v ({names}) on t.tenant_id = v.tenant_id"
            for statement in (
                insert(table, values),
                insert(table, values, "returning tenant_id"),
                insert(table, values, "on conflict do nothing"),
                f"update {table} set tenant_id = '{victim}' where tenant_id = '{tenant}' returning tenant_id",
                f"{merge} and false when not matched then insert ({names}) values ({constants}) returning t.tenant_id",
            ):
                state, _, _ = attempt(app, tenant, statement)
                assert state == "42501", (statement, state)
            for statement in (
                f"update {table} set {column} = {column} where tenant_id = '{victim}' returning tenant_id",
                f"delete from {table} where tenant_id = '{victim}' returning tenant_id",
                f"{merge} when matched then delete returning t.tenant_id",
                f"{merge} when matched then update set {column} = v.{column} returning t.tenant_id",
                f"select tenant_id from {table} where tenant_id = '{victim}' for update",
            ):
                state, count, returned = attempt(app, tenant, statement)
                assert (state, count, returned) in (("42501", 0, []), ("", 0, [])), (statement, state, count, returned)
            assert stored(rows, table, tenant) == before


def test_a_tenant_takes_no_row_over_by_a_conflict(rows: Client, app: Client) -> None:
    """RLS-02: the victim's key in ON CONFLICT DO UPDATE."""
    for table in tenant_tables(rows):
        keys = ", ".join(rows.column("select attname::text from pg_index join pg_attribute on attrelid = indrelid and attnum = any (indkey)"
                                     " where indrelid = %s::text::regclass and indisprimary", table))  # fmt: skip
        before = stored(rows, table, "a")
        values = row(table, "b")
        state, _, _ = attempt(app, "a", insert(table, values, f"on conflict ({keys}) do update set tenant_id = 'a' returning tenant_id"))
        assert state == "42501", (table, state)
        assert stored(rows, table, "a") == before


def test_copy_brings_no_rows_into_another_tenant(rows: Client, app: Client) -> None:
    """RLS-02: the server refuses COPY FROM where row-level security applies, or the privilege is missing."""
    for table in tenant_tables(rows):
        before = rows.one(f"select count(*) from {table}")
        with pytest.raises((FeatureNotSupported, InsufficientPrivilege)), app.tenant("a"):
            app.connection.cursor().copy(f"copy {table} from stdin").__enter__()
        assert rows.one(f"select count(*) from {table}") == before


def test_a_tenant_writes_what_is_its_own(app: Client) -> None:
    """RLS-02: the checks refuse others' rows, not all."""
    with app.tenant("a"):
        app.run("insert into llm.config (key, value) values ('mine', '1')")
        assert app.column("update llm.config set value = '2' returning tenant_id") == ["a"]
        assert app.column("delete from llm.config returning key") == ["mine"]


@pytest.mark.parametrize("binding", [None, "a"])
def test_no_function_gives_a_tenant_what_is_anothers(rows: Client, database: Database, binding: str | None) -> None:
    """RLS-04: every function an application may call, with every choice of another tenant's name and keys."""
    with rows.tenant("b"):
        rows.run("""select llm.save_config('secret key of b', '"secret of b"'), llm.save_config('secret key of b', '"secret of b, too"')""")
    rows.run("select llm.bind_role('app', %s)", binding)
    app = database.client("app")
    change = rows.one("select max(id) from llm.config_history where tenant_id = 'b'")
    samples = SAMPLES | {"bigint": change, "integer": change, "text[]": ["b", "secret key of b"], "jsonb": '{"secret key of b": 1}'}
    before = stored(rows, "llm.config", "a"), stored(rows, "llm.config_history", "a")
    for function in functions(rows, "app"):
        for arguments in function.arguments_with(("secret key of b", "b", "*", ""), samples):
            with app.tenant("a"):
                outcome = function.outcome(app, arguments)
            assert "secret of b" not in str(outcome), (function.signature, arguments)
    assert (stored(rows, "llm.config", "a"), stored(rows, "llm.config_history", "a")) == before


@pytest.fixture
def seen(rows: Client, app: Client) -> Callable[[], set[str]]:
    """Return the tenants whose rows an application reads in all tenant tables just now."""
    tables = tenant_tables(rows, "app")
    return lambda: {tenant for table in tables for tenant in app.column(f"select tenant_id from {table}")}


@pytest.mark.parametrize("setting", [None, "", " ", "'", "\\", "no-such-tenant", "00000000-0000-0000-0000-000000000000", "a,b", "%", "x" * 5000])
def test_without_a_tenant_that_exists_no_rows_of_tenants_are_seen(app: Client, seen: Callable[[], set[str]], setting: str | None) -> None:
    """RLS-05: not set, empty, or malformed."""
    with app.transaction():
        if setting is not None:
            app.run("select set_config('llm.tenant', %s, true), set_config('llm.tenant_set_at', date_part('epoch', now())::text, true)", setting)
        assert seen() == {"*"}
        assert app.rows("select * from llm.load_configs('secret')") == []


def test_after_the_transaction_of_a_tenant_no_rows_of_it_are_seen(app: Client, seen: Callable[[], set[str]]) -> None:
    """RLS-05"""
    with app.tenant("a"):
        assert seen() == {"a", "*"}
    assert seen() == {"*"}
    with pytest.raises(ZeroDivisionError), app.tenant("a"):
        raise ZeroDivisionError
    assert seen() == {"*"}


def test_a_tenant_of_the_session_is_refused(app: Client, seen: Callable[[], set[str]]) -> None:
    """RLS-05: it would reach the next client of a pool."""
    app.run("set llm.tenant = 'a'")
    with raises(ObjectNotInPrerequisiteState, match="was not set by llm.set_tenant", hint="llm.set_tenant"):
        seen()
    with raises(ObjectNotInPrerequisiteState, match="was not set by llm.set_tenant"):
        app.run("select llm.load_config('k')")


def test_a_statement_asks_for_the_tenant_once(rows: Client, database: Database) -> None:
    """RLS-07: an InitPlan, whatever the number of rows."""
    rows.run(f"alter database {database.name} set track_functions = 'all'")
    rows.run("""
        insert into llm.config_history (tenant_id, key, value, version, operation, changed_by)
        select (array['a', 'b'])[i % 2 + 1], 'many ' || i, '1', 1, 'insert', 'somebody' from generate_series(1, 100000) i
        """)
    app = database.client("app")
    calls = "select coalesce(sum(calls), 0) from pg_stat_xact_user_functions where schemaname = 'llm' and funcname = 'current_tenant'"
    with app.tenant("a"):
        assert app.one("select count(*) from llm.config_history where key like 'many %'") == 50_000
        assert app.one(calls) == 1


@pytest.mark.parametrize("user", ["app", "auditor"])
def test_every_policy_asks_for_the_tenant_in_an_initplan(rows: Client, database: Database, user: str) -> None:
    """RLS-07"""
    client = database.client(user)
    for table in tenant_tables(rows, user):
        policies = rows.column("select coalesce(qual, with_check) from pg_policies where format('%%I.%%I', schemaname, tablename) = %s", table)
        if any("current_tenant" in policy for policy in policies):
            with client.tenant("a"):
                assert "InitPlan" in "".join(client.column(f"explain select tenant_id from {table}")), table


def test_views_use_their_callers_rights(db: Client) -> None:
    """RLS-09: a default view would show its owner's rows; the doctor reports one."""
    assert (
        db.column("""
        select oid::regclass::text
        from pg_class
        where relnamespace = 'llm'::regnamespace and relkind = 'v' and not 'security_invoker=true' = any (coalesce(reloptions, '{}'))
        """)
        == []
    )
    check = "select ok, detail from llm.doctor() where name = 'views use their caller''s rights'"
    assert db.row(check) == (True, "all")
    db.run("create view llm.leak as select * from llm.config").run("create view llm.tight with (security_invoker = true) as select * from llm.config")
    assert db.row(check) == (False, "llm.leak")


def test_no_materialized_view_holds_rows_of_tenants(db: Client) -> None:
    """RLS-09: row-level security cannot protect one."""
    assert db.column("select attrelid::regclass::text from pg_attribute join pg_class c on c.oid = attrelid where relkind = 'm'"
                     " and relnamespace = 'llm'::regnamespace and attname = 'tenant_id'") == []  # fmt: skip

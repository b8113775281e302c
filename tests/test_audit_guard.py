"""What keeps the audit log as it was written: refusals, traces of those who may, and months that leave as a whole."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from tests.support import Client, Database, raises

LOG = "select llm.log_audit_event('a', 'b', 'c')"


@pytest.fixture
def logs(db: Client) -> list[str]:
    """Both logs and all of their partitions, with an event and what is sensitive of it."""
    db.run(LOG)
    db.run("""
        insert into llm.sensitive_log (tenant_id, audit_log_id, audit_timestamp, encrypted_details, access_level)
        select tenant_id, id, "timestamp", 'x', 'llm_auditor' from llm.audit_log
        """)
    return db.column("""
        select c.oid::regclass::text from pg_class c
        where c.relnamespace = 'llm'::regnamespace and c.relkind in ('r', 'p') and c.relname ~ '^(audit|sensitive)_log'
        order by 1
        """)


def changes(table: str) -> list[str]:
    """Return every way to change or remove rows of a table."""
    column, key = (
        ("action", "(tenant_id, \"timestamp\", id)") if "audit_log" in table else ("access_level", "(tenant_id, audit_log_id, id, audit_timestamp)")
    )
    return [
        f"update {table} set {column} = 'x'",
        f"update {table} set tenant_id = tenant_id",
        f"delete from {table}",
        f"merge into {table} t using (select 1) on true when matched then update set {column} = 'x'",
        f"merge into {table} t using (select 1) on true when matched then delete",
        f"insert into {table} select * from {table} on conflict {key} do update set {column} = 'x'".replace("select *", _columns(table)),
    ]


def _columns(table: str) -> str:
    # Not the generated one.
    names = (
        'tenant_id, id, "timestamp", user_id, action, object_type, object_id'
        if "audit_log" in table
        else "tenant_id, id, audit_log_id, audit_timestamp, encrypted_details, access_level"
    )
    return f"select {names}"


def insertion(statement: str) -> str:
    """Name the columns of an INSERT … SELECT."""
    if not statement.startswith("insert into"):
        return statement
    head, _, rest = statement.partition(" select ")
    return f"{head} ({rest.partition(' from ')[0]}) select {rest}"


@pytest.mark.parametrize("user", ["postgres", "llm_owner", "postgres as a replica"])
def test_aud_06_no_row_is_changed_or_removed_by_any_statement(db: Client, logs: list[str], user: str) -> None:
    """AUD-06"""
    assert len(logs) > 10
    rows = {table: db.rows(f"select * from {table} order by 1, 2") for table in logs}
    if user == "llm_owner":
        db.run("set role llm_owner")
    elif user != "postgres":
        db.run("set session_replication_role = replica")
    for table in logs:
        if rows[table] and not (user == "llm_owner" and "_p2" in table):
            for statement in map(insertion, changes(table)):
                refused(db, statement)
        with raises(errors.InsufficientPrivilege, "TRUNCATE of .*: the audit log is only ever added to", hint="llm.delete_old_logs"):
            db.run(f"truncate {table}")
    with pytest.raises(errors.InsufficientPrivilege):
        db.run("truncate llm.audit_log cascade")
    db.run("reset role")
    assert {table: db.rows(f"select * from {table} order by 1, 2") for table in logs} == rows


def refused(db: Client, statement: str) -> None:
    """Expect that the trigger refuses a statement, or that row-level security lets its owner see no row to change."""
    try:
        count = db.connection.execute(statement).rowcount
    except errors.InsufficientPrivilege as error:
        assert "the audit log is only ever added to" in str(error) or "row-level security" in str(error), statement
    else:
        assert (count, db.one("select current_user")) == (0, "llm_owner"), statement


@pytest.mark.parametrize("user", ["app", "reader", "auditor", "admin"])
def test_aud_06_no_role_may_even_try(database: Database, logs: list[str], user: str) -> None:
    """AUD-06"""
    client = database.client(user)
    for table in logs:
        for statement in [*map(insertion, changes(table)), f"truncate {table}"]:
            with raises(errors.InsufficientPrivilege, "permission denied for"):
                client.run(statement)


def test_aud_06_copy_freeze_needs_a_truncate_which_is_refused(db: Client, logs: list[str]) -> None:
    """AUD-06"""
    for table in logs:
        with pytest.raises((errors.FeatureNotSupported, errors.ObjectNotInPrerequisiteState)):
            db.run(f"copy {table} (tenant_id) from program 'true' with (freeze)")


def traces(db: Client) -> list[tuple[str, str, str | None]]:
    """Return the events that the event triggers wrote."""
    return db.rows("select action, object_id, details ->> 'statement' from llm.get_audit_logs(p_object_type => 'audit', p_limit => 1000) order by id")


@pytest.mark.parametrize(
    ("statement", "action", "what"),
    [
        ("alter table llm.audit_log disable trigger append_only", "alter table", "llm.audit_log"),
        ("alter table llm.audit_log disable trigger all", "alter table", "llm.audit_log"),
        ("alter table llm.audit_log_default disable trigger append_only_truncate", "alter table", "llm.audit_log_default"),
        ("alter table llm.audit_log detach partition llm.audit_log_default", "alter table", "llm.audit_log"),
        ("alter table llm.audit_log alter column details set default '{}'", "alter table", "llm.audit_log"),
        ("alter table llm.audit_log alter column details set compression pglz", "alter table", "llm.audit_log"),
        ("alter table llm.sensitive_log no force row level security", "alter table", "llm.sensitive_log"),
        ("alter trigger append_only on llm.audit_log rename to harmless", "alter trigger", "harmless on llm.audit_log"),
        ("create trigger harmless before update on llm.audit_log for each row execute function suppress_redundant_updates_trigger()",
         "create trigger", "harmless on llm.audit_log"),
        ("create rule harmless as on insert to llm.audit_log_default do instead nothing", "create rule", "harmless on llm.audit_log_default"),
        ("drop trigger append_only on llm.audit_log", "drop trigger", "trigger append_only on llm.audit_log"),
        ("drop table llm.audit_log_default", "drop table", "table llm.audit_log_default"),
        ("drop table llm.sensitive_log", "drop table", "table llm.sensitive_log"),
        ("alter table llm.sensitive_log drop column access_level", "alter table", "llm.sensitive_log"),
        ("drop policy tenant_isolation on llm.audit_log", "drop policy", "policy tenant_isolation on llm.audit_log"),
    ],
)  # fmt: skip
def test_aud_07_whoever_alters_or_drops_leaves_a_trace(db: Client, statement: str, action: str, what: str) -> None:
    """AUD-07"""
    db.run(statement)
    assert (action, what, statement) in traces(db)


@pytest.mark.parametrize("statement", ["alter table llm.audit_log rename details to detail", "drop policy written_by_function on llm.audit_log"])
def test_aud_07_what_makes_the_log_unwritable_is_in_the_servers_log(db: Client, database: Database, statement: str) -> None:
    """AUD-07"""
    warnings: list[str | None] = []
    db.connection.add_notice_handler(lambda diag: warnings.append(diag.message_primary))
    db.run(statement)
    assert any("the audit log cannot note that postgres did" in str(warning) for warning in warnings)
    assert "WARNING:  the audit log cannot note that postgres did" in database.cluster.log()
    with pytest.raises(psycopg.Error):
        db.run(LOG)


def test_aud_07_the_trace_names_the_statement_only_if_it_is_ddl(db: Client) -> None:
    """AUD-07: another statement may hold secrets."""
    db.run("do $$ begin perform 'secret'; alter table llm.audit_log disable trigger append_only; end $$")
    assert traces(db) == [("alter table", "llm.audit_log", None)]


def test_aud_07_a_trace_is_undone_with_what_it_tells_of(db: Client) -> None:
    """AUD-07"""
    with db.connection.transaction(force_rollback=True):
        db.run("drop table llm.audit_log_default")
        assert len(traces(db)) == 1
    assert traces(db) == []


def test_aud_07_other_ddl_leaves_none(db: Client, database: Database) -> None:
    """AUD-07: neither that of others, which needs no right on anything of ours, nor setup's and the partitions' own."""
    db.run("grant create on schema public to nobody")
    nobody = database.client("nobody")
    for statement in (
        "create table public.audit_log (id int)", "alter table public.audit_log add details text", "create view public.v as select 1",
        "alter table public.audit_log drop column details", "drop table public.audit_log", "drop view public.v",
        "create temp table audit_log (i int)", "drop table pg_temp.audit_log",
    ):  # fmt: skip
        nobody.run(statement)
    assert db.rows("select * from llm.setup()") == []
    db.run("call llm.manage_partitions()")
    assert traces(db) == []


def test_aud_07_a_restore_that_drops_first_is_traced_and_goes_on(db: Client) -> None:
    """AUD-07: as pg_restore --clean does."""
    db.run("set row_security = off").run("drop table llm.audit_log_default")
    assert db.one("show row_security") == "off"
    db.run("set row_security = on")
    assert [what for _, what, _ in traces(db)] == ["table llm.audit_log_default"]


def test_setup_mends_what_was_taken_off(db: Client) -> None:
    db.run("drop trigger append_only on llm.audit_log").run("alter table llm.sensitive_log disable trigger all").run(LOG)
    db.run("select llm.setup()")
    refused(db, "delete from llm.audit_log")
    assert db.rows("select name from llm.doctor() where not ok and name ~ 'trigger'") == []


def test_old_months_are_dropped_as_a_whole_and_that_is_an_event(db: Client) -> None:
    """S001-335: with their sensitive details; the month that retention has not reached in full stays."""
    db.run("""
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, "timestamp")
        select 'acme', 'u', 'a', 'b', i::text, date_trunc('month', now(), 'UTC') - i * interval '1 second' from generate_series(0, 3) i
        """)
    days = db.one("select extract(day from now() at time zone 'UTC')::integer")
    assert db.one("select llm.delete_old_logs(%s)", days) is False, "not sealed yet"
    db.run("select llm.seal_audit()")
    assert db.one("select llm.delete_old_logs(%s)", days + 1) is False
    assert db.one("select count(*) from llm.audit_log") == 4
    if days > 1:
        assert db.one("select llm.delete_old_logs(%s)", days - 1) is True
        assert db.column("select object_id from llm.audit_log where object_type = 'b'") == ["0"]
        assert [(action, what[:19]) for action, what, _ in traces(db)] == [
            ("drop table", "table llm.audit_log"), ("drop table", "table llm.sensitive")
        ]  # fmt: skip
    assert db.rows("select parent, retention_days from llm.partition_sets where parent ~ '^llm.(audit|sensitive)_log$' order by 1") == [
        ("llm.audit_log", 365), ("llm.sensitive_log", 365)
    ]  # fmt: skip


@pytest.mark.parametrize("days", [0, -1, None])
def test_nothing_is_kept_for_less_than_a_day(db: Client, days: int | None) -> None:
    with raises(errors.InvalidParameterValue, "audit events cannot be kept for .* days", hint="at least 1 day"):
        db.run("select llm.delete_old_logs(%s)", days)


@pytest.mark.parametrize("user", ["app", "reader", "auditor", "admin"])
def test_only_superusers_drop_months(database: Database, user: str) -> None:
    with raises(errors.InsufficientPrivilege, "permission denied for function delete_old_logs"):
        database.client(user).run("select llm.delete_old_logs(1)")


def test_the_extension_goes_and_comes_back_with_the_log_as_it_was(db: Client) -> None:
    """DR-04: dropping the extension takes the event triggers along, and no row."""
    db.run(LOG)
    rows = db.rows("select * from llm.audit_log")
    db.run("set client_min_messages = error").run("drop extension pg_llm cascade").run("create extension pg_llm").run("select llm.setup()")
    assert db.rows("select * from llm.audit_log") == rows
    refused(db, "delete from llm.audit_log")
    db.run("alter table llm.audit_log disable trigger append_only")
    assert len(traces(db)) == 1
    with pytest.raises(psycopg.Error):
        db.run("drop extension pg_llm")

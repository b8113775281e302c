"""Audited tables: every change of a row is an event, and what must not be in the log is not."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import errors, sql

from tests.support import Client, Database, raises


@pytest.fixture
def plain(db: Client) -> Client:
    """A superuser's client, with an audited table that an application may change."""
    db.run("create table public.plain (id integer primary key, v text)").run("grant select, insert, update, delete, truncate on public.plain to app")
    return db.run("select llm.audit_table('public.plain')")


def changes(db: Client, columns: str = "action, object_id, before, after", table: str = "public.plain") -> list[tuple[Any, ...]]:
    """Return the events of a table, in order."""
    return db.rows(f"select {columns} from llm.audit_log where object_type = %s order by id", table)


def test_each_row_that_a_statement_changes_is_an_event(plain: Client, app: Client, db: Client) -> None:
    with app.tenant("acme"):
        app.run("insert into public.plain values (1, 'one'), (2, 'two'), (3, null)")
        app.run("update public.plain set v = v || '!' where id < 3")
        app.run("delete from public.plain where id > 1")
        app.run("truncate public.plain")
        app.run("update public.plain set v = 'no row'")
    assert changes(db) == [
        ("insert", "1", None, {"id": 1, "v": "one"}), ("insert", "2", None, {"id": 2, "v": "two"}), ("insert", "3", None, {"id": 3, "v": None}),
        ("update", "1", {"id": 1, "v": "one"}, {"id": 1, "v": "one!"}), ("update", "2", {"id": 2, "v": "two"}, {"id": 2, "v": "two!"}),
        ("delete", "2", {"id": 2, "v": "two!"}, None), ("delete", "3", {"id": 3, "v": None}, None), ("truncate", "", None, None),
    ]  # fmt: skip
    assert set(changes(db, "tenant_id, user_id, login_role")) == {("acme", "app", "app")}


def test_every_statement_that_changes_rows_is_seen(plain: Client, db: Client) -> None:
    with db.connection.cursor() as cursor, cursor.copy("copy public.plain from stdin") as copy:
        copy.write_row((1, "copied"))
    db.run("insert into public.plain values (1, 'x'), (2, 'y') on conflict (id) do update set v = excluded.v")
    db.run("""
        merge into public.plain p using (values (1), (2), (3)) s (i) on p.id = s.i
        when matched and i = 1 then delete when matched then update set v = 'merged' when not matched then insert values (i, 'new')
        """)
    db.run("with gone as (delete from public.plain returning *) insert into public.plain select id + 10, v from gone")
    db.run("update public.plain set id = 100 where id = 12")
    assert changes(db, "action, object_id, after ->> 'id'") == [
        ("insert", "1", "1"), ("update", "1", "1"), ("insert", "2", "2"), ("delete", "1", None), ("update", "2", "2"), ("insert", "3", "3"),
        ("delete", "2", None), ("delete", "3", None), ("insert", "12", "12"), ("insert", "13", "13"), ("update", "12", "100"),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 1000])
def test_rows_before_and_after_belong_together(plain: Client, db: Client, count: int) -> None:
    """Also in the statement after the one for which the plan was made."""
    db.run("insert into public.plain select i, 'v' || i from generate_series(1, 5000) i")
    for limit in (count, 5000, 1):
        db.run("update public.plain set v = v || '+', id = -id where abs(id) <= %s", limit)
    wrong = "action = 'update' and (before ->> 'v' || '+' <> after ->> 'v' or (before ->> 'id')::integer <> -(after ->> 'id')::integer)"
    assert db.one(f"select count(*) filter (where {wrong}) from llm.audit_log") == 0
    assert db.one("select count(*) from llm.audit_log where action = 'update'") == count + 5001


def test_a_change_that_is_undone_is_no_event(plain: Client, db: Client) -> None:
    with db.connection.transaction(force_rollback=True):
        db.run("insert into public.plain values (1)")
        assert len(changes(db)) == 1
    assert changes(db) == []


@pytest.mark.parametrize("setting", ["session_replication_role = replica", "search_path = evil, pg_catalog", "row_security = off"])
def test_no_setting_keeps_a_change_out(plain: Client, db: Client, setting: str) -> None:
    db.run("create schema evil").run(f"set {setting}").run("insert into public.plain values (1, 'x')")
    assert len(changes(db)) == 1


def test_who_changes_the_table_can_neither_forge_events_nor_switch_them_off(plain: Client, app: Client, db: Client) -> None:
    db.run("grant create on schema public to app")
    for statement in (
        "alter table public.plain disable trigger user", "drop trigger llm_audit_insert on public.plain", "select llm.unaudit_table('public.plain')",
        "create trigger t after insert on public.plain for each statement execute function llm._audit_changes('{}', '{}', '{}')",
        "select llm.audit_table('public.plain')", "insert into llm.audited_tables values ('a', 'b', '{}', '{}', '{}')",
    ):  # fmt: skip
        with pytest.raises(errors.InsufficientPrivilege):
            app.run(statement)
    app.run("create table public.mine (id int)")
    with raises(errors.InsufficientPrivilege, "permission denied for function llm._audit_changes"):
        app.run("create trigger t after insert on public.mine for each statement execute function llm._audit_changes('{}', '{}', '{}')")


NAMES = ("My Table", 'quo"ted', "semi;colon", "%s %I {}", "drop table", "x" * 63, "日本語")


@pytest.mark.parametrize("name", NAMES)
def test_any_name_will_do(db: Client, name: str) -> None:
    table = sql.Identifier(f"schema {name}"[:63], name)
    key, secret = sql.Identifier(name[::-1]), sql.Identifier(f"s{name}"[:63])
    db.connection.execute(sql.SQL("create schema {}").format(sql.Identifier(f"schema {name}"[:63])))
    db.connection.execute(
        sql.SQL("create table {} ({} int primary key, {} text, new_rows int, q int, n int, s int, o int)").format(table, key, secret)
    )
    db.connection.execute("select llm.audit_table(%s::text::regclass, p_mask => %s)", [table.as_string(), [f"s{name}"[:63]]])
    db.connection.execute(sql.SQL("insert into {} values (7, 'secret', 1, 2, 3, 4, 5)").format(table))
    db.connection.execute(sql.SQL("update {} set q = 3").format(table))
    rows = db.rows("select object_type, object_id, after from llm.audit_log where action <> 'truncate' order by id")
    expected = {name[::-1]: 7, f"s{name}"[:63]: "***", "new_rows": 1, "n": 3, "s": 4, "o": 5}
    assert [row[1:] for row in rows] == [("7", expected | {"q": 2}), ("7", expected | {"q": 3})]
    assert db.one("select %s::text::regclass = %s::text::regclass", rows[0][0], table.as_string())


def test_excluded_columns_are_not_in_the_log_and_masked_ones_only_as_changed_or_not(db: Client) -> None:
    db.run("create table public.plain (id int primary key, name text, password text, token text)")
    db.run("select llm.audit_table('public.plain', '{token}', '{password}')")
    db.run("insert into public.plain values (1, 'a', 'secret 1', 'token 1'), (2, 'b', null, 'token 2')")
    db.run("update public.plain set name = 'c', token = 'token 3'").run("update public.plain set password = 'secret 2'").run(
        "delete from public.plain"
    )
    assert changes(db) == [
        ("insert", "1", None, {"id": 1, "name": "a", "password": "***"}), ("insert", "2", None, {"id": 2, "name": "b", "password": None}),
        ("update", "1", {"id": 1, "name": "a", "password": "***"}, {"id": 1, "name": "c", "password": "***"}),
        ("update", "2", {"id": 2, "name": "b", "password": None}, {"id": 2, "name": "c", "password": None}),
        ("update", "1", {"id": 1, "name": "c", "password": "***"}, {"id": 1, "name": "c", "password": "*** (changed)"}),
        ("update", "2", {"id": 2, "name": "c", "password": None}, {"id": 2, "name": "c", "password": "*** (changed)"}),
        ("delete", "1", {"id": 1, "name": "c", "password": "***"}, None), ("delete", "2", {"id": 2, "name": "c", "password": "***"}, None),
    ]  # fmt: skip


def test_a_column_to_hide_that_is_renamed_stops_changes_until_it_is_named_anew(db: Client) -> None:
    db.run("create table public.plain (id int primary key, password text)").run("select llm.audit_table('public.plain', '{password}')")
    db.run("alter table public.plain rename password to secret")
    with raises(
        errors.ObjectNotInPrerequisiteState, "columns of public.plain that the audit log must not hold", hint="audit_table", detail="{password}"
    ):
        db.run("insert into public.plain values (1, 'secret')")
    db.run("select llm.audit_table('public.plain', '{secret}')").run("insert into public.plain values (1, 'secret')")
    assert changes(db) == [("insert", "1", None, {"id": 1})]


@pytest.mark.parametrize("mask", ["{}", "{v}"])
def test_a_key_of_several_columns_is_an_array_and_none_is_empty(db: Client, mask: str) -> None:
    db.run("create table public.plain (a text, b int, v text, primary key (b, a))").run("select llm.audit_table('public.plain', p_mask => %s)", mask)
    db.run("insert into public.plain values ('x, \"y', 1, 'v')")
    db.run("create table public.keyless (a text, v text)").run("select llm.audit_table('public.keyless', p_mask => %s)", mask)
    db.run("insert into public.keyless values ('x', 'v')")
    db.run("select llm.audit_table('public.keyless', p_mask => %s, p_key => '{a}')", mask).run("insert into public.keyless values ('y', 'v')")
    assert changes(db, "object_id") == [('[1, "x, \\"y"]',)]
    assert changes(db, "object_id", "public.keyless") == [("",), ("y",)]


def test_partitions_are_audited_whichever_way_rows_come(db: Client) -> None:
    """To the parent, to a partition, to one that was attached later; from one partition to another."""
    db.run("create table public.plain (id int, at date, v text) partition by range (at)")
    db.run("create table public.p1 partition of public.plain for values from ('2020-01-01') to ('2021-01-01')")
    db.run("select llm.audit_table('public.plain', p_mask => '{v}', p_key => '{id}')")
    db.run("create table public.p2 (v text, at date, id int)")
    db.run("alter table public.plain attach partition public.p2 for values from ('2021-01-01') to ('2022-01-01')")
    db.run("insert into public.plain values (1, '2020-02-02', 'v')").run("insert into public.p1 values (2, '2020-02-02')")
    db.run("insert into public.p2 values ('v', '2021-02-02', 3)").run("update public.plain set at = '2021-03-03', v = 'w' where id = 1")
    db.run("delete from public.p2 where id = 3").run("truncate public.plain")
    assert changes(db, "action, object_id, before ->> 'v', after ->> 'v'") == [
        ("insert", "1", None, "***"), ("insert", "2", None, None), ("insert", "3", None, "***"), ("delete", "1", "***", None),
        ("insert", "1", None, "***"), ("delete", "3", "***", None), ("truncate", "", None, None),
    ]  # fmt: skip
    assert db.one("select llm.unaudit_table('public.plain')") is True
    db.run("insert into public.p1 values (9, '2020-02-02')")
    assert changes(db, "object_id")[-1] == ("",)


TYPES = """
    create type public.mood as enum ('sad', 'ok');
    create type public.pair as (x int, y text);
    create domain public.positive as int check (value > 0);
    create table public.plain (id public.positive primary key, m public.mood, p public.pair, a public.mood[], v vector(2))
    """


@pytest.mark.parametrize("is_partitioned", [False, True])
def test_types_of_users_are_logged_as_text(db: Client, is_partitioned: bool) -> None:
    db.run(TYPES + (" partition by range (id)" if is_partitioned else ""))
    if is_partitioned:
        db.run("create table public.p1 partition of public.plain default")
    db.run("select llm.audit_table('public.plain')")
    db.run("insert into public.plain values (1, 'sad', (1, 'a'), '{sad,ok}', '[1,2]'), (2, null, null, null, null)")
    db.run("insert into public.plain values (3, 'ok', (null, null), '{}', '[0,0]')")
    db.run("update public.plain set m = 'ok' where id = 1").run("delete from public.plain where id = 1")
    row = {"id": "1", "m": "sad", "p": "(1,a)", "a": "{sad,ok}", "v": "[1,2]"}
    assert changes(db) == [
        ("insert", "1", None, row), ("insert", "2", None, {"id": "2", "m": None, "p": None, "a": None, "v": None}),
        ("insert", "3", None, {"id": "3", "m": "ok", "p": "(,)", "a": "{}", "v": "[0,0]"}),
        ("update", "1", row, row | {"m": "ok"}), ("delete", "1", row | {"m": "ok"}, None),
    ]  # fmt: skip


@pytest.mark.parametrize("is_partitioned", [False, True])
def test_a_users_cast_is_not_called_by_the_owner_of_the_log(db: Client, database: Database, is_partitioned: bool) -> None:
    """to_jsonb() would: with the rights of whoever runs it."""
    db.run("grant create on schema public to nobody").run("grant llm_admin to nobody")
    mallory = database.client("nobody")
    mallory.run("create type public.evil as enum ('a', 'b')").run("create table public.caught (who text)").run(
        "grant insert on public.caught to public"
    )
    mallory.run("""
        create function public.trap(public.evil) returns json language plpgsql as $$
        begin insert into public.caught values (current_user); return '1'; end $$
        """).run("create cast (public.evil as json) with function public.trap(public.evil)")
    mallory.run("create table public.plain (id int, e public.evil)" + (" partition by range (id)" if is_partitioned else ""))
    if is_partitioned:
        mallory.run("create table public.p1 partition of public.plain default")
    mallory.run("select llm.audit_table('public.plain', p_key => '{id}')")
    mallory.run("insert into public.plain values (1, 'a')").run("update public.plain set e = 'b'").run("delete from public.plain")
    assert db.rows("select * from public.caught") == []
    assert changes(db, "after ->> 'e'")[:2] == [("a",), ("b",)]
    db.run("select to_jsonb('a'::public.evil)")
    assert db.rows("select * from public.caught") == [("postgres",)]
    db.run("drop owned by nobody cascade").run("revoke llm_admin from nobody")


@pytest.mark.parametrize("is_partitioned", [False, True])
def test_a_users_cast_is_not_called_for_a_column_whose_type_was_changed_later(db: Client, is_partitioned: bool) -> None:
    db.run("create table public.plain (id int primary key, v text)" + (" partition by range (id)" if is_partitioned else ""))
    if is_partitioned:
        db.run("create table public.p1 partition of public.plain default")
    db.run("select llm.audit_table('public.plain')").run("insert into public.plain values (1, 'a')").run("update public.plain set v = 'b'")
    db.run("create type public.evil as enum ('a', 'b', 'c')")
    db.run("create function public.trap(public.evil) returns json language sql return '\"caught\"'::json")
    db.run("create cast (public.evil as json) with function public.trap(public.evil)")
    db.run("alter table public.plain alter column v type public.evil using v::public.evil")
    db.run("update public.plain set v = 'c'").run("insert into public.plain values (2, 'a')").run("delete from public.plain where id = 1")
    assert changes(db, "action, before ->> 'v', after ->> 'v'") == [
        ("insert", None, "a"), ("update", "a", "b"), ("update", "b", "c"), ("insert", None, "a"), ("delete", "c", None),
    ]  # fmt: skip


def test_columns_may_come_and_go(plain: Client, db: Client) -> None:
    db.run("insert into public.plain values (1, 'v')").run("alter table public.plain add column w int default 5, drop column v")
    db.run("insert into public.plain values (2)").run("alter table public.plain alter column w type text using w || '!'").run(
        "update public.plain set w = 'x'"
    )
    assert changes(db, "action, before, after")[1:] == [
        ("insert", None, {"id": 2, "w": 5}),
        ("update", {"id": 1, "w": "5!"}, {"id": 1, "w": "x"}), ("update", {"id": 2, "w": "5!"}, {"id": 2, "w": "x"}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "error", "message", "hint"),
    [
        ("'llm.config'", errors.WrongObjectType, "llm.config cannot be audited", "outside schema llm"),
        ("'llm.audit_log'", errors.WrongObjectType, "llm.audit_log cannot be audited", "outside schema llm"),
        ("'pg_class'", errors.WrongObjectType, "pg_class cannot be audited", "Ordinary"),
        ("'public.a_view'", errors.WrongObjectType, "public.a_view cannot be audited", "Ordinary"),
        ("'public.plain', '{nothing}'", errors.UndefinedColumn, "table public.plain has no column nothing", "as the catalogue has them"),
        ("'public.plain', p_mask => '{V}'", errors.UndefinedColumn, "table public.plain has no column V", "unquoted"),
        ("'public.plain', p_key => '{ctid}'", errors.UndefinedColumn, "table public.plain has no column ctid", "p_key"),
        ("'public.plain', '{id}'", errors.InvalidParameterValue, "the key of public.plain must be visible in the log", "p_key"),
        ("'public.plain', null", errors.InvalidParameterValue, "the key of public.plain must be visible in the log", "cannot be null"),
    ],
)
def test_what_cannot_be_audited_is_refused(plain: Client, arguments: str, error: type[errors.Error], message: str, hint: str) -> None:
    plain.run("create view public.a_view as select 1 as id")
    with raises(error, message, hint=hint):
        plain.run(f"select llm.audit_table({arguments})")


def test_auditing_ends_and_both_ends_are_known(plain: Client, db: Client) -> None:
    assert db.rows("select table_name, key_columns from llm.audited_tables") == [("plain", ["id"])]
    db.run("select llm.audit_table('public.plain')")
    assert [db.one("select llm.unaudit_table('public.plain')") for _ in range(2)] == [True, False]
    db.run("insert into public.plain values (1)")
    assert changes(db) == []
    assert db.rows("select * from llm.audited_tables") == []
    assert db.rows("select action, object_id from llm.audit_log") == [("unaudit", "public.plain")]


def test_aud_07_taking_the_triggers_off_leaves_a_trace(plain: Client, db: Client) -> None:
    """AUD-07: by the table's owner, too."""
    for statement in (
        "alter table public.plain disable trigger llm_audit_insert", "alter table public.plain enable always trigger llm_audit_insert",
        "drop trigger llm_audit_update on public.plain", "drop table public.plain",
    ):  # fmt: skip
        db.run(statement)
    assert db.rows("select action, object_id from llm.audit_log order by id") == [
        ("alter table", "public.plain"), ("drop trigger", "trigger llm_audit_update on public.plain"),
        ("drop table", "trigger llm_audit_truncate on public.plain"),
    ]  # fmt: skip


def test_owners_audit_their_tables_if_they_are_administrators(db: Client, admin: Client) -> None:
    db.run("grant create on schema public to admin").run("create table public.foreign_table (id int primary key)")
    admin.run("create table public.plain (id int primary key)").run("select llm.audit_table('public.plain')").run(
        "insert into public.plain values (1)"
    )
    assert changes(db, "object_id, login_role") == [("1", "admin")]
    with pytest.raises(errors.InsufficientPrivilege):
        admin.run("select llm.audit_table('public.foreign_table')")
    assert admin.one("select llm.unaudit_table('public.plain')") is True


def test_auditing_comes_back_with_the_extension(plain: Client, db: Client) -> None:
    db.run("select llm.audit_table('public.plain', p_mask => '{v}')").run("set client_min_messages = error")
    db.run("drop extension pg_llm cascade").run("insert into public.plain values (1, 'unseen')").run("create extension pg_llm")
    db.run("select llm.setup()").run("insert into public.plain values (2, 'seen')")
    assert changes(db) == [("insert", "2", None, {"id": 2, "v": "***"})]


def test_many_rows_are_audited_in_bounded_memory(plain: Client, db: Client) -> None:
    db.run("insert into public.plain select i, repeat('x', 100) from generate_series(1, 100000) i").run("update public.plain set v = v || 'y'")
    assert db.one("select count(*) from llm.audit_log where action = 'update' and before ->> 'id' = after ->> 'id'") == 100_000

"""The audit log: what is written, by whom, what can be read of it and by whom."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from tests.support import Client, Database, raises

LOG = "select llm.log_audit_event(%s, %s, %s)"
EVENT = ("create", "document", "7")


@pytest.fixture
def auditor(database: Database) -> Client:
    """An examiner's client, without a tenant."""
    return database.client("auditor")


def events(client: Client, columns: str = "action, object_type, object_id", arguments: str = "") -> list[tuple[Any, ...]]:
    """Return the events that a client may read, oldest first."""
    return client.rows(f"select {columns} from llm.get_audit_logs({arguments}) order by id")


def test_an_event_tells_who_did_what_for_whom_and_from_where(app: Client, auditor: Client) -> None:
    app.run("set application_name = 'the assistant'")
    with app.tenant("acme"):
        app.run(
            "select llm.log_audit_event('update', 'document', '7', %s, 'ann', %s, p_before => '{\"title\": 1}', p_after => '{\"title\": 2}')",
            Jsonb({"reason": "typo"}),
            Jsonb({"browser": "Firefox"}),
        )
    (event,) = auditor.rows("""
        select tenant_id, user_id, login_role, action, object_type, object_id, details, client_info, before, after, application, is_sensitive,
            "timestamp" between now() - interval '1 minute' and clock_timestamp()
        from llm.get_audit_logs()
        """)
    assert event == (
        "acme", "ann", "app", "update", "document", "7", {"reason": "typo"}, {"browser": "Firefox"}, {"title": 1}, {"title": 2}, "the assistant",
        False, True,
    )  # fmt: skip


def test_without_a_user_or_a_tenant_the_login_role_did_it_for_nobody(app: Client, auditor: Client) -> None:
    app.run(LOG, *EVENT).run("select llm.log_audit_event('a', 'b', 'c', p_user_id => null)")
    assert events(auditor, "tenant_id, user_id") == [("*", "app")] * 2


def test_a_bound_role_writes_for_its_tenant_whatever_it_sets(admin: Client, app: Client, auditor: Client, database: Database) -> None:
    admin.run("select llm.bind_role('app', 'acme')").run("select llm.bind_role('reader', 'globex')")
    app.run(LOG, *EVENT)
    superuser = database.client().run("grant llm_app to reader").run("set role reader").run(LOG, *EVENT)
    superuser.run("reset role").run("revoke llm_app from reader")
    assert events(auditor, "tenant_id, login_role") == [("acme", "app"), ("globex", "postgres")]


def test_a_tenant_of_the_session_is_refused(app: Client) -> None:
    app.run("set llm.tenant = 'acme'")
    with raises(errors.ObjectNotInPrerequisiteState, "was not set by llm.set_tenant"):
        app.run(LOG, *EVENT)


@pytest.mark.parametrize(
    ("event", "what"), [((None, "b", "c"), "an action"), (("a", None, "c"), "the type of its object"), (("a", "b", None), "its object")]
)
def test_an_event_without_its_parts_is_refused(app: Client, event: tuple[str | None, ...], what: str) -> None:
    with raises(errors.InvalidParameterValue, f"an event without {what}$", hint="who did what to which object"):
        app.run(LOG, *event)


def test_an_event_is_undone_with_what_it_tells_of(app: Client, auditor: Client) -> None:
    with pytest.raises(ZeroDivisionError), app.tenant("acme"):
        app.run(LOG, *EVENT)
        raise ZeroDivisionError
    assert events(auditor) == []


def test_text_that_cannot_be_stored_is_stored_when_it_is_cleaned(app: Client, auditor: Client) -> None:
    with raises(errors.UntranslatableCharacter, "unsupported Unicode escape sequence"):
        app.run("select llm.log_audit_event('a', 'b', 'c', '{\"k\": \"\\u0000\"}')")
    app.run(
        "select llm.log_audit_event('a', 'b', llm.clean_text(%s), llm.clean_jsonb(%s))",
        b"nul \x00, bad \xff",
        '{"nul": "\\u0000", "lone": "\\ud800"}',
    )
    assert events(auditor, "object_id, details") == [("nul \u241b0000, bad \u241bDCFF", {"nul": "\u241b0000", "lone": "\u241bD800"})]


# Many at once

MANY = [
    {"action": "a", "object_type": "b", "object_id": "1", "user_id": "ann", "details": {"n": 1}, "client_info": {"ip": "::1"}},
    {"action": "a", "object_type": "b", "object_id": "2", "before": [1], "after": None},
    {"action": "", "object_type": "", "object_id": ""},
]


def test_a_batch_is_written_in_its_order(app: Client, auditor: Client) -> None:
    with app.tenant("acme"):
        assert app.one("select llm.log_audit_events(%s)", Jsonb(MANY)) == 3
        assert app.one("select llm.log_audit_events('[]')") == 0
    assert events(auditor, "tenant_id, object_id, user_id, details, client_info, before, login_role, after is null") == [
        ("acme", "1", "ann", {"n": 1}, {"ip": "::1"}, None, "app", True), ("acme", "2", "app", None, None, [1], "app", True),
        ("acme", "", "app", None, None, None, "app", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "batch",
    [
        None,
        "null",
        "{}",
        "1",
        "[1]",
        '["a"]',
        "[null]",
        "[[]]",
        '[[{"action": "a", "object_type": "b", "object_id": "c"}]]',
        '[{"action": "a", "object_type": "b"}]',
        '[{"action": "a", "object_type": "b", "object_id": null}]',
    ],
)
def test_a_batch_of_anything_else_is_refused_as_a_whole(app: Client, db: Client, batch: str | None) -> None:
    with raises(errors.InvalidParameterValue, "these are not events: ", hint="an array of objects"):
        app.run("select llm.log_audit_events(%s)", batch)
    assert db.one("select count(*) from llm.audit_log") == 0


def copy(client: Client, rows: list[tuple[object, ...]], columns: str = "action, object_type, object_id, details") -> None:
    """Bring events by COPY."""
    with client.connection.cursor() as cursor, cursor.copy(f"copy llm.audit_events ({columns}) from stdin") as stream:
        for row in rows:
            stream.write_row(row)


def test_events_are_brought_by_copy(app: Client, auditor: Client, db: Client) -> None:
    with app.tenant("acme"):
        copy(app, [("a", "b", str(number), Jsonb(number)) for number in range(1000)])
        app.run("insert into llm.audit_events (action, object_type, object_id, user_id) values ('a', 'b', 'last', 'ann')")
    db.run("set session_replication_role = replica").run("insert into llm.audit_events (action, object_type, object_id) values ('x', 'y', 'z')")
    found = auditor.rows("select tenant_id, user_id, object_id, details from llm.get_audit_logs(p_limit => 2000) order by id")
    assert found[:1000] == [("acme", "app", str(number), number) for number in range(1000)]
    assert found[1000:] == [("acme", "ann", "last", None), ("*", "postgres", "z", None)]
    assert db.one("select count(*) from llm.audit_events") == 0


def test_a_copy_that_lacks_something_is_refused_as_a_whole(app: Client, db: Client) -> None:
    with raises(errors.InvalidParameterValue, "an event without action, object_type or object_id", hint="three columns"):
        copy(app, [("a", "b", "c", None), ("a", "b", None, None)])
    assert db.one("select count(*) from llm.audit_log") == 0


@pytest.mark.parametrize("column", ["position", "tenant_id", "timestamp", "transaction_id", "login_role", "id"])
def test_what_is_not_a_writers_to_say_is_not_taken(app: Client, column: str) -> None:
    """AUD-14: not by COPY, nor by INSERT."""
    with pytest.raises((errors.InsufficientPrivilege, errors.UndefinedColumn)):
        copy(app, [("1", "b", "c", "1")], f'action, object_type, object_id, "{column}"')
    with pytest.raises((errors.InsufficientPrivilege, errors.UndefinedColumn)):
        app.run(f'insert into llm.audit_events (action, object_type, object_id, "{column}") values (\'a\', \'b\', \'c\', null)')


# Who reads


def test_aud_14_a_writer_reads_nothing_and_learns_no_ids(app: Client) -> None:
    """AUD-14"""
    with app.tenant("acme"):
        assert app.one(LOG, *EVENT) == ""
    copy(app, [("a", "b", "c", None)])
    for attempt in (
        "select * from llm.audit_log", "select count(*) from llm.audit_log", "select * from llm.audit_events", "select * from llm.sensitive_log",
        "insert into llm.audit_events (action, object_type, object_id) values ('a', 'b', 'c') returning position",
        "insert into llm.audit_events (action, object_type, object_id) values ('a', 'b', 'c') returning 1, action",
        "insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id) values ('acme', 'a', 'b', 'c', 'd')",
        "select lastval()", "select currval('llm.audit_log_id_seq')", "select last_value from llm.audit_log_id_seq",
        "select pg_sequence_last_value('llm.audit_log_id_seq'::regclass)",
        "select nextval('llm.audit_events_position_seq')", "select * from llm.get_audit_logs()", "select llm.read_sensitive_log(1, 'curious')",
    ):  # fmt: skip
        with raises(errors.InsufficientPrivilege, "permission denied for"):
            app.run(attempt)
    assert app.one("select max(last_value) from pg_sequences where schemaname = 'llm' and sequencename like '%%audit%%'") is None


@pytest.mark.parametrize("user", ["reader", "nobody"])
def test_who_may_not_write_writes_nothing(database: Database, user: str) -> None:
    with raises(errors.InsufficientPrivilege, "permission denied for"):
        database.client(user).run(LOG, *EVENT)
    with raises(errors.InsufficientPrivilege, "permission denied for"):
        copy(database.client(user), [("a", "b", "c", None)])


@pytest.fixture
def three_tenants(app: Client) -> Client:
    """An application's client, after an event of each of three tenants and one of nobody."""
    for tenant in ("acme", "globex", "initech"):
        with app.tenant(tenant):
            app.run(LOG, "a", "b", tenant)
    return app.run(LOG, "a", "b", "nobody")


@pytest.mark.parametrize("user", ["auditor", "admin", "postgres"])
def test_an_examiner_sees_the_tenant_he_works_for_or_all(three_tenants: Client, database: Database, user: str) -> None:
    examiner = database.client(user)
    assert [event[0] for event in events(examiner, "object_id")] == ["acme", "globex", "initech", "nobody"]
    with examiner.tenant("globex"):
        assert events(examiner, "object_id") == [("globex",)]
        if user != "postgres":
            assert examiner.column("select object_id from llm.audit_log") == ["globex"]


def test_a_bound_examiner_sees_his_tenant_only(three_tenants: Client, admin: Client, auditor: Client) -> None:
    admin.run("select llm.bind_role('auditor', 'acme')")
    assert events(auditor, "object_id") == [("acme",)]
    assert auditor.column("select object_id from llm.audit_log") == ["acme"]
    with raises(errors.InsufficientPrivilege, "works for tenant acme only"):
        auditor.run("select llm.set_tenant('globex')")


def test_filters_are_combined(app: Client, auditor: Client) -> None:
    for number in range(8):
        app.run(
            "select llm.log_audit_event(%s, %s, %s, p_user_id => %s)", "ab"[number % 2], "xy"[number // 2 % 2], str(number // 4), "uv"[number // 4]
        )
    for arguments, expected in (
        ("p_action => 'a'", 4), ("p_action => 'a', p_object_type => 'x'", 2), ("'u', p_action => 'a', p_object_type => 'x'", 1),
        ("p_object_id => '1'", 4), ("'v', p_object_id => '0'", 0), ("p_from => now() + interval '1 hour'", 0),
        ("p_to => now() - interval '1 hour'", 0),
        ("p_from => now() - interval '1 hour', p_to => now() + interval '1 hour'", 8), ("p_limit => 3", 3), ("p_limit => 0", 0),
    ):  # fmt: skip
        assert len(events(auditor, arguments=arguments)) == expected, arguments


def test_pages_follow_each_other_without_gap_or_overlap(app: Client, db: Client, auditor: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.log_audit_events(%s)", Jsonb([{"action": "a", "object_type": "b", "object_id": str(n)} for n in range(57)]))
    # Two rows at the same moment, and one in another month.
    db.run("""
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, "timestamp")
        select 'acme', 'u', 'a', 'b', 'early', now() - i / 2 * interval '20 days' from generate_series(0, 3) i
        """)
    for tenant in ("acme", None):
        with auditor.transaction():
            if tenant:
                auditor.run("select llm.set_tenant(%s)", tenant)
            pages: list[int] = []
            for _ in range(8):
                pages += auditor.column("select id from llm.get_audit_logs(p_limit => 10, p_before_id => %s)", pages[-1] if pages else None)
        assert pages == db.column('select id from llm.audit_log order by "timestamp" desc, id desc')
    with raises(errors.NoDataFound, "audit event 4711 does not exist", hint="without p_before_id"):
        events(auditor, arguments="p_before_id => 4711")


def test_a_page_begins_at_no_event_of_another_tenant(three_tenants: Client, auditor: Client, db: Client) -> None:
    other = db.one("select id from llm.audit_log where tenant_id = 'globex'")
    with auditor.tenant("acme"), raises(errors.NoDataFound, f"audit event {other} does not exist"):
        events(auditor, arguments=f"p_before_id => {other}")


# What there is a word for


def test_authentication_and_security_have_words_of_their_own(app: Client, auditor: Client) -> None:
    """S001-331 to S001-334."""
    app.run("select llm.log_authentication_event('login', 'ann', '{\"method\": \"passkey\"}', '{\"ip\": \"::1\"}')")
    app.run("select llm.log_authentication_event('logout', 'ann'), llm.log_authentication_event('login_failed', 'bob')")
    app.run("select llm.log_security_event('api_key_used', 'api_key', 'k-1', p_user_id => 'ann')")
    app.run("select llm.log_authentication_event('mfa_failed', 'bob'), llm.log_security_event('workflow_finished', 'workflow', 'w-1')")
    assert events(auditor, "user_id, action, object_type, object_id") == [
        ("ann", "login", "authentication", "ann"), ("ann", "logout", "authentication", "ann"), ("bob", "login_failed", "authentication", "bob"),
        ("ann", "api_key_used", "api_key", "k-1"), ("bob", "mfa_failed", "authentication", "bob"), ("app", "workflow_finished", "workflow", "w-1"),
    ]  # fmt: skip
    for statement in ("select llm.log_authentication_event('loggin', 'ann')", "select llm.log_security_event('', 'a', 'b')"):
        with raises(errors.InvalidTextRepresentation, "invalid input value for enum"):
            app.run(statement)


def test_a_read_only_transaction_reads_and_does_not_write(db: Client) -> None:
    db.run(LOG, *EVENT).run("begin read only")
    assert len(events(db)) == 1
    with raises(errors.ReadOnlySqlTransaction, "read-only transaction"):
        db.run(LOG, *EVENT)


def test_an_event_is_where_its_plan_looks_for_it(app: Client, db: Client) -> None:
    """The newest of a tenant come from the end of its key; a user and an object from summaries."""
    with app.tenant("acme"):
        app.run("select llm.log_audit_events(%s)", json.dumps([{"action": "a", "object_type": "b", "object_id": str(n)} for n in range(2000)]))
    db.run("vacuum analyze llm.audit_log").run("set enable_seqscan = off")
    newest = """select * from llm.audit_log where tenant_id = 'acme' order by "timestamp" desc, id desc limit 5"""
    assert "Index Scan Backward using audit_log_" in str(db.column(f"explain {newest}"))
    for condition in ("object_id = '5'", "user_id = 'nobody'"):
        plan = str(db.column(f"explain select * from llm.audit_log where {condition}"))
        assert re.search("Bitmap Index Scan on audit_log_p[0-9]+_timestamp_id_user_id_action_object_id_idx", plan), condition


def test_aud_11_writing_an_event_takes_no_lock_that_another_writer_waits_for(database: Database) -> None:
    """AUD-11: many transactions write at the same time, none of them committed."""
    clients = database.clients(20, "app")
    for client in clients:
        client.run("set statement_timeout = '10s'").run("begin").run("select llm.set_tenant('acme')").run(LOG, *EVENT)
        client.run("select llm.log_audit_events(%s)", Jsonb(MANY))
        copy(client, [("a", "b", "c", None)])
    modes = database.client().column("""
        select distinct mode from pg_locks l join pg_class c on c.oid = l.relation
        where c.relnamespace = 'llm'::regnamespace and c.relname like '%%audit%%' and l.mode not like '%%Share%%'
        """)
    assert modes == ["RowExclusiveLock"]
    for client in clients:
        client.run("commit")
    assert database.client().one("select count(*) from llm.audit_log") == 20 * 5

"""A user is forgotten: in every table that is registered, and looked for in all others."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import ForeignKeyViolation, InsufficientPrivilege, InvalidParameterValue, ProgramLimitExceeded
from psycopg.types.json import Jsonb

from tests.support import Client, Database, raises

ANNE, BOB = UUID(int=1 << 100), UUID(int=2 << 100)
TENANTS = ("acme", "globex")

FORGET = "select relation, action, rows, residual, columns from llm.forget_user(%s)"

#: Everything that tests put in for a user, besides what pg_llm itself holds.
_APPLICATION = """
    create table public.notes (
        tenant_id text, note_id bigint, author uuid, approved_by text, text text, primary key (tenant_id, note_id)
    );
    create table public.remarks (
        tenant_id text, remark_id bigint, note_id bigint, text text, primary key (tenant_id, remark_id),
        foreign key (tenant_id, note_id) references public.notes on delete cascade
    );
    create table public.likes (
        tenant_id text, remark_id bigint, foreign key (tenant_id, remark_id) references public.remarks on delete cascade
    );
    select llm.register_personal_data('public.likes', null, 'delete', p_via => 'public.remarks');
    select llm.register_personal_data('public.remarks', null, 'delete', p_via => 'public.notes');
    select llm.register_personal_data('public.notes', 'author', 'delete');
    select llm.register_personal_data('public.notes', 'approved_by', 'anonymize');
"""


@pytest.fixture
def admin(database: Database, master_key: Path) -> Client:
    """An administrator's client, after two users of two tenants have left something in every kind of table."""
    db = database.client()
    for statement in _APPLICATION.split(";\n"):
        db.run(statement) if statement.strip() else None
    app = database.client("app")
    for tenant, user in product(TENANTS, (ANNE, BOB)):
        with app.tenant(tenant):
            for value in ("Oslo", "Bergen"):
                app.run("select llm.remember('user', %s, 'lives in', %s)", str(user), Jsonb(value))
            app.run("select llm.remember('agent', 'helper', 'met', %s, p_user_id => %s, p_many => true)", Jsonb(f"somebody {user}"), user)
            app.run("select llm.log_tool_call('t', '{}', p_user_id => %s)", user)
            app.run("select llm.log_audit_event('login', 'user', %s, p_user_id => %s, p_sensitive => 'secret')", str(user), str(user))
        number = user.int >> 100
        db.run("insert into llm.users (tenant_id, user_id, username) values (%s, %s, %s)", tenant, user, f"user {number}")
        with app.tenant(tenant):
            conversation = app.one("select llm.create_conversation(p_user_id => %s)", user)
            for role in ("user", "assistant"):
                app.run("select llm.append_message(%s, %s, 'hello')", conversation, role)
        db.run(
            "insert into public.notes values (%s, %s, %s, null, 'x'), (%s, %s, null, %s, 'y')", tenant, number, user, tenant, number + 10, str(user)
        )
        db.run("insert into public.remarks select %s, %s * 10 + n, %s, 'r' from generate_series(1, 3) n", tenant, number, number)
        db.run("insert into public.likes values (%s, %s)", tenant, number * 10 + 1)
    return database.client("admin")


@pytest.fixture
def everything(database: Database) -> Callable[[], dict[str, list[str]]]:
    """Return all rows of all tables, but of logs that only grow, by table."""
    db = database.client()
    tables = "select oid::regclass::text from pg_class where relkind in ('r', 'p') and relnamespace::regnamespace::text in ('llm', 'public')"
    left_out = {"llm.audit_log", "llm.sensitive_log", "llm.schema_migrations"}

    def read() -> dict[str, list[str]]:
        return {table: db.column(f"select t::text from {table} t order by 1") for table in db.column(tables) if not table.startswith(tuple(left_out))}

    return read


def test_the_receipt_tells_what_became_of_each_table(admin: Client, db: Client) -> None:
    counts = {
        (relation, action): db.one(f"select count(*) from {relation} where tenant_id = 'acme' and {column}::text = %s", str(ANNE))
        for relation, column, action in db.rows(
            "select relation, user_column, action from llm.personal_data where user_column <> '' and relation <> 'llm.audit_events'"
        )
    }
    expected = counts | {("public.remarks", "delete"): 3, ("public.likes", "delete"): 1, ("llm.message_queue", "delete"): 1}
    held = {
        ("llm.memories", "delete"): 4, ("llm.tool_calls", "delete"): 1, ("llm.users", "delete"): 1, ("llm.personal_keys", "shred"): 1,
        ("llm.audit_log", "keep"): 1, ("public.notes", "delete"): 1, ("public.notes", "anonymize"): 1, ("llm.conversations", "delete"): 1,
        ("llm.messages", "delete"): 2,
    }  # fmt: skip
    assert held.items() <= counts.items()
    with admin.tenant("acme"):
        plan = admin.rows(FORGET.replace("%s", "%s, p_dry_run => true"), ANNE)
        receipt = admin.rows(FORGET, ANNE)
    for told in (plan, receipt):
        assert {row[:2]: row[2] for row in told if row[2]} == {place: count for place, count in expected.items() if count}
        assert {row[3] for row in told} == {0}


def test_what_is_forgotten_is_gone_and_nothing_else(admin: Client, everything: Callable[[], dict[str, list[str]]]) -> None:
    before = everything()
    with admin.tenant("acme"):
        admin.run(FORGET, ANNE)
    after = everything()
    gone = {table: set(before[table]) - set(after[table]) for table in before}
    assert all("globex" not in row and str(BOB) not in row for rows in gone.values() for row in rows), gone
    new = {table: set(after[table]) - set(before[table]) for table in before}
    assert {table for table, rows in new.items() if rows} == {"notes", "llm.key_events"}
    assert new["notes"] == {"(acme,11,,,y)"}
    assert not any(str(ANNE) in row and "acme" in row for rows in after.values() for row in rows)


def test_a_dry_run_changes_nothing(admin: Client, db: Client, everything: Callable[[], dict[str, list[str]]]) -> None:
    before, events = everything(), db.one("select count(*) from llm.audit_log")
    with admin.tenant("acme"):
        assert len(admin.rows("select * from llm.forget_user(%s, p_dry_run => true)", ANNE)) > 5
    assert (everything(), db.one("select count(*) from llm.audit_log")) == (before, events)


def test_a_rollback_leaves_everything(admin: Client, database: Database, db: Client, everything: Callable[[], dict[str, list[str]]]) -> None:
    before = everything()
    with pytest.raises(ZeroDivisionError), admin.tenant("acme"):
        admin.run(FORGET, ANNE)
        raise ZeroDivisionError
    assert everything() == before
    event = db.one("select id from llm.audit_log where user_id = %s and tenant_id = 'acme'", str(ANNE))
    with database.client("auditor").tenant("acme") as auditor:
        assert auditor.one("select llm.read_sensitive_log(%s, 'test')", event) == "secret"


def test_sensitive_details_become_unreadable(admin: Client, database: Database, db: Client) -> None:
    events = dict(db.rows("select tenant_id || user_id, id from llm.audit_log where action = 'login'"))
    with admin.tenant("acme"):
        admin.run(FORGET, ANNE)
    auditor = database.client("auditor")
    read = "select llm.read_sensitive_log(%s, 'test')"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState), auditor.tenant("acme"):
        auditor.run(read, events[f"acme{ANNE}"])
    for tenant, user in (("acme", BOB), ("globex", ANNE), ("globex", BOB)):
        with auditor.tenant(tenant):
            assert auditor.one(read, events[f"{tenant}{user}"]) == "secret"


def test_the_audit_log_has_the_receipt(admin: Client) -> None:
    with admin.tenant("acme"):
        receipt = admin.rows("select relation, action, rows from llm.forget_user(%s, 'asked for on Monday')", ANNE)
        event = admin.row("select user_id, object_id, details from llm.get_audit_logs(p_action => 'user_forgotten')")
    assert event[:2] == ("admin", str(ANNE))
    details = event[2]
    assert (details["reason"], details["residual"], details["rows"]) == ("asked for on Monday", 0, sum(row[2] for row in receipt if row[1] != "keep"))
    assert {(table["relation"], table["action"], table["rows"]) for table in details["tables"]} == {row for row in receipt if row[2]}


def test_what_nobody_registered_is_found(admin: Client, db: Client) -> None:
    """A planted table: by UUID, in JSON, in text in capitals and without hyphens, and by name."""
    db.run("create table llm.planted (id bigint primary key, who uuid, tags uuid[], doc jsonb, words text[], line text)").run(
        "alter table llm.planted owner to llm_owner"
    )
    plain = str(ANNE).replace("-", "").upper()
    db.run(
        "insert into llm.planted values (1, %s, null, null, null, 'a'), (2, null, %s, %s, null, %s)",
        ANNE,
        [ANNE],
        Jsonb({"a": [str(ANNE)]}),
        f"<{plain}>",
    )
    db.run("insert into llm.planted values (3, %s, null, null, %s, 'ask ANNE LARSEN'), (4, null, null, null, null, null)", BOB, [str(BOB)])
    with admin.tenant("acme"):
        receipt = {row[0]: row[1:] for row in admin.rows(FORGET, ANNE)}
        assert receipt["llm.planted"] == (None, 0, 2, ["doc", "line", "tags", "who"])
        also = admin.rows("select residual, columns from llm.forget_user(%s, p_also => '{Anne Larsen, a}') where relation = 'llm.planted'", ANNE)
        assert also == [(3, ["doc", "line", "tags", "who"])]
        assert admin.rows(FORGET, UUID(int=3)) != []
        assert "llm.planted" not in {row[0] for row in admin.rows(FORGET, UUID(int=3)) if row[3]}


def test_what_a_registered_table_holds_elsewhere_is_found(admin: Client, database: Database) -> None:
    with database.client("app").tenant("acme") as app:
        app.run("select llm.remember('agent', 'helper', 'friend of', %s, p_user_id => %s)", Jsonb(f"see {ANNE}"), BOB)
        app.run("select llm.remember('agent', 'helper', 'friend of a friend', %s)", Jsonb(f"see {ANNE}"))
    with admin.tenant("acme"):
        receipt = {row[0]: row[1:] for row in admin.rows(FORGET, ANNE)}
    assert receipt["llm.memories"] == ("delete", 4, 2, ["content", "value"])


def put_checkpoint(app: Client, thread: str, **values: bytes) -> None:
    """Put a checkpoint with these values, and one of them as a pending write, too."""
    channels = {name: ["bytes", None, None, "", 0, place, None] for place, name in enumerate(values, 1)}
    channels["little"] = ["bytes", b64encode(f"{thread} little".encode()).decode()]
    app.run(
        "select llm.put_checkpoint(%s, '', '1', null, %s, %s, %s, %s)",
        thread, Jsonb({"v": 4}), Jsonb({"note": f"{thread} about"}), Jsonb(channels), list(values.values()),
    )  # fmt: skip
    contents = [values["own"], f"{thread} written".encode()]
    app.run("select llm.put_checkpoint_writes(%s, '', '1', 'task', '', '{0,1}', '{own,b}', '{bytes,bytes}', %s)", thread, contents)


@pytest.fixture
def threads(admin: Client, database: Database) -> dict[str, list[bytes]]:
    """The values of three threads, which have one in common: of Anne, of Bob, and of nobody, where Anne's name is."""
    app = database.client("app")
    shared = b"a document of all of them. " * 200
    found: dict[str, list[bytes]] = {}
    for thread, user in (("canary", ANNE), ("sparrow", BOB), ("nobody's", None)):
        with app.tenant("acme"):
            app.run("select llm.set_user(%s)", user)
            put_checkpoint(app, thread, brief=thread.encode() * 50, own=f"{thread} of Anne Larsen, ".encode() * 200, shared=shared)
            found[thread] = app.one("select contents from llm.get_checkpoint(%s)", thread)
    return found


def test_checkpoints_are_forgotten_and_what_they_share_stays(
    admin: Client, database: Database, db: Client, threads: dict[str, list[bytes]], everything: Callable[[], dict[str, list[str]]]
) -> None:
    with admin.tenant("acme"):
        plan = {row[0]: row[1:3] for row in admin.rows(FORGET.replace("%s", "%s, p_dry_run => true"), ANNE)}
        receipt = {row[0]: row[1:3] for row in admin.rows(FORGET, ANNE)}
    assert {table: told for table, told in receipt.items() if "checkpoint" in table} == {
        "llm.checkpoint_threads": ("delete", 1), "llm.checkpoints": ("delete", 1), "llm.checkpoint_pieces": ("delete", 3),
        "llm.checkpoint_writes": ("delete", 2), "llm.checkpoint_blobs": ("release", 1),
    }  # fmt: skip
    assert receipt == plan
    forms = ("canary", b"canary".hex(), b64encode(b"canary little").decode())
    left = everything()
    assert [row for rows in left.values() for row in rows if any(form in row for form in forms)] == []
    assert any(b"sparrow".hex() in row for row in left["llm.checkpoint_blobs"])
    app = database.client("app")
    with app.tenant("acme"):
        assert app.rows("select from llm.get_checkpoint('canary')") == []
        for thread in ("sparrow", "nobody's"):
            assert app.one("select contents from llm.get_checkpoint(%s)", thread) == threads[thread]
    assert db.rows("select * from llm.verify_checkpoints()") == []


def test_what_only_his_rows_refer_to_is_released(admin: Client, db: Client) -> None:
    db.run("create table public.files (name text primary key, body text)")
    db.run("create table public.links (file text references public.files, note_id bigint, tenant_id text)")
    db.run("alter table public.links add foreign key (tenant_id, note_id) references public.notes on delete cascade")
    db.run("create table public.covers (file text references public.files)")
    db.run("insert into public.files select name, name from unnest('{his,twice,shared,cover,nobody''s}'::text[]) name")
    db.run("insert into public.links values ('his', 1, 'acme'), ('twice', 1, 'acme'), ('twice', 1, 'acme'), ('shared', 1, 'acme')")
    db.run("insert into public.links values ('shared', 2, 'acme'), ('cover', 1, 'acme')")
    db.run("insert into public.covers values ('cover')")
    db.run("select llm.register_personal_data('public.links', null, 'delete', p_via => 'public.notes')")
    db.run("select llm.register_personal_data('public.files', null, 'release')")
    with admin.tenant("acme"):
        for arguments in ("%s, p_dry_run => true", "%s"):
            receipt = {row[0]: row[1:3] for row in admin.rows(FORGET.replace("%s", arguments), ANNE)}
            assert receipt["public.files"] == ("release", 2)
        assert {row[0]: row[1:3] for row in admin.rows(FORGET, ANNE)}["public.files"] == ("release", 0)
    assert db.column("select name from public.files order by name") == ["cover", "nobody's", "shared"]


def test_bytes_are_searched_as_they_are_written(admin: Client, threads: dict[str, list[bytes]]) -> None:
    search = "select relation, residual, columns from llm.forget_user(%s, p_dry_run => %s, p_also => %s) where residual > 0"
    with admin.tenant("acme"):
        assert admin.rows(search, ANNE, True, ["anne larsen"]) == []
        assert admin.rows(search, ANNE, False, ["Anne Larsen"]) == [("llm.checkpoint_blobs", 2, ["content"])]


def test_who_puts_a_checkpoint_meanwhile_waits_and_begins_anew(
    admin: Client, database: Database, threads: dict[str, list[bytes]], db: Client
) -> None:
    app = database.client("app")

    def put_late() -> None:
        with app.tenant("acme"):
            app.run("select llm.set_user(%s)", ANNE)
            app.run("select llm.put_checkpoint('canary', '', '2', '1', '{}', '{}', '{}', '{}', '{}')")

    with ThreadPoolExecutor(1) as pool:
        with admin.tenant("acme"):
            admin.run(FORGET, ANNE)
            late = pool.submit(put_late)
            while db.one("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()") == 0:
                assert not late.done()
        late.result()
    assert db.column("select checkpoint_id from llm.checkpoints c join llm.checkpoint_threads t using (thread_no) where thread_id = 'canary'") == [
        "2"
    ]
    assert db.rows("select * from llm.verify_checkpoints()") == []


def test_a_user_of_another_tenant_or_nobody_is_not_found(admin: Client, everything: Callable[[], dict[str, list[str]]]) -> None:
    """RLS-04"""
    before = everything()
    with admin.tenant("initech"):
        assert {row[2:4] for row in admin.rows(FORGET, ANNE)} == {(0, 0)}
    assert everything() == before


def test_it_is_said_who_is_forgotten(admin: Client, database: Database) -> None:
    with raises(InvalidParameterValue, match="no tenant whose user is given to forget", hint="llm.set_tenant"):
        admin.run(FORGET, ANNE)
    with raises(InvalidParameterValue, match="no user is given to forget"), admin.tenant("acme"):
        admin.run(FORGET, None)
    with raises(InsufficientPrivilege, match="this transaction works for another user", hint="llm.set_user"), admin.tenant("acme"):
        admin.run("select llm.set_user(%s)", BOB)
        admin.run(FORGET, ANNE)
    for user in ("app", "reader", "auditor"):
        with raises(InsufficientPrivilege, match="forget_user"):
            database.client(user).run(FORGET, ANNE)


def test_a_user_may_be_forgotten_as_himself(admin: Client) -> None:
    with admin.tenant("acme"):
        admin.run("select llm.set_user(%s)", ANNE)
        assert ("llm.memories", "delete", 4) in {row[:3] for row in admin.rows(FORGET, ANNE)}


def test_who_adds_rows_meanwhile_waits_and_fails(admin: Client, db: Client, database: Database) -> None:
    """A row that refers to the user's cannot slip in between deletion and commit."""
    app = database.client()
    app.run("set lock_timeout = '200ms'")
    with admin.tenant("acme"):
        admin.run(FORGET, ANNE)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            app.run("insert into public.remarks values ('acme', 999, 1, 'late')")
    with pytest.raises(ForeignKeyViolation):
        app.run("insert into public.remarks values ('acme', 999, 1, 'late')")


def test_tables_in_a_circle_lead_to_no_user(db: Client, database: Database) -> None:
    db.run("create table public.a (id bigint primary key, b bigint)").run(
        "create table public.b (id bigint primary key, a bigint references public.a)"
    )
    db.run("alter table public.a add foreign key (b) references public.b")
    db.run("select llm.register_personal_data('public.a', null, 'delete', p_via => 'public.b')")
    db.run("select llm.register_personal_data('public.b', null, 'delete', p_via => 'public.a')")
    with (
        raises(ProgramLimitExceeded, match="lead to no user", hint="column that holds the user's id"),
        database.client("admin").tenant("acme") as admin,
    ):
        admin.run(FORGET, ANNE)


def test_the_doctor_reports_what_is_not_registered(db: Client) -> None:
    check = "select ok, detail from llm.doctor() where name = 'personal data is registered'"
    assert db.row(check) == (True, "every table with a user_id, and what refers to one")
    db.run("create table llm.planted (user_id uuid)").run("create table public.hanging (t text, u uuid, foreign key (t, u) references llm.users)")
    db.run("insert into llm.personal_data values ('llm.gone', 'user_id', '', 'delete')")
    ok, detail = db.row(check)
    assert not ok
    assert set(detail.split(", ")) == {"llm.planted has a user_id", "public.hanging refers to llm.users", "llm.gone is registered and not there"}


def test_rows_that_llm_owner_would_not_see_are_not_registered(db: Client) -> None:
    db.run("create table public.hidden (user_id uuid)").run("alter table public.hidden enable row level security")
    with raises(InsufficientPrivilege, match="row-level security hides the rows of public.hidden from llm_owner", hint="Create a policy"):
        db.run("select llm.register_personal_data('public.hidden', 'user_id', 'delete')")
    db.run("create policy seen on public.hidden to llm_owner using (true)")
    db.run("select llm.register_personal_data('public.hidden', 'user_id', 'delete')")


def rows_of(receipt: list[tuple[Any, ...]]) -> int:
    """Return how many rows a receipt tells of."""
    return sum(row[2] for row in receipt)


def test_forgetting_again_finds_nothing(admin: Client) -> None:
    with admin.tenant("acme"):
        assert rows_of(admin.rows(FORGET, ANNE)) > 10
    with admin.tenant("acme"):
        assert [row[:3] for row in admin.rows(FORGET, ANNE) if row[2] or row[3]] == [("llm.audit_log", "keep", 1)]

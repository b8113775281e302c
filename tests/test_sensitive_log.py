"""Sensitive details of audit events: encrypted, read for a purpose, and not unseen."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from tests.support import Client, Database, raises

DETAILS = "the account 4711-0815 was overdrawn \N{LATIN SMALL LETTER U WITH DIAERESIS}"
LOG = "select llm.log_audit_event('pay', 'account', '7', p_user_id => 'ann', p_sensitive => %s)"

pytestmark = pytest.mark.usefixtures("master_key")


@pytest.fixture
def event(app: Client, db: Client) -> int:
    """An event of tenant acme with sensitive details: its id."""
    with app.tenant("acme"):
        app.run(LOG, DETAILS)
    return int(db.one("select id from llm.audit_log"))


def test_sensitive_details_are_stored_encrypted_and_bound_to_their_event(event: int, db: Client) -> None:
    """The hash of the row covers the ciphertext, so that shredding its key leaves every proof valid."""
    tenant, log_id, ciphertext, level = db.row("select tenant_id, audit_log_id, encrypted_details, access_level from llm.sensitive_log")
    assert (tenant, log_id, level) == ("acme", event, "llm_auditor")
    assert b"4711" not in ciphertext
    assert db.one("select sensitive_hash from llm.audit_log") == sha256(ciphertext).digest()
    assert db.one('select audit_timestamp from llm.sensitive_log') == db.one('select "timestamp" from llm.audit_log')
    assert "4711" not in str(db.rows("select * from llm.audit_log"))
    assert db.one("select is_sensitive from llm.get_audit_logs()") is True


@pytest.mark.parametrize("tenant", ["acme", None])
def test_reading_them_is_an_event_itself(event: int, database: Database, db: Client, tenant: str | None) -> None:
    auditor = database.client("auditor")
    with auditor.transaction():
        if tenant:
            auditor.run("select llm.set_tenant(%s)", tenant)
        assert auditor.one("select llm.read_sensitive_log(%s, 'case 12')", event) == DETAILS
        assert auditor.one("select llm.current_tenant()") == tenant
    reading = db.row("select user_id, login_role, object_type, object_id, details from llm.get_audit_logs(p_action => 'sensitive_read')")
    assert reading == ("auditor", "auditor", "audit_log", str(event), {"purpose": "case 12", "tenant": "acme"})
    assert f"sensitive details of audit event {event} were read by auditor" in database.cluster.log()


def test_a_reading_that_is_rolled_back_is_still_in_the_servers_log(event: int, database: Database, db: Client) -> None:
    auditor = database.client("auditor").run("begin")
    assert auditor.one("select llm.read_sensitive_log(%s, 'in secret')", event) == DETAILS
    before = database.cluster.log().count(f"audit event {event} were read by auditor")
    auditor.run("rollback")
    assert db.rows("select * from llm.get_audit_logs(p_action => 'sensitive_read')") == []
    assert before >= 1


@pytest.mark.parametrize("purpose", [None, "", "  "])
def test_nothing_is_read_without_a_purpose(event: int, database: Database, purpose: str | None) -> None:
    with raises(errors.InvalidParameterValue, "are read for a purpose only", hint="p_purpose"):
        database.client("auditor").run("select llm.read_sensitive_log(%s, %s)", event, purpose)


def test_an_event_of_another_tenant_or_without_details_has_nothing_to_read(event: int, app: Client, database: Database) -> None:
    auditor = database.client("auditor")
    app.run("select llm.log_audit_event('a', 'b', 'c')")
    for tenant, audit_id in (("globex", event), (None, event + 1), (None, 4711)):
        with auditor.transaction():
            if tenant:
                auditor.run("select llm.set_tenant(%s)", tenant)
            with raises(errors.NoDataFound, f"audit event {audit_id} has no sensitive details", hint="is_sensitive"), auditor.transaction():
                auditor.run("select llm.read_sensitive_log(%s, 'case')", audit_id)


def test_only_members_of_the_access_level_read(app: Client, database: Database, db: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.log_audit_event('a', 'b', 'c', p_sensitive => 'for admins', p_access_level => 'llm_admin')")
    event = db.one("select id from llm.audit_log")
    with raises(errors.InsufficientPrivilege, "role auditor may not read sensitive details of level llm_admin", hint="members"):
        database.client("auditor").run("select llm.read_sensitive_log(%s, 'case')", event)
    assert db.rows("select * from llm.get_audit_logs(p_action => 'sensitive_read')") == []
    assert database.client("admin").one("select llm.read_sensitive_log(%s, 'case')", event) == "for admins"
    assert db.one("select llm.read_sensitive_log(%s, 'case')", event) == "for admins"
    with raises(errors.InsufficientPrivilege, "role auditor may not read"):
        db.run("set role auditor").run("select llm.read_sensitive_log(%s, 'case')", event)


@pytest.mark.parametrize("level", ["no such role", "", None])
def test_an_access_level_is_a_role(app: Client, level: str | None) -> None:
    with app.tenant("acme"), raises(errors.UndefinedObject, "access level .* is not a role", hint="llm_auditor"):
        app.run("select llm.log_audit_event('a', 'b', 'c', p_sensitive => 'x', p_access_level => %s)", level)


def test_a_batch_may_hold_sensitive_details(app: Client, database: Database, db: Client) -> None:
    batch = [
        {"action": "a", "object_type": "b", "object_id": "1", "sensitive": DETAILS},
        {"action": "a", "object_type": "b", "object_id": "2"},
        {"action": "a", "object_type": "b", "object_id": "3", "sensitive": "x", "access_level": "llm_admin", "details": {"k": 1}},
    ]
    with app.tenant("acme"):
        assert app.one("select llm.log_audit_events(%s)", Jsonb(batch)) == 3
    assert db.rows("select object_id, details, is_sensitive from llm.get_audit_logs() order by 1") == [
        ("1", None, True), ("2", None, False), ("3", {"k": 1}, True)
    ]  # fmt: skip
    first = db.one("select id from llm.audit_log where object_id = '1'")
    assert database.client("auditor").one("select llm.read_sensitive_log(%s, 'case')", first) == DETAILS


def test_a_bound_role_that_is_set_writes_for_its_tenant(db: Client, admin: Client, database: Database) -> None:
    """The tenant of the event is the one that the key is of."""
    admin.run("select llm.bind_role('app', 'acme')")
    db.run("set role app").run(LOG, DETAILS).run("reset role")
    event, tenant = db.row("select audit_log_id, tenant_id from llm.sensitive_log")
    assert tenant == "acme"
    assert database.client("auditor").one("select llm.read_sensitive_log(%s, 'case')", event) == DETAILS


def test_ciphertext_that_was_moved_to_another_event_is_refused(event: int, app: Client, db: Client, database: Database) -> None:
    with app.tenant("acme"):
        app.run(LOG, "another secret")
    db.run("""
        alter table llm.sensitive_log disable trigger append_only;
        update llm.sensitive_log s
        set encrypted_details = (select o.encrypted_details from llm.sensitive_log o where o.audit_log_id <> s.audit_log_id)
        """)
    with pytest.raises(errors.DataException):
        database.client("auditor").run("select llm.read_sensitive_log(%s, 'case')", event)


def test_a_month_of_sensitive_details_is_dropped_after_its_events(db: Client) -> None:
    db.run("""
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, "timestamp")
        values ('acme', 'u', 'a', 'b', 'c', now() - interval '1 month')
        """)
    partition = db.one(
        "select partition::text from llm._partitions('llm.sensitive_log') where now() - interval '1 month' between begins_at and ends_at"
    )
    assert db.one("select llm._sensitive_may_be_dropped(%s::text::regclass)", partition) is False
    db.run("alter table llm.audit_log disable trigger append_only").run("delete from llm.audit_log")
    assert db.one("select llm._sensitive_may_be_dropped(%s::text::regclass)", partition) is True


def test_without_a_master_key_sensitive_details_are_refused_and_others_are_not(database: Database, master_key: Path, app: Client, db: Client) -> None:
    for file in master_key.iterdir():
        file.unlink()
    fresh = database.client("app")
    with fresh.tenant("acme"), pytest.raises((errors.ConfigFileError, errors.ObjectNotInPrerequisiteState)):
        fresh.run(LOG, DETAILS)
    with fresh.tenant("acme"):
        fresh.run("select llm.log_audit_event('a', 'b', 'c')")
    assert db.one("select count(*) from llm.audit_log") == 1


def test_what_ends_the_use_of_a_key_is_an_event(event: int, app: Client, admin: Client, db: Client) -> None:
    """S001-334: revocation, break-glass and shredding."""
    with app.tenant("acme"):
        ciphertext = app.one("select llm.encrypt_data('text')")
    key = db.one("select key_id::text from llm.data_keys where tenant_id = 'acme'")
    with admin.tenant("acme"):
        admin.run("select llm.revoke_key(%s, 'lost laptop')", key)
        assert admin.one("select llm.break_glass_decrypt(%s, 'court order')", ciphertext) == "text"
        admin.run("select llm.shred_key(%s)", key)
    rows = db.rows("select action, object_id, tenant_id, login_role from llm.get_audit_logs(p_object_type => 'key') order by id")
    assert [row[0] for row in rows] == ["revoked", "read by break-glass", "shredded"]
    assert {row[1:] for row in rows} == {(key, "acme", "admin")}

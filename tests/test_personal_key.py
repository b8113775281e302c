"""Keys of users."""

from __future__ import annotations

from uuid import UUID

import pytest
from psycopg.errors import InvalidParameterValue, ObjectNotInPrerequisiteState

from tests.support import Client, Database, at_once, raises

ANNE, BOB = UUID(int=1), UUID(int=2)

ENCRYPT = "select llm.encrypt_data('secret', row(null, null, llm.personal_key(%s), null)::llm.encryption, 'public.t', 'c', '1')"


@pytest.mark.usefixtures("master_key")
def test_a_user_has_one_key_and_every_user_another(app: Client) -> None:
    with app.tenant("acme"):
        keys = [app.one("select llm.personal_key(%s)", user) for user in (ANNE, ANNE, BOB)]
        assert keys[0] == keys[1] != keys[2]
        assert app.one("select count(*) from llm.personal_keys") == 2
        ciphertext = app.one(ENCRYPT, ANNE)
        assert app.one("select llm.decrypt_data(%s, null, 'public.t', 'c', '1')", ciphertext) == "secret"
    with app.tenant("globex"):
        assert app.one("select llm.personal_key(%s)", ANNE) not in keys


@pytest.mark.usefixtures("master_key")
def test_clients_who_ask_at_once_get_the_same_key(database: Database) -> None:
    database.client().run("select llm.bind_role('app', 'acme')")
    clients = database.clients(8, "app")
    assert len(set(at_once(clients, "select llm.personal_key(%s)", ANNE))) == 1
    assert clients[0].one("select count(*) from llm.key_management") == 1


@pytest.mark.usefixtures("master_key")
def test_a_user_gets_his_own_key_only(app: Client, db: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.personal_key(%s)", BOB)
        app.run("select llm.set_user(%s)", ANNE)
        assert app.one("select llm.personal_key(%s)", ANNE)
        assert app.column("select user_id from llm.personal_keys") == [ANNE]
        for user in (BOB, None):
            with raises(InvalidParameterValue, match="user .* has no key here", hint="llm.set_user"), app.transaction():
                app.run("select llm.personal_key(%s)", user)
    with raises(InvalidParameterValue, match="has no key here", hint="llm.set_tenant"):
        db.run("select llm.personal_key(%s)", ANNE)


def test_without_a_master_key_there_are_none(app: Client) -> None:
    with raises(ObjectNotInPrerequisiteState, match="no master key is configured"), app.tenant("acme"):
        app.run("select llm.personal_key(%s)", ANNE)


@pytest.mark.usefixtures("master_key")
def test_sensitive_details_of_a_user_are_encrypted_with_his_key(database: Database, app: Client, db: Client) -> None:
    with app.tenant("acme"):
        for user in (str(ANNE), str(BOB), "somebody"):
            app.run("select llm.log_audit_event('diagnosis', 'person', '1', p_user_id => %s, p_sensitive => 'of ' || %s)", user, user)
    admin = database.client("admin")
    admin.run("set role llm_admin")
    ids = dict(db.rows("select user_id, id from llm.audit_log where action = 'diagnosis'"))
    auditor = database.client("auditor")
    read = "select llm.read_sensitive_log(%s, 'test')"
    with auditor.tenant("acme"):
        assert [auditor.one(read, ids[user]) for user in ids] == [f"of {user}" for user in ids]
    with admin.tenant("acme"):
        key = admin.one("select key_id::text from llm.personal_keys where user_id = %s", ANNE)
        admin.run("select llm.shred_key(%s)", key)
    for user, is_readable in ((str(BOB), True), ("somebody", True), (str(ANNE), False)):
        if is_readable:
            with auditor.tenant("acme"):
                assert auditor.one(read, ids[user]) == f"of {user}"
        else:
            with pytest.raises(ObjectNotInPrerequisiteState), auditor.tenant("acme"):
                auditor.one(read, ids[user])

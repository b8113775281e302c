"""API keys by which programs act for users."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from psycopg.errors import CheckViolation, ForeignKeyViolation, InsufficientPrivilege, NoDataFound, ObjectNotInPrerequisiteState

from tests.support import Client, Database, raises

ANN, BOB = UUID(int=1), UUID(int=2)


@pytest.fixture
def keys(db: Client, app: Client) -> dict[tuple[str, UUID], tuple[UUID, str]]:
    """A key (id, text) of ann and of bob, of tenants acme and globex each."""
    made = {}
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            for name, user in (("ann", ANN), ("bob", BOB)):
                app.run("select llm.create_user(%s, p_user_id => %s)", name, user)
                made[tenant, user] = app.row("select * from llm.create_user_api_key(%s, 'ci', '{read,write}')", user)
    return made


def verified(client: Client, key: str | None) -> list[tuple[Any, ...]]:
    """Return whose key this is."""
    return client.rows("select tenant_id, user_id, key_id, name, scopes from llm.verify_user_api_key(%s)", key)


def test_a_key_tells_its_tenant_and_user(keys: dict[tuple[str, UUID], tuple[UUID, str]], app: Client) -> None:
    for (tenant, user), (key_id, key) in keys.items():
        assert verified(app, key) == [(tenant, user, key_id, "ci", ["read", "write"])]
        with app.tenant(tenant):
            assert verified(app, key) == [(tenant, user, key_id, "ci", ["read", "write"])]


def test_a_key_of_another_tenant_is_unknown(keys: dict[tuple[str, UUID], tuple[UUID, str]], db: Client, database: Database) -> None:
    """RLS-04: for a transaction, and for a role, that work for one tenant."""
    db.run("select llm.bind_role('app', 'acme')")
    app = database.client("app")
    assert verified(app, keys["globex", ANN][1]) == []
    assert len(verified(app, keys["acme", ANN][1])) == 1
    with db.tenant("globex"):
        assert verified(db, keys["acme", ANN][1]) == []
    with app.transaction():
        assert app.one("select llm.revoke_user_api_key(%s)", keys["globex", ANN][0]) is False
        app.run("select llm.set_user(%s)", ANN)
        assert app.one("select llm.revoke_user_api_key(%s)", keys["acme", BOB][0]) is False
        assert app.column("select user_id from llm.user_api_keys") == [ANN]
        with raises(NoDataFound, match="does not exist"):
            app.run("select llm.create_user_api_key(%s, 'x')", BOB)


def test_what_is_no_key_is_refused(keys: dict[tuple[str, UUID], tuple[UUID, str]], app: Client) -> None:
    for key in ("", "llmk_", "llmk_0123456789abcdef", "x" * 85, "é" * 85, "llmk_" + "0" * 80, "\\", "%" * 85, None):
        assert verified(app, key) == [], key


def test_every_changed_character_is_refused(keys: dict[tuple[str, UUID], tuple[UUID, str]], app: Client) -> None:
    key = keys["acme", ANN][1]
    assert len(key) == 85
    for position, character in enumerate(key):
        forged = key[:position] + ("0" if character != "0" else "1") + key[position + 1 :]
        assert verified(app, forged) == [], position
    for forged in (key[:-1], key + "0", key.upper(), key + " ", keys["acme", BOB][1][:21] + key[21:]):
        assert verified(app, forged) == []
    assert len(verified(app, key)) == 1


def test_expired_and_revoked_keys_are_refused(keys: dict[tuple[str, UUID], tuple[UUID, str]], db: Client, app: Client) -> None:
    key_id, key = keys["acme", ANN]
    db.run("update llm.user_api_keys set expires_at = now() + interval '1 hour'")
    assert len(verified(app, key)) == 1
    db.run("update llm.user_api_keys set expires_at = now() where key_id = %s", key_id)
    assert verified(app, key) == []
    key_id, key = keys["acme", BOB]
    with app.tenant("acme"):
        assert app.one("select llm.revoke_user_api_key(%s)", key_id) is True
        assert app.one("select llm.revoke_user_api_key(%s)", key_id) is False
    assert verified(app, key) == []


def test_the_keys_of_a_deleted_user_end(keys: dict[tuple[str, UUID], tuple[UUID, str]], app: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.delete_user(%s)", ANN)
    assert verified(app, keys["acme", ANN][1]) == []
    assert len(verified(app, keys["acme", BOB][1])) == len(verified(app, keys["globex", ANN][1])) == 1
    with app.tenant("acme"), raises(NoDataFound, match="does not exist", hint="llm.create_user"):
        app.run("select llm.create_user_api_key(%s, 'x')", ANN)


def test_the_key_itself_is_nowhere(keys: dict[tuple[str, UUID], tuple[UUID, str]], db: Client) -> None:
    key_id, key = keys["acme", ANN]
    prefix, salt, stored = db.row("select key_prefix, key_salt, key_hash from llm.user_api_keys where key_id = %s", key_id)
    assert (prefix, stored) == (key[5:21], hashlib.sha256(salt + key.encode()).digest())
    assert db.one("select count(*) from llm.user_api_keys k where k::text like %s", f"%{key[21:]}%") == 0
    assert db.one("select count(*) from llm.audit_log a where a::text like %s", f"%{key[21:]}%") == 0
    assert len({text for _, text in keys.values()}) == 4


def test_use_is_noted_once_a_minute(keys: dict[tuple[str, UUID], tuple[UUID, str]], db: Client, app: Client) -> None:
    key_id, key = keys["acme", ANN]
    noted = "select count(*) from llm.audit_log where action = 'api_key_used'"
    for _ in range(3):
        verified(app, key)
    assert db.one(noted) == 1
    used = db.one("update llm.user_api_keys set last_used_at = last_used_at - interval '61 s' where key_id = %s returning last_used_at", key_id)
    verified(app, key)
    assert db.one("select last_used_at from llm.user_api_keys where key_id = %s", key_id) > used
    assert db.one(noted) == 2
    with app.transaction():
        app.run("set transaction read only")
        db.run("update llm.user_api_keys set last_used_at = null")
        assert len(verified(app, key)) == 1


def test_many_uses_at_once_do_not_wait_for_each_other(keys: dict[tuple[str, UUID], tuple[UUID, str]], db: Client, database: Database) -> None:
    """Q-06: the first one's transaction stays open."""
    key = keys["acme", ANN][1]
    first, *others = database.clients(9, "app")
    first.run("begin")
    assert len(verified(first, key)) == 1
    with ThreadPoolExecutor(8) as pool:
        assert all(len(found) == 1 for found in pool.map(lambda client: verified(client, key), others))
    first.run("commit")
    assert db.one("select count(*) from llm.audit_log where action = 'api_key_used'") == 1


def test_keys_are_of_users_that_exist(keys: dict[tuple[str, UUID], tuple[UUID, str]], db: Client, app: Client) -> None:
    """RLS-13: a user of another tenant is as unknown as nobody."""
    stranger = db.one("insert into llm.users (tenant_id, username) values ('globex', 'zoe') returning user_id")
    messages = set()
    for user in (stranger, UUID(int=99)):
        with app.tenant("acme"), raises(ForeignKeyViolation) as caught:
            app.run("insert into llm.user_api_keys (user_id, name, key_prefix, key_salt, key_hash)"
                    " values (%s, 'x', repeat('x', 16), substr(sha256(''), 1, 16), sha256(''))", user)  # fmt: skip
        messages.add((caught.value.diag.message_primary, str(caught.value.diag.message_detail).replace(str(user), "")))
    assert len(messages) == 1
    with app.tenant("acme"), raises(CheckViolation, match="name"):
        app.run("select llm.create_user_api_key(%s, '')", ANN)


def test_who_may_make_keys(keys: dict[tuple[str, UUID], tuple[UUID, str]], app: Client, database: Database) -> None:
    with raises(InsufficientPrivilege):
        database.client("reader").run("select llm.create_user_api_key(%s, 'x')", ANN)
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        app.run("select llm.create_user_api_key(%s, 'x')", ANN)
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        app.run("select llm.revoke_user_api_key(%s)", ANN)

"""Data keys: made once, counted without a hot row, replaced when they are used up."""

from __future__ import annotations

from pathlib import Path

from psycopg.errors import ObjectNotInPrerequisiteState, ProgramLimitExceeded

from tests.support import Client, Database, at_once, raises

USED = "select coalesce(sum(uses), 0)::int from llm.key_usage"


def limit(client: Client, tenant: str, uses: int) -> str:
    """Make a key for so many uses."""
    with client.tenant(tenant):
        return str(client.one("select llm.generate_key(p_max_uses => %s)", uses))


def encrypt(client: Client, tenant: str, key: str, count: int) -> list[int]:
    """Encrypt so often with a key, and return the versions that did it."""
    with client.tenant(tenant):
        return client.column(
            "select get_byte(llm.encrypt_data('x', (null, null, %s, null)::llm.encryption), 21) from generate_series(1, %s)", key, count
        )


def test_sixteen_first_uses_make_one_key(database: Database, db: Client, master_key: Path) -> None:
    clients = database.clients(16, "app")
    db.run("alter role app set default_transaction_isolation = 'read committed'").run("select llm.bind_role('app', 'a')")
    values = at_once(clients, "select llm.encrypt_data('x')")
    assert len({value[2:22] for value in values}) == 1
    assert db.one("select count(*) from llm.tenant_keys") == db.one("select count(*) from llm.data_keys") == 1
    assert len(list(master_key.glob("tenant.*"))) == 1


def test_enc_06_a_key_that_is_used_up_gets_a_new_version(app: Client, db: Client, master_key: Path) -> None:
    key = limit(app, "a", 1000)
    versions = encrypt(app, "a", key, 3500)
    assert sorted(versions) == versions
    assert set(versions) == {1, 2, 3, 4}
    for version in (1, 2, 3):
        assert 900 <= versions.count(version) <= 1000
    events = db.rows("select event, details->>'reason' from llm.key_events where key_id::text = %s order by id", key)
    assert events == [("made", None), *[("rotated", "used up")] * 3]


def test_enc_06_many_sessions_do_not_exceed_the_limit(database: Database, app: Client, db: Client, master_key: Path) -> None:
    key = limit(app, "a", 160)
    clients = database.clients(4, "app")
    db.run("select llm.bind_role('app', 'a')")
    statement = "select array_agg(get_byte(llm.encrypt_data('x', (null, null, %s, null)::llm.encryption), 21)) from generate_series(1, 20)"
    versions = [version for _ in range(5) for answer in at_once(clients, statement, key) for version in answer]
    assert len(versions) == 400
    for version in set(versions):
        assert versions.count(version) <= 320, "the hard limit"
    assert max(versions) >= 2


def test_enc_06_a_version_at_its_hard_limit_is_the_end(database: Database, app: Client, db: Client, master_key: Path) -> None:
    """Another session holds the key, so that no next version can be made."""
    key = limit(app, "a", 32)
    with db.transaction():
        db.run("select from llm.data_keys where key_id::text = %s for no key update", key)
        assert set(encrypt(app, "a", key, 60)) == {1}
        with raises(ProgramLimitExceeded, match="version 1 of key .* is used up", detail="of at most 64", hint="Another session"):
            encrypt(app, "a", key, 10)
    assert set(encrypt(app, "a", key, 10)) == {2}


def test_uses_are_counted_ahead_in_growing_batches(app: Client, db: Client, master_key: Path) -> None:
    key = limit(app, "a", 10**9)
    encrypt(app, "a", key, 1000)
    assert db.column("select uses::int from llm.key_usage order by id") == [16, 32, 64, 128, 256, 512]


def test_uses_in_a_transaction_that_was_rolled_back_count(app: Client, db: Client, master_key: Path) -> None:
    key = limit(app, "a", 10**9)
    encrypt(app, "a", key, 16)
    with app.tenant("a"):
        for _ in range(3):
            with app.connection.transaction(force_rollback=True):
                app.run("select llm.encrypt_data('x', (null, null, %s, null)::llm.encryption) from generate_series(1, 100)", key)
    encrypt(app, "a", key, 300)
    assert db.one(USED) >= 16 + 300 + 300


def test_many_counts_are_added_up(app: Client, db: Client, database: Database, master_key: Path) -> None:
    key = limit(app, "a", 10**9)
    db.run("insert into llm.key_usage (tenant_id, key_id, version, uses) select 'a', %s::uuid, 1, 2 from generate_series(1, 600)", key)
    encrypt(app, "a", key, 1)
    assert db.column("select uses::int from llm.key_usage order by id") == [1200, 16]


def test_a_transaction_that_only_reads_counts_nothing(app: Client, db: Client, master_key: Path) -> None:
    key = limit(app, "a", 100)
    with app.tenant("a"):
        app.run("set transaction read only")
        assert app.one("select llm.decrypt_data(llm.encrypt_data('x', (null, null, %s, null)::llm.encryption))", key) == "x"
    assert db.one(USED) == 0


def test_what_one_session_makes_another_uses_at_once(database: Database, app: Client, master_key: Path) -> None:
    other = database.client("app")
    for client in (app, other):
        with client.tenant("a"):
            client.run("select llm.encrypt_data('x')")
    with app.tenant("a"):
        assert app.one("select llm.rotate_key()") is True
        assert app.one("select get_byte(llm.encrypt_data('x'), 21)") == 2
        with other.tenant("a"):
            assert other.one("select get_byte(llm.encrypt_data('x'), 21)") == 1, "not committed"
    with other.tenant("a"):
        assert other.one("select get_byte(llm.encrypt_data('x'), 21)") == 2


def test_a_key_that_has_expired_decrypts_only(app: Client, db: Client, master_key: Path) -> None:
    with app.tenant("a"):
        key = app.one("select llm.generate_key(p_expires_at => now() + interval '1 day')")
        value = app.one("select llm.encrypt_data('x', (null, null, %s, null)::llm.encryption)", key)
    db.run("update llm.data_keys set expires_at = now() where key_id::text = %s", key)
    with raises(ObjectNotInPrerequisiteState, match=f"key {key} has expired", hint="It still decrypts"), app.tenant("a"):
        app.run("select llm.encrypt_data('x', (null, null, %s, null)::llm.encryption)", key)
    with app.tenant("a"):
        assert app.one("select llm.decrypt_data(%s)", value) == "x"

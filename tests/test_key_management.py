"""The lives of keys: made, rotated, revoked, shredded."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from psycopg.errors import ConfigFileError, InsufficientPrivilege, InvalidParameterValue, ObjectNotInPrerequisiteState, UndefinedObject

from tests.conftest import new_database, new_key_store
from tests.support import Client, Database, at_once, raises, wait_until
from tools.cluster import Cluster


@pytest.fixture
def sealed(app: Client, master_key: Path) -> bytes:
    """A ciphertext of tenant a, with its default key."""
    with app.tenant("a"):
        return bytes(app.one("select llm.encrypt_data('a secret')"))


def decrypt(client: Client, value: bytes, tenant: str = "a") -> str:
    with client.tenant(tenant):
        return str(client.one("select llm.decrypt_data(%s)", value))


def events(db: Client) -> list[str]:
    return [str(event) for event in db.column("select event from llm.key_events order by id")]


def test_keys_are_shown_without_their_material(app: Client, master_key: Path) -> None:
    with app.tenant("a"):
        key = app.one("select llm.generate_key(p_expires_at => '2100-01-01')")
        assert app.row("select key_id, expires_at::date::text, active, version, kind from llm.key_management") == (key, "2100-01-01", True, 1, "data")
        assert app.row("select active, created_at = now() from llm.key_management") == (True, True)
        columns = [column.name for column in app.connection.execute("select * from llm.key_management").description or ()]
        assert not {"wrapped", "key_material"} & set(columns)
    with app.tenant("b"):
        assert app.rows("select * from llm.key_management") == []


def test_a_key_is_made_as_it_is_asked_for_or_not_at_all(app: Client, master_key: Path) -> None:
    for size in (128, 192, 512, 0, None):
        with raises(InvalidParameterValue, match="a key of (null|[0-9]+) bits", hint="Supported: 256"), app.tenant("a"):
            app.run("select llm.generate_key(%s::int)", size)
    for uses in (0, -1, 2**30 + 1, None):
        with raises(InvalidParameterValue, match="a key for (null|-?[0-9]+) uses", hint="Take 1 to 1073741824"), app.tenant("a"):
            app.run("select llm.generate_key(p_max_uses => %s::bigint)", uses)


def test_after_a_rotation_old_and_new_decrypt(app: Client, db: Client, sealed: bytes) -> None:
    with app.tenant("a"):
        assert app.one("select llm.rotate_key()") is True
        newer = app.one("select llm.encrypt_data('another')")
    assert (sealed[21], newer[21]) == (1, 2)
    assert (decrypt(app, sealed), decrypt(app, newer)) == ("a secret", "another")
    with raises(UndefinedObject, match="key nonsense does not exist"), app.tenant("a"):
        app.run("select llm.rotate_key('nonsense')")
    with raises(UndefinedObject, match="key default does not exist"), app.tenant("b"):
        app.run("select llm.rotate_key()")
    assert events(db) == ["made", "rotated"]


def test_enc_11_of_two_rotations_at_once_one_is_busy(database: Database, db: Client, sealed: bytes) -> None:
    first, second = database.clients(2, "app")
    with first.tenant("a"):
        assert first.one("select llm.rotate_key()") is True
        with second.tenant("a"):
            assert second.one("select llm.rotate_key()") is False
    assert db.one("select version from llm.data_keys") == 2
    db.run("select llm.bind_role('app', 'a')")
    outcomes = at_once(database.clients(8, "app"), "select llm.rotate_key()")
    assert db.one("select version from llm.data_keys") == 2 + sum(outcomes)
    assert db.one("select count(*) from llm.data_key_versions") == 2 + sum(outcomes)


def test_enc_13_a_revoked_key_is_for_emergencies(app: Client, db: Client, database: Database, sealed: bytes) -> None:
    admin = database.client("admin")
    with raises(InsufficientPrivilege, match="permission denied for function revoke_key"), app.tenant("a"):
        app.run("select llm.revoke_key(null)")
    with app.tenant("a"):
        key = app.one("select key_id from llm.key_management")
    with admin.tenant("a"):
        assert admin.row("select llm.revoke_key(%s, 'leaked'), llm.revoke_key(%s)", key, key) == (True, False)
        assert admin.row("select active, revoked_at is not null from llm.key_management") == (False, True)
    for client in (app, database.client("app"), admin):
        for statement in ("select llm.encrypt_data('x')", "select llm.decrypt_data(%(sealed)s)", "select llm.rewrap_value(%(sealed)s)"):
            with raises(ObjectNotInPrerequisiteState, match=f"key {key} is revoked", hint="break_glass_decrypt"), client.tenant("a"):
                client.connection.execute(statement, {"sealed": sealed})

    with raises(InsufficientPrivilege, match="permission denied for function break_glass_decrypt"), app.tenant("a"):
        app.run("select llm.break_glass_decrypt(%s, 'why not')", sealed)
    for purpose in ("", "  ", None):
        with raises(InvalidParameterValue, match="no purpose is given", hint="llm.key_events"), admin.tenant("a"):
            admin.run("select llm.break_glass_decrypt(%s, %s)", sealed, purpose)
    with admin.tenant("a"):
        assert admin.one("select llm.break_glass_decrypt(%s, 'court order 7')", sealed) == "a secret"
    assert db.row("select key_id::text, details->>'purpose', caused_by from llm.key_events where event = 'read by break-glass'") == (
        key, "court order 7", "admin",
    )  # fmt: skip
    with raises(UndefinedObject, match="does not exist"), admin.tenant("b"):
        admin.run("select llm.break_glass_decrypt(%s, 'of another tenant')", sealed)
    with app.tenant("a"):
        other = app.one("select llm.generate_key()")
        assert app.one("select llm.decrypt_data(llm.encrypt_data('x', (null, null, %s, null)::llm.encryption))", other) == "x"


def test_a_shredded_key_is_gone_and_the_others_are_not(app: Client, database: Database, sealed: bytes) -> None:
    admin = database.client("admin")
    with raises(InsufficientPrivilege, match="permission denied for function shred_key"), app.tenant("a"):
        app.run("select llm.shred_key()")
    with app.tenant("a"):
        key = app.one("select llm.generate_key()")
        value = app.one("select llm.encrypt_data('x', (null, null, %s, null)::llm.encryption)", key)
        app.run("select llm.rotate_key(%s)", key)
    with admin.tenant("a"):
        receipt = admin.row("select tenant_id, key_id, keys, versions, in_backups, effect from llm.shred_key(%s, 'asked for')", key)
        assert receipt[:5] == ("a", key, 1, 2, False)
        assert "When no backup" in receipt[5]
        assert admin.row("select active from llm.key_management where key_id = %s", key) == (False,)
    with raises(ObjectNotInPrerequisiteState, match=f"key {key} was shredded", detail="by anybody", hint="llm.key_events"):
        decrypt(app, value)
    with raises(ObjectNotInPrerequisiteState, match="was shredded"), admin.tenant("a"):
        admin.run("select llm.break_glass_decrypt(%s, 'too late')", value)
    assert decrypt(app, sealed) == "a secret"


def test_a_shredded_tenant_is_gone_and_begins_anew(app: Client, db: Client, database: Database, sealed: bytes, master_key: Path) -> None:
    admin = database.client("admin")
    with app.tenant("a"):
        app.run("select llm.blind_index('x', 't', 'c')")
    with app.tenant("b"):
        other = app.one("select llm.encrypt_data('of b')")
    assert len(list(master_key.glob("tenant.*"))) == 2
    with admin.tenant("a"):
        receipt = admin.row(
            "select tenant_id, key_id, keys, versions, in_backups, effect, event_id from llm.shred_key(p_reason => 'erasure request')"
        )
    assert receipt[:5] == ("a", None, 2, 2, True)
    assert receipt[5].startswith("At once")
    assert db.row("select event, details->>'reason', details->>'effect' from llm.key_events where id = %s", receipt[6]) == (
        "shredded", "erasure request", receipt[5],
    )  # fmt: skip
    assert len(list(master_key.glob("tenant.*"))) == 1
    with raises(ObjectNotInPrerequisiteState, match="was shredded"):
        decrypt(app, sealed)
    assert decrypt(app, other, "b") == "of b"
    with app.tenant("a"):
        assert app.one("select llm.decrypt_data(llm.encrypt_data('anew'))") == "anew"
    with raises(UndefinedObject, match="tenant c has no keys", hint="nothing to shred"), admin.tenant("c"):
        admin.run("select llm.shred_key()")


def test_a_secret_that_cannot_be_destroyed_is_said(database: Database, sealed: bytes, master_key: Path) -> None:
    admin = database.client("admin")
    master_key.chmod(0o500)
    try:
        with raises(Exception, match="cannot be destroyed: Permission denied", hint="shred again"), admin.tenant("a"):  # type: ignore[arg-type]
            admin.run("select llm.shred_key()")
    finally:
        master_key.chmod(0o700)
    with admin.tenant("a"):
        assert admin.one("select in_backups from llm.shred_key()") is True


def test_with_a_command_shredding_waits_for_the_backups(db: Client, app: Client, database: Database, tmp_path: Path) -> None:
    db.run("select llm.add_master_key(p_command => array['/bin/sh', '-c', 'printf %064d $0'])")
    with app.tenant("a"):
        value = app.one("select llm.encrypt_data('x')")
    with database.client("admin").tenant("a") as admin:
        assert admin.row("select in_backups, effect like 'When no backup%%' from llm.shred_key()") == (False, True)
    with raises(ObjectNotInPrerequisiteState, match="was shredded"):
        decrypt(app, value)


def test_a_new_master_key_wraps_all_tenants_keys(
    app: Client, db: Client, database: Database, sealed: bytes, master_key: Path, tmp_path: Path
) -> None:
    with app.tenant("b"):
        other = app.one("select llm.encrypt_data('of b')")
    with raises(InsufficientPrivilege, match="permission denied for function rotate_master_key"):
        database.client("admin").run("select llm.rotate_master_key()")
    assert db.one("select llm.rotate_master_key()") == 2
    assert db.column("select distinct master_version from llm.tenant_keys") == [2]
    (master_key / "master.1").unlink()
    assert (decrypt(app, sealed), decrypt(app, other, "b")) == ("a secret", "of b")
    (master_key / "master.2").rename(tmp_path / "master.2")
    with raises(Exception, match="master key version 2 is missing"):  # type: ignore[arg-type]
        decrypt(app, sealed)
    (tmp_path / "master.2").rename(master_key / "master.2")

    # to another key store, and from there to a command and back
    store = tmp_path / "other"
    store.mkdir(mode=0o700)
    assert db.one("select llm.rotate_master_key(%s)", str(store)) == 2
    assert sorted(file.name for file in store.glob("tenant.*")) == sorted(file.name for file in master_key.glob("tenant.*"))
    assert (decrypt(app, sealed), decrypt(app, other, "b")) == ("a secret", "of b")
    assert db.one("select llm.rotate_master_key(p_command => array['/bin/sh', '-c', 'printf %064d $0'])") == 2
    assert (decrypt(app, sealed), decrypt(app, other, "b")) == ("a secret", "of b")
    for directory in (master_key, store):
        for file in directory.glob("*"):
            file.unlink()
    assert (decrypt(app, sealed), decrypt(app, other, "b")) == ("a secret", "of b")
    assert db.one("select llm.rotate_master_key(%s)", str(store)) == 2
    assert (decrypt(app, sealed), decrypt(app, other, "b")) == ("a secret", "of b")


@pytest.fixture
def backed_up(own_cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Cluster, Cluster, Path, dict[str, bytes]]]:
    """A server with ciphertexts of tenants a and b, a base backup of it, not started, and its key store."""
    for database in new_database(own_cluster):
        store = new_key_store(database, tmp_path / "keys")
        app = database.client("app")
        values = {}
        for tenant in ("a", "b"):
            with app.tenant(tenant):
                values[tenant] = bytes(app.one("select llm.encrypt_data('of ' || %s)", tenant))
        backup = Cluster(own_cluster.installation, tmp_path / "backup", *own_cluster.settings)
        own_cluster.program("pg_basebackup", "-D", backup.datadir, "-c", "fast")
        Path(backup.datadir).chmod(0o700)
        backup._directory_initialised = True
        yield own_cluster, backup, store, values | {"database": database.name.encode()}


def test_enc_12_a_backup_needs_the_master_key_of_its_time(backed_up: tuple[Cluster, Cluster, Path, dict[str, bytes]]) -> None:
    server, backup, store, values = backed_up
    name = values["database"].decode()
    with server.connect(name) as connection:
        connection.execute("select llm.rotate_master_key()")
    with backup:
        restored = Client(backup.connect(name, "app"))
        assert decrypt(restored, values["a"]) == "of a"
        (store / "master.1").rename(store / "old")
        with raises(Exception, match="master key version 1 is missing"):  # type: ignore[arg-type]
            decrypt(restored, values["a"])
        current = Client(server.connect(name, "app"))
        assert decrypt(current, values["a"]) == "of a"
        (store / "old").rename(store / "master.1")
        assert decrypt(restored, values["b"], "b") == "of b"
        restored.close()
        current.close()


def test_enc_12_a_backup_during_a_rotation_needs_no_more_than_both_master_keys(own_cluster: Cluster, tmp_path: Path) -> None:
    for database in new_database(own_cluster):
        store = new_key_store(database, tmp_path / "keys")
        app, db = database.client("app"), database.client()
        values = {}
        for tenant in ("a", "b", "c"):
            with app.tenant(tenant):
                values[tenant] = bytes(app.one("select llm.encrypt_data('of ' || %s)", tenant))
        backup = Cluster(own_cluster.installation, tmp_path / "backup", *own_cluster.settings)
        with ThreadPoolExecutor(1) as pool:
            # slow enough to be under way, with its first files sent
            copying = pool.submit(own_cluster.program, "pg_basebackup", "-D", backup.datadir, "-c", "fast", "-r", "16M")
            wait_until(lambda: copying.done() or db.one("select coalesce(bool_or(backup_streamed > 0), false) from pg_stat_progress_basebackup"))  # noqa: B023 - asked at once
            assert not copying.done()
            db.run("select llm.rotate_master_key()")
            assert not copying.done()
            copying.result()
        Path(backup.datadir).chmod(0o700)
        backup._directory_initialised = True
        with backup:
            restored = Client(backup.connect(database.name, "app"))
            with backup.connect(database.name) as superuser:
                needed = Client(superuser).one("select min(master_version) from llm.tenant_keys")
            assert [decrypt(restored, values[tenant], tenant) for tenant in values] == ["of a", "of b", "of c"]
            (store / f"master.{needed}").rename(store / "away")
            with raises(ConfigFileError, match=f"master key version {needed} is missing"):
                decrypt(restored, values["a"])
            (store / "away").rename(store / f"master.{needed}")
            assert decrypt(restored, values["a"]) == "of a"
            restored.close()


def test_enc_14_what_was_shredded_is_unreadable_in_yesterdays_backup(backed_up: tuple[Cluster, Cluster, Path, dict[str, bytes]]) -> None:
    server, backup, _, values = backed_up
    name = values["database"].decode()
    with server.connect(name, "admin") as connection, connection.transaction():
        connection.execute("select llm.set_tenant('a')")
        connection.execute("select llm.shred_key()")
    with backup:
        for user in ("app", "postgres"):
            restored = Client(backup.connect(name, user))
            with raises(Exception, match="the tenant's secret is missing"):  # type: ignore[arg-type]
                decrypt(restored, values["a"])
            assert decrypt(restored, values["b"], "b") == "of b"
            restored.close()

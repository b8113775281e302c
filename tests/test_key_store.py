"""Master keys and tenants' secrets: where they may lie, and what is said when they are not there."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import ConfigFileError, DataException, InsufficientPrivilege, InvalidParameterValue, ObjectNotInPrerequisiteState

from tests.offline import secret
from tests.support import Client, Database, raises

KEY = "0123456789abcdef" * 4

#: As in python/pg_llm/key_store.py.
SETTLED = 1_000_000_000

HINT = "such as openssl rand -hex 32"


@pytest.fixture
def sealed(app: Client, master_key: Path) -> bytes:
    """A ciphertext of tenant acme."""
    with app.tenant("acme"):
        return bytes(app.one("select llm.encrypt_data('secret of acme')"))


def rewrite(file: Path, content: str, mode: int = 0o400) -> None:
    file.unlink(missing_ok=True)
    file.write_text(content)
    file.chmod(mode)


def other_user(file: Path) -> None:
    """Put a link in the place of a file: nobody but root can give a file away."""
    file.unlink()
    file.symlink_to("/etc/passwd")


def pipe(file: Path) -> None:
    """Put a pipe in the place of a file: who opens it waits for a writer."""
    file.unlink()
    os.mkfifo(file, 0o400)


#: What happens to the file of the master key, and what every call says then.
FAULTS: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("missing", lambda file: file.unlink(), "master key version 1 is missing: there is no .*/master.1", "from its backup"),
    ("no directory", lambda file: file.parent.rename(file.parent.with_name("away")), "master key version 1 is missing", "from its backup"),
    ("empty", lambda file: rewrite(file, ""), "master.1 is empty", HINT),
    ("one newline alone", lambda file: rewrite(file, "\n"), "master.1 is empty", HINT),
    ("two newlines", lambda file: rewrite(file, KEY + "\n\n"), "master.1 holds no key", HINT),
    ("carriage return", lambda file: rewrite(file, KEY + "\r\n"), "master.1 holds no key", HINT),
    ("blank", lambda file: rewrite(file, " " + KEY), "master.1 holds no key", HINT),
    ("too short", lambda file: rewrite(file, KEY[2:]), "master.1 holds no key", HINT),
    ("too long", lambda file: rewrite(file, KEY + "00"), "master.1 holds no key", HINT),
    ("not hexadecimal", lambda file: rewrite(file, "g" * 64), "master.1 holds no key", HINT),
    ("another key", lambda file: rewrite(file, KEY + "\n"), "master key version 1 is not the key that it was", "Bring back the key"),
    ("readable by all", lambda file: file.chmod(0o444), "master.1 has mode 0444", "mode 0400"),
    ("readable by the group", lambda file: file.chmod(0o440), "master.1 has mode 0440", "mode 0400"),
    ("mode of other files", lambda file: file.chmod(0o644), "master.1 has mode 0644", "mode 0400"),
    ("a link", other_user, "master.1 is no regular file", "mode 0400"),
    ("a pipe", pipe, "master.1 is no regular file", "mode 0400"),
    ("unreadable", lambda file: file.chmod(0), "master.1 has mode 0000", "mode 0400"),
]


def test_enc_07_a_bad_master_key_is_a_clear_error(database: Database, db: Client, app: Client, master_key: Path, sealed: bytes) -> None:
    key = (master_key / "master.1").read_text()
    written = "select count(*) from llm.tenant_keys union all select count(*) from llm.data_keys"
    before = db.rows(written)
    for what, damage, message, hint in FAULTS:
        damage(master_key / "master.1")
        for client in (app, database.client("app")):
            for statement in ("select llm.encrypt_data('x')", "select llm.decrypt_data(%(sealed)s)", "select llm.blind_index('x', 't', 'c')"):
                with raises(ConfigFileError, match=message, hint=hint), client.tenant("acme"):
                    client.connection.execute(statement, {"sealed": sealed})
        with raises(ConfigFileError, match=message), app.tenant("a new tenant"):
            app.run("select llm.encrypt_data('x')")
        ((ok, detail, advice),) = db.rows("select ok, detail, hint from llm.doctor() where name = 'master keys'")
        assert not ok, what
        assert re.search(f"{message}|cannot be looked at", detail), what
        assert advice
        if master_key.exists():
            rewrite(master_key / "master.1", key)
        else:
            master_key.with_name("away").rename(master_key)
        with app.tenant("acme"):
            assert app.one("select llm.decrypt_data(%s)", sealed) == "secret of acme"
    assert db.rows(written) == before
    assert "secret of acme" not in database.cluster.log()


def test_enc_07_a_key_of_another_user_is_refused() -> None:
    """Nobody but root can give a file away, so this is asked of the code alone."""
    assert secret.fault(os.lstat("/etc/passwd")) == f"belongs to user 0, not to the server's, {os.geteuid()}"


def test_enc_07_a_newline_at_the_end_changes_nothing(app: Client, master_key: Path, sealed: bytes) -> None:
    file = master_key / "master.1"
    key = file.read_text()
    assert key.endswith("\n")
    rewrite(file, key.rstrip())
    with app.tenant("acme"):
        assert app.one("select llm.decrypt_data(%s)", sealed) == "secret of acme"


def test_a_key_that_comes_back_works_at_once(app: Client, master_key: Path, sealed: bytes) -> None:
    file = master_key / "master.1"
    file.rename(file.with_name("away"))
    with raises(ConfigFileError, match="is missing"), app.tenant("acme"):
        app.run("select llm.decrypt_data(%s)", sealed)
    file.with_name("away").rename(file)
    with app.tenant("acme"):
        assert app.one("select llm.decrypt_data(%s)", sealed) == "secret of acme"


def test_a_changed_or_lost_secret_of_a_tenant_is_a_clear_error(app: Client, master_key: Path, sealed: bytes) -> None:
    (file,) = master_key.glob("tenant.*")
    assert oct(file.stat().st_mode) == "0o100400"
    content = file.read_bytes()
    file.unlink()
    with raises(ConfigFileError, match="the tenant's secret is missing", hint="from its backup"), app.tenant("acme"):
        app.run("select llm.decrypt_data(%s)", sealed)
    file.write_bytes(content[1:])
    file.chmod(0o400)
    with raises(ConfigFileError, match="has 31 bytes instead of 32"), app.tenant("acme"):
        app.run("select llm.decrypt_data(%s)", sealed)
    file.unlink()
    file.write_bytes(content)
    file.chmod(0o400)
    with app.tenant("acme"):
        assert app.one("select llm.decrypt_data(%s)", sealed) == "secret of acme"


#: Tells how many tenants' files a backend takes as unchanged for as long as their ctime is.
_PAIRS = """
    create function public.pairs() returns int language plpython3u as
    $$return next(len(package.key_store._pairs) for name, package in GD.items() if name.startswith("pg_llm@"))$$
"""


def test_what_happens_to_files_that_were_long_unchanged_is_noticed(db: Client, master_key: Path) -> None:
    """A backend then looks at the path of the master key alone, and at the open file of the tenant's secret."""
    db.run(_PAIRS)
    tenants = ["moved", "removed", "readable", "rewritten", "fine"]
    files: dict[str, Path] = {}
    values: dict[str, bytes] = {}
    for tenant in tenants:
        with db.tenant(tenant):
            values[tenant] = db.one("select llm.encrypt_data('x')")
        (files[tenant],) = set(master_key.glob("tenant.*")) - set(files.values())
    while time.time_ns() - max(file.stat().st_ctime_ns for file in master_key.iterdir()) <= SETTLED:
        db.run("select 1")

    def decrypt(tenant: str) -> str:
        with db.tenant(tenant):
            return str(db.one("select llm.decrypt_data(%s)", values[tenant]))

    def refused(tenant: str, message: str, error: type[psycopg.Error] = ConfigFileError) -> None:
        with raises(error, match=message):
            decrypt(tenant)

    assert [decrypt(tenant) for tenant in tenants] == ["x"] * len(tenants)
    assert db.one("select public.pairs()") == len(tenants)
    files["moved"].rename(master_key / "elsewhere")
    refused("moved", "the tenant's secret is missing")
    files["removed"].unlink()
    refused("removed", "the tenant's secret is missing")
    files["readable"].chmod(0o444)
    refused("readable", "has mode 0444")
    files["rewritten"].chmod(0o600)
    files["rewritten"].write_bytes(bytes(32))
    files["rewritten"].chmod(0o400)
    refused("rewritten", "is not authentic", DataException)
    assert decrypt("fine") == "x"
    assert db.one("select public.pairs()") == len(tenants)
    away = master_key.with_name("away")
    master_key.rename(away)
    refused("fine", "master key version 1 is missing")
    shutil.copytree(away, master_key)
    (master_key / files["fine"].name).unlink()
    refused("fine", "the tenant's secret is missing")
    shutil.rmtree(master_key)
    away.rename(master_key)
    assert decrypt("fine") == "x"
    (master_key / "master.1").chmod(0o444)
    refused("fine", "master.1 has mode 0444")


def test_without_a_master_key_all_else_works(db: Client, app: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.save_config('k', '1')")
    hint = "select llm.add_master_key"
    for statement in ("select llm.encrypt_data('x')", "select llm.generate_key()", "select llm.blind_index('x', 't', 'c')"):
        with raises(ObjectNotInPrerequisiteState, match="no master key is configured", hint=hint), app.tenant("acme"):
            app.run(statement)
    assert db.row("select ok, detail from llm.doctor() where name = 'master keys'") == (True, "none is configured: nothing is encrypted")


def test_only_superusers_say_where_keys_are(db: Client, database: Database, tmp_path: Path) -> None:
    for user in ("app", "admin", "reader", "auditor"):
        with raises(InsufficientPrivilege, match="permission denied for function add_master_key"):
            database.client(user).run("select llm.add_master_key(%s)", str(tmp_path))
    db.run("grant execute on function llm.add_master_key(text, text[]) to llm_admin").run(
        "grant insert, update, delete on llm.master_keys to llm_admin"
    )
    db.run("create policy careless on llm.master_keys to llm_admin using (true) with check (true)")
    admin = database.client("admin")
    with raises(InsufficientPrivilege, match="role admin may not add a master key"):
        admin.run("select llm.add_master_key(%s)", str(tmp_path))
    with raises(InsufficientPrivilege, match="role admin may not change llm.master_keys", detail="run programs", hint="Let a superuser"):
        admin.run("insert into llm.master_keys (version, provider, command, fingerprint) values (1, 'command', array['/bin/true'], '')")


def test_a_key_store_must_be_safe(db: Client, database: Database, tmp_path: Path) -> None:
    inside = Path(database.cluster.datadir, "keys")
    inside.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(inside)
    for place in (inside, link, "keys"):
        with raises(InvalidParameterValue, match="is no place for a master key", hint="outside the data directory"):
            db.run("select llm.add_master_key(%s)", str(place))
    inside.rmdir()
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o750)
    with raises(ConfigFileError, match="is not safe: user .*, mode 0750"):
        db.run("select llm.add_master_key(%s)", str(loose))
    with raises(ConfigFileError, match="is not safe"):
        db.run("select llm.add_master_key('/etc')")
    with raises(ConfigFileError, match="nowhere cannot be looked at: No such file"):
        db.run("select llm.add_master_key(%s)", str(tmp_path / "nowhere"))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with raises(ConfigFileError, match="master.1 cannot be made: Permission denied"):
        db.run("select llm.add_master_key(%s)", str(closed))
    with raises(InvalidParameterValue, match="a master key needs either a location or a command"):
        db.run("select llm.add_master_key()")
    assert db.one("select count(*) from llm.master_keys") == 0


def test_a_key_that_is_there_is_used(db: Client, tmp_path: Path) -> None:
    store = tmp_path / "keys"
    store.mkdir(mode=0o700)
    rewrite(store / "master.1", KEY)
    assert db.one("select llm.add_master_key(%s)", str(store)) == 1
    assert (store / "master.1").read_text() == KEY
    assert db.one("select llm.add_master_key(%s)", str(store)) == 2
    assert len((store / "master.2").read_text()) == 65
    assert oct((store / "master.2").stat().st_mode) == "0o100400"


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return path


def test_a_command_can_give_the_key(db: Client, app: Client, tmp_path: Path) -> None:
    keys = script(tmp_path / "keys", f'test "$1 $2" = "of llm 1" && echo {KEY}')
    assert db.one("select llm.add_master_key(p_command => array[%s, 'of llm'])", str(keys)) == 1
    with app.tenant("acme"):
        sealed = app.one("select llm.encrypt_data('secret of acme')")
        assert app.one("select llm.decrypt_data(%s)", sealed) == "secret of acme"
    assert not list(tmp_path.glob("**/tenant.*"))

    for body, message in (
        ("exit 3", "failed, it exited with 3"),
        ("true", "the command of master key version 1 is empty"),
        (f"echo {KEY}{KEY}", "the command of master key version 1 holds no key"),
        (f"echo {KEY[::-1]}", "master key version 1 is not the key that it was"),
    ):
        script(keys, body)
        with raises(ConfigFileError, match=message), app.tenant("acme"):
            app.run("select llm.decrypt_data(%s)", sealed)
    keys.unlink()
    with (
        raises(ConfigFileError, match=f"master key version 1 is missing: {keys} failed, No such file", hint="As the server's user run"),
        app.tenant("acme"),
    ):
        app.run("select llm.decrypt_data(%s)", sealed)


def test_a_version_that_was_forgotten_is_missed(db: Client, app: Client, sealed: bytes) -> None:
    db.run("set session_replication_role = replica").run("delete from llm.master_keys")
    with raises(ObjectNotInPrerequisiteState, match="master key version 1 is missing in llm.master_keys", hint="Add it again"), app.tenant("acme"):
        app.run("select llm.decrypt_data(%s)", sealed)


def test_a_tenant_is_known_by_the_role_that_was_set(db: Client, app: Client, master_key: Path) -> None:
    """Within security definer functions too, where the current role is llm_owner."""
    db.run("create role of_acme in role llm_app").run("grant of_acme to app").run("select llm.bind_role('of_acme', 'acme')")
    app.run("set role of_acme")
    sealed = app.one("select llm.encrypt_data('x')")
    with raises(InsufficientPrivilege, match="works for tenant acme only"), app.tenant("globex"):
        pass
    assert app.one("select llm.decrypt_data(%s)", sealed) == "x"
    assert db.column("select tenant_id from llm.data_keys") == ["acme"]
    app.run("reset role")
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set", hint="llm.set_tenant"):
        app.run("select llm.decrypt_data(%s)", sealed)

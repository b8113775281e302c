"""ALTER EXTENSION pg_llm UPDATE and pg_upgrade."""

from __future__ import annotations

from pathlib import Path

from psycopg.errors import ObjectNotInPrerequisiteState

from tests.conftest import new_cluster
from tests.lifecycle.releases import NEXT, NOW, next_release
from tests.lifecycle.support import Mover, contents, differences, fill, fingerprint, positions
from tests.support import Client, Database, raises
from tools.cluster import Cluster, Installation


def test_an_updated_installation_is_what_a_fresh_one_is(db: Client, fresh: Client) -> None:
    """DR-20: functions, owners, privileges, settings, comments, types, tables, columns, constraints, indexes, triggers, policies."""
    db.run("alter extension pg_llm update").run("select llm.setup()")
    assert differences(fingerprint(db), fingerprint(fresh)) == []
    assert db.rows("select * from llm.doctor() where not ok") == fresh.rows("select * from llm.doctor() where not ok")


def test_an_update_keeps_the_data(filled: Database, fresh: Client) -> None:
    """DR-20: on a database in use, the new column filled by its migration."""
    client = filled.client()
    rows = client.rows("select tenant_id, key, value, description from llm.config order by 1, 2")
    history = client.rows("select * from llm.config_history order by id")
    client.run("alter extension pg_llm update").run("select llm.setup()")
    assert differences(fingerprint(client), fingerprint(fresh)) == []
    assert client.rows("select tenant_id, key, value, description from llm.config order by 1, 2") == rows
    assert client.rows("select * from llm.config_history where id <= 3000000001 order by id") == history
    assert client.column("select distinct owner from llm.config order by 1") == ["admin", "app"]


def test_update_and_setup_are_one_transaction_if_one_wants(db: Client, app: Client) -> None:
    db.run("select llm.save_config('k', '1')")
    assert app.one("select llm.load_config('k')") == 1
    with db.transaction():
        db.run("alter extension pg_llm update").run("select llm.setup()").run("select llm.save_config('k', '2')")
        assert db.one("select llm.load_config('k')") == 2
    assert app.one("select llm.load_config('k')") == 2


def test_an_update_keeps_what_was_granted_and_revoked_by_the_user(db: Client) -> None:
    own_privileges = (
        "select has_function_privilege('nobody', 'llm.load_config(text,jsonb,boolean)', 'execute'),"
        " has_function_privilege('llm_app', 'llm.rollback_config(bigint,timestamptz,text,text)', 'execute')"
    )
    db.run("grant execute on function llm.load_config to nobody").run("revoke execute on function llm.rollback_config from llm_app")
    assert db.row(own_privileges) == (True, False)
    db.run("alter extension pg_llm update")
    assert db.row(own_privileges) == (True, False)


def test_what_the_user_granted_is_in_the_dumps_after_an_update(mover: Mover, database: Database, db: Client) -> None:
    """DR-01: pg_dump writes only privileges that the extension's scripts did not set; an update must not claim the user's for itself."""
    db.run("grant execute on function llm.load_config to nobody")
    db.run("alter extension pg_llm update").run("select llm.setup()")
    restored = mover.restore(mover.dump(database, "-Fc"), database.cluster).client()
    assert restored.one("select has_function_privilege('nobody', 'llm.load_config(text,jsonb,boolean)', 'execute')")
    assert differences(fingerprint(restored), fingerprint(db)) == []


def test_a_function_without_privileges_for_public_never_has_them(db: Client) -> None:
    db.run("alter extension pg_llm update")
    callable_by_nobody = "select proname from pg_proc where pronamespace = 'llm'::regnamespace and has_function_privilege('nobody', oid, 'execute')"
    assert db.column(callable_by_nobody) == []


def test_security_definer_functions_keep_their_owner(db: Client) -> None:
    db.run("alter extension pg_llm update")
    assert set(db.column("select proowner::regrole::text from pg_proc where pronamespace = 'llm'::regnamespace and prosecdef")) == {"llm_owner"}


def test_pg_upgrade_to_another_place_keeps_everything(tmp_path: Path) -> None:
    """DR-03: the new server's programs, and with them its $libdir, lie elsewhere; afterwards the extension is updated."""
    old_programs, new_programs = Installation(tmp_path / "old").install(), Installation(tmp_path / "new").install()
    new_programs.install(next_release(tmp_path / "next"))
    with new_cluster(old_programs, tmp_path / "a") as old:
        database = Database(old, "template_llm")
        fill(database)
        client = database.client()
        before, rows, sequences = fingerprint(client), contents(client), positions(client)
        database.close()
    new = Cluster(new_programs, tmp_path / "b", *old.settings)
    new.init_directory()
    new.program(
        "pg_upgrade",
        "-b",
        old_programs.bindir,
        "-d",
        old.datadir,
        "-B",
        new_programs.bindir,
        "-D",
        new.datadir,
        "-s",
        str(new.unixsocketdir),
        "--copy",
    )
    # What still works afterwards needs nothing of the old libraries.
    old_programs.pkglibdir.rename(tmp_path / "gone")
    with new:
        database = Database(new, "template_llm")
        client = database.client()
        assert differences(fingerprint(client), before) == []
        assert (contents(client), positions(client)) == (rows, sequences)
        assert client.one("select llm.load_config('limit')") == 11
        with client.tenant("acme"):
            end = client.one("select llm.stream_end('orders')")
            client.run("select llm.stream_append('orders', '4')")
        with client.tenant("acme"):
            assert client.one("select era from llm.stream_era") == 1
            assert client.column("select payload from llm.stream_read('orders', %s)", end) == [4]
            assert client.column("select payload from llm.group_read('orders', 'g', 'bob')") == [3, 4]
        client.run("delete from llm.stream_entries where payload = '4'").run("delete from llm.group_deliveries where consumer = 'bob'")
        assert str(new_programs.pkglibdir) in client.one("select detail from llm.doctor() where name = 'Python''s folders are safe'")

        client.run("delete from llm.config where key ~ '[[:cntrl:]]'").run("alter extension pg_llm update")
        with raises(ObjectNotInPrerequisiteState, f"at version {NOW}, its code at {NEXT}", hint="select llm.setup()"):
            client.run("select llm.load_config('limit')")
        client.run("select llm.setup()")
        client.run("select llm.save_config('limit', '12')")
        assert client.one("select llm.load_config('limit')") == 12
        assert contents(client)["llm.config"][0] == rows["llm.config"][0]
        database.close()

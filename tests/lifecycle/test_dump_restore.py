"""pg_dump, pg_restore and psql."""

from __future__ import annotations

import pytest
from psycopg.errors import ObjectNotInPrerequisiteState

from tests.conftest import LOGINS
from tests.lifecycle.releases import NEXT, NOW
from tests.lifecycle.support import Mover, contents, differences, fill, fingerprint, positions
from tests.support import Client, Database, raises
from tools.cluster import Cluster

#: Uses up transaction numbers, each committed.
BURN = "do $$ begin for i in 1..{} loop perform pg_current_xact_id(); commit; end loop; end $$"


@pytest.fixture
def original(fresh_database: Database, fresh: Client) -> Database:
    """A filled database at NEXT, the server's default version, with privileges and views of the user's own."""
    fill(fresh_database)
    fresh.run("insert into llm.notes (tenant_id, body) values ('acme', 'one'), ('globex', 'two')")
    fresh.run("grant execute on function llm.load_config to nobody").run("revoke execute on function llm.rollback_config from llm_app")
    fresh.run("grant select on llm.config to nobody").run("grant usage on sequence llm.config_history_id_seq to nobody")
    fresh.run("grant usage on schema llm to nobody")
    fresh.run("create view public.models as select key, value from llm.load_configs('model')")
    return fresh_database


@pytest.fixture
def plain(fresh_database: Database) -> Database:
    """A filled database at NEXT in which no role but pg_llm's own is named."""
    fill(fresh_database)
    return fresh_database


def transactions_used(cluster: Cluster) -> int:
    """Return the number of the next transaction of a server."""
    with cluster.connect() as connection:
        (number,) = connection.execute("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone() or (0,)
        return int(number)


@pytest.mark.parametrize("options", [("-1",), ("-j", "2")], ids=" ".join)
def test_pg_restore_brings_everything_back(original: Database, fresh: Client, cluster: Cluster, mover: Mover, options: tuple[str, ...]) -> None:
    """DR-01"""
    restored = mover.restore(mover.dump(original, "-Fc"), cluster, *options).client()
    assert_equal(restored, fresh)


def test_psql_brings_everything_back(original: Database, fresh: Client, cluster: Cluster, mover: Mover) -> None:
    """DR-01"""
    restored = mover.run_script(mover.dump(original), cluster).client()
    assert_equal(restored, fresh)


def assert_equal(restored: Client, fresh: Client) -> None:
    assert differences(fingerprint(restored), fingerprint(fresh)) == []
    assert contents(restored) == contents(fresh)
    assert positions(restored) == positions(fresh)
    with restored.tenant("globex"):
        assert restored.one("select llm.decrypt_data(body, null, 'public.letters', 'body', '2') from public.letters where id = 2") == "of globex"
    assert restored.rows("select * from public.models order by 1") == fresh.rows("select * from public.models order by 1")
    assert restored.rows("select * from llm.setup()") == []


def test_what_was_restored_goes_on(original: Database, cluster: Cluster, mover: Mover) -> None:
    """DR-02: no sequence stands before an id in use; history, versions and row-level security continue."""
    database = mover.restore(mover.dump(original, "-Fc"), cluster, "-1")
    client, app = database.client(), database.client("app")
    identities = client.rows(
        "select a.attrelid::regclass::text, a.attname, pg_get_serial_sequence(a.attrelid::regclass::text, a.attname)"
        " from pg_attribute a join pg_class c on c.oid = a.attrelid"
        " where c.relnamespace = 'llm'::regnamespace and c.relkind in ('r', 'p')"
        " and pg_get_serial_sequence(a.attrelid::regclass::text, a.attname) is not null"
    )
    assert identities
    for table, column, sequence in identities:
        assert client.one(f"select nextval(%s) > coalesce(max({column}), 0) from {table}", sequence)

    with app.tenant("acme"):
        version = app.one("select (llm.config_access('model')).version")
        app.run("select llm.save_config('model', '\"new\"')")
        assert app.one("select (llm.config_access('model')).version") == version + 1
        assert app.one("select value from llm.config_history where key = 'model' order by id desc limit 1") == "new"
        assert app.column("select distinct tenant_id from llm.config order by 1") == ["*", "acme"]


def test_an_older_dump_is_restored_under_a_newer_release_and_migrated(
    filled: Database, original: Database, fresh: Client, cluster: Cluster, mover: Mover
) -> None:
    filled.client().run("delete from llm.config where key ~ '[[:cntrl:]]'")
    restored = mover.restore(mover.dump(filled, "-Fc"), cluster, "-1")
    client = restored.client()
    with raises(ObjectNotInPrerequisiteState, f"at version {NOW}, its code at {NEXT}", hint=r"select llm.setup\(\)"):
        client.run("select llm.load_config('limit')")
    rows = client.rows("select tenant_id, key, value from llm.config order by 1, 2")
    client.run("select llm.setup()")
    fresh.run("revoke all on all tables in schema llm from nobody").run("revoke all on all sequences in schema llm from nobody")
    fresh.run("revoke all on all functions in schema llm from nobody").run("revoke all on schema llm from nobody")
    fresh.run("grant execute on function llm.rollback_config to llm_app")
    assert differences(fingerprint(client), fingerprint(fresh)) == []
    assert client.rows("select tenant_id, key, value from llm.config order by 1, 2") == rows
    assert client.one("select llm.load_config('limit')") == 11


def test_a_server_without_the_roles_gets_them_by_the_restore(plain: Database, fresh: Client, elsewhere: Cluster, mover: Mover) -> None:
    """DR-05"""
    restored = mover.restore(mover.dump(plain, "-Fc"), elsewhere, "-1").client()
    assert differences(fingerprint(restored), fingerprint(fresh)) == []
    assert contents(restored) == contents(fresh)


def test_a_server_that_was_given_the_roles_keeps_them(original: Database, fresh: Client, elsewhere: Cluster, mover: Mover, cluster: Cluster) -> None:
    """DR-05: by pg_dumpall --roles-only, memberships included."""
    script = cluster.program("pg_dumpall", "--roles-only").splitlines()
    with elsewhere.connect() as connection:
        connection.execute("\n".join(line for line in script if "ROLE postgres" not in line and not line.startswith("\\")))
    database = mover.restore(mover.dump(original, "-Fc"), elsewhere, "-1")
    assert_equal(database.client(), fresh)
    assert set(LOGINS) <= set(database.client().column("select rolname from pg_roles"))
    with database.client("app").tenant("acme") as app:
        assert app.one("select llm.load_config('limit')") == 11


def test_a_hostile_role_stops_the_restore_before_any_table(plain: Database, elsewhere: Cluster, mover: Mover) -> None:
    """DR-05"""
    with elsewhere.connect() as connection:
        connection.execute("create role llm_app login")
    database = mover.empty(elsewhere)
    with pytest.raises(RuntimeError, match="role llm_app exists, but it has attributes beyond NOLOGIN"):
        elsewhere.program("pg_restore", "--exit-on-error", "-d", database.name, mover.dump(plain, "-Fc"))
    client = database.client()
    assert client.rows("select from pg_class where relnamespace = to_regnamespace('llm')") == []
    assert client.rows("select from pg_extension where extname = 'pg_llm'") == []


def test_a_history_of_another_server_is_adopted_by_setup(plain: Database, fresh: Client, elsewhere: Cluster, mover: Mover) -> None:
    """Numbers of transactions that the new server has not begun would hide later changes from a watcher, or show them out of order."""
    ahead = max(0, transactions_used(elsewhere) - transactions_used(plain.cluster))
    fresh.run("set client_min_messages = warning").run(BURN.format(ahead + 5000))
    fresh.run("select llm.save_config('last', '1')")
    known = fresh.one("select max(id) from llm.config_history")

    database = mover.restore(mover.dump(plain, "-Fc"), elsewhere, "-1")
    client = database.client()
    with raises(ObjectNotInPrerequisiteState, "history was restored from another server", hint=r"select llm.setup\(\)"):
        client.run("select * from llm.watch_config(%s)", known)
    assert client.rows("select * from llm.setup()") == []
    assert client.rows("select * from llm.watch_config(%s)", known) == []
    client.run("select llm.save_config('new', '1')")
    assert client.column("select key from llm.watch_config(%s)", known) == ["new"]
    assert len(client.rows("select * from llm.watch_config()")) == client.one("select count(*) from llm.config_history where tenant_id = '*'")


def test_a_watcher_goes_on_where_it_was_on_the_other_server(fresh: Client, plain: Database, elsewhere: Cluster, mover: Mover) -> None:
    """Of the other server's transactions only some have numbers that this one has not begun."""
    fresh.run("select llm.save_config('early', '1')")
    known, number = fresh.row("select id, transaction_id::text::bigint from llm.config_history order by id desc limit 1")
    with elsewhere.connect() as connection:
        connection.execute(BURN.format(max(0, number - transactions_used(elsewhere)) + 100))
    fresh.run(BURN.format(max(0, transactions_used(elsewhere) - transactions_used(plain.cluster)) + 5000))
    fresh.run("select llm.save_config('late', '1')")
    assert fresh.column("select key from llm.watch_config(%s)", known) == ["late"]

    database = mover.restore(mover.dump(plain, "-Fc"), elsewhere, "-1")
    client = database.client().run("select llm.setup()").run("select llm.save_config('later', '1')")
    assert client.column("select key from llm.watch_config(%s)", known) == ["late", "later"]


def test_own_changes_are_not_taken_for_another_servers(db: Client) -> None:
    with db.transaction():
        db.run("select llm.save_config('k', '1')")
        assert db.rows("select * from llm.watch_config()") == []
    assert db.column("select key from llm.watch_config()") == ["k"]


def test_setup_adopts_no_change_of_its_own_transaction(db: Client) -> None:
    """Else a watcher, who is past the adopted ones, would never see it."""
    db.run("select llm.save_config('known', '1')")
    known = db.one("select max(id) from llm.config_history")
    with db.transaction():
        db.run("select llm.save_config('k', '1')").run("select llm.setup()")
    assert db.column("select key from llm.watch_config(%s)", known) == ["k"]

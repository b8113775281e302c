"""What was sealed stays provable wherever the log goes: dumps, other servers and their transaction ids, standbys, pg_upgrade."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.errors import InsufficientPrivilege, LockNotAvailable, ReadOnlySqlTransaction

from tests.lifecycle.support import Mover
from tests.lifecycle.test_dump_restore import BURN, transactions_used
from tests.support import Database, raises
from tests.test_seal import SEALED, faults, write
from tools.cluster import Cluster

HEAD = "select split_part(split_part(detail, 'head: ', 2), ',', 1) from llm.verify_audit() where kind = 'verified'"


@pytest.fixture
def sealed(database: Database) -> Database:
    """The test's database, with 100 rows in batches."""
    write(database.client("app"), 100)
    assert database.client().one("select llm.seal_audit(p_batch_rows => 30)") == 100
    return database


@pytest.mark.parametrize("options", [("-1",), ("-j", "2")], ids=" ".join)
def test_aud_08_a_dump_restored_beside_has_the_same_head(sealed: Database, cluster: Cluster, mover: Mover, options: tuple[str, ...]) -> None:
    """AUD-08: and is sealed on."""
    restored = mover.restore(mover.dump(sealed, "-Fc"), cluster, *options)
    client = restored.client()
    assert client.one(HEAD) == sealed.client().one(HEAD)
    assert faults(client) == []
    write(restored.client("app"), 10)
    assert client.one("select llm.seal_audit()") == 10
    assert faults(client) == []
    assert client.one("select count(*) from llm.audit_seals where kind = 'life'") == 1


@pytest.fixture(params=["ahead", "behind"])
def elsewhere_in_time(request: pytest.FixtureRequest, sealed: Database, elsewhere: Cluster) -> Cluster:
    """Another server, whose transaction ids are ahead of ours or behind."""
    own, other = transactions_used(sealed.cluster), transactions_used(elsewhere)
    here, there = sealed.client().connection, elsewhere.connect()
    if request.param == "ahead":
        there.execute(BURN.format(max(0, own - other) + 20_000))
    else:
        here.execute(BURN.format(max(0, other - own) + 20_000))
    there.close()
    return elsewhere


def test_aud_08_another_servers_transactions_begin_a_life_of_their_own(sealed: Database, elsewhere_in_time: Cluster, mover: Mover) -> None:
    """AUD-08: with rows that were not sealed when they were dumped, and rows that are written before anybody seals on the new server."""
    holder = sealed.client("app").run("begin")
    write(holder, 3, "held")
    late = sealed.client("app")
    write(late, 20, "late")
    assert sealed.client().one("select llm.seal_audit()") == 0
    holder.run("commit")

    restored = mover.restore(mover.dump(sealed, "-Fc"), elsewhere_in_time, "-1")
    client = restored.client()
    assert client.one(HEAD) == sealed.client().one(HEAD)
    assert faults(client) == []
    write(client, 7, "new")
    assert faults(client) == []
    assert client.one("select llm.seal_audit()") == 30
    assert client.column("select kind from llm.audit_seals where kind <> 'batch'") == ["life", "life"]
    write(client, 5, "newer")
    assert client.one("select llm.seal_audit()") == 5
    assert faults(client) == []
    assert client.column(SEALED) == client.column("select id from llm.audit_log order by id")


def test_aud_08_a_log_that_was_never_sealed_is_sealed_elsewhere(database: Database, elsewhere: Cluster, mover: Mover) -> None:
    """AUD-08"""
    write(database.client("app"), 50)
    client = mover.restore(mover.dump(database, "-Fc"), elsewhere, "-1").client()
    assert faults(client) == []
    assert client.one("select llm.seal_audit()") == 50
    write(client, 5)
    assert client.one("select llm.seal_audit()") == 5
    assert faults(client) == []


def test_a_life_begins_after_those_who_are_writing(sealed: Database, elsewhere: Cluster, mover: Mover) -> None:
    """Who took an id before the new life began is waited for."""
    restored = mover.restore(mover.dump(sealed, "-Fc"), elsewhere, "-1")
    writer, sealer, watcher = restored.client(), restored.client(), restored.client()
    writer.run("begin")
    write(writer, 3, "slow")
    sealer.run("set lock_timeout = '100ms'")
    with raises(LockNotAvailable):
        sealer.run("select llm.seal_audit()")
    writer.run("commit")
    assert sealer.one("select llm.seal_audit()") == 3
    assert faults(watcher) == []


def test_aud_08_a_standby_verifies_and_does_not_seal(sealed: Database, tmp_path: Path) -> None:
    """AUD-08"""
    write(sealed.client("app"), 5)
    standby = sealed.cluster.standby(tmp_path / "standby")
    try:
        copy = Database(standby, sealed.name)
        client = copy.client()
        target = sealed.client().one("select pg_current_wal_lsn()::text")
        client.wait("select pg_last_wal_replay_lsn() >= %s::text::pg_lsn", target)
        assert client.one(HEAD) == sealed.client().one(HEAD)
        assert faults(client) == []
        assert client.one("select waiting_rows from llm.audit_seal_status()") == 5
        with raises(ReadOnlySqlTransaction):
            client.run("select llm.seal_audit()")
        copy.close()
    finally:
        standby.stop()


def test_aud_08_pg_upgrade_keeps_what_was_sealed(tmp_path: Path, cluster: Cluster) -> None:
    """AUD-08: transaction ids go on, the server has another identifier."""
    from tests.conftest import new_cluster

    with new_cluster(cluster.installation, tmp_path / "old") as old:
        database = Database(old, "template_llm")
        client = database.client()
        write(client, 40)
        assert client.one("select llm.seal_audit(p_batch_rows => 7)") == 40
        write(client, 3, "not sealed")
        head = client.one(HEAD)
        database.close()
        old.stop()
        new = Cluster(cluster.installation, tmp_path / "new", *old.settings)
        new.init_directory()
        bindir = str(cluster.installation.bindir)
        directories = ("--old-datadir", old.datadir, "--new-datadir", new.datadir, "--socketdir", str(new.unixsocketdir))
        new.program("pg_upgrade", "--old-bindir", bindir, "--new-bindir", bindir, *directories, "--username", "postgres")
        with new:
            database = Database(new, "template_llm")
            client = database.client()
            assert client.one(HEAD) == head
            assert faults(client) == []
            write(client, 2, "new")
            assert client.one("select llm.seal_audit()") == 5
            assert faults(client) == []
            database.close()


def test_the_seals_survive_the_extension(sealed: Database) -> None:
    client = sealed.client()
    head = client.one(HEAD)
    client.run("drop extension pg_llm cascade").run("create extension pg_llm cascade").run("select llm.setup()")
    assert client.one(HEAD) == head
    assert faults(client) == []
    write(client, 3)
    assert client.one("select llm.seal_audit()") >= 3
    assert faults(client) == []
    with raises(InsufficientPrivilege, match="only ever added to"):
        client.run("delete from llm.audit_seals")


def test_whoever_is_not_asked_learns_nothing(sealed: Database) -> None:
    """The seals name no tenant; but which rows there are is not for all to see."""
    for user in ("app", "reader", "nobody"):
        with raises(InsufficientPrivilege):
            sealed.client(user).run("select * from llm.audit_seals")

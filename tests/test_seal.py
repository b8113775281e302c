"""Sealing the audit log: every committed row comes into one batch, once, whatever else goes on."""

from __future__ import annotations

import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor
from random import Random

import psycopg
import pytest
from psycopg.errors import InvalidParameterValue, ObjectNotInPrerequisiteState

from pg_llm import merkle
from tests.conftest import new_database
from tests.support import Client, Database, at_once, raises
from tools.cluster import Cluster

#: The rows that are in some batch, as often as they are in one.
SEALED = """
    select a.id
    from llm.audit_log a
    join llm.audit_seals s on s.kind = 'batch' and a.id <@ s.ids
    where a.transaction_id between s.first_transaction and s.last_transaction
        and a."timestamp" >= s.rows_from
        and a."timestamp" < s.rows_to
    order by a.id
    """


def write(client: Client, count: int = 1, action: str = "read") -> None:
    """Write so many rows."""
    client.run("select llm.log_audit_event(%s, 'thing', i::text, '{\"a\": [1, null]}') from generate_series(1, %s) i", action, count)


def faults(client: Client) -> list[tuple[int | None, int | None, str]]:
    """Return what verification finds wrong: entry, row and kind."""
    return client.rows("select entry, row_id, kind from llm.verify_audit() where not ok and kind <> 'verified'")


def test_rows_are_sealed_and_found_intact(db: Client, app: Client) -> None:
    with app.tenant("acme"):
        write(app, 10)
    assert db.one("select llm.seal_audit()") == 10
    assert db.one("select llm.seal_audit()") == 0
    with app.tenant("globex"):
        write(app, 5)
    assert db.one("select llm.seal_audit()") == 5
    assert db.rows("select number, kind, row_count from llm.audit_seals order by 1") == [(1, "life", None), (2, "batch", 10), (3, "batch", 5)]
    (finding,) = db.rows("select ok, entry, kind, detail from llm.verify_audit()")
    assert finding[:3] == (True, 3, "verified")
    assert finding[3].startswith("batches: 2, rows: 15, head: ")


def test_a_log_without_rows_has_nothing_to_seal_and_is_intact(db: Client) -> None:
    assert db.one("select llm.seal_audit()") == 0
    assert db.column("select ok from llm.verify_audit()") == [True]


def test_batches_hold_rows_of_one_partition_and_are_not_larger_than_asked(db: Client, app: Client) -> None:
    db.run("""
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, "timestamp")
        select 'acme', 'u', 'a', 't', i::text, now() + (i % 3 - 1) * interval '32 days' from generate_series(1, 90) i
        """)
    assert db.one("select llm.seal_audit(p_batch_rows => 20)") == 90
    batches = db.rows("select row_count, rows_from, rows_to from llm.audit_seals where kind = 'batch' order by number")
    assert [count for count, _, _ in batches] == [20, 10] * 3
    assert len({rows_from for _, rows_from, _ in batches}) == 3
    assert db.column(SEALED) == list(range(1, 91))
    assert faults(db) == []


def test_rows_outside_of_all_partitions_are_sealed_by_month(db: Client) -> None:
    insert = """
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, "timestamp") values ('acme', 'u', 'a', 't', 'o', %s)
        """
    for moment in ("1999-12-31 23:59:59.999999+00", "2000-01-01 00:00:00+00", "2000-01-31 12:00:00+00", "2101-06-01 00:00:00+00"):
        db.run(insert, moment)
    db.run("set timezone = 'Asia/Tokyo'")
    assert db.one("select llm.seal_audit()") == 4
    assert db.rows("select row_count, rows_from at time zone 'UTC', rows_to at time zone 'UTC' from llm.audit_seals where kind = 'batch'"
                   " order by 2")[0][0] == 1  # fmt: skip
    assert db.column("select row_count from llm.audit_seals where kind = 'batch' order by rows_from") == [1, 2, 1]
    assert faults(db) == []


def test_details_of_64_megabytes_are_stored_and_sealed(app: Client, db: Client) -> None:
    app.run("select llm.log_audit_event('a', 'b', 'c', jsonb_build_object('text', repeat(%s, 8000000)))", "é\\\n4567")
    assert db.one("select octet_length(details::text) from llm.audit_log") > 64_000_000
    assert sealed_leaves(db) == leaves(db)


def leaves(db: Client) -> list[bytes]:
    """Compute the hashes of all rows anew, as docs/audit.md describes them."""
    found = []
    for row in db.rows("""
        select
            id, (extract(epoch from "timestamp") * 1000000)::bigint - 946684800000000, transaction_id::text::bigint,
            tenant_id, user_id, action, object_type, object_id, login_role, application,
            details::text, client_info::text, before::text, after::text, client_address::text, sensitive_hash
        from llm.audit_log
        order by id
        """):
        numbers, texts, lines, sensitive_hash = row[:3], row[3:10], row[10:15], row[15]
        lengths = [-1 if text is None else len(text.encode()) for text in texts]
        data = struct.pack(">3q7i", *numbers, *lengths) + "".join(text or "" for text in texts).encode()
        data += "".join(f"{line or ''}\n" for line in lines).encode() + (sensitive_hash or b"")
        found.append(hashlib.sha256(b"\0" + data).digest())
    return found


def sealed_leaves(db: Client) -> list[bytes]:
    """Seal all rows; return their hashes, sorted."""
    db.run("select llm.seal_audit()")
    found = []
    for number, root, fingerprints in db.rows("select number, root, fingerprints from llm.audit_seals where kind = 'batch'"):
        data = db.one("select leaves from llm._audit_leaves(%s)", number)
        leaves = [data[at : at + merkle.SIZE] for at in range(0, len(data), merkle.SIZE)]
        assert merkle.root(data) == root
        assert b"".join(leaf[:4] for leaf in leaves) == fingerprints
        found += leaves
    return sorted(found)


def test_a_row_is_sealed_by_the_hash_of_its_canonical_bytes(app: Client, db: Client) -> None:
    """AUD-08: whatever the session's settings are."""
    db.run("""
        insert into llm.audit_log (
            tenant_id, user_id, action, object_type, object_id, details, client_info, before, after, client_address, application, sensitive_hash,
            "timestamp"
        )
        values
            ('t', e'ü\\\\x\\'\\n', 'a', 'o', '1', '{"a": "\\\\x\\n ü"}', '[]', 'null', '"x"', '::1', null, '\\x00ff', now()),
            ('t', '', '', '', '', null, null, null, null, '10.0.0.0/8', '', null, now() - interval '10 days')
        """)
    app.run("set timezone = 'Asia/Kathmandu'").run("set datestyle = 'German'").run("set bytea_output = escape").run(
        "set standard_conforming_strings = off"
    )
    app.run("set extra_float_digits = 0").run("select llm.log_audit_event('a', 'b', 'c', '{\"f\": 0.1000}')")
    assert len(set(leaves(db))) == 3
    assert sealed_leaves(db.run("set timezone = 'America/Caracas'")) == sorted(leaves(db))


def test_a_run_stops_after_so_many_rows_and_divides_no_transaction(db: Client, app: Client) -> None:
    write(app)
    db.run("select llm.seal_audit()")
    for _ in range(10):
        with app.transaction():
            write(app, 10)
    assert db.one("select llm.seal_audit(p_max_rows => 25)") == 20
    assert db.one("select llm.seal_audit(p_max_rows => 1)") == 10
    assert db.one("select llm.seal_audit(p_max_rows => 70, p_batch_rows => 3)") == 70
    assert db.column(SEALED) == list(range(1, 102))
    assert faults(db) == []


@pytest.mark.parametrize("arguments", ["0", "null", "1, 0", "1, null", "-1"])
def test_numbers_below_one_are_refused(db: Client, arguments: str) -> None:
    with raises(InvalidParameterValue, match="rows in batches of .* cannot be sealed", hint="at least 1"):
        db.run(f"select llm.seal_audit({arguments})")


def test_an_old_snapshot_does_not_seal(db: Client) -> None:
    with raises(ObjectNotInPrerequisiteState, match="cannot be sealed in a transaction that is repeatable read", hint="COMMITTED"), db.transaction():
        db.run("set transaction isolation level repeatable read").run("select llm.seal_audit()")


def test_one_session_seals_at_a_time(database: Database, db: Client, app: Client) -> None:
    write(app, 3)
    first, second = database.clients(2, "admin")
    second.run("set lock_timeout = '1s'")
    with first.transaction():
        assert first.one("select llm.seal_audit()") == 3
        assert second.one("select llm.seal_audit()") is None
    assert second.one("select llm.seal_audit()") == 0
    write(app, 1000)
    sealed = at_once(database.clients(8), "select llm.seal_audit()")
    assert sum(count or 0 for count in sealed) == 1000
    assert faults(db) == []


def test_a_run_that_is_rolled_back_leaves_its_rows_to_the_next(db: Client, app: Client) -> None:
    write(app, 3)
    with db.connection.transaction(force_rollback=True):
        assert db.one("select llm.seal_audit()") == 3
    assert db.one("select llm.seal_audit()") == 3
    assert faults(db) == []


def test_aud_04_every_committed_row_comes_into_one_batch(database: Database, db: Client) -> None:
    """AUD-04: writers, rollbacks, a sealer, and a transaction that stays open all the while; more than a batch's rows in one transaction."""
    write(database.client("app"))
    db.run("select llm.seal_audit()")
    slow = database.client("app")
    committed = []

    def work(number: int) -> list[str]:
        chance, client, done = Random(number), database.client("app"), []
        for turn in range(60):
            label = f"{number} {turn}"
            is_undone = chance.random() < 0.05
            with client.connection.transaction(force_rollback=is_undone):
                write(client, chance.choice((1, 1, 1, 2, 30)), label)
            done += [] if is_undone else [label]
        return done

    with slow.transaction():
        write(slow, 3, "slow")
        with ThreadPoolExecutor(16) as pool:
            results = [pool.submit(work, number) for number in range(16)]
            while not all(result.done() for result in results):
                assert db.one("select llm.seal_audit(p_max_rows => 100, p_batch_rows => 16)") is not None
            committed = [label for result in results for label in result.result()]
        while db.one("select llm.seal_audit(p_batch_rows => 16)"):
            pass
        # The open transaction took its id first: what came after it waits.
        assert db.one("select count(*) from llm.audit_seals where kind = 'batch'") == 1
        waiting, holder = db.row("select waiting_rows, held_up_by from llm.audit_seal_status()")
        assert waiting == db.one("select count(*) - 1 from llm.audit_log")
        assert holder == f"process {slow.connection.info.backend_pid}"
    while db.one("select llm.seal_audit(p_max_rows => 500, p_batch_rows => 16)"):
        pass
    assert db.column(SEALED) == db.column("select id from llm.audit_log order by id")
    assert set(db.column("select distinct action from llm.audit_log")) == {*committed, "slow", "read"}
    assert db.one("select max(row_count) from llm.audit_seals") == 16
    assert faults(db) == []


def test_aud_05_a_prepared_transaction_holds_sealing_up_and_loses_nothing(database: Database, db: Client, app: Client) -> None:
    """AUD-05: the status names it."""
    write(app)
    db.run("select llm.seal_audit()")
    database.client("app").run("begin").run("select llm.log_audit_event('prepared', 'thing', '1')").run("prepare transaction 'forgotten'")
    try:
        write(app, 4)
        assert db.one("select llm.seal_audit()") == 0
        assert db.row("select waiting_rows, held_up_by, waiting_since is not null from llm.audit_seal_status()") == (
            4, "prepared transaction 'forgotten'", True
        )  # fmt: skip
    finally:
        app.run("commit prepared 'forgotten'")
    assert db.one("select llm.seal_audit()") == 5
    assert faults(db) == []
    assert db.row("select waiting_rows, waiting_since, held_up_by, sealed_rows from llm.audit_seal_status()") == (0, None, None, 6)


def test_a_crash_loses_no_batch_that_was_seen(own_cluster: Cluster) -> None:
    """AUD-12: even where commits do not wait for the disk."""
    for database in new_database(own_cluster):
        client = database.client("app").run("set synchronous_commit = off")
        write(client, 100)
        superuser = database.client().run("set synchronous_commit = off")
        assert superuser.one("select llm.seal_audit()") == 100
        chain = superuser.rows("select number, hash from llm.audit_seals order by 1")
        own_cluster.crash()
        database.close()
        own_cluster.start()
        superuser = database.client()
        assert superuser.rows("select number, hash from llm.audit_seals order by 1") == chain
        write(database.client("app"), 5)
        assert superuser.one("select llm.seal_audit()") == 5
        assert faults(superuser) == []


def test_the_seals_are_only_ever_added_to(db: Client, app: Client) -> None:
    write(app)
    db.run("select llm.seal_audit()").run("set session_replication_role = replica")
    for statement in ("update llm.audit_seals set row_count = 2", "delete from llm.audit_seals", "truncate llm.audit_seals"):
        with raises(psycopg.errors.InsufficientPrivilege, match="only ever added to"):
            db.run(statement)


@pytest.mark.parametrize(
    ("user", "allowed"),
    [
        ("admin", {"seal_audit", "verify_audit", "audit_seal_status", "prove_audit", "anchor_audit"}),
        ("auditor", {"verify_audit", "audit_seal_status", "prove_audit"}),
        ("app", set()),
        ("reader", set()),
    ],
)
def test_roles_may_what_is_their_part(database: Database, user: str, allowed: set[str]) -> None:
    client = database.client(user)
    calls = {"seal_audit": "", "verify_audit": "", "audit_seal_status": "", "prove_audit": "1", "anchor_audit": "", "set_audit_anchor": "'/x'"}
    may = set()
    for name, arguments in calls.items():
        try:
            client.run(f"select llm.{name}({arguments})")
            may.add(name)
        except psycopg.errors.InsufficientPrivilege:
            pass
        except (psycopg.errors.NoDataFound, ObjectNotInPrerequisiteState):
            may.add(name)
    assert may == allowed

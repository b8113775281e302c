"""What was sealed cannot be changed unnoticed, not by a superuser either; and nothing that is honest is called a change."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import pytest
from psycopg.errors import DataCorrupted, InvalidParameterValue, NoDataFound, ObjectNotInPrerequisiteState

import verify_audit_proof as verifier
from tests.support import Client, Database, raises
from tests.test_seal import SEALED, faults, write
from tools.cluster import ROOT, run


def disarm(client: Client) -> Client:
    """Let a superuser change what is only ever added to."""
    return client.run("""
        create or replace function llm._refuse_audit_change() returns trigger language plpgsql
        as $$ begin return case tg_op when 'DELETE' then old else new end; end $$
        """)


@pytest.fixture
def sealed(db: Client, app: Client) -> Client:
    """A superuser's client whom no trigger stops, after 60 rows were sealed in batches 2 to 7."""
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            write(app, 30, f"act\\ion of\n{tenant} é")
    assert db.one("select llm.seal_audit(p_batch_rows => 10)") == 60
    assert faults(db) == []
    return disarm(db)


#: Changes of a row %s by a superuser, and what is found.
TAMPERINGS = {
    "tenant_id": ("update llm.audit_log set tenant_id = 'evil' where id = %s", "row edited"),
    "timestamp": ("""update llm.audit_log set "timestamp" = "timestamp" + interval '1 microsecond' where id = %s""", "row edited"),
    "user_id": ("update llm.audit_log set user_id = user_id || 'x' where id = %s", "row edited"),
    "action": ("update llm.audit_log set action = '' where id = %s", "row edited"),
    "shifted": ("update llm.audit_log set action = action || 't', object_type = substr(object_type, 2) where id = %s", "row edited"),
    "object_id": ("update llm.audit_log set object_id = '0' || object_id where id = %s", "row edited"),
    "details": ("update llm.audit_log set details = '{\"a\": [1, false]}' where id = %s", "row edited"),
    "no details": ("update llm.audit_log set details = null where id = %s", "row edited"),
    "details moved": ("update llm.audit_log set client_info = details, details = null where id = %s", "row edited"),
    "before": ("update llm.audit_log set before = '{}' where id = %s", "row edited"),
    "after": ("update llm.audit_log set after = 'null' where id = %s", "row edited"),
    "sensitive_hash": ("update llm.audit_log set sensitive_hash = '\\x00' where id = %s", "row edited"),
    "login_role": ("update llm.audit_log set login_role = 'nobody' where id = %s", "row edited"),
    "client_address": ("update llm.audit_log set client_address = '10.0.0.1' where id = %s", "row edited"),
    "application": ("update llm.audit_log set application = null where id = %s", "row edited"),
    "id": ("update llm.audit_log set id = id + 1000 where id = %s", "row missing"),
    "month": ("""update llm.audit_log set "timestamp" = "timestamp" - interval '40 days' where id = %s""", "row missing"),
    "transaction_id": ("update llm.audit_log set transaction_id = '3' where id = %s", "row missing"),
    "deleted": ("delete from llm.audit_log where id = %s", "row missing"),
    "inserted": (
        """
        insert into llm.audit_log (id, tenant_id, user_id, action, object_type, object_id, transaction_id)
        select 500 + id, 'acme', 'u', 'forged', 't', 'o', transaction_id from llm.audit_log where id = %s
        """,
        "row inserted",
    ),
    "doubled": (
        """
        insert into llm.audit_log (id, tenant_id, user_id, action, object_type, object_id, transaction_id)
        select id, 'evil', 'u', 'forged', 't', 'o', transaction_id from llm.audit_log where id = %s
        """,
        "row inserted",
    ),
    "exchanged": (
        """
        update llm.audit_log a set object_id = b.object_id
        from llm.audit_log b
        where %s in (a.id, b.id) and abs(a.id - b.id) = 1 and (a.id - 1) / 10 = (b.id - 1) / 10
        """,
        "row edited",
    ),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_aud_01_each_change_of_a_row_is_found_and_named(sealed: Client, what: str) -> None:
    """AUD-01"""
    statement, kind = TAMPERINGS[what]
    sealed.run(statement, 25)
    entry = None if what == "inserted" else 4
    row = 525 if what == "inserted" else 25
    assert (entry, row, kind) in faults(sealed)


def test_aud_01_a_hundred_random_changes_are_all_found(sealed: Client) -> None:
    """AUD-01: one at a time, each on another row."""
    chance = Random(7)
    for turn in range(100):
        what, row = chance.choice([name for name in TAMPERINGS if name != "exchanged"]), chance.randint(1, 60)
        statement, kind = TAMPERINGS[what]
        with sealed.connection.transaction(force_rollback=True):
            sealed.run(statement, row)
            found = faults(sealed)
            expected = (None, row + 500, kind) if what == "inserted" else ((row - 1) // 10 + 2, row, kind)
            assert expected in found, (turn, what, row, found)
    assert faults(sealed) == []


def test_aud_01_a_fingerprint_that_was_made_to_fit_does_not_help(sealed: Client) -> None:
    """AUD-01: only the name of the row is lost, since fingerprints are what tells it."""
    sealed.run("update llm.audit_log set action = 'harmless' where id = 25")
    assert faults(sealed) == [(4, 25, "row edited")]
    sealed.run("""
        update llm.audit_seals
        set fingerprints = overlay(fingerprints placing substr((select leaves from llm._audit_leaves(4)), 4 * 32 + 1, 4) from 4 * 4 + 1)
        where number = 4
        """)
    assert faults(sealed) == [(4, None, "rows changed")]


def test_many_changes_are_counted(sealed: Client) -> None:
    sealed.run("delete from llm.audit_log where id between 21 and 29").run("update llm.audit_log set action = 'x' where id > 50")
    assert faults(sealed) == [(4, 21, "row missing"), *((7, row, "row edited") for row in range(51, 61))]
    assert sealed.one("select detail from llm.verify_audit() where kind = 'row missing'") == "rows 21 to 29 are missing"
    sealed.run("delete from llm.audit_log where id between 11 and 20")
    assert (3, None, "rows missing") in faults(sealed)


#: Changes of entry 4, and what is found in which entry.
FORGERIES = {
    "root": ("root = sha256('x')", 4, "entry changed"),
    "row_count": ("row_count = 9", 4, "entry changed"),
    "ids": ("ids = '{[21,30)}'", 4, "entry changed"),
    "no ids": ("ids = null", 4, "entry changed"),
    "range": ("rows_to = rows_to + interval '1 month'", 4, "entry changed"),
    "transactions": ("last_transaction = '999999'", 4, "entry changed"),
    "horizon": ("horizon = '5'", 4, "entry changed"),
    "kind": ("kind = 'tombstone'", 4, "entry changed"),
    "time": ("sealed_at = sealed_at - interval '1 day'", 4, "entry changed"),
    "previous_hash": ("previous_hash = sha256('x')", 4, "chain broken"),
    "hash": ("hash = sha256('x')", 4, "entry changed"),
    "number": ("number = 40", 40, "entry missing"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_aud_03_each_change_of_an_entry_is_found(sealed: Client, what: str) -> None:
    """AUD-03"""
    change, entry, kind = FORGERIES[what]
    sealed.run(f"update llm.audit_seals set {change} where number = 4")
    assert (entry, kind) in {(found, kind) for found, _, kind in faults(sealed)}


def test_aud_03_an_entry_that_was_made_to_fit_breaks_the_chain(sealed: Client) -> None:
    """AUD-03: row, root and hash of one entry rewritten, as who knows the layout would do."""
    sealed.run("update llm.audit_log set action = 'harmless' where id = 25")
    forge(sealed, 4, sealed.one("select leaves from llm._audit_leaves(4)"))
    assert faults(sealed) == [(5, None, "chain broken")]


def forge(client: Client, number: int, leaves: bytes) -> None:
    """Rewrite root and hash of an entry so that they fit the rows."""
    from pg_llm import merkle

    client.run("update llm.audit_seals set root = %s where number = %s", merkle.root(leaves), number)
    entry = json.loads(client.one("select llm.prove_audit((select lower(ids) from llm.audit_seals where number = %s))::text", number))["entry"]
    client.run("update llm.audit_seals set hash = %s where number = %s", verifier.leaf_of_entry(entry), number)


def test_aud_03_a_missing_entry_is_found(sealed: Client) -> None:
    """AUD-03"""
    sealed.run("delete from llm.audit_seals where number = 4")
    found = faults(sealed)
    assert (5, None, "entry missing") in found
    assert (5, None, "chain broken") in found
    assert (None, 21, "row inserted") in found


def test_rows_of_the_future_are_found(sealed: Client) -> None:
    sealed.run("""
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, transaction_id) values ('a', 'u', 'x', 't', 'o', '9000000000')
        """)
    assert faults(sealed) == [(None, 61, "row inserted")]
    with sealed.transaction():
        sealed.run("select llm.log_audit_event('own', 't', 'o')")
        assert len(faults(sealed)) == 1


def test_a_part_can_be_verified(sealed: Client) -> None:
    sealed.run("update llm.audit_log set action = 'x' where id in (15, 35)")
    kinds = "select entry, row_id from llm.verify_audit(%s, %s) where kind = 'row edited'"
    assert sealed.rows(kinds, 4, None) == [(5, 35)]
    assert sealed.rows(kinds, None, 3) == [(3, 15)]
    assert sealed.rows(kinds, 6, 7) == []
    assert sealed.column("select detail from llm.verify_audit(6, 7)")[0].startswith("batches: 2, rows: 20, ")


def test_ids_that_rows_share_are_sealed_and_verified(db: Client) -> None:
    """Ids come from one sequence, but a superuser can give any."""
    db.run("""
        insert into llm.audit_log (id, tenant_id, user_id, action, object_type, object_id)
        select i % 5, 'tenant ' || i, 'u', 'a', 't', 'o' from generate_series(1, 20) i
        """)
    assert db.one("select llm.seal_audit(p_batch_rows => 6)") == 20
    assert faults(db) == []
    disarm(db).run("update llm.audit_log set action = 'b' where tenant_id = 'tenant 7'")
    assert [kind for _, _, kind in faults(db)] == ["rows changed"]


def peak(client: Client, statement: str) -> float:
    """Return the most memory of its own, in MB, that a client's backend has while it runs a statement."""
    status, is_over, most = Path(f"/proc/{client.connection.info.backend_pid}/status"), Event(), [0.0]

    def watch() -> None:
        while not is_over.wait(0.005):
            (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon:"))
            most[0] = max(most[0], int(line.split()[1]) / 1024)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        client.run(statement)
        is_over.set()
        watching.result()
    return most[0]


def test_aud_10_memory_does_not_grow_with_the_log(database: Database, db: Client) -> None:
    """AUD-10: neither to seal, nor to verify, nor to analyze; of 24 times the rows, which are 30 MB."""
    calls = ("llm.seal_audit(p_batch_rows => 5000)", "llm.verify_audit()", "llm.analyze_audit_logs()", "llm.audit_anomalies()")
    peaks = []
    for count in (5_000, 115_000):
        db.run(f"""
            insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, details)
            select 'acme', 'user ' || i % 100, 'read', 't', i::text, jsonb_build_object('x', repeat('y', 200)) from generate_series(1, {count}) i
            """)
        peaks.append([peak(database.client(), f"select count(*) from {call}") for call in calls])
    for call, small, large in zip(calls, *peaks, strict=True):
        assert large < small + 25, (call, small, large)


SETTINGS = (
    "set timezone = 'Pacific/Chatham'",
    "set datestyle = 'SQL, DMY'",
    "set intervalstyle = 'iso_8601'",
    "set bytea_output = 'escape'",
    "set extra_float_digits = -5",
    "set lc_numeric = 'C'",
    "set standard_conforming_strings = off",
    "set client_encoding = 'LATIN1'",
    "set search_path = public",
    "set enable_indexscan = off",
    "set quote_all_identifiers = on",
)


@pytest.mark.parametrize("setting", SETTINGS)
def test_aud_08_settings_change_nothing(sealed: Client, app: Client, setting: str) -> None:
    """AUD-08: neither what is verified nor what is sealed under them."""
    head = "select split_part(split_part(detail, 'head: ', 2), ',', 1) from llm.verify_audit() where kind = 'verified'"
    before = sealed.one(head)
    sealed.run(setting)
    assert sealed.one(head) == before
    app.run(setting)
    write(app, 5, "\\x \\\\ more")
    sealed.run("select llm.seal_audit()")
    assert faults(sealed) == []
    sealed.run("reset all")
    assert faults(sealed) == []


def prove(client: Client, row: int, *size: int) -> dict[str, Any]:
    """Return the proof of a row."""
    proof: dict[str, Any] = client.one(f"select llm.prove_audit(%s{', %s' * len(size)})", row, *size)
    return proof


def test_a_proof_convinces_without_a_database(sealed: Client, database: Database, tmp_path: Path) -> None:
    sealed.run("""
        insert into llm.audit_log (
            tenant_id, user_id, action, object_type, object_id, details, client_info, before, after, client_address, sensitive_hash
        )
        values ('ten''ant', E'us\\ner \\\\', 'ä', '', E'\\t', '{"x": "\\n"}', 'null', '[1.50]', '"é"', '2001:db8::/32', '\\x00ff')
        """)
    sealed.run("select llm.seal_audit()")
    auditor = database.client("auditor")
    head = sealed.one("select detail from llm.verify_audit() where kind = 'verified'")
    for row in (1, 10, 33, 61):
        (tmp_path / f"{row}.json").write_text(json.dumps(prove(auditor, row)))
    said = run(sys.executable, ROOT / "python/verify_audit_proof.py", *tmp_path.glob("*.json"))
    assert said.count("holds, if this is a head that you know") == 4
    assert all(line.split()[-4] in head for line in said.splitlines())


def test_a_changed_proof_is_refused(sealed: Client, tmp_path: Path) -> None:
    proof = prove(sealed, 33)
    ((size, head),) = verifier.heads(proof)
    changes: tuple[tuple[str, str, Any], ...] = (
        ("row", "action", "harmless"), ("row", "id", "34"), ("row", "timestamp", "2026-01-01T00:00:00.000000Z"), ("row", "application", None),
        ("leaf", "index", 3), ("leaf", "size", 11), ("leaf", "path", proof["leaf"]["path"][1:]), ("entry", "root", "00" * 32),
        ("entry", "row_count", "11"), ("entry", "kind", "life"), ("entry", "number", "4"), ("entry", "sealed_at", "x"),
        ("chain", "index", 0), ("chain", "size", 99), ("chain", "path", []),
    )  # fmt: skip
    for part, name, value in changes:
        forged = json.loads(json.dumps(proof))
        forged[part][name] = value
        (tmp_path / "proof").write_text(json.dumps(forged))
        try:
            found = verifier.heads(forged)
        except verifier.Refused:
            assert "REFUSED" in verify_by_hand(tmp_path / "proof")
        else:
            assert found != [(size, head)], (part, name)
    for nonsense in ("{}", '{"format": "other"}', '{"format": "pg_llm audit proof 1"}', '"x"', "[]"):
        (tmp_path / "proof").write_text(nonsense)
        assert "REFUSED" in verify_by_hand(tmp_path / "proof")
    (tmp_path / "proof").write_text("no JSON")
    with pytest.raises(RuntimeError, match="exited with 2"):
        run(sys.executable, ROOT / "python/verify_audit_proof.py", tmp_path / "proof")


def verify_by_hand(proof: Path) -> str:
    """Return what the verifier says of a proof that does not hold."""
    with pytest.raises(RuntimeError, match="exited with 1") as refused:
        run(sys.executable, ROOT / "python/verify_audit_proof.py", proof)
    return str(refused.value)


def test_a_proof_can_lead_to_an_older_head_and_growth_from_it_is_proved(sealed: Client) -> None:
    old = verifier.heads(prove(sealed, 15, 5))
    new = verifier.heads(prove(sealed, 15))
    assert [size for size, _ in old + new] == [5, 7]
    growth = sealed.one("select llm.prove_audit_growth(5)")
    assert verifier.heads(growth) == old + new
    assert verifier.heads(sealed.one("select llm.prove_audit_growth(5, 5)")) == old + old
    for part in ("first", "last"):
        forged = json.loads(json.dumps(growth))
        forged[part]["head"] = "00" * 32
        with pytest.raises(verifier.Refused):
            verifier.heads(forged)


def test_what_cannot_be_proved_says_why(sealed: Client, app: Client, database: Database) -> None:
    write(app)
    for row in (0, 1000, None):
        with raises(NoDataFound, match=f"audit row {row} does not exist", hint="other tenants"):
            sealed.run("select llm.prove_audit(%s)", row)
    with raises(ObjectNotInPrerequisiteState, match="audit row 61 is not sealed yet", hint="llm.seal_audit"):
        sealed.run("select llm.prove_audit(61)")
    with raises(ObjectNotInPrerequisiteState, match="audit row 60 is not sealed in 3 entries"):
        sealed.run("select llm.prove_audit(60, 3)")
    with raises(InvalidParameterValue, match="the chain has no 99 entries", hint="1 to 7"):
        sealed.run("select llm.prove_audit(1, 99)")
    for first in (0, 8, None):
        with raises(InvalidParameterValue, match=f"the chain cannot have grown from {first} entries", hint="1 to 7"):
            sealed.run("select llm.prove_audit_growth(%s)", first)
    sealed.run("update llm.audit_log set action = 'x' where id = 25")
    with raises(DataCorrupted, match="the rows of entry 4 are not those that were sealed", hint="verify_audit"):
        sealed.run("select llm.prove_audit(21)")
    auditor = database.client("auditor").run("select llm.prove_audit(60)")
    with auditor.tenant("acme"), raises(NoDataFound, match="does not exist"):
        auditor.run("select llm.prove_audit(60)")


def test_aud_07_a_partition_that_vanished_is_found(sealed: Client) -> None:
    """AUD-07: detached, dropped, or brought back."""
    partition = old_rows(sealed)
    sealed.run("select llm.seal_audit()")
    bounds = sealed.one("select pg_get_expr(relpartbound, oid) from pg_class where oid = %s::text::regclass", partition)
    sealed.run(f"alter table llm.audit_log detach partition {partition}")
    (entry,) = sealed.column("select number from llm.audit_seals where rows_to < now() - interval '20 months'")
    assert faults(sealed) == [(entry, None, "rows missing")]
    detail = sealed.one("select detail from llm.verify_audit() where entry = %s and not ok and kind <> 'verified'", entry)
    assert detail == "all 10 rows are missing: their partition was removed, and not by retention"
    sealed.run(f"alter table llm.audit_log attach partition {partition} {bounds}")
    assert faults(sealed) == []


def old_rows(db: Client) -> str:
    """Seal ten rows in a partition of two years ago; return its name."""
    db.run("""
        create table llm.audit_log_old partition of llm.audit_log
            for values from (date_trunc('month', now(), 'UTC') - interval '24 months') to (date_trunc('month', now(), 'UTC') - interval '23 months')
        """)
    db.run("""
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, "timestamp")
        select 'acme', 'u', 'a', 't', i::text, date_trunc('month', now(), 'UTC') - interval '24 months' + i * interval '1 hour'
        from generate_series(1, 10) i
        """)
    return "llm.audit_log_old"


def test_aud_07_retention_leaves_a_tombstone(db: Client, app: Client) -> None:
    """AUD-07: a partition is only dropped when it is sealed, and the chain goes on."""
    partition = old_rows(db)
    assert db.one("select llm._audit_partition_may_go(%s::text::regclass)", partition) is False
    db.run("select llm.seal_audit()")
    with db.transaction():
        assert db.one("select llm._audit_partition_may_go(%s::text::regclass)", partition) is True
        db.run(f"drop table {partition}")
    write(app, 3)
    db.run("select llm.seal_audit()")
    assert db.rows("select number, kind from llm.audit_seals order by 1") == [(1, "life"), (2, "batch"), (3, "tombstone"), (4, "batch")]
    dropped, verified = db.rows("select ok, entry, kind, detail from llm.verify_audit()")
    assert dropped[:3] == (True, 3, "dropped")
    assert dropped[3].startswith("llm.audit_log_old with 10 rows from ")
    assert verified[:3] == (True, 4, "verified")


def test_aud_07_a_tombstone_tells_what_was_missing(db: Client) -> None:
    """AUD-07"""
    partition = old_rows(db)
    disarm(db.run("select llm.seal_audit()")).run(f"delete from {partition} where id = 3")
    with db.transaction():
        assert db.one("select llm._audit_partition_may_go(%s::text::regclass)", partition) is True
        db.run(f"drop table {partition}")
    assert db.row("select ok, kind, split_part(detail, ', ', 2) from llm.verify_audit() where kind = 'dropped'") == (
        False, "dropped", "when 1 of them were missing"
    )  # fmt: skip


def test_aud_07_a_tombstone_does_not_cover_other_partitions(sealed: Client) -> None:
    """AUD-07"""
    partition = old_rows(sealed)
    sealed.run("select llm.seal_audit()")
    with sealed.transaction():
        assert sealed.one("select llm._audit_partition_may_go(%s::text::regclass)", partition) is True
        sealed.run(f"drop table {partition}").run("delete from llm.audit_log")
    assert faults(sealed) == [(entry, None, "rows missing") for entry in range(2, 8)]


def test_an_empty_partition_may_go_and_leaves_nothing(db: Client) -> None:
    db.run("create table llm.audit_log_old partition of llm.audit_log for values from ('2001-01-01 00:00+00') to ('2001-02-01 00:00+00')")
    assert db.one("select llm._audit_partition_may_go('llm.audit_log_old'::regclass)") is True
    assert db.one("select count(*) from llm.audit_seals") == 0


def test_a_partition_of_another_table_may_not_go(db: Client) -> None:
    assert db.one("select llm._audit_partition_may_go('llm.config'::regclass)") is False


def test_while_another_session_seals_no_partition_goes(db: Client, database: Database) -> None:
    partition = old_rows(db)
    db.run("select llm.seal_audit()")
    other = database.client()
    with other.transaction():
        other.run("select llm.seal_audit()")
        assert db.one("select llm._audit_partition_may_go(%s::text::regclass)", partition) is False


def test_what_moves_from_the_default_partition_stays_sealed(db: Client) -> None:
    db.run("""
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, "timestamp")
        select 'acme', 'u', 'a', 't', i::text, '2001-01-05 00:00+00' from generate_series(1, 10) i
        """)
    disarm(db.run("select llm.seal_audit()"))
    db.run("""
        create table llm.audit_log_moved (like llm.audit_log including all excluding identity);
        with moved as (delete from llm.audit_log where "timestamp" < '2002-01-01' returning *)
        insert into llm.audit_log_moved (tenant_id, id, "timestamp", user_id, action, object_type, object_id, login_role, application, transaction_id)
        select tenant_id, id, "timestamp", user_id, action, object_type, object_id, login_role, application, transaction_id from moved;
        alter table llm.audit_log attach partition llm.audit_log_moved for values from ('2001-01-01 00:00+00') to ('2001-02-01 00:00+00');
        """)
    db.run("select llm.seal_audit()")
    assert faults(db) == []
    assert db.column(SEALED) == db.column("select id from llm.audit_log order by 1")


def test_a_shredded_key_leaves_what_was_sealed_provable(sealed: Client) -> None:
    """The log covers ciphertext: here it is not even a valid one."""
    with sealed.transaction():
        sealed.run("""
            with event as (
                insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, sensitive_hash)
                values ('acme', 'u', 'a', 't', 'o', sha256('ciphertext'))
                returning *
            )
            insert into llm.sensitive_log (tenant_id, audit_log_id, audit_timestamp, encrypted_details, access_level)
            select tenant_id, id, "timestamp", 'ciphertext', 'llm_auditor' from event
            """)
    sealed.run("select llm.seal_audit()")
    assert faults(sealed) == []
    assert verifier.heads(prove(sealed, 61))
    sealed.run("update llm.sensitive_log set encrypted_details = 'other'")
    assert faults(sealed) == [(None, 61, "sensitive")]
    sealed.run("delete from llm.sensitive_log")
    assert faults(sealed) == [(None, 61, "sensitive")]
    sealed.run("insert into llm.sensitive_log values ('acme', 1, 60, now(), 'forged', 'llm_auditor')")
    assert (None, 60, "sensitive") in faults(sealed)

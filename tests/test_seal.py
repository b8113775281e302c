"""Sealing the audit log: every committed row in one batch, and what was sealed cannot be changed unnoticed."""

from __future__ import annotations

from tests.support import Client


def write(client: Client, count: int = 1, action: str = "read") -> None:
    """Write rows of one transaction."""
    client.run("select llm.log_audit_event(%s, 'thing', i::text, '{\"a\": [1, null]}') from generate_series(1, %s) i", action, count)


def test_smoke(db: Client, app: Client) -> None:
    for number in range(5):
        with app.tenant("acme"):
            write(app, 10, f"act \\ {number}")
    print(db.rows("select llm.seal_audit(p_batch_rows => 20)"))
    print(db.rows("select number, kind, ids, row_count, horizon from llm.audit_seals"))
    print(db.rows("select * from llm.verify_audit()"))
    db.run("set session_replication_role = replica")
    db.run("update llm.audit_log set action = 'x' where id = 7")
    db.run("delete from llm.audit_log where id in (9, 10, 33)")
    db.run("insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, transaction_id) values ('a', 'b', 'c', 'd', 'e', '400')")
    for r in db.rows("select * from llm.verify_audit()"):
        print(r)
    print(db.rows("select * from llm.audit_seal_status()"))
    print(db.rows("select * from llm.prove_audit(1)"))
    assert 0

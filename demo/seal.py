"""The audit log: sealed, anchored outside, tampered with by the superuser, and found out; and what it tells, as a page."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from demo.stage import Stage
from tools.cluster import ROOT, run

#: What this machine's package manager has done, if it keeps such a log.
PACKAGES = Path("/var/log/dpkg.log")
MOST_PACKAGES = 5_000

#: tools/run-in-image brings what lies here back to the user's checkout.
OUTPUT = ROOT / "build/demo"

_PACKAGE_LINE = re.compile(r"(\S+ \S+) (install|upgrade|configure|remove|purge|trigproc) (\S+) (\S+) (\S+)")

_IMPORT = """
    insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, details, "timestamp")
    select '*', e ->> 'user', e ->> 'action', 'package', e ->> 'package', e -> 'details', (e ->> 'at')::timestamptz
    from jsonb_array_elements(%s) e
    """

#: The demo's own changes of configuration.
_CHANGES = """
    insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, after, "timestamp")
    select tenant_id, changed_by, operation, 'config', key, value, changed_at
    from llm.config_history
    order by id
    """


def play(stage: Stage) -> None:
    """Play the scene."""
    directory = stage.cluster.directory / "kept elsewhere"
    directory.mkdir(mode=0o700)
    anchors = directory / "audit.anchors"
    with stage.connect() as superuser, stage.connect("app") as app:
        superuser.execute("select llm.set_audit_anchor(%s)", [str(anchors)])
        moment = fill(stage, superuser, app)
        seal(stage, superuser)
        prove(stage, superuser, anchors)
        tamper(stage, superuser)
        cut_off(stage, superuser)
        report(stage, superuser, moment)


def value(connection: psycopg.Connection, statement: str, *arguments: object) -> Any:
    """Return the only value of a statement."""
    row = connection.execute(statement, arguments or None).fetchone()
    assert row
    return row[0]


def package_history() -> list[dict[str, Any]]:
    """Return the last actions of this machine's package manager."""
    if not PACKAGES.exists():
        return []
    lines = (_PACKAGE_LINE.fullmatch(line) for line in PACKAGES.read_text(errors="replace").splitlines())
    return [
        {"user": "dpkg", "action": line[2], "package": line[3], "at": f"{line[1]}+00", "details": {"from": line[4], "to": line[5]}}
        for line in lines
        if line
    ][-MOST_PACKAGES:]


def fill(stage: Stage, superuser: psycopg.Connection, app: psycopg.Connection) -> datetime:
    """Bring real actions into the log, then some that are unusual; return the moment between."""
    stage.scene("An audit log of real actions")
    packages = package_history()
    with stage.step("this machine's package history") as step:
        superuser.execute(_IMPORT, [json.dumps(packages)])
        step.result = f"{len(packages):,} events from {PACKAGES}" if packages else f"none: this machine has no {PACKAGES}"
    with stage.step("every change of configuration that this demo has made") as step:
        count = superuser.execute(_CHANGES).rowcount
        step.result = f"{count:,} events"
    if not value(superuser, "select count(*) from llm.master_keys"):
        keys = stage.cluster.directory / "key store"
        keys.mkdir(mode=0o700)
        superuser.execute("select llm.add_master_key(%s)", [str(keys)])
    moment: datetime = value(superuser, "select clock_timestamp()")
    with app.transaction():
        app.execute("select llm.set_tenant('acme')")
        app.execute("select llm.log_audit_event('export', 'conversation', i::text) from generate_series(1, 40) i")
        app.execute(
            "select llm.log_audit_event('export', 'invoices', 'all', '{\"reason\": \"leaving\"}', p_sensitive => 'IBAN DE02 1203 0000 0000 2020 51')"
        )
    stage.say("The application exports what it never exported before, 41 times, once with sensitive details, which are encrypted:")
    stage.sql("select llm.log_audit_event('export', 'invoices', 'all', '{\"reason\": \"leaving\"}', p_sensitive => 'IBAN …');")
    return moment


def seal(stage: Stage, superuser: psycopg.Connection) -> None:
    """Seal, anchor and verify."""
    stage.scene("Sealed: a Merkle tree a batch, a chain of batches, its head outside the database")
    with stage.step("select llm.seal_audit()") as step:
        step.result = f"{value(superuser, 'select llm.seal_audit()'):,} rows"
    with stage.step("select llm.anchor_audit()") as step:
        anchor = value(superuser, "select llm.anchor_audit()")
        step.result = f"{anchor['size']} entries, head {anchor['head'][:16]}…"
    verify(stage, superuser)


def verify(stage: Stage, superuser: psycopg.Connection) -> None:
    """Show what verification finds."""
    stage.sql("select * from llm.verify_audit();")
    rows = superuser.execute("select ok, entry, row_id, kind, detail from llm.verify_audit()").fetchall()
    stage.table(("ok", "entry", "row", "kind", ""), ((("yes" if ok else "NO"), *rest) for ok, *rest in rows[:8]))


def prove(stage: Stage, superuser: psycopg.Connection, anchors: Path) -> None:
    """Prove one row to somebody who does not trust the server."""
    proof = stage.cluster.directory / "proof.json"
    number = value(superuser, "select id from llm.audit_log where object_type = 'invoices'")
    proof.write_text(json.dumps(value(superuser, "select llm.prove_audit(%s)", number)))
    stage.say("The application's owner denies it. An auditor has the row, its proof, the anchors, and a Python script without a database:")
    stage.sql(f"select llm.prove_audit({number});")
    said = run(sys.executable, ROOT / "python/verify_audit_proof.py", "--anchors", anchors, proof)
    stage.say(f"  {said.strip().replace(str(proof), proof.name)}")


def tamper(stage: Stage, superuser: psycopg.Connection) -> None:
    """Change a row as only a superuser can; find it; put it back."""
    stage.scene("The superuser helps out")
    statement = "update llm.audit_log set action = 'read' where object_type = 'invoices'"
    stage.sql(f"{statement};")
    try:
        superuser.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        stage.say(f"  [red]ERROR {error.sqlstate}:[/] {error.diag.message_primary}")
    stage.say("He is superuser, so he takes the triggers away first.")
    # Rolled back, as no real forger would.
    with superuser.transaction(force_rollback=True):
        for partition, trigger in superuser.execute(_GUARDS).fetchall():
            superuser.execute(f"alter table {partition} disable trigger {trigger}")
        superuser.execute(statement)
        verify(stage, superuser)


_GUARDS = """
    select t.tgrelid::regclass::text, quote_ident(t.tgname)
    from pg_trigger t
    where t.tgname like 'append_only%' and not t.tgisinternal and t.tgparentid = 0
    """


def cut_off(stage: Stage, superuser: psycopg.Connection) -> None:
    """Remove the end of the log and of the chain, which only the anchor tells."""
    stage.say("Nor does it help to remove the end of the log and its seals: the anchor outside remembers.")
    with superuser.transaction(force_rollback=True):
        for partition, trigger in superuser.execute(_GUARDS).fetchall():
            superuser.execute(f"alter table {partition} disable trigger {trigger}")
        superuser.execute(
            "delete from llm.audit_log a using llm.audit_seals s where s.number = (select max(number) from llm.audit_seals) and a.id <@ s.ids"
        )
        superuser.execute("delete from llm.audit_seals where number = (select max(number) from llm.audit_seals)")
        verify(stage, superuser)


def report(stage: Stage, superuser: psycopg.Connection, moment: datetime) -> None:
    """Write the report as a page."""
    stage.scene("What the log tells")
    call = "select llm.generate_audit_report(llm.analyze_audit_logs(), %s, %s)"
    stage.say(value(superuser, call, "text", moment).replace("[", r"\["))
    OUTPUT.mkdir(parents=True, exist_ok=True)
    page = OUTPUT / "audit.html"
    page.write_text(value(superuser, call, "html", moment))
    stage.sql("select llm.generate_audit_report(llm.analyze_audit_logs(), 'html');")
    stage.say(f"  {page.relative_to(ROOT)}: {page.stat().st_size / 1024:.0f} kB, one file that loads nothing. Open it in a browser.")

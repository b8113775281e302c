"""The audit log: what this very demo does to a table of models, who did it, and what only few may read."""

from __future__ import annotations

import json
from itertools import cycle, islice
from time import perf_counter

import psycopg

from demo.stage import Stage

#: As many events as an application of some users writes in an hour.
EVENTS = 4000

USERS = ("ann", "bob", "carla", "dev-agent")


def play(stage: Stage) -> None:
    """Play the scene."""
    with stage.connect() as superuser, stage.connect("app") as app:
        superuser.execute("create role examiner login in role llm_auditor")
        master_key(stage, superuser)
        change_rows(stage, superuser, app)
        log_events(stage, app)
        with stage.connect("examiner") as examiner:
            read(stage, examiner)
            read_sensitive(stage, app, examiner)
        try_to_forge(stage, superuser)


def master_key(stage: Stage, superuser: psycopg.Connection) -> None:
    """See to it that there is a master key, outside the database."""
    if superuser.execute("select from llm.master_keys").fetchone() is None:
        directory = stage.cluster.directory / "keys"
        directory.mkdir(mode=0o700)
        superuser.execute("select llm.add_master_key(%s)", [str(directory)])


def change_rows(stage: Stage, superuser: psycopg.Connection, app: psycopg.Connection) -> None:
    """Audit a table, fill it with every model, and change some."""
    stage.scene("An audited table: every model, as rows")
    superuser.execute("create table public.models (name text primary key, provider text, price jsonb, api_key text)")
    superuser.execute("grant select, insert, update, delete on public.models to app")
    stage.sql("select llm.audit_table('models', p_mask => '{api_key}');")
    superuser.execute("select llm.audit_table('public.models', p_mask => '{api_key}')")
    with app.transaction():
        app.execute("select llm.set_tenant('acme')")
        with stage.step("insert into models …, one statement") as step:
            cursor = app.execute(
                "insert into public.models select key, value ->> 'litellm_provider', value, 'sk-' || md5(key) from jsonb_each(%s::jsonb)",
                [json.dumps(stage.prices)],
            )
            step.result = f"{cursor.rowcount} rows, and as many events"
        app.execute("update public.models set api_key = 'sk-new' where name = (select min(name) from public.models)")
        app.execute("delete from public.models where name = (select max(name) from public.models)")


def log_events(stage: Stage, app: psycopg.Connection) -> None:
    """Let users log in and look models up, by single calls, in a batch and by COPY."""
    stage.scene("Events of an application")
    looks = [(USERS[number % len(USERS)], "read", "model", model) for number, model in enumerate(islice(cycle(stage.prices), EVENTS))]
    with app.transaction():
        app.execute("select llm.set_tenant('acme')")
        for user in USERS:
            app.execute("select llm.log_authentication_event('login', %s, '{\"method\": \"passkey\"}')", [user])
        app.execute("select llm.log_authentication_event('login_failed', 'mallory', p_client_info => '{\"ip\": \"192.0.2.66\"}')")

        single = looks[: len(looks) // 4]
        with stage.step(f"{len(single)} calls of llm.log_audit_event()") as step:
            begin = perf_counter()
            for user, action, kind, model in single:
                app.execute("select llm.log_audit_event(%s, %s, %s, p_user_id => %s)", (action, kind, model, user))
            step.result = f"{(perf_counter() - begin) / len(single) * 1e6:.0f} µs each"
        batch = [dict(zip(("user_id", "action", "object_type", "object_id"), look, strict=True)) for look in looks[len(single) : len(looks) // 2]]
        with stage.step(f"llm.log_audit_events(), {len(batch)} in one call") as step:
            begin = perf_counter()
            app.execute("select llm.log_audit_events(%s)", [json.dumps(batch)])
            step.result = f"{(perf_counter() - begin) / len(batch) * 1e6:.0f} µs each"
        copied = looks[len(looks) // 2 :]
        with stage.step(f"copy llm.audit_events from stdin, {len(copied)} events") as step:
            begin = perf_counter()
            with app.cursor() as cursor, cursor.copy("copy llm.audit_events (user_id, action, object_type, object_id) from stdin") as copy:
                for look in copied:
                    copy.write_row(look)
            step.result = f"{(perf_counter() - begin) / len(copied) * 1e6:.0f} µs each"


def read(stage: Stage, examiner: psycopg.Connection) -> None:
    """Read as an examiner, who sees all tenants."""
    stage.sql("select user_id, action, object_type, object_id, … from llm.get_audit_logs(p_object_type => 'public.models', p_limit => 3);")
    stage.table(
        ("who", "logged in as", "did", "to", "API key before", "after"),
        examiner.execute(
            "select user_id, login_role, action, object_id, before ->> 'api_key', after ->> 'api_key'"
            " from llm.get_audit_logs(p_object_type => 'public.models', p_limit => 3)"
        ).fetchall(),
    )
    stage.table(
        ("tenant", "action", "events", "users"),
        examiner.execute(
            "select tenant_id, action, count(*), count(distinct user_id) from llm.audit_log group by 1, 2 order by 3 desc limit 6"
        ).fetchall(),
    )


def read_sensitive(stage: Stage, app: psycopg.Connection, examiner: psycopg.Connection) -> None:
    """Log something that only examiners may read, and read it."""
    stage.scene("Sensitive details, read for a purpose")
    with app.transaction():
        app.execute("select llm.set_tenant('acme')")
        app.execute("select llm.log_audit_event('refund', 'customer', '4711', p_user_id => 'ann', p_sensitive => 'IBAN DE02 1203 0000 0000 2020 51')")
    stage.sql("select llm.log_audit_event('refund', 'customer', '4711', p_user_id => 'ann', p_sensitive => 'IBAN …');")
    row = examiner.execute("select id from llm.get_audit_logs(p_action => 'refund')").fetchone()
    assert row
    stage.sql(f"select llm.read_sensitive_log({row[0]}, 'complaint of 3 May');")
    details = examiner.execute("select llm.read_sensitive_log(%s, 'complaint of 3 May')", row).fetchone()
    assert details
    stage.say(f"  {details[0]}")
    stage.table(
        ("who", "did", "to event", "what for"),
        examiner.execute(
            "select user_id, action, object_id, details ->> 'purpose' from llm.get_audit_logs(p_action => 'sensitive_read', p_limit => 1)"
        ).fetchall(),
    )


def try_to_forge(stage: Stage, superuser: psycopg.Connection) -> None:
    """Try to change the log as the superuser, and take its triggers off."""
    stage.scene("Even the superuser only adds to it")
    for statement in ("update llm.audit_log set user_id = 'nobody' where user_id = 'ann'", "truncate llm.audit_log"):
        stage.sql(f"{statement};")
        try:
            superuser.execute(statement)
        except psycopg.errors.InsufficientPrivilege as error:
            stage.say(f"  [red]ERROR {error.sqlstate}:[/] {error.diag.message_primary}")
    with superuser.transaction(force_rollback=True):
        superuser.execute("alter table llm.audit_log disable trigger append_only")
        stage.sql("alter table llm.audit_log disable trigger append_only;")
        stage.table(
            ("who", "did", "to", "statement"),
            superuser.execute(
                "select login_role, action, object_id, details ->> 'statement' from llm.get_audit_logs(p_object_type => 'audit', p_limit => 1)"
            ).fetchall(),
        )

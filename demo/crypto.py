"""Encryption: keys outside the database, ciphertext that knows its place, rotation, and the end of a tenant."""

from __future__ import annotations

from pathlib import Path

import psycopg

from demo.config import ask
from demo.stage import Stage

PLACE = "null, 'public.contracts', 'terms', model"


def play(stage: Stage) -> None:
    """Play the scene."""
    store = stage.cluster.directory / "keys"
    store.mkdir(mode=0o700)
    with stage.connect() as superuser, stage.connect("app") as app:
        encrypt(stage, superuser, app, store)
        misuse(stage, app)
        rotate(stage, superuser, app)
        shred(stage, superuser, app, store)


def encrypt(stage: Stage, superuser: psycopg.Connection, app: psycopg.Connection, store: Path) -> None:
    """Store what each tenant pays, encrypted."""
    stage.scene("Encryption: what each tenant really pays")
    superuser.execute("select llm.add_master_key(%s)", [str(store)])
    stage.sql("select llm.add_master_key('/a/directory/outside/the/data/directory');")
    superuser.execute("create table public.contracts (tenant text, model text, terms bytea, primary key (tenant, model))")
    superuser.execute("grant all on public.contracts to app")
    superuser.execute("select llm.register_encrypted_column('public.contracts', 'terms', 'model')")
    superuser.execute("select llm.apply_security_policy((array['public.contracts.terms'], null, null, 90, true)::llm.security_policy)")
    for tenant in ("acme", "globex"):
        with stage.step(f"insert … llm.encrypt_data(terms, {PLACE}) for {tenant}") as step:
            ((count,),) = ask(
                app,
                tenant,
                f"""
                with written as (
                    insert into public.contracts (tenant, model, terms)
                    select llm.current_tenant(), model, llm.encrypt_data(terms, {PLACE})
                    from unnest(%s::text[], %s::text[]) m (model, terms)
                    returning 1
                )
                select count(*) from written
                """,
                list(stage.prices),
                [f"{tenant} pays {price.get('input_cost_per_token')} a token" for price in stage.prices.values()],
            )
            step.result = f"{count} values"
    model = next(iter(stage.prices))
    ((stored, terms),) = ask(
        app,
        "acme",
        f"select encode(terms, 'hex'), llm.decrypt_data(terms, {PLACE}) from public.contracts where tenant = 'acme' and model = %s",
        model,
    )
    stage.say(f"  stored:    {stored[:60]}…\n  decrypted: {terms}")
    try:
        app.execute("update public.contracts set terms = 'free'")
    except psycopg.errors.CheckViolation as error:
        stage.say(f"  In clear, by mistake: [red]ERROR:[/] {error.diag.message_primary}")


def misuse(stage: Stage, app: psycopg.Connection) -> None:
    """Copy a ciphertext to another row, and read another tenant's."""
    stage.scene("A ciphertext is worth nothing elsewhere")
    first, second, *_ = stage.prices
    attempts = (
        ("acme's value in another row", "acme", f"select llm.decrypt_data(terms, null, 'public.contracts', 'terms', '{second}')"),
        ("acme's value for globex", "globex", f"select llm.decrypt_data(terms, {PLACE})"),
        ("one bit changed", "acme", f"select llm.decrypt_data(set_byte(terms, 60, get_byte(terms, 60) # 1), {PLACE})"),
    )
    rows = []
    for what, tenant, statement in attempts:
        try:
            ask(app, tenant, f"{statement} from public.contracts where tenant = 'acme' and model = %s", first)
            raise SystemExit(f"{what} was decrypted.")
        except psycopg.Error as error:
            rows.append((what, (error.diag.message_primary or "").rpartition("Exception: ")[2].rpartition("UndefinedObject: ")[2]))
    stage.table(("attempt", "answer"), rows)


def rotate(stage: Stage, superuser: psycopg.Connection, app: psycopg.Connection) -> None:
    """Rotate the data key and the master key."""
    stage.scene("New keys, without a pause")
    ask(app, "acme", "select llm.rotate_key()")
    stage.sql("select llm.rotate_key();")
    with stage.step("call llm.rewrap('contracts', 'terms', 'acme')") as step:
        row = app.execute("call llm.rewrap('public.contracts', 'terms', 'acme')").fetchone()
        assert row
        step.result = f"{row[1]} values encrypted anew, {row[0]}"
    with stage.step("select llm.rotate_master_key()") as step:
        row = superuser.execute("select llm.rotate_master_key()").fetchone()
        assert row
        step.result = f"{row[0]} tenants' keys wrapped anew"
    stage.sql("select * from llm.key_management;")
    stage.table(
        ("key", "kind", "version", "active"),
        ask(app, "acme", "select key_id, kind, version, active from llm.key_management"),
    )
    findings = superuser.execute("select rule, object, detail from llm.validate_security_compliance()").fetchall()
    stage.sql("select * from llm.validate_security_compliance();")
    stage.table(("rule", "where", "found"), findings or [("nothing", "", "")])


def shred(stage: Stage, superuser: psycopg.Connection, app: psycopg.Connection, store: Path) -> None:
    """Shred globex, restore a dump from before, and see that it is gone there too."""
    stage.scene("globex leaves, and takes its backups along")
    stage.cluster.program("pg_dump", "-Fc", "-f", "before.dump", "demo")
    ((effect,),) = ask(superuser, "globex", "select effect from llm.shred_key(p_reason => 'contract ended')")
    stage.sql("select * from llm.shred_key(p_reason => 'contract ended');")
    stage.say(f"  {effect}")
    stage.cluster.program("createdb", "yesterday")
    stage.cluster.program("pg_restore", "--exit-on-error", "-d", "yesterday", "before.dump")
    with stage.connect("postgres", "yesterday") as yesterday:
        yesterday.execute("select llm.setup()")
        rows = []
        for tenant in ("acme", "globex"):
            statement = f"select count(llm.decrypt_data(terms, {PLACE})) from public.contracts where tenant = %s"
            try:
                ((count,),) = ask(yesterday, tenant, statement, tenant)
                rows.append((tenant, f"{count} values decrypt"))
            except psycopg.errors.ConfigFileError as error:
                rows.append((tenant, (error.diag.message_primary or "").partition("ConfigFileError: ")[2].partition(":")[0]))
    stage.table(("in yesterday's backup", ""), rows)
    left = len(list(store.glob("tenant.*")))
    stage.say(f"  Secrets left in the key store: {left}.")

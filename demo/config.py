"""Configuration: stored, changed, compared, rolled back, and served from a cache that never lies."""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any

import psycopg

from demo.stage import Stage

READS = 200_000

#: Models whose prices are negotiated, if the price file has them.
FAVOURITES = ("gpt-5", "claude-sonnet-4-5", "gemini/gemini-2.5-pro")


def play(stage: Stage) -> None:
    """Play the scene."""
    with stage.connect("app") as acme, stage.connect("app") as globex:
        store(stage, {"acme": acme, "globex": globex})
        change(stage, acme)
        roll_back(stage, acme)
        agree(stage, acme)
        measure(stage, acme)
    restore(stage)


def ask(connection: psycopg.Connection, tenant: str, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
    """Run a statement for a tenant, in a transaction of its own."""
    with connection.transaction():
        connection.execute("select llm.set_tenant(%s)", [tenant])
        cursor = connection.execute(statement, arguments or None)
        return cursor.fetchall() if cursor.description else []


def store(stage: Stage, connections: dict[str, psycopg.Connection]) -> None:
    """Save every model's price as configuration of each tenant."""
    stage.scene("Configuration: the price of every model, for two tenants")
    values = json.dumps({f"price/{model}": price for model, price in stage.prices.items()})
    for tenant, connection in connections.items():
        with stage.step(f"select llm.save_configs(…) for {tenant}") as step:
            ((saved,),) = ask(connection, tenant, "select llm.save_configs(%s, 'price list')", values)
            step.result = f"{saved} values saved, each with its history"


def change(stage: Stage, connection: psycopg.Connection) -> None:
    """Change some prices, run into a conflict, and look at the history."""
    stage.scene("acme negotiates a discount")
    priced = [model for model, price in stage.prices.items() if price.get("input_cost_per_token")]
    models = sorted(priced, key=lambda model: model not in FAVOURITES)[:3]
    for model in models:
        price = stage.prices[model] | {"input_cost_per_token": stage.prices[model]["input_cost_per_token"] / 2}
        ask(connection, "acme", "select llm.save_config(%s, %s, p_reason => 'half price')", f"price/{model}", json.dumps(price))
        stage.sql(f"select llm.save_config('price/{model}', …, p_reason => 'half price');")

    stage.say("\nSomebody else decided on what he had read before:")
    stage.sql(f"select llm.save_config('price/{models[0]}', …, p_expected_version => 1);")
    try:
        ask(connection, "acme", "select llm.save_config(%s, '{}', p_expected_version => 1)", f"price/{models[0]}")
    except psycopg.errors.SerializationFailure as error:
        stage.say(f"  [red]ERROR {error.sqlstate}:[/] {error.diag.message_primary}\n  DETAIL: {error.diag.message_detail}")

    stage.say("\nEvery change is kept, with who and why:")
    stage.sql("select * from llm.watch_config() order by id desc limit 4;")
    stage.table(
        ("change", "key", "operation", "version", "by", "reason"),
        ask(
            connection,
            "acme",
            "select id, key, operation, version, changed_by, reason from llm.watch_config(p_limit => 1000000) order by id desc limit 4",
        ),
    )


def roll_back(stage: Stage, connection: psycopg.Connection) -> None:
    """Compare with the past, and go back to it."""
    stage.scene("What changed, and back to before")
    ((before, when),) = ask(connection, "acme", "select max(id), max(changed_at) from llm.config_history where reason = 'price list'")
    stage.sql("select * from llm.config_diff(before_the_discount);")
    stage.table(
        ("key", "operation", "input price before", "now"),
        ask(
            connection,
            "acme",
            """
            select key, operation, old_value ->> 'input_cost_per_token', new_value ->> 'input_cost_per_token'
            from llm.config_diff(%s, clock_timestamp())
            """,
            when,
        ),
    )
    with stage.step(f"select llm.rollback_config({before})") as step:
        ((count,),) = ask(connection, "acme", "select llm.rollback_config(%s)", before)
        step.result = f"{count} values as before, as new changes"
    ((left,),) = ask(connection, "acme", "select count(*) from llm.config_diff(%s, clock_timestamp())", when)
    stage.say(f"  Differences left: {left}.")


def agree(stage: Stage, reader: psycopg.Connection) -> None:
    """Show that a cached value is right the moment another session commits."""
    stage.scene("Two sessions agree at once")
    rows: list[tuple[object, ...]] = []

    def look(moment: str) -> None:
        ((cached, value),) = ask(reader, "acme", "select (llm.config_access('limit')).cached, llm.load_config('limit')")
        rows.append((moment, value, "cache" if cached else "table"))

    ask(reader, "acme", "select llm.save_config('limit', '100')")
    look("first")
    look("again")
    with stage.connect("app") as writer:
        with writer.transaction():
            writer.execute("select llm.set_tenant('acme')")
            writer.execute("select llm.save_config('limit', '250')")
            look("the other session has changed it, not committed")
        look("it has committed")
        look("again")
    stage.table(("the reader looks", "sees", "from its"), rows)


def measure(stage: Stage, connection: psycopg.Connection) -> None:
    """Read all prices again and again."""
    stage.scene("How fast, how often from the cache")
    keys = [f"price/{model}" for model in stage.prices]
    rounds = max(READS // len(keys), 1)
    statement = "select count(llm.load_config(k, p_cached => %s)) from generate_series(1, %s), unnest(%s::text[]) k"
    ask(connection, "acme", statement, True, 1, keys)
    for cached, source in ((True, "the cache"), (False, "the table")):
        with stage.step(f"{rounds * len(keys):,} reads in one query, from {source}") as step:
            begin = perf_counter()
            ((count,),) = ask(connection, "acme", statement, cached, rounds, keys)
            took = perf_counter() - begin
            step.result = f"{took / count * 1e6:.1f} µs a read, {count / took:,.0f} a second"
    stage.sql("select * from llm.coherence_stats();")
    stage.table(
        ("cache", "backends", "entries", "kB", "hits", "misses", "hit ratio"),
        ask(
            connection,
            "acme",
            "select namespace, backends, entries, bytes / 1024, hits, misses, round(hit_ratio::numeric, 4) from llm.coherence_stats()",
        ),
    )


def restore(stage: Stage) -> None:
    """Dump the database, restore it beside, and compare."""
    stage.scene("Backed up like any other table")
    with stage.step("pg_dump -Fc demo") as step:
        stage.cluster.program("pg_dump", "-Fc", "-f", "demo.dump", "demo")
        step.result = f"{(stage.cluster.directory / 'demo.dump').stat().st_size / 1024:.0f} kB"
    with stage.step("pg_restore --exit-on-error --single-transaction -d restored demo.dump"):
        stage.cluster.program("createdb", "restored")
        stage.cluster.program("pg_restore", "--exit-on-error", "--single-transaction", "-d", "restored", "demo.dump")
    query = """
        select 'config', count(*), md5(string_agg(c::text, '' order by tenant_id, key)) from llm.config c
        union all
        select 'config_history', count(*), md5(string_agg(h::text, '' order by tenant_id, id)) from llm.config_history h
        order by 1
        """
    with stage.connect() as original, stage.connect(dbname="restored") as copy:
        rows = [
            (table, count, checksum[:8], other[:8], "equal" if checksum == other else "DIFFERENT")
            for (table, count, checksum), (_, _, other) in zip(original.execute(query).fetchall(), copy.execute(query).fetchall(), strict=True)
        ]
    stage.table(("table", "rows", "checksum", "restored", ""), rows)
    if any(row[-1] != "equal" for row in rows):
        raise SystemExit("The restored database differs.")

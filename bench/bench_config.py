"""Configuration beside what a user would write instead: see README.md for what is compared with what."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg
import redis
from psycopg.types.json import Jsonb

from bench.support import (
    AtLeast,
    AtMost,
    application,
    database,
    fact,
    kept,
    line,
    medians,
    once,
    one,
    per_call,
    per_row,
    pgbench,
    pinned,
    redis_server,
    title,
)
from tools.cluster import Cluster

PRICES = Path(__file__).parent.parent / "demo" / "sample_prices.json"

#: Seed 4 asks for 200,000.
CACHED_READS_PER_SECOND = 300_000


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with database(cluster, "reads") as superuser:
        fill(superuser, values())
        inside_one_query(cluster, quick=quick)
        through_a_client(cluster, superuser, quick=quick)
    with database(cluster, "writes") as superuser:
        superuser.execute("select llm.bind_role('bound', 'acme')")
        saves(cluster, quick=quick)
    growth(cluster, quick=quick)


def values() -> dict[str, Any]:
    """Return a value of each size and shape, by name, which is its key too."""
    prices = json.loads(PRICES.read_text())
    model = max(sorted(prices), key=lambda name: len(prices[name]))
    objects = {f"object of {size}": {f"member_{number:03}": number * 1.5e-06 for number in range(size)} for size in (3, 10, 30, 100)}
    return {"text 16 B": "x" * 16, "text 200 B": "x" * 200, "text 5 kB": "x" * 5000, **objects, f"price of {model}": prices[model]}


def fill(superuser: psycopg.Connection, entries: dict[str, Any]) -> None:
    """Store entries for tenant acme in all tables, among 10,000 keys."""
    entries = {f"key {number}": "x" * 200 for number in range(10_000)} | entries
    rows = [(key, Jsonb(value)) for key, value in entries.items()]
    with superuser.cursor() as cursor:
        for statement in (
            "copy llm.config (tenant_id, key, value) from stdin",
            "copy bench.tenant_config (tenant_id, key, value) from stdin",
        ):
            with cursor.copy(statement) as copy:
                for row in rows:
                    copy.write_row(("acme", *row))
        cursor.execute("insert into llm.config (tenant_id, key, value) values ('*', 'global', '\"for all\"')")
        cursor.execute("insert into bench.tenant_config (tenant_id, key, value) values ('*', 'global', '\"for all\"')")
        cursor.execute("alter table bench.plain disable trigger history")
        cursor.execute("insert into bench.plain (key, value) select key, value from llm.config")
        cursor.execute("alter table bench.plain enable trigger history")
    superuser.execute("vacuum analyze")


def inside_one_query(cluster: Cluster, *, quick: bool) -> None:
    """Compare reads where no client is involved: once a row of a query."""
    rounds, rows = (3, 2_000) if quick else (7, 10_000)
    with application(cluster, "reads") as app:

        def read(function: str, key: str = "text 200 B", more: str = "") -> Callable[[], float]:
            return per_row(app, f"jsonb_typeof({function}('{key}'{more}))", rows if key == "text 200 B" else rows // 2)

        time = medians(
            rounds,
            cached=read("llm.load_config"),
            uncached=read("llm.load_config", more=", p_cached => false"),
            same_plpython=read("bench.same_plpython"),
            same_plpgsql=read("bench.same_plpgsql"),
            own_plpython=read("bench.own_plpython"),
            own_plpgsql=read("bench.own_plpgsql"),
            plain_plpython=read("bench.plain_plpython"),
            plain_plpgsql=read("bench.plain_plpgsql"),
            empty=per_row(app, "i", rows),
        )
        title("load_config inside one query, a call (200 B; the tenant's value, application role)")
        line("cached", time["cached"], "PL/Python, kept plan, llm.config", time["same_plpython"], AtLeast(3))
        line("cached", time["cached"], "PL/pgSQL, llm.config", time["same_plpgsql"], AtLeast(1.5))
        line("cached", time["cached"], "PL/Python, own table with tenants", time["own_plpython"])
        line("cached", time["cached"], "PL/pgSQL, own table with tenants", time["own_plpgsql"])
        line("cached", time["cached"], "PL/Python, table without tenants", time["plain_plpython"])
        line("cached", time["cached"], "PL/pgSQL, table without tenants", time["plain_plpgsql"])
        line("p_cached => false", time["uncached"], "PL/pgSQL, llm.config", time["same_plpgsql"])
        fact("(an empty loop, in all of these)", f"{time['empty']:.2f}")
        rate = 1e6 / time["cached"]
        fact("cached reads a second, one backend", f"{rate:,.0f}", f"bar >= {CACHED_READS_PER_SECOND:,}  {kept(rate >= CACHED_READS_PER_SECOND)}")

        title("by size and shape, beside PL/pgSQL and PL/Python on llm.config")
        for key in [*values(), "global"]:
            time = medians(
                rounds,
                cached=read("llm.load_config", key),
                plpgsql=read("bench.same_plpgsql", key),
                plpython=read("bench.same_plpython", key),
            )
            size = one(app, "select octet_length(llm.load_config(%s)::text)", key)
            line(f"{key} ({size} B)", time["cached"], "PL/Python", time["plpython"])
            line("", time["cached"], "PL/pgSQL", time["plpgsql"])


def through_a_client(cluster: Cluster, superuser: psycopg.Connection, *, quick: bool) -> None:
    """Compare reads as a client sees them, with a round trip each."""
    rounds, calls = (3, 200) if quick else (9, 1_000)
    keys = [f"key {number}" for number in range(100)]
    with application(cluster, "reads") as app, redis_server() as store:
        time_of_redis: dict[str, Callable[[], object]] = {}
        if store is None:
            print("\nThere is no redis-server on PATH: its lines are missing.")
        else:
            for key, value in superuser.execute("select key, value::text from bench.plain where key ~ '^(key|text)'"):
                store.set(key, value)
            time_of_redis = redis_reads(store, keys)
        single = {
            "load_config": partial(app.execute, "select llm.load_config(%s)", ["text 200 B"]),
            "select": partial(app.execute, "select value from llm.config where tenant_id = %s and key = %s", ["acme", "text 200 B"]),
            "own": partial(app.execute, "select value from bench.tenant_config where tenant_id = %s and key = %s", ["acme", "text 200 B"]),
            "plain": partial(app.execute, "select value from bench.plain where key = %s", ["text 200 B"]),
        }
        many = {
            "load_config": partial(app.execute, "select k, llm.load_config(k) from unnest(%s::text[]) k", [keys]),
            "select": partial(app.execute, "select key, value from llm.config where tenant_id = %s and key = any(%s)", ["acme", keys]),
            "own": partial(app.execute, "select key, value from bench.tenant_config where tenant_id = %s and key = any(%s)", ["acme", keys]),
            "plain": partial(app.execute, "select key, value from bench.plain where key = any(%s)", [keys]),
        }
        ours = {f"single_{name}": fetching(call) for name, call in single.items()} | {f"many_{name}": fetching(call) for name, call in many.items()}
        processes = [app.info.backend_pid, *([int(store.info()["process_id"])] if store else [])]
        cores = sorted(os.sched_getaffinity(0))
        for where, core in (("client and server on one core", cores[0]), ("on two cores", cores[-1])):
            with pinned({os.getpid(): cores[0]} | dict.fromkeys(processes, core)):
                time = medians(
                    rounds,
                    **{name: per_call(call, calls if name.startswith("single") else calls // 10) for name, call in (ours | time_of_redis).items()},
                )
            title(f"through a client, Unix socket, prepared, {where} (200 B values, in a transaction)")
            line("one key", time["single_load_config"], "SELECT, llm.config", time["single_select"], AtMost(1.15))
            line("one key", time["single_load_config"], "SELECT, own table with tenants", time["single_own"])
            line("one key", time["single_load_config"], "SELECT, table without tenants", time["single_plain"])
            if store:
                line("one key", time["single_load_config"], "redis-py GET", time["single_redis"])
            line("100 keys", time["many_load_config"], "= any SELECT, llm.config", time["many_select"])
            line("100 keys", time["many_load_config"], "= any SELECT, own table with tenants", time["many_own"])
            line("100 keys", time["many_load_config"], "= any SELECT, table without tenants", time["many_plain"])
            if store:
                line("100 keys", time["many_load_config"], "redis-py MGET", time["many_redis"])
    title("the first load_config of a new connection, which starts Python", "ms")
    time = medians(rounds, ours=first_read(cluster, "llm.load_config"), theirs=first_read(cluster, "bench.own_plpgsql"))
    line("one key", time["ours"] / 1_000, "PL/pgSQL, own table with tenants", time["theirs"] / 1_000)


def redis_reads(store: redis.Redis, keys: list[str]) -> dict[str, Callable[[], object]]:
    """Return the same reads of Redis; the client parses the JSON, as psycopg does."""

    def single() -> object:
        return json.loads(store.get("text 200 B") or b"")

    def many() -> object:
        return [json.loads(value or b"") for value in store.mget(keys)]

    return {"single_redis": single, "many_redis": many}


def first_read(cluster: Cluster, function: str) -> Callable[[], float]:
    """Connect, without measuring that, and read once."""

    def probe() -> float:
        with application(cluster, "reads") as app:
            return once(partial(app.execute, f"select {function}('text 200 B')"))()

    return probe


def fetching(call: Callable[[], psycopg.Cursor[Any]]) -> Callable[[], object]:
    """Return a call that also fetches, which parses the JSON."""
    return lambda: call().fetchall()


#: A save of one of 1,000 keys, always to a new value.
SAVE = """
\\set key random(1, 1000)
\\set value random(1, 1000000000)
select llm.save_config('key ' || :key, jsonb_build_object('value', :value::bigint, 'text', repeat('x', 180)));
"""
UPSERT = """
\\set key random(1, 1000)
\\set value random(1, 1000000000)
insert into bench.plain as p (key, value) values ('key ' || :key, jsonb_build_object('value', :value::bigint, 'text', repeat('x', 180)))
    on conflict (key) do update set value = excluded.value;
"""


def saves(cluster: Cluster, *, quick: bool) -> None:
    """Compare writes."""
    rounds, transactions = (3, 600) if quick else (9, 3_000)
    server_process = int((Path(cluster.datadir) / "postmaster.pid").read_text().split()[0])
    cores = sorted(os.sched_getaffinity(0))
    title("save_config, one a transaction, pgbench as a bound role (200 B)")
    for clients in (1, 4):
        for commit in ("on", "off"):
            # A flush takes long enough to need fewer of them.
            count = transactions // 2 if commit == "on" else transactions
            save, upsert = (
                pgbench(cluster, "writes", "bound", script, clients=clients, transactions=count, options=f"-c synchronous_commit={commit}")
                for script in (SAVE, UPSERT)
            )
            # A single client that wakes a server on another core measures the waking: both on one then.
            with pinned(dict.fromkeys((os.getpid(), server_process), cores[0])) if clients == 1 else nullcontext():
                time = medians(rounds, ours=save, theirs=upsert)
            what = f"{clients} client{'s' if clients > 1 else ''}, synchronous_commit {commit}"
            # The bar is about saves that are safe, as they are by default.
            line(what, time["ours"], "upsert, PL/pgSQL history trigger", time["theirs"], AtLeast(0.5) if commit == "on" else None)

    save, upsert = (
        pgbench(cluster, "writes", "bound", script, clients=1, transactions=transactions, options="-c synchronous_commit=off")
        for script in (f"begin;\nselect llm.set_tenant('acme');\n{SAVE}\nend;", f"begin;\n{UPSERT}\nend;")
    )
    time = medians(rounds, ours=save, theirs=upsert)
    line("1 client, off, begin; set_tenant; save; end", time["ours"], "begin; upsert; end", time["theirs"])

    with cluster.connect("writes", "bound") as bound:
        title("saves without a client: all in one transaction, a key")
        ours, theirs = Batch(bound), Batch(bound)
        time = medians(
            rounds,
            ours=once(partial(ours.run, "select llm.save_configs(%s)"), 1_000),
            theirs=once(partial(theirs.run, UPSERT_MANY), 1_000),
            unchanged=once(partial(ours.run, "select llm.save_configs(%s)", changed=False), 1_000),
        )
        line("save_configs, 1,000 keys", time["ours"], "one upsert of 1,000 rows, same trigger", time["theirs"])
        fact("save_configs, nothing changed", f"{time['unchanged']:.2f}")
        rows = 200 if quick else 1_000
        each = "('key ' || i, jsonb_build_object('value', random(), 'text', repeat('x', 180)))"
        time = medians(
            rounds,
            ours=per_row(bound, f"llm.save_config{each}", rows),
            theirs=per_row(bound, f"bench.upsert{each}", rows),
        )
        line("save_config", time["ours"], "upsert in PL/pgSQL, same trigger", time["theirs"])


UPSERT_MANY = """
insert into bench.plain as p (key, value) select v.key, v.value from jsonb_each(%s) v order by v.key
    on conflict (key) do update set value = excluded.value
"""


class Batch:
    """1,000 keys whose values are new at each run."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._number = 0

    def run(self, statement: str, *, changed: bool = True) -> None:
        """Save them by a statement."""
        self._number += changed
        batch = {f"batch {number}": {"value": self._number, "text": "x" * 180} for number in range(1_000)}
        self._connection.execute(statement, [Jsonb(batch)])


def growth(cluster: Cluster, *, quick: bool) -> None:
    """Measure reads while the table grows."""
    rounds, rows = (3, 1_000) if quick else (5, 10_000)
    with database(cluster, "growth") as superuser:
        title("reads as the table grows (peer: the same with 100 keys)")
        first: dict[str, float] = {}
        stored = 0
        for size in (100, 10_000) if quick else (100, 10_000, 1_000_000):
            start = perf_counter()
            superuser.execute(
                "insert into llm.config (tenant_id, key, value)"
                " select 'acme', 'key ' || i, jsonb_build_object('value', i, 'text', repeat('x', 180)) from generate_series(%s::int, %s::int) i",
                [stored + 1, size],
            )
            seconds = perf_counter() - start
            fact(f"{size:,} keys: loading {size - stored:,}", f"{seconds:.1f} s", f"{seconds / (size - stored) * 1e6:.1f} us a row")
            stored = size
            superuser.execute("vacuum analyze llm.config")
            # Any key of the table for the reads that do not cache; a hundred of them for those that do.
            step = 7_919
            anywhere, hot = f"'key ' || (1 + i * {step} % {size})", f"'key ' || (1 + i % 100 * {step} % {size})"
            with application(cluster, "growth") as app:
                time = medians(
                    rounds,
                    cached=per_row(app, f"llm.load_config({hot})", rows),
                    missed=per_row(app, f"llm.load_config({anywhere})", rows),
                    uncached=per_row(app, f"llm.load_config({anywhere}, p_cached => false)", rows),
                    table=per_row(app, f"bench.same_plpgsql({anywhere})", rows),
                )
            first = first or time
            for name, what in (
                ("cached", "cached"),
                ("missed", "cached, keys all over"),
                ("uncached", "not cached"),
                ("table", "PL/pgSQL, llm.config"),
            ):
                line(f"{size:,} keys, {what}", time[name], "100 keys", first[name])

"""The cache beside Redis: see README.md for what is compared with what."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psycopg
import redis

from bench.support import (
    AtLeast,
    AtMost,
    Probe,
    database,
    fact,
    line,
    medians,
    one,
    per_call,
    per_row,
    pgbench,
    pinned,
    redis_server,
    title,
)
from tools.cluster import Cluster

KEYS = 100_000

#: What a value is: 300 bytes of JSON.
VALUE = json.dumps({"text": "x" * 288}).encode()


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with database(cluster, "cache") as superuser, redis_server() as store:
        superuser.execute("select llm.bind_role('bound', 'acme')")
        superuser.execute("grant llm_app to bound")
        fill(superuser)
        if store:
            fill_redis(store)
        through_a_client(cluster, store, quick=quick)
        if store and shutil.which("redis-benchmark"):
            rates(cluster, store, quick=quick)
        inside(cluster, superuser, quick=quick)


def fill(superuser: psycopg.Connection) -> None:
    """Cache a value for each key, as JSON and as bytes."""
    with superuser.transaction():
        superuser.execute("select llm.set_tenant('acme')")
        superuser.execute(f"select count(llm.cache_set('key ' || i, %s)) from generate_series(1, {KEYS}) i", [VALUE.decode()])
        superuser.execute(f"select count(llm.cache_set_bytes('key ' || i, %s, p_namespace => 'bytes')) from generate_series(1, {KEYS}) i", [VALUE])
    superuser.execute("vacuum analyze llm.cache_entries")


def fill_redis(store: redis.Redis) -> None:
    """Do the same there."""
    with store.pipeline(transaction=False) as pipeline:
        for number in range(1, KEYS + 1):
            pipeline.set(f"key {number}", VALUE)
        pipeline.execute()


def through_a_client(cluster: Cluster, store: redis.Redis | None, *, quick: bool) -> None:
    """Compare single calls, one client."""
    rounds, calls = (3, 400) if quick else (9, 2_000)
    many = [f"key {number * 977 % KEYS + 1}" for number in range(100)]
    with cluster.connect("cache", "bound") as bound:
        bound.prepare_threshold = 0
        cursor = bound.cursor(binary=True)
        numbers = iter(range(1, 1 << 60))

        def key() -> str:
            return f"key {next(numbers) * 7_919 % KEYS + 1}"

        def get(function: str, *more: object) -> Callable[[], object]:
            statement = f"select llm.{function}(%s{', %s' * len(more)})"
            return lambda: found(cursor.execute(statement, [key(), *more]).fetchone())

        raw = prepared(bound, "get", "select llm.cache_get_bytes($1, 'bytes')")
        raw_set = prepared(bound, "set", "select llm.cache_set_bytes($1, $2::bytea, p_namespace => 'bytes')")
        ours = {
            "get": get("cache_get"),
            "get_bytes": get("cache_get_bytes", "bytes"),
            "raw_get": lambda: len(raw(key().encode())),
            "many": lambda: cursor.execute("select * from llm.cache_get_many_bytes(%s, 'bytes')", [many]).fetchall(),
            "set": lambda: cursor.execute("select llm.cache_set_bytes(%s, %s, p_namespace => 'bytes')", [key(), VALUE]).fetchone(),
            "raw_set": lambda: raw_set(key().encode(), VALUE),
        }
        theirs: dict[str, Callable[[], object]] = {}
        processes = [bound.info.backend_pid]
        if store:
            processes.append(int(store.info()["process_id"]))
            theirs = {
                "redis_get": lambda: found((store.get(key()),)),
                "redis_json": lambda: json.loads(store.get(key()) or b""),
                "redis_many": lambda: store.mget(many),
                "redis_set": lambda: store.set(key(), VALUE),
            }
        cores = sorted(os.sched_getaffinity(0))
        what = f"one client, Unix socket, prepared (300 B values of {KEYS:,} keys, a transaction each)"
        for where, core in (("client and server on one core", cores[0]), ("on two cores", cores[-1])):
            with pinned({os.getpid(): cores[0]} | dict.fromkeys(processes, core)):
                probes = {name: per_call(call, calls // 10 if "many" in name else calls) for name, call in (ours | theirs).items()}
                compare(f"{what}, {where}", medians(rounds, **probes), has_bars=True)
        probes = {
            name: processor(call, calls // 10 if "many" in name else calls, [os.getpid(), *processes]) for name, call in (ours | theirs).items()
        }
        compare(f"{what}: time of processors, client and server together, whatever else runs here", medians(rounds, **probes), has_bars=False)


def compare(what: str, time: dict[str, float], *, has_bars: bool) -> None:
    """Print what single calls took."""
    title(what)
    for name, ours, theirs, peer, bar in (
        ("cache_get_bytes, libpq (psycopg's pgconn)", "raw_get", "redis_get", "redis-py GET", AtMost(1.05)),
        ("cache_get_bytes, psycopg cursor", "get_bytes", "redis_get", "redis-py GET", AtMost(1.05)),
        ("cache_get, psycopg cursor", "get", "redis_json", "redis-py GET, json.loads", AtMost(1.05)),
        ("cache_get_many_bytes, 100 keys", "many", "redis_many", "redis-py MGET", AtMost(1.5)),
        ("cache_set_bytes, libpq", "raw_set", "redis_set", "redis-py SET", AtLeast(0.8)),
        ("cache_set_bytes, psycopg cursor", "set", "redis_set", "redis-py SET", AtLeast(0.8)),
    ):
        if theirs in time:
            line(name, time[ours], peer, time[theirs], bar if has_bars else None)
        else:
            fact(name, f"{time[ours]:.1f} us")


def processor(call: Callable[[], object], calls: int, processes: list[int]) -> Probe:
    """Call a function and return the time of processors that one call takes in these processes."""

    def used() -> int:
        return sum(int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) for process in processes)

    def probe() -> float:
        before = used()
        for _ in range(calls):
            call()
        return (used() - before) / calls / 1_000

    return probe


def found(row: tuple[Any, ...] | None) -> object:
    """Return a value that must be there."""
    value: object = row and row[0]
    assert value is not None
    return value


def prepared(connection: psycopg.Connection, name: str, statement: str) -> Callable[..., bytes]:
    """Return a call of a statement without psycopg's cursors, as a driver of another language would do it."""
    libpq = connection.pgconn
    libpq.prepare(name.encode(), statement.encode())

    def call(*arguments: bytes) -> bytes:
        result = libpq.exec_prepared(name.encode(), arguments, [1] * len(arguments), 1)
        value = result.get_value(0, 0)
        assert value is not None, result.error_message
        return value

    return call


GET = f"\\set key random(1, {KEYS})\nselect llm.cache_get_bytes('key ' || :key, 'bytes');\n"
SET = f"\\set key random(1, {KEYS})\nselect llm.cache_set_bytes('key ' || :key, '{VALUE.decode()}', p_namespace => 'bytes');\n"


def rates(cluster: Cluster, store: redis.Redis, *, quick: bool) -> None:
    """Compare many clients at once, pgbench with redis-benchmark."""
    rounds, transactions = (3, 4_000) if quick else (7, 20_000)
    server_process = int((Path(cluster.datadir) / "postmaster.pid").read_text().split()[0])
    socket = store.connection_pool.connection_kwargs["path"]
    cores = sorted(os.sched_getaffinity(0))
    title("many clients, pgbench with redis-benchmark, Unix socket (300 B values)")
    for clients in (1, 4, 16):
        count = transactions // clients
        with pinned(dict.fromkeys((os.getpid(), server_process), cores[0])) if clients == 1 else nullcontext():
            time = medians(
                rounds,
                get=pgbench(cluster, "cache", "bound", GET, clients=clients, transactions=count),
                set=pgbench(cluster, "cache", "bound", SET, clients=clients, transactions=count),
                redis_get=redis_benchmark(socket, clients, transactions, "get", "key __rand_int__"),
                redis_set=redis_benchmark(socket, clients, transactions, "set", "key __rand_int__", VALUE.decode()),
            )
        what = f"{clients} client{'s' if clients > 1 else ''}"
        line(f"cache_get_bytes, {what}", time["get"], "redis-benchmark GET", time["redis_get"], AtLeast(1.3) if clients == 4 else None)
        line(f"cache_set_bytes, {what}", time["set"], "redis-benchmark SET", time["redis_set"], AtLeast(0.8) if clients < 16 else None)


def redis_benchmark(socket: str, clients: int, requests: int, *command: str) -> Probe:
    """Run redis-benchmark and return microseconds a request."""

    def probe() -> float:
        output = subprocess.run(
            ("redis-benchmark", "-s", socket, "-c", str(clients), "-n", str(requests), "-r", str(KEYS), "--csv", *command),
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        rate = re.findall(r'"([\d.]+)"', output.splitlines()[-1])[0]
        return 1e6 / float(rate)

    return probe


def inside(cluster: Cluster, superuser: psycopg.Connection, *, quick: bool) -> None:
    """Compare the ways to read and write with each other, in one query each."""
    rounds, rows = (3, 2_000) if quick else (7, 10_000)
    with cluster.connect("cache", "bound") as bound:
        bound.execute("select llm.set_cache_policy(p_l1 => true, p_namespace => 'l1')")
        bound.execute("select llm.set_cache_policy(p_max_entries => 5000, p_namespace => 'limited')")
        bound.execute("select llm.cache_set('key ' || i, %s, p_namespace => 'l1') from generate_series(1, 1000) i", [VALUE.decode()])
        token = one(bound, "select llm.cache_token()")
        bound.execute(
            "select llm.cache_set('key ' || i, %s, p_namespace => 'd', p_depends_on => array['m ' || i %% 10], p_token => %s)"
            " from generate_series(1, 1000) i", [VALUE.decode(), token],
        )  # fmt: skip
        bound.execute("select llm.cache_bump('m 10')")
        superuser.execute("vacuum analyze llm.cache_entries")
        key, value = "'key ' || (i % 1000 + 1)", f"'{VALUE.decode()}'"
        # Backends know a tenant without asking where no role is bound to one.
        superuser.execute("select llm.bind_role('bound', null)")
        with bound.transaction():
            bound.execute("select llm.set_tenant('acme')")
            time = medians(
                rounds,
                get=per_row(bound, f"llm.cache_get({key})", rows),
                l1=per_row(bound, f"llm.cache_get_l1({key}, 'l1')", rows),
                dependent=per_row(bound, f"llm.cache_get({key}, 'd')", rows),
            )
        superuser.execute("select llm.bind_role('bound', 'acme')")
        time |= medians(
            rounds,
            set=per_row(bound, f"llm.cache_set('key ' || i, {value})", rows),
            limited=per_row(bound, f"llm.cache_set('key ' || i, {value}, p_namespace => 'limited')", rows),
        )
        title("inside one query, a call (300 B)")
        line("cache_get_l1", time["l1"], "cache_get", time["get"])
        line("cache_get of what depends on one thing", time["dependent"], "cache_get", time["get"])
        line("cache_set where 5,000 entries may be", time["limited"], "cache_set", time["set"])
        for name, text in (("prose of 8 kB", "repeat(md5(i::text) || ' the model said that it was so and not so, because ', 100)"),):
            sizes = {}
            for compressed in (True, False):
                namespace = f"compressed {compressed}"
                bound.execute("select llm.set_cache_policy(p_use_compression => %s, p_namespace => %s)", [compressed, namespace])
                sizes[compressed] = per_row(bound, f"llm.cache_set_text('key ' || i, {text}, p_namespace => '{namespace}')", rows // 10)
            time = medians(rounds, compressed=sizes[True], plain=sizes[False])
            line(f"cache_set_text, {name}, compressed", time["compressed"], "not compressed", time["plain"])
            used: dict[str, int] = dict(
                bound.execute("select namespace, memory_used / entries from llm.cache_stats() where namespace like 'compressed%'").fetchall()
            )
            fact("bytes an entry, compressed and not", f"{used['compressed True']}, {used['compressed False']}")

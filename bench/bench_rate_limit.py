"""Rate limits beside Redis with Lua scripts: see README.md for what is compared with what."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import mean, median, quantiles

import psycopg
import redis

from bench.support import AtLeast, AtMost, database, fact, line, medians, per_call, redis_server, title
from tools.cluster import Cluster

LIMIT, WINDOW = 200, 1

KEYS = 10_000

#: The exact log in a sorted set, as Redis' own tutorials have it; with the server's clock, and a member for each call.
LOG = """
    local now = redis.call('TIME')
    local time = now[1] * 1000000 + now[2]
    redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, time - ARGV[2] * 1000000)
    if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[1]) then
        redis.call('ZADD', KEYS[1], time, time)
        redis.call('PEXPIRE', KEYS[1], ARGV[2] * 1000)
        return 1
    end
    return 0
    """

#: The estimate from this window's counter and the last one's.
COUNTERS = """
    local now = redis.call('TIME')
    local time = now[1] + now[2] / 1000000
    local window = tonumber(ARGV[2])
    local number = math.floor(time / window)
    local last = tonumber(redis.call('GET', KEYS[1] .. ':' .. (number - 1)) or '0')
    local this = tonumber(redis.call('GET', KEYS[1] .. ':' .. number) or '0')
    if last * (1 - (time / window - number)) + this < tonumber(ARGV[1]) then
        redis.call('INCR', KEYS[1] .. ':' .. number)
        redis.call('PEXPIRE', KEYS[1] .. ':' .. number, window * 2000)
        return 1
    end
    return 0
    """

OURS = {
    "token_bucket": "p_algorithm => 'token_bucket'",
    "shared memory": "p_transactional => false",
    "sliding_window": "p_algorithm => 'sliding_window'",
    "sliding_log": "p_algorithm => 'sliding_log'",
}

#: Who is compared with whom.
PEERS = {"token_bucket": "log", "shared memory": "log", "sliding_window": "counters", "sliding_log": "log"}

#: One round: microseconds a call, and the 95th percentile of a call's time.
type Round = Callable[[], tuple[float, float]]


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with database(cluster, "rate_limit") as superuser, redis_server() as peer:
        superuser.execute("grant llm_app to app")
        superuser.execute("grant llm_app to bound")
        superuser.execute("select llm.bind_role('bound', 'acme')")
        if peer is None:
            fact("redis-server", "not there", "nothing is compared")
            return
        for clients in (1, 4, 16):
            for keys in (KEYS, 1):
                under_load(cluster, peer, clients, keys, quick=quick)
        through_clients(cluster, peer, quick=quick)
        denied(cluster, peer, quick=quick)
        size(superuser, peer)


def under_load(cluster: Cluster, peer: redis.Redis, clients: int, keys: int, *, quick: bool) -> None:
    """Compare many clients, by pgbench and redis-benchmark."""
    calls = 8_000 if quick else 40_000
    rounds: dict[str, Round] = {name: by_pgbench(cluster, arguments, clients, keys, calls) for name, arguments in OURS.items()}
    rounds |= {name: by_redis(peer, script, clients, keys, calls) for name, script in (("log", LOG), ("counters", COUNTERS))}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in rounds}
    for name, once in rounds.items():
        once()
        found[name].clear()
    for _ in range(3 if quick else 7):
        for name, once in rounds.items():
            found[name].append(once())
    call = {name: median(each[0] for each in values) for name, values in found.items()}
    p95 = {name: median(each[1] for each in values) for name, values in found.items()}
    title(f"calls, {clients} clients, {f'{keys:,} keys' if keys > 1 else 'one key'}; peer: Redis by redis-benchmark")
    for name, other in PEERS.items():
        bar = AtLeast(1.1) if clients == 4 and keys > 1 and name in ("token_bucket", "shared memory") else None
        line(f"{name}, a call", call[name], f"Lua, {other}", call[other], bar)
        line(f"{name}, p95", p95[name], f"Lua, {other}", p95[other])


def by_pgbench(cluster: Cluster, arguments: str, clients: int, keys: int, calls: int) -> Round:
    """Return rounds of pgbench, whose first half does not count."""
    script = f"\\set key random(1, {keys})\nselect allowed from llm.rate_limit('api', :key::text, {LIMIT}, '{WINDOW} s', {arguments});\n"

    def once() -> tuple[float, float]:
        with tempfile.TemporaryDirectory(prefix="pg_llm_pgbench.") as name:
            directory = Path(name)
            (directory / "script").write_text(script)
            cluster.program(
                "pgbench", "-n", "-M", "prepared", "-U", "bound", "-c", str(clients), "-j", str(min(clients, 2)), "-t", str(calls // clients),
                "-l", f"--log-prefix={directory}/log", "-f", directory / "script", "rate_limit",
            )  # fmt: skip
            rows = [line.split() for path in directory.glob("log*") for line in path.read_text().splitlines()]
        times = [int(time) for _, number, time, *_ in rows if int(number) > calls / clients / 2]
        return mean(times) / clients, quantiles(times, n=20)[-1]

    return once


def by_redis(peer: redis.Redis, script: str, clients: int, keys: int, calls: int) -> Round:
    """Return rounds of redis-benchmark."""
    sha = peer.script_load(script)
    socket = peer.connection_pool.connection_kwargs["path"]
    key = "limit:__rand_int__" if keys > 1 else "limit"
    command = (
        "redis-benchmark", "-s", socket, "-c", str(clients), "-n", str(calls), *(("-r", str(keys)) if keys > 1 else ()), "--csv",
        "EVALSHA", sha, "1", key, str(LIMIT), str(WINDOW),
    )  # fmt: skip

    def once() -> tuple[float, float]:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        names, values = (row.replace('"', "").split(",")[-7:] for row in answer.strip().splitlines())
        found = dict(zip(names, map(float, values), strict=True))
        return 1e6 / found["rps"], found["p95_latency_ms"] * 1000

    return once


def through_clients(cluster: Cluster, peer: redis.Redis, *, quick: bool) -> None:
    """Compare single calls from Python."""
    with cluster.connect("rate_limit", "bound") as connection:
        connection.prepare_threshold = 0
        numbers = count()
        scripts = {"log": peer.register_script(LOG), "counters": peer.register_script(COUNTERS)}

        def key() -> str:
            return str(next(numbers) * 7919 % KEYS)

        def ours(arguments: str) -> Callable[[], object]:
            statement = f"select allowed, remaining from llm.rate_limit('api', %s, {LIMIT}, '{WINDOW} s', {arguments})"
            return lambda: connection.execute(statement, [key()]).fetchone()

        def theirs(name: str) -> Callable[[], object]:
            return lambda: scripts[name](keys=[f"limit:{key()}"], args=[LIMIT, WINDOW])

        calls = 500 if quick else 3_000
        time = medians(
            3 if quick else 9,
            **{name: per_call(ours(arguments), calls) for name, arguments in OURS.items()},
            **{name: per_call(theirs(name), calls) for name in scripts},
        )
        title("a call from Python, one client, p50; peer: redis-py")
        for name, other in PEERS.items():
            line(name, time[name], f"Lua, {other}", time[other], AtMost(1.1) if name in ("token_bucket", "shared memory") else None)


def denied(cluster: Cluster, peer: redis.Redis, *, quick: bool) -> None:
    """Compare calls that are not allowed, from Python."""
    with cluster.connect("rate_limit", "bound") as connection:
        connection.prepare_threshold = 0
        script = peer.register_script(LOG)
        for _ in range(3):
            script(keys=["denied"], args=[1, 3600])

        def ours(arguments: str) -> Callable[[], object]:
            return lambda: connection.execute(f"select allowed from llm.rate_limit('denied', 'x', 1, '1 hour', {arguments})").fetchone()

        calls = 500 if quick else 3_000
        time = medians(
            3 if quick else 9,
            **{name: per_call(ours(arguments), calls) for name, arguments in OURS.items()},
            log=per_call(lambda: script(keys=["denied"], args=[1, 3600]), calls),
        )
        title("a call that is denied, one client, p50; peer: redis-py")
        for name in OURS:
            line(name, time[name], "Lua, log", time["log"])


def size(superuser: psycopg.Connection, peer: redis.Redis) -> None:
    """Print what is kept."""
    rows = superuser.execute("select pg_total_relation_size('llm.rate_limits'), count(*) from llm.rate_limits").fetchone()
    assert rows
    fact("llm.rate_limits", f"{rows[0] / 1e6:.1f} MB", f"{rows[1]:,} rows")
    fact("Redis", f"{peer.info()['used_memory'] / 1e6:.1f} MB")

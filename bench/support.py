"""What the benchmarks share: a server of their own, interleaved rounds, medians, tables of ratios."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import psycopg
import redis

from tools.cluster import Cluster, Installation

#: Durable as a user's server is (the tests' servers are not), large enough that nothing here is read from disk.
SETTINGS = ("fsync=on", "shared_buffers=1GB", "max_wal_size=4GB", "checkpoint_timeout=30min", "jit=off", "max_connections=50")

#: Whether sizes that take minutes and gigabytes are measured, too.
large = False

#: One measurement: runs something many times and returns microseconds for one time.
type Probe = Callable[[], float]

PEERS = Path(__file__).parent / "peers.sql"


@contextmanager
def server() -> Iterator[Cluster]:
    """Run a server with pg_llm, and remove it."""
    with tempfile.TemporaryDirectory(prefix="pg_llm_bench.") as name:
        directory = Path(name)
        with Cluster(Installation(directory / "postgresql").install(), directory / "cluster", *SETTINGS) as cluster:
            with cluster.connect() as connection:
                connection.execute("create role app login")
                connection.execute("create role bound login")
            yield cluster


@contextmanager
def database(cluster: Cluster, name: str) -> Iterator[psycopg.Connection]:
    """Make a database with pg_llm and the peers in it, and yield a superuser's connection; drop it at the end."""
    with cluster.connect() as connection:
        connection.execute(f"create database {name}")
    with cluster.connect(name) as connection:
        connection.execute("set client_min_messages = warning")
        connection.execute("create extension pg_llm cascade")
        connection.execute(PEERS.read_text())
        # The first read after a server's start sets the caches' shared file up: nothing is cached until its transaction ends.
        with cluster.connect(name) as first:
            first.execute("select llm.load_config('first')")
        yield connection
    with cluster.connect() as connection:
        connection.execute(f"drop database {name} with (force)")


@contextmanager
def application(cluster: Cluster, name: str, tenant: str = "acme") -> Iterator[psycopg.Connection]:
    """Yield an application's connection, inside a transaction that works for a tenant."""
    with cluster.connect(name, "app", autocommit=False) as connection:
        connection.prepare_threshold = 0
        connection.execute("select llm.set_tenant(%s)", [tenant])
        yield connection
        connection.rollback()


@contextmanager
def redis_server() -> Iterator[redis.Redis | None]:
    """Run a Redis server without persistence on a socket of its own; None where there is no redis-server."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="pg_llm_redis.") as directory:
        socket = f"{directory}/socket"
        command = (program, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", directory)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                retry = redis.retry.Retry(redis.backoff.ConstantBackoff(0.05), 100)
                yield redis.Redis(unix_socket_path=socket, retry=retry, retry_on_error=[redis.exceptions.ConnectionError])
            finally:
                process.terminate()


def per_row(connection: psycopg.Connection, expression: str, rows: int) -> Probe:
    """Evaluate an SQL expression for each row i of one query."""
    statement = f"select count({expression}) from generate_series(1, {rows}) i"

    def probe() -> float:
        start = perf_counter()
        connection.execute(statement)
        return (perf_counter() - start) / rows * 1e6

    return probe


def per_call(call: Callable[[], object], calls: int) -> Probe:
    """Call a function and take the median of single calls."""

    def probe() -> float:
        times = []
        for _ in range(calls):
            start = perf_counter()
            call()
            times.append(perf_counter() - start)
        return median(times) * 1e6

    return probe


def once(call: Callable[[], object], units: int = 1) -> Probe:
    """Call a function that does so many units of work."""

    def probe() -> float:
        start = perf_counter()
        call()
        return (perf_counter() - start) / units * 1e6

    return probe


def middle(values: Sequence[float]) -> float:
    """Return the mean of the middle half: finer than the median, and what waits for a core does not count either."""
    ordered = sorted(values)
    return mean(ordered[len(ordered) // 4 : -(len(ordered) // 4) or None])


def pgbench(
    cluster: Cluster, database: str, user: str, script: str, *,
    clients: int, transactions: int, options: str = "", average: Callable[[Sequence[float]], float] = mean,
) -> Probe:  # fmt: skip
    """Run a pgbench script in prepared mode and return microseconds a transaction.

    The second half of each client's transactions counts: in the first one a new backend fills its caches, and loads Python.
    """

    def probe() -> float:
        with tempfile.TemporaryDirectory(prefix="pg_llm_pgbench.") as name:
            directory = Path(name)
            (directory / "script").write_text(script)
            cluster.program(
                "pgbench", "-n", "-M", "prepared", "-U", user, "-c", str(clients), "-j", str(min(clients, 2)), "-t", str(transactions),
                "-l", f"--log-prefix={directory}/log", "-f", directory / "script", database, PGOPTIONS=options,
            )  # fmt: skip
            rows = [line.split() for path in directory.glob("log*") for line in path.read_text().splitlines()]
        return average([int(latency) for _, number, latency, *_ in rows if int(number) > transactions / 2]) / clients

    return probe


def medians(rounds: int, **probes: Probe) -> dict[str, float]:
    """Run all probes in each round, in turns, so that what disturbs the machine disturbs all; return each one's median."""
    times: dict[str, list[float]] = {name: [] for name in probes}
    for probe in probes.values():
        probe()
    names = list(probes)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(probes[name]())
    return {name: median(values) for name, values in times.items()}


@dataclass(frozen=True)
class AtLeast:
    """So many times as fast as the peer."""

    factor: float

    def ratio(self, ours: float, theirs: float) -> float:
        """Return the speed relative to the peer's."""
        return theirs / ours

    def verdict(self, ratio: float) -> str:
        """Return the bar and whether it is kept."""
        return f">= {self.factor:g}x speed  {'ok' if ratio >= self.factor else 'MISSED'}"


@dataclass(frozen=True)
class AtMost:
    """So many times the peer's time."""

    factor: float

    def ratio(self, ours: float, theirs: float) -> float:
        """Return the time relative to the peer's."""
        return ours / theirs

    def verdict(self, ratio: float) -> str:
        """Return the bar and whether it is kept."""
        return f"<= {self.factor:g}x time   {'ok' if ratio <= self.factor else 'MISSED'}"


def title(text: str, unit: str = "us") -> None:
    """Print the head of a table."""
    print(f"\n{text}\n{'':44}{'pg_llm ' + unit:>12}  {'peer ' + unit:>12}  {'ratio':>12}  bar", flush=True)


def line(what: str, ours: float, peer: str, theirs: float, bar: AtLeast | AtMost | None = None) -> None:
    """Print a comparison: times, ratio, bar and verdict."""
    rule = bar or AtLeast(0)
    ratio = rule.ratio(ours, theirs)
    kind = "time" if isinstance(rule, AtMost) else "speed"
    print(f"  {what:42}{ours:12,.2f}  {theirs:12,.2f}  {ratio:6.2f}x {kind:5}  {bar.verdict(ratio) if bar else '-':22} {peer}", flush=True)


def fact(what: str, value: str, verdict: str = "") -> None:
    """Print a figure without a peer."""
    print(f"  {what:42}{value:>12}  {verdict}".rstrip(), flush=True)


def kept(is_kept: bool) -> str:
    """Return the word for a bar."""
    return "ok" if is_kept else "MISSED"


@contextmanager
def pinned(cores: dict[int, int]) -> Iterator[None]:
    """Bind processes, by id, to one core each for a while."""
    before = {pid: os.sched_getaffinity(pid) for pid in cores}
    for pid, core in cores.items():
        os.sched_setaffinity(pid, {core})
    try:
        yield
    finally:
        for pid, allowed in before.items():
            os.sched_setaffinity(pid, allowed)


def conditions(cluster: Cluster, *, quick: bool) -> str:
    """Return what the figures depend on."""
    with cluster.connect() as connection:
        names = ["server_version", *(setting.split("=")[0] for setting in SETTINGS), "synchronous_commit"]
        settings = {name: one(connection, "select current_setting(%s)", name) for name in names}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, Python {platform.python_version()}"
    drivers = f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__}), redis-py {redis.__version__}"
    lines = (machine, ", ".join(f"{name} {value}" for name, value in settings.items()), drivers)
    return "\n".join((*lines, "Medians of interleaved rounds" + (", QUICK: too few to quote" if quick else "") + "."))


def one(connection: psycopg.Connection, statement: str, *arguments: object) -> Any:
    """Return the only value of a statement."""
    row = connection.execute(statement, arguments or None).fetchone()
    assert row
    return row[0]

"""Enqueue, claim, complete: beside pgmq's published design, Redis streams, procrastinate and pgqueuer; and under a pinned horizon."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any
from uuid import uuid4

import procrastinate
import procrastinate.jobs
import psycopg
import redis
from pgqueuer.adapters.drivers.psycopg import PsycopgDriver
from pgqueuer.ports.repository import EntrypointExecutionParameter
from pgqueuer.queries import Queries
from pgqueuer.types import QueueEntrypoint, QueueManagerId

from bench import support
from bench.support import AtLeast, database, fact, kept, line, medians, once, per_call, redis_server, title
from tools.cluster import Cluster

#: 300 bytes, as performance.md has them.
PAYLOAD = json.dumps({"prompt": "x" * 280})

PEER = Path(__file__).with_name("peer_queue.sql")

#: One cycle: puts jobs into a queue, takes as many, and says that they are done.
type Cycle = Callable[[], object]


@dataclass
class Pg:
    """A client of the server, as the application's role."""

    connection: psycopg.Connection
    queue: str = "bench"
    held: tuple[list[int], int] | None = field(default=None)

    def one(self, statement: str, *arguments: object) -> Any:
        """Return the only row."""
        return self.connection.execute(statement, arguments).fetchone()

    def fused(self) -> None:
        """Enqueue a job; complete the last one and claim the next."""
        self.one("select llm.enqueue(%s, %s::jsonb)", self.queue, PAYLOAD)
        self._complete_and_claim(1)

    def fused_batch(self, size: int = 100) -> None:
        """The same with many jobs."""
        self.one("select llm.enqueue_many(%s, %s::jsonb[])", self.queue, [PAYLOAD] * size)
        self._complete_and_claim(size)

    def three(self) -> None:
        """Enqueue, claim, complete: a call each."""
        self.one("select llm.enqueue(%s, %s::jsonb)", self.queue, PAYLOAD)
        job, token, _ = self.one("select id, token, payload from llm.claim_jobs(%s, 1)", self.queue)
        self.one("select llm.complete_jobs(%s::bigint[], %s::bigint)", [job], token)

    def pgmq(self) -> None:
        """Send, read, delete."""
        self.one("select pgmq.send(%s, %s::jsonb)", self.queue, PAYLOAD)
        number, _ = self.one("select msg_id, message from pgmq.read(%s, 60, 1)", self.queue)
        self.one("select pgmq.delete(%s, %s::bigint)", self.queue, number)

    def pgmq_archive(self) -> None:
        """Send, read, archive."""
        self.one("select pgmq.send(%s, %s::jsonb)", self.queue, PAYLOAD)
        number, _ = self.one("select msg_id, message from pgmq.read(%s, 60, 1)", self.queue)
        self.one("select pgmq.archive(%s, %s::bigint)", self.queue, number)

    def pgmq_batch(self, size: int = 100) -> None:
        """The same with many messages."""
        self.connection.execute("select pgmq.send_batch(%s, %s::jsonb[])", [self.queue, [PAYLOAD] * size]).fetchall()
        rows = self.connection.execute("select msg_id, message from pgmq.read(%s, 60, %s)", [self.queue, size]).fetchall()
        self.connection.execute("select pgmq.delete(%s, %s::bigint[])", [self.queue, [row[0] for row in rows]]).fetchall()

    def _complete_and_claim(self, size: int) -> None:
        done, token = self.held or (None, None)
        statement = "select id, token, payload from llm.claim_jobs(%s, %s, p_done => %s::bigint[], p_token => %s::bigint)"
        rows = self.connection.execute(statement, [self.queue, size, done, token]).fetchall()
        self.held = [row[0] for row in rows], rows[0][1]


@dataclass
class Stream:
    """A client of Redis: a stream with a consumer group."""

    store: redis.Redis

    def single(self, size: int = 1) -> None:
        """Add, read as a consumer, acknowledge and delete."""
        if size == 1:
            self.store.xadd("bench", {"payload": PAYLOAD})
        else:
            with self.store.pipeline(transaction=False) as pipeline:
                for _ in range(size):
                    pipeline.xadd("bench", {"payload": PAYLOAD})
                pipeline.execute()
        found: Any = self.store.xreadgroup("group", "consumer", {"bench": ">"}, count=size)
        entries = next(iter(found.values()))[0] if isinstance(found, dict) else found[0][1]
        ids = [number for number, fields in entries if json.loads(fields[b"payload"])]
        self.store.xack("bench", "group", *ids)
        self.store.xdel("bench", *ids)


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with database(cluster, "queue") as superuser, redis_server() as store:
        superuser.execute("grant llm_app to app")
        superuser.execute("select llm.bind_role('app', 'acme')")
        superuser.execute(PEER.read_text())
        superuser.execute("select pgmq.create('bench'), pgmq.create('waiting')")
        superuser.execute("grant all on all tables in schema pgmq to app; grant all on all sequences in schema pgmq to app")
        if store is None:
            print("\nThere is no redis-server on PATH: its lines are missing.")
        else:
            store.xgroup_create("bench", "group", mkstream=True)
        one_client(cluster, store, quick=quick)
        many_clients(cluster, store, quick=quick)
        sizes(superuser, cluster, store, 2000 if quick else 20000)
        pinned_horizon(cluster, 6 if quick else 45)
        soak(superuser, cluster, 600 if support.large else 5 if quick else 30)


def connect(cluster: Cluster, *, durable: bool = False) -> psycopg.Connection:
    """Connect as the application's role, which waits for the disk or not."""
    connection = cluster.connect("queue", "app")
    connection.prepare_threshold = 0
    connection.execute("select set_config('synchronous_commit', %s, false)", ["on" if durable else "off"])
    return connection


def one_client(cluster: Cluster, store: redis.Redis | None, *, quick: bool) -> None:
    """Compare whole cycles of one client, one job and a hundred at a time."""
    fast, slow = connect(cluster), connect(cluster, durable=True)
    batch, peer_batch = Pg(fast, "batch"), Pg(fast)
    kept_queue = Pg(connect(cluster), "kept")
    kept_queue.one("select llm.set_queue('kept', p_archive => true)")
    calls, rounds = (100, 5) if quick else (300, 9)
    batches = max(calls // 50, 2)
    probes: dict[str, Callable[[], float]] = {
        "fused": per_call(Pg(fast).fused, calls),
        "three": per_call(Pg(fast, "three").three, calls),
        "kept": per_call(kept_queue.fused, calls),
        "pgmq": per_call(Pg(fast).pgmq, calls),
        "pgmq_archive": per_call(Pg(fast).pgmq_archive, calls),
        "durable": per_call(Pg(slow, "durable").fused, calls // 5),
        "pgmq_durable": per_call(Pg(slow).pgmq, calls // 5),
        "batch": once(lambda: [batch.fused_batch() for _ in range(batches)], 100 * batches),  # type: ignore[func-returns-value]
        "pgmq_batch": once(lambda: [peer_batch.pgmq_batch() for _ in range(batches)], 100 * batches),  # type: ignore[func-returns-value]
    }
    if store:
        stream = Stream(store)
        probes["stream"] = per_call(stream.single, calls)
        probes["stream_batch"] = once(lambda: [stream.single(100) for _ in range(batches)], 100 * batches)  # type: ignore[func-returns-value]
    with python_peers(cluster) as peers:
        time = medians(rounds, **probes, **{name: per_call(cycle, calls // 5) for name, cycle in peers.items()})
    title("one client: a job of 300 bytes enqueued, claimed, completed; nobody waits for the disk unless it says so")
    line("one at a time, complete and claim fused", time["fused"], "pgmq's design: send, read, delete", time["pgmq"], AtLeast(3))
    if store:
        line("", time["fused"], "Redis stream: XADD XREADGROUP XACK XDEL", time["stream"], AtLeast(0.9))
    line("one at a time, three calls", time["three"], "pgmq's design", time["pgmq"])
    line("fused, and archived", time["kept"], "pgmq's design: send, read, archive", time["pgmq_archive"])
    line("fused, durable", time["durable"], "pgmq's design, durable", time["pgmq_durable"])
    for name in peers:
        line("fused", time["fused"], name.replace("_", " "), time[name], AtLeast(3))
    line("100 at a time, a job", time["batch"], "pgmq's design", time["pgmq_batch"], AtLeast(1.7))
    if store:
        line("", time["batch"], "Redis stream, pipelined", time["stream_batch"])


@contextmanager
def python_peers(cluster: Cluster) -> Iterator[dict[str, Cycle]]:
    """Yield the cycles of procrastinate and pgqueuer, by their own calls, each in a database of its own."""
    loop = asyncio.new_event_loop()
    with cluster.connect() as connection:
        connection.execute("create database queue_procrastinate").execute("create database queue_pgqueuer")
    options = "-c synchronous_commit=off"
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=cluster.dsn("queue_procrastinate"), min_size=1, max_size=1, kwargs={"options": options})
    )

    async def prepare() -> tuple[int, psycopg.AsyncConnection, Queries]:
        await app.open_async()
        await app.schema_manager.apply_schema_async()
        asynchronous = await psycopg.AsyncConnection.connect(cluster.dsn("queue_pgqueuer"), autocommit=True, options=options)
        queries = Queries(PsycopgDriver(asynchronous))
        await queries.install()
        return await app.job_manager.register_worker(), asynchronous, queries

    worker, other, queries = loop.run_until_complete(prepare())
    manager, who = app.job_manager, QueueManagerId(uuid4())
    entrypoints = {QueueEntrypoint("bench"): EntrypointExecutionParameter(0)}

    async def by_procrastinate() -> None:
        arguments = json.loads(PAYLOAD)
        await manager.defer_job_async(procrastinate.jobs.Job(queue="bench", lock=None, queueing_lock=None, task_name="bench", task_kwargs=arguments))
        job = await manager.fetch_job(["bench"], worker)
        assert job
        await manager.finish_job(job, procrastinate.jobs.Status.SUCCEEDED, delete_job=True)

    async def by_pgqueuer() -> None:
        await queries.enqueue("bench", PAYLOAD.encode())
        (job,) = await queries.dequeue(1, entrypoints, who, None, timedelta(seconds=60))
        await queries.log_jobs([(job, "successful", None)])

    try:
        yield {
            "procrastinate": lambda: loop.run_until_complete(by_procrastinate()),
            "pgqueuer": lambda: loop.run_until_complete(by_pgqueuer()),
        }
    finally:
        loop.run_until_complete(other.close())
        loop.run_until_complete(app.close_async())
        loop.close()
        with cluster.connect() as superuser:
            superuser.execute("drop database queue_procrastinate with (force)").execute("drop database queue_pgqueuer with (force)")


def _loop(kind: str, dsn: str, seconds: float, together: Any, answer: Any) -> None:
    """Run cycles in a process of its own, and send the time of each."""
    cycle: Cycle
    if kind == "stream":
        cycle = Stream(redis.Redis(unix_socket_path=dsn)).single
    else:
        connection = psycopg.connect(dsn, autocommit=True)
        connection.prepare_threshold = 0
        connection.execute("set synchronous_commit = off")
        cycle = getattr(Pg(connection), kind)
    times = []
    together.wait()
    end = perf_counter() + seconds
    while (now := perf_counter()) < end:
        try:
            cycle()
        except (IndexError, TypeError, StopIteration):
            continue  # another client has taken the job, and will not have found its own
        times.append(perf_counter() - now)
    answer.send(times)


def crowd(kind: str, dsn: str, clients: int, seconds: float) -> tuple[float, float]:
    """Return cycles a second, and the 95th percentile in microseconds, of so many processes."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(clients)
    ends, processes = [], []
    for _ in range(clients):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_loop, args=(kind, dsn, seconds, together, theirs))
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    times = [each for end in ends for each in end.recv()]
    for process in processes:
        process.join()
    return len(times) / seconds, quantiles(times, n=20)[-1] * 1e6


def many_clients(cluster: Cluster, store: redis.Redis | None, *, quick: bool) -> None:
    """Show rate and 95th percentile at 1, 4 and 16 processes, which do one job at a time."""
    print("\nprocesses that do cycles of one job: cycles a second, and the 95th percentile of a cycle (median of rounds in turns)")
    sockets = {"stream": store.connection_pool.connection_kwargs["path"]} if store else {}
    dsns = {"fused": cluster.dsn("queue", "app"), "pgmq": cluster.dsn("queue", "app"), **sockets}
    for clients in (1, 4, 16):
        rounds = [{kind: crowd(kind, dsn, clients, 1 if quick else 4) for kind, dsn in dsns.items()} for _ in range(1 if quick else 3)]
        rate = {kind: median(each[kind][0] for each in rounds) for kind in dsns}
        tail = {kind: median(each[kind][1] for each in rounds) for kind in dsns}
        for kind in dsns:
            ratio = "" if kind == "fused" else f"pg_llm is {rate['fused'] / rate[kind]:.2f}x as fast"
            fact(f"{clients:2} x {kind}", f"{rate[kind]:,.0f}/s", f"p95 {tail[kind]:,.0f} us  {ratio}")


def sizes(superuser: psycopg.Connection, cluster: Cluster, store: redis.Redis | None, jobs: int) -> None:
    """Show what a job that waits takes."""
    app = connect(cluster)
    superuser.execute("vacuum llm.jobs")
    before = support.one(superuser, "select pg_total_relation_size('llm.jobs') + 0")
    superuser.execute("truncate llm.jobs")
    before = support.one(superuser, "select pg_total_relation_size('llm.jobs')")
    for _ in range(jobs // 1000):
        app.execute("select llm.enqueue_many('waiting', %s::jsonb[])", [[PAYLOAD] * 1000])
        app.execute("select count(*) from pgmq.send_batch('waiting', %s::jsonb[])", [[PAYLOAD] * 1000])
    ours = support.one(superuser, "select pg_total_relation_size('llm.jobs')") - before
    print(f"\nbytes of a waiting job of 300 bytes, {jobs:,} of them")
    fact("pg_llm (half of each page is kept free)", f"{ours / jobs:,.0f}")
    fact("pgmq's design", f"{support.one(superuser, "select pg_total_relation_size('pgmq.q_waiting')") / jobs:,.0f}")
    if store:
        used: Any = store.info("memory")
        for _ in range(jobs // 1000):
            with store.pipeline(transaction=False) as pipeline:
                for _ in range(1000):
                    pipeline.xadd("waiting", {"payload": PAYLOAD})
                pipeline.execute()
        now: Any = store.info("memory")
        fact("Redis stream, in memory", f"{(now['used_memory'] - used['used_memory']) / jobs:,.0f}")
        store.delete("waiting")


def rate_for(cycle: Cycle, seconds: float) -> float:
    """Return cycles a second of the last third of a while."""
    begin, done = perf_counter(), []
    while (now := perf_counter()) < begin + seconds:
        cycle()
        done.append(now - begin)
    return sum(each > seconds * 2 / 3 for each in done) / (seconds / 3)


def pinned_horizon(cluster: Cluster, seconds: float) -> None:
    """Compare the rate while a reader keeps all dead rows with the rate before."""
    print(
        f"\na reader pins the horizon for {seconds:g} s, in which single jobs are done as fast as one client can: cycles a second in the last third"
    )
    app = connect(cluster)
    app.execute("select llm.purge_queue('waiting', 'all')")
    for name, cycle in (("pg_llm", Pg(app, "pinned").fused), ("pgmq's design, which has no mark (naive)", Pg(app).pgmq)):
        before = rate_for(cycle, max(seconds / 5, 3))
        with cluster.connect("queue", autocommit=False) as reader:
            reader.execute("set transaction isolation level repeatable read")
            reader.execute("select count(*) from llm.queues")
            during = rate_for(cycle, seconds)
            reader.rollback()
        ratio = during / before
        fact(name, f"{ratio:.0%}", f"{before:,.0f}/s -> {during:,.0f}/s" + (f"  >= 50%  {kept(ratio >= 0.5)}" if name == "pg_llm" else ""))


def soak(superuser: psycopg.Connection, cluster: Cluster, seconds: float) -> None:
    """Show rate and size over a while of steady work."""
    cycle = Pg(connect(cluster), "soak").fused_batch
    superuser.execute("vacuum llm.jobs")
    rates, sizes = [], []
    for _ in range(5):
        rates.append(rate_for(lambda: cycle(20), seconds / 5) * 20)
        sizes.append(support.one(superuser, "select pg_total_relation_size('llm.jobs')") / 1e6)
    print(f"\n{seconds:g} s of batches of 20, autovacuum as the table says: jobs a second, and megabytes of the table, by fifths")
    fact(
        "jobs a second", f"{rates[-1] / rates[0]:.0%}", " ".join(f"{rate:,.0f}" for rate in rates) + f"  >= 50%  {kept(rates[-1] >= 0.5 * rates[0])}"
    )
    fact("megabytes", f"{sizes[-1]:.1f}", " ".join(f"{size:.1f}" for size in sizes))

"""The audit log's seals and analyses, and how they grow: time, and memory of the backend that does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import psycopg

from bench import support
from bench.support import database, fact, kept, one
from tools.cluster import Cluster

#: For a million rows.
MOST_SECONDS, MOST_MEGABYTES = 60, 300

ROWS_OF_A_TRANSACTION = 1_000

_FILL = """
    insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, details, client_address, "timestamp")
    select
        'tenant ' || i %% 20,
        'user ' || i * 7919 %% 1000,
        (array['read', 'write', 'login', 'export'])[i * i %% 4 + 1],
        'document',
        (i %% 50000)::text,
        jsonb_build_object('model', 'gpt-5', 'tokens', i %% 4096, 'request', md5(i::text), 'note', repeat('x', 100)),
        ('10.0.' || i %% 200 || '.1')::inet, now() - (%(total)s - i) * interval '20 days' / %(total)s
    from generate_series(%(first)s::bigint, %(last)s) i
    """


class Memory:
    """The most memory of its own that a backend has had."""

    def __init__(self, backend: int) -> None:
        self._status = Path(f"/proc/{backend}/status")
        self.megabytes = 0.0

    def look(self) -> None:
        """Take note of the present."""
        lines = dict(line.split(":", 1) for line in self._status.read_text().splitlines() if ":" in line)
        self.megabytes = max(self.megabytes, int(lines["RssAnon"].split()[0]) / 1024)


@contextmanager
def watched(connection: psycopg.Connection) -> Iterator[Memory]:
    """Watch a connection's backend."""
    memory, is_over = Memory(connection.info.backend_pid), Event()

    def watch() -> None:
        while not is_over.wait(0.01):
            memory.look()

    thread = Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        is_over.set()
        thread.join()


def run(cluster: Cluster, *, quick: bool) -> None:
    """Seal, verify, prove and analyze logs of growing length."""
    sizes = [10_000, 100_000] if quick else [10_000, 100_000, 1_000_000]
    if support.large:  # filling alone takes some minutes, and 6 GB
        sizes.append(10_000_000)
    for size in sizes:
        with database(cluster, "seal") as connection:
            print(f"\nThe audit log with {size:,} rows{'':20}{'time':>12}  {'a row':>10}  {'memory':>10}", flush=True)
            fill(connection, size)
            for what, statement, has_bar in (
                ("seal", "select llm.seal_audit(100000000)", False),
                ("verify", "select count(*) from llm.verify_audit() where not ok", True),
                ("prove a row", "select llm.prove_audit(5000)", False),
                ("analyze everybody", "select llm.analyze_audit_logs()", False),
                ("analyze a user", "select llm.analyze_audit_logs('user 7')", False),
                ("find anomalies", "select count(*) from llm.audit_anomalies(p_history => '20 days')", False),
                ("report in HTML", "select length(llm.generate_audit_report(null, 'html'))", False),
            ):
                measure(cluster, what, statement, size, has_bar=has_bar)


def measure(cluster: Cluster, what: str, statement: str, size: int, *, has_bar: bool) -> None:
    """Run a statement in a session of its own; print its time and its backend's memory."""
    with cluster.connect("seal") as connection:
        connection.execute("select llm.version(), llm.clean_text('\\x00')")
        with watched(connection) as memory:
            start = perf_counter()
            result = one(connection, statement)
            seconds = perf_counter() - start
    assert what != "seal" or result == size, result
    assert what != "verify" or result == 0, result
    verdict = ""
    if has_bar and size == 1_000_000:
        is_kept = seconds <= MOST_SECONDS and memory.megabytes <= MOST_MEGABYTES
        verdict = f"<= {MOST_SECONDS} s, <= {MOST_MEGABYTES} MB  {kept(is_kept)}"
    fact(what, f"{seconds:.2f} s", f"{seconds / size * 1e6:8.2f} us  {memory.megabytes:7.0f} MB  {verdict}")


def fill(connection: psycopg.Connection, size: int) -> None:
    """Write rows of the last twenty days, a thousand a transaction."""
    connection.execute("set synchronous_commit = off")
    for first in range(1, size + 1, ROWS_OF_A_TRANSACTION):
        connection.execute(_FILL, {"first": first, "last": min(first + ROWS_OF_A_TRANSACTION - 1, size), "total": size})
    connection.execute("vacuum analyze llm.audit_log")

"""What coherent caches cost: writers, misses, hits, memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import psycopg

from bench.support import database, fact, line, medians, once, per_row, title
from tools.cluster import Cluster

#: The default bound on the entries of a backend's cache.
ENTRIES = 10_000


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with database(cluster, "coherence") as superuser:
        writes(superuser, quick=quick)
        reads(superuser, quick=quick)
        memory(cluster, superuser)


def writes(superuser: psycopg.Connection, *, quick: bool) -> None:
    """Compare a table whose trigger raises words with the same table without."""
    rounds, rows, copied = (3, 1_000, 10_000) if quick else (5, 5_000, 100_000)

    def update(table: str) -> None:
        superuser.execute(f"update bench.{table} set value = to_jsonb(random()) where key like 'row %'")

    def copy(table: str) -> None:
        superuser.execute(f"truncate bench.{table}")
        with superuser.cursor() as cursor, cursor.copy(f"copy bench.{table} from stdin") as stream:
            stream.write(data)

    title("a write to a table whose rows are cached, a row")
    for table in ("cached", "bare"):
        superuser.execute(f"insert into bench.{table} select 'row ' || i, '0' from generate_series(1, {rows}) i")
    time = medians(rounds, cached=once(partial(update, "cached"), rows), bare=once(partial(update, "bare"), rows))
    line(f"UPDATE of {rows:,} rows", time["cached"], "without the coherence trigger", time["bare"])

    data = "".join(f'row {number}\t"a value"\n' for number in range(copied)).encode()
    time = medians(3, cached=once(partial(copy, "cached"), copied), bare=once(partial(copy, "bare"), copied))
    line(f"COPY of {copied:,} rows", time["cached"], "without the coherence trigger", time["bare"])

    # The other triggers stay: version and history.
    def update_config(coherence: str) -> None:
        superuser.execute(f"alter table llm.config {coherence} trigger coherence")
        superuser.execute("update llm.config set value = to_jsonb(random())")

    superuser.execute(f"insert into llm.config (tenant_id, key, value) select '*', i::text, '0' from generate_series(1, {rows}) i")
    time = medians(rounds, on=once(partial(update_config, "enable always"), rows), off=once(partial(update_config, "disable"), rows))
    superuser.execute("alter table llm.config enable always trigger coherence")
    line(f"UPDATE of {rows:,} rows of llm.config", time["on"], "without the coherence trigger", time["off"])


def reads(superuser: psycopg.Connection, *, quick: bool) -> None:
    """Measure hits and misses in Python, without the call of an SQL function around them."""
    calls = 2_000 if quick else 20_000
    superuser.execute("select llm._boot()")
    title("coherence.Cache.get() in Python, a call (peer: one dependency)")
    first: tuple[float, float] | None = None
    for dependencies in (1, 2, 4, 8):
        samples = [superuser.execute("select * from bench.cache_times(%s, %s)", [dependencies, calls]).fetchone() for _ in range(5)]
        hit, miss = (sorted(column)[2] for column in zip(*(sample for sample in samples if sample), strict=True))
        first = first or (hit, miss)
        line(f"hit, depends on {dependencies}", hit, "one dependency", first[0])
        line(f"miss, depends on {dependencies}", miss, "one dependency", first[1])


def memory(cluster: Cluster, superuser: psycopg.Connection) -> None:
    """Measure a backend before and after its cache is full."""
    superuser.execute("truncate llm.config")
    superuser.execute(
        f"insert into llm.config (tenant_id, key, value) select '*', 'key ' || i, to_jsonb(repeat('x', 200)) from generate_series(1, {ENTRIES}) i"
    )
    with cluster.connect("coherence") as reader:
        # The table's pages count as the backend's once it has touched them: touched first, uncached.
        per_row(reader, "llm.load_config('key ' || i, p_cached => false)", ENTRIES)()
        per_row(reader, "llm.load_config('key 1')", 1)()
        before = private_memory(reader.info.backend_pid)
        per_row(reader, "llm.load_config('key ' || i)", ENTRIES)()
        after = private_memory(reader.info.backend_pid)
        stats = reader.execute("select entries, bytes from llm.coherence_stats() where namespace = 'config' and backends = 1").fetchone()
        assert stats
    title(f"memory of a backend with {ENTRIES:,} entries of 200 B", "MB")
    fact("entries that it kept", f"{stats[0]:,}")
    fact("as the cache counts it, MB", f"{stats[1] / 2**20:.1f}")
    fact("as the system counts it, MB", f"{(after - before) / 2**20:.1f}")
    fact("the whole backend before, MB", f"{before / 2**20:.1f}")


def private_memory(pid: int) -> int:
    """Return the bytes that only this process has (resident less shared)."""
    _, resident, shared, *_ = (int(pages) * 4096 for pages in Path(f"/proc/{pid}/statm").read_text().split())
    return resident - shared

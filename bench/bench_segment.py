"""Building the index of a segment, and what writers notice of it: see README.md for what is compared with what."""

from __future__ import annotations

from itertools import count
from threading import Event, Thread
from time import perf_counter

import psycopg

from bench import support
from bench.bench_point import Rows, copy, register, upsert
from bench.support import AtLeast, AtMost, database, fact, line, title
from demo.packages import DIMENSIONS, packages
from tools.cluster import Cluster


def run(cluster: Cluster, *, quick: bool) -> None:
    """Build the same index by statement, by maintenance that locks writers, and on a bare table, with a writer beside each."""
    size = None if support.large else 2_000 if quick else 10_000
    rows = Rows(list(packages(size)))
    with database(cluster, "segment") as superuser:
        superuser.execute("grant llm_app to bound").execute("select llm.bind_role('bound', 'acme')")
        superuser.execute(f"create table bare (id text primary key, content text, payload jsonb, embedding vector({DIMENSIONS}))")
        superuser.execute("set maintenance_work_mem = '512MB'").execute("set max_parallel_maintenance_workers = 0")
        with cluster.connect("segment", "bound") as ours, cluster.connect("segment", "bound") as writer:
            for connection in (superuser, ours, writer):
                register(connection)
            found = {}
            for name in ("by_statement", "locking"):
                superuser.execute(f"select llm.create_collection('{name}', {DIMENSIONS}, p_indexing_threshold => {len(rows)})")
                upsert(ours, rows, "", name)
                superuser.execute(f"call llm.maintain('{name}')")
                found[name] = build(superuser, writer, rows, name)
            copy(superuser, rows, "")
            start = perf_counter()
            superuser.execute("create index on bare using hnsw (embedding vector_cosine_ops) with (m = 16, ef_construction = 100)")
            bare = perf_counter() - start
    title(f"the index of {len(rows):,} points", "ms")
    line("built by statement", found["by_statement"][0] * 1e3, "CREATE INDEX, bare table", bare * 1e3)
    line("built by maintain(p_lock_writers => true)", found["locking"][0] * 1e3, "CREATE INDEX, bare table", bare * 1e3)
    line("a writer's longest wait, by statement", found["by_statement"][1] * 1e3, "the same, locking", found["locking"][1] * 1e3, AtMost(0.5))
    line("segment indexed, searches at once", found["by_statement"][0] * 1e3, "the same, locking", found["locking"][0] * 1e3, AtLeast(0.3))
    fact("points written meanwhile", f"{found['by_statement'][2]:,}")


def build(superuser: psycopg.Connection, writer: psycopg.Connection, rows: Rows, collection: str) -> tuple[float, float, int]:
    """Return how long building took, the longest time for one point written meanwhile, and how many were."""
    longest, written, done = 0.0, 0, Event()

    def write() -> None:
        nonlocal longest, written
        for number in count():
            if done.is_set():
                return
            start = perf_counter()
            upsert(writer, _One(rows, number % len(rows)), f"new-{number}-", collection)
            longest, written = max(longest, perf_counter() - start), number + 1

    thread = Thread(target=write)
    thread.start()
    start = perf_counter()
    if collection == "locking":
        superuser.execute("call llm.maintain(%s, true)", [collection])
    else:
        for (statement,) in superuser.execute("select * from llm.index_statements()").fetchall():
            if f"points_{collection}" in statement:
                superuser.execute(statement)
    took = perf_counter() - start
    done.set()
    thread.join()
    return took, longest, written


class _One(Rows):
    """One row of others."""

    def __init__(self, rows: Rows, number: int) -> None:
        part = slice(number, number + 1)
        self.ids, self.vectors, self.contents, self.payloads = rows.ids[part], rows.vectors[part], rows.contents[part], rows.payloads[part]

"""Searching ever more vectors beside bare pgvector: a part of bench_vector_search."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import psycopg

from bench import support
from bench.bench_point import register
from bench.engines import by_hand, by_us, cheapest, interleaved
from bench.packages import Input, load, upsert
from bench.support import database, fact, line, title
from tools.cluster import Cluster

TARGET = 0.95


def run(cluster: Cluster, *, quick: bool) -> None:
    """Measure the set, and four times as many vectors; a million with `--large`."""
    given = load(quick=quick, questions=60 if quick else 300)
    million = -(-1_000_000 // len(given.rows))
    for times in (1, million) if support.large else (1, 4):
        with database(cluster, "vector_growth") as superuser:
            superuser.execute("grant llm_app to bound")
            superuser.execute("select llm.bind_role('bound', 'acme')")
            superuser.execute("set maintenance_work_mem = '2GB'")
            with cluster.connect("vector_growth", "bound") as ours, cluster.connect("vector_growth") as bare:
                for connection in (ours, bare):
                    register(connection)
                    connection.prepare_threshold = 0
                measure(superuser, ours, bare, given.grown(times))


def measure(superuser: psycopg.Connection, ours: psycopg.Connection, bare: psycopg.Connection, given: Input) -> None:
    """Load, build and search, with halves of floats."""
    title(f"{len(given.rows):,} vectors as halfvec, a search at recall@10 >= {TARGET}, one session")
    superuser.execute("select llm.create_collection('halves', 384, p_element => 'halfvec', p_indexing_threshold => 1000)")
    start = perf_counter()
    upsert(ours, "halves", given)
    loaded = perf_counter()
    superuser.execute("call llm.maintain('halves', true)")
    built = perf_counter()
    fact("points loaded in", f"{loaded - start:.1f} s")
    fact("words and indexes built in", f"{built - loaded:.1f} s")
    superuser.execute("create table bare_halves (id text, content text, payload jsonb, embedding halfvec(384) storage main)")
    superuser.execute("insert into bare_halves select id, content, payload, embedding from llm.points_halves order by number")
    start = perf_counter()
    superuser.execute("create index on bare_halves using hnsw (embedding halfvec_cosine_ops) with (m = 16, ef_construction = 100)")
    fact("bare pgvector: index built in", f"{perf_counter() - start:.1f} s")
    superuser.execute("vacuum analyze")
    fact("segments", str(support.one(superuser, "select count(*) from llm.segments where state = 'ready'")))

    truth = given.nearest()
    us, them = by_us(ours, "halves", given), by_hand(bare, "bare_halves", "halfvec", given)
    (ef, recall), (their_ef, their_recall) = cheapest(us, truth, TARGET), cheapest(them, truth, TARGET)
    mine, theirs = interleaved(lambda number: us(number, ef), lambda number: them(number, their_ef), len(truth))
    line(f"p50 (ef {ef}, recall {recall:.3f})", mine[0], f"bare pgvector, ef {their_ef}, recall {their_recall:.3f}", theirs[0])
    line("p95", mine[1], "bare pgvector", theirs[1])
    fact("recall at ef 40", f"{np.mean([len(set(us(n, 40)) & each) / 10 for n, each in enumerate(truth)]):.3f}")

"""Measuring searches, and what logging queries costs them: see README.md for what is compared with what."""

from __future__ import annotations

import json
from time import perf_counter

import numpy as np
import psycopg

from bench.bench_point import register
from bench.packages import Input, load, upsert
from bench.support import AtMost, database, fact, kept, line, medians, per_call, title
from tools.cluster import Cluster

SEARCH = "select id from llm.vector_search('packages', %b, 10, p_with_payload => false)"


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    given = load(quick=quick, questions=100 if quick else 500)
    with database(cluster, "search_quality") as superuser:
        superuser.execute("grant llm_app to bound").execute("select llm.bind_role('bound', 'acme')")
        superuser.execute("set maintenance_work_mem = '1GB'")
        superuser.execute("select llm.create_collection('packages', 384, p_indexing_threshold => 1000)")
        with cluster.connect("search_quality", "bound") as ours:
            register(ours)
            ours.prepare_threshold = 0
            upsert(ours, "packages", given)
            superuser.execute("call llm.maintain('packages', true)")
            superuser.execute("vacuum analyze llm.points_packages")
            print(f"\nsearch_quality: {len(given.rows):,} package descriptions")
            tune(superuser, ours, given)
            evaluate(ours, given)
            log(superuser, ours, given, rounds=5 if quick else 15)


def tune(superuser: psycopg.Connection, ours: psycopg.Connection, given: Input) -> None:
    """Tune for recalls, first by points, then by half of the queries; and see whether searches for the other half find as much."""
    half = len(given.questions) // 2
    truth = given.nearest()[half:]
    superuser.execute("select llm.set_search_quality('packages', p_logged_share => 1)")
    for vector in given.questions[:half]:
        ours.execute(SEARCH, [vector])
    superuser.execute("select llm.set_search_quality('packages', p_logged_share => 0)")
    statement = "select ef_search, recall, standard_error from llm.tune_collection('packages', %s, %s, 10, %s)"
    for source in ("points", "shifted", "queries"):
        for target in (0.95, 0.99):
            start = perf_counter()
            with superuser.transaction():
                superuser.execute("select llm.set_tenant('acme')")
                row = superuser.execute(statement, [target, half, source]).fetchone()
            took = perf_counter() - start
            assert row
            found = [{hit[0] for hit in ours.execute(SEARCH, [vector]).fetchall()} for vector in given.questions[half:]]
            reached = float(np.mean([len(some & all_) / len(all_) for some, all_ in zip(found, truth, strict=True)]))
            is_kept = f", bar >= {target} - 0.02  {kept(reached >= target - 0.02)}" if source == "queries" else ""
            fact(f"tuned for {target} by {source}: ef_search", f"{row[0]}", f"recall {row[1]:.3f} ± {row[2]:.3f}; took {took:.1f} s")
            fact("  recall of other queries", f"{reached:.3f}", is_kept.removeprefix(", "))


def evaluate(ours: psycopg.Connection, given: Input) -> None:
    """Evaluate the labelled queries."""
    labelled = [
        {"query": text, "vector": vector.tolist(), "relevant": [str(own)]}
        for text, vector, own in zip(given.texts, given.matrix, given.own, strict=True)
    ]
    start = perf_counter()
    rows = ours.execute("select method, hit_rate, mrr, ndcg, p50_ms from llm.evaluate_search('packages', %s)", [json.dumps(labelled)]).fetchall()
    took = perf_counter() - start
    for method, hit_rate, mrr, ndcg, p50 in rows:
        fact(f"{method}: hit@10, MRR, nDCG", f"{hit_rate:.3f} {mrr:.3f} {ndcg:.3f}", f"p50 {p50:.1f} ms in the server")
    fact(f"evaluate_search of {len(labelled)} queries", f"{took:.1f} s")


def log(superuser: psycopg.Connection, ours: psycopg.Connection, given: Input, rounds: int) -> None:
    """Search with and without logging."""
    title("a search whose query is logged")
    vectors = given.questions
    number = 0

    def search() -> None:
        nonlocal number
        number += 1
        ours.execute(SEARCH, [vectors[number % len(vectors)]]).fetchall()

    timed = per_call(search, 100)

    def with_share(share: float) -> float:
        superuser.execute("select llm.set_search_quality('packages', p_logged_share => %s)", [share])
        search()
        return timed()

    found = medians(rounds, none=lambda: with_share(0), some=lambda: with_share(0.01), every=lambda: with_share(1))
    line("one in a hundred", found["some"], "none is logged", found["none"], AtMost(1.05))
    line("each", found["every"], "none is logged", found["none"])

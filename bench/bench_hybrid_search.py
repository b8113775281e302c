"""Searching by words and vector at once, on labelled queries: see README.md for what is measured."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from bench.bench_point import register
from bench.packages import load, upsert
from bench.support import database, fact, kept
from tools.cluster import Cluster

SLOWEST = 30_000
LEGS = {"vector alone": "{1,0,0}", "words alone": "{0,1,0}", "vector and words": "{1,1,0}", "all three": "{1,1,1}"}


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    given = load(quick=quick, questions=100 if quick else 500)
    with database(cluster, "hybrid_search") as superuser:
        superuser.execute("grant llm_app to bound")
        superuser.execute("select llm.bind_role('bound', 'acme')")
        superuser.execute("set maintenance_work_mem = '1GB'")
        superuser.execute("select llm.create_collection('packages', 384, p_indexing_threshold => 1000)")
        with cluster.connect("hybrid_search", "bound") as ours:
            register(ours)
            ours.prepare_threshold = 0
            upsert(ours, "packages", given)
            superuser.execute("call llm.maintain('packages', true)")
            superuser.execute("vacuum analyze llm.points_packages")
            print(f"\nhybrid_search: {len(given.questions)} synopses, each of one of {len(given.rows):,} package descriptions")
            quality: dict[str, tuple[float, float]] = {}
            slowest: dict[str, float] = {}
            for fusion in ("rrf", "dbsf"):
                for name, weights in LEGS.items():
                    if fusion == "dbsf" and not name.startswith("all"):
                        continue
                    times, ranks = [], []
                    for text, vector, own in zip(given.texts, given.questions, given.own, strict=True):
                        start = perf_counter()
                        rows = ours.execute(
                            "select id from llm.hybrid_search('packages', %b, %b, p_fusion => %s, p_weights => %s::double precision[])",
                            [text, vector, fusion, weights],
                        ).fetchall()
                        times.append((perf_counter() - start) * 1e6)
                        ids = [row[0] for row in rows]
                        ranks.append(ids.index(str(own)) + 1 if str(own) in ids else 0)
                    hits, mrr = float(np.mean([rank > 0 for rank in ranks])), float(np.mean([1 / rank if rank else 0 for rank in ranks]))
                    quality[f"{fusion} {name}"] = hits, mrr
                    p50, p95 = np.percentile(times, [50, 95])
                    slowest[f"{fusion} {name}"] = float(p95)
                    fact(f"{fusion}, {name}: hit@10, MRR", f"{hits:.3f} {mrr:.3f}", f"p50 {p50 / 1000:.1f} ms, p95 {p95 / 1000:.1f} ms")
            p95 = slowest["rrf all three"]
            fact("all three: p95", f"{p95 / 1000:.1f} ms", f"bar <= 30 ms  {kept(p95 <= SLOWEST)}")
            for number, (measure, bar) in enumerate((("hit@10", 0.08), ("MRR", 0.06))):
                gain = quality["rrf all three"][number] - max(quality["rrf vector alone"][number], quality["rrf words alone"][number])
                fact(f"{measure} above that of the better leg", f"{gain:+.3f}", f"bar >= {bar}  {kept(gain >= bar)}")

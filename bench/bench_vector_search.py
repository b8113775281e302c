"""Searching by vector beside bare pgvector and Redis, at equal recall: see README.md for what is compared with what."""

from __future__ import annotations

import json
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import psycopg
import redis

from bench.bench_point import register
from bench.packages import SHARES, Input, load, upsert
from bench.support import AtLeast, AtMost, database, fact, kept, line, redis_server, title
from tools.cluster import Cluster

TARGETS = (0.95, 0.99)
CANDIDATES = (20, 40, 60, 80, 120, 160, 240, 320, 480, 640, 1000)

#: A search of one query with so many candidates: the ids.
type Search = Callable[[int, int], list[str]]

BARE = """
    create table bare (id text, content text, payload jsonb, embedding vector(384) storage main);
    create table bare_halves (id text, content text, payload jsonb, embedding halfvec(384) storage main);
    insert into bare select id, content, payload, embedding from llm.points_vectors order by number;
    insert into bare_halves select id, content, payload, embedding from llm.points_vectors order by number;
    create index bare_index on bare using hnsw (embedding vector_cosine_ops) with (m = 16, ef_construction = 100);
    create index bare_halves_index on bare_halves using hnsw (embedding halfvec_cosine_ops) with (m = 16, ef_construction = 100);
    """


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    given = load(quick=quick, questions=60 if quick else 300)
    print(f"\n{len(given.rows):,} package descriptions, 384 dimensions, {len(given.questions)} queries, the 10 nearest with text and payload")
    with database(cluster, "vector_search") as superuser, redis_server() as peer:
        superuser.execute("grant llm_app to bound")
        superuser.execute("select llm.bind_role('bound', 'acme')")
        superuser.execute("set maintenance_work_mem = '1GB'")
        with cluster.connect("vector_search", "bound") as ours, cluster.connect("vector_search") as bare:
            for connection in (ours, bare):
                register(connection)
                connection.prepare_threshold = 0
            fill(superuser, ours, given)
            at_equal_recall(superuser, ours, bare, peer, given)
            filtered(ours, bare, given)


def fill(superuser: psycopg.Connection, ours: psycopg.Connection, given: Input) -> None:
    """Make the collections, and the peer's tables, and build the indexes."""
    for name, element in (("vectors", "vector"), ("halves", "halfvec"), ("bits", "bit")):
        superuser.execute(
            "select llm.create_collection(%s, 384, p_element => %s, p_indexing_threshold => 1000, p_payload_indexes => %s)",
            [name, element, json.dumps({f"any{share}": "keyword" for share in SHARES}) if element == "vector" else "{}"],
        )
        upsert(ours, name, given)
        start = perf_counter()
        superuser.execute("call llm.maintain(%s, true)", [name])
        fact(f"words and index of {element}", f"{perf_counter() - start:.1f} s")
    superuser.execute(BARE)
    superuser.execute("vacuum analyze")


def at_equal_recall(
    superuser: psycopg.Connection, ours: psycopg.Connection, bare: psycopg.Connection, peer: redis.Redis | None, given: Input
) -> None:
    """Find for each engine how many candidates give the recall, and compare the times at that."""
    truth = given.nearest()
    searches: dict[str, tuple[Search, Search | None]] = {
        "vector": (by_us(ours, "vectors", given), by_hand(bare, "bare", "vector", given)),
        "halfvec": (by_us(ours, "halves", given), by_hand(bare, "bare_halves", "halfvec", given)),
        "bit, re-ranked": (by_us(ours, "bits", given), None),
    }
    vectors_in_redis = by_redis(peer, given) if peer else None
    for target in TARGETS:
        title(f"a search at recall@10 >= {target}, one session")
        for name, (search, other) in searches.items():
            ef, recall = cheapest(search, truth, target)
            if recall < target:
                fact(name, f"{recall:.3f}", "is all there is")
                continue
            peers = {"bare pgvector": (other or searches["vector"][1], ef)}
            if vectors_in_redis:
                peers["Redis vector set"] = (vectors_in_redis, cheapest(vectors_in_redis, truth, target)[0])
            for peer_name, (peer_search, peer_ef) in peers.items():
                assert peer_search
                mine, theirs = interleaved(lambda n, s=search, e=ef: s(n, e), lambda n, s=peer_search, e=peer_ef: s(n, e), len(truth))  # type: ignore[misc]
                bar = AtMost(1.1) if peer_name == "bare pgvector" and other else AtLeast(0)
                line(f"{name}, ef {ef}, p50", mine[0], f"{peer_name}, ef {peer_ef}", theirs[0], bar)
                line(f"{name}, ef {ef}, p95", mine[1], peer_name, theirs[1])
    size = {
        name: superuser.execute(
            "select pg_relation_size(format('llm.%%I', index_name)::regclass) from llm.segments where collection = %s", [name]
        ).fetchone()
        for name in ("vectors", "halves", "bits")
    }
    bytes_of = {name: row[0] for name, row in size.items() if row}
    for name in ("halves", "bits"):
        share = bytes_of[name] / bytes_of["vectors"]
        fact(f"index of {name}, of that of vectors", f"{share:.2f}", f"bar <= 0.6  {kept(share <= 0.6)}" if name == "halves" else "")


def filtered(ours: psycopg.Connection, bare: psycopg.Connection, given: Input) -> None:
    """Search among 50, 10, 1 and 0.1 % of the points."""
    bare.execute("set hnsw.iterative_scan = relaxed_order")
    title("a search among some of the points, those that have the query's value of a field (ef 100)")
    for share in SHARES:
        for kind, field in (("by chance", f"any{share}"), ("near the query", f"near{share}")):
            values = given.fields[field]
            wanted = [int(values[own]) for own in given.own]
            among = values[None, :] == np.array(wanted)[:, None]
            truth = given.nearest(among)
            filters = [json.dumps({"must": [{"key": field, "match": {"value": value}}]}) for value in wanted]
            contained = [json.dumps({field: value}) for value in wanted]
            recalls: dict[str, list[float]] = {"ours": [], "bare": []}
            missing = {"ours": 0, "bare": 0}

            def ask(who: str, connection: psycopg.Connection, statement: str, number: int, arguments: list[Any]) -> None:
                rows = connection.execute(statement, arguments).fetchall()
                expected = truth[number]  # noqa: B023
                recalls[who].append(len({row[0] for row in rows} & expected) / max(len(expected), 1))  # noqa: B023
                missing[who] += len(expected) - len(rows)  # noqa: B023

            def we(number: int) -> None:
                statement = "select id, distance, content, payload from llm.vector_search('vectors', %b, 10, %s, p_ef => 100)"
                ask("ours", ours, statement, number, [given.questions[number], filters[number]])  # noqa: B023

            def they(number: int) -> None:
                statement = "select id, embedding <=> %b, content, payload from bare where payload @> %s::jsonb order by embedding <=> %b limit 10"
                question = given.questions[number]
                ask("bare", bare, statement, number, [question, contained[number], question])  # noqa: B023

            bare.execute("set hnsw.ef_search = 100")
            mine, theirs = interleaved(we, they, min(len(truth), 100))
            bar = AtLeast(10) if share == 100 else AtLeast(0)
            line(f"1 / {share} {kind}, p50", mine[0], "pgvector, iterative scan", theirs[0], bar)
            for who in ("ours", "bare"):
                recall = float(np.mean(recalls[who]))
                verdict = f"rows missing: {missing[who]}" + (
                    f"  bar >= 0.95, 0 missing  {kept(recall >= 0.95 and not missing[who])}" if who == "ours" else ""
                )
                fact(f"  recall@10, {who}", f"{recall:.3f}", verdict)


def by_us(connection: psycopg.Connection, collection: str, given: Input) -> Search:
    """Search by the function."""
    statement = f"select id, distance, content, payload from llm.vector_search('{collection}', %b, 10, p_ef => %s)"
    return lambda number, ef: [row[0] for row in connection.execute(statement, [given.questions[number], ef])]


def by_hand(connection: psycopg.Connection, table: str, kind: str, given: Input) -> Search:
    """Search by a prepared statement."""
    statement = f"select id, embedding <=> %b::vector::{kind}(384), content, payload from {table} order by 2 limit 10"
    known: dict[str, int] = {}

    def search(number: int, ef: int) -> list[str]:
        if known.get("ef") != ef:
            connection.execute(f"set hnsw.ef_search = {ef}")
            known["ef"] = ef
        return [row[0] for row in connection.execute(statement, [given.questions[number]])]

    return search


def by_redis(peer: redis.Redis, given: Input) -> Search | None:
    """Search a vector set, where Redis has them: quantized to 8 bits, as it comes, without texts."""
    try:
        for number, vector in enumerate(given.vectors):
            peer.execute_command("VADD", "packages", "FP32", vector.tobytes(), str(number), "M", 16, "EF", 100)  # type: ignore[no-untyped-call]
    except redis.exceptions.ResponseError:
        return None
    questions = [each.tobytes() for each in given.matrix]

    def search(number: int, ef: int) -> list[str]:
        found = peer.execute_command("VSIM", "packages", "FP32", questions[number], "COUNT", 10, "EF", ef)  # type: ignore[no-untyped-call]
        return [each.decode() for each in found]

    return search


def cheapest(search: Search, truth: list[set[str]], target: float) -> tuple[int, float]:
    """Return the least number of candidates that reaches the recall, and the recall."""
    recall = 0.0
    for ef in CANDIDATES:
        recall = float(np.mean([len(set(search(number, ef)) & expected) / 10 for number, expected in enumerate(truth)]))
        if recall >= target:
            break
    return ef, recall


def interleaved(mine: Callable[[int], object], theirs: Callable[[int], object], count: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ask both all questions in turns, and return each one's p50 and p95 in microseconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(min(count, 5)):
        mine(number), theirs(number)
    for number in range(count):
        for which in (0, 1) if number % 2 else (1, 0):
            start = perf_counter()
            (mine, theirs)[which](number)
            times[which].append((perf_counter() - start) * 1e6)
    (a, b), (c, d) = (np.percentile(each, [50, 95]) for each in times)
    return (float(a), float(b)), (float(c), float(d))

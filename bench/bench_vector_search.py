"""Searching by vector beside bare pgvector, Redis and engines in process, at equal recall: see README.md for what is compared with what."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psycopg
import redis

from bench import growth
from bench.bench_point import register
from bench.engines import Edge, Search, VectorSet, by_faiss, by_hand, by_us, cheapest, interleaved
from bench.packages import SHARES, Input, load, upsert
from bench.support import AtLeast, AtMost, database, fact, kept, line, medians, one, redis_server, title
from tools.cluster import Cluster

TARGETS = (0.95, 0.99)

#: A search among the points that have a value of a field: of a query, with so many candidates.
type Among = Callable[[int, int, str, int], list[str]]

#: By how much ours is to be faster among one of so many points than an engine.
EDGE_BARS = {10: AtLeast(0.5), 100: AtLeast(0.4)}
REDIS_BARS = {100: AtLeast(15)}

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
    with database(cluster, "vector_search") as superuser, engines(given) as (edge, in_redis):
        superuser.execute("grant llm_app to bound")
        superuser.execute("select llm.bind_role('bound', 'acme')")
        superuser.execute("set maintenance_work_mem = '1GB'")
        with connected(cluster, "bound") as ours, connected(cluster, "postgres") as bare:
            fill(superuser, ours, given)
            truth = given.nearest()
            candidates = at_equal_recall(ours, bare, edge, in_redis, given, truth)
            sizes(superuser)
            two_clients(cluster, in_redis, given, candidates)
            filtered(ours, bare, edge, in_redis, given)
    growth.run(cluster, quick=quick)


@contextmanager
def engines(given: Input) -> Iterator[tuple[Edge, VectorSet | None]]:
    """Fill the other engines: Qdrant's in process, and a Redis where it has vector sets."""
    with tempfile.TemporaryDirectory(prefix="pg_llm_edge.") as name, redis_server() as server:
        title("loading and building indexes")
        edge = Edge(Path(name) / "shard", given)
        in_redis = VectorSet(server, given) if server else None
        yield edge, in_redis if in_redis and in_redis.fill(given) else None
        edge.close()


@contextmanager
def connected(cluster: Cluster, user: str) -> Iterator[psycopg.Connection]:
    """Yield a connection that sends vectors and prepares its statements."""
    with cluster.connect("vector_search", user) as connection:
        register(connection)
        connection.prepare_threshold = 0
        yield connection


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
    ours: psycopg.Connection, bare: psycopg.Connection, edge: Edge, in_redis: VectorSet | None, given: Input, truth: list[set[str]]
) -> dict[str, int]:
    """Find for each engine how many candidates give the recall, compare the times at that, and return the candidates for the lower recall."""
    searches: dict[str, tuple[Search, Search | None]] = {
        "vector": (by_us(ours, "vectors", given), by_hand(bare, "bare", "vector", given)),
        "halfvec": (by_us(ours, "halves", given), by_hand(bare, "bare_halves", "halfvec", given)),
        "bit, re-ranked": (by_us(ours, "bits", given), None),
    }
    others = {"qdrant-edge, in process": edge.search, "faiss, in process": by_faiss(given)}
    if in_redis:
        others["Redis vector set"] = in_redis.search
    found: dict[str, int] = {}
    for target in TARGETS:
        title(f"a search at recall@10 >= {target}, one session")
        theirs_ef = {name: cheapest(search, truth, target)[0] for name, search in others.items()}
        for name, (search, by_statement) in searches.items():
            ef, recall = cheapest(search, truth, target)
            found.setdefault(name, ef)
            if recall < target:
                fact(name, f"{recall:.3f}", "is all there is")
                continue
            peers = {"bare pgvector": (by_statement or searches["vector"][1], ef)} | {peer: (others[peer], theirs_ef[peer]) for peer in others}
            for peer_name, (peer_search, peer_ef) in peers.items():
                assert peer_search
                mine, theirs = interleaved(lambda n, s=search, e=ef: s(n, e), lambda n, s=peer_search, e=peer_ef: s(n, e), len(truth))  # type: ignore[misc]
                bar = AtMost(1.1) if peer_name == "bare pgvector" and by_statement else AtLeast(0)
                line(f"{name}, ef {ef}, p50", mine[0], f"{peer_name}, ef {peer_ef}", theirs[0], bar)
                line(f"{name}, ef {ef}, p95", mine[1], peer_name, theirs[1])
    if in_redis:
        found["redis"] = cheapest(in_redis.search, truth, TARGETS[0])[0]
    return found


def sizes(superuser: psycopg.Connection) -> None:
    """Compare the bytes of the indexes."""
    bytes_of = {
        name: one(superuser, "select pg_relation_size(format('llm.%%I', index_name)::regclass) from llm.segments where collection = %s", name)
        for name in ("vectors", "halves", "bits")
    }
    for name in ("halves", "bits"):
        share = bytes_of[name] / bytes_of["vectors"]
        fact(f"index of {name}, of that of vectors", f"{share:.2f}", f"bar <= 0.6  {kept(share <= 0.6)}" if name == "halves" else "")


def two_clients(cluster: Cluster, in_redis: VectorSet | None, given: Input, candidates: dict[str, int]) -> None:
    """Compare what two client processes get done, at the lower recall."""
    title(f"two clients at recall@10 >= {TARGETS[0]}: a search of both")

    @contextmanager
    def us(collection: str, ef: int) -> Iterator[Callable[[int], object]]:
        with connected(cluster, "bound") as connection:
            search = by_us(connection, collection, given)
            yield lambda number: search(number, ef)

    @contextmanager
    def by_statement(table: str, kind: str, ef: int) -> Iterator[Callable[[int], object]]:
        with connected(cluster, "postgres") as connection:
            search = by_hand(connection, table, kind, given)
            yield lambda number: search(number, ef)

    @contextmanager
    def them(server: redis.Redis, ef: int) -> Iterator[Callable[[int], object]]:
        search = VectorSet(redis.Redis(unix_socket_path=server.get_connection_kwargs()["path"]), given).search
        yield lambda number: search(number, ef)

    for name, collection, table, kind in (("vector", "vectors", "bare", "vector"), ("halfvec", "halves", "bare_halves", "halfvec")):
        ef = candidates[name]
        peers: dict[str, tuple[Callable[[], Any], AtLeast | None]] = {"bare pgvector": (lambda: by_statement(table, kind, ef), None)}  # noqa: B023
        if in_redis:
            peers["Redis vector set"] = (lambda: them(in_redis.peer, candidates["redis"]), AtLeast(1.1))
        for peer, (make, bar) in peers.items():
            times = medians(
                5,
                ours=lambda: at_once(lambda: us(collection, ef), 2, len(given.questions)),  # noqa: B023
                theirs=lambda: at_once(make, 2, len(given.questions)),  # noqa: B023
            )
            line(f"{name}, ef {ef}", times["ours"], peer, times["theirs"], bar)


def at_once(client: Callable[[], Any], clients: int, questions: int) -> float:
    """Let client processes ask all questions, each from another one on, and return microseconds a search."""
    context = get_context("fork")
    ready = context.Barrier(clients + 1)

    def ask(first: int) -> None:
        with client() as search:
            for number in range(5):
                search(number)
            ready.wait()
            for number in range(questions):
                search((first + number) % questions)
            ready.wait()

    processes = [context.Process(target=ask, args=(number * questions // clients,), daemon=True) for number in range(clients)]
    for process in processes:
        process.start()
    ready.wait()
    start = perf_counter()
    ready.wait()
    elapsed = perf_counter() - start
    for process in processes:
        process.join()
    return elapsed / (clients * questions) * 1e6


def filtered(ours: psycopg.Connection, bare: psycopg.Connection, edge: Edge, in_redis: VectorSet | None, given: Input) -> None:
    """Search among 50, 10, 1 and 0.1 % of the points."""
    bare.execute("set hnsw.iterative_scan = relaxed_order")
    title("a search among some of the points, those that have the query's value of a field (ef 100)")
    engines: dict[str, Among] = {"bare": among_by_hand(bare, given), "qdrant-edge, in process": edge.among}
    if in_redis:
        engines["Redis vector set"] = in_redis.among
    names = {"bare": "pgvector, iterative scan"}
    us = among_by_us(ours, given)
    for share in SHARES:
        bars = {"bare": {100: AtLeast(10)}, "qdrant-edge, in process": EDGE_BARS, "Redis vector set": REDIS_BARS}
        for kind, field in (("by chance", f"any{share}"), ("near the query", f"near{share}")):
            values = given.fields[field]
            wanted = [int(values[own]) for own in given.own]
            truth = given.nearest(values[None, :] == np.array(wanted)[:, None])
            for name, engine in engines.items():
                mine, theirs = Answers(us, truth, field, wanted), Answers(engine, truth, field, wanted)
                time, other = interleaved(mine, theirs, min(len(truth), 100))
                line(f"1 / {share} {kind}, p50", time[0], names.get(name, name), other[0], bars[name].get(share))
                if name == "bare":
                    verdict = kept(mine.recall() >= 0.95 and not mine.missing)
                    fact("  recall@10, ours", f"{mine.recall():.3f}", f"rows missing: {mine.missing}  bar >= 0.95, 0 missing  {verdict}")
                fact(f"  recall@10, {name}", f"{theirs.recall():.3f}", f"rows missing: {theirs.missing}")


class Answers:
    """What an engine answers to the queries, compared with the truth."""

    def __init__(self, among: Among, truth: list[set[str]], field: str, wanted: list[int]) -> None:
        self._among = among
        self._truth = truth
        self._field = field
        self._wanted = wanted
        self._recalls: list[float] = []
        self.missing = 0

    def __call__(self, number: int) -> None:
        """Ask a query."""
        found = self._among(number, 100, self._field, self._wanted[number])
        expected = self._truth[number]
        self._recalls.append(len(expected.intersection(found)) / max(len(expected), 1))
        self.missing += len(expected) - len(found)

    def recall(self) -> float:
        """Return the mean share of the true neighbours that were found."""
        return float(np.mean(self._recalls))


def among_by_us(connection: psycopg.Connection, given: Input) -> Among:
    """Search by the function with a filter."""
    statement = "select id, distance, content, payload from llm.vector_search('vectors', %b, 10, %s, p_ef => %s)"

    def among(number: int, ef: int, field: str, value: int) -> list[str]:
        condition = json.dumps({"must": [{"key": field, "match": {"value": value}}]})
        return [row[0] for row in connection.execute(statement, [given.questions[number], condition, ef])]

    return among


def among_by_hand(connection: psycopg.Connection, given: Input) -> Among:
    """Search by a prepared statement with a condition."""
    statement = "select id, embedding <=> %b, content, payload from bare where payload @> %s::jsonb order by embedding <=> %b limit 10"
    connection.execute("set hnsw.ef_search = 100")

    def among(number: int, ef: int, field: str, value: int) -> list[str]:
        assert ef == 100
        question = given.questions[number]
        return [row[0] for row in connection.execute(statement, [question, json.dumps({field: value}), question])]

    return among

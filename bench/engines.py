"""The engines whose searches by vector are compared: ours, bare pgvector, a server, and libraries that search in the client's own process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import faiss
import numpy as np
import psycopg
import redis
from qdrant_edge import (
    Distance,
    EdgeConfig,
    EdgeOptimizersConfig,
    EdgeShard,
    EdgeVectorParams,
    FieldCondition,
    Filter,
    HnswIndexConfig,
    MatchValue,
    PayloadSchemaType,
    Point,
    Query,
    SearchParams,
    SearchRequest,
    UpdateOperation,
)

from bench.packages import Input, batches
from bench.support import fact

#: A search of one query with so many candidates: the ids.
type Search = Callable[[int, int], list[str]]

#: How many candidates are tried, until they give the recall.
CANDIDATES = (20, 40, 60, 80, 120, 160, 240, 320, 480, 640, 1000)

#: As the collections are built.
M, EF_CONSTRUCTION = 16, 100


class Edge:
    """Qdrant's engine in this process, with an index for each field of the payloads."""

    def __init__(self, directory: Path, given: Input) -> None:
        self._given = given
        start = perf_counter()
        directory.mkdir()
        config = EdgeConfig(
            vectors=EdgeVectorParams(size=given.vectors.shape[1], distance=Distance.Cosine),
            hnsw_config=HnswIndexConfig(m=M, ef_construct=EF_CONSTRUCTION, full_scan_threshold=10_000),
            optimizers=EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1_000),
        )
        self._shard = EdgeShard.create(str(directory), config)
        for part in batches(given):
            points = [Point(number, given.vectors[number].tolist(), self._payload(number)) for number in part]
            self._shard.update(UpdateOperation.upsert_points(points))
        for field in given.fields:
            self._shard.update(UpdateOperation.create_field_index(field, PayloadSchemaType.Integer))
        while self._shard.optimize():
            pass
        fact("qdrant-edge, load and index", f"{perf_counter() - start:.1f} s")

    def _payload(self, number: int) -> dict[str, object]:
        return self._given.payload(number) | {"content": self._given.rows[number].description}

    def search(self, number: int, ef: int) -> list[str]:
        """Search all points."""
        return self._search(number, ef, None)

    def among(self, number: int, ef: int, field: str, value: int) -> list[str]:
        """Search the points that have a value."""
        return self._search(number, ef, Filter(must=[FieldCondition(field, match=MatchValue(value))]))

    def _search(self, number: int, ef: int, condition: Filter | None) -> list[str]:
        query = Query.Nearest(self._given.matrix[number].tolist())
        request = SearchRequest(query, 10, filter=condition, params=SearchParams(hnsw_ef=ef), with_payload=True)
        return [str(point.id) for point in self._shard.search(request)]

    def close(self) -> None:
        """Let go of its files."""
        self._shard.close()


def by_faiss(given: Input) -> Search:
    """Search an HNSW index of faiss: vectors alone, no text, no payload, nothing stored."""
    start = perf_counter()
    index = faiss.IndexHNSWFlat(given.vectors.shape[1], M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    index.add(given.vectors)
    fact("faiss, build", f"{perf_counter() - start:.1f} s")

    def search(number: int, ef: int) -> list[str]:
        index.hnsw.efSearch = ef
        _, found = index.search(given.matrix[number : number + 1], 10)
        return [str(each) for each in found[0]]

    return search


class VectorSet:
    """A vector set in Redis: quantized to 8 bits, as it comes, with the fields to filter by, without texts."""

    KEY = "packages"

    def __init__(self, peer: redis.Redis, given: Input) -> None:
        self.peer = peer
        self._points = len(given.vectors)
        self._questions = [np.ascontiguousarray(each).tobytes() for each in given.matrix]

    def fill(self, given: Input) -> bool:
        """Load it, and return whether this Redis has vector sets."""
        start = perf_counter()
        try:
            for number, vector in enumerate(given.vectors):
                fields = json.dumps({name: int(values[number]) for name, values in given.fields.items()})
                self.peer.execute_command(  # type: ignore[no-untyped-call]
                    "VADD", self.KEY, "FP32", vector.tobytes(), str(number), "SETATTR", fields, "M", M, "EF", EF_CONSTRUCTION
                )
        except redis.exceptions.ResponseError:
            return False
        fact("Redis vector set, load and index", f"{perf_counter() - start:.1f} s")
        return True

    def search(self, number: int, ef: int) -> list[str]:
        """Search all points."""
        return self._search(number, ef)

    def among(self, number: int, ef: int, field: str, value: int) -> list[str]:
        """Search the points that have a value; it may look at all, so that no match is given up."""
        return self._search(number, ef, "FILTER", f".{field} == {value}", "FILTER-EF", self._points)

    def _search(self, number: int, ef: int, *options: object) -> list[str]:
        found = self.peer.execute_command(  # type: ignore[no-untyped-call]
            "VSIM", self.KEY, "FP32", self._questions[number], "COUNT", 10, "EF", ef, *options
        )
        return [each.decode() for each in found]


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

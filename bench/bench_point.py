"""Writing points beside pgvector as it comes: see README.md for what is compared with what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count, islice

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo

from bench import support
from bench.support import AtLeast, database, fact, line, medians, once, one, title
from demo.packages import DIMENSIONS, Package, packages
from tools.cluster import Cluster

BATCH = 1_000

UPSERT = "select llm.upsert_points(%s, p_ids => %b, p_embeddings => %b, p_contents => %b, p_payloads => %b::jsonb[])"
UPSERT_CONTENT = "select llm.upsert_points(%s, p_ids => %b, p_contents => %b, p_payloads => %b::jsonb[])"

#: What a developer makes instead of a collection.
BARE = f"create table {{}} (id text primary key, content text, payload jsonb, embedding vector({DIMENSIONS}))"


class Packed(bytes):
    """An embedding as it goes over the wire: packing it is neither side's work."""


class PackedDumper(Dumper):
    """Sends an embedding as it is."""

    format = Format.BINARY

    def dump(self, obj: Packed) -> bytes:
        """Return what the server's vector_recv() takes."""
        return obj


class Rows:
    """Packages, column by column."""

    def __init__(self, rows: Sequence[Package]) -> None:
        self.ids = [str(row.id) for row in rows]
        self.vectors = [Packed(bytes(row.vector)) for row in rows]
        self.contents = [row.description for row in rows]
        self.payloads = [json.dumps(row.payload) for row in rows]
        self.objects = [
            json.dumps({"id": row.id, "embedding": str(row.vector), "content": row.description, "payload": row.payload}) for row in rows[:BATCH]
        ]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.ids)


def register(connection: psycopg.Connection) -> None:
    """Let a connection send embeddings, single ones and arrays of them."""
    info = TypeInfo.fetch(connection, "vector")
    assert info
    info.register(connection)
    connection.adapters.register_dumper(Packed, type("Dumper", (PackedDumper,), {"oid": info.oid}))


def upsert(connection: psycopg.Connection, rows: Rows, prefix: str, collection: str = "packages", *, with_vectors: bool = True) -> None:
    """Write packages as points, in batches, each in a transaction of its own."""
    for start in range(0, len(rows), BATCH):
        batch = slice(start, start + BATCH)
        ids = [prefix + identifier for identifier in rows.ids[batch]]
        if with_vectors:
            connection.execute(UPSERT, [collection, ids, rows.vectors[batch], rows.contents[batch], rows.payloads[batch]])
        else:
            connection.execute(UPSERT_CONTENT, [collection, ids, rows.contents[batch], rows.payloads[batch]])


def copy(connection: psycopg.Connection, rows: Rows, prefix: str, table: str = "bare") -> None:
    """Write packages with COPY into a table without an index over vectors."""
    with connection.cursor().copy(f"copy {table} (id, content, payload, embedding) from stdin (format binary)") as stream:
        stream.set_types(["text", "text", "jsonb", "vector"])
        for identifier, content, payload, vector in zip(rows.ids, rows.contents, rows.payloads, rows.vectors, strict=True):
            stream.write_row((prefix + identifier, content, payload, vector))


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    size = None if support.large else 2_000 if quick else 10_000
    rows = Rows(list(packages(size)))
    with database(cluster, "point") as superuser:
        superuser.execute("grant llm_app to bound")
        superuser.execute("select llm.bind_role('bound', 'acme')")
        superuser.execute(f"select llm.create_collection('packages', {DIMENSIONS})")
        fields = '{"section": "keyword", "installed_size": "integer"}'
        superuser.execute(f"select llm.create_collection('filtered', {DIMENSIONS}, p_payload_indexes => %s)", [fields])
        superuser.execute(BARE.format("bare")).execute(BARE.format("indexed"))
        with cluster.connect("point", "bound") as ours, cluster.connect("point") as peer:
            for connection in (ours, peer):
                register(connection)
            batches(ours, peer, rows, quick=quick)
            one_by_one(ours, peer, rows, quick=quick)


def batches(ours: psycopg.Connection, peer: psycopg.Connection, rows: Rows, *, quick: bool) -> None:
    """Write many packages, new ones and again."""
    new = map("{}-".format, count())
    upsert(ours, rows, "same-")
    objects = "[" + ",".join(rows.objects) + "]"
    time = medians(
        3 if quick else 5,
        first=once(lambda: upsert(ours, rows, next(new)), len(rows)),
        filtered=once(lambda: upsert(ours, rows, next(new), "filtered"), len(rows)),
        again=once(lambda: upsert(ours, rows, "same-"), len(rows)),
        content=once(lambda: upsert(ours, rows, "same-", with_vectors=False), len(rows)),
        objects=once(lambda: ours.execute("select llm.upsert_points('packages', replace(%s, '\"id\": ', '\"id\": 1')::jsonb)", [objects]), BATCH),
        copy=once(lambda: copy(peer, rows, next(new)), len(rows)),
    )
    title(f"upsert_points, {len(rows):,} packages, {BATCH:,} at once, a point")
    line("new points", time["first"], "COPY into a bare table", time["copy"], AtLeast(0.5))
    line("new points, payload indexed", time["filtered"], "COPY into a bare table", time["copy"])
    line("unchanged content, without its vector", time["content"], "new points", time["first"], AtLeast(5))
    line("unchanged content with its vector", time["again"], "new points", time["first"])
    fact("objects in JSON, unchanged", f"{time['objects']:.1f} us")


def one_by_one(ours: psycopg.Connection, peer: psycopg.Connection, rows: Rows, *, quick: bool) -> None:
    """Write single packages, each in a transaction of its own."""
    new = map("{}-single".format, count())
    calls = 50 if quick else 200
    copy(peer, rows, "", "indexed")
    peer.execute("set maintenance_work_mem = '512MB'").execute("set max_parallel_maintenance_workers = 0")
    peer.execute("create index on indexed using hnsw (embedding vector_cosine_ops) with (m = 16, ef_construction = 100)")

    def single() -> None:
        for identifier, number in islice(zip(new, range(len(rows)), strict=False), calls):
            ours.execute(UPSERT, ["packages", [identifier], [rows.vectors[number]], [rows.contents[number]], [rows.payloads[number]]], prepare=True)

    def insert() -> None:
        for identifier, number in islice(zip(new, range(len(rows)), strict=False), calls):
            peer.execute(
                "insert into indexed values (%b, %b, %b::jsonb, %b)",
                [identifier, rows.contents[number], rows.payloads[number], rows.vectors[number]],
                prepare=True,
            )

    for commit in ("on", "off"):
        for connection in (ours, peer):
            connection.execute(f"set synchronous_commit = {commit}")
        time = medians(3 if quick else 7, single=once(single, calls), insert=once(insert, calls))
        title(f"one point, in a transaction of its own, synchronous_commit {commit}")
        # With the flush of each commit, which is the same for both, there is nothing to choose between them.
        bar = AtLeast(4) if commit == "off" else None
        line(f"beside {one(peer, 'select count(*) from indexed'):,} rows", time["single"], "INSERT, HNSW-indexed table", time["insert"], bar)

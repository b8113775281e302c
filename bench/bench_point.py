"""Writing points beside pgvector as it comes: see README.md for what is compared with what."""

from __future__ import annotations

import json
from itertools import count

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo

from bench.support import database, medians, once
from demo.packages import DIMENSIONS, Package, Vector, packages
from tools.cluster import Cluster

BATCH = 1_000


class VectorDumper(Dumper):
    """Sends an embedding in binary form."""

    format = Format.BINARY

    def dump(self, obj: Vector) -> bytes:
        """Return what the server's vector_recv() takes."""
        return bytes(obj)


def register(connection: psycopg.Connection) -> None:
    """Let a connection send embeddings, single ones and arrays of them."""
    info = TypeInfo.fetch(connection, "vector")
    assert info
    info.register(connection)
    connection.adapters.register_dumper(Vector, type("Dumper", (VectorDumper,), {"oid": info.oid}))


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with database(cluster, "point") as superuser:
        superuser.execute("grant llm_app to bound")
        superuser.execute("select llm.bind_role('bound', 'acme')")
        with cluster.connect("point", "bound") as ours, cluster.connect("point") as peer:
            for connection in (ours, peer):
                register(connection)
            batches(superuser, ours, peer, quick=quick)


UPSERT = "select llm.upsert_points('packages', p_ids => %b, p_embeddings => %b, p_contents => %b, p_payloads => %b::jsonb[])"


def upsert(connection: psycopg.Connection, rows: list[Package], prefix: str = "") -> None:
    """Write packages as points, in batches."""
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        connection.execute(
            UPSERT,
            [
                [f"{prefix}{row.id}" for row in batch],
                [row.vector for row in batch],
                [row.description for row in batch],
                [json.dumps(row.payload) for row in batch],
            ],
        )


def batches(superuser: psycopg.Connection, ours: psycopg.Connection, peer: psycopg.Connection, *, quick: bool) -> None:
    rows = list(packages(2_000 if quick else 10_000))
    numbers = count()

    def first() -> None:
        upsert(ours, rows, f"{next(numbers)}-")

    def again() -> None:
        upsert(ours, rows, "0-")

    def copy() -> None:
        number = next(numbers)
        with peer.cursor().copy("copy bare (id, content, payload, embedding) from stdin (format binary)") as stream:
            stream.set_types(["text", "text", "jsonb", "vector"])
            for row in rows:
                stream.write_row((f"{number}-{row.id}", row.description, json.dumps(row.payload), row.vector))

    superuser.execute(f"select llm.create_collection('packages', {DIMENSIONS})")
    peer.execute(f"create table bare (id text primary key, content text, payload jsonb, embedding vector({DIMENSIONS}))")
    time = medians(3, first=once(first, len(rows)), again=once(again, len(rows)), copy=once(copy, len(rows)))
    print(time)

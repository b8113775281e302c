"""Descriptions of Debian packages as the benchmarks of searches use them: with labelled queries, the true neighbours, and fields to filter by."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import psycopg

from bench.bench_point import Packed
from demo.packages import DIMENSIONS, Package, Query, Vector, is_whole, packages, queries

#: One point in so many has a value of a field: `any…` has nothing to do with the text, `near…` is what packages near to one another have in common.
SHARES = (2, 10, 100, 1000)

BATCH = 1_000

#: By how much each element of a copied vector, of length 1, differs at random: copies lie as far from one another as near neighbours do.
JITTER = 0.02


@dataclass(frozen=True)
class Input:
    """Packages, numbered as they come, and queries about them; `own`: the number of the package that each query is about."""

    rows: list[Package]
    vectors: np.ndarray
    texts: list[str]
    questions: list[Packed]
    matrix: np.ndarray
    own: list[int]
    fields: dict[str, np.ndarray] = field(default_factory=dict)

    def nearest(self, among: np.ndarray | None = None, k: int = 10) -> list[set[str]]:
        """Return the ids of the true neighbours of each query; `among`: for each query, which packages count."""
        similar = self.matrix @ self.vectors.T
        if among is not None:
            similar = np.where(among, similar, -9)
        return [{str(number) for number in np.argpartition(-each, k)[:k] if each[number] > -9} for each in similar]

    def grown(self, times: int) -> Input:
        """Return so many times as many packages, with vectors near those that there are."""
        generator = np.random.default_rng(7)
        copies = [self.vectors + generator.normal(0, JITTER, self.vectors.shape).astype(np.float32) for _ in range(times - 1)]
        vectors = np.concatenate([self.vectors, *(each / np.linalg.norm(each, axis=1, keepdims=True) for each in copies)])
        fields = {name: np.tile(values, times) for name, values in self.fields.items()}
        return replace(self, rows=self.rows * times, vectors=vectors, fields=fields)

    def payload(self, number: int) -> dict[str, Any]:
        """Return the payload of a package."""
        return self.rows[number].payload | {name: int(values[number]) for name, values in self.fields.items()}


def load(*, quick: bool, questions: int) -> Input:
    """Read the whole set, if it is there, else the sample."""
    rows = list(packages(5_000 if quick else None))
    vectors = np.array([row.vector.values for row in rows], dtype=np.float32)
    if is_whole():
        labelled = np.load(Path(os.environ["PACKAGES"]) / "queries.npz")
        kept = [(int(own), vector) for own, vector in zip(labelled["doc_id"], labelled["vector"], strict=True) if own < len(rows)][:questions]
        asked = [Query(rows[own].synopsis, own, Vector(tuple(map(float, each)))) for own, each in kept]
    else:
        asked = queries()[:questions]
    matrix = np.array([each.vector.values for each in asked], dtype=np.float32)
    numbers = {row.id: number for number, row in enumerate(rows)}
    found = Input(rows, vectors, [each.text for each in asked], [packed(each) for each in matrix], matrix, [numbers[each.package] for each in asked])
    generator = np.random.default_rng(5)
    for share in SHARES:
        found.fields[f"any{share}"] = generator.permutation(len(rows)) % share
        found.fields[f"near{share}"] = np.argmax(vectors @ vectors[generator.choice(len(rows), share, replace=False)].T, axis=1)
    return found


def upsert(connection: psycopg.Connection, collection: str, given: Input) -> None:
    """Store the packages as points."""
    for part in batches(given):
        connection.execute(
            "select llm.upsert_points(%s, p_ids => %b, p_embeddings => %b, p_contents => %b, p_payloads => %b::jsonb[])",
            [
                collection,
                [str(number) for number in part],
                [packed(given.vectors[number]) for number in part],
                [given.rows[number].description for number in part],
                [json.dumps(given.payload(number)) for number in part],
            ],
        )


def packed(vector: np.ndarray) -> Packed:
    """Return a vector as it goes over the wire (pgvector's vector_send())."""
    return Packed(pack(">HH", len(vector), 0) + vector.astype(">f4").tobytes())


def batches(given: Input) -> Iterator[range]:
    """Yield the numbers of the packages, some at a time."""
    for start in range(0, len(given.rows), BATCH):
        yield range(start, min(start + BATCH, len(given.rows)))


assert DIMENSIONS == 384, "the tables of the peers say so"

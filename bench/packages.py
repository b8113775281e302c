"""Real input of the benchmarks: package descriptions of Debian with their embeddings, and labelled queries; VECTORS names the folder."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

FOLDER = Path(os.environ.get("VECTORS") or Path(__file__).resolve().parent.parent.parent / "shared/data/debian-packages")
DIMENSIONS = 384
BATCH = 1_000


@dataclass(frozen=True)
class Packages:
    """So many packages, and the queries about them: text, vector, the package each was made of, the nearest packages by inner product."""

    docs: list[dict[str, Any]]
    vectors: np.ndarray
    query_texts: list[str]
    query_vectors: np.ndarray
    own: np.ndarray
    nearest: np.ndarray


def load(count: int | None = None, queries: int = 1_000) -> Packages:
    """Read the first so many packages, and queries about these."""
    with gzip.open(FOLDER / "docs.jsonl.gz", "rt") as file:
        docs = [json.loads(line) for _, line in zip(range(count or 1 << 30), file, strict=False)]
    vectors = np.load(FOLDER / "doc_vectors.f16.npy")[: len(docs)].astype(np.float32)
    labelled = np.load(FOLDER / "queries.npz")
    kept = labelled["doc_id"] < len(docs)
    own, query_vectors = labelled["doc_id"][kept][:queries], labelled["vector"][kept][:queries].astype(np.float32)
    distances = -(query_vectors @ vectors.T)
    nearest = np.argsort(distances, axis=1)[:, :100]
    return Packages(docs, vectors, [docs[number]["synopsis"] for number in own], query_vectors, own, nearest)


def literal(vector: np.ndarray) -> str:
    """Return a vector as pgvector reads it."""
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


def payload(doc: dict[str, Any], number: int) -> dict[str, Any]:
    """Return what a package's point is filtered by: facts, and a bucket out of 1,000 that has nothing to do with the text."""
    return {"section": doc["section"], "priority": doc["priority"], "installed_size": doc["installed_size"], "bucket": number * 7919 % 1000}


def upsert(connection: psycopg.Connection, collection: str, packages: Packages) -> None:
    """Store the packages as points."""
    for start in range(0, len(packages.docs), BATCH):
        part = range(start, min(start + BATCH, len(packages.docs)))
        connection.execute(
            "select llm.upsert_points(%s, p_ids => %s, p_embeddings => %s::text[]::vector[], p_contents => %s, p_payloads => %s::text[]::jsonb[])",
            [
                collection,
                [str(number) for number in part],
                [literal(packages.vectors[number]) for number in part],
                [packages.docs[number]["description"] for number in part],
                [json.dumps(payload(packages.docs[number], number)) for number in part],
            ],
        )

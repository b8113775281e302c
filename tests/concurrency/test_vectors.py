"""Points that come and go while the index that holds them is vacuumed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import numpy as np

from tests.conftest import new_database
from tests.support import Client
from tools.cluster import Cluster

POINTS = 4_000
DIMENSIONS = 16

#: What pgvector says of an index that vacuum has broken (pgvector 988, 993, 1010).
BROKEN = ("graph not repaired", "different vector dimensions", "could not find element")


def write(client: Client, prefix: str, count: int, seed: int) -> None:
    """Write points around a few centres."""
    random = np.random.default_rng(seed)
    vectors = random.integers(0, 6, size=(count, 1)) + random.normal(size=(count, DIMENSIONS))
    literals = ["[" + ",".join(f"{value:.4f}" for value in vector) + "]" for vector in vectors]
    client.run(
        "select llm.upsert_points('docs', p_ids => %s, p_embeddings => %s::text[]::vector[])", [f"{prefix}{n}" for n in range(count)], literals
    )


def recall(app: Client) -> float:
    """Return the recall of searches by index."""
    share, plan = app.row("select recall, plan from llm.vector_recall('docs', 200, p_source => 'shifted')")
    assert plan == "hnsw"
    return float(share)


def test_vec_02_half_of_an_index_is_deleted_and_vacuumed_while_others_write(own_cluster: Cluster) -> None:
    with contextmanager(new_database)(own_cluster) as database:
        db, app = database.client(), database.client("app")
        db.run("select llm.bind_role('app', 'acme')")
        db.run(f"select llm.create_collection('docs', {DIMENSIONS}, 'l2', p_indexing_threshold => 1000, p_full_scan_threshold => 0)")
        write(app, "p", POINTS, 0)
        db.run("call llm.maintain(p_lock_writers => true)")
        before = recall(app)

        done = Event()

        def churn(client: Client, number: int) -> int:
            rounds = 0
            while not done.is_set() or not rounds:
                write(client, f"w{number}-", 20, 1_000 * number + rounds)
                client.run("select llm.set_payload('docs', %s, jsonb_build_object('round', %s::integer))", [f"p{rounds % POINTS}"], rounds)
                rounds += 1
            return rounds

        def search(client: Client) -> set[int]:
            counts: set[int] = set()
            while not done.is_set() or not counts:
                counts.add(client.one("select count(*) from llm.vector_search('docs', %s, 10)", str([1.0] * DIMENSIONS)))
            return counts

        with ThreadPoolExecutor(3) as pool:
            writers = [pool.submit(churn, client, number) for number, client in enumerate(database.clients(2, "app"), 1)]
            reader = pool.submit(search, database.client("app"))
            try:
                deleter = database.client("app")
                for start in range(0, POINTS // 2, 250):
                    assert deleter.one("select llm.delete_points('docs', %s)", [f"p{n}" for n in range(start, start + 250)]) == 250
                    db.run("vacuum llm.points_docs")
            finally:
                done.set()
            assert all(writer.result() > 0 for writer in writers)
            assert reader.result() == {10}

        assert recall(app) >= before - 0.02
        # So many gone are reason enough to build the index again.
        assert db.one("select count(*) from llm.segments") == 1
        db.run("call llm.maintain(p_lock_writers => true)")
        assert db.one("select sum(rows) from llm.segments where state = 'ready'") < POINTS
        assert recall(app) >= before - 0.02
    assert not [phrase for phrase in BROKEN if phrase in own_cluster.log()]

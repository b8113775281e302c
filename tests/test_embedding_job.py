"""Workers find the vectors of points: each job is one worker's, and only what fits the text is stored."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.errors import ArraySubscriptError, InsufficientPrivilege, InvalidParameterValue, ObjectNotInPrerequisiteState, UndefinedObject

from tests.support import Client, Database, in_tenant, next_transaction, raises

VECTOR = "[1,2,3]"

#: No test waits for a delay: see due().
SOON = "p_max_attempts => 50, p_base_delay => '1 millisecond', p_open_for => '1 hour'"


@pytest.fixture
def docs(admin: Client, bound: Client) -> Client:
    """A client bound to acme, with a collection docs whose texts model m embeds."""
    admin.run("select llm.create_collection('docs', 3)").run(f"select llm.set_embedding_model('docs', 'm', {SOON})")
    return bound


def upsert(client: Client, **contents: str) -> None:
    client.run("select llm.upsert_points('docs', p_ids => %s, p_contents => %s)", list(contents), list(contents.values()))


def claim(client: Client, limit: int = 64, more: str = "") -> tuple[list[int], UUID | None, list[str]]:
    """Return ids, token and contents of claimed jobs."""
    rows = client.rows(f"select id, token, content from llm.claim_embedding_jobs('docs', %s{more})", limit)
    assert len({row[1] for row in rows}) < 2
    return [row[0] for row in rows], rows[0][1] if rows else None, [row[2] for row in rows]


def complete(client: Client, ids: list[int], token: UUID | None, vector: str = VECTOR) -> tuple[int, int]:
    found: tuple[int, int] = client.row("select * from llm.complete_embedding_jobs(%s, %s, %s::text[]::vector[])", ids, token, [vector] * len(ids))
    return found


def fail(client: Client, ids: list[int], token: UUID | None, error: str = "503", retry: bool = True) -> tuple[int, int]:
    found: tuple[int, int] = client.row("select * from llm.fail_embedding_jobs(%s, %s, %s, %s)", ids, token, error, retry)
    return found


def due(db: Client) -> None:
    """Let leases and delays be over."""
    db.run("update llm.embedding_jobs set due_at = now() - interval '1 second'")


def vectors(client: Client) -> dict[str, str | None]:
    return dict(client.rows("select id, embedding::text from llm.points_docs order by id"))


def test_a_claimed_text_gets_its_vector(docs: Client) -> None:
    upsert(docs, a="text a", b="text b")
    rows = docs.rows("select * from llm.claim_embedding_jobs('docs', 1)")
    assert [row[2:] for row in rows] == [("a", "text a", "m", 3, 1)]
    assert docs.row("select pending, due, running from llm.embedding_progress") == (2, 1, 1)
    assert complete(docs, [rows[0][0]], rows[0][1]) == (1, 0)
    assert vectors(docs) == {"a": VECTOR, "b": None}
    assert docs.column("select id from llm.vector_search('docs', '[1,2,3]')") == ["a"]
    assert docs.column("select point_id from llm.embedding_jobs") == ["b"]
    assert complete(docs, [rows[0][0]], rows[0][1]) == (0, 1), "a second time"


def test_two_workers_never_get_one_job(docs: Client, db: Client, database: Database) -> None:
    upsert(docs, **{f"p{number:04}": f"text {number}" for number in range(600)})
    workers = database.clients(6, "app")

    def work(worker: Client) -> list[str]:
        done: list[str] = []
        while True:
            ids, token, contents = claim(worker, 7)
            if not ids:
                return done
            done += contents
            assert complete(worker, ids, token) == (len(ids), 0)

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(work, workers))
    assert sorted(content for each in done for content in each) == sorted(f"text {number}" for number in range(600))
    assert db.row("select count(*), count(embedding), count(distinct number) from llm.points_docs") == (600, 600, 600)
    assert db.one("select count(*) from llm.embedding_jobs") == 0


def test_an_open_claim_is_skipped_not_waited_for(docs: Client, database: Database) -> None:
    upsert(docs, a="text a", b="text b")
    other = database.client("app")
    with docs.transaction():
        assert claim(docs, 1)[2] == ["text a"]
        assert claim(other)[2] == ["text b"]


def test_the_jobs_of_a_worker_that_crashed_are_anothers_and_it_comes_too_late(docs: Client, db: Client, database: Database) -> None:
    upsert(docs, a="text a")
    crashed = database.client("app")
    ids, token, _ = claim(crashed)
    assert claim(docs) == ([], None, [])
    due(db)
    again, newer, contents = claim(docs)
    assert (again, contents) == (ids, ["text a"])
    assert newer != token
    assert complete(crashed, ids, token, "[9,9,9]") == (0, 1)
    assert fail(crashed, ids, token) == (0, 0)
    assert complete(docs, again, newer) == (1, 0)
    assert vectors(docs) == {"a": VECTOR}


def test_a_lease_that_is_over_counts_as_long_as_nobody_else_claims(docs: Client, db: Client) -> None:
    upsert(docs, a="text a")
    ids, token, _ = claim(docs)
    due(db)
    assert complete(docs, ids, token) == (1, 0)


def test_a_connection_lost_before_commit_has_claimed_nothing(docs: Client, database: Database) -> None:
    upsert(docs, a="text a")
    lost = database.client("app")
    lost.run("begin")
    ids, token, _ = claim(lost)
    lost.close()
    while not (found := claim(docs))[0]:
        pass  # until the server has noticed
    assert found[0] == ids
    assert found[1] != token


@pytest.mark.parametrize(
    "change",
    [
        "select llm.upsert_points('docs', p_ids => array['a'], p_contents => array['another text'])",
        "select llm.upsert_points('docs', p_ids => array['a'], p_embeddings => array['[7,7,7]']::vector[], p_contents => array['text a'])",
        "select llm.delete_points('docs', array['a'])",
    ],
)
def test_a_vector_for_a_text_that_has_changed_is_dropped(docs: Client, database: Database, change: str) -> None:
    upsert(docs, a="text a", b="text b")
    ids, token, _ = claim(docs)
    database.client("app").run(change)
    assert complete(docs, ids, token) == (1, 1)
    assert vectors(docs) in ({"a": None, "b": VECTOR}, {"a": "[7,7,7]", "b": VECTOR}, {"b": VECTOR})
    assert docs.one("select count(*) from llm.embedding_jobs") == docs.one("select count(*) from llm.points_docs where embedding is null")


def test_a_vector_of_a_model_that_is_no_longer_the_collections_is_dropped(docs: Client, admin: Client) -> None:
    upsert(docs, a="text a")
    ids, token, _ = claim(docs)
    assert admin.one("select llm.set_embedding_model('docs', 'n')") == 1
    assert complete(docs, ids, token) == (0, 1)
    assert docs.rows("select id, model, embedding from llm.points_docs") == [("a", "n", None)]
    assert claim(docs, 1, ", p_model => 'n'")[2] == ["text a"]


def test_what_a_batch_takes_does_not_grow_with_the_backlog(docs: Client, db: Client) -> None:
    """Though the planner knows nothing of the tables yet."""
    db.run("alter table llm.embedding_jobs set (autovacuum_enabled = off)").run("alter table llm.points_docs set (autovacuum_enabled = off)")

    def pages_of_a_batch() -> int:
        docs.run("discard plans").run("select pg_stat_force_next_flush()")
        before = db.one(read)
        ids, token, _ = claim(docs, 100)
        assert complete(docs, ids, token) == (100, 0)
        docs.run("select pg_stat_force_next_flush()")
        pages: int = db.one(read) - before
        return pages

    read = "select sum(heap_blks_hit + idx_blks_hit)::bigint from pg_statio_user_tables where relname in ('embedding_jobs', 'points_docs')"
    upsert(docs, **{f"a{number}": "text" for number in range(4_000)})
    pages_of_a_batch()
    few = pages_of_a_batch()
    upsert(docs, **{f"b{number}": "text" for number in range(12_000)})
    assert pages_of_a_batch() < 1.3 * few


def test_a_text_that_changes_while_its_vector_is_stored_is_embedded_again(docs: Client, database: Database) -> None:
    upsert(docs, a="text a", b="text b")
    ids, token, _ = claim(docs)
    writer, watcher = database.client("app"), database.client()
    with ThreadPoolExecutor(1) as pool:
        with writer.transaction():
            upsert(writer, a="newer")
            stored = pool.submit(complete, docs, ids, token)
            while not watcher.one("select exists (select from pg_locks where not granted)"):
                assert not stored.done()
        assert stored.result() == (1, 1)
    assert vectors(docs) == {"a": None, "b": VECTOR}
    assert claim(docs)[2] == ["newer"]


def test_a_claim_gives_the_text_that_its_job_is_about(docs: Client, database: Database) -> None:
    """Writers change texts all the time; what is stored in the end is of the last text."""
    writer = database.client("app")
    names = [f"p{number}" for number in range(20)]

    def write() -> None:
        for turn in range(30):
            upsert(writer, **dict.fromkeys(names, f"{turn}"))

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while True:
            is_over = writing.done()
            ids, token, contents = claim(docs, 5)
            docs.row(
                "select * from llm.complete_embedding_jobs(%s, %s, %s::text[]::vector[])", ids, token, [f"[1,1,{content}]" for content in contents]
            )
            if is_over and not ids:
                break
        writing.result()
    assert vectors(docs) == dict.fromkeys(sorted(names), "[1,1,29]")


def test_a_failed_job_comes_back_until_it_is_given_up(docs: Client, db: Client, admin: Client) -> None:
    admin.run("select llm.set_embedding_model('docs', 'm', 3, p_base_delay => '1 minute', p_failure_threshold => 100)")
    upsert(docs, a="text a")
    delays = []
    for attempt in (1, 2, 3):
        ids, token, _ = claim(docs)
        assert fail(docs, ids, token, f"error {attempt}") == ((1, 0) if attempt < 3 else (0, 1))
        if attempt < 3:
            assert claim(docs)[0] == []
            delays.append(docs.one("select extract(epoch from due_at - clock_timestamp())::float8 from llm.embedding_jobs"))
            assert docs.row("select retrying, dead from llm.embedding_progress") == (1, 0)
        due(db)
    assert 25 < delays[0] <= 60 < 2 * delays[1] <= 240
    assert docs.row("select pending, dead from llm.embedding_progress") == (0, 1)
    assert docs.one("select last_error from llm.embedding_jobs") == "error 3"
    assert claim(docs)[0] == []
    assert docs.one("select llm.retry_embedding_jobs('docs', %s)", [0]) == 0
    assert docs.one("select llm.retry_embedding_jobs('docs')") == 1
    assert complete(docs, *claim(docs)[:2]) == (1, 0)


def test_a_job_that_no_worker_survives_is_given_up(docs: Client, db: Client, admin: Client) -> None:
    admin.run("select llm.set_embedding_model('docs', 'm', 2)")
    upsert(docs, a="poison", b="poison")
    for _ in range(2):
        assert claim(docs)[2] == ["poison"] * 2
        due(db)
    upsert(docs, c="good")
    ids, token, contents = claim(docs, 1)
    assert contents == ["good"], "those that were given up stand in nobody's way"
    given_up = "select distinct last_error, died_at is not null, attempts from llm.embedding_jobs where point_id <> 'c'"
    assert docs.rows(given_up) == [("no worker that claimed it came back", True, 2)]
    assert complete(docs, ids, token) == (1, 0)
    assert claim(docs)[0] == []


def test_what_no_model_takes_is_given_up_at_once_and_opens_no_circuit(docs: Client) -> None:
    upsert(docs, **{f"p{number}": "x" for number in range(9)})
    for _ in range(9):
        ids, token, _ = claim(docs, 1)
        assert fail(docs, ids, token, "too long", retry=False) == (0, 1)
    assert docs.row("select dead, circuit, failures from llm.embedding_progress") == (9, "closed", 0)


def fail_in_a_row(docs: Client, db: Client, times: int) -> None:
    for _ in range(times):
        due(db)
        ids, token, _ = claim(docs, 2)
        assert fail(docs, ids, token)[0] == len(ids) > 0


def circuit(docs: Client) -> str:
    state: str = docs.one("select circuit from llm.embedding_progress")
    return state


def test_failures_in_a_row_open_the_circuit_and_one_probe_closes_it(docs: Client, db: Client, database: Database) -> None:
    other = database.client("app")
    upsert(docs, a="a", b="b", c="c")
    fail_in_a_row(docs, db, 4)
    assert circuit(docs) == "closed"
    fail_in_a_row(docs, db, 1)
    assert circuit(docs) == "open"
    due(db)
    assert claim(docs)[0] == []
    db.run("update llm.embedding_queues set open_until = now() - interval '1 second'")
    assert circuit(docs) == "half-open"
    ids, token, _ = claim(docs)
    assert len(ids) == 1, "a probe"
    assert claim(other)[0] == [], "one at a time"
    assert fail(docs, ids, token) == (1, 0)
    assert db.one("select open_until - now() > interval '1 hour' * 0.99 from llm.embedding_queues")
    db.run("update llm.embedding_queues set open_until = now() - interval '1 second'")
    due(db)
    assert complete(docs, *claim(docs)[:2]) == (1, 0)
    assert docs.row("select circuit, failures from llm.embedding_progress") == ("closed", 0)
    assert len(claim(docs)[0]) == 2


def test_a_probe_is_not_spent_where_nothing_is_due(docs: Client, db: Client) -> None:
    upsert(docs, a="a")
    fail_in_a_row(docs, db, 5)
    db.run("update llm.embedding_queues set open_until = now() - interval '1 second'")
    db.run("update llm.embedding_jobs set due_at = now() + interval '1 hour'")
    assert claim(docs)[0] == []
    assert circuit(docs) == "half-open"


def test_a_success_forgets_failures_before_it(docs: Client, db: Client) -> None:
    upsert(docs, a="a", b="b", c="c")
    fail_in_a_row(docs, db, 4)
    due(db)
    complete(docs, *claim(docs, 1)[:2])
    fail_in_a_row(docs, db, 4)
    assert circuit(docs) == "closed"


def test_jobs_are_a_tenants_and_a_users(docs: Client, database: Database) -> None:
    """RLS-04"""
    first, second = (docs.one("select llm.create_user(%s)", f"{name}@x.org") for name in "ab")
    docs.run("select llm.upsert_points('docs', p_ids => array['a', 'b'], p_contents => array['of a', 'of b'], p_user_ids => %s)", [first, second])
    other = in_tenant(database.client("admin"), "other")
    docs.run("begin").run("select llm.set_user(%s)", second)
    ids, token, contents = claim(docs)
    assert contents == ["of b"]
    docs.run("commit")
    assert claim(other)[0] == []
    assert complete(other, ids, token) == (0, 1)
    assert fail(other, ids, token) == (0, 0)
    next_transaction(other)
    docs.run("begin").run("select llm.set_user(%s)", first)
    assert complete(docs, ids, token) == (0, 1)
    assert fail(docs, ids, token, retry=False) == (0, 0)
    assert docs.one("select llm.retry_embedding_jobs('docs')") == 0
    docs.run("commit")
    assert complete(docs, ids, token) == (1, 0)
    assert vectors(docs) == {"a": None, "b": VECTOR}


def test_claims_can_be_for_one_model(docs: Client) -> None:
    upsert(docs, a="a")
    assert claim(docs, 9, ", p_model => 'o'")[2] == []
    assert claim(docs, 9, ", p_model => 'm'")[2] == ["a"]


@pytest.mark.parametrize(
    ("vector", "message"),
    [("[1,2]", "the vector of point 'a' has 2 dimensions, those of collection docs have 3"), ("[0,0,0]", "the vector of point 'a' is zero")],
)
def test_a_vector_that_does_not_fit_is_refused(docs: Client, vector: str, message: str) -> None:
    upsert(docs, a="text a")
    ids, token, _ = claim(docs)
    with raises(InvalidParameterValue, message):
        complete(docs, ids, token, vector)
    assert complete(docs, ids, token) == (1, 0)


def test_misuse_is_told(docs: Client, admin: Client, db: Client, database: Database) -> None:
    with raises(ArraySubscriptError, "there are 2 jobs and 1 vectors", hint="fail_embedding_jobs"):
        docs.run("select llm.complete_embedding_jobs(array[1, 2], %s, array['[1,2,3]']::vector[])", uuid4())
    for wrong in ("0", "10001", "null", "1, '0 s'", "1, null", "1, '2 days'"):
        with raises(InvalidParameterValue, "jobs cannot be claimed for", hint="1 to 10,000 jobs"):
            docs.run(f"select llm.claim_embedding_jobs('docs', {wrong})")
    with raises(UndefinedObject, "collection 'x' does not exist"):
        docs.run("select llm.claim_embedding_jobs('x')")
    admin.run("select llm.create_collection('quiet', 3)")
    with raises(ObjectNotInPrerequisiteState, "collection quiet has no embedding jobs", hint="set_embedding_model"):
        docs.run("select llm.claim_embedding_jobs('quiet')")
    with raises(ObjectNotInPrerequisiteState, "no tenant is set"):
        admin.run("select llm.claim_embedding_jobs('docs')")
    with raises(InsufficientPrivilege):
        database.client("reader").run("select llm.claim_embedding_jobs('docs')")
    nothing: list[Any] = []
    assert complete(docs, nothing, None) == (0, 0)
    assert fail(docs, nothing, None) == (0, 0)

"""The worker pg-llm-embed, against an endpoint that answers, fails, and refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from types import ModuleType
from typing import Any

import pytest
from pg_llm_client.embed import OpenAIEmbedder, Worker

from pg_llm_client import embed
from tests.support import Client, Database

KEY = "sk-secret"


class Endpoint(ThreadingHTTPServer):
    """Embeds texts as (length, 1, 1), and "nothing" as zero; refuses those with "poison"; answers with the errors that it was given first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.errors: list[int] = []
        self.requests: list[dict[str, Any]] = []
        self.dimensions = 3
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request | {"path": self.path, "key": self.headers["Authorization"]})
        if self.server.errors:
            self.answer(self.server.errors.pop(0), {"error": "try again"})
        elif any("poison" in text for text in request["input"]):
            self.answer(400, {"error": "too long"})
        else:
            vectors = [[0] * 3 if text == "nothing" else [len(text), *[1] * (self.server.dimensions - 1)] for text in request["input"]]
            found = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
            self.answer(200, {"data": found[::-1]})

    def answer(self, status: int, document: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """An endpoint of the shape of OpenAI's, on this machine."""
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def docs(database: Database) -> Client:
    """An application's client, with a collection docs whose texts model m embeds."""
    database.client("admin").run("select llm.create_collection('docs', 3)").run(
        "select llm.set_embedding_model('docs', 'm', p_base_delay => '1 millisecond', p_failure_threshold => 3, p_open_for => '1 hour')"
    )
    return database.client("app")


@pytest.fixture
def worker(database: Database, docs: Client, endpoint: Endpoint) -> Iterator[Callable[..., Worker]]:
    """Make workers for tenant a."""
    made: list[Worker] = []

    def make(user: str = "app", **arguments: Any) -> Worker:
        given: dict[str, Any] = {"tenants": ["a"], "poll": 0.01} | arguments
        made.append(Worker(database.cluster.dsn(database.name, user), "docs", OpenAIEmbedder("m", url=endpoint.url, key=KEY), **given))
        return made[-1]

    yield make
    for each in made:
        each.close()


def upsert(client: Client, tenant: str = "a", **contents: str) -> None:
    with client.tenant(tenant):
        client.run("select llm.upsert_points('docs', p_ids => %s, p_contents => %s)", list(contents), list(contents.values()))


def vectors(client: Client, tenant: str = "a") -> dict[str, str | None]:
    with client.tenant(tenant):
        return {row[0]: row[1] for row in client.rows("select id, embedding::text from llm.points_docs order by id")}


def progress(client: Client) -> tuple[Any, ...]:
    with client.tenant("a"):
        return client.row("select pending, dead, circuit from llm.embedding_progress")


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; a minute is far more than it takes."""
    deadline = monotonic() + 60
    while not condition():
        assert monotonic() < deadline


def due(db: Client) -> None:
    db.run("update llm.embedding_jobs set due_at = now() - interval '1 second'")


def test_texts_get_their_vectors(docs: Client, endpoint: Endpoint, worker: Callable[..., Worker]) -> None:
    upsert(docs, a="x", b="xyz")
    assert worker().run_once() == 2
    assert vectors(docs) == {"a": "[1,1,1]", "b": "[3,1,1]"}
    assert endpoint.requests == [
        {"model": "m", "input": ["x", "xyz"], "encoding_format": "float", "path": "/v1/embeddings", "key": f"Bearer {KEY}"}
    ]  # fmt: skip
    assert worker().run_once() == 0
    assert len(endpoint.requests) == 1


def test_what_fails_is_tried_again(docs: Client, db: Client, endpoint: Endpoint, worker: Callable[..., Worker]) -> None:
    upsert(docs, a="x", b="xyz")
    endpoint.errors = [503, 429]
    for _ in range(2):
        assert worker().run_once() == 2
        assert progress(docs) == (2, 0, "closed")
        due(db)
    assert db.column("select distinct last_error from llm.embedding_jobs") == ['ConnectionError: HTTP 429: {"error": "try again"}']
    worker().run_once()
    assert progress(docs) == (0, 0, "closed")


def test_an_endpoint_that_is_down_is_left_alone(docs: Client, db: Client, endpoint: Endpoint, worker: Callable[..., Worker]) -> None:
    upsert(docs, a="x", b="xyz")
    endpoint.errors = [500] * 9
    for _ in range(9):
        worker().run_once()
        due(db)
    assert progress(docs) == (2, 0, "open")
    assert len(endpoint.requests) == 3


def test_a_text_that_is_refused_spoils_no_other(docs: Client, endpoint: Endpoint, worker: Callable[..., Worker]) -> None:
    upsert(docs, a="x", b="poison", c="xyz")
    worker().run_once()
    assert vectors(docs) == {"a": "[1,1,1]", "b": None, "c": "[3,1,1]"}
    assert progress(docs) == (0, 1, "closed")
    with docs.tenant("a"):
        assert docs.one("select last_error from llm.embedding_jobs") == 'Refused: HTTP 400: {"error": "too long"}'


def test_vectors_that_do_not_fit_are_a_failure(docs: Client, endpoint: Endpoint, worker: Callable[..., Worker]) -> None:
    upsert(docs, a="x")
    endpoint.dimensions = 2
    worker().run_once()
    with docs.tenant("a"):
        assert re.search("has 2 dimensions, those of collection docs have 3", docs.one("select last_error from llm.embedding_jobs"))


def test_a_vector_that_does_not_fit_spoils_no_other(docs: Client, endpoint: Endpoint, worker: Callable[..., Worker]) -> None:
    upsert(docs, a="x", b="nothing", c="xyz")
    assert worker().run_once() == 3
    assert vectors(docs) == {"a": "[1,1,1]", "b": None, "c": "[3,1,1]"}
    assert len(endpoint.requests) == 1, "the others are not embedded again"
    with docs.tenant("a"):
        assert docs.one("select last_error from llm.embedding_jobs").startswith("InvalidParameterValue: the vector of point 'b' is zero")


def test_too_few_vectors_are_a_failure(database: Database, docs: Client) -> None:
    upsert(docs, a="x", b="y")
    worker = Worker(database.cluster.dsn(database.name, "app"), "docs", lambda _: [[1, 2, 3]], tenants=["a"])
    worker.run_once()
    worker.close()
    with docs.tenant("a"):
        assert docs.column("select distinct last_error from llm.embedding_jobs") == ["ValueError: 1 vectors came back for 2 texts"]


def test_several_workers_share_texts(docs: Client, endpoint: Endpoint, worker: Callable[..., Worker]) -> None:
    upsert(docs, **{f"p{number}": "x" * (number + 1) for number in range(200)})
    workers = [worker(batch=7) for _ in range(4)]
    threads = [threading.Thread(target=each.run) for each in workers]
    for thread in threads:
        thread.start()
    until(lambda: progress(docs)[0] == 0)
    for each in workers:
        each.stop()
    for thread in threads:
        thread.join()
    assert sorted(len(text) for request in endpoint.requests for text in request["input"]) == list(range(1, 201))
    assert vectors(docs) == {f"p{number}": f"[{number + 1},1,1]" for number in range(200)}


def test_a_worker_outlives_its_connection(docs: Client, db: Client, worker: Callable[..., Worker]) -> None:
    one = worker()
    thread = threading.Thread(target=one.run)
    thread.start()
    until(lambda: db.one("select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'pg-llm-embed'") > 0)
    upsert(docs, a="x")
    until(lambda: vectors(docs) == {"a": "[1,1,1]"})
    one.stop()
    thread.join()


def test_a_worker_for_all_tenants(database: Database, docs: Client, worker: Callable[..., Worker]) -> None:
    for tenant in "abc":
        upsert(docs, tenant, x="y" * ord(tenant))
    assert worker(user="admin", tenants=None, all_tenants=True).run_once() == 3
    assert [vectors(docs, tenant) for tenant in "abc"] == [{"x": f"[{ord(tenant)},1,1]"} for tenant in "abc"]


def test_a_worker_for_all_tenants_finds_its_collection_by_an_alias(docs: Client, db: Client, database: Database, endpoint: Endpoint) -> None:
    db.run("select llm.set_collection_alias('texts', 'docs')")
    upsert(docs, "b", x="x")
    worker = Worker(database.cluster.dsn(database.name, "admin"), "texts", OpenAIEmbedder("m", url=endpoint.url), all_tenants=True)
    assert worker.run_once() == 1
    assert vectors(docs, "b") == {"x": "[1,1,1]"}
    worker.close()


def test_text_that_postgresql_cannot_hold_is_embedded_as_it_was(docs: Client, endpoint: Endpoint, worker: Callable[..., Worker]) -> None:
    upsert(docs, a="nul \u241b0000")
    worker().run_once()
    assert endpoint.requests[0]["input"] == ["nul \0"]


def test_the_command_works_until_it_is_told_to_stop(database: Database, docs: Client, endpoint: Endpoint) -> None:
    upsert(docs, a="x")
    command = [sys.executable, "-m", "pg_llm_client.embed", "--collection", "docs", "--model", "m", "--url", endpoint.url, "--tenant", "a"]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "OPENAI_API_KEY": KEY}
    dsn = ["--dsn", database.cluster.dsn(database.name, "app")]
    subprocess.run([*command, *dsn, "--once"], check=True, capture_output=True, env=environment)
    assert vectors(docs) == {"a": "[1,1,1]"}
    with subprocess.Popen([*command, *dsn, "--poll", "0.01"], stderr=subprocess.PIPE, text=True, env=environment) as running:
        upsert(docs, b="xy")
        until(lambda: vectors(docs)["b"] is not None)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate()
    assert running.returncode == 0
    assert "docs: 1 stored, 0 dropped" in said
    assert KEY not in said


def test_sentence_transformers_are_used_where_they_are_installed(monkeypatch: pytest.MonkeyPatch, database: Database, docs: Client) -> None:
    class Vectors(list[list[float]]):
        def tolist(self) -> list[list[float]]:
            return list(self)

    class SentenceTransformer:
        def __init__(self, model: str) -> None:
            assert model == "m"

        def encode(self, texts: list[str]) -> Vectors:
            return Vectors([len(text), 2, 2] for text in texts)

    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    upsert(docs, a="x")
    embed.main(["--collection", "docs", "--model", "m", "--sentence-transformers", "--once", "--tenant", "a",
                "--dsn", database.cluster.dsn(database.name, "app")])  # fmt: skip
    assert vectors(docs) == {"a": "[1,2,2]"}


def test_an_address_is_http() -> None:
    with pytest.raises(ValueError, match="is no HTTP address"):
        OpenAIEmbedder("m", url="file:///etc/passwd")

"""A worker that finds the vectors of a collection's texts: `pg-llm-embed`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import psycopg

from . import text
from .connection import Call, Row, Server, Steps, literal, vector_type

#: Returns a vector for each text. Raises `Refused` for what it never takes; any other exception may pass.
Embedder: TypeAlias = "Callable[[Sequence[str]], Sequence[Sequence[float]]]"

log = logging.getLogger("pg_llm_client.embed")


class Refused(Exception):
    """The model does not take these texts, now or later."""


class OpenAIEmbedder:
    """An endpoint of the shape of OpenAI's: `POST {url}/embeddings`."""

    #: What says that the request is at fault, not the endpoint.
    REFUSALS = (400, 413, 422)

    def __init__(self, model: str, *, url: str = "https://api.openai.com/v1", key: str | None = None, timeout: float = 30.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no HTTP address")
        self._model = model
        self._url = f"{url.rstrip('/')}/embeddings"
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._timeout = timeout

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Return a vector for each text."""
        body = json.dumps({"model": self._model, "input": list(texts), "encoding_format": "float"}).encode()
        request = urllib.request.Request(self._url, body, self._headers)  # noqa: S310 - http or https, see above
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:  # noqa: S310 - as above
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            message = f"HTTP {error.code}: {error.read(500).decode(errors='replace')}"
            raise (Refused if error.code in self.REFUSALS else ConnectionError)(message) from error
        found = sorted(answer["data"], key=lambda each: each["index"])
        return [each["embedding"] for each in found]


def sentence_transformers(model: str) -> Embedder:
    """Return an embedder by a model of sentence-transformers, which must be installed."""
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

    encoder = SentenceTransformer(model)
    return lambda texts: encoder.encode(list(texts)).tolist()


class Job(NamedTuple):
    """A text to embed."""

    id: int
    token: UUID
    content: str


class Worker:
    """Claims jobs of a collection, embeds them, and stores the vectors, until it is told to stop.

    `tenants`: whose jobs; None for the tenant that the role is bound to; `all_tenants`: of whoever has some, for members of llm_admin.
    `model`: only jobs for this model. `poll`: seconds between two questions when nothing is due.
    """

    def __init__(
        self,
        dsn: str,
        collection: str,
        embed: Embedder,
        *,
        model: str | None = None,
        tenants: Sequence[str] | None = None,
        all_tenants: bool = False,
        batch: int = 64,
        lease: float = 300.0,
        poll: float = 1.0,
    ) -> None:
        self._dsn = dsn
        self._collection = collection
        self._embed = embed
        self._model = model
        self._tenants: Sequence[str | None] = tenants or [None]
        self._all_tenants = all_tenants
        self._batch = batch
        self._lease = f"{lease} seconds"
        self._poll = poll
        self._stopped = threading.Event()
        self._connection: psycopg.Connection[Any] | None = None
        self._vector = ""

    def stop(self) -> None:
        """Let `run` return after the batch at hand."""
        self._stopped.set()

    def run(self) -> None:
        """Work until stopped. A server that is away is asked again, after a pause."""
        while not self._stopped.is_set():
            try:
                done = self.run_once()
            except psycopg.OperationalError as error:
                log.warning("the database cannot be reached: %s", error)
                self.close()
                done = 0
            if not done:
                self._stopped.wait(self._poll)
        self.close()

    def run_once(self) -> int:
        """Take a batch of each tenant, and return how many jobs there were."""
        return sum(self._work(tenant) for tenant in self._whose() if not self._stopped.is_set())

    def close(self) -> None:
        """Disconnect."""
        if self._connection:
            self._connection.close()
        self._connection = None

    def _whose(self) -> Iterable[str | None]:
        if not self._all_tenants:
            return self._tenants
        backlog = """
            select b.tenant_id
            from llm.embedding_backlog() b
            where b.collection = coalesce((select a.collection from llm.collection_aliases a where a.alias = %s), %s)
                and b.due > 0
        """
        return [tenant for (tenant,) in self._connected().execute(backlog, [self._collection, self._collection])]

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._dsn, autocommit=True, application_name="pg-llm-embed")
        return self._connection

    def _work(self, tenant: str | None) -> int:
        server = Server(self._connected(), tenant=tenant, user_id=None)
        if not self._vector:
            self._vector = server.run(vector_type())
        arguments = [self._collection, self._batch, self._lease, self._model]
        claim = "r.id, r.token, r.content", "claim_embedding_jobs", "text, integer, interval, text", arguments
        jobs = [Job(*row) for row in server.run(_ask(claim))]
        if jobs:
            self._settle(server, jobs)
        return len(jobs)

    def _settle(self, server: Server, jobs: Sequence[Job]) -> None:
        """Embed and complete jobs, or give them back."""
        try:
            self._complete(server, jobs, self._vectors(jobs))
        except Refused as error:
            if len(jobs) > 1:
                # One of them spoils the rest.
                for job in jobs:
                    self._settle(server, [job])
            else:
                self._fail(server, jobs, error, retry=False)
        except psycopg.OperationalError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever an embedder or a library of it may raise
            self._fail(server, jobs, error, retry=True)

    def _vectors(self, jobs: Sequence[Job]) -> Sequence[Sequence[float]]:
        vectors = self._embed([text.original(job.content) for job in jobs])
        if len(vectors) != len(jobs):
            raise ValueError(f"{len(vectors)} vectors came back for {len(jobs)} texts")
        return vectors

    def _complete(self, server: Server, jobs: Sequence[Job], vectors: Sequence[Sequence[float]]) -> None:
        arguments = [[job.id for job in jobs], jobs[0].token, list(map(literal, vectors))]
        try:
            ((stored, dropped),) = server.run(
                _ask(("r.stored, r.dropped", "complete_embedding_jobs", f"bigint[], uuid, {self._vector}[]", arguments))
            )
        except psycopg.DataError as error:
            # A vector that does not fit, such as one of length zero, spoils the others, too.
            if len(jobs) > 1:
                for job, vector in zip(jobs, vectors, strict=True):
                    self._complete(server, [job], [vector])
            else:
                self._fail(server, jobs, error, retry=True)
            return
        log.info("%s: %d stored, %d dropped", self._collection, stored, dropped)

    def _fail(self, server: Server, jobs: Sequence[Job], error: Exception, *, retry: bool) -> None:
        message = text.clean(f"{type(error).__name__}: {error}"[:2_000])
        log.warning("%s: %d failed: %s", self._collection, len(jobs), message)
        arguments = [[job.id for job in jobs], jobs[0].token, message, retry]
        server.run(_ask(("r.retried", "fail_embedding_jobs", "bigint[], uuid, text, boolean", arguments)))


def _ask(call: Call) -> Steps[list[Row]]:
    return (yield call)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="pg-llm-embed", description="Finds the vectors of texts that wait for them in a collection of pg_llm.")
    parser.add_argument("--collection", required=True, help="whose texts")
    parser.add_argument("--model", required=True, help="the model that embeds them; jobs for others are left alone")
    parser.add_argument("--dsn", default="", help="the database; by default as libpq finds it (PGHOST, PGDATABASE, …)")
    parser.add_argument("--url", default="https://api.openai.com/v1", help="an endpoint of the shape of OpenAI's; its key is in OPENAI_API_KEY")
    parser.add_argument("--sentence-transformers", action="store_true", help="embed right here, by sentence-transformers")
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--tenant", action="append", help="whose texts; again for more; by default the tenant that the role is bound to")
    whose.add_argument("--all-tenants", action="store_true", help="of all tenants, as a member of llm_admin")
    parser.add_argument("--batch", type=int, default=64, help="texts in one request (64)")
    parser.add_argument("--lease", type=float, default=300.0, help="seconds after which others may take the texts of a worker that crashed (300)")
    parser.add_argument("--poll", type=float, default=1.0, help="seconds between two questions when nothing is due (1)")
    parser.add_argument("--once", action="store_true", help="end when nothing is due")
    given = parser.parse_args(arguments)

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if given.sentence_transformers:
        embed = sentence_transformers(given.model)
    else:
        embed = OpenAIEmbedder(given.model, url=given.url, key=os.environ.get("OPENAI_API_KEY"))
    worker = Worker(
        given.dsn, given.collection, embed, model=given.model, tenants=given.tenant, all_tenants=given.all_tenants,
        batch=given.batch, lease=given.lease, poll=given.poll,
    )  # fmt: skip
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: worker.stop())
    if given.once:
        while worker.run_once():
            pass
        worker.close()
    else:
        worker.run()


if __name__ == "__main__":
    main()

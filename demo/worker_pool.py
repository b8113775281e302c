"""A small pool of LLM workers on real texts: queue, rate limit, circuit breaker, semantic cache, and a worker that is killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import sumprod
from time import monotonic, perf_counter, sleep
from typing import Any

import psycopg
from pg_llm_client.worker import Job, RetryLater, Worker

from demo.config import ask
from demo.packages import Package, Query, Vector, packages, queries
from demo.stage import Stage

MODEL = "tiny-1"
WORKERS = 3
TEXTS = 30
#: Similar enough to be given the same answer; see llm.semantic_cache_report() for how one finds out.
THRESHOLD = 0.8
#: How many requests the endpoint answers before it fails, and for how long it does.
FLAKY_AFTER, FLAKY_FOR = 12, 0.9


class Endpoint(ThreadingHTTPServer):
    """What a model's endpoint does: answers after a while, and sometimes not at all."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.outcomes: Counter[int] = Counter()
        self.flaky_until: float | None = None

    def outcome(self) -> int:
        """Return the status of the next answer: 503 for a while, once."""
        if self.flaky_until is None and self.outcomes[200] >= FLAKY_AFTER:
            self.flaky_until = monotonic() + FLAKY_FOR
        status = 503 if self.flaky_until and monotonic() < self.flaky_until else 200
        self.outcomes[status] += 1
        return status


class Handler(BaseHTTPRequestHandler):
    """Answers a request."""

    server: Endpoint

    def do_POST(self) -> None:
        """Answer with the first sentence of the prompt: a tiny model."""
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        status = self.server.outcome()
        sleep(0.02)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps({"answer": f"{prompt.splitlines()[0][:60]}."}).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Assistant:
    """What each worker does with a job: asks the cache, the limit, the breaker, and then the endpoint."""

    def __init__(self, connection: psycopg.Connection, url: str) -> None:
        self._connection = connection
        self._url = url

    def __call__(self, job: Job) -> dict[str, Any]:
        """Answer a prompt."""
        prompt, embedding = job.payload["prompt"], job.payload["embedding"]
        found = self._ask("select answer, similarity, prompt from llm.semantic_cache_get(%s, %s::text::vector, %s, %s)",
                          prompt, embedding, THRESHOLD, MODEL)  # fmt: skip
        if found:
            ((answer, similarity, known),) = found
            return {"answer": answer, "by": "cache, the same" if known == prompt else "cache, similar", "similarity": similarity, "known": known}
        ((allowed, wait),) = self._ask("select allowed, extract(epoch from retry_after)::float8 from llm.rate_limit('model', %s, 15, '0.5 s')", MODEL)
        if not allowed:
            raise RetryLater(wait, "rate limit")
        ((allowed, wait, probe),) = self._ask("select allowed, extract(epoch from retry_after)::float8, probe from llm.breaker_allow(%s)", MODEL)
        if not allowed:
            raise RetryLater(max(wait, 0.05), "breaker is open")
        try:
            answer = self._complete(prompt)
        except urllib.error.HTTPError as error:
            self._ask("select llm.breaker_failure(%s, %s, %s)", MODEL, probe, f"HTTP {error.code}")
            raise
        self._ask("select llm.breaker_success(%s, %s)", MODEL, probe)
        self._ask("select llm.semantic_cache_set(%s, %s::text::vector, to_jsonb(%s::text), %s)", prompt, embedding, answer, MODEL)
        return {"answer": answer, "by": "endpoint"}

    def _ask(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        return ask(self._connection, "acme", statement, *arguments)

    def _complete(self, prompt: str) -> str:
        request = urllib.request.Request(self._url, json.dumps({"prompt": prompt}).encode())  # noqa: S310 - our own endpoint
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - as above
            return str(json.load(response)["answer"])


def play(stage: Stage) -> None:
    """Play the scene."""
    stage.scene("A small LLM worker pool on real texts")
    logging.getLogger("pg_llm_client.worker").setLevel(logging.ERROR)  # jobs are meant to fail here
    with stage.connect("app") as app, endpoint() as server:
        ask(app, "acme", "select llm.set_queue('answers', p_max_attempts => 50, p_base_delay => '0.1 s', p_max_delay => '0.3 s', p_archive => true)")
        ask(app, "acme", "select llm.set_breaker(%s, p_failure_threshold => 3, p_timeout => '0.4 s')", MODEL)
        jobs = enqueue(stage, app)
        work(stage, app, server, jobs)
        tell(stage, app, server)
        kill(stage, app)


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """Run the endpoint."""
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def likeness(one: Vector, other: Vector) -> float:
    """Return the cosine of two embeddings."""
    return float(sumprod(one.values, other.values) / (sumprod(one.values, one.values) * sumprod(other.values, other.values)) ** 0.5)


def paraphrases(count: int) -> list[tuple[Query, Package]]:
    """Return the descriptions that have the most similar questions, with these."""
    known = {package.id: package for package in packages()}
    pairs = [(query, known[query.package]) for query in queries() if query.package in known]
    return sorted(pairs, key=lambda pair: likeness(pair[0].vector, pair[1].vector), reverse=True)[:count]


def enqueue(stage: Stage, app: psycopg.Connection) -> int:
    """Put a job for each text into the queue; later come those that others have asked before, in the same words and in others."""
    similar = paraphrases(4)
    texts = [(package.description, package.vector) for package in packages(TEXTS)] + [(package.description, package.vector) for _, package in similar]
    again = texts[:6] + [(query.text, query.vector) for query, _ in similar]
    statement = "select cardinality(llm.enqueue_many('answers', %s::jsonb[], %s))"
    stage.sql("select llm.enqueue_many('answers', payloads, p_priority => 0);")
    count = 0
    for batch, priority in ((texts, 0), (again, -1)):
        payloads = [json.dumps({"prompt": text, "embedding": str(vector)}) for text, vector in batch]
        ((found,),) = ask(app, "acme", statement, payloads, priority)
        count += found
    stage.say(f"  {len(texts)} descriptions of Debian packages, then {len(again)} that somebody asks again, {len(similar)} of them in other words.")
    return count


def work(stage: Stage, app: psycopg.Connection, server: Endpoint, jobs: int) -> None:
    """Let the workers run until all is done, and show how it went."""
    stage.say(f"{WORKERS} workers; at most 15 requests in half a second; the endpoint fails for a while; three failures in a row open the breaker:")
    look = """
        select s.ready, s.running, s.scheduled, (select count(*) from llm.job_archive where queue = 'answers'), coalesce(b.state, 'closed')
        from llm.queue_stats s
        left join llm.breakers b on b.service = %s
        where s.queue = 'answers'
        """
    seen: list[tuple[object, ...]] = []
    begin, shown = perf_counter(), -1.0
    with pool(stage, server), stage.step(f"{jobs} jobs") as step:
        while True:
            ((ready, running, scheduled, done, state),) = ask(app, "acme", look, MODEL)
            now = perf_counter() - begin
            step.progress(f"{done} done, breaker {state}")
            if not seen or state != seen[-1][5] or now > shown + 0.5 or done == jobs:
                seen.append((f"{now:.1f} s", ready, running, scheduled, done, state, server.outcomes[200], server.outcomes[503]))
                shown = now
            if done == jobs:
                break
            sleep(0.02)
        step.result = "all done"
    stage.table(("after", "ready", "running", "later", "done", "breaker", "HTTP 200", "HTTP 503"), seen)


@contextmanager
def pool(stage: Stage, server: Endpoint) -> Iterator[None]:
    """Run the workers, each with a connection for what it asks in between."""
    with ExitStack() as stack:
        workers = [
            Worker(
                stage.cluster.dsn("demo", "app"), "answers", Assistant(stack.enter_context(stage.connect("app")), server.url),
                tenants=["acme"], lease=10, poll=0.05, name=f"worker {number}",
            )
            for number in range(1, WORKERS + 1)
        ]  # fmt: skip
        threads = [threading.Thread(target=worker.run) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for worker in workers:
                worker.stop()
            for thread in threads:
                thread.join()


def tell(stage: Stage, app: psycopg.Connection, server: Endpoint) -> None:
    """Show who answered, a paraphrase, and the figures of the queue."""
    by = """
        select result ->> 'by', count(*), round(avg(attempts), 1), count(distinct worker)
        from llm.job_archive
        where queue = 'answers'
        group by 1
        order by 2 desc
        """
    stage.say("Who answered; each prompt was sent to the endpoint until it answered once:")
    stage.table(("answer by", "jobs", "attempts each", "workers"), ask(app, "acme", by))
    like = """
        select payload ->> 'prompt', left(split_part(result ->> 'known', E'\\n', 1), 50), round((result ->> 'similarity')::numeric, 3)
        from llm.job_archive
        where queue = 'answers' and result ->> 'by' = 'cache, similar'
        order by 3 desc
        limit 3
        """
    stage.table(("asked", "is like", "similarity"), ask(app, "acme", like))
    stage.sql("select * from llm.queue_metrics('1 minute');")
    metrics = """
        select queue, done, failed_attempts, to_char(wait_p50, 'SS.MS'), to_char(wait_p95, 'SS.MS'), to_char(run_p50, 'SS.MS')
        from llm.queue_metrics('1 minute')
        where queue = 'answers'
        """
    stage.table(("queue", "done", "failed attempts", "wait p50 s", "wait p95 s", "run p50 s"), ask(app, "acme", metrics))
    changes = "select action, count(*) from llm.audit_log where object_type = 'breaker' and object_id = %s group by 1 order by min(id)"
    with stage.connect() as superuser:
        events = ", ".join(f"{action} × {count}" for action, count in ask(superuser, "acme", changes, MODEL))
    stage.say(f"The endpoint was asked {server.outcomes.total()} times, {server.outcomes[503]} of them in vain. In the audit log: {events}.")


def kill(stage: Stage, app: psycopg.Connection) -> None:
    """Kill a worker in the middle of a job, and let another do it."""
    ask(app, "acme", "select llm.enqueue('fragile', '{\"prompt\": \"what becomes of me?\"}'), llm.set_queue('fragile', p_archive => true)")
    script = (
        "import time\nfrom pg_llm_client.worker import Worker\n"
        "def handle(job):\n    print(job.id, flush=True)\n    time.sleep(60)\n"
        f"Worker({stage.cluster.dsn('demo', 'app')!r}, 'fragile', handle, tenants=['acme'], lease=1, name='doomed').run()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        job = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    stage.say(f"A worker of another process is killed (kill -9) in the middle of job {job}. Its lease lasts a second; then:")
    other = Worker(stage.cluster.dsn("demo", "app"), "fragile", lambda job: f"done at attempt {job.attempt}", tenants=["acme"], name="survivor")
    with stage.step("another worker asks") as step:
        while not other.run_once():
            sleep(0.05)
        other.close()
        ((worker, result),) = ask(app, "acme", "select worker, result #>> '{}' from llm.job_archive where id = %s", job)
        step.result = f"{worker}: {result}"

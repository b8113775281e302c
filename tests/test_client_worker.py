"""The worker of the Python client: what it does with jobs, when it is woken, and what becomes of them when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pg_llm_client.worker import Discard, Job, RetryLater, Worker

from tests.support import Client, Database, wait_until
from tools.cluster import ROOT


@pytest.fixture
def make(database: Database, bound: Client) -> Iterator[Callable[..., Worker]]:
    """Make workers of queue q for tenant acme, to which the role is bound."""
    made: list[Worker] = []
    bound.run("select llm.set_queue('q', p_archive => true, p_base_delay => '0')")

    def worker(handle: Callable[[Job], object], user: str = "app", **more: Any) -> Worker:
        made.append(Worker(database.cluster.dsn(database.name, user), "q", handle, **({"poll": 0.05} | more)))
        return made[-1]

    yield worker
    for each in made:
        each.close()


@contextmanager
def running(worker: Worker) -> Iterator[None]:
    """Run a worker in a thread, and stop it."""
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(60)
        assert not thread.is_alive()


def states(client: Client) -> list[tuple[str, str | None]]:
    return client.rows("select state, last_error from llm.list_jobs('q')")


def test_jobs_are_done_and_their_results_kept(make: Callable[..., Worker], bound: Client) -> None:
    bound.run("select llm.enqueue_many('q', array['{\"n\": 1}', '{\"n\": 2}', '{\"n\": 3}']::jsonb[])")
    seen: list[Job] = []

    def handle(job: Job) -> object:
        seen.append(job)
        return {"square": job.payload["n"] ** 2, "text": "NUL \0"} if job.payload["n"] < 3 else None

    worker = make(handle, batch=2, name="w1")
    assert worker.run_once() == 2
    assert worker.run_once() == 1
    assert worker.run_once() == 0
    assert bound.column("select result ->> 'square' from llm.job_archive order by id") == ["1", "4", None]
    assert bound.column("select distinct worker from llm.job_archive") == ["w1"]
    assert [(job.attempt, job.tenant) for job in seen] == [(1, None)] * 3


def test_what_a_handler_raises_decides_what_becomes_of_the_job(make: Callable[..., Worker], bound: Client) -> None:
    for number in range(3):
        bound.run("select llm.enqueue('q', to_jsonb(%s::int))", number)

    def handle(job: Job) -> None:
        raise (ValueError("bad \0 luck"), Discard("never"), RetryLater(3600, "rate limit"))[job.payload]

    make(handle, batch=3).run_once()
    assert states(bound) == [("scheduled", "ValueError: bad ␛0000 luck"), ("dead", "Discard: never"), ("scheduled", "rate limit")]
    assert bound.one("select due_at - now() > interval '59 minutes' from llm.list_jobs('q') order by id desc limit 1")


def test_a_worker_is_woken_by_a_notification(make: Callable[..., Worker], bound: Client) -> None:
    """The poll alone would take an hour."""
    bound.run("select llm.set_queue('q', p_notify => true)")
    done = threading.Event()
    worker = make(lambda _: done.set(), poll=3600)
    with running(worker):
        wait_until(
            lambda: bound.one("select exists (select from pg_stat_activity where application_name = 'pg-llm-worker' and query ~ '^listen|claim')")
        )
        while not done.wait(0.1):
            bound.run("select llm.enqueue('q')")
        worker.stop()
        bound.run("select pg_notify(llm.queue_channel('q'), '')")


def test_a_killed_listener_comes_back_and_polls(make: Callable[..., Worker], bound: Client, db: Client) -> None:
    """Q-09: its backend is terminated; then nobody notifies, as for a job that is due later."""
    done: list[int] = []
    with running(make(lambda job: done.append(job.id))):
        first = bound.one("select llm.enqueue('q')")
        wait_until(lambda: done == [first])
        db.wait("select exists (select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pg-llm-worker')")
        second = bound.one("select llm.enqueue('q')")
        wait_until(lambda: done == [first, second])


def test_leases_are_extended_while_a_handler_works(make: Callable[..., Worker], bound: Client, database: Database) -> None:
    job = bound.one("select llm.enqueue('q')")
    begun, go_on = threading.Event(), threading.Event()

    def handle(_: Job) -> None:
        begun.set()
        assert go_on.wait(60)

    with running(make(handle, lease=0.6)):
        assert begun.wait(60)
        first = bound.one("select due_at from llm.jobs")
        wait_until(lambda: bound.one("select due_at > %s::timestamptz + interval '0.6 s' and due_at > clock_timestamp() from llm.jobs", first))
        assert database.client("app").rows("select id from llm.claim_jobs('q')") == [], "it would be free without"
        go_on.set()
        wait_until(lambda: bound.column("select id from llm.job_archive") == [job])


def test_a_worker_that_was_too_slow_drops_its_result(make: Callable[..., Worker], bound: Client, db: Client, database: Database) -> None:
    bound.run("select llm.enqueue('q')")
    thief = database.client("app")

    def handle(_: Job) -> str:
        db.run("update llm.jobs set due_at = now() - interval '1 s'")
        assert len(thief.rows("select id from llm.claim_jobs('q')")) == 1
        return "too late"

    worker = make(handle)
    assert worker.run_once() == 1
    assert [state for state, _ in states(bound)] == ["running"]
    assert bound.one("select count(*) from llm.job_archive") == 0


def test_a_handler_is_told_that_it_has_lost_its_job(make: Callable[..., Worker], bound: Client, db: Client) -> None:
    bound.run("select llm.enqueue('q')")
    noticed = threading.Event()

    def handle(job: Job) -> None:
        assert worker.holds(job)
        db.run("update llm.jobs set token = token + 1000")
        wait_until(lambda: not worker.holds(job))
        noticed.set()

    worker = make(handle, lease=0.3)
    with running(worker):
        assert noticed.wait(60)


def test_a_process_that_is_killed_loses_no_job(make: Callable[..., Worker], database: Database, bound: Client, db: Client) -> None:
    """Q-01: kill -9 in the middle of a job; another worker does it when the lease is over."""
    job = bound.one("select llm.enqueue('q')")
    script = (
        "import sys, time\nfrom pg_llm_client.worker import Worker\n"
        "def handle(job):\n    print('begun', flush=True)\n    time.sleep(600)\n"
        f"Worker({database.cluster.dsn(database.name, 'app')!r}, 'q', handle).run()\n"
    )
    path = os.pathsep.join([str(ROOT / "python/pg_llm_client/src"), *sys.path])
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGKILL)
    other = make(lambda job: f"attempt {job.attempt}")
    assert other.run_once() == 0
    db.run("update llm.jobs set due_at = now() - interval '1 s'")
    assert other.run_once() == 1
    assert bound.rows("select id, result from llm.job_archive") == [(job, "attempt 2")]


def test_a_stopped_worker_ends_what_it_does_and_gives_the_rest_back(make: Callable[..., Worker], bound: Client) -> None:
    bound.run("select llm.enqueue_many('q', array_fill('{}'::jsonb, array[5]))")
    workers: list[Worker] = []
    workers.append(make(lambda _: workers[0].stop(), batch=5))
    workers[0].run()
    assert [state for state, _ in states(bound)] == ["scheduled"] * 4
    assert bound.one("select count(*) from llm.job_archive") == 1


def test_a_worker_may_serve_all_tenants(make: Callable[..., Worker], database: Database) -> None:
    admin = database.client("admin")
    for tenant in "xyz":
        with admin.tenant(tenant):
            admin.run("select llm.enqueue('q')")
    seen: list[str | None] = []
    assert make(lambda job: seen.append(job.tenant), user="admin", all_tenants=True).run_once() == 3
    assert make(lambda job: seen.append(job.tenant), user="admin", tenants=["x", "y"]).run_once() == 0
    assert seen == ["x", "y", "z"]


def test_a_worker_enqueues_what_is_scheduled(make: Callable[..., Worker], bound: Client, db: Client) -> None:
    bound.run("select llm.schedule_job('s', 'q', '@daily')")
    db.run("update llm.job_schedules set next_at = now() - interval '1 s'")
    assert make(lambda _: None).run_once() == 0
    assert make(lambda _: None, schedules=True).run_once() == 1

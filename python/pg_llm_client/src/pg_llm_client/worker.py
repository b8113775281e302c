"""A worker that does the jobs of a queue: claims, calls a function, completes; `LISTEN` wakes it, asking again is what it relies on."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import psycopg
from psycopg import errors, sql

from . import text
from .connection import Row, Server, Steps

log = logging.getLogger("pg_llm_client.worker")

#: How many batches of one tenant are done before another's turn comes.
TURNS = 10


class Job(NamedTuple):
    """A job that a worker has."""

    id: int
    token: int
    payload: Any
    attempt: int
    priority: int
    group: str | None
    user_id: UUID | None
    created_at: datetime
    tenant: str | None


#: Does a job, and returns its result, for the archive, or None. What it raises fails the job, which comes back later.
Handler: TypeAlias = "Callable[[Job], object]"


class Discard(Exception):
    """The job cannot be done, now or later: it is given up at once."""


class RetryLater(Exception):
    """The job comes back after so many seconds, which somebody else has said: a rate limit, a circuit breaker."""

    def __init__(self, seconds: float, reason: str = "") -> None:
        super().__init__(reason or f"again in {seconds:g} s")
        self.seconds = seconds


class Worker:
    """Does the jobs of a queue, until it is told to stop.

    `tenants`: whose jobs; None for the tenant that the role is bound to; `all_tenants`: of whoever has some, for members of llm_admin.
    `batch`: jobs that are claimed at a time, done one after the other. `lease`: seconds after which others may take the jobs of a worker that
    crashed; it is extended while the handler works. `poll`: seconds between two questions when nothing is due. `schedules`: also enqueue the
    scheduled jobs of these tenants. Several workers share nothing: start as many as you like, in threads or processes.
    """

    def __init__(
        self,
        dsn: str,
        queue: str,
        handle: Handler,
        *,
        tenants: Sequence[str] | None = None,
        all_tenants: bool = False,
        batch: int = 1,
        lease: float = 60.0,
        poll: float = 1.0,
        listen: bool = True,
        schedules: bool = False,
        name: str | None = None,
    ) -> None:
        self._dsn = dsn
        self._queue = queue
        self._handle = handle
        self._tenants: Sequence[str | None] = tenants or [None]
        self._all_tenants = all_tenants
        self._batch = batch
        self._lease = lease
        self._poll = poll
        self._listen = listen and not all_tenants
        self._schedules = schedules
        self._name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._stopped = threading.Event()
        self._connection: psycopg.Connection[Any] | None = None
        self._held: dict[int, Job] = {}
        self._lost: set[int] = set()
        self._guard = threading.Lock()

    def stop(self) -> None:
        """Let `run` return when the jobs at hand are done."""
        self._stopped.set()

    def holds(self, job: Job) -> bool:
        """Tell a handler whether the job is still its own; False when others may have it, because no extension came through in time."""
        with self._guard:
            return job.id in self._held and job.id not in self._lost

    def run(self) -> None:
        """Work until stopped. A server that is away is asked again, after a pause."""
        ended = threading.Event()
        heart = threading.Thread(target=self._beat, args=(ended,), name="pg_llm worker's leases", daemon=True)
        heart.start()
        try:
            while not self._stopped.is_set():
                try:
                    if not self._round(TURNS):
                        self._wait()
                except psycopg.OperationalError as error:
                    log.warning("the database cannot be reached: %s", error)
                    self._disconnect()
                    self._stopped.wait(self._poll)
        finally:
            ended.set()
            heart.join()
            self.close()

    def run_once(self) -> int:
        """Take a batch of each tenant, and return how many jobs there were. Leases are not extended."""
        return self._round(1)

    def close(self) -> None:
        """Disconnect."""
        self._disconnect()
        with self._guard:
            self._held.clear()
            self._lost.clear()

    def _round(self, turns: int) -> int:
        return sum(self._work(tenant, turns) for tenant in list(self._whose()) if not self._stopped.is_set())

    def _whose(self) -> Iterable[str | None]:
        if not self._all_tenants:
            return self._tenants
        backlog = "select tenant_id from llm.queue_backlog() where queue = %s and due > 0"
        return [tenant for (tenant,) in self._connected().execute(backlog, [self._queue])]

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            connection = psycopg.connect(self._dsn, autocommit=True, application_name="pg-llm-worker")
            for tenant in self._tenants if self._listen else ():
                ((channel,),) = Server(connection, tenant=tenant, user_id=None).run(_ask("r", "queue_channel", "text", self._queue))
                connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None

    def _wait(self) -> None:
        """Wait until jobs may be there."""
        if not self._listen:
            self._stopped.wait(self._poll)
            return
        for _ in self._connected().notifies(timeout=self._poll, stop_after=1):
            pass

    def _server(self, tenant: str | None) -> Server:
        return Server(self._connected(), tenant=tenant, user_id=None)

    def _work(self, tenant: str | None, turns: int) -> int:
        """Do up to so many batches of a tenant, and return how many jobs they had."""
        if self._schedules:
            self._server(tenant).run(_ask("r", "fire_schedules", "integer", 1_000))
        count = 0
        done: tuple[Job, object] | None = None
        for turn in range(turns):
            jobs = self._claim(tenant, done)
            done = None
            count += len(jobs)
            for number, job in enumerate(jobs):
                if self._stopped.is_set() and number:
                    # Others may have the rest now, not when the lease ends.
                    self._fail(job, "the worker was stopped", retry=True, delay=0)
                elif (result := self._do(job)) is not _FAILED:
                    is_last = number == len(jobs) - 1
                    if is_last and turn < turns - 1 and not self._stopped.is_set():
                        done = job, result
                    else:
                        self._complete(job, result)
            if not jobs or self._stopped.is_set():
                break
        return count

    def _do(self, job: Job) -> object:
        """Call the handler; what it raises fails the job."""
        try:
            result = self._handle(job)
        except Discard as error:
            self._fail(job, _message(error), retry=False)
        except RetryLater as error:
            self._fail(job, str(error), retry=True, delay=error.seconds)
        except Exception as error:  # noqa: BLE001 - whatever a handler may raise
            self._fail(job, _message(error), retry=True)
        else:
            return result
        return _FAILED

    def _claim(self, tenant: str | None, done: tuple[Job, object] | None) -> list[Job]:
        """Claim jobs; in the same call, complete the last one of those before."""
        columns = "r.id, r.token, r.payload::text, r.attempt, r.priority, r.group_key, r.user_id, r.created_at"
        casts = "text, integer, interval, text, bigint[], bigint, jsonb[]"
        completed: tuple[object, ...] = (None, None, None)
        if done:
            job, result = done
            completed = [job.id], job.token, [_json(result)]
        try:
            arguments = self._queue, self._batch, timedelta(seconds=self._lease), self._name, *completed
            rows = self._server(tenant).run(_ask(columns, "claim_jobs", casts, *arguments))
        except errors.ObjectNotInPrerequisiteState:
            if done is None:
                raise
            self._drop(done[0])
            return self._claim(tenant, None)
        if done:
            self._let_go(done[0])
        jobs = [Job(*(*row[:2], text.loads(row[2]), *row[3:], tenant)) for row in rows]
        with self._guard:
            self._held.update({job.id: job for job in jobs})
        return jobs

    def _complete(self, job: Job, result: object) -> None:
        self._settle(job, "complete_jobs", "bigint[], bigint, jsonb[]", [job.id], job.token, [_json(result)])

    def _fail(self, job: Job, message: str, *, retry: bool, delay: float | None = None) -> None:
        log.log(logging.WARNING if delay is None else logging.INFO, "job %s of queue %s failed: %s", job.id, self._queue, message)
        seconds = None if delay is None else timedelta(seconds=max(0.0, delay))
        casts = "bigint[], bigint, text, boolean, interval"
        self._settle(job, "fail_jobs", casts, [job.id], job.token, text.clean(message), retry, seconds)

    def _settle(self, job: Job, function: str, casts: str, *arguments: object) -> None:
        """Say what became of a job; twice, if the connection is lost, which may mean that it was said: then the server refuses it."""
        for attempt in (1, 2):
            try:
                self._server(job.tenant).run(_ask("r", function, casts, *arguments))
                break
            except errors.ObjectNotInPrerequisiteState:
                self._drop(job)
                break
            except psycopg.OperationalError:
                self._disconnect()
                if attempt == 2:
                    self._let_go(job)
                    raise
        self._let_go(job)

    def _drop(self, job: Job) -> None:
        log.warning("job %s of queue %s is somebody else's by now, or done: its result is dropped", job.id, self._queue)
        self._let_go(job)

    def _let_go(self, job: Job) -> None:
        with self._guard:
            self._held.pop(job.id, None)
            self._lost.discard(job.id)

    def _beat(self, ended: threading.Event) -> None:
        """Extend the leases of the jobs at hand, three times before they end."""
        while not ended.wait(self._lease / 3):
            with self._guard:
                held = list(self._held.values())
            for job in held:
                self._extend(job)

    def _extend(self, job: Job) -> None:
        connection = self._connection
        if connection is None:
            return
        arguments = [job.id], job.token, timedelta(seconds=self._lease)
        try:
            server = Server(connection, tenant=job.tenant, user_id=None)
            ((kept,),) = server.run(_ask("r", "extend_jobs", "bigint[], bigint, interval", *arguments))
        except psycopg.Error as error:
            log.warning("the lease of job %s could not be extended: %s", job.id, error)
            return
        with self._guard:
            if job.id not in kept and job.id in self._held:
                self._lost.add(job.id)


class _Failed:
    """Stands for the result of a job that has none."""


_FAILED = _Failed()


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2_000]


def _json(result: object) -> str | None:
    return None if result is None else text.dumps(result)


def _ask(columns: str, function: str, casts: str, *arguments: object) -> Steps[list[Row]]:
    return (yield columns, function, casts, arguments)

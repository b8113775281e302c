"""The audit log beside a plain INSERT into the same table: see README.md for what is compared with what."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from bench.support import AtLeast, database, fact, line, medians, once, one, per_call, pgbench, title
from tools.cluster import Cluster

DETAILS = json.dumps({"model": "gpt-5", "tokens": 1234, "note": "x" * 200})

EVENT = f"select llm.log_audit_event('call', 'model', 'gpt-5', '{DETAILS}', 'ann')"
INSERT = f"""
    insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, details)
    values ('acme', 'ann', 'call', 'model', 'gpt-5', '{DETAILS}')
    """.replace("\n", " ")  # fmt: skip

BATCH = 1000


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with database(cluster, "audit") as superuser:
        superuser.execute("grant llm_app to bound").execute("select llm.bind_role('bound', 'acme')")
        by_clients(cluster, quick=quick)
        with flush_of_5_ms(superuser):
            by_clients(cluster, quick=quick, slow=True)
        many_at_once(cluster, quick=quick)
        reads(superuser, quick=quick)


def by_clients(cluster: Cluster, *, quick: bool, slow: bool = False) -> None:
    """Compare one event a transaction, at several numbers of clients."""
    title("log_audit_event, one a transaction" + (", with a flush of 5 ms (commit_delay)" if slow else "") + "; peer: INSERT into the same table")
    for clients in (1, 4, 16):
        transactions = (200 if slow else 2000) // (4 if quick else 1)
        time = medians(
            3 if quick else 7,
            ours=pgbench(cluster, "audit", "bound", EVENT + ";", clients=clients, transactions=transactions),
            plain=pgbench(cluster, "audit", "postgres", INSERT + ";", clients=clients, transactions=transactions),
        )
        line(f"{clients} clients", time["ours"], "INSERT by a superuser", time["plain"], AtLeast(0.8))


@contextmanager
def flush_of_5_ms(superuser: psycopg.Connection) -> Iterator[None]:
    """Let every commit wait as on a disk that takes 5 ms for a flush."""
    for setting in ("commit_delay = 5000", "commit_siblings = 0"):
        superuser.execute(f"alter system set {setting}")
    superuser.execute("select pg_reload_conf()")
    yield
    superuser.execute("alter system reset all").execute("select pg_reload_conf()")


def many_at_once(cluster: Cluster, *, quick: bool) -> None:
    """Compare the ways in for many events, in one transaction each."""
    event = ("call", "model", "gpt-5", DETAILS, "ann")
    batch = json.dumps([{"action": "call", "object_type": "model", "object_id": "gpt-5", "details": json.loads(DETAILS), "user_id": "ann"}] * BATCH)
    with cluster.connect("audit", "bound", autocommit=False) as client:
        client.prepare_threshold = 0

        def single() -> None:
            client.execute("select llm.log_audit_event(%s, %s, %s, %s::jsonb, %s)", event)

        def copied() -> None:
            with (
                client.cursor() as cursor,
                cursor.copy("copy llm.audit_events (action, object_type, object_id, details, user_id) from stdin") as copy,
            ):
                for _ in range(BATCH):
                    copy.write_row(event)

        time = medians(
            3 if quick else 9,
            single=per_call(single, BATCH),
            batch=once(lambda: client.execute("select llm.log_audit_events(%s::jsonb)", (batch,)), BATCH),
            copied=once(copied, BATCH),
        )
        client.rollback()
    title(f"an event of {BATCH} in one transaction, through psycopg; peer: log_audit_event, event by event")
    line("log_audit_events", time["batch"], "event by event", time["single"], AtLeast(2.5))
    line("copy llm.audit_events", time["copied"], "event by event", time["single"], AtLeast(5))


def reads(superuser: psycopg.Connection, *, quick: bool) -> None:
    """Show what reading costs among many events."""
    events = 100_000 if quick else 1_000_000
    superuser.execute(
        """
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, details)
        select 'tenant ' || i %% 7, 'user ' || (i * 7919) %% 1000, 'call', 'model', 'object ' || i, jsonb_build_object('n', i)
        from generate_series(1, %s) i
        """,
        [events],
    )
    superuser.execute("insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id) values ('tenant 1', 'seldom', 'x', 'y', 'z')")
    superuser.execute("vacuum analyze llm.audit_log")
    last = one(superuser, "select max(id) from llm.audit_log where tenant_id = 'tenant 3'")
    print(f"\nget_audit_logs, 100 events, among {events:,} events")
    for what, arguments in (
        ("the newest of a tenant", ""),
        ("the next page", f"p_before_id => {last}"),
        ("of a user", "'user 777'"),
        ("of a user who is seldom seen", "'seldom'"),
        ("of one object", "p_object_id => 'object 4711'"),
    ):
        fact(what, f"{read(superuser, arguments)() / 1000:,.1f} ms")


def read(superuser: psycopg.Connection, arguments: str) -> Callable[[], float]:
    """Return a probe that reads events of one tenant."""

    def call() -> None:
        with superuser.transaction():
            superuser.execute("select llm.set_tenant('tenant 3')")
            superuser.execute(f"select count(*) from llm.get_audit_logs({arguments})")

    return per_call(call, 11)

"""Auditing of row changes beside the design that supa_audit publishes: see README.md for what is compared with what."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psycopg

from bench.support import AtLeast, AtMost, database, line, medians, once, per_call, pinned, title
from tools.cluster import Cluster

PEER = Path(__file__).with_name("peer_audit.sql")
TABLES = ("ours", "peer", "bare")


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with database(cluster, "audit_table") as superuser:
        superuser.execute(PEER.read_text())
        for table in TABLES:
            superuser.execute(f"create table {table} (id bigint primary key, name text, number integer, changed_at timestamptz)")
        superuser.execute("select llm.audit_table('ours')")
        superuser.execute("create trigger audit after insert or update or delete on peer for each row execute function peer_audit.on_change()")
        # Client and server on one core: a wake-up across cores costs more than what is compared.
        with pinned({os.getpid(): 0, superuser.info.backend_pid: 0}):
            for rows, factor in ((1, 4), (1000, 7)):
                compare(superuser, rows, factor, quick=quick)
            inside(superuser, quick=quick)


def compare(connection: psycopg.Connection, rows: int, factor: float, *, quick: bool) -> None:
    """Compare statements that change so many rows, each in a transaction of its own, not waiting for the disk."""
    connection.execute("set synchronous_commit = off")
    calls = (100 if quick else 400) if rows == 1 else 4
    rounds = 3 if quick else 9
    title(f"a row of an audited table, statements of {rows} rows; peer: supa_audit's published design")
    next_id = dict.fromkeys(TABLES, 0)

    def insert(table: str) -> Callable[[], object]:
        statement = (
            f"insert into {table} values (%s::bigint, 'name', 1, now())"
            if rows == 1
            else f"insert into {table} select i, 'name ' || i, i, now() from generate_series(%s::bigint, %s::bigint) i"
        )

        def call() -> object:
            first = next_id[table] + 1
            next_id[table] += rows
            return connection.execute(statement, (first,) if rows == 1 else (first, next_id[table]))

        return call

    def change(table: str, statement: str) -> Callable[[], object]:
        def call() -> object:
            last = next_id[table]
            if statement.startswith("delete"):
                next_id[table] -= rows
            return connection.execute(statement, (last - rows + 1, last))

        return call

    def probe(call: Callable[[], object]) -> Callable[[], float]:
        if rows == 1:
            return per_call(call, calls)

        def several() -> None:
            for _ in range(calls):
                call()

        return once(several, calls * rows)

    for what, calls_by_table in (
        ("insert", {table: insert(table) for table in TABLES}),
        ("update", {table: change(table, f"update {table} set number = number + 1 where id between %s and %s") for table in TABLES}),
        ("delete", {table: change(table, f"delete from {table} where id between %s and %s") for table in TABLES}),
    ):
        time = medians(rounds, **{table: probe(call) for table, call in calls_by_table.items()})
        line(f"{what}, audited", time["ours"], "row trigger, uuid v5, three indexes", time["peer"], AtLeast(factor))
        line(f"{what}, audited", time["ours"], "the same table, not audited", time["bare"], AtMost(4) if rows == 1 else None)


def inside(connection: psycopg.Connection, *, quick: bool) -> None:
    """Compare statements that change one row, many in a transaction, by a loop in the server: no client and no commit takes part."""
    title("a row of an audited table, statements of 1 row, in a loop in the server; peer: supa_audit's published design")
    count, rounds = (200, 3) if quick else (1000, 9)
    next_id = dict.fromkeys(TABLES, 0)
    connection.execute("truncate " + ", ".join(TABLES))

    def probe(table: str, statement: str) -> Callable[[], float]:
        def call() -> object:
            if statement.startswith("insert"):
                next_id[table] += count
            last = next_id[table]
            if statement.startswith("delete"):
                next_id[table] -= count
            return connection.execute(f"do $$ begin for i in {last - count + 1}..{last} loop {statement}; end loop; end $$")

        return once(call, count)

    for what, statement in (
        ("insert", "insert into {} values (i, 'name ' || i, i, now())"),
        ("update", "update {} set number = number + 1 where id = i"),
        ("delete", "delete from {} where id = i"),
    ):
        time = medians(rounds, **{table: probe(table, statement.format(table)) for table in TABLES})
        line(f"{what}, audited", time["ours"], "row trigger, uuid v5, three indexes", time["peer"])
        line(f"{what}, audited", time["ours"], "the same table, not audited", time["bare"])

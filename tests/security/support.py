"""Walks over schema llm: every function, callable with sample arguments; every relation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from tests.support import Client

#: An argument of each type that functions of schema llm take. A function with another type needs a line here.
SAMPLES: dict[str, Any] = {
    "bigint": 1,
    "bigint[]": [1],
    "boolean": True,
    "bytea": b"bytes",
    "bytea[]": [b"bytes"],
    "inet": "192.0.2.1",
    "integer": 1,
    "integer[]": [1],
    "interval": timedelta(hours=1),
    "jsonb": '{"a": 1}',
    "jsonb[]": ['{"a": 1}'],
    "llm.collection": None,
    "regconfig": "english",
    "double precision[]": [1.0],
    "vector": "[1,2,3]",
    "vector[]": ["[1,2,3]"],
    "llm.audit_access": None,
    "llm.audit_analysis": "(,1,{read},,{})",
    "llm.authentication_event": "login",
    "llm.encryption": "(,,,)",
    "llm.security_event": "api_key_used",
    "llm.security_policy": "({},{aes-256-cbc},256,90,f)",
    "llm.memory": None,
    "llm.partition_action": "(llm.config,keep,llm.config,,,)",
    "llm.stream_window": "(0,0,0,-infinity,1,3,3,)",
    "llm.partition_strategy": "(llm.config,tenant_id,monthly,)",
    "name": "auditor",
    "oid": 1,
    "pg_snapshot": "3:3:",
    "regclass": "llm.config",
    "double precision": 1.0,
    "tsquery": "probe",
    "text": "probe",
    "text[]": ["probe"],
    "timestamp with time zone": datetime.fromisoformat("2100-01-01T00:00:00+00:00"),
    "timestamp with time zone[]": [datetime.fromisoformat("2100-01-01T00:00:00+00:00")],
    "tstzrange": "[2026-01-01,)",
    "uuid": UUID(int=7),
    "uuid[]": [UUID(int=7)],
    "xid8": "3",
}

#: Text that a function takes as part of its value.
TEXT_TYPES = ("text", "jsonb", "name", "text[]")

#: Functions whose numbers, or random texts, every call changes, and how many rows they give: only whether there is one is compared.
COUNTERS = (
    "coherence_stats", "_newest_transaction", "_key_start", "_new_key", "_note_key_event",
    "cache_fetch", "cache_stats", "cache_token", "_cache_claim", "_cache_counts", "_cache_life", "_cache_note_writes", "_cache_snapshot",
    "_begin_thread", "_new_mfa_secret", "_new_token", "_password_hash",
    "enqueue", "enqueue_many",
    "semantic_cache_get", "semantic_cache_set", "_take_in_memory",
)  # fmt: skip

#: What a call came to: its rows, or the SQLSTATE and message of its error.
type Outcome = list[tuple[Any, ...]] | tuple[str, str]


@dataclass(frozen=True)
class Function:
    """A function of schema llm that a statement can call, as the catalogue describes it."""

    signature: str
    name: str
    types: tuple[str, ...]
    casts: tuple[str, ...]
    volatility: str
    is_definer: bool
    is_variadic: bool

    @property
    def call(self) -> sql.Composed:
        """The statement that calls it, with a parameter for each argument."""
        parameters = ["%s::" + cast for cast in self.casts]
        if self.is_variadic:
            parameters[-1] = "variadic " + parameters[-1]
        arguments = sql.SQL(", ").join(map(sql.SQL, parameters))
        return sql.SQL("select * from llm.{}({})").format(sql.Identifier(self.name), arguments)

    def arguments(self, samples: Mapping[str, Any] = SAMPLES) -> list[Any]:
        """Return one sample for each argument."""
        missing = set(self.types) - samples.keys()
        assert not missing, f"{self.signature} takes {missing}: add a sample to tests/security/support.py"
        return [samples[kind] for kind in self.types]

    def arguments_with(self, texts: tuple[str, ...], samples: Mapping[str, Any] = SAMPLES) -> Iterator[list[Any]]:
        """Yield the samples with each combination of these texts in its text arguments."""
        choices = [texts if kind == "text" else (sample,) for kind, sample in zip(self.types, self.arguments(samples), strict=True)]
        yield from (list(chosen) for chosen in product(*choices))

    def outcome(self, client: Client, arguments: list[Any] | None = None) -> Outcome:
        """Call it in a transaction, or a savepoint of the one that is open, undo what it did, and return what it came to."""
        try:
            with client.connection.transaction(force_rollback=True):
                cursor = client.connection.execute(self.call, self.arguments() if arguments is None else arguments)
                return cursor.fetchall()
        except psycopg.Error as error:
            return error.sqlstate or "", error.diag.message_primary or str(error)


def functions(db: Client, role: str | None = None) -> list[Function]:
    """Return all functions of schema llm but triggers; with a role, those that it may execute."""
    rows = db.rows(
        """
        select
            p.oid::regprocedure::text,
            p.proname::text,
            array(select format_type(t.oid, null) from unnest(p.proargtypes) with ordinality a (type, position) join pg_type t on t.oid = a.type
                  order by a.position),
            array(select format('%%I.%%I', t.typnamespace::regnamespace, t.typname)
                  from unnest(p.proargtypes) with ordinality a (type, position) join pg_type t on t.oid = a.type
                  order by a.position),
            p.provolatile::text,
            p.prosecdef,
            p.provariadic <> 0
        from pg_proc p
        where p.pronamespace = 'llm'::regnamespace
            and p.prokind = 'f'
            and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)
            and (%s::text is null or has_function_privilege(%s::text, p.oid, 'execute'))
        order by 1
        """,
        role,
        role,
    )
    assert rows, "schema llm has no function"
    return [Function(signature, name, tuple(types), tuple(casts), *rest) for signature, name, types, casts, *rest in rows]


def relations(db: Client, kinds: str = "rpvmS") -> list[str]:
    """Return the qualified names of schema llm's relations of these kinds (relkind)."""
    names = db.column(
        """
        select format('%%I.%%I', 'llm', c.relname)
        from pg_class c
        where c.relnamespace = 'llm'::regnamespace and c.relkind::text = any (string_to_array(%s, null))
        order by 1
        """,
        kinds,
    )
    return [str(name) for name in names]


def tenant_tables(db: Client, reader: str | None = None) -> list[str]:
    """Return the qualified names of the tables whose rows are a tenant's, without partitions; with a role, those that it may read."""
    return db.column(
        """
        select format('llm.%%I', c.relname)
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
        where c.relnamespace = 'llm'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
            and (%s::text is null or has_column_privilege(%s::text, c.oid, a.attnum, 'select'))
        order by 1
        """,
        reader,
        reader,
    )


def unlogged_relations(db: Client) -> list[str]:
    """Return the qualified names of the tables that a crash empties and a standby cannot read, and of the views that read them."""
    return db.column(
        """
        with recursive unlogged (oid) as (
            select c.oid
            from pg_class c
            where c.relnamespace = 'llm'::regnamespace and c.relkind in ('r', 'p') and c.relpersistence = 'u'
            union
            select w.ev_class
            from unlogged u
            join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = u.oid and d.classid = 'pg_rewrite'::regclass
            join pg_rewrite w on w.oid = d.objid
        )
        select format('llm.%I', c.relname)
        from pg_class c
        join unlogged u using (oid)
        order by 1
        """
    )


def answers(client: Client, callable_functions: list[Function]) -> dict[str, Outcome]:
    """Return what every function comes to for tenant a, by signature."""
    return {function.signature: _steady(function, client) for function in callable_functions}


def changed(now: dict[str, Outcome], clean: dict[str, Outcome]) -> dict[str, tuple[Outcome, Outcome]]:
    """Return the answers that are not what they were."""
    return {signature: (outcome, clean[signature]) for signature, outcome in now.items() if outcome != clean[signature]}


def _steady(function: Function, client: Client) -> Outcome:
    with client.tenant("a"):
        outcome = function.outcome(client)
    if isinstance(outcome, tuple):
        return outcome
    if function.name in COUNTERS:
        return [()] * min(len(outcome), 1)
    return [tuple(type(value) if isinstance(value, (date, timedelta, UUID)) else value for value in row) for row in outcome]

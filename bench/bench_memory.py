"""Facts as of a time, and remembering, beside a table of one's own: see README.md for what is compared with what."""

from __future__ import annotations

import json
from itertools import count

import psycopg

from bench.support import AtLeast, application, database, fact, line, medians, once, per_call, title
from tools.cluster import Cluster

OWNERS, FACTS = 1000, 100

#: What a careful user would write: both times, the tenant's rows only, an index that leads to them, the same row-level security.
_OWN_TABLE = """
    create table public.facts (
        tenant_id text not null, owner text not null, key text not null, value jsonb not null, content text not null,
        valid_from timestamptz not null, valid_to timestamptz, known_from timestamptz not null, known_to timestamptz
    );
    insert into public.facts
    select m.tenant_id, m.owner, m.predicate, m.value, m.content, lower(m.valid), upper(m.valid), lower(m.known), upper(m.known) from llm.memories m;
    create index on public.facts (tenant_id, owner, key);
    alter table public.facts enable row level security;
    create policy tenant on public.facts using (tenant_id = (select current_setting('llm.tenant')));
    grant select, insert, update on public.facts to app;
    analyze public.facts;
    """

_OWN_AS_OF = """
    select * from public.facts
    where tenant_id = 'acme' and owner = %s and valid_from <= now() and (valid_to is null or valid_to > now())
        and known_from <= now() and (known_to is null or known_to > now())
    order by key
    """

_AS_OF = "select * from llm.memory_as_of(now(), 'agent', %s)"


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with database(cluster, "memory") as superuser:
        superuser.execute("grant llm_app to app")
        fill(superuser)
        with application(cluster, "memory") as client:
            reads(client, quick=quick)
            writes(client, quick=quick)


def fill(superuser: psycopg.Connection) -> None:
    """Make facts of a tenant, and a table of one's own with the same."""
    superuser.execute(
        """
        insert into llm.memories (tenant_id, scope, owner, predicate, value, content, valid, known)
        select 'acme', 'agent', 'owner ' || o, 'predicate ' || p, to_jsonb(p), 'Fact ' || p || ' of ' || o,
               tstzrange(now() - interval '1 day', null), tstzrange(now() - interval '1 day', null)
        from generate_series(1, %s) o, generate_series(1, %s) p
        """,
        [OWNERS, FACTS],
    )
    for statement in _OWN_TABLE.split(";\n")[:-1]:
        superuser.execute(statement)
    superuser.execute("analyze llm.memories")


def reads(client: psycopg.Connection, *, quick: bool) -> None:
    """Compare all facts of an owner as of a time, and one of them; search for some."""
    owners = count()

    def owner() -> str:
        return f"owner {next(owners) * 7919 % OWNERS + 1}"

    calls, rounds = (200, 3) if quick else (1000, 9)
    time = medians(
        rounds,
        ours=per_call(lambda: client.execute(_AS_OF, [owner()]).fetchall(), calls),
        own=per_call(lambda: client.execute(_OWN_AS_OF, [owner()]).fetchall(), calls),
        one=per_call(lambda: client.execute("select * from llm.memory_as_of(now(), 'agent', %s, '', 'predicate 7')", [owner()]).fetchall(), calls),
        own_one=per_call(lambda: client.execute(_OWN_AS_OF.replace("order", "and key = 'predicate 7' order"), [owner()]).fetchall(), calls),
        search=per_call(lambda: client.execute("select * from llm.search_memories('fact 42', 'agent', %s)", [owner()]).fetchall(), calls // 10),
    )
    title(f"memory as of a time, among {OWNERS * FACTS:,} facts; peer: prepared SQL on a table of one's own")
    line(f"the {FACTS} facts of an owner", time["ours"], "the same rows, 9 columns", time["own"], AtLeast(0.5))
    line("one of them", time["one"], "the same row, 9 columns", time["own_one"], AtLeast(0.3))
    fact(f"search in the {FACTS} facts of an owner", f"{time['search']:,.0f} us")


def writes(client: psycopg.Connection, *, quick: bool) -> None:
    """Compare a new value of a known fact; show what a batch costs."""
    numbers = count()

    def own() -> None:
        number = next(numbers)
        place = (f"owner {number * 7919 % OWNERS + 1}", "predicate 9")
        client.execute(
            "update public.facts set known_to = clock_timestamp() where tenant_id = 'acme' and owner = %s and key = %s and known_to is null", place
        )
        client.execute("insert into public.facts values ('acme', %s, %s, %s, '', clock_timestamp(), null, clock_timestamp())", (*place, str(number)))

    def ours() -> None:
        number = next(numbers)
        client.execute("select llm.remember('agent', %s, 'predicate 8', %s::jsonb)", (f"owner {number * 7919 % OWNERS + 1}", str(number)))

    def batch() -> None:
        start = next(numbers) * 1000
        facts = [{"scope": "agent", "owner": f"new {start}", "predicate": f"p {number}", "value": number} for number in range(1000)]
        client.execute("select count(*) from llm.remember_all(%s::jsonb)", [json.dumps(facts)])

    calls, rounds = (100, 3) if quick else (300, 7)
    time = medians(rounds, ours=per_call(ours, calls), own=per_call(own, calls), batch=once(batch, 1000))
    title("another value of a known fact; peer: UPDATE and INSERT, without the rest of the old validity, without a constraint")
    line("remember", time["ours"], "two statements", time["own"])
    fact("remember_all, a new fact of 1,000", f"{time['batch']:,.0f} us")

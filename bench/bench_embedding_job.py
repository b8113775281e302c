"""Embedding jobs beside a queue by hand: what writers pay, and what workers do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from time import perf_counter
from typing import Any

import psycopg

from bench.support import Probe, database, line, medians, once, title
from demo.packages import DIMENSIONS, Package, packages
from tools.cluster import Cluster

WRITTEN, CLAIMED = 1_000, 64

CLAIM = "select id, token, content from llm.claim_embedding_jobs('queued', %s)"
COMPLETE = "select llm.complete_embedding_jobs(%s, %s, %s::text[]::vector[])"

#: What a developer writes: no tenants, no retries, no circuit, and a vector goes to whatever text is there by then.
PEER = f"""
create table own_texts (id text primary key, content text not null, embedding vector({DIMENSIONS}));
create table own_jobs (id text primary key references own_texts on delete cascade, leased_until timestamptz not null default now());
create index on own_jobs (leased_until);
create function own_queue() returns trigger language plpgsql as $$
begin
    insert into own_jobs (id) values (new.id) on conflict do nothing;
    return null;
end
$$;
create trigger queue after insert or update of content on own_texts for each row execute function own_queue();
"""
PEER_WRITE = "insert into own_texts (id, content) select * from unnest(%s::text[], %s::text[])"
PEER_CLAIM = """
with claimed as (
    update own_jobs
    set leased_until = now() + interval '5 minutes'
    where id in (select id from own_jobs where leased_until <= now() order by leased_until limit %s for update skip locked)
    returning id
)
select t.id, null, t.content from claimed join own_texts t using (id)
"""
PEER_COMPLETE = """
with stored as (
    update own_texts t set embedding = g.embedding::vector from unnest(%s::text[], %s::text[]) g (id, embedding) where t.id = g.id returning t.id
)
delete from own_jobs using stored where own_jobs.id = stored.id
"""


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    rows = list(packages(WRITTEN))
    with database(cluster, "embedding_job") as superuser:
        superuser.execute("grant llm_app to bound")
        superuser.execute("select llm.bind_role('bound', 'acme')")
        for name in ("queued", "plain"):
            superuser.execute("select llm.create_collection(%s, %s, p_text_indexed => false)", [name, DIMENSIONS])
        superuser.execute("select llm.set_embedding_model('queued', 'm')")
        superuser.execute(PEER)
        with cluster.connect("embedding_job", "bound") as ours, cluster.connect("embedding_job") as peer:
            compare(ours, peer, rows, rounds=3 if quick else 7)


def compare(ours: psycopg.Connection, peer: psycopg.Connection, rows: Sequence[Package], *, rounds: int) -> None:
    """Write texts, and find their vectors."""
    new = map("{}-".format, count())
    contents = [row.description for row in rows]
    vectors = [str(row.vector) for row in rows]

    def write(collection: str) -> None:
        prefix = next(new)
        ours.execute(
            "select llm.upsert_points(%s, p_ids => %s, p_contents => %s)",
            [collection, [prefix + str(row.id) for row in rows], contents],
            prepare=True,
        )

    def peer_write() -> None:
        prefix = next(new)
        peer.execute(PEER_WRITE, [[prefix + str(row.id) for row in rows], contents], prepare=True)

    def embed(connection: psycopg.Connection, write: Callable[[], None], claim: str, complete: Callable[[list[Any], list[str]], None]) -> Probe:
        def probe() -> float:
            write()
            start, done = perf_counter(), 0
            while jobs := connection.execute(claim, [CLAIMED], prepare=True).fetchall():
                complete(jobs, vectors[: len(jobs)])
                done += len(jobs)
            return (perf_counter() - start) / done * 1e6

        return probe

    def ours_complete(jobs: list[Any], found: list[str]) -> None:
        ours.execute(COMPLETE, [[job[0] for job in jobs], jobs[0][1], found], prepare=True)

    def peer_complete(jobs: list[Any], found: list[str]) -> None:
        peer.execute(PEER_COMPLETE, [[job[0] for job in jobs], found], prepare=True)

    time = medians(
        rounds,
        embedded=embed(ours, lambda: write("queued"), CLAIM, ours_complete),
        peer_embedded=embed(peer, peer_write, PEER_CLAIM, peer_complete),
        plain=once(lambda: write("plain"), WRITTEN),
        queued=once(lambda: write("queued"), WRITTEN),
        peer_queued=once(peer_write, WRITTEN),
    )
    title(f"embedding jobs, {WRITTEN:,} texts written at once, {CLAIMED} claimed and completed at once, a text")
    line("written, becoming a job", time["queued"], "without jobs", time["plain"])
    line("written, becoming a job", time["queued"], "queue by hand", time["peer_queued"])
    line("claimed and its vector stored", time["embedded"], "queue by hand", time["peer_embedded"])

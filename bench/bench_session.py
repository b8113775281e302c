"""Sessions beside a bare look-up by an index: see README.md for what is compared with what."""

from __future__ import annotations

from bench.support import AtLeast, application, database, fact, kept, line, medians, middle, one, per_call, pgbench, title
from tools.cluster import Cluster

#: What a careful user would write: a table of his own with row-level security by a setting; and one without tenants, a digest as its key.
OWN_TABLES = """
    create table public.tenant_sessions as
    select token_prefix, tenant_id, session_id, user_id, created_at, last_active, metadata, context, device, expires_at from llm.sessions;
    create index on public.tenant_sessions (token_prefix);
    alter table public.tenant_sessions enable row level security;
    create policy tenant on public.tenant_sessions using (tenant_id = current_setting('llm.tenant'));
    create table public.sessions as select sha256(convert_to(token_prefix, 'UTF8')) as token_hash, * from public.tenant_sessions;
    alter table public.sessions add primary key (token_hash);
    grant select on public.sessions, public.tenant_sessions to app, bound;
    """

COLUMNS = "session_id, user_id, created_at, last_active, metadata, context, device, expires_at, tenant_id, true as is_touch_due"


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with database(cluster, "session") as superuser:
        superuser.execute("grant llm_app to app, bound").execute("select llm.bind_role('bound', 'acme')")
        with superuser.transaction():
            superuser.execute("select llm.set_tenant('acme')")
            user = one(superuser, "select llm.create_user('ann')")
            superuser.execute(
                "insert into llm.sessions (tenant_id, user_id, token_prefix, token_salt, token_hash)"
                " select 'acme', %s, t.prefix, t.salt, t.hash"
                " from generate_series(1, %s) i, lateral (select * from llm._new_token(left('llms' || i, 4))) t",
                [user, 10_000 if quick else 100_000],
            )
            token = one(superuser, "select token from llm.open_session(%s)", user)
        superuser.execute(OWN_TABLES)
        superuser.execute("vacuum analyze llm.sessions").execute("vacuum analyze public.sessions").execute("vacuum analyze public.tenant_sessions")
        verify(cluster, token, quick=quick)
        verify_by_pgbench(cluster, token, quick=quick)
        other_calls(cluster, token, quick=quick)


def verify(cluster: Cluster, token: str, *, quick: bool) -> None:
    """Compare the check of a token with bare look-ups, through psycopg."""
    prefix = token[5:21]
    with application(cluster, "session") as client:
        digest = one(client, "select sha256(convert_to(%s, 'UTF8'))", prefix)
        calls = 500 if quick else 3000

        def fetch(statement: str, argument: object) -> object:
            return client.execute(statement, [argument]).fetchall()

        time = medians(
            3 if quick else 9,
            ours=per_call(lambda: fetch("select * from llm.verify_session(%s)", token), calls),
            same=per_call(lambda: fetch(f"select {COLUMNS} from llm.sessions where token_prefix = %s", prefix), calls),
            tenants=per_call(lambda: fetch(f"select {COLUMNS} from public.tenant_sessions where token_prefix = %s", prefix), calls),
            bare=per_call(lambda: fetch(f"select {COLUMNS} from public.sessions where token_hash = %b", digest), calls),
        )
    title("verify_session, through psycopg, prepared, in an open transaction")
    line("one token", time["ours"], "bare look-up in the same table", time["same"], AtLeast(0.9))
    line("one token", time["ours"], "own table with tenants", time["tenants"])
    line("one token", time["ours"], "own table without tenants", time["bare"])


def verify_by_pgbench(cluster: Cluster, token: str, *, quick: bool) -> None:
    """Compare the same by pgbench, as a role that is bound to its tenant."""
    # Many short rounds: the difference is a few microseconds, and the machine is not as quiet for long.
    transactions = 2000 if quick else 5000
    prefix = token[5:21]
    title("verify_session, by pgbench, one a transaction, as a role of one tenant")
    for clients in (1, 4):
        time = medians(
            3 if quick else 21,
            ours=pgbench(
                cluster, "session", "bound", f"select * from llm.verify_session('{token}');",
                clients=clients, transactions=transactions, average=middle,
            ),
            same=pgbench(
                cluster, "session", "bound", f"select {COLUMNS} from llm.sessions where token_prefix = '{prefix}';",
                clients=clients, transactions=transactions, average=middle,
            ),
        )  # fmt: skip
        line(f"{clients} clients", time["ours"], "bare look-up in the same table", time["same"], AtLeast(0.9))


def other_calls(cluster: Cluster, token: str, *, quick: bool) -> None:
    """Show what else a request may call, and that a touch is seldom a write."""
    calls = 300 if quick else 2000
    print("\na call, through psycopg, in an open transaction")
    with application(cluster, "session") as client:
        session = one(client, "select session_id from llm.verify_session(%s)", token)
        for what, statement, argument in (
            ("touch_session, not due", "select llm.touch_session(%s)", session),
            ("resume_session: verify, touch, tenant, user", "select * from llm.resume_session(%s)", token),
            ("verify_session, forged", "select * from llm.verify_session(%s)", token[:-1] + "x"),
            ("verify_session, unknown", "select * from llm.verify_session(%s)", "llms_" + "0" * 80),
        ):
            fact(what, f"{per_call(lambda s=statement, a=argument: client.execute(s, [a]).fetchall(), calls)():,.1f} us")  # type: ignore[misc]
        client.execute("select llm.set_user(null)")
        written = "select coalesce(sum(n_tup_upd), 0)::int from pg_stat_xact_user_tables where relname = 'sessions'"
        before = one(client, written)
        for _ in range(100):
            client.execute("select llm.touch_session(%s)", [session])
        fact("writes of 100 touches within a minute", str(one(client, written) - before), kept(one(client, written) == before))

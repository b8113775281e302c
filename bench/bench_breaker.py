"""Circuit breakers beside a bare look-up of a row: see README.md for what is compared with what."""

from __future__ import annotations

from bench.support import AtMost, database, fact, line, medians, per_call, title
from tools.cluster import Cluster


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with database(cluster, "breaker") as superuser:
        superuser.execute("grant llm_app to bound")
        superuser.execute("select llm.bind_role('bound', 'acme')")
        superuser.execute("create table public.states (service text primary key, state text not null)")
        superuser.execute("insert into public.states select 'service ' || i, 'closed' from generate_series(1, 100) i")
        superuser.execute("grant select on public.states to bound")
        with cluster.connect("breaker", "bound") as connection:
            connection.prepare_threshold = 0
            for number in range(100):
                connection.execute("select llm.set_breaker(%s)", [f"service {number}"])
            connection.execute("select llm.set_breaker('open', 1, '1 day')")
            connection.execute("select llm.breaker_failure('open')")
            calls = 500 if quick else 3_000

            def ask(statement: str, service: str = "service 7") -> object:
                return connection.execute(statement, [service]).fetchone()

            time = medians(
                3 if quick else 9,
                allow=per_call(lambda: ask("select allowed, state, probe from llm.breaker_allow(%s)"), calls),
                denied=per_call(lambda: ask("select allowed, state, retry_after from llm.breaker_allow(%s)", "open"), calls),
                success=per_call(lambda: ask("select llm.breaker_success(%s)"), calls),
                failure=per_call(lambda: ask("select llm.breaker_failure(%s)", "service 8"), calls // 5),
                bare=per_call(lambda: ask("select state from public.states where service = %s"), calls),
            )
            title("a call from Python, one client, p50; peer: a bare SELECT of a table without tenants")
            line("breaker_allow, closed", time["allow"], "SELECT", time["bare"], AtMost(2))
            line("breaker_allow, open", time["denied"], "SELECT", time["bare"])
            line("breaker_success, nothing to forget", time["success"], "SELECT", time["bare"])
            fact("breaker_failure", f"{time['failure']:,.0f} us", "one transaction, flushed to the disk")

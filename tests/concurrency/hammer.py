"""Writers and readers of configuration at the same time, and the search for reads that no order of transactions explains.

Each value is a counter that only committed transactions raise, by one. A write that will be rolled back writes POISON instead.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from threading import Event, Lock

import psycopg

from tests.support import Client, Database

#: What no transaction ever commits.
POISON = 1_000_000

GLOBAL = "*"
TENANTS = ("acme", "globex")
KEYS = {
    "acme": [f"own-{number}" for number in range(60)],
    "globex": [f"own-{number}" for number in range(60)],
    GLOBAL: [f"global-{number}" for number in range(30)],
}

#: How often a reader reads each key before it looks at the ledger again.
ROUNDS = 8

# In READ COMMITTED each expression of a volatile function has a snapshot of its own: the stored value had committed before the cached read began.
READ = """
create function hammer_read(p_keys text[], p_exact boolean, out stale text[], out lowest bigint[], out highest bigint)
    language plpgsql
as $$
declare
    v_stored bigint;
    v_cached bigint;
begin
    highest := 0;
    for v_round in 1 .. %s loop
        for v_key in 1 .. cardinality(p_keys) loop
            v_stored := llm.load_config(p_keys[v_key], p_cached => false);
            v_cached := llm.load_config(p_keys[v_key]);
            if v_cached is null or v_cached < v_stored or (p_exact and v_cached > v_stored) then
                stale := stale || format('%%s is %%s, but %%s is stored', p_keys[v_key], v_cached, v_stored);
            end if;
            lowest[v_key] := least(lowest[v_key], v_cached);
            highest := greatest(highest, v_cached);
        end loop;
    end loop;
end
$$
"""


@dataclass
class Hammer:
    """One run: `reads` through the cache at least, or until the first violation when `until_violation`."""

    database: Database
    reads: int
    until_violation: bool = False
    violations: list[str] = field(default_factory=list)
    done: int = 0
    commits: int = 0
    rollbacks: int = 0
    _stop: Event = field(default_factory=Event)
    _lock: Lock = field(default_factory=Lock)
    _ledger: dict[tuple[str, str], int] = field(default_factory=dict)

    def run(self) -> None:
        """Fill the tables, then read and write at the same time until enough was read."""
        db = self.database.client()
        db.run(READ % ROUNDS)
        for tenant, keys in KEYS.items():
            for key in keys:
                db.run("insert into llm.config (tenant_id, key, value) values (%s, %s, '0')", tenant, key)
                self._ledger[tenant, key] = 0

        jobs: list[tuple[Callable[[Client, Random], None], str]] = [
            (self._write, "admin"),
            (self._write, "admin"),
            (self._write, "postgres"),
            (self._read_committed, "app"),
            (self._read_committed, "reader"),
            (self._repeatable_read, "app"),
            (self._repeatable_read, "reader"),
        ]
        with ThreadPoolExecutor(len(jobs)) as pool:
            running = [pool.submit(self._repeat, job, self.database.client(user), Random(number)) for number, (job, user) in enumerate(jobs)]
        for job_done in running:
            job_done.result()

    def _repeat(self, job: Callable[[Client, Random], None], client: Client, random: Random) -> None:
        try:
            while not self._stop.is_set():
                job(client, random)
        finally:
            self._stop.set()

    def _found(self, violation: str) -> None:
        self.violations.append(violation)
        if self.until_violation:
            self._stop.set()

    def _read_committed(self, client: Client, random: Random) -> None:
        tenant = random.choice(TENANTS)
        with client.tenant(tenant):
            self._read(client, tenant, exact=False)

    def _repeatable_read(self, client: Client, random: Random) -> None:
        tenant = random.choice(TENANTS)
        floor = self._floor(tenant)
        with client.transaction():
            client.run("set transaction isolation level repeatable read")
            client.run("select llm.set_tenant(%s)", tenant)
            for _ in range(random.randint(1, 4)):
                self._read(client, tenant, exact=True, floor=floor)

    def _read(self, client: Client, tenant: str, *, exact: bool, floor: list[int] | None = None) -> None:
        keys = KEYS[tenant] + KEYS[GLOBAL]
        floor = floor or self._floor(tenant)
        stale, lowest, highest = client.row("select * from hammer_read(%s, %s)", keys, exact)
        for violation in stale or ():
            self._found(violation)
        for key, value, committed in zip(keys, lowest, floor, strict=True):
            if value is None or value < committed:
                self._found(f"{key} was {value} after {committed} had committed")
        if highest >= POISON:
            self._found("an uncommitted value was read")
        with self._lock:
            self.done += ROUNDS * len(keys)
        if self.done >= self.reads:
            self._stop.set()

    def _floor(self, tenant: str) -> list[int]:
        with self._lock:
            return [self._ledger[tenant, key] for key in KEYS[tenant]] + [self._ledger[GLOBAL, key] for key in KEYS[GLOBAL]]

    def _write(self, client: Client, random: Random) -> None:
        tenant = random.choice((*TENANTS, GLOBAL))
        keys = sorted(random.sample(KEYS[tenant], random.randint(1, 3)))
        is_doomed = random.random() < 0.25
        written = {}
        with client.transaction():
            client.run("set local synchronous_commit = off")
            if tenant != GLOBAL:
                client.run("select llm.set_tenant(%s)", tenant)
            # A row that another writer replaces with COPY cannot be waited for; a lock in its name can.
            client.run("select pg_advisory_xact_lock(hashtext(%s || k)) from unnest(%s::text[]) k", tenant, keys)
            for key in keys:
                stored = client.one("select value from llm.config where tenant_id = %s and key = %s", tenant, key)
                written[key] = POISON if is_doomed else stored + 1
                self._save(client, random, tenant, key, written[key])
                if random.random() < 0.25:
                    with client.transaction():
                        self._save(client, random, tenant, key, POISON + 1)
                        self._expect(client, key, POISON + 1)
                        raise psycopg.Rollback
                self._expect(client, key, written[key])
            if is_doomed:
                raise psycopg.Rollback
        with self._lock:
            self.commits += not is_doomed
            self.rollbacks += is_doomed
            for key, value in written.items():
                if not is_doomed:
                    self._ledger[tenant, key] = value

    def _save(self, client: Client, random: Random, tenant: str, key: str, value: int) -> None:
        match random.choice(("function", "update", "copy")):
            case "copy" if client.connection.info.user == "postgres":
                client.run("delete from llm.config where tenant_id = %s and key = %s", tenant, key)
                with client.connection.cursor() as cursor, cursor.copy("copy llm.config (tenant_id, key, value) from stdin") as copy:
                    copy.write_row((tenant, key, str(value)))
            case "update":
                client.run("update llm.config set value = to_jsonb(%s) where tenant_id = %s and key = %s", value, tenant, key)
            case _:
                client.run("select llm.save_config(%s, to_jsonb(%s))", key, value)

    def _expect(self, client: Client, key: str, value: int) -> None:
        seen = client.one("select llm.load_config(%s)", key)
        if seen != value:
            self._found(f"the writer of {key} wrote {value} and read {seen}")

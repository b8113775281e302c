"""Queues, and putting jobs into them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from psycopg.errors import (
    ArraySubscriptError,
    InsufficientPrivilege,
    InvalidParameterValue,
    NullValueNotAllowed,
    ObjectNotInPrerequisiteState,
    SerializationFailure,
)

from tests.support import Client, Database, at_once, in_tenant, raises

CLAIM = "select id from llm.claim_jobs('q', %s)"


def test_jobs_are_claimed_in_the_order_in_which_they_came(bound: Client) -> None:
    ids = [bound.one("select llm.enqueue('q', jsonb_build_object('n', %s::int))", number) for number in range(3)]
    ids += bound.one("select llm.enqueue_many('q', array['{\"n\": 3}', '{\"n\": 4}']::jsonb[])")
    assert bound.column("select payload ->> 'n' from llm.claim_jobs('q', 10)") == list("01234")
    assert ids == sorted(ids)


def test_a_higher_priority_comes_first(bound: Client) -> None:
    for priority in (0, -5, 100, 7, 0):
        bound.run("select llm.enqueue('q', p_priority => %s)", priority)
    assert bound.column("select priority from llm.claim_jobs('q', 4)") == [100, 7, 0, 0]
    bound.run("select llm.enqueue_many('q', array['{}']::jsonb[], 50)")
    assert bound.column("select priority from llm.claim_jobs('q', 4)") == [50, -5]


def test_a_job_is_there_when_its_transaction_commits_and_not_when_it_rolls_back(bound: Client, database: Database) -> None:
    worker = database.client("app")
    with bound.transaction():
        bound.run("select llm.enqueue('q')")
        assert worker.rows(CLAIM, 1) == []
    assert len(worker.rows(CLAIM, 1)) == 1
    bound.run("begin").run("select llm.enqueue('q')").run("rollback")
    assert worker.rows(CLAIM, 1) == []


def test_a_delayed_job_comes_when_it_is_due(bound: Client, db: Client) -> None:
    bound.run("select llm.enqueue('q', '{}', p_delay => '1 hour')")
    bound.run("select llm.enqueue('q', '{}', p_run_at => now() + interval '2 hours')")
    bound.run("select llm.enqueue_many('q', array['{}']::jsonb[], p_delay => '3 hours')")
    bound.run("select llm.enqueue('q', '{\"now\": 1}', p_run_at => now() - interval '1 day')")
    ((job, token, payload),) = bound.rows("select id, token, payload from llm.claim_jobs('q', 10)")
    assert payload == {"now": 1}
    bound.run("select llm.complete_jobs(%s, %s)", [job], token)
    for hours, expected in (("59 minutes", 0), ("61 minutes", 1), ("121 minutes", 1), ("181 minutes", 1)):
        with db.tenant("acme"):
            db.run("update llm.jobs set due_at = 'infinity' where token is not null")
            assert db.one("select llm._sweep_queue('acme', 'q', 5, now() + %s::interval)", hours) == expected
        assert len(bound.rows(CLAIM, 10)) == expected


def test_the_same_key_a_hundred_times_at_once_is_one_job(bound: Client, database: Database) -> None:
    """Q-16"""
    bound.run("select llm.set_queue('q')")
    clients = database.clients(20, "app")
    for more in ("", ", p_dedup_for => '1 hour'"):
        key = f"request{len(more)}"
        found = [each for _ in range(5) for each in at_once(clients, f"select llm.enqueue('q', p_dedup_key => %s{more})", key)]
        assert len(set(found)) == 1
    assert bound.one("select count(*) from llm.jobs") == 2


def test_a_key_is_free_when_its_job_is_done_unless_it_is_held_for_longer(bound: Client, db: Client) -> None:
    def do() -> int:
        ((job, token),) = bound.rows("select id, token from llm.claim_jobs('q')")
        bound.run("select llm.complete_jobs(%s, %s)", [job], token)
        return int(job)

    short, long = "select llm.enqueue('q', p_dedup_key => 'a')", "select llm.enqueue('q', p_dedup_key => 'b', p_dedup_for => '1 hour')"
    first = bound.one(short)
    assert bound.one(short) == first
    assert do() == first
    assert bound.one("select count(*) from llm.job_keys") == 0
    assert bound.one(short) > first
    do()
    held = bound.one(long)
    assert do() == held
    assert bound.one(long) == held
    assert bound.rows(CLAIM, 1) == []
    db.run("update llm.job_keys set free_at = now() - interval '1 second'")
    assert bound.one(long) > held


def test_a_key_that_meets_its_job_being_done_gives_a_new_job(bound: Client, database: Database) -> None:
    """Q-16: the completion commits while the enqueue waits for it."""
    old = bound.one("select llm.enqueue('q', p_dedup_key => 'a')")
    ((_, token),) = bound.rows("select id, token from llm.claim_jobs('q')")
    other, watcher = database.client("app"), database.client()
    with ThreadPoolExecutor(1) as pool:
        with bound.transaction():
            bound.run("select llm.complete_jobs(%s, %s)", [old], token)
            waiting = pool.submit(other.one, "select llm.enqueue('q', p_dedup_key => 'a')")
            watcher.wait("select exists (select from pg_locks where not granted)")
        new = waiting.result()
    assert new > old
    assert bound.column(CLAIM, 5) == [new]


def test_a_serializable_enqueue_succeeds_when_it_is_tried_again(bound: Client, database: Database) -> None:
    """Q-17: keys and groups, by eight clients, all serializable, until each has succeeded."""
    bound.run("select llm.set_queue('q')")

    def work(client: Client, number: int) -> int:
        client.run("set default_transaction_isolation = serializable")
        retries = 0
        for turn in range(6):
            while True:
                try:
                    client.run("select llm.enqueue('q', p_group => %s, p_dedup_key => %s)", f"g{turn % 2}", f"k{turn}-{number // 2}")
                    break
                except SerializationFailure:
                    retries += 1
        return retries

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, database.clients(8, "app"), range(8)))
    assert bound.row("select count(*), count(distinct dedup_key) from llm.jobs") == (24, 24)
    assert bound.one("select count(*) from llm.job_turns where holds_slot") == 2


def test_batches_in_any_order_do_not_deadlock(bound: Client, database: Database) -> None:
    """Q-06: enqueue_many, claim, complete, fail and cancel over the same keys and groups, at the same time."""
    bound.run("select llm.set_queue('q', p_group_limit => 3, p_base_delay => '0')")
    keys = [f"k{number:02}" for number in range(12)]

    def work(client: Client, seed: int) -> None:
        for turn in range(15):
            order = keys[(seed * 5 + turn) % 12 :] + keys[: (seed * 5 + turn) % 12]
            order = order[:: -1 if (seed + turn) % 2 else 1]
            client.run("select llm.enqueue_many('q', array_fill('{}'::jsonb, array[12]), p_groups => %s, p_dedup_keys => %s)", order[::-1], order)
            client.run("select llm.enqueue_many('groups', array_fill('{}'::jsonb, array[12]), p_groups => %s)", order)
            rows = client.rows("select id, token from llm.claim_jobs('q', 6)")
            if rows:
                ids, token = [row[0] for row in rows], rows[0][1]
                client.run("select llm.complete_jobs(%s, %s, p_strict => false)", ids[::-2], token)
                client.run("select llm.fail_jobs(%s, %s, 'x', p_strict => false)", ids[::3], token)
                client.run("select llm.cancel_jobs(%s, true)", ids)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, database.clients(6, "app"), range(6)))
    assert bound.one("select deadlocks from pg_stat_database where datname = current_database()") == 0


def test_a_queue_notifies_when_it_was_empty_and_only_if_it_was_told_to(bound: Client, database: Database) -> None:
    """Q-08: no NOTIFY a message, and none at all unless a queue asks for it."""
    listener = database.client("app")
    for queue in ("quiet", "loud"):
        listener.run(f"listen {listener.one('select llm.queue_channel(%s)', queue)}")
    bound.run("select llm.set_queue('loud', p_notify => true)")
    for queue in ("quiet", "loud"):
        for _ in range(20):
            bound.run("select llm.enqueue(%s)", queue)
        bound.run("select llm.enqueue_many(%s, array['{}', '{}']::jsonb[])", queue)
    found = [(note.channel, note.payload) for note in listener.connection.notifies(timeout=30, stop_after=1)]
    found += [(note.channel, note.payload) for note in listener.connection.notifies(timeout=0.05)]
    assert found == [(bound.one("select llm.queue_channel('loud')"), "")]
    other = in_tenant(database.client("admin"), "other")
    assert other.one("select llm.queue_channel('loud')") != found[0][0]


def test_a_busy_queue_never_takes_the_lock_of_notify(bound: Client, database: Database) -> None:
    """Q-08: the lock of all of the server's commits with NOTIFY (object 0 of class 1262) is never seen while four clients work."""
    bound.run("select llm.set_queue('q')")
    watcher = database.client()

    def work(client: Client) -> None:
        for _ in range(100):
            client.run("select llm.enqueue('q')")
            ((job, token),) = client.rows("select id, token from llm.claim_jobs('q')") or [(None, None)]
            if job:
                client.run("select llm.complete_jobs(%s, %s)", [job], token)

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, client) for client in database.clients(4, "app")]
        seen = 0
        while not all(each.done() for each in working):
            seen += watcher.one("select count(*) from pg_locks where locktype = 'object' and classid = 1262 and objid = 0")
        for each in working:
            each.result()
    assert seen == 0


def test_settings_are_kept_until_others_are_given(bound: Client) -> None:
    bound.run("select llm.set_queue('q', 3, '5 minutes')")
    bound.run("select llm.set_queue('q', p_archive => true)")
    assert bound.row("select max_attempts, lease::text, archive, notify from llm.queues") == (3, "00:05:00", True, False)


#: What is refused, and how.
REFUSED = (
    ("select llm.enqueue('')", "a queue cannot be called ''"),
    ("select llm.enqueue(null)", "a queue cannot be called null"),
    ("select llm.enqueue('q', p_priority => 101)", "a job cannot have priority 101"),
    ("select llm.enqueue('q', p_priority => null)", "a job cannot have priority null"),
    ("select llm.enqueue('q', p_delay => '1 s', p_run_at => now())", "a job of queue q cannot be like this: delay 00:00:01"),
    ("select llm.enqueue('q', p_run_at => 'infinity')", "a job of queue q cannot be like this"),
    ("select llm.enqueue('q', p_group => '')", "a job of queue q cannot be like this"),
    ("select llm.enqueue('q', p_dedup_for => '1 s')", "a job of queue q cannot be like this"),
    ("select llm.enqueue('q', p_max_attempts => 0)", "a job of queue q cannot be like this"),
    ("select llm.set_queue('q', 0)", "queue q cannot be like this: 0 attempts"),
    ("select llm.set_queue('q', p_lease => '2 days')", "queue q cannot be like this"),
    ("select llm.set_queue('q', p_base_delay => '2 hours')", "queue q cannot be like this"),
)


def test_what_cannot_be_is_refused(bound: Client) -> None:
    for statement, message in REFUSED:
        with raises(InvalidParameterValue, match=message, hint="."):
            bound.run(statement)


def test_misuse_is_told(bound: Client, admin: Client, database: Database) -> None:
    with raises(NullValueNotAllowed, match="a job of queue q has no payload", hint="Give {}"):
        bound.run("select llm.enqueue('q', null)")
    with raises(NullValueNotAllowed, match="a job of queue q has no payload"):
        bound.run("select llm.enqueue_many('q', array['{}', null]::jsonb[])")
    with raises(ArraySubscriptError, match="there are 1 payloads, and another number of groups, keys or users"):
        bound.run("select llm.enqueue_many('q', array['{}']::jsonb[], p_groups => array['a', 'b'])")
    assert bound.one("select llm.enqueue_many('q', '{}')") == []
    for statement in ("llm.enqueue('q')", "llm.enqueue_many('q', '{}')", "llm.set_queue('q')", "llm.queue_channel('q')"):
        with raises(ObjectNotInPrerequisiteState, match="jobs are a tenant's, and no tenant is set", hint="set_tenant"):
            admin.run(f"select {statement}")
    with raises(InsufficientPrivilege):
        database.client("reader").run("select llm.enqueue('q')")
    with raises(InsufficientPrivilege):
        bound.run("insert into llm.jobs (id, place, lane, priority, tenant_id, queue, payload) values (1, 1, 0, 0, 'acme', 'q', '{}')")

"""Jobs of a group: in order, and only so many at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from psycopg.errors import InvalidParameterValue

from tests.support import Client, Database, raises, wait_until


def claim(client: Client, limit: int = 100) -> dict[str, tuple[int, int]]:
    """Return id and token of claimed jobs by group; of a group there is one."""
    rows = client.rows("select group_key, id, token from llm.claim_jobs('q', %s)", limit)
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: (row[1], row[2]) for row in rows}


def done(client: Client, job: tuple[int, int]) -> None:
    client.run("select llm.complete_jobs(%s, %s)", [job[0]], job[1])


def put(client: Client, *groups: str) -> list[int]:
    ids: list[int] = client.one("select llm.enqueue_many('q', array_fill('{}'::jsonb, array[%s::int]), p_groups => %s)", len(groups), list(groups))
    return ids


def states(client: Client) -> list[str]:
    return client.column("select state from llm.list_jobs('q')")


def test_jobs_of_a_group_run_one_after_the_other_in_order(bound: Client) -> None:
    groups = "aabab"
    ids = put(bound, *groups)
    free = bound.one("select llm.enqueue('q')")
    order: list[dict[str, int]] = []
    while rows := bound.rows("select coalesce(group_key, ''), id, token from llm.claim_jobs('q', 9)"):
        order.append({row[0]: ids.index(row[1]) if row[0] else free for row in rows})
        bound.run("select llm.complete_jobs(%s, %s)", [row[1] for row in rows], rows[0][2])
    assert order == [{"a": 0, "b": 2, "": free}, {"a": 1, "b": 4}, {"a": 3}]
    assert bound.one("select count(*) from llm.job_turns") == 0


def test_each_job_that_comes_to_a_group_waits_for_those_before(bound: Client) -> None:
    ids = [bound.one("select llm.enqueue('q', p_group => 'a')") for _ in range(3)]
    assert states(bound) == ["ready", "waiting", "waiting"]
    for job in ids:
        assert claim(bound)["a"][0] == job
        assert claim(bound) == {}
        bound.run("select llm.complete_jobs(array[id], token) from llm.jobs where token is not null")


def test_a_failed_job_holds_its_group_up_until_it_is_done_or_dead(bound: Client, db: Client) -> None:
    bound.run("select llm.set_queue('q', 2, p_base_delay => '1 minute')")
    first, second = put(bound, "a", "a")
    for expected in ((1, 0), (0, 1)):
        job, token = claim(bound)["a"]
        assert job == first
        assert bound.row("select * from llm.fail_jobs(%s, %s, 'x')", [job], token) == expected
        if expected == (1, 0):
            assert claim(bound) == {}
            db.run("update llm.jobs set due_at = now() - interval '1 s', place = 0 where lane = 1000")
    assert claim(bound)["a"][0] == second
    assert bound.one("select llm.retry_dead_jobs('q')") == 1
    assert states(bound) == ["waiting", "running"]


def test_a_worker_that_dies_holds_its_group_no_longer_than_its_lease(bound: Client, db: Client) -> None:
    bound.run("select llm.set_queue('q', 1)")
    _, second = put(bound, "a", "a")
    claim(bound)
    assert claim(bound) == {}
    db.run("update llm.jobs set due_at = now() - interval '1 s' where token is not null")
    assert claim(bound)["a"][0] == second
    assert states(bound) == ["dead", "running"]


def test_a_delayed_job_takes_its_turn_when_it_is_due(bound: Client, db: Client) -> None:
    late = bound.one("select llm.enqueue('q', p_group => 'a', p_delay => '1 hour')")
    (now,) = put(bound, "a")
    running = claim(bound)["a"]
    assert running[0] == now
    db.run("update llm.jobs set due_at = now() - interval '1 s', place = 0 where lane = 1000")
    assert claim(bound) == {}
    assert states(bound) == ["waiting", "running"]
    done(bound, running)
    assert claim(bound)["a"][0] == late


def test_more_of_a_group_may_run_at_a_time(bound: Client) -> None:
    bound.run("select llm.set_queue('q', p_group_limit => 2)")
    put(bound, *"aaaaabbb")
    groups = bound.column("select group_key from llm.claim_jobs('q', 100)")
    assert sorted(groups) == ["a", "a", "b", "b"]
    bound.run("select llm.set_group_limit('q', 'a', 4)")
    assert bound.column("select group_key from llm.claim_jobs('q', 100)") == ["a", "a"]
    bound.run("select llm.set_group_limit('q', 'a', null)")
    running = bound.rows("select id, token from llm.jobs where token is not null and group_key = 'a' order by id")
    for job in running[:2]:
        done(bound, job)
        assert claim(bound) == {}, "as many run as may"
    done(bound, running[2])
    assert set(claim(bound)) == {"a"}


def test_a_cancelled_or_forgotten_job_gives_way(bound: Client, db: Client) -> None:
    first, second, third = put(bound, "a", "a", "a")
    assert bound.one("select llm.cancel_jobs(%s)", [first]) == [first]
    assert states(bound) == ["ready", "waiting"]
    db.run("delete from llm.jobs where id = %s", second)  # as when its user is forgotten
    assert claim(bound) == {}
    db.run("call llm.tend_queues()")
    assert claim(bound)["a"][0] == third


def test_groups_without_jobs_are_forgotten(bound: Client, db: Client) -> None:
    put(bound, "a", "b")
    bound.run("select llm.set_group_limit('q', 'kept', 3)")
    done(bound, claim(bound)["a"])
    db.run("call llm.tend_queues()")
    assert db.column("select group_key from llm.job_groups order by 1") == ["b", "kept"]


def test_never_more_of_a_group_run_than_may_while_many_work(bound: Client, database: Database) -> None:
    bound.run("select llm.set_queue('q')")
    worst: list[int] = []
    order: dict[str, list[int]] = {group: [] for group in "abc"}
    lock, stop = threading.Lock(), threading.Event()

    def work(client: Client) -> None:
        while not stop.is_set():
            for group, job in claim(client, 2).items():
                most = client.one("select max(n) from (select count(*) as n from llm.jobs where token is not null group by group_key) r")
                with lock:
                    worst.append(most)
                    order[group].append(job[0])
                done(client, job)

    def feed(client: Client) -> None:
        for number in range(20):
            put(client, *("abc" if number % 2 else "cba"))

    with ThreadPoolExecutor(6) as pool:
        working = [pool.submit(work, client) for client in database.clients(4, "app")]
        for feeding in [pool.submit(feed, client) for client in database.clients(2, "app")]:
            feeding.result()
        try:
            wait_until(lambda: bound.one("select count(*) from llm.jobs") == 0)
        finally:
            stop.set()
        for each in working:
            each.result()
    assert max(worst) == 1
    assert sum(map(len, order.values())) == 120
    assert all(len(set(each)) == 40 for each in order.values())


def test_a_bad_limit_is_refused(bound: Client) -> None:
    for wrong in ("'', 1", "null, 1", "'a', 0"):
        with raises(InvalidParameterValue, match="jobs at a time", hint="1 to 100,000"):
            bound.run(f"select llm.set_group_limit('q', {wrong})")

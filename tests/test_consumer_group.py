"""Consumers of a group share a stream: each entry to one of them, again only when he does not acknowledge it."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from random import Random

import psycopg
import pytest
from psycopg.errors import InvalidParameterValue, NoDataFound, ObjectNotInPrerequisiteState

from tests.conftest import new_database
from tests.support import Client, Database, raises
from tests.test_stream import ANNE, append, read
from tools.cluster import Cluster

READ = "select position, payload from llm.group_read('s', 'g', %s, %s)"
CLAIM = "select position, payload, delivery_count from llm.group_claim('s', 'g', %s, %s, %s)"
ACK = "select llm.group_ack('s', 'g', %s)"
PENDING = "select payload, consumer, delivery_count from llm.group_pending('s', 'g')"


@pytest.fixture
def group(bound: Client) -> Client:
    """A client of a tenant with group g of stream s."""
    assert bound.one("select llm.group_create('s', 'g')") is True
    return bound


def age(db: Client, *payloads: object) -> None:
    """Let deliveries be an hour older."""
    db.run("update llm.group_deliveries d set delivered_at = d.delivered_at - interval '1 hour' from llm.stream_entries e"
           " where e.number = d.number and e.payload = any (array(select to_jsonb(p) from unnest(%s::bigint[]) p))", list(payloads))  # fmt: skip


def test_consumers_share_the_entries_in_order(group: Client) -> None:
    append(group, *range(7))
    first = group.rows(READ, "ann", 3)
    assert [payload for _, payload in first] == [0, 1, 2]
    assert [payload for _, payload in group.rows(READ, "bob", 2)] == [3, 4]
    assert [payload for _, payload in group.rows(READ, "ann", 10)] == [5, 6]
    assert group.rows(READ, "bob", 10) == []
    assert group.one(ACK, [position for position, _ in first]) == 3
    assert group.rows(PENDING) == [(3, "bob", 1), (4, "bob", 1), (5, "ann", 1), (6, "ann", 1)]
    assert group.column("select payload from llm.group_pending('s', 'g', 'ann', 1)") == [5]
    assert group.one(ACK, [position for position, _ in first]) == 0
    assert group.one(ACK, []) == 0


def test_groups_do_not_know_of_each_other(group: Client) -> None:
    (first, _) = append(group, 1, 2)
    group.run("select llm.group_create('s', 'from second', %s), llm.group_create('s', 'from now', llm.stream_end('s'))", first)
    append(group, 3)
    for name, expected in (("g", [1, 2, 3]), ("from second", [2, 3]), ("from now", [3])):
        assert group.column("select payload from llm.group_read('s', %s, 'ann')", name) == expected
    assert group.one("select llm.group_create('s', 'g')") is False
    assert group.rows(READ, "ann", 1) == []


def test_a_group_goes_where_it_is_sent(group: Client) -> None:
    positions = append(group, 1, 2, 3)
    group.run(READ, "ann", 3)
    group.run("select llm.group_seek('s', 'g', %s)", positions[1])
    assert group.rows(PENDING) == []
    assert group.rows(READ, "ann", 9) == [(positions[2], 3)]
    group.run("select llm.group_seek('s', 'g', null)")
    assert [payload for _, payload in group.rows(READ, "ann", 9)] == [1, 2, 3]
    assert group.one("select llm.group_drop('s', 'g')") is True
    assert group.one("select llm.group_drop('s', 'g')") is False
    assert group.rows(PENDING) == []
    assert read(group) == [1, 2, 3]


def test_entries_of_a_dead_consumer_are_taken_by_another(db: Client, group: Client) -> None:
    positions = append(group, 1, 2, 3)
    group.run(READ, "dead", 3)
    assert group.rows(CLAIM, "ann", "1 minute", 10) == []
    age(db, 1, 3)
    assert group.rows(CLAIM, "ann", "1 minute", 1) == [(positions[0], 1, 2)]
    assert group.rows(CLAIM, "bob", "1 minute", 10) == [(positions[2], 3, 2)]
    assert group.rows(PENDING) == [(1, "ann", 2), (2, "dead", 1), (3, "bob", 2)]
    assert group.one("select llm.group_ack('s', 'g', %s, 'dead')", positions) == 1
    assert group.one(ACK, positions) == 2
    assert group.rows(CLAIM, "ann", "0", 10) == []


def test_how_far_groups_are_behind(db: Client, group: Client, database: Database) -> None:
    positions = append(group, *range(5))
    group.run(READ, "ann", 1).run(READ, "bob", 1)
    slow = database.client("app").run("begin")
    append(slow, "not to be read yet")
    lag = (
        "select stream, group_name, last_delivered, lag, next_at is not null, pending, consumers, oldest_delivery is not null from llm.group_lag(%s)"
    )
    assert group.rows(lag, None) == [("s", "g", positions[1], 3, True, 2, 2, True)]
    assert group.rows(lag, "other") == []
    group.run(READ, "ann", 9).run(ACK, positions)
    assert group.rows(lag, "s") == [("s", "g", positions[4], 0, False, 0, 0, False)]


def test_a_read_that_rolls_back_delivered_nothing(group: Client) -> None:
    append(group, 1, 2)
    with pytest.raises(ZeroDivisionError), group.transaction():
        group.run(READ, "ann", 2)
        raise ZeroDivisionError
    assert [payload for _, payload in group.rows(READ, "bob", 2)] == [1, 2]


def test_an_entry_that_is_gone_is_delivered_without_payload(db: Client, group: Client) -> None:
    """Else it would be pending for ever, or silently lost."""
    (position,) = append(group, 1)
    group.run(READ, "dead", 1)
    db.run("truncate llm.stream_entries")
    assert group.rows(CLAIM, "ann", "0", 1) == [(position, None, 2)]
    assert group.one(ACK, [position]) == 1


def test_many_consumers_get_each_entry_once_and_in_order(database: Database, group: Client) -> None:
    """Six at once, who die, claim and acknowledge as they like, beside writers that roll back."""
    writers, consumers = database.clients(3, "app"), database.clients(6, "app")

    def write(number: int) -> list[str]:
        random, done = Random(number), []
        for step in range(40):
            entry = f"{number}.{step}"
            writers[number].run("begin")
            append(writers[number], entry)
            ends_well = random.random() < 0.75
            writers[number].run("commit" if ends_well else "rollback")
            done += [entry] * ends_well
        return done

    def consume(number: int) -> tuple[list[str], list[str]]:
        random, client, delivered, acknowledged = Random(number), consumers[number], [], []
        while True:
            finished = all(future.done() for future in written)
            rows = client.rows(READ, f"consumer {number}", random.choice((1, 3, 10)))
            delivered += [payload for _, payload in rows]
            if random.random() < 0.7:
                assert client.one(ACK, [position for position, _ in rows]) == len(rows)
                acknowledged += [payload for _, payload in rows]
            if finished and not rows:
                return delivered, acknowledged

    with ThreadPoolExecutor(9) as pool:
        written = [pool.submit(write, number) for number in range(3)]
        outcomes = list(pool.map(consume, range(6)))
    order = [str(entry) for entry in read(group)]
    assert sorted(order) == sorted(entry for future in written for entry in future.result())
    assert Counter(entry for delivered, _ in outcomes for entry in delivered) == Counter(order)
    for delivered, _ in outcomes:
        assert delivered == sorted(delivered, key=order.index)
    acknowledged = {entry for _, done in outcomes for entry in done}
    database.client().run("update llm.group_deliveries set delivered_at = delivered_at - interval '1 hour'")
    with ThreadPoolExecutor(6) as pool:
        claimed = list(pool.map(lambda client: client.rows(CLAIM, "heir", "1 minute", 7), consumers))
    everything = [payload for rows in claimed for _, payload, _ in rows]
    assert len(everything) == len(set(everything))
    assert {payload for payload, *_ in group.rows("select payload, 1 from llm.group_pending('s', 'g', p_limit => 1000)")} == set(order) - acknowledged


def test_kill_9_loses_no_entry_and_no_acknowledgement(own_cluster: Cluster) -> None:
    """DR-17: whatever was answered before the crash is there after it, and nothing is delivered twice."""
    for database in new_database(own_cluster):
        database.client().run("select llm.bind_role('app', 'acme')")
        database.client("app").run("select llm.group_create('s', 'g')")
        appended: list[str] = []
        acknowledged: list[object] = []
        delivered: list[object] = []

        def append_on(database: Database = database, appended: list[str] = appended) -> None:
            client = database.client("app")
            while True:
                appended.extend(append(client, len(appended)))

        def consume_on(database: Database = database, delivered: list[object] = delivered, acknowledged: list[object] = acknowledged) -> None:
            client = database.client("app")
            while True:
                rows = client.rows(READ, "ann", 5)
                delivered.extend(position for position, _ in rows)
                client.one(ACK, [position for position, _ in rows])
                acknowledged.extend(position for position, _ in rows)

        for _ in range(2):
            before = len(acknowledged)
            with ThreadPoolExecutor(2) as pool:
                working = [pool.submit(append_on), pool.submit(consume_on)]
                while len(acknowledged) < before + 50 and not wait(working, timeout=0.02, return_when=FIRST_COMPLETED).done:
                    pass
                own_cluster.crash()
                for future in working:
                    assert isinstance(future.exception(), psycopg.OperationalError)
            own_cluster.start()
            database.close()
            # A position that was answered by an append whose client heard nothing may be missing here, none other.
            client = database.client("app")
            order = client.column("select position from llm.stream_read('s', null, null)")
            assert set(appended) <= set(order)
            pending = client.column("select position from llm.group_pending('s', 'g', null, null)")
            assert not set(pending) & set(acknowledged)
            rest = [position for position, _ in client.rows(READ, "bob", 100_000)]
            assert not set(rest) & set(delivered)
            assert len(set(rest) | set(pending) | set(acknowledged)) >= len(order) - 5
            assert client.one(ACK, rest + pending) == len(rest + pending)
            acknowledged += rest + pending
            delivered += rest + pending
            appended = [*order]


def test_what_is_no_group_is_refused(group: Client) -> None:
    for call in ("llm.group_read('s', 'none', 'ann')", "llm.group_seek('s', 'none', null)"):
        with raises(NoDataFound, match="stream 's' has no group 'none'", hint="group_create"):
            group.run(f"select {call}")
    for call in ("llm.group_create('s', '')", "llm.group_read('s', 'g', '')", "llm.group_claim('s', 'g', repeat('x', 201))"):
        with raises(InvalidParameterValue, match="a group or consumer has a name of", hint="1 to 200 bytes"):
            group.run(f"select {call}")
    for call in ("llm.group_create('s', 'h', 'x')", "llm.group_seek('s', 'g', 'x')", "llm.group_ack('s', 'g', '{1-1-1,x}')"):
        with raises(InvalidParameterValue, match="'x' is not a position of a stream"):
            group.run(f"select {call}")
    with raises(InvalidParameterValue, match="null is not a position"):
        group.run("select llm.group_ack('s', 'g', '{1-1-1,NULL}')")
    with raises(ObjectNotInPrerequisiteState, match="sees only the entries", hint="set_user"), group.transaction():
        group.run("select llm.set_user(%s)", ANNE).run(READ, "ann", 1)


def test_a_group_is_its_tenants_own(group: Client, admin: Client) -> None:
    append(group, 1)
    group.run(READ, "ann", 1)
    with admin.tenant("globex"):
        assert admin.rows("select * from llm.group_lag()") == []
        assert admin.rows(PENDING) == []
        assert admin.rows(CLAIM, "thief", "0", 10) == []
        assert admin.one("select llm.group_drop('s', 'g')") is False
        assert admin.one(ACK, [group.one("select position from llm.stream_read('s')")]) == 0
    assert group.rows(PENDING) == [(1, "ann", 1)]

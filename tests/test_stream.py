"""Streams: each entry once, in one order, for every reader."""

from __future__ import annotations

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from random import Random
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import (
    InsufficientPrivilege,
    InvalidParameterValue,
    InvalidTextRepresentation,
    NullValueNotAllowed,
    ObjectNotInPrerequisiteState,
)

from tests.support import Client, Database, in_tenant, raises

APPEND = "select llm.stream_append(%s, %s)"
ANNE, BOB = UUID(int=1), UUID(int=2)


def append(client: Client, *payloads: object, stream: str = "s") -> list[str]:
    """Append entries, each in a transaction unless one is open, and return their positions."""
    return [client.one(APPEND, stream, json.dumps(payload)) for payload in payloads]


def read(client: Client, after: str | None = None, stream: str = "s", limit: int = 1000) -> list[object]:
    """Return the payloads after a position."""
    return client.column("select payload from llm.stream_read(%s, %s, %s)", stream, after, limit)


class Reader:
    """Reads a stream on and on."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.position: object = None
        self.seen: list[str] = []

    def poll(self, limit: int = 7) -> bool:
        """Read on; tell whether there was anything."""
        rows = self.client.rows("select position, payload from llm.stream_read('s', %s, %s)", self.position, limit)
        for self.position, payload in rows:
            self.seen.append(payload)
        return bool(rows)


class NaiveReader(Reader):
    """Reads on by the numbers of entries, as one does with a serial id."""

    def poll(self, limit: int = 7) -> bool:
        """Read on; tell whether there was anything."""
        rows = self.client.rows(
            "select number, payload from llm.stream_entries where number > coalesce(%s, 0) order by number limit %s", self.position, limit
        )
        for self.position, payload in rows:
            self.seen.append(payload)
        return bool(rows)


# Appending


def test_entries_are_read_as_they_were_appended(bound: Client) -> None:
    first = bound.one("""select llm.stream_append('s', '{"a": [1, null]}', 'created')""")
    second, third = bound.one("select llm.stream_append_all('s', '{2,\"\\\"x\\\"\"}', '{updated,deleted}')")
    rows = bound.rows("select position, stream, name, payload, user_id, at <= now() from llm.stream_read('s')")
    assert rows == [
        (first, "s", "created", {"a": [1, None]}, None, True),
        (second, "s", "updated", 2, None, True),
        (third, "s", "deleted", "x", None, True),
    ]
    assert read(bound, first) == [2, "x"]
    assert read(bound, third) == []
    assert read(bound, limit=1) == [{"a": [1, None]}]
    assert read(bound, stream="other") == []
    assert bound.one("select llm.stream_append_all('s', '{}')") == []
    assert bound.one("select llm.stream_end('s')") == third
    assert bound.one("select llm.stream_end('other')") is None
    assert bound.one("select llm.stream_length('s')") == 3


def test_entries_of_one_transaction_are_in_the_order_of_their_calls(bound: Client) -> None:
    with bound.transaction():
        append(bound, 1)
        with pytest.raises(ZeroDivisionError), bound.transaction():
            append(bound, "rolled back")
            raise ZeroDivisionError
        with bound.transaction():
            append(bound, 2)
        bound.run("select llm.stream_append_all('s', array(select i::text from generate_series(3, 500) i))")
        append(bound, 501)
        assert read(bound) == []
    assert read(bound) == list(range(1, 502))


def test_text_that_json_cannot_hold_is_cleaned(bound: Client) -> None:
    bound.run("select llm.stream_append('s', %s), llm.stream_append_all('s', %s)", r'"a\u0000b"', [r'"\ud800"', r'"plain"'])
    assert read(bound) == ["a␛0000b", "␛D800", "plain"]
    cleaned = [bound.one("select llm.clean_jsonb(%s)", text) for text in (r'"a\u0000b"', r'"\ud800"')]
    assert read(bound)[:2] == cleaned


def test_what_is_no_entry_is_refused(bound: Client) -> None:
    for stream, name in (("", None), ("x" * 201, None), (None, None), ("s", ""), ("s", "x" * 201)):
        for call in ("llm.stream_append(%s, '1', %s)", "llm.stream_append_all(%s, '{1}', array[%s::text])"):
            with raises(InvalidParameterValue, match="stream and name of an entry have", hint="1 to 200 bytes"):
                bound.run(f"select {call}", stream, name)
    with raises(NullValueNotAllowed, match="an entry of stream s has no payload", hint="'null'"):
        bound.run("select llm.stream_append('s', null)")
    with raises(InvalidTextRepresentation):
        bound.run("select llm.stream_append('s', 'no json')")
    for arguments, names, users in (("'{1,NULL}'", "<NULL>", "<NULL>"), ("'{1}', '{a,b}'", 2, "<NULL>"), ("'{1}', null, '{}'", "<NULL>", 0)):
        with raises(InvalidParameterValue, match=f"there are 1 payloads, {names} names and {users} users", hint="as many names"):
            bound.run(f"select llm.stream_append_all('s', {arguments})")
    assert read(bound) == []


# Who may


def test_a_stream_is_its_tenants_own(app: Client) -> None:
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            append(app, tenant)
    with app.tenant("acme"):
        assert read(app) == ["acme"]
        assert app.column("select llm.list_streams()") == ["s"]
    for call in ("llm.stream_append('s', '1')", "llm.stream_append_all('s', '{1}')", "llm.stream_read('s')", "llm.stream_length('s')"):
        with raises(ObjectNotInPrerequisiteState, match="streams are a tenant's, and no tenant is set", hint="set_tenant"):
            app.run(f"select {call}")


def test_nobody_chooses_a_position(bound: Client, database: Database) -> None:
    append(bound, 1)
    for statement in (
        "insert into llm.stream_entries (tenant_id, stream, era, payload) values ('acme', 's', 1, '2')",
        "update llm.stream_entries set number = 1",
        "delete from llm.stream_entries",
        "select nextval('llm.stream_era_number')",
        "refresh materialized view llm.stream_era",
    ):
        with raises(InsufficientPrivilege):
            bound.run(statement)
    assert bound.column("select payload from llm.stream_entries") == [1]
    with raises(InsufficientPrivilege):
        database.client("reader").run(APPEND, "s", "1")


def test_a_user_sees_what_concerns_him_or_nobody(app: Client, admin: Client) -> None:
    with app.tenant("acme"):
        for user in (ANNE, BOB, None):
            app.run("select llm.stream_append('s', to_jsonb(%s::text)::text, null, %s)", str(user)[-1], user)
    with app.tenant("acme"):
        assert len(read(app)) == 3
        app.run("select llm.set_user(%s)", BOB)
        assert read(app) == ["2", "e"]
        assert app.column("select payload from llm.stream_entries order by number") == ["2", "e"]
        for call in ("llm.stream_append('s', '1', null, %s)", "llm.stream_append_all('s', '{1,2}', null, array[null, %s])"):
            with raises(InsufficientPrivilege, match="works for another user", hint="set_user"), app.transaction():
                app.run(f"select {call}", ANNE)
        assert app.one("select llm.stream_append('s', '3', null, %s)", BOB)
    with admin.tenant("acme"):
        admin.run("select llm.forget_user(%s)", BOB)
        assert read(admin) == ["1", "e"]
        admin.run("select llm.set_user(%s)", ANNE)
        assert read(admin) == ["1", "e"]


# The order


def test_an_older_transaction_is_waited_for_and_named(database: Database, bound: Client, db: Client) -> None:
    """The entry with the lower number is committed last: no reader is past it then."""
    slow, reader, naive = database.client("app"), Reader(database.client("app")), NaiveReader(database.client("app"))
    slow.run("begin")
    append(slow, "slow")
    append(bound, "quick")
    assert not reader.poll()
    assert naive.poll()
    assert bound.one("select (llm.stream_info('s')).waiting") == 1
    pid = slow.one("select pg_backend_pid()")
    assert bound.row("select pid, user_name, gid from llm.stream_horizon() limit 1") == (pid, "app", None)
    assert db.row("select state, began_at is not null from llm.stream_horizon() limit 1") == ("idle in transaction", True)
    slow.run("commit")
    assert bound.rows("select * from llm.stream_horizon()") == []
    assert reader.poll() and reader.seen == ["slow", "quick"]
    assert not naive.poll() and naive.seen == ["quick"]


def test_a_prepared_transaction_is_waited_for_and_named(db: Client, bound: Client) -> None:
    with db.transaction():
        in_tenant(db, "acme")
        append(db, "prepared")
        db.run("prepare transaction 'held'")
    try:
        append(bound, "quick")
        assert read(bound) == []
        assert bound.row("select gid, pid, state from llm.stream_horizon() limit 1") == ("held", None, "prepared")
    finally:
        db.run("commit prepared 'held'")
    assert read(bound) == ["prepared", "quick"]


@pytest.mark.parametrize("seed", [1, 2])
def test_each_entry_is_seen_once_in_one_order_however_writers_commit(database: Database, bound: Client, seed: int) -> None:
    """Twelve writers in random order, a third of them rolled back; the reader by numbers misses some of the same entries."""
    random, numbers = Random(seed), count()
    writers = database.clients(12, "app")
    readers = [Reader(client) for client in database.clients(3, "app")]
    naive = NaiveReader(database.client("app"))
    open_work: dict[Client, list[str]] = defaultdict(list)
    committed = []
    for _ in range(700):
        writer = random.choice(writers)
        match random.randrange(8):
            case 0 | 1 | 2 | 3:
                if writer not in open_work:
                    writer.run("begin")
                entries = [f"entry {next(numbers)}" for _ in range(random.choice((1, 1, 5)))]
                writer.run("select llm.stream_append_all('s', %s)", [json.dumps(entry) for entry in entries])
                open_work[writer] += entries
            case 4 | 5 if writer in open_work:
                ends_well = random.random() < 2 / 3
                writer.run("commit" if ends_well else "rollback")
                committed += open_work.pop(writer) if ends_well else open_work.pop(writer)[:0]
            case _:
                random.choice([*readers, naive]).poll(random.choice((1, 10, 100)))
    for writer, entries in open_work.items():
        writer.run("commit")
        committed += entries
    for each in (*readers, naive):
        while each.poll(50):
            pass
    assert sorted(readers[0].seen) == sorted(committed)
    assert len(readers[0].seen) > 300
    assert all(reader.seen == readers[0].seen for reader in readers)
    assert read(bound, limit=10_000) == readers[0].seen
    assert set(naive.seen) < set(committed)


def test_each_entry_is_seen_once_in_one_order_by_those_who_read_all_the_time(database: Database, bound: Client) -> None:
    """Eight clients append as fast as they can, a fourth of it in vain, while three read."""
    writers, readers = database.clients(8, "app"), [Reader(client) for client in database.clients(3, "app")]

    def write(number: int) -> list[str]:
        random, client, done = Random(number), writers[number], []
        for step in range(60):
            entries = [f"{number}.{step}.{part}" for part in range(random.choice((1, 3)))]
            client.run("begin")
            for entry in entries:
                append(client, entry)
            if random.random() < 0.75:
                client.run("commit")
                done += entries
            else:
                client.run("rollback")
        return done

    with ThreadPoolExecutor(11) as pool:
        written = [pool.submit(write, number) for number in range(8)]

        def follow(reader: Reader) -> None:
            random = Random(0)
            while not all(future.done() for future in written):
                reader.poll(random.choice((1, 10, 100)))
            while reader.poll(100):
                pass

        list(pool.map(follow, readers))
        committed = [entry for future in written for entry in future.result()]
    assert sorted(readers[0].seen) == sorted(committed)
    assert all(reader.seen == readers[0].seen for reader in readers)


def test_a_new_era_goes_on_behind_the_old_one(db: Client, database: Database, bound: Client) -> None:
    """What a restore does, here while a reader has an older snapshot: he still misses nothing."""
    slow, reader = database.client("app"), Reader(database.client("app"))
    slow.run("begin")
    append(slow, "old 1")
    append(bound, "old 2")
    reader.client.run("begin isolation level repeatable read").run("select count(*) from llm.schema_migrations")
    slow.run("commit")
    db.run("refresh materialized view llm.stream_era")
    append(bound, "new 1")
    reader.poll()
    reader.client.run("commit")
    assert reader.seen == []
    reader.poll()
    assert reader.seen == ["old 1", "old 2", "new 1"]
    db.run("update llm.stream_entries set transaction_id = '4000000000' where payload = '\"old 2\"'")
    assert read(bound) == ["old 1", "old 2", "new 1"]
    assert read(bound, bound.one("select position from llm.stream_read('s') where payload = '\"old 2\"'")) == ["new 1"]


def test_appending_takes_no_lock_that_all_wait_for(database: Database, bound: Client, db: Client) -> None:
    """Q-08: NOTIFY's lock on all databases (object 0 of pg_database) is never seen, nor any other heavy lock on the tables."""
    bound.run("select llm.channel_subscribe('ann', '{*}')")
    writers = database.clients(4, "app")
    locks = """
        select distinct l.mode, l.relation::regclass::text from pg_locks l
        where l.classid = 'pg_database'::regclass and l.objid = 0
            or l.locktype = 'relation' and l.mode !~ 'AccessShare|RowExclusive|RowShare|ShareUpdate'
        """

    def write(client: Client) -> None:
        for number in range(100):
            client.run("begin").run(APPEND, "s", str(number)).run("select llm.channel_publish('c', '1')").run("commit")

    with ThreadPoolExecutor(4) as pool:
        written = [pool.submit(write, client) for client in writers]
        found = set()
        while not all(future.done() for future in written):
            found |= set(db.rows(locks))
    assert all(future.result() is None for future in written)
    assert found == set()


def test_serializable_transactions_append_side_by_side(database: Database, bound: Client) -> None:
    """Q-17"""
    one, other = database.client("app"), database.client("app")
    for client in (one, other):
        client.run("begin isolation level serializable")
    append(one, 1)
    append(other, 2)
    one.run("commit")
    other.run("commit")
    assert read(bound) == [1, 2]


def test_rows_of_an_unknown_connection_state_do_not_stay(database: Database, bound: Client) -> None:
    """A client that dies in mid-transaction leaves nothing, and holds nobody up."""
    dying = database.client("app")
    dying.run("begin")
    append(dying, "lost")
    append(bound, "kept")
    pid = dying.one("select pg_backend_pid()")
    bound_admin = database.client()
    bound_admin.run("select pg_terminate_backend(%s)", pid)
    bound_admin.wait("select not exists (select from llm.stream_horizon())")
    assert read(bound) == ["kept"]
    with pytest.raises(psycopg.Error):
        dying.run("select 1")

"""Facts, with the time in which they hold and the time in which they were believed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import product
from random import Random
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import (
    ExclusionViolation,
    InsufficientPrivilege,
    InvalidParameterValue,
    NoDataFound,
    NullValueNotAllowed,
    ObjectNotInPrerequisiteState,
    ProgramLimitExceeded,
    SerializationFailure,
)
from psycopg.types.json import Jsonb

from tests.support import Client, Database, raises, wait_until

ANNE, BOB = UUID(int=1), UUID(int=2)

WAITING = "select count(*) = 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"

REMEMBER = "select (llm.remember('user', %s, %s, %s)).memory_id"


@pytest.fixture
def acme(app: Client) -> Iterator[Client]:
    """An application's client in a transaction for tenant acme."""
    with app.tenant("acme"):
        yield app


def known(client: Client, owner: object = ANNE) -> dict[str, object]:
    """Return what is known now of a user."""
    return dict(client.rows("select predicate, value from llm.list_memories('user', %s::text)", str(owner)))


# Remembering


def test_a_fact_replaces_what_contradicts_it(acme: Client) -> None:
    first = acme.one(REMEMBER, str(ANNE), "lives in", Jsonb("Oslo"))
    second = acme.one(REMEMBER, str(ANNE), "lives in", Jsonb("Bergen"))
    assert first != second
    assert known(acme) == {"lives in": "Bergen"}
    assert acme.rows("select value, known_to is null, valid_to is null from llm.memory_history(%s)", first) == [
        ("Oslo", False, True),
        ("Oslo", True, False),
        ("Bergen", True, True),
    ]
    assert [acme.one("select llm.memory_exists(%s)", fact) for fact in (first, second, uuid4())] == [False, True, False]


def test_a_fact_that_is_known_is_not_written_again(acme: Client) -> None:
    """mem0ai/mem0#1674: what is added twice is there, once."""
    ids = {acme.one(REMEMBER, str(ANNE), "lives in", Jsonb("Oslo")) for _ in range(3)}
    assert len(ids) == 1
    assert acme.one("select count(*) from llm.memories") == 1


def test_a_predicate_may_have_many_values(acme: Client) -> None:
    for drink in ("tea", "coffee", "tea"):
        acme.run("select llm.remember('user', %s, 'drinks', %s, p_many => true)", str(ANNE), Jsonb(drink))
    assert acme.column("select value from llm.list_memories('user', %s)", str(ANNE)) == ["tea", "coffee"]
    with raises(InvalidParameterValue, match="predicate drinks has many values at a time", hint="p_many", detail="Memory .* says so"):
        acme.run("select llm.remember('user', %s, 'drinks', '1')", str(ANNE))


def test_a_predicate_with_one_value_does_not_get_many(acme: Client) -> None:
    acme.run(REMEMBER, str(ANNE), "lives in", Jsonb("Oslo"))
    with raises(InvalidParameterValue, match="predicate lives in has one value at a time"):
        acme.run("select llm.remember('user', %s, 'lives in', '1', p_many => true)", str(ANNE))


def test_a_contradiction_can_be_refused(acme: Client) -> None:
    fact = acme.one(REMEMBER, str(ANNE), "lives in", Jsonb("Oslo"))
    create = "select (llm.remember('user', %s, 'lives in', %s, p_replace => false)).memory_id"
    assert acme.one(create, str(ANNE), Jsonb("Oslo")) == fact
    with raises(ExclusionViolation, match="lives in is known already", hint="p_replace", detail=str(fact)):
        acme.run(create, str(ANNE), Jsonb("Bergen"))


def test_a_fact_of_another_owner_subject_or_scope_is_another_fact(acme: Client) -> None:
    for scope, owner, subject in (
        ("user", str(ANNE), ""),
        ("user", str(ANNE), "cat"),
        ("user", str(BOB), ""),
        ("agent", "a", ""),
        ("conversation", "a", ""),
    ):
        acme.run("select llm.remember(%s, %s, 'name', to_jsonb(%s::text), %s)", scope, owner, scope + owner + subject, subject)
    assert acme.one("select count(*) from llm.list_memories()") == 5
    assert acme.column("select value from llm.list_memories(p_subject => 'cat')") == [f"user{ANNE}cat"]
    assert acme.one("select llm.count_memories('user')") == 3
    assert acme.one("select llm.count_memories(p_user_id => %s)", BOB) == 1


def test_what_looks_alike_when_joined_is_not_the_same(acme: Client) -> None:
    """Owner, subject and predicate make up the key of a fact; their borders count."""
    for owner, subject, predicate in (
        ("ab", "c", "d"),
        ("a", "bc", "d"),
        ("a", "b", "cd"),
        ("1:1", "c", "d"),
        ("\\", "\\x41", "d"),
        ("\\\\", "A", "d"),
    ):
        acme.run("select llm.remember('agent', %s, %s, '1', %s)", owner, predicate, subject)
    assert acme.one("select llm.count_memories()") == 6


@pytest.mark.parametrize(
    ("arguments", "error", "match", "hint"),
    [
        ("'world', 'x', 'p', '1'", InvalidParameterValue, "a fact cannot be remembered for scope 'world'", "user, agent and conversation"),
        ("null, 'x', 'p', '1'", InvalidParameterValue, "for scope null", ""),
        ("'agent', '', 'p', '1'", InvalidParameterValue, "owner, subject and predicate of a fact have 0, 0 and 1 bytes", "1 to 200 bytes"),
        ("'agent', 'a', null, '1'", InvalidParameterValue, "have 1, 0 and no bytes", ""),
        ("'agent', 'a', 'p', '1', repeat('é', 101)", InvalidParameterValue, "have 1, 202 and 1 bytes", ""),
        ("'user', 'anne', 'p', '1'", InvalidParameterValue, "the owner of a user's fact is 'anne', not the user's id", "UUID in lower case"),
        (f"'user', '{ANNE}', 'p', '1', p_user_id => '{BOB}'", InvalidParameterValue, "the owner of a user's fact is", ""),
        ("'agent', 'a', 'p', null", NullValueNotAllowed, "the value of p is null", "llm.end_memory"),
        ("'agent', 'a', 'p', '1', p_content => repeat('x', 65537)", ProgramLimitExceeded, "the content of a fact has 65537 bytes", "p_source"),
        ("'agent', 'a', 'p', '1', p_valid_to => '2020-01-01'", InvalidParameterValue, "a fact cannot hold from now until 2020-01-01", "begins now"),
        ("'agent', 'a', 'p', '1', p_valid_from => '2020-01-01Z', p_valid_to => '2020-01-01Z'", InvalidParameterValue, "cannot hold from 2020", ""),
    ],
)  # fmt: skip
def test_what_is_no_fact_is_refused(acme: Client, arguments: str, error: type[psycopg.Error], match: str, hint: str) -> None:
    with raises(error, match=match, hint=hint), acme.transaction():
        acme.run(f"select llm.remember({arguments})")
    assert acme.one("select count(*) from llm.memories") == 0


def test_without_a_tenant_nothing_is_remembered(app: Client, db: Client) -> None:
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        app.run("select llm.remember('agent', 'a', 'p', '1')")
    with pytest.raises(psycopg.errors.CheckViolation, match="memories_tenant_id_check"):
        db.run("select llm.remember('agent', 'a', 'p', '1')")
    assert app.rows("select * from llm.list_memories()") == []


def test_a_batch_is_remembered_whole_or_not_at_all(acme: Client) -> None:
    facts = [
        {"scope": "user", "owner": str(ANNE), "predicate": name, "value": value, "metadata": {"n": name}, "many": False}
        for name, value in (("z", 1), ("a", None), ("z", 2))
    ]
    rows = acme.rows("select predicate, value, metadata from llm.remember_all(%s)", Jsonb(facts))
    assert rows == [("z", 1, {"n": "z"}), ("a", None, {"n": "a"}), ("z", 2, {"n": "z"})]
    assert known(acme) == {"a": None, "z": 2}
    with raises(NullValueNotAllowed, match="the value of c is null"), acme.transaction():
        acme.run("select llm.remember_all(%s)", Jsonb([facts[0] | {"value": 9}, {"scope": "agent", "owner": "a", "predicate": "c"}]))
    assert known(acme) == {"a": None, "z": 2}
    for bad in ('{"scope": "user"}', "[1]", "3", "[[]]", None):
        with raises(InvalidParameterValue, match="these are not facts", hint="array of objects"), acme.transaction():
            acme.run("select llm.remember_all(%s)", bad)


# Changing


def test_a_fact_is_updated_by_who_has_seen_the_newest(acme: Client) -> None:
    fact = acme.one(REMEMBER, str(ANNE), "lives in", Jsonb("Oslo"))
    update = "select (llm.update_memory(%s, %s)).memory_id"
    newer = acme.one(update, fact, Jsonb("Bergen"))
    with raises(SerializationFailure, match="is a thing of the past", hint="llm.memory_history"), acme.transaction():
        acme.run(update, fact, Jsonb("Tromsø"))
    assert known(acme) == {"lives in": "Bergen"}
    assert acme.one("select (llm.get_memory(%s)).value", newer) == "Bergen"
    with raises(NoDataFound, match="does not exist", hint="llm.list_memories"), acme.transaction():
        acme.run(update, uuid4(), Jsonb(1))


def test_one_of_many_values_is_updated(acme: Client) -> None:
    ids = [acme.one("select (llm.remember('agent', 'a', 'likes', %s, p_many => true)).memory_id", Jsonb(value)) for value in ("tea", "milk")]
    acme.run("select llm.update_memory(%s, '\"coffee\"')", ids[0])
    assert sorted(acme.column("select value from llm.list_memories()")) == ["coffee", "milk"]


def test_a_fact_ends(acme: Client) -> None:
    fact = acme.one(REMEMBER, str(ANNE), "lives in", Jsonb("Oslo"))
    before = acme.one("select clock_timestamp()")
    assert acme.one("select llm.end_memory(%s)", fact) is True
    assert acme.one("select llm.end_memory(%s)", fact) is False
    assert known(acme) == {}
    now_known = "select value from llm.memory_as_of(%s, 'user', %s, p_known_at => clock_timestamp())"
    assert acme.column(now_known, before, str(ANNE)) == ["Oslo"]


def test_a_fact_that_is_taken_back_was_never_true_but_was_believed(acme: Client) -> None:
    fact = acme.one(REMEMBER, str(ANNE), "lives in", Jsonb("Oslo"))
    before = acme.one("select clock_timestamp()")
    assert acme.one("select llm.forget_memory(%s)", fact) is True
    assert acme.one("select llm.forget_memory(%s)", fact) is False
    assert known(acme) == {}
    assert acme.column("select value from llm.memory_as_of(%s, 'user', %s, p_known_at => clock_timestamp())", before, str(ANNE)) == []
    assert acme.column("select value from llm.memory_as_of(%s, 'user', %s)", before, str(ANNE)) == ["Oslo"]


def test_an_erased_fact_leaves_no_trace(acme: Client) -> None:
    fact = acme.one(REMEMBER, str(ANNE), "lives in", Jsonb("Oslo"))
    assert acme.one("select llm.forget_memory(%s, true)", fact) is True
    assert acme.one("select count(*) from llm.memories") == 0
    with raises(NoDataFound, match="does not exist"):
        acme.run("select llm.forget_memory(%s)", fact)


def test_only_the_named_owners_facts_are_forgotten(acme: Client) -> None:
    """mem0ai/mem0#3928: deleting one user's memories deleted everybody's."""
    for owner, name in product((ANNE, BOB), ("a", "b")):
        acme.run(REMEMBER, str(owner), name, Jsonb(1))
    for scope, owner_of in (("user", None), (None, str(ANNE)), (None, None)):
        with raises(InvalidParameterValue, match="not said whose memories", hint="p_scope and p_owner"), acme.transaction():
            acme.run("select llm.forget_memories(%s, %s)", scope, owner_of)
    assert acme.one("select llm.forget_memories('user', %s, p_predicate => 'a')", str(ANNE)) == 1
    assert acme.one("select llm.forget_memories('user', %s)", str(ANNE)) == 1
    assert (known(acme), known(acme, BOB)) == ({}, {"a": 1, "b": 1})
    assert acme.one("select llm.forget_memories('user', %s, p_erase => true)", str(ANNE)) == 2
    assert acme.one("select count(*) from llm.memories where user_id = %s", ANNE) == 0


# Time


def test_the_past_is_told_as_it_was_believed_and_as_it_is_known_now(acme: Client) -> None:
    """A correction: since Monday it had been Bergen, which was learnt on Friday."""
    acme.run("select llm.remember('user', %s, 'lives in', '\"Oslo\"', p_valid_from => now() - interval '30 days')", str(ANNE))
    believed = acme.one("select clock_timestamp()")
    acme.run("select llm.remember('user', %s, 'lives in', '\"Bergen\"', p_valid_from => now() - interval '4 days')", str(ANNE))
    as_of = "select value from llm.memory_as_of(now() - %s, 'user', %s, p_known_at => %s)"
    days = [timedelta(days=days) for days in (1, 5, 40)]
    assert [acme.column(as_of, day, str(ANNE), believed) for day in days] == [["Oslo"], ["Oslo"], []]
    assert [acme.column(as_of, day, str(ANNE), datetime.now(UTC)) for day in days] == [["Bergen"], ["Oslo"], []]


def test_a_fact_within_another_leaves_both_its_ends(acme: Client) -> None:
    remember = "select llm.remember('agent', 'a', 'state', %s, p_valid_from => %s, p_valid_to => %s)"
    acme.run(remember, Jsonb("open"), "-infinity", "infinity")
    acme.run(remember, Jsonb("closed"), "2024-08-01Z", "2024-09-01Z")
    rows = acme.rows("select value, valid_from, valid_to from llm.memory_facts where known_to is null order by valid_from nulls first")
    august, september = (datetime(2024, month, 1, tzinfo=UTC) for month in (8, 9))
    assert rows == [("open", None, august), ("closed", august, september), ("open", september, None)]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe"])
def test_q_13_validity_is_the_same_in_every_time_zone(app: Client, zone: str) -> None:
    """Days on which clocks change, hour by hour, told in local time and asked in UTC."""
    for number, start in enumerate((datetime(2024, 3, 10, tzinfo=UTC), datetime(2024, 3, 31, tzinfo=UTC), datetime(2024, 10, 5, 12, tzinfo=UTC))):
        hours = [start + timedelta(hours=hour) for hour in range(30)]
        app.run("select set_config('TimeZone', %s, false)", zone)
        with app.tenant("acme"):
            for hour in hours:
                local = app.one("select %s::timestamptz::text", hour)
                app.run(
                    "select llm.remember('agent', %s, 'hour', to_jsonb(%s::text), p_valid_from => %s::text::timestamptz)",
                    str(number),
                    str(hour),
                    local,
                )
            app.run("select set_config('TimeZone', 'UTC', true)")
            for hour in hours:
                for minutes in (0, 59):
                    as_of = "select value from llm.memory_as_of(%s, 'agent', %s, p_known_at => clock_timestamp())"
                    assert app.column(as_of, hour + timedelta(minutes=minutes), str(number)) == [str(hour)]


def test_no_sequence_of_changes_leaves_two_values_at_a_time(acme: Client) -> None:
    """Against a model: for each day the value that was last said of it."""
    random, days = Random(4), 40
    start = datetime(2024, 1, 1, tzinfo=UTC)
    model: list[int | None] = [None] * days
    past: list[tuple[datetime, list[int | None]]] = []
    for value in range(60):
        begin, end = sorted(random.sample(range(days + 1), 2))
        acme.run(
            "select llm.remember('agent', 'a', 'state', %s, p_valid_from => %s, p_valid_to => %s)",
            Jsonb(value), start + timedelta(days=begin), start + timedelta(days=end),
        )  # fmt: skip
        model[begin:end] = [value] * (end - begin)
        past.append((acme.one("select clock_timestamp()"), list(model)))
    query = """
        select (select value from llm.memory_as_of(%s + d * interval '1 day', 'agent', 'a', p_known_at => %s))
        from generate_series(0, %s) d order by d
        """
    for moment, expected in past[::7] + past[-1:]:
        assert acme.column(query, start, moment, days - 1) == expected


def test_contradicting_facts_are_refused_by_the_table_itself(acme: Client) -> None:
    acme.run(REMEMBER, str(ANNE), "lives in", Jsonb("Oslo"))
    with pytest.raises(ExclusionViolation, match="memories_contradiction"):
        acme.run(
            "insert into llm.memories (scope, owner, user_id, predicate, value, content) values ('user', %s, %s, 'lives in', '1', '')",
            str(ANNE),
            ANNE,
        )


@pytest.mark.parametrize("range_", ["empty", "(2020-01-01,)", "[2020-01-01,2021-01-01]", "[-infinity,)", "[2020-01-01,infinity)"])
def test_times_have_one_form(acme: Client, range_: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="memories_times_check"):
        acme.run("insert into llm.memories (scope, owner, predicate, value, content, valid) values ('agent', 'a', 'p', '1', '', %s)", range_)


def test_an_application_does_not_rewrite_what_was_known(acme: Client) -> None:
    acme.run(REMEMBER, str(ANNE), "lives in", Jsonb("Oslo"))
    with pytest.raises(InsufficientPrivilege):
        acme.run("update llm.memories set value = '1'")


# Several at once


@pytest.mark.parametrize("first_has_many", [False, True])
def test_a_predicate_does_not_become_one_of_many_values_at_once(database: Database, first_has_many: bool) -> None:
    """Both say that they are the first, of whom one waits."""
    first, second, db = (database.client(user) for user in ("app", "app", "postgres"))
    remember = "select llm.remember('agent', 'a', 'speaks', %s, p_many => %s)"

    def remember_other() -> None:
        with second.tenant("acme"):
            second.run(remember, Jsonb("Danish"), not first_has_many)

    with ThreadPoolExecutor(1) as pool:
        with first.tenant("acme"):
            first.run(remember, Jsonb("Norwegian"), first_has_many)
            other = pool.submit(remember_other)
            wait_until(lambda: other.done() or db.one(WAITING))
        with raises(InvalidParameterValue, match="predicate speaks has (many values|one value) at a time"):
            other.result()
    assert db.column("select value from llm.memories") == ["Norwegian"]


def test_facts_that_contradict_remembered_at_once_follow_each_other(database: Database) -> None:
    """Sixteen clients, one predicate, new or known before: no error, no deadlock, one value at a time, all in the history."""
    clients = database.clients(16, "app")

    def talk(number: int) -> None:
        for turn in range(10):
            with clients[number].tenant("acme"):
                clients[number].run(REMEMBER, str(ANNE), "mood", Jsonb(number * 100 + turn))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(talk, range(16)))
    with clients[0].tenant("acme"):
        assert len(known(clients[0])) == 1
        assert clients[0].one("select count(distinct value) from llm.memories") == 160
        overlaps = """
            select count(*) from llm.memories a join llm.memories b on a.memory_id < b.memory_id and a.valid && b.valid and a.known && b.known
            """
        assert clients[0].one(overlaps) == 0
        assert clients[0].one(
            "select range_agg(valid) = tstzmultirange(tstzrange(min(lower(valid)), null)) from llm.memories where upper(known) is null"
        )


def test_q_06_batches_in_any_order_do_not_deadlock(database: Database) -> None:
    clients = database.clients(8, "app")
    names = [f"predicate {number}" for number in range(12)]

    def talk(number: int) -> None:
        random = Random(number)
        for turn in range(6):
            random.shuffle(names_of := list(names))
            facts = [{"scope": "agent", "owner": "a", "predicate": name, "value": f"{number} {turn}"} for name in names_of]
            with clients[number].tenant("acme"):
                clients[number].run("select llm.remember_all(%s)", Jsonb(facts))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(talk, range(8)))
    with clients[0].tenant("acme"):
        values = clients[0].column("select value from llm.list_memories()")
    assert len(values) == 12
    assert len(set(values)) == 1, "each batch is one transaction, so the last one's values are there together"


def test_a_repeatable_read_transaction_does_not_overwrite_what_it_cannot_see(database: Database) -> None:
    first, second = database.clients(2, "app")
    with pytest.raises(SerializationFailure), first.transaction():
        first.run("set transaction isolation level repeatable read").run("select llm.set_tenant('acme')")
        assert first.one("select llm.count_memories()") == 0
        with second.tenant("acme"):
            second.run(REMEMBER, str(ANNE), "mood", Jsonb(1))
        first.run(REMEMBER, str(ANNE), "mood", Jsonb(2))
    with second.tenant("acme"):
        assert known(second) == {"mood": 1}


# Tenants


def test_a_fact_of_a_user_who_is_hidden_is_not_contradicted(database: Database) -> None:
    """RLS-04: an agent's fact on one user, while the agent works for another: refused at once."""
    app = database.client("app")
    app.run("set statement_timeout = '10s'")
    remember = "select llm.remember('agent', 'helper', 'style', %s, %s)"
    with app.tenant("acme"):
        app.run("select llm.set_user(%s)", ANNE).run(remember, Jsonb("terse"), "")
    with app.tenant("acme"):
        app.run("select llm.set_user(%s)", BOB)
        with raises(ExclusionViolation, match="style is known already, of another user", hint="p_subject"), app.transaction():
            app.run(remember, Jsonb("long"), "")
        app.run(remember, Jsonb("long"), "bob")
    with app.tenant("acme"):
        app.run(remember, Jsonb("long"), "")
        assert app.column("select value from llm.list_memories('agent') order by subject") == ["long", "long"]


def test_a_tenants_facts_are_nobody_elses(database: Database) -> None:
    """RLS-02, RLS-04, RLS-12: the same users, predicates and ids in two tenants, through every function."""
    app = database.client("app")
    ids: dict[tuple[str, UUID], UUID] = {}
    for tenant, user in product(("acme", "globex"), (ANNE, BOB)):
        with app.tenant(tenant):
            ids[tenant, user] = app.one(REMEMBER, str(user), "secret", Jsonb(f"of {user} at {tenant}"))
    for tenant, other in (("acme", "globex"), ("globex", "acme")):
        with app.tenant(tenant):
            assert known(app) == {"secret": f"of {ANNE} at {tenant}"}
            answers = [
                app.rows(f"select {call}::text", *arguments)
                for call, arguments in (
                    ("llm.get_memory(%s)", [ids[other, ANNE]]),
                    ("llm.get_memories(%s)", [list(ids.values())]),
                    ("llm.list_memories()", []),
                    ("llm.memory_as_of(clock_timestamp(), 'user', %s)", [str(ANNE)]),
                    ("llm.memory_history(%s)", [ids[other, ANNE]]),
                    ("llm.search_memories('secret of at acme globex')", []),
                )
            ]
            assert other not in str(answers)
            assert [len(rows) for rows in answers] == [1, 2, 2, 1, 0, 2]
            assert app.one("select llm.memory_exists(%s)", ids[other, ANNE]) is False
            for call in ("update_memory(%s, '1')", "end_memory(%s)", "forget_memory(%s)", "forget_memory(%s, true)"):
                with raises(NoDataFound, match="does not exist"), app.transaction():
                    app.run(f"select llm.{call}", ids[other, ANNE])
            # RLS-12: another tenant's id in use is not told.
            with raises(psycopg.errors.InsufficientPrivilege, match="row-level security"), app.transaction():
                app.run(
                    "insert into llm.memories (tenant_id, scope, owner, predicate, value, content) values (%s, 'agent', 'a', 'p', '1', '')", other
                )
            app.run(
                "insert into llm.memories (memory_id, scope, owner, predicate, value, content) values (%s, 'agent', 'a', 'p', '1', '')",
                ids[other, BOB],
            )
            assert app.one("select llm.forget_memories('user', %s)", str(BOB)) == 1
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            assert (len(known(app)), known(app, BOB)) == (1, {})

"""Rate limits as applications ask for them: never more than allowed, whoever asks at once, by one limit or several; what a rollback undoes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from random import Random
from time import monotonic
from typing import Any

import pytest
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue, ObjectNotInPrerequisiteState, ProgramLimitExceeded, SerializationFailure
from psycopg.types.json import Jsonb

from tests.support import Client, Database, at_once, in_tenant, raises
from tests.test_rate_counter import ALGORITHMS, ASK, SHARED, seconds

# As an application calls it


def test_limits_are_by_resource_identifier_window_and_algorithm(acme: Client) -> None:
    ask = "select allowed from llm.rate_limit(%s, %s, 1, %s, p_algorithm => %s)"
    for limit in (
        ("api", "ann", "1 min", "sliding_log"),
        ("api", "bob", "1 min", "sliding_log"),
        ("web", "ann", "1 min", "sliding_log"),
        ("api", "ann", "2 min", "sliding_log"),
        ("api", "ann", "60 s", "token_bucket"),
        ("a", "piann", "1 min", "sliding_log"),
    ):
        assert [acme.one(ask, *limit), acme.one(ask, *limit)] == [True, False]
    assert acme.one(ask, "api", "ann", "60 seconds", "sliding_log") is False


def test_a_cost_of_nothing_asks_whether_anything_is_left(acme: Client) -> None:
    ask = "select allowed, remaining from llm.rate_limit('api', 'ann', 2, '1 hour', %s, p_transactional => %s)"
    for transactional in (True, False):
        acme.run("select llm.reset_rate_limit('api', 'ann')")
        assert acme.row(ask, 0, transactional) == (True, 2)
        assert acme.row(ask, 2, transactional) == (True, 0)
        assert acme.row(ask, 0, transactional) == (False, 0)
        assert acme.row(ask, 3, transactional) == (False, 0)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("", "a", 1, "1 s", 1, None), "resource and identifier of a limit have 0 and 1 bytes", "1 to 200 bytes"),
        (("r", None, 1, "1 s", 1, None), "resource and identifier of a limit have 1 and no bytes", "all would share"),
        (("r\x1f", "a", 1, "1 s", 1, None), "a resource has the character", "Leave it out"),
        (("r", "a", -1, "1 s", 1, None), "a limit of -1 cannot be asked for 1", "0 to 1,000"),
        (("r", "a", 1, "1 s", None, None), "a limit of 1 cannot be asked for null", "A cost of 0 only asks"),
        (("r", "a", 1, "-1 s", 1, None), "a limit cannot be for -00:00:01", "a millisecond to a year"),
        (("r", "a", 1, None, 1, None), "a limit cannot be for null", "a millisecond to a year"),
        (("r", "a", 1, "1 s", 1, "leaky"), "a limit cannot be kept by 'leaky'", "sliding_window, sliding_log and token_bucket"),
    ],
)
def test_bad_limits_are_refused(acme: Client, arguments: tuple[Any, ...], message: str, hint: str) -> None:
    with raises(InvalidParameterValue, match=message, hint=hint):
        acme.run("select llm.rate_limit(%s, %s, %s, %s, %s, %s)", *arguments)


def test_a_log_is_for_small_limits(acme: Client) -> None:
    with raises(ProgramLimitExceeded, match="a log cannot keep a limit of 10001", hint="sliding_window"):
        acme.run(ASK, 10_001, "1 s", "sliding_log")


def test_a_limit_is_a_tenants(database: Database) -> None:
    """RLS-04: also those in shared memory; and nobody writes the table."""
    app = database.client("app")
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            for statement, arguments in ((ASK, (1, "1 h", "sliding_log")), (SHARED, ("ann", 1, "1 h"))):
                assert [app.one(statement, *arguments), app.one(statement, *arguments)] == [True, False]
            assert app.one("select count(*) from llm.rate_limits") == 1
            for write in ("delete from llm.rate_limits", "update llm.rate_limits set used = 0"):
                with raises(InsufficientPrivilege), app.transaction():
                    app.run(write)
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        app.run(ASK, 1, "1 s", None)
    assert database.client("admin").one(ASK, 1, "1 s", None) is True


def test_names_are_kept_as_hashes(acme: Client) -> None:
    acme.run("select llm.rate_limit('api', 'ann@example.com', 1, '1 s')")
    assert "example" not in str(acme.rows("select r::text from llm.rate_limits r"))


def test_a_limit_begins_anew(acme: Client) -> None:
    for algorithm in ALGORITHMS:
        acme.run(ASK, 1, "1 h", algorithm)
    acme.run(SHARED, "ann", 1, "1 h")
    assert acme.one("select llm.reset_rate_limit('api', 'ann')") == 4
    assert acme.one("select llm.reset_rate_limit('api', 'ann')") == 0
    assert all(acme.one(ASK, 1, "1 h", algorithm) for algorithm in ALGORITHMS)
    assert acme.one(SHARED, "ann", 1, "1 h") is True


# Transactions


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_who_is_denied_neither_writes_nor_waits(database: Database, algorithm: str) -> None:
    first, second = (in_tenant(client, "acme") for client in database.clients(2, "app"))
    first.run(ASK, 1, "1 h", algorithm).run("commit")
    database.client().run("begin").run("select * from llm.rate_limits for update")
    second.run("set lock_timeout = '1s'")
    assert second.one(ASK, 1, "1 h", algorithm) is False
    assert second.one("select pg_current_xact_id_if_assigned()") is None


def test_a_rollback_undoes_what_was_counted(app: Client) -> None:
    for _ in range(3):
        in_tenant(app, "acme")
        assert app.one(ASK, 1, "1 h", None) is True
        app.run("rollback")


def test_a_rollback_does_not_undo_what_was_counted_in_shared_memory(app: Client) -> None:
    answers = []
    for _ in range(3):
        in_tenant(app, "acme")
        answers.append(app.row("select * from llm.rate_limit('api', 'rolled back', 2, '1 hour', p_transactional => false)"))
        assert app.one("select pg_current_xact_id_if_assigned()") is None
        app.run("rollback")
    assert [answer[:2] for answer in answers] == [(True, 1), (True, 0), (False, 0)]
    assert timedelta(minutes=29) < answers[2][2] < timedelta(minutes=30)
    assert timedelta(minutes=59) < answers[2][3] < timedelta(minutes=60)


def test_only_a_token_bucket_is_in_shared_memory(acme: Client) -> None:
    with raises(InvalidParameterValue, match="a sliding_log is not kept outside of transactions", hint="transaction of its own"):
        acme.run("select llm.rate_limit('api', 'ann', 1, '1 s', p_algorithm => 'sliding_log', p_transactional => false)")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_q_17_a_repeatable_read_transaction_does_not_count_on_what_is_old(database: Database, algorithm: str) -> None:
    first, second = database.clients(2, "app")
    with second.tenant("acme"):
        second.run(ASK, 5, "1 h", algorithm)
    first.run("begin isolation level repeatable read").run("select llm.set_tenant('acme')").run("select count(*) from llm.rate_limits")
    with second.tenant("acme"):
        second.run(ASK, 5, "1 h", algorithm)
    with pytest.raises(SerializationFailure):
        first.run(ASK, 5, "1 h", algorithm)


# Several at once


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "shared"])
def test_sixteen_clients_are_never_allowed_more(database: Database, algorithm: str) -> None:
    """A window in which time plays no role: exactly the limit."""
    clients = database.clients(16, "app")
    database.client("admin").run("select llm.bind_role('app', 'acme')")

    def ask(client: Client) -> int:
        if algorithm == "shared":
            return sum(client.one(SHARED, "crowd", 50, "365 days") for _ in range(10))
        return sum(client.one(ASK, 50, "365 days", algorithm) for _ in range(10))

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, clients)) == 50


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "shared"])
def test_sixteen_clients_are_never_allowed_more_in_any_window(database: Database, algorithm: str) -> None:
    """Windows that pass meanwhile: whatever was surely allowed within one is not more than the limit."""
    clients = database.clients(16, "app")
    database.client("admin").run("select llm.bind_role('app', 'acme')")
    limit, window = 10, 0.1
    allowed: list[tuple[float, float]] = []
    call = "select allowed from llm.rate_limit('api', 'windows', %s, %s, p_algorithm => %s, p_transactional => %s)"
    arguments = (limit, seconds(window), None if algorithm == "shared" else algorithm, algorithm != "shared")

    def ask(client: Client) -> None:
        while len(allowed) < 8 * limit:
            before = monotonic()
            if client.one(call, *arguments):
                allowed.append((before, monotonic()))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, clients))
    for start, _ in allowed:
        inside = sum(1 for before, after in allowed if before >= start and after < start + window)
        assert inside <= (2 * limit if algorithm in ("token_bucket", "shared") else limit)


def test_several_limits_count_all_or_none(acme: Client) -> None:
    limits = [
        {"resource": "requests", "identifier": "ann", "limit": 3, "window": "1 min"},
        {"resource": "tokens", "identifier": "ann", "limit": 100, "window": "1 min", "cost": 40, "algorithm": "token_bucket"},
        {"resource": "requests", "identifier": "ann", "limit": 9, "window": "1 hour", "algorithm": "sliding_log"},
    ]
    ask = "select resource, allowed, remaining from llm.rate_limit_all(%s)"
    assert acme.rows(ask, Jsonb(limits)) == [("requests", True, 2), ("tokens", True, 60), ("requests", True, 8)]
    assert acme.rows(ask, Jsonb(limits)) == [("requests", True, 1), ("tokens", True, 20), ("requests", True, 7)]
    assert acme.rows(ask, Jsonb(limits)) == [("requests", True, 1), ("tokens", False, 20), ("requests", True, 7)]
    assert acme.one("select bool_and(allowed) from llm.rate_limit_all(%s)", Jsonb(limits[:1])) is True
    assert acme.rows(ask, Jsonb([{**limits[0], "cost": 0}])) == [("requests", False, 0)]


def test_bad_lists_of_limits_are_refused(acme: Client) -> None:
    one = {"resource": "r", "identifier": "i", "limit": 3, "window": "60 s"}
    bad: Any
    for bad in ({}, [], [1], None, [[]]):
        with raises(InvalidParameterValue, match="these are not limits", hint="array of objects"), acme.transaction():
            acme.run("select llm.rate_limit_all(%s)", Jsonb(bad))
    with raises(InvalidParameterValue, match="the limit of r for i in 00:01:00 is there twice", hint="Name each limit once"), acme.transaction():
        acme.run("select llm.rate_limit_all(%s)", Jsonb([one, {**one, "window": "1 min", "limit": 4}]))
    with raises(InvalidParameterValue, match="a limit of null", hint="0 to"), acme.transaction():
        acme.run("select llm.rate_limit_all(%s)", Jsonb([{**one, "limit": None}]))
    with raises(InvalidParameterValue, match="have no and 1 bytes", hint="1 to 200"):
        acme.run("select llm.rate_limit_all(%s)", Jsonb([{**one, "resource": None}]))


def test_q_06_several_limits_in_any_order_do_not_deadlock(database: Database) -> None:
    """Sixteen clients: as many are allowed as the narrowest limit says, and no limit counts another number."""
    clients = database.clients(16, "app")
    database.client("admin").run("select llm.bind_role('app', 'acme')")
    limits = [
        {"resource": f"r{number}", "identifier": "x", "limit": limit, "window": "365 days", "algorithm": ALGORITHMS[number % 3]}
        for number, limit in enumerate((70, 60, 40, 60, 70, 50))
    ]

    def ask(number: int) -> int:
        random = Random(number)
        return sum(
            clients[number].one("select bool_and(allowed) from llm.rate_limit_all(%s)", Jsonb(random.sample(limits, len(limits)))) for _ in range(6)
        )

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, range(16))) == 40
    left = clients[0].column("select remaining from llm.rate_limit_all(%s)", Jsonb([{**limit, "cost": 0} for limit in limits]))
    assert left == [30, 20, 0, 20, 30, 10]


def test_a_limit_that_is_deleted_meanwhile_begins_anew(database: Database) -> None:
    """While it is asked for by many, without an error."""
    clients = database.clients(4, "app")
    db = database.client()
    db.run("select llm.bind_role('app', 'acme')")
    with ThreadPoolExecutor(5) as pool:
        asking = [
            pool.submit(at_once, [client], ASK, 3, "1 h", algorithm)
            for _ in range(20)
            for client, algorithm in zip(clients, ALGORITHMS, strict=False)
        ]
        while not all(each.done() for each in asking):
            db.run("delete from llm.rate_limits")
        assert all(each.result() for each in asking)

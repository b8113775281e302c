"""Circuit breakers: when they open, that one call at a time tries, and what comes late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue, ObjectNotInPrerequisiteState

from tests.support import Client, Database, at_once, in_tenant, raises

NOW = datetime(2026, 5, 1, tzinfo=UTC)

ZERO = timedelta()

ALLOW = "select allowed from llm.breaker_allow('model')"


class Breaker:
    """A breaker of tenant acme, by the functions behind the public ones, which take the time as an argument."""

    def __init__(self, db: Client, failures: int = 3, timeout: timedelta = timedelta(seconds=30), successes: int = 1) -> None:
        self.db = db
        with db.tenant("acme"):
            db.run("select llm.set_breaker('model', %s, %s, %s)", failures, timeout, successes)

    def allow(self, after: float) -> tuple[bool, str, timedelta, UUID | None]:
        """Ask, so many seconds after the beginning."""
        allowed, state, retry_after, probe = self.db.row("select * from llm._probe_breaker('acme', 'model', %s)", NOW + timedelta(seconds=after))
        return allowed, state, retry_after, probe

    def settle(self, after: float, probe: UUID | None = None, *, ok: bool) -> Any:
        """Tell how a call went, and return the state."""
        with self.db.tenant("acme"):
            call = "select llm._settle_breaker('acme', 'model', %s, %s, %s, %s)"
            return self.db.one(call, probe, ok, None if ok else f"error {after}", NOW + timedelta(seconds=after))

    def open(self) -> None:
        """Fail at the beginning."""
        assert [self.settle(0, ok=False) for _ in range(3)] == ["closed", "closed", "open"]


def test_it_opens_after_so_many_failures_in_a_row(db: Client) -> None:
    breaker = Breaker(db)
    for ok in (False, False, True, False, False):
        assert breaker.settle(0, ok=ok) == "closed"
    assert breaker.allow(0) == (True, "closed", ZERO, None)
    assert breaker.settle(1, ok=False) == "open"
    assert breaker.allow(11) == (False, "open", timedelta(seconds=20), None)
    assert breaker.allow(30.999)[:2] == (False, "open")


def test_one_call_at_a_time_tries_until_enough_have_succeeded(db: Client) -> None:
    breaker = Breaker(db, successes=2)
    breaker.open()
    for after in (30.0, 40.0):
        allowed, state, _, probe = breaker.allow(after)
        assert (allowed, state) == (True, "half_open")
        assert breaker.allow(after + 1) == (False, "half_open", timedelta(seconds=29), None)
        assert breaker.settle(after + 2, probe, ok=True) == ("half_open" if after == 30 else "closed")
    assert breaker.allow(43) == (True, "closed", ZERO, None)
    assert [breaker.settle(44, ok=False) for _ in range(3)] == ["closed", "closed", "open"], "failures are counted from the beginning"


def test_a_probe_that_fails_opens_it_again(db: Client) -> None:
    breaker = Breaker(db, successes=2)
    breaker.open()
    assert breaker.settle(31, breaker.allow(30)[3], ok=True) == "half_open"
    assert breaker.settle(33, breaker.allow(32)[3], ok=False) == "open"
    assert breaker.allow(62)[0] is False
    assert breaker.settle(64, breaker.allow(63)[3], ok=True) == "half_open", "successes are counted from the beginning"


def test_a_probe_that_does_not_come_back_is_given_to_another(db: Client) -> None:
    breaker = Breaker(db)
    breaker.open()
    dead = breaker.allow(30)[3]
    assert breaker.allow(59.9)[0] is False
    allowed, _, _, probe = breaker.allow(60)
    assert allowed
    assert probe not in (dead, None)
    for ok in (True, False):
        assert breaker.settle(61, dead, ok=ok) == "half_open", "the late one is not heard"
    assert breaker.settle(61, probe, ok=True) == "closed"


def test_what_comes_back_late_from_before_it_opened_changes_nothing(db: Client) -> None:
    breaker = Breaker(db)
    breaker.open()
    for ok in (True, False):
        assert breaker.settle(1, ok=ok) == "open"
    assert breaker.allow(30)[0]
    for probe in (None, uuid4()):
        for ok in (True, False):
            assert breaker.settle(31, probe, ok=ok) == "half_open"
    assert breaker.allow(31)[0] is False


def test_q_05_a_clock_that_is_set_back_lets_one_try(db: Client) -> None:
    breaker = Breaker(db)
    breaker.open()
    assert breaker.allow(-3600)[:2] == (True, "half_open")
    assert breaker.allow(-3599)[0] is False
    assert breaker.allow(-3570)[0] is True


def test_changes_of_its_state_are_audited(db: Client) -> None:
    breaker = Breaker(db)
    breaker.open()
    with db.tenant("acme"):
        assert db.one("select state from llm.breaker_allow('model')") == "half_open", "the clock is far beyond"
        breaker.settle(40, db.one("select probe from llm.breakers"), ok=True)
        breaker.open()
        assert db.one("select llm.reset_breaker('model')") is True
        assert db.one("select llm.reset_breaker('model')") is False
        assert db.one(ALLOW) is True
    events = db.rows(
        "select tenant_id, action, object_id, before ->> 'state', after ->> 'state', details from llm.audit_log"
        " where object_type = 'breaker' order by id"
    )
    opened = ("acme", "breaker_open", "model", "closed", "open", {"failures": 3, "error": "error 0"})
    assert events == [
        opened,
        ("acme", "breaker_half_open", "model", "open", "half_open", {"failures": 3}),
        ("acme", "breaker_closed", "model", "half_open", "closed", {"failures": 3}),
        opened,
        ("acme", "breaker_closed", "model", "open", "closed", {"failures": 3}),
    ]


# As an application calls it


def test_nothing_must_be_set_up(acme: Client) -> None:
    assert acme.row("select * from llm.breaker_allow('new')") == (True, "closed", ZERO, None)
    assert acme.one("select llm.breaker_success('new')") == "closed"
    assert acme.one("select count(*) from llm.breakers") == 0
    assert [acme.one("select llm.breaker_failure('new', p_error => 'HTTP 500')") for _ in range(5)] == ["closed"] * 4 + ["open"]
    allowed, state, retry_after, probe = acme.row("select * from llm.breaker_allow('new')")
    assert (allowed, state, probe) == (False, "open", None)
    assert ZERO < retry_after < timedelta(seconds=30)
    assert acme.row("select state, failures, last_error from llm.breakers") == ("open", 5, "HTTP 500")


def test_settings_change_and_the_state_stays(acme: Client) -> None:
    acme.run("select llm.set_breaker('model', 1)").run("select llm.breaker_failure('model')")
    acme.run("select llm.set_breaker('model', 7, '1 ms')")
    assert acme.one("select state from llm.breakers") == "open"


@pytest.mark.parametrize("settings", [(0, "1 s", 1), (None, "1 s", 1), (1, "0", 1), (1, "2 days", 1), (1, "1 s", 0)])
def test_bad_settings_are_refused(acme: Client, settings: tuple[Any, ...]) -> None:
    with raises(InvalidParameterValue, match="a breaker cannot open after", hint="1 to 1,000,000"):
        acme.run("select llm.set_breaker('model', %s, %s, %s)", *settings)


def test_a_service_has_a_name(acme: Client) -> None:
    for call in ("breaker_allow", "breaker_failure", "breaker_success", "set_breaker"):
        for name, count in (("", "0"), (None, "no"), ("x" * 201, "201")):
            with raises(InvalidParameterValue, match=f"the name of a service has {count} bytes", hint="1 to 200"), acme.transaction():
                acme.run(f"select llm.{call}(%s)", name)


def test_a_breaker_is_a_tenants(database: Database) -> None:
    """RLS-04: and nobody writes the table."""
    app = database.client("app")
    with app.tenant("acme"):
        app.run("select llm.set_breaker('model', 1)").run("select llm.breaker_failure('model')")
        assert app.one(ALLOW) is False
        for write in ("delete from llm.breakers", "update llm.breakers set state = 'closed'"):
            with raises(InsufficientPrivilege), app.transaction():
                app.run(write)
    with app.tenant("globex"):
        assert app.one(ALLOW) is True
        assert app.one("select llm.reset_breaker('model')") is False
        assert app.one("select count(*) from llm.breakers") == 0
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        app.run(ALLOW)


# Several at once


def elapsed(db: Client) -> None:
    """Let the time-outs be over."""
    db.run("update llm.breakers set retry_at = clock_timestamp()")


def test_sixteen_clients_at_once_and_one_tries(database: Database) -> None:
    clients, db = database.clients(16, "app"), database.client()
    db.run("select llm.bind_role('app', 'acme')")
    clients[0].run("select llm.set_breaker('model', 1, '1 hour', 3)").run("select llm.breaker_failure('model')")
    elapsed(db)
    for turn in range(20):
        answers = at_once(clients, ALLOW)
        assert sorted(answers) == [False] * 15 + [True], turn
        elapsed(db)


def test_sixteen_failures_at_once_are_sixteen(database: Database) -> None:
    clients, db = database.clients(16, "app"), database.client()
    db.run("select llm.bind_role('app', 'acme')")
    for service in ("a", "b", "c"):
        clients[0].run("select llm.set_breaker(%s, 16)", service)
        states = at_once(clients, "select llm.breaker_failure(%s)", service)
        assert sorted(states) == ["closed"] * 15 + ["open"]
    assert db.one("select count(*) from llm.audit_log where action = 'breaker_open'") == 3


def test_who_is_told_no_waits_for_nobody(database: Database) -> None:
    """Neither for who is just taking the probe; when that rolls back, the probe is there again."""
    first, second = (in_tenant(client, "acme") for client in database.clients(2, "app"))
    first.run("select llm.set_breaker('model', 1)").run("select llm.breaker_failure('model')").run("commit")
    elapsed(database.client())
    in_tenant(first, "acme")
    assert first.one(ALLOW) is True
    second.run("set lock_timeout = '1s'")
    assert second.one(ALLOW) is False
    first.run("rollback")
    assert second.one(ALLOW) is True


def test_a_closed_breaker_locks_and_writes_nothing(database: Database) -> None:
    """Even while somebody tells of a failure, or changes its settings."""
    first, second = (in_tenant(client, "acme") for client in database.clients(2, "app"))
    first.run("select llm.set_breaker('model', 3)").run("commit")
    in_tenant(first, "acme").run("select llm.breaker_failure('model')")
    second.run("set lock_timeout = '1s'")
    assert second.one(ALLOW) is True
    assert second.one("select llm.breaker_success('model')") == "closed"
    assert second.one("select pg_current_xact_id_if_assigned()") is None

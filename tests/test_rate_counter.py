"""How limits are counted: three algorithms against exact models, clocks that are set, and shared memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from psycopg.errors import IoError

from tests.conftest import new_database
from tests.support import Client, Database, in_tenant, raises
from tools.cluster import Cluster

ALGORITHMS = ("sliding_window", "sliding_log", "token_bucket")

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ZERO = timedelta()

ASK = "select allowed from llm.rate_limit('api', 'ann', %s, %s, p_algorithm => %s)"
SHARED = "select allowed from llm.rate_limit('api', %s, %s, %s, p_transactional => false)"


class Limit:
    """One limit, asked by the functions behind llm.rate_limit(), which take the time as an argument."""

    def __init__(self, db: Client, algorithm: str, limit: int, window: timedelta) -> None:
        self.db, self.algorithm, self.limit, self.window = db, algorithm, limit, window

    def ask(self, now: datetime, cost: int = 1, *, take: bool = True) -> tuple[bool, int, timedelta | None, timedelta]:
        """Return the answer: allowed, remaining, retry_after, reset_after."""
        allowed, remaining, retry_after, reset_after = self.db.row(
            "select * from llm._take('a', 'subject', %s, %s, %s, %s, %s, %s)", self.algorithm, self.limit, self.window, cost, take, now
        )
        return allowed, remaining, retry_after, reset_after

    def allows(self, now: datetime, cost: int = 1) -> bool:
        """Tell whether it allows a call, and count that."""
        return self.ask(now, cost)[0]


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_so_many_are_allowed_and_the_next_is_told_when_to_come_back(db: Client, algorithm: str) -> None:
    limit = Limit(db, algorithm, 3, seconds(60))
    assert [limit.ask(NOW)[:3] for _ in range(3)] == [(True, remaining, ZERO) for remaining in (2, 1, 0)]
    allowed, remaining, retry_after, reset_after = limit.ask(NOW + seconds(6))
    assert (allowed, remaining) == (False, 0)
    assert retry_after is not None
    assert reset_after == seconds(54)
    assert not limit.allows(NOW + seconds(6) + retry_after - timedelta(microseconds=2))
    assert limit.allows(NOW + seconds(6) + retry_after)
    assert retry_after == (seconds(14) + timedelta(microseconds=1) if algorithm == "token_bucket" else seconds(54))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_costs_more_than_the_limit_never_comes_back(db: Client, algorithm: str) -> None:
    limit = Limit(db, algorithm, 10, seconds(60))
    assert limit.ask(NOW, 11) == (False, 10, None, ZERO)
    assert limit.ask(NOW, 10) == (True, 0, ZERO, seconds(60))
    assert Limit(db, algorithm, 0, seconds(60)).ask(NOW) == (False, 0, None, None if algorithm == "token_bucket" else seconds(60))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_asking_counts_nothing(db: Client, algorithm: str) -> None:
    limit = Limit(db, algorithm, 2, seconds(60))
    assert {limit.ask(NOW, take=False)[:2] for _ in range(5)} == {(True, 2)}
    assert db.one("select count(*) from llm.rate_limits") == 0
    limit.allows(NOW)
    assert {limit.ask(NOW, take=False)[:2] for _ in range(5)} == {(True, 1)}


def oracle(algorithm: str, limit: int, window: timedelta) -> Callable[[datetime, int], bool]:
    """Return what the algorithm allows, in exact arithmetic."""
    calls: list[tuple[datetime, int]] = []
    used, used_at = Fraction(0), NOW

    def slot(at: datetime) -> int:
        return (at - datetime(1970, 1, 1, tzinfo=UTC)) // (window / 10)

    def allows(now: datetime, cost: int) -> bool:
        nonlocal used, used_at
        if algorithm == "token_bucket":
            used = max(used - Fraction((now - used_at) // timedelta(microseconds=1), window // timedelta(microseconds=1)) * limit, Fraction(0))
            used_at = now
            if used + cost > limit:
                return False
            used += cost
            return True
        # A slot counts as long as the last call in it does.
        last = {slot(at): at for at, _ in calls} if algorithm == "sliding_window" else {}
        if sum(past for at, past in calls if last.get(slot(at), at) > now - window) + cost > limit:
            return False
        calls.append((now, cost))
        return True

    return allows


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_call_is_allowed_that_an_exact_model_allows(db: Client, algorithm: str) -> None:
    random, now, window = Random(6), NOW, timedelta(seconds=7)
    limit, model = Limit(db, algorithm, 20, window), oracle(algorithm, 20, window)
    allowed: list[tuple[datetime, int]] = []
    for _ in range(400):
        now += timedelta(microseconds=random.choice((0, 1, 1_003, 300_007, 900_001)))
        cost = random.choice((1, 1, 1, 2, 5))
        expected = model(now, cost)
        assert limit.allows(now, cost) is expected
        if expected:
            allowed.append((now, cost))
    assert 100 < len(allowed) < 350
    most = max(sum(cost for at, cost in allowed if start <= at < start + window) for start, _ in allowed)
    assert most <= 40 if algorithm == "token_bucket" else most <= 20


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("step", [timedelta(hours=-1), timedelta(hours=1), timedelta(milliseconds=-3)])
def test_q_05_a_clock_that_is_set_locks_nobody_out_and_lets_nobody_in_early(db: Client, algorithm: str, step: timedelta) -> None:
    """Set back: what was used counts as used just now. Set forward, it is as if that much time had passed."""
    limit = Limit(db, algorithm, 5, seconds(10))
    assert [limit.allows(NOW) for _ in range(6)] == [True] * 5 + [False]
    allowed = [limit.allows(NOW + step + seconds(number / 2)) for number in range(24)]
    if step > ZERO:
        assert allowed[:6] == [True] * 5 + [algorithm == "token_bucket"]
        return
    partly = Limit(db, algorithm, 5, seconds(20))
    assert [partly.ask(at)[1] for at in (NOW, NOW, NOW, NOW + step)] == [4, 3, 2, 1]
    # Within the window nothing comes back but what drips into a bucket; a tenth of a window later all is there.
    assert sum(allowed[:20]) == (4 if algorithm == "token_bucket" else 0)
    assert any(allowed[20:])


def test_windows_are_as_long_where_clocks_change(db: Client) -> None:
    """Q-13"""
    db.run("set timezone = 'Europe/Berlin'")
    limit = Limit(db, "sliding_log", 1, timedelta(days=1))
    start = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert limit.allows(start)
    assert not limit.allows(start + timedelta(hours=23, minutes=59))
    assert limit.allows(start + timedelta(hours=24))


def test_a_window_keeps_eleven_sums_and_a_log_each_call(db: Client) -> None:
    for algorithm in ("sliding_window", "sliding_log"):
        limit = Limit(db, algorithm, 100, seconds(10))
        for number in range(150):
            limit.allows(NOW + seconds(number / 7))
    kept = dict(db.rows("select algorithm, cardinality(times) from llm.rate_limits"))
    assert kept["sliding_window"] <= 11
    assert kept["sliding_log"] > 60


def test_what_is_not_used_any_more_is_deleted(db: Client, acme: Client) -> None:
    for algorithm in ALGORITHMS:
        acme.run(ASK, 1, "1 h", algorithm)
    acme.run("commit")
    db.run("update llm.rate_limits set used_at = used_at - interval '61 minutes' where algorithm <> 'sliding_log'").run(
        "call llm.expire_rate_limits()"
    )
    assert db.column("select algorithm from llm.rate_limits") == ["sliding_log"]
    assert "llm.expire_rate_limits" in db.column("select name from llm._regular_calls('17 * * * *')")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_counting_updates_in_place(db: Client, algorithm: str) -> None:
    """HOT: no index grows."""
    limit = Limit(db, algorithm, 1000, seconds(10))
    db.run("begin")
    for number in range(20):
        limit.allows(NOW + seconds(number))
    assert db.one("select pg_stat_get_xact_tuples_hot_updated('llm.rate_limits'::regclass)") == 19


# Shared memory


def take(db: Client, subject: int, now: float, *, cost: float = 1, limit: float = 4, window: float = 4) -> float:
    """Take from the bucket of a subject: all subjects hash to one set of slots."""
    return float(db.one("select llm._take_from_slot(%s, %s, %s, %s, true, %s)", (5).to_bytes(8) + subject.to_bytes(8), limit, window, cost, now))


@pytest.fixture
def slots(db: Client) -> Iterator[Client]:
    """A superuser's client; the set of slots that the tests use is empty."""
    yield db
    for subject in range(1, 20):
        db.run("select llm._fill_in_memory(%s)", (5).to_bytes(8) + subject.to_bytes(8))


def test_a_bucket_in_shared_memory_fills_evenly(slots: Client) -> None:
    assert [take(slots, 1, 100) for _ in range(5)] == [1, 2, 3, 4, -5]
    assert take(slots, 1, 101.5) == 3.5
    assert take(slots, 1, 101.5) == -4.5
    assert take(slots, 1, 1000) == 1
    assert take(slots, 1, 1000, window=8) == 1, "another window is another limit"


def test_what_a_bucket_in_shared_memory_says_of_the_future_is_from_before_the_machine_was_started(slots: Client) -> None:
    assert take(slots, 1, 100_000, cost=4) == 4
    assert take(slots, 1, 10) == 1


def test_a_ninth_bucket_takes_the_place_of_that_which_will_be_full_first(slots: Client) -> None:
    for subject in range(1, 9):
        assert take(slots, subject, 100, cost=4 if subject != 3 else 3) > 0
    assert take(slots, 9, 100) == 1
    assert [take(slots, subject, 100) for subject in (1, 2, 4, 5, 6, 7, 8)] == [-5] * 7
    assert take(slots, 3, 100) == 1


def test_a_file_that_cannot_be_used_is_told(database: Database, cluster: Cluster) -> None:
    file = Path(cluster.datadir, "pg_stat_tmp/pg_llm.rate_limits.1")
    client = in_tenant(database.client("app"), "acme")
    file.unlink(missing_ok=True)
    file.mkdir()
    try:
        with raises(IoError, match="rate limits cannot be counted in .*: Is a directory", hint="p_transactional"):
            client.run(SHARED, "ann", 1, "1 h")
    finally:
        file.rmdir()
    in_tenant(client.run("rollback"), "acme")
    assert client.one(SHARED, "ann", 1, "1 h") is True
    file.unlink()
    client.wait(SHARED, "ann", 1, "1 h")
    assert file.exists(), "whoever deletes the file lets all limits in it begin anew"


def test_q_10_after_a_crash_limits_begin_anew_without_an_error(own_cluster: Cluster) -> None:
    """Those of the table; those in shared memory go on."""
    for database in new_database(own_cluster):
        for expected in ((True, True), (True, False)):
            client = in_tenant(database.client("app"), "acme")
            assert client.one(ASK, 1, "1 h", None) is expected[0]
            assert client.one(SHARED, "ann", 1, "1 h") is expected[1]
            client.run("commit")
            if expected[1]:
                database.close()
                own_cluster.crash()
                own_cluster.start()

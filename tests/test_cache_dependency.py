"""What entries were computed from: after a change has committed nobody reads what was computed before it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from threading import Event

import psycopg
import pytest
from psycopg.errors import InvalidParameterValue, ObjectNotInPrerequisiteState

from tests.support import Client, Database, at_once, raises

TOKEN = "select llm.cache_token()"  # noqa: S105
SET = "select llm.cache_set('k', %s, p_depends_on => '{m,n}', p_token => %s)"
GET = "select llm.cache_get('k')"


def test_a_change_outdates_what_was_computed_before(database: Database, bound: Client) -> None:
    other = database.client("app")
    for name in ("m", "n"):
        assert bound.one(SET, "1", bound.one(TOKEN)) is True
        assert other.one("select llm.cache_bump('something else')") == 1
        assert (bound.one(GET), other.one(GET)) == (1, 1)
        other.run("begin").run("select llm.cache_bump(%s)", name)
        # Before it commits only who changes it knows.
        assert (bound.one(GET), other.one(GET)) == (1, None)
        other.run("rollback")
        assert (bound.one(GET), other.one(GET)) == (1, 1)
        other.run("select llm.cache_bump(%s)", name)
        assert (bound.one(GET), other.one(GET)) == (None, None)
        assert bound.rows("select * from llm.cache_get_many('{k}')") == []
        assert bound.one("select llm.cache_ttl('k')") == -2


def test_what_was_computed_before_a_change_is_not_put_in(database: Database, bound: Client) -> None:
    other = database.client("app")
    before = bound.one(TOKEN)
    other.run("begin").run("select llm.cache_bump('m')")
    during = bound.one(TOKEN)
    # Set while the change is not committed: valid until it is.
    assert bound.one(SET, "1", before) is True
    assert bound.one(GET) == 1
    other.run("commit")
    assert bound.one(GET) is None
    for token in (before, during):
        assert bound.one(SET, "1", token) is False
        assert bound.one(GET) is None
    assert bound.one(SET, "2", bound.one(TOKEN)) is True
    assert bound.one(GET) == 2


def test_a_slow_transaction_that_bumped_first_and_commits_last_outdates(database: Database, bound: Client) -> None:
    """Its id is the lower one, and it is written over the higher one."""
    slow, fast = database.clients(2, "app")
    slow.run("begin").run("select llm.cache_bump('x')")
    fast.run("select llm.cache_bump('m')")
    assert bound.one(SET, "1", bound.one(TOKEN)) is True
    slow.run("select llm.cache_bump('m')")
    assert bound.one(GET) == 1
    slow.run("commit")
    assert bound.one(GET) is None


def test_a_transaction_cannot_hide_its_own_change(database: Database, bound: Client) -> None:
    other = database.client("app")
    with bound.transaction():
        bound.run("create temporary table written (i int)")
        # Now its id is not the newest, and a snapshot does not count it among those that run.
        other.run("select llm.cache_bump('other')")
        token = bound.one(TOKEN)
        bound.run("select llm.cache_bump('m')")
        assert bound.one(SET, "1", token) is False
    with bound.transaction():
        bound.run("select llm.cache_bump('x')")
        token = bound.one(TOKEN)
        assert bound.one(SET, "1", token) is True
        bound.run("select llm.cache_bump('n')")
        assert bound.one(GET) is None
    assert bound.one(GET) is None


def test_a_transaction_of_one_snapshot_needs_no_token(database: Database, bound: Client) -> None:
    other = database.client("app")
    with bound.transaction():
        bound.run("set transaction isolation level repeatable read").run("select count(*) from llm.cache_entries")
        other.run("select llm.cache_bump('m')")
        assert bound.one(SET, "1", None) is True
    # Its snapshot was from before the change.
    assert bound.one(GET) is None
    with bound.transaction():
        bound.run("set transaction isolation level repeatable read")
        assert bound.one(SET, "2", None) is True
        other.run("select llm.cache_bump('n')")
        assert bound.one(GET) == 2
    assert bound.one(GET) is None
    with raises(ObjectNotInPrerequisiteState, match="it is not known when the value was computed", hint="p_token", detail="p_depends_on"):
        bound.run(SET, "1", None)


def test_a_token_in_the_statement_that_reads_is_of_that_statement(database: Database, bound: Client, db: Client) -> None:
    """A later snapshot would vouch for what an earlier one has read."""
    db.run("create table public.source as select 1 as value").run("grant all on public.source to app")
    other, waiting = database.clients(2, "app")
    other.run("begin").run("select pg_advisory_lock(1)")
    with ThreadPoolExecutor(1) as pool:
        stored = pool.submit(
            waiting.one,
            "select case when s.value > 0 and pg_advisory_lock(1) is not null"
            " then llm.cache_set('k', to_jsonb(s.value), p_depends_on => '{m}', p_token => llm.cache_token()) end from public.source s",
        )
        bound.wait("select exists (select from pg_locks where locktype = 'advisory' and not granted)")
        bound.run("begin").run("update public.source set value = 2").run("select llm.cache_bump('m')").run("commit")
        other.run("select pg_advisory_unlock(1)").run("commit")
        assert stored.result() is False
    assert bound.one(GET) is None


def test_ids_of_another_server_make_nothing_valid(db: Client, bound: Client) -> None:
    assert bound.one(SET, "1", bound.one(TOKEN)) is True
    db.run("update llm.cache_entries set computed_in = '900000000:900000000:'")
    bound.run("select llm.cache_bump('m')")
    assert bound.one(GET) is None


@pytest.mark.parametrize("token", ["", "x", "x/1:1:", "00000000-0000-0000-0000-000000000000/1:1:", "{life}/nonsense", "{life}/1:1:/x"])
def test_what_is_no_token_is_refused(bound: Client, token: str) -> None:
    token = token.format(life=bound.one(TOKEN).split("/")[0])
    if token.startswith("00000000"):
        assert bound.one(SET, "1", token) is False
        return
    with raises(InvalidParameterValue, match="is not a token of the cache", hint=r"llm.cache_token\(\)"):
        bound.run(SET, "1", token)


def test_names_are_spread_over_the_words(db: Client) -> None:
    words = db.one("select llm._cache_words(array(select 'model:' || i from generate_series(1, 1000) i))")
    assert len(words) > 980
    assert words == sorted(words)
    assert (min(words) >= 0, max(words) <= 65_535) == (True, True)
    assert db.one("select llm._cache_words('{a,a,null}')") == db.one("select llm._cache_words('{a}')")


# The hammer


@dataclass
class Hammer:
    """Writers that change sources, fillers that cache them, readers: what they read of the cache is what the source says in the same snapshot."""

    database: Database
    reads: int
    is_naive: bool = False
    hits: int = 0
    stale: list[str] = field(default_factory=list)
    _stop: Event = field(default_factory=Event)

    def run(self) -> None:
        """Write, fill and read at the same time until enough was read; a naive one until the first stale read."""
        jobs = [self._write, self._write, self._fill, self._fill, self._fill, self._read, self._read]
        with ThreadPoolExecutor(len(jobs)) as pool:
            running = [pool.submit(self._repeat, job, self.database.client("app"), Random(number)) for number, job in enumerate(jobs)]
        for done in running:
            done.result()

    def _repeat(self, job: object, client: Client, random: Random) -> None:
        try:
            while not self._stop.is_set():
                job(client, f"s{random.randrange(4)}", random)  # type: ignore[operator]
        finally:
            self._stop.set()

    def _write(self, client: Client, name: str, random: Random) -> None:
        with client.transaction():
            client.run("update public.source set value = value + 1 where name = %s", name)
            client.run("select llm.cache_delete(%s)" if self.is_naive else "select llm.cache_bump(%s)", name)
            if random.random() < 0.25:
                raise psycopg.Rollback

    def _fill(self, client: Client, name: str, random: Random) -> None:
        if self.is_naive:
            value = client.one("select value from public.source where name = %s", name)
            client.run("select llm.cache_set(%s, to_jsonb(%s::int))", name, value)
            return
        must_compute, token = True, None
        if random.random() < 0.5:
            must_compute, token = client.row("select must_compute, token from llm.cache_fetch(%s, p_wait => 0, p_lease => 0.05)", name)
        else:
            token = client.one(TOKEN)
        if must_compute:
            value = client.one("select value from public.source where name = %s", name)
            client.run("select llm.cache_set(%s, to_jsonb(%s::int), p_depends_on => %s, p_token => %s)", name, value, [name], token)

    def _read(self, client: Client, name: str, random: Random) -> None:
        with client.transaction():
            client.run("set transaction isolation level repeatable read")
            stored, cached = client.row("select value, llm.cache_get(name) from public.source where name = %s", name)
        self.hits += cached is not None
        self.reads -= 1
        if cached is not None and cached != stored:
            self.stale.append(f"{name} is {stored}, but {cached} was read")
        if self.reads <= 0 or (self.is_naive and self.stale):
            self._stop.set()


@pytest.fixture
def sources(db: Client, bound: Client) -> None:
    """Four sources."""
    db.run("create table public.source (name text primary key, value int not null)").run("grant all on public.source to app")
    db.run("insert into public.source select 's' || i, 0 from generate_series(0, 3) i")


@pytest.mark.usefixtures("sources")
def test_no_read_is_ever_older_than_what_has_committed(database: Database) -> None:
    """The race of the slow filler is among what happens here: see the next test."""
    hammer = Hammer(database, reads=3_000)
    hammer.run()
    assert hammer.stale == []
    assert hammer.hits > 300


@pytest.mark.usefixtures("sources")
def test_the_hammer_finds_what_deleting_keys_leaves_stale(database: Database) -> None:
    hammer = Hammer(database, reads=1_000_000, is_naive=True)
    hammer.run()
    assert hammer.stale


# Tags and patterns


def test_entries_go_by_their_tags(bound: Client) -> None:
    for key, tags in (("a", ["x", "y"]), ("b", ["y"]), ("c", []), ("d", None)):
        bound.run("select llm.cache_set(%s, '1', p_tags => %s)", key, tags)
    bound.run("select llm.cache_set('e', '1', p_namespace => 'other', p_tags => '{y}')")
    assert bound.one("select llm.cache_invalidate_tag('x')") == 1
    assert bound.one("select llm.cache_invalidate_tag('y', 'other')") == 1
    assert bound.one("select llm.cache_invalidate_tag('y')") == 1
    assert bound.one("select llm.cache_invalidate_tag('z') + llm.cache_invalidate_tag(null)") == 0
    assert bound.column("select * from llm.cache_keys()") == ["c", "d"]
    # A new value has its own tags.
    bound.run("select llm.cache_set('c', '1', p_tags => '{t}')").run("select llm.cache_set('c', '1')")
    assert bound.one("select llm.cache_invalidate_tag('t')") == 0


KEYS = [
    "conversation:1",
    "conversation:1:x",
    "conversation:",
    "conversation",
    "Conversation:1",
    "a%b",
    "a_b",
    "aXb",
    "a*b",
    "a?b",
    "a\\b",
    "a\nb",
    "ä:1",
]


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("conversation:*", ["conversation:", "conversation:1", "conversation:1:x"]),
        ("*:1", ["Conversation:1", "conversation:1", "ä:1"]),
        ("a?b", ["a\nb", "a%b", "a*b", "a?b", "aXb", "a\\b", "a_b"]),
        ("a%b", ["a%b"]),
        ("a_b", ["a_b"]),
        ("a\\*b", ["a*b"]),
        ("a\\?b", ["a?b"]),
        ("a\\\\b", ["a\\b"]),
        ("\\a\\%b", ["a%b"]),
        ("a\\", []),
        ("?:*", ["ä:1"]),
        ("?%b", ["a%b"]),
        ("*_b", ["a_b"]),
        ("*\\\\b", ["a\\b"]),
        ("", []),
        ("conversation", ["conversation"]),
    ],
)
def test_entries_go_by_patterns_of_their_keys(bound: Client, pattern: str, gone: list[str]) -> None:
    for key in KEYS:
        bound.run("select llm.cache_set(%s, '1')", key)
        bound.run("select llm.cache_set(%s, '1', p_namespace => 'other')", key)
    assert bound.one("select llm.cache_invalidate(%s)", pattern) == len(gone)
    assert sorted(set(KEYS) - set(bound.column("select * from llm.cache_keys()"))) == sorted(gone)
    assert len(bound.column("select * from llm.cache_keys('', 'other')")) == len(KEYS)


def test_all_goes_by_a_star(bound: Client) -> None:
    bound.run("select llm.cache_set_many('{\"a\": 1, \"b\": 2}')")
    assert bound.one("select llm.cache_invalidate(null)") == 0
    assert bound.one("select llm.cache_invalidate('*')") == 2


def test_sixteen_sessions_bump_the_same_names_at_once(database: Database, bound: Client) -> None:
    clients = database.clients(16, "app")
    names = "'a', 'b', 'c', 'd', 'e'"
    assert bound.one("select llm.cache_bump(variadic '{}')") == 0
    assert at_once(clients, f"select llm.cache_bump({names})") == [5] * 16
    assert bound.one("select count(*) from llm.cache_bumps") == 5

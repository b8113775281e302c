"""Which keys are used most is known after a crash."""

from __future__ import annotations

from tests.support import Client
from tests.test_cache import age

POPULAR = "select key, uses, is_cached from llm.cache_popular()"


def use(bound: Client, db: Client, **times: int) -> None:
    """Use keys so many times, each time so late that it is noted."""
    for key, count in times.items():
        for _ in range(count):
            age(db, 61)
            assert bound.one("select llm.cache_get(%s)", key) == 1


def test_the_most_used_keys_come_first(bound: Client, db: Client) -> None:
    bound.run("select llm.set_cache_policy(p_idle => 600)")
    bound.run("select llm.cache_set_many('{\"a\": 1, \"b\": 1, \"c\": 1, \"unused\": 1}')")
    use(bound, db, a=2, b=5, c=1)
    assert bound.rows(POPULAR) == []
    db.run("call llm.clean_cache()")
    assert bound.rows(POPULAR) == [("b", 5, True), ("a", 2, True), ("c", 1, True)]
    use(bound, db, a=4)
    db.run("call llm.clean_cache()").run("truncate llm.cache_entries")
    assert bound.rows(POPULAR) == [("a", 6, False), ("b", 5, False), ("c", 1, False)]
    assert bound.column("select key from llm.cache_popular(p_limit => 1)") == ["a"]
    assert bound.rows("select * from llm.cache_popular('other')") == []


def test_only_so_many_are_kept(bound: Client, db: Client) -> None:
    db.run("insert into llm.cache_uses select 'acme', 'default', 'key ' || i, i, now() from generate_series(1, 1200) i")
    bound.run("select llm.cache_set('k', '1')")
    db.run("call llm.clean_cache()")
    assert bound.row("select count(*), min(uses) from llm.cache_uses") == (1_000, 201)


def test_what_is_used_is_a_tenants(app: Client, db: Client) -> None:
    for tenant in ("a", "b"):
        with app.tenant(tenant):
            app.run("select llm.set_cache_policy(p_idle => 600)").run("select llm.cache_set(%s, '1')", tenant)
        age(db, 61)
        with app.tenant(tenant):
            app.run("select llm.cache_get(%s)", tenant)
    db.run("call llm.clean_cache()")
    for tenant in ("a", "b"):
        with app.tenant(tenant):
            assert app.rows(POPULAR) == [(tenant, 1, True)]
    assert app.rows(POPULAR) == []

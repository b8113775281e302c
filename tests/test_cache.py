"""The cache: values by key, for a time, shared by all sessions of a tenant."""

from __future__ import annotations

from tests.support import Client


def test_smoke(bound: Client) -> None:
    assert bound.one("select llm.cache_get('k')") is None
    assert bound.one("select llm.cache_set('k', '[1]')") is True
    assert bound.one("select llm.cache_get('k')") == [1]
    assert bound.one("select llm.cache_set_text('k', 'text')") is True
    assert bound.one("select llm.cache_get_text('k')") == "text"
    assert bound.one("select llm.cache_set_bytes('b', %s)", b"xyz") is True
    assert bound.one("select llm.cache_get_bytes('b')") == b"xyz"
    assert bound.one("select llm.cache_ttl('b')") == -1
    assert bound.one("select llm.cache_ttl('c')") == -2
    assert bound.one("select llm.cache_set_ex('c', '1', 10)")
    assert bound.one("select llm.cache_ttl('c')") == 10
    assert bound.one("select llm.cache_set_nx('c', '1', 10)") is False
    assert bound.column("select llm.cache_keys()") == ["b", "c", "k"]
    assert dict(bound.rows("select * from llm.cache_get_many(array['k','c','z'])")) == {'k': 'text', 'c': 1}
    assert bound.one("select llm.cache_set_many('{\"x:1\": 1, \"x:2\": 2, \"y%%\": 3}')") == 3
    assert bound.one("select llm.cache_invalidate('x:*')") == 2
    assert bound.one("select llm.cache_invalidate('y%%*')") == 1
    token = bound.one("select llm.cache_token()")
    assert bound.one("select llm.cache_set('d', '1', p_depends_on => '{m}', p_token => %s)", token)
    assert bound.one("select llm.cache_get('d')") == 1
    assert bound.one("select llm.cache_bump('m', 'n')") == 2
    assert bound.one("select llm.cache_get('d')") is None
    assert not bound.one("select llm.cache_set('d', '1', p_depends_on => '{m}', p_token => %s)", token)
    a = bound.row("select * from llm.cache_fetch('f')")
    assert a[3] is True
    assert bound.row("select * from llm.cache_fetch('f', p_wait => 0)")[3] is False
    assert bound.one("select llm.cache_set('f', '9', p_token => %s)", a[4])
    assert bound.row("select * from llm.cache_fetch('f')")[0] == 9
    bound.run("select llm.set_cache_policy(p_max_entries => 100, p_l1 => true, p_namespace => 'n')")
    bound.run("select llm.cache_set('k' || i, to_jsonb(i), p_namespace => 'n') from generate_series(1, 300) i")
    print(bound.rows("select * from llm.cache_stats()"))
    assert bound.one("select llm.cache_get_l1('k300', 'n')") == 300
    assert bound.one("select llm.cache_get_l1('k300', 'n')") == 300
    bound.run("select llm.cache_set('k300', '1', p_namespace => 'n')")
    assert bound.one("select llm.cache_get_l1('k300', 'n')") == 1
    print(bound.rows("select * from llm.coherence_stats()"))

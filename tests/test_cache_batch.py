"""Many keys of the cache in one trip."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random

from psycopg.errors import InvalidParameterValue
from psycopg.types.json import Jsonb

from tests.support import Client, Database, raises
from tests.test_cache import age


def test_many_are_set_read_and_deleted(bound: Client) -> None:
    values = {f"key {number}": {"number": number} for number in range(300)}
    assert bound.one("select llm.cache_set_many(%s)", Jsonb(values)) == 300
    found = bound.rows("select key, value from llm.cache_get_many(%s)", [*values, "unknown", "key"])
    assert dict(found) == values
    assert len(found) == 300
    assert bound.one("select llm.cache_delete_many(%s)", ["key 1", "key 2", "unknown"]) == 2
    assert bound.one("select count(*) from llm.cache_get_many(%s)", [*values]) == 298
    assert bound.rows("select * from llm.cache_get_many('{}')") == bound.rows("select * from llm.cache_get_many(null)") == []


def test_many_bytes_are_set_and_read(bound: Client) -> None:
    keys, values = [f"key {number}" for number in range(50)], [bytes([number]) * number for number in range(50)]
    assert bound.one("select llm.cache_set_many_bytes(%s, %s, p_namespace => 'b')", keys, values) == 50
    assert dict(bound.rows("select * from llm.cache_get_many_bytes(%s, 'b')", keys)) == dict(zip(keys, values, strict=True))
    assert bound.rows("select * from llm.cache_get_many_bytes(%s)", keys) == []
    # Of a key that comes twice the last value counts.
    assert bound.one("select llm.cache_set_many_bytes('{k,a,k}', array['1', '2', '3']::bytea[])") == 3
    assert bound.one("select llm.cache_get_bytes('k')") == b"3"


def test_keys_are_listed_by_prefix(bound: Client, db: Client) -> None:
    keys = ["a", "a:1", "a:1:x", "a:10", "a%", "a_b", "b", "ä", "a\U0010ffff", "a\U0010ffffz", "a:" + "z" * 998]
    assert bound.one("select llm.cache_set_many(%s, p_ttl => 60)", Jsonb(dict.fromkeys(keys, 1))) == len(keys)
    bound.run("select llm.cache_set('a:other', '1', p_namespace => 'other')")
    for prefix in ("", "a", "a:", "a:1", "a%", "a\U0010ffff", "ä", "x"):
        assert bound.column("select * from llm.cache_keys(%s)", prefix) == sorted(key for key in keys if key.startswith(prefix))
    age(db, 61)
    assert bound.column("select * from llm.cache_keys()") == []


def test_what_is_expired_is_not_among_many(bound: Client, db: Client) -> None:
    bound.run("select llm.cache_set_many('{\"a\": 1, \"b\": 2}', 10)").run("select llm.cache_set('c', '3')")
    age(db, 11)
    assert bound.rows("select * from llm.cache_get_many('{a,b,c}')") == [("c", 3)]


def test_q_06_batches_in_any_order_do_not_deadlock(database: Database, bound: Client) -> None:
    """Q-06"""

    def write(seed: int) -> None:
        random, client = Random(seed), database.client("app")
        for number in range(25):
            keys = [f"key {key}" for key in random.sample(range(40), 20)]
            values = dict.fromkeys(keys, number)
            match random.randrange(4):
                case 0:
                    client.run("select llm.cache_set_many(%s)", Jsonb(values))
                case 1:
                    client.run("select llm.cache_set_many_bytes(%s, %s)", keys, [b"x"] * len(keys))
                case 2:
                    client.run("select llm.cache_delete_many(%s)", keys).run("select llm.cache_invalidate('key 1*')")
                case 3:
                    client.run("select llm.cache_bump(variadic %s)", keys)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert bound.one("select count(*) from llm.cache_keys()") <= 40


def test_what_is_no_batch_is_refused(bound: Client) -> None:
    for values in ("[1]", "1", "null"):
        with raises(InvalidParameterValue, match="these are not keys and values: ", hint="Give an object"):
            bound.run("select llm.cache_set_many(%s)", values)
    with raises(InvalidParameterValue, match="2 keys, but 1 values", hint="as many values"):
        bound.run("select llm.cache_set_many_bytes('{a,b}', '{x}')")
    with raises(InvalidParameterValue, match="no keys, but 1 values"):
        bound.run("select llm.cache_set_many_bytes(null, '{x}')")

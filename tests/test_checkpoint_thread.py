"""Threads are deleted, copied and pruned."""

from __future__ import annotations

from psycopg.errors import DuplicateObject, InvalidParameterValue, NoDataFound
from psycopg.types.json import Jsonb

from tests.support import Client, raises
from tests.test_checkpoint import LONG, after, contents, put


def ids(client: Client, thread: str) -> list[str]:
    """Return a thread's checkpoints, namespace and id, newest first."""
    return client.column("select concat_ws('/', nullif(checkpoint_ns, ''), checkpoint_id) from llm.list_checkpoints(%s)", thread)


def frame(client: Client, namespace: str, number: str, parent: str | None, metadata: object, channels: object = None) -> None:
    """Put a checkpoint of thread t that has small values only."""
    client.run("select llm.put_checkpoint('t', %s, %s, %s, '{}', %s, %s)", namespace, number, parent, Jsonb(metadata), Jsonb(channels or {}))


def test_a_copy_is_a_thread_of_its_own(app: Client, db: Client) -> None:
    with app.tenant("a"):
        _, channels, _ = put(app, "t", 1, one=LONG)
        put(app, "t", 2, parent=1, one=(after(channels, "one", 5_000), b"more"))
        assert app.one("select llm.copy_checkpoint_thread('t', 'copy')") == 2
        put(app, "copy", 3, one=(after(channels, "one", 5_000), b"other"))
        app.run("select llm.delete_checkpoint_thread('t')")
        assert contents(app, "copy", 2) == [LONG + b"more"]
        assert contents(app, "copy", 3) == [LONG + b"other"]
        with raises(DuplicateObject, "thread copy is there already", hint="delete that one first"), app.transaction():
            app.run("select llm.copy_checkpoint_thread('copy', 'copy')")
    with raises(NoDataFound, "thread t does not exist", hint="first checkpoint"), app.tenant("a"):
        app.run("select llm.copy_checkpoint_thread('t', 'u')")
    assert db.rows("select refs from llm.checkpoint_blobs") == [(1,)]


def test_pruning_leaves_the_latest_with_all_that_it_needs(app: Client, db: Client) -> None:
    with app.tenant("a"):
        _, channels, _ = put(app, "t", 1, one=LONG, two=LONG)
        _, channels, _ = put(app, "t", 2, parent=1, one=(after(channels, "one", 5_000), b"more"), two=b"x" * 3_000)
        put(app, "t", 3, parent=2, one=(after(channels, "one", 10), b"cut"))
        app.run("select llm.put_checkpoint_writes('t', '', '1', 't', '', '{0}', '{c}', '{bytes}', %s)", [LONG])
        assert app.one("select llm.prune_checkpoints('{t, unknown}')") == 2
        assert ids(app, "t") == ["3"]
        assert contents(app, "t", 3) == [b"long long cut"]
        assert app.one("select parent_checkpoint_id from llm.get_checkpoint('t')") is None
    assert db.rows("select number from llm.checkpoint_pieces") == [(1,)]
    assert db.one("select count(*) from llm.checkpoint_blobs") == 0
    assert db.rows("select * from llm.verify_checkpoints()") == []


def test_a_delta_channel_keeps_the_ancestors_that_it_is_made_of(app: Client) -> None:
    with app.tenant("a"):
        counters = {"counters_since_delta_snapshot": {"log": [1, 1], "other": [1, 1]}}
        frame(app, "", "1", None, {})
        frame(app, "", "2", "1", {}, {"log": ["msgpack", "kQE="]})
        frame(app, "", "3", "2", counters, {"other": ["msgpack", "kQE="]})
        frame(app, "", "4", "3", counters)
        app.run("select llm.prune_checkpoints('{t}')")
        assert ids(app, "t") == ["4", "3", "2"]


def test_calls_of_subgraphs_go_with_the_checkpoint_that_they_started_from(app: Client) -> None:
    with app.tenant("a"):
        frame(app, "", "1", None, {})
        frame(app, "", "2", "1", {})
        frame(app, "node:old", "1a", None, {"parents": {"": "1"}})
        frame(app, "node:new", "2a", None, {"parents": {"": "2"}})
        frame(app, "node:ahead", "3a", None, {"parents": {"": "3"}})
        frame(app, "always", "1b", None, {"parents": {"": "1"}})
        app.run("select llm.prune_checkpoints('{t}')")
        assert ids(app, "t") == ["node:ahead/3a", "node:new/2a", "2", "always/1b"]


def test_pruning_all_of_a_thread_deletes_it(app: Client, db: Client) -> None:
    with app.tenant("a"):
        put(app, "t", 1, one=LONG)
        assert app.one("select llm.prune_checkpoints('{t}', 'delete')") == 1
    assert db.one("select count(*) from llm.checkpoint_threads") == 0
    with raises(InvalidParameterValue, "cannot be pruned by strategy 'half'", hint="keep_latest and delete"), app.tenant("a"):
        app.run("select llm.prune_checkpoints('{t}', 'half')")


def test_the_checkpoints_of_a_run_are_deleted_in_all_threads(app: Client) -> None:
    with app.tenant("a"):
        frame(app, "", "1", None, {"run_id": "r"})
        frame(app, "sub", "1", None, {"run_id": "r"})
        frame(app, "", "2", "1", {"run_id": "s"})
        assert app.one("select llm.delete_checkpoint_runs('{r, unknown}')") == 2
        assert ids(app, "t") == ["2"]
    with app.tenant("b"):
        assert app.one("select llm.delete_checkpoint_runs('{s}')") == 0


def test_usage_tells_what_is_shared(app: Client) -> None:
    with app.tenant("a"):
        _, channels, _ = put(app, "t", 1, one=LONG)
        put(app, "t", 2, parent=1, one=(after(channels, "one", 5_000), b"more"))
        assert app.rows("select * from llm.checkpoint_usage()") == [("t", 2, 2, 5_004, 10_004)]
        assert app.one("select llm.delete_checkpoint_thread('t')") is True
        assert app.one("select llm.delete_checkpoint_thread('t')") is False

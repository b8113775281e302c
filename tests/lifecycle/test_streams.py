"""Streams go on wherever a dump takes them: on a server whose transaction ids are ahead, or far behind."""

from __future__ import annotations

import pytest

from tests.lifecycle.support import Mover
from tests.lifecycle.test_dump_restore import BURN, transactions_used
from tests.support import Database
from tests.test_stream import append, read
from tools.cluster import Cluster


@pytest.mark.parametrize("ids", ["ahead", "behind"])
def test_positions_grow_and_nothing_is_hidden_after_a_restore(fresh_database: Database, elsewhere: Cluster, mover: Mover, ids: str) -> None:
    """DR-02: what was read is not read again, what was not is, and what comes later is behind it; for groups and channels, too."""
    database = fresh_database
    own, other = transactions_used(database.cluster), transactions_used(elsewhere)
    with (elsewhere if ids == "ahead" else database.cluster).connect() as connection:
        connection.execute(BURN.format(max(0, other - own if ids == "behind" else own - other) + 5000))
    client = database.client("app")
    database.client().run("select llm.bind_role('app', 'acme')")
    client.run("select llm.group_create('s', 'g')").run("select llm.channel_subscribe('ann', '{*}', p_presence => '1 hour')")
    positions = append(client, 1, 2, 3, 4)
    assert client.column("select payload from llm.group_read('s', 'g', 'ann', 2)") == [1, 2]
    client.run("select llm.channel_publish('a', '1')")

    moved = mover.restore(mover.dump(database, "-Fc"), elsewhere, *(("-1",) if ids == "ahead" else ("-j", "2")))
    superuser = moved.client().run("create role app login in role llm_app").run("select llm.bind_role('app', 'acme')")
    superuser.wait("select began < pg_snapshot_xmin(pg_current_snapshot()) from llm.stream_era")
    client = moved.client("app")
    assert read(client, positions[2]) == [4]
    slow = moved.client("app").run("begin")
    (slowly,) = append(slow, 5)
    append(client, 6)
    assert read(client, positions[3]) == []
    slow.run("commit")
    assert read(client) == [1, 2, 3, 4, 5, 6]
    assert read(client, positions[3]) == [5, 6]
    assert read(client, slowly) == [6]
    assert client.column("select payload from llm.group_read('s', 'g', 'bob')") == [3, 4, 5, 6]
    assert client.column("select payload from llm.group_claim('s', 'g', 'bob', '0')") == [1, 2, 3, 4, 5, 6]
    client.run("select llm.channel_publish('a', '2')")
    assert client.column("select payload from llm.channel_read('ann')") == [1, 2]
    assert superuser.rows("select * from llm.setup()") == []
    assert read(client, positions[3]) == [5, 6]

    # Moved on, in plain SQL, back to where those ids are from.
    again = mover.run_script(mover.dump(moved), database.cluster).client("app")
    append(again, 7)
    assert read(again, positions[3]) == [5, 6, 7]
    assert read(again, slowly) == [6, 7]

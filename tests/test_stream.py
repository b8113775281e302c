"""Streams."""

from __future__ import annotations

from tests.support import Client

def test_probe(db: Client, app: Client, bound: Client):
    print(app.one("select llm.stream_append('s', '{\"a\": 1}')"))
    print(app.one("select llm.stream_append_all('s', array['1','2','3'])"))
    print(app.rows("select * from llm.stream_read('s')"))
    print(app.one("select llm.stream_end('s')"), app.one("select llm.stream_length('s')"))
    print(db.rows("select * from llm.stream_era"))
    db.run("set session authorization llm_owner")
    for r in db.rows("""explain (costs off) select * from llm._settled_entries('acme', 's', llm._stream_window('acme', 's', '1-1-1')) limit 5"""):
        print(r[0])
    db.run("prepare x(llm.stream_window) as select * from llm._settled_entries('acme', 's', $1) limit 5; set plan_cache_mode = force_generic_plan")
    for r in db.rows("""explain (analyze, costs off) execute x(llm._stream_window('acme', 's', '1-1-1'))"""):
        print(r[0])
    assert 0

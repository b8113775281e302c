"""Streams."""

from __future__ import annotations

from tests.support import Client

def test_probe(db: Client, app: Client, bound: Client):
    app.run("select llm.stream_append('s', '{\"a\": 1}')")
    app.one("select llm.stream_append_all('s', array['1','2','3'])")
    app.one("select llm.group_create('s', 'g')")
    for q in ["select * from llm.group_read('s','g','c', 2)", "select * from llm.group_read('s','g','d', 5)", "select * from llm.group_read('s','g','d', 5)",
       "select * from llm.group_pending('s','g')", "select * from llm.group_claim('s','g','e','0')", "select * from llm.group_lag()",
       "select llm.group_ack('s','g', array(select position from llm.group_pending('s','g','e',3)), 'e')", "select * from llm.group_lag()",
       "select llm.metric_record('m', 1.5)", "select llm.metric_record_all('{m,m,n}', '{2,3,4}')", "select * from llm.metric_window('m')",
       "select llm.channel_subscribe('bob', '{incidents:*}')", "select llm.channel_publish('incidents:1', '1')", "select llm.channel_publish('x', '1')",
       "select llm.signal_subscribers()", "select llm.signal_subscribers()",
       "select * from llm.channel_read('bob')", "select * from llm.channel_presence()", "select * from llm.stream_info('s')", "select * from llm.list_streams()",
       "select * from llm.stream_horizon()", "select llm.stream_trim('s', 1)", "select * from llm.stream_info('s')", "select llm.set_stream_policy('s', 1, '1 day')"]:
        print(q, app.rows(q))
    print(db.rows("call llm.trim_streams()"))
    assert 0

"""scratch"""
import json, time, statistics, sys
from bench.support import *
from pathlib import Path
PAY = json.dumps({"prompt": "x"*280})
with server() as cluster, database(cluster, "queue") as su, redis_server() as store:
    su.execute("grant llm_app to app")
    su.execute("select llm.bind_role('app','acme')")
    su.execute(Path("bench/peer_queue.sql").read_text())
    su.execute("select pgmq.create('q')")
    su.execute("grant all on all tables in schema pgmq to app; grant all on all sequences in schema pgmq to app")
    su.execute("alter role app set synchronous_commit = off")
    app = cluster.connect("queue", "app"); app.prepare_threshold = 0
    print(app.execute("show synchronous_commit").fetchall())
    store.xgroup_create("s", "g", mkstream=True)
    def pgmq():
        app.execute("select pgmq.send('q', %s::jsonb)", [PAY]).fetchone()
        r = app.execute("select msg_id, message from pgmq.read('q', 30, 1)").fetchone()
        app.execute("select pgmq.delete('q', %s::bigint)", [r[0]]).fetchone()
    st = {"d": None, "t": None}
    def ours():
        app.execute("select llm.enqueue('q', %s::jsonb)", [PAY]).fetchone()
        r = app.execute("select id, token, payload from llm.claim_jobs('q', 1, p_done => %s::bigint[], p_token => %s::bigint)", [st["d"], st["t"]]).fetchone()
        st["d"] = [r[0]]; st["t"] = r[1]
    def ours3():
        app.execute("select llm.enqueue('q3', %s::jsonb)", [PAY]).fetchone()
        r = app.execute("select id, token, payload from llm.claim_jobs('q3', 1)").fetchone()
        app.execute("select llm.complete_jobs(%s::bigint[], %s::bigint)", [[r[0]], r[1]]).fetchone()
    def enq(): app.execute("select llm.enqueue('q9', %s::jsonb)", [PAY]).fetchone()
    def red():
        store.xadd("s", {"p": PAY})
        ((_, ((i, _),)),) = store.xreadgroup("g", "c", {"s": ">"}, count=1)
        store.xack("s", "g", i); store.xdel("s", i)
    def one_(): app.execute("select 1").fetchone()
    pid = app.info.backend_pid
    rpid = store.info("server")["process_id"]
    def cpu(p): return int(open(f"/proc/{p}/schedstat").read().split()[0])
    def meas(name, f, n, p):
        for _ in range(n//5): f()
        best = []
        for _ in range(12):
            a = cpu(p); b = time.process_time_ns()
            for _ in range(n): f()
            best.append(((cpu(p)-a)/n/1000, (time.process_time_ns()-b)/n/1000))
        best.sort()
        print(f"{name:10} server {best[0][0]:8.1f} us   client {min(x[1] for x in best):8.1f}   {[round(x[0]) for x in best]}", flush=True)
    def cl0(): app.execute("select id, token, payload from llm.claim_jobs('none', 1)").fetchall()
    def cl1(): app.execute("select id, token, payload from llm.claim_jobs('empty', 1)").fetchall()
    app.execute("select llm.set_queue('empty')")
    meas("one", one_, 300, pid); meas("redis", red, 1000, rpid); meas("pgmq", pgmq, 200, pid); meas("ours", ours, 300, pid); meas("ours3", ours3, 200, pid); meas("enq", enq, 300, pid)
    meas("claim none", cl0, 300, pid)
    meas("claim empty", cl1, 300, pid)
    P = [PAY]*100
    def pgmq100():
        app.execute("select count(*) from pgmq.send_batch('q', %s::jsonb[])", [P]).fetchone()
        r = app.execute("select msg_id, message from pgmq.read('q', 30, 100)").fetchall()
        app.execute("select count(*) from pgmq.delete('q', %s::bigint[])", [[x[0] for x in r]]).fetchone()
    def ours100():
        app.execute("select llm.enqueue_many('q', %s::jsonb[])", [P]).fetchone()
        r = app.execute("select id, token, payload from llm.claim_jobs('q', 100, p_done => %s::bigint[], p_token => %s::bigint)", [st["d"], st["t"]]).fetchall()
        st["d"] = [x[0] for x in r]; st["t"] = r[0][1]
    def e100(): app.execute("select llm.enqueue_many('q9', %s::jsonb[])", [P]).fetchone()
    def s100(): app.execute("select count(*) from pgmq.send_batch('q2', %s::jsonb[])", [P]).fetchone()
    su.execute("select pgmq.create('q2')"); su.execute("grant all on all tables in schema pgmq to app")
    def c100():
        app.execute("select id, token, payload from llm.claim_jobs('q9', 100)").fetchall()
    def r100(): app.execute("select msg_id, message from pgmq.read('q2', 3000, 100)").fetchall()
    def p100(): app.execute("select count(*) from unnest(%s::jsonb[])", [P]).fetchall()
    meas("parse100", p100, 10, pid)
    meas("send100", s100, 10, pid); meas("e100", e100, 10, pid); meas("read100", r100, 10, pid); meas("c100", c100, 10, pid)
    meas("pgmq100", pgmq100, 10, pid); meas("ours100", ours100, 10, pid); meas("e100", e100, 10, pid)

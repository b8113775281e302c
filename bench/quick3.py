import json, time, sys, os, subprocess
from bench.support import *
from pathlib import Path
PAY = json.dumps({"prompt": "x"*280})
with server() as cluster, database(cluster, "queue") as su:
    su.execute("grant llm_app to app"); su.execute("select llm.bind_role('app','acme')")
    su.execute("alter role app set synchronous_commit = off")
    app = cluster.connect("queue", "app"); app.prepare_threshold = 0
    app.execute("select llm.set_queue('q')")
    Path("/tmp/pid").write_text(str(app.info.backend_pid))
    st = {"d": None, "t": None}
    P=[PAY]*100
    def ours():
        app.execute("select llm.enqueue('q', %s::jsonb)", [PAY]).fetchone()
        r = app.execute("select id, token, payload from llm.claim_jobs('q', 1, p_done => %s::bigint[], p_token => %s::bigint)", [st["d"], st["t"]]).fetchone()
        st["d"] = [r[0]]; st["t"] = r[1]
    def ours100():
        app.execute("select llm.enqueue_many('q', %s::jsonb[])", [P]).fetchone()
        r = app.execute("select id, token, payload from llm.claim_jobs('q', 100, p_done => %s::bigint[], p_token => %s::bigint)", [st["d"], st["t"]]).fetchall()
        st["d"] = [x[0] for x in r]; st["t"] = r[0][1]
    f = ours100 if sys.argv[1]=="100" else ours
    end=time.time()+float(sys.argv[2])
    while time.time()<end: f()

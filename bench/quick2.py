import json, time, sys
from bench.support import *
from pathlib import Path
PAY = json.dumps({"prompt": "x"*280})
with server() as cluster, database(cluster, "queue") as su:
    su.execute("grant llm_app to app"); su.execute("select llm.bind_role('app','acme')")
    su.execute("grant execute on all functions in schema llm to app; grant all on all tables in schema llm to app; grant all on all sequences in schema llm to app")
    su.execute("alter role app set synchronous_commit = off")
    app = cluster.connect("queue", "app"); app.prepare_threshold = 0
    pid = app.info.backend_pid
    app.execute("select llm.set_queue('q')")
    def cpu(p): return int(open(f"/proc/{p}/schedstat").read().split()[0])
    def meas(sql, n=3000):
        r=[]
        for _ in range(4):
            a=cpu(pid); app.execute(f"do $$ declare x text; begin for i in 1..{n} loop {sql}; end loop; end $$"); r.append((cpu(pid)-a)/n/1000)
        print(f"{min(r):8.2f}  {sql[:110]}", flush=True)
    meas("x := 1")
    meas("x := llm._owners_tenant()")
    meas("x := llm._job_tenant()")
    meas("x := llm.current_user_id()")
    meas("x := pg_current_xact_id()")
    meas("x := nextval('llm.jobs_id_seq'::regclass)")
    meas("x := llm._sweep_is_due('llm.foo', now())")
    meas("x := llm._low_mark('acme', 'q', 0, 0, 7)")
    meas("x := llm._sweep_queue('acme', 'q', 5, now())")
    meas("x := llm._complete_jobs('acme', null, array[1::bigint], 1, null, false)")
    meas("perform llm.enqueue('q', '{}')", 3000)
    meas("perform from llm.claim_jobs('q')", 1000)
    meas("perform from llm.claim_jobs('nn')", 1000)
    su.execute("truncate llm.jobs")
    meas("perform from llm.claim_jobs('q')", 1000)

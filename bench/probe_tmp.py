import time, uuid
from statistics import median
from bench.support import server, database
from bench.bench_checkpoint import *
from langgraph.checkpoint.memory import InMemorySaver
import copy
class Rec(InMemorySaver):
    def __init__(self): super().__init__(); self.calls=[]
    def put(self, c, k, m, n):
        self.calls.append(("put",(c,{**k,"channel_values":{a:(list(b) if isinstance(b,list) else b) for a,b in k["channel_values"].items()}},dict(m),dict(n)))); return super().put(c,k,m,n)
    def put_writes(self, c, w, t, p=""):
        self.calls.append(("put_writes",(c,list(w),t,p))); return super().put_writes(c,w,t,p)
rec=Rec()
graph(rec,200).invoke({"messages":[HumanMessage("x",id="1")],"turns":0},{"configurable":{"thread_id":"t"},"recursion_limit":300},durability="sync")
print(len(rec.calls), sum(n=="put" for n,_ in rec.calls))
with server() as cluster, database(cluster,"checkpoint") as su, cluster.connect("checkpoint") as peer, cluster.connect("checkpoint","app") as app:
    su.execute("grant llm_app to app"); PostgresSaver(peer).setup(); peer.prepare_threshold=0; app.prepare_threshold=0
    savers={"ours":PgLlmSaver(app,tenant="acme"),"peer":PostgresSaver(peer)}

    import os
    def backend(c):
        f=open(f"/proc/{c.info.backend_pid}/schedstat").read().split(); return int(f[0])/1000
    conns={"ours":app,"peer":peer}
    for c in (app,peer): c.execute("set synchronous_commit=off")


    import cProfile, pstats
    for rep in range(3):
      for name,s in savers.items():
        tid=str(uuid.uuid4()); tot={}
        for n,a in rec.calls:
            cfg={**a[0],"configurable":{**a[0]["configurable"],"thread_id":tid}}
            c0,b0=time.process_time(),backend(conns[name])
            getattr(s,n)(cfg,*a[1:])
            c1,b1=time.process_time(),backend(conns[name])
            x=tot.setdefault(n,[0,0,0]); x[0]+=1; x[1]+=(c1-c0)*1e6; x[2]+=b1-b0
        for i in range(30):
            c0,b0=time.process_time(),backend(conns[name])
            s.get_tuple({"configurable":{"thread_id":tid}})
            c1,b1=time.process_time(),backend(conns[name])
            x=tot.setdefault("get",[0,0,0]); x[0]+=1; x[1]+=(c1-c0)*1e6; x[2]+=b1-b0
        print(rep,name,{k:f"client {v[1]/v[0]:.0f} server {v[2]/v[0]:.0f}" for k,v in tot.items()})
    s=savers["ours"]; tid=str(uuid.uuid4())
    pr=cProfile.Profile()
    for n,a in rec.calls:
        cfg={**a[0],"configurable":{**a[0]["configurable"],"thread_id":tid}}
        if n=="put": pr.enable()
        getattr(s,n)(cfg,*a[1:])
        pr.disable()
    pstats.Stats(pr).sort_stats("tottime").print_stats(14)

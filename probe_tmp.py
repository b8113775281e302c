import sys
sys.path.insert(0,'.')
from bench.support import *
from bench.bench_rate_limit import *
from time import perf_counter
def cpu(pid): return int(open(f'/proc/{pid}/schedstat').read().split()[0])/1000
with server() as cluster, database(cluster,'x') as su, redis_server() as red:
    su.execute("grant llm_app to app"); su.execute("grant llm_app to bound"); su.execute("select llm.bind_role('bound','acme')")
    c = cluster.connect('x','bound'); c.prepare_threshold=0
    pid=c.info.backend_pid
    rpid=red.info()['process_id']
    sc=red.register_script(LOG); red.ping()
    best={}
    def m(name,pid,f,n=300):
        s=cpu(pid)
        for i in range(n): f(str(i))
        best.setdefault(name,[]).append((cpu(pid)-s)/n)
    for r in range(30):
        m('redis',rpid,lambda k: sc(keys=['limit:'+k],args=[200,1]))
        m('redis get',rpid,lambda k: red.get('limit'))
        m('select 1',pid,lambda k: c.execute('select %s::text',[k]).fetchone())
        m('tenant',pid,lambda k: c.execute('select %s::text, llm.current_tenant()',[k]).fetchone())
        for n,a in OURS.items():
            m(n,pid,lambda k: c.execute(f"select allowed, remaining from llm.rate_limit('api', %s, 200, '1 s', {a})",[k]).fetchone())
    for k,v in best.items(): print(f"{k:20} min {min(v):8.2f} median {median(v):8.2f} us of the server's CPU")

-- How queues fare.

create or replace view llm.queue_stats with (security_invoker = true) as
select
    q.queue,
    count(j.id) filter (where j.lane <= 100 and j.token is null) as ready,
    count(j.id) filter (where j.lane = 1001) as waiting,
    count(j.id) filter (where j.lane = 1000) as scheduled,
    count(j.id) filter (where j.token is not null) as running,
    count(j.id) filter (where j.token is not null and j.due_at <= statement_timestamp()) as overdue,
    count(j.id) filter (where j.lane = 1002) as dead,
    statement_timestamp() - min(j.created_at) filter (where j.lane <= 100 and j.token is null) as oldest_ready,
    count(distinct j.worker) filter (where j.token is not null) as workers,
    q.paused_at
from llm.queues q
left join llm.jobs j
    on j.tenant_id = q.tenant_id
    and j.queue = q.queue
group by q.tenant_id, q.queue;

comment on view llm.queue_stats is
'The queues of the current tenant, with the jobs of the user if one is set: how many are ready; wait for their group; are scheduled, for later or
again; run; of these, whose lease is over; were given up (dead); how long ago the oldest of the ready was enqueued; how many workers have one; since
when the queue is paused.';

alter view llm.queue_stats owner to llm_owner;
grant select on llm.queue_stats to llm_admin, llm_app, llm_reader;

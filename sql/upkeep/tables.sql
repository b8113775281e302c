-- How the tables in partitions are.

create or replace view llm.partition_status with (security_invoker = true) as
select
    s.parent,
    s.partition_interval,
    s.retention_days,
    s.before_drop,
    p.partitions,
    p.begins_at,
    p.ends_at,
    p.default_bytes,
    coalesce(p.is_ahead, false) as is_ahead,
    s.last_run_at,
    s.last_ok_at,
    s.last_error,
    s.last_actions,
    coalesce(s.last_ok_at, s.created_at) < now() - least(interval '2 days', 2 * s.partition_interval) as is_late
from llm.partition_sets s
cross join lateral (
    select
        count(*) filter (where not p.is_default) as partitions,
        min(p.begins_at) as begins_at,
        max(p.ends_at) as ends_at,
        sum(pg_relation_size(p.partition)) filter (where p.is_default) as default_bytes,
        bool_or(now() >= p.begins_at and now() < p.ends_at)
            and bool_or(now() + s.partition_interval >= p.begins_at and now() + s.partition_interval < p.ends_at) as is_ahead
    from llm._partitions(llm._partition_table(s.parent)) p
) p;

comment on view llm.partition_status is
'Tables in partitions, one row a table: what it was told (llm.partition_sets); how many partitions there are and what they span; default_bytes, more
than 0 when rows found no partition of their own; is_ahead: the present partition and the next are there; when llm.manage_partitions() last began
with it, when all that was due was last done, what failed since, what was done; is_late: that was more than two days or two partitions ago.';

alter view llm.partition_status owner to llm_owner;
grant select on llm.partition_status to llm_admin, llm_auditor;

create function llm.queue_metrics(
    p_window interval default '5 minutes'
)
    returns table (
        queue text, done bigint, per_second double precision, failed_attempts bigint, wait_p50 interval, wait_p95 interval, run_p50 interval,
        run_p95 interval
    )
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_window is null or p_window not between interval '1 second' and interval '366 days' then
        raise exception 'jobs of the last % cannot be measured', coalesce(p_window::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give a second to 366 days.';
    end if;
    return query
        select
            a.queue,
            count(*),
            count(*)::double precision / extract(epoch from p_window)::double precision,
            sum(a.attempts - 1)::bigint,
            percentile_cont(0.5) within group (order by a.claimed_at - a.created_at),
            percentile_cont(0.95) within group (order by a.claimed_at - a.created_at),
            percentile_cont(0.5) within group (order by a.finished_at - a.claimed_at),
            percentile_cont(0.95) within group (order by a.finished_at - a.claimed_at)
        from llm.job_archive a
        where a.finished_at > clock_timestamp() - p_window
        group by a.queue
        order by a.queue;
end
$$;

comment on function llm.queue_metrics(interval) is
'What was done of queues that keep what is done (llm.job_archive), for the current tenant, and the user if one is set. p_window: in so long until now.
Returns how many jobs, how many a second, how many attempts of these failed before, and how long, in the middle and at most but for 5%, they waited
from enqueueing to their last claim, and ran. Errors: invalid_parameter_value.';


-- security definer: llm_admin sees rows of one tenant at a time; here are names of tenants and queues, and counts alone.
create function llm.queue_backlog()
    returns table (tenant_id text, queue text, due bigint, running bigint, dead bigint)
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_now      timestamptz := statement_timestamp();
begin
    return query
        select
            j.tenant_id,
            j.queue,
            count(*) filter (
                where q.paused_at is null and (j.lane <= 100 and j.token is null or (j.lane = 1000 or j.token is not null) and j.due_at <= v_now)
            ),
            count(*) filter (where j.token is not null),
            count(*) filter (where j.lane = 1002)
        from llm.jobs j
        join llm.queues q
            on q.tenant_id = j.tenant_id
            and q.queue = j.queue
        group by j.tenant_id, j.queue
        order by j.tenant_id, j.queue;
end
$$;

alter function llm.queue_backlog() owner to llm_owner;

comment on function llm.queue_backlog() is
'The queues of all tenants, for a worker that serves all of them: how many jobs are due, how many run, how many were given up.';


create function llm.horizon_holders(
    p_older interval default '10 seconds',
    p_xids  bigint default 10000
)
    returns table (kind text, holder text, pid integer, since timestamptz, transactions bigint, remedy text)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select
            case a.backend_type when 'walsender' then 'standby' else 'session' end,
            format('%s (%s, %s)', a.usename, coalesce(nullif(a.application_name, ''), 'no application name'), coalesce(a.state, a.backend_type)),
            a.pid,
            a.xact_start,
            age(coalesce(a.backend_xmin, a.backend_xid))::bigint,
            case a.backend_type
                when 'walsender' then 'End the long query there, or set hot_standby_feedback = off on it.'
                else format('End it: select pg_terminate_backend(%s); and set idle_in_transaction_session_timeout or transaction_timeout.', a.pid)
            end
        from pg_stat_activity a
        where (a.backend_xmin is not null or a.backend_xid is not null)
            and a.pid <> pg_backend_pid()
            and (
                a.backend_type = 'walsender' and age(a.backend_xmin) >= p_xids
                or a.datname = current_database() and a.backend_type not like 'autovacuum%' and a.xact_start < clock_timestamp() - p_older
            )
        union all
        select
            'replication slot', s.slot_name::text, s.active_pid, null, age(s.xmin)::bigint,
            'Bring back who reads it, or drop it: select pg_drop_replication_slot(…); and set max_slot_wal_keep_size.'
        from pg_replication_slots s
        where age(s.xmin) >= p_xids
        union all
        select
            'prepared transaction', p.gid, null, p.prepared, age(p.transaction)::bigint,
            format('commit prepared %L; or rollback prepared %1$L;', p.gid)
        from pg_prepared_xacts p
        where p.database = current_database()
            and p.prepared < clock_timestamp() - p_older
        order by 5 desc;
end
$$;

comment on function llm.horizon_holders(interval, bigint) is
'Who keeps VACUUM from removing rows that are gone, so that tables and indexes grow: sessions in a transaction for longer than p_older, prepared
transactions as old, replication slots and standbys that hold back p_xids transactions or more; the oldest first, with what to do. Sessions of others
are told to superusers and members of pg_read_all_stats only.';


create function llm.queue_alerts(
    p_older interval default '10 seconds',
    p_wait  interval default '5 minutes'
)
    returns table (alert text, subject text, detail text, hint text)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select 'horizon', format('%s %s', h.kind, h.holder), format('holds back %s transactions since %s', h.transactions, h.since), h.remedy
        from llm.horizon_holders(p_older, 10000::bigint) h;
    return query
        select
            'dead rows', s.relid::regclass::text, format('%s dead rows, %s live', s.n_dead_tup, s.n_live_tup),
            'See horizon above; else more autovacuum_max_workers, or a higher autovacuum_vacuum_cost_limit.'
        from pg_stat_all_tables s
        where s.relid in ('llm.jobs'::regclass, 'llm.queues'::regclass, 'llm.job_groups'::regclass)
            and s.n_dead_tup > greatest(20000, 2 * s.n_live_tup);
    return query
        select
            'notifications', 'pg_notification_queue_usage()', format('%s full', u.usage),
            'A session that listens is in a transaction for too long: end it, or commits with NOTIFY fail at last.'
        from (select pg_notification_queue_usage() as usage) u
        where u.usage >= 0.5;
    return query
        select
            k.alert, q.queue, k.detail, k.hint
        from llm.queue_stats q
        cross join lateral (
            values
                (
                    'dead letters', q.dead > 0, format('%s jobs were given up', q.dead),
                    'See llm.list_jobs(queue, ''dead''); then llm.retry_dead_jobs(), or llm.purge_queue(queue, ''dead'').'
                ),
                (
                    'late', q.paused_at is null and q.oldest_ready > p_wait,
                    format('the oldest of %s ready jobs waits for %s', q.ready, q.oldest_ready), 'Start more workers.'
                ),
                ('overdue', q.overdue > 0, format('the lease of %s jobs is over, and nobody claims', q.overdue), 'Start a worker.'),
                (
                    'paused', q.paused_at < clock_timestamp() - p_wait, format('nothing is claimed since %s', q.paused_at),
                    'select llm.resume_queue(queue);'
                )
        ) k (alert, holds, detail, hint)
        where k.holds;
    return query
        select
            'schedule', s.name, coalesce(s.last_error, format('was due at %s', s.next_at)),
            'Correct it by llm.schedule_job(); have llm.tend_queues() called every minute: see llm.schedule_maintenance().'
        from llm.job_schedules s
        where s.last_error is not null
            or s.next_at < clock_timestamp() - p_wait;
end
$$;

comment on function llm.queue_alerts(interval, interval) is
'What somebody should look at, a row each, none when all is well: who holds the horizon back for longer than p_older (see llm.horizon_holders()), dead
rows, a notification queue that is half full; of the current tenant: queues with dead letters, with jobs that have been ready, or paused, for longer
than p_wait, with leases that are over; schedules that failed or are late.';


-- Regular work

create function llm._tend_jobs(
    p_now timestamptz
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_queue record;
begin
    -- The clock went back: what was to be due in a minute must not be due in an hour and a minute.
    update llm.jobs j
    set due_at = p_now + (j.due_at - j.due_set_at),
        place = case when j.lane = 1000 then extract(epoch from p_now + (j.due_at - j.due_set_at)) * 1000000 else j.place end,
        due_set_at = p_now
    where (j.tenant_id, j.id) in (
        select s.tenant_id, s.id
        from llm.jobs s
        where (s.lane = 1000 or s.token is not null)
            and s.due_set_at > p_now + interval '1 second'
        order by s.tenant_id, s.id
        for update skip locked
    );
    for v_queue in
        select q.tenant_id, q.queue, q.max_attempts
        from llm.queues q
        where q.paused_at is null
            and exists (
                select
                from llm.jobs j
                where j.tenant_id = q.tenant_id
                    and j.queue = q.queue
                    and (j.lane = 1000 or j.token is not null)
                    and j.due_at <= p_now
            )
        order by q.tenant_id, q.queue
    loop
        perform llm._sweep_queue(v_queue.tenant_id, v_queue.queue, v_queue.max_attempts, p_now);
    end loop;
end
$$;

comment on function llm._tend_jobs(timestamptz) is
'The part of llm.tend_queues() about jobs. p_now: by the server''s clock.';


create procedure llm.tend_queues()
    language plpgsql
as $$
begin
    perform llm._require_storage();
    perform llm._fire_schedules(null::pg_catalog.text, pg_catalog.clock_timestamp(), 100000::pg_catalog.int4);
    commit;
    perform llm._tend_jobs(pg_catalog.clock_timestamp());
    commit;
    perform llm._tend_groups();
end
$$;

comment on procedure llm.tend_queues() is
'What queues of all tenants need from time to time, whether or not somebody works: enqueues scheduled jobs, makes ready what is due, gives up what was
claimed too often, forgets keys that are free again, mends due times after the clock went back. Call it outside of a transaction, about every minute:
see llm.schedule_maintenance(). For superusers.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'queue_metrics'
);

select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    'queue_backlog'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'horizon_holders', 'queue_alerts'
);

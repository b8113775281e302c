create function llm.next_cron(
    p_cron      text,
    p_after     timestamptz,
    p_time_zone text default 'UTC'
)
    returns timestamptz
    language plpython3u
    stable
    strict
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
    set datestyle = 'ISO'
as $$
from pg_llm import queue_schedule
return queue_schedule.next_cron(p_cron, p_after, p_time_zone)
$$;

comment on function llm.next_cron(text, timestamptz, text) is
'When a cron expression is due next. p_cron: minute, hour, day of month, month, day of week (0 and 7 are Sunday; names, lists, ranges, steps; when
both days are given either will do), or @hourly, @daily, @weekly, @monthly, @yearly; p_after: after this moment; p_time_zone: whose clock, such as
Europe/Oslo. Hours that the clock skips in spring: what is at a certain hour then is due when the gap ends. Hours that come twice in autumn: what is
at a certain hour is due the first time, what is every hour both times. Null when it is never due. Errors: invalid_parameter_value.';


-- security definer: schedules are written by functions alone; the tenant is named in each statement.
create function llm.schedule_job(
    p_name         text,
    p_queue        text,
    p_cron         text,
    p_payload      jsonb default '{}',
    p_time_zone    text default 'UTC',
    p_priority     integer default 0,
    p_group        text default null,
    p_max_attempts integer default null
)
    returns timestamptz
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._job_tenant();
    v_next   timestamptz := llm.next_cron(p_cron, clock_timestamp(), p_time_zone);
begin
    if p_name is null or octet_length(p_name) not between 1 and 200 or v_next is null or p_payload is null
        or octet_length(p_group) not between 1 and 200 or p_max_attempts not between 1 and 1000
    then
        raise exception 'schedule % cannot be like this: cron % in time zone %', coalesce(quote_literal(left(p_name, 50)), 'null'),
            coalesce(quote_literal(p_cron), 'null'), coalesce(quote_literal(p_time_zone), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give a name and group of 1 to 200 bytes, a day that comes, a payload, 1 to 1,000 attempts.';
    end if;
    perform llm._open_queue(v_tenant, p_queue, p_priority);
    insert into llm.job_schedules as s (tenant_id, name, queue, cron, time_zone, payload, priority, group_key, max_attempts, next_at)
    values (v_tenant, p_name, p_queue, p_cron, p_time_zone, p_payload, p_priority, p_group, p_max_attempts, v_next)
    on conflict (tenant_id, name) do update
        set queue = excluded.queue,
            cron = excluded.cron,
            time_zone = excluded.time_zone,
            payload = excluded.payload,
            priority = excluded.priority,
            group_key = excluded.group_key,
            max_attempts = excluded.max_attempts,
            -- What is due stays due when the same is said again.
            next_at = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.next_at else excluded.next_at end,
            last_error = null
    returning s.next_at into v_next;
    return v_next;
end
$$;

alter function llm.schedule_job(text, text, text, jsonb, text, integer, text, integer) owner to llm_owner;

comment on function llm.schedule_job(text, text, text, jsonb, text, integer, text, integer) is
'Has a job enqueued again and again. p_name: of the schedule; a second call with it changes it; p_cron, p_time_zone: as llm.next_cron(); the rest as
llm.enqueue(). llm.fire_schedules() enqueues it, which workers of pg_llm_client and llm.tend_queues() call. Returns when it is due first. Errors:
invalid_parameter_value; object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm.schedule_job().
create function llm.unschedule_job(
    p_name text
)
    returns boolean
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._job_tenant();
begin
    delete from llm.job_schedules s where s.tenant_id = v_tenant and s.name = p_name;
    return found;
end
$$;

alter function llm.unschedule_job(text) owner to llm_owner;

comment on function llm.unschedule_job(text) is
'Ends llm.schedule_job(); jobs that it has enqueued stay. Returns false when there is no such schedule. Errors: object_not_in_prerequisite_state when
no tenant is set.';


create function llm._fire_schedules(
    p_tenant text,
    p_now    timestamptz,
    p_limit  integer
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_fired    bigint := 0;
    v_id       bigint;
    v_next     timestamptz;
    v_error    text;
    v_schedule record;
begin
    for v_schedule in
        select s.*
        from llm.job_schedules s
        where (p_tenant is null or s.tenant_id = p_tenant)
            and s.next_at <= p_now
        order by s.tenant_id, s.name
        limit p_limit
        -- Another scheduler has it.
        for update skip locked
    loop
        v_error := null;
        v_next := null;
        begin
            v_next := llm.next_cron(v_schedule.cron, p_now, v_schedule.time_zone);
            perform llm._open_queue(v_schedule.tenant_id, v_schedule.queue, v_schedule.priority);
            v_id := nextval('llm.jobs_id_seq'::regclass);
            perform llm._enqueue(
                v_schedule.tenant_id, v_id, v_schedule.queue, v_schedule.payload, v_schedule.priority, null::interval, v_schedule.group_key,
                null::text, null::interval, v_schedule.max_attempts, null::timestamptz, null::uuid
            );
            perform llm._settle_groups(v_schedule.tenant_id, v_schedule.queue, array[v_schedule.group_key]);
            v_fired := v_fired + 1;
        exception
            when data_exception or integrity_constraint_violation then
                v_id := v_schedule.last_job;
                v_error := sqlerrm;
        end;
        update llm.job_schedules s
        set next_at = v_next,
            last_at = v_schedule.next_at,
            last_job = v_id,
            last_error = v_error
        where s.tenant_id = v_schedule.tenant_id
            and s.name = v_schedule.name;
    end loop;
    return v_fired;
end
$$;

comment on function llm._fire_schedules(text, timestamptz, integer) is
'Enqueues what is due at p_now, once each, however often it was due since the last time; in the transaction that says when it is due next. p_tenant:
null for all; p_limit: at most so many.';


-- security definer: as llm.schedule_job().
create function llm.fire_schedules(
    p_limit integer default 1000
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    return llm._fire_schedules(llm._job_tenant(), clock_timestamp(), p_limit);
end
$$;

alter function llm.fire_schedules(integer) owner to llm_owner;

comment on function llm.fire_schedules(integer) is
'Enqueues the scheduled jobs of the current tenant that are due. Call it as often, and by as many, as you like: each is enqueued once; once as well
when it was due several times while nobody called. p_limit: at most so many. Returns how many. Errors: object_not_in_prerequisite_state when no tenant
is set.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    'next_cron'
);

select llm._grant_execute(
    array['llm_owner'],
    '_fire_schedules'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'schedule_job', 'unschedule_job', 'fire_schedules'
);

create type llm.job as (
    id           bigint,
    token        bigint,
    payload      jsonb,
    attempt      integer,
    priority     integer,
    group_key    text,
    user_id      uuid,
    created_at   timestamptz,
    lease_until  timestamptz
);

comment on type llm.job is
'A job that was claimed. token: of the claim, which llm.complete_jobs(), llm.fail_jobs() and llm.extend_jobs() want to see, higher than that of any
claim before; attempt: how often the job was claimed, with this time; lease_until: by the server''s clock, when it may be given to somebody else.';


create function llm._job_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._owners_tenant();
begin
    if v_tenant is null then
        raise exception 'jobs are a tenant''s, and no tenant is set'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of the transaction, or llm.bind_role() for the role.';
    end if;
    return v_tenant;
end
$$;

comment on function llm._job_tenant() is
'The tenant whose jobs this transaction works with. Errors: object_not_in_prerequisite_state when none is set.';


create function llm._job_state(
    p_lane  integer,
    p_token bigint
)
    returns text
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return case p_lane
        when 1000 then 'scheduled'
        when 1001 then 'waiting'
        when 1002 then 'dead'
        else case when p_token is null then 'ready' else 'running' end
    end;
end
$$;

comment on function llm._job_state(integer, bigint) is
'The state of a job in words: ready, waiting, scheduled, running or dead.';


-- Queues

-- security definer: queues are written by functions alone; the tenant is named in each statement.
create function llm.set_queue(
    p_queue        text,
    p_max_attempts integer default null,
    p_lease        interval default null,
    p_base_delay   interval default null,
    p_max_delay    interval default null,
    p_group_limit  integer default null,
    p_archive      boolean default null,
    p_notify       boolean default null
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._job_tenant();
begin
    perform llm._open_queue(v_tenant, p_queue);
    begin
        update llm.queues q
        set max_attempts = coalesce(p_max_attempts, q.max_attempts),
            lease = coalesce(p_lease, q.lease),
            base_delay = coalesce(p_base_delay, q.base_delay),
            max_delay = coalesce(p_max_delay, q.max_delay),
            group_limit = coalesce(p_group_limit, q.group_limit),
            archive = coalesce(p_archive, q.archive),
            notify = coalesce(p_notify, q.notify)
        where q.tenant_id = v_tenant
            and q.queue = p_queue;
    exception
        when check_violation then
            raise exception 'queue % cannot be like this: % attempts, lease %, delays % to %, % of a group', p_queue,
                coalesce(p_max_attempts::text, 'as many'), coalesce(p_lease::text, 'as it is'), coalesce(p_base_delay::text, 'as it is'),
                coalesce(p_max_delay::text, 'as it is'), coalesce(p_group_limit::text, 'as many')
                using errcode = 'invalid_parameter_value',
                      hint = 'Give 1 to 1,000 attempts, a lease of 1 ms to 1 day, p_base_delay <= p_max_delay <= 30 days, 1 to 100,000 of a group.';
    end;
end
$$;

alter function llm.set_queue(text, integer, interval, interval, interval, integer, boolean, boolean) owner to llm_owner;

comment on function llm.set_queue(text, integer, interval, interval, interval, integer, boolean, boolean) is
'Makes a queue of the current tenant, or changes it; null leaves a setting as it is, or at its default. p_queue: 1 to 200 bytes; p_max_attempts: after
so many claims a job is given up (5); p_lease: how long a claim lasts (1 minute); p_base_delay: before a failed job comes back (1 second), doubled
each time up to p_max_delay (1 hour), less up to half of it by chance; p_group_limit: how many jobs of one group run at a time (1, which is first in,
first out); p_archive: what is done goes to llm.job_archive (no); p_notify: wake those who listen to llm.queue_channel() when the queue was empty
(no). Errors: invalid_parameter_value; object_not_in_prerequisite_state when no tenant is set.';


create function llm._open_queue(
    p_tenant   text,
    p_queue    text,
    p_priority integer default 0
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_notify boolean;
begin
    if p_queue is null or octet_length(p_queue) not between 1 and 200 then
        raise exception 'a queue cannot be called %', coalesce(quote_literal(left(p_queue, 50)), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Its name has 1 to 200 bytes.';
    end if;
    if p_priority is null or p_priority not between -100 and 100 then
        raise exception 'a job cannot have priority %', coalesce(p_priority::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give -100 to 100: what is higher is claimed first.';
    end if;
    insert into llm.queues (tenant_id, queue) values (p_tenant, p_queue) on conflict do nothing;
    update llm.queues q
    set priorities = array(select p from unnest(q.priorities || p_priority) p order by p desc),
        lows = array(select l from unnest(q.priorities || p_priority, q.lows || 0::bigint) l (p, l) order by p desc)
    where q.tenant_id = p_tenant
        and q.queue = p_queue
        and p_priority <> all (q.priorities);
    select q.notify into v_notify from llm.queues q where q.tenant_id = p_tenant and q.queue = p_queue;
    return v_notify;
end
$$;

comment on function llm._open_queue(text, text, integer) is
'Makes a queue, if there is none, that takes jobs of this priority. Returns whether it notifies. Errors: invalid_parameter_value.';


create function llm.queue_channel(
    p_queue text
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm.current_tenant();
begin
    if v_tenant is null then
        raise exception 'jobs are a tenant''s, and no tenant is set'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of the transaction, or llm.bind_role() for the role.';
    end if;
    return llm._queue_channel(v_tenant, p_queue);
end
$$;

comment on function llm.queue_channel(text) is
'What to LISTEN to, to be woken when jobs come to a queue that was empty, if llm.set_queue() said so: a digest, because all roles see who notifies
where. Nobody should rely on it: what is due later, or comes back, wakes nobody. Errors: object_not_in_prerequisite_state when no tenant is set.';


create function llm._queue_channel(
    p_tenant text,
    p_queue  text
)
    returns text
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return 'llm_queue_' || substr(encode(sha256(convert_to(format('%s %s %s', length(p_tenant), p_tenant, p_queue), 'UTF8')), 'hex'), 1, 32);
end
$$;

comment on function llm._queue_channel(text, text) is
'The channel of a queue of a tenant.';


create function llm._wake_workers(
    p_tenant text,
    p_queue  text,
    p_first  bigint
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Who finds jobs before his own leaves the waking to those who brought them: a busy queue notifies nobody.
    if not exists (
        select from llm.jobs j where j.tenant_id = p_tenant and j.queue = p_queue and j.lane <= 100 and j.token is null and j.id < p_first
    ) then
        perform pg_notify(llm._queue_channel(p_tenant, p_queue), '');
    end if;
end
$$;

comment on function llm._wake_workers(text, text, bigint) is
'Notifies the channel of a queue in which no job is ready but those from p_first on.';


-- Enqueueing

-- security definer: jobs are written by functions alone; tenant and user are named in each statement.
create function llm.enqueue(
    p_queue        text,
    p_payload      jsonb default '{}',
    p_priority     integer default 0,
    p_delay        interval default null,
    p_group        text default null,
    p_dedup_key    text default null,
    p_dedup_for    interval default null,
    p_max_attempts integer default null,
    p_run_at       timestamptz default null,
    p_user_id      uuid default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._owners_tenant();
    v_user_id uuid := coalesce(p_user_id, llm.current_user_id());
    -- Before a place is drawn: llm._low_mark() relies on it.
    v_xid     xid8 := pg_current_xact_id();
    v_queue   record;
    v_id      bigint;
begin
    if v_tenant is null then
        v_tenant := llm._job_tenant();
    end if;
    if p_payload is null then
        raise exception 'a job of queue % has no payload', coalesce(p_queue, 'null')
            using errcode = 'null_value_not_allowed',
                  hint = 'Give {} when there is nothing to say.';
    end if;
    select q.priorities, q.notify into v_queue from llm.queues q where q.tenant_id = v_tenant and q.queue = p_queue;
    if not found or p_priority is null or p_priority <> all (v_queue.priorities) then
        v_queue.notify := llm._open_queue(v_tenant, p_queue, p_priority);
    end if;

    if p_delay is null and p_group is null and p_dedup_key is null and p_dedup_for is null and p_max_attempts is null and p_run_at is null then
        v_id := nextval('llm.jobs_id_seq'::regclass);
        insert into llm.jobs (tenant_id, id, queue, lane, place, priority, user_id, payload)
        values (v_tenant, v_id, p_queue, p_priority, v_id, p_priority, v_user_id, p_payload);
    else
        v_id := llm._enqueue(
            v_tenant, nextval('llm.jobs_id_seq'::regclass), p_queue, p_payload, p_priority, p_delay, p_group, p_dedup_key, p_dedup_for,
            p_max_attempts, p_run_at, v_user_id
        );
        if p_group is not null then
            perform llm._settle_groups(v_tenant, p_queue, array[p_group]);
        end if;
    end if;
    if v_queue.notify then
        perform llm._wake_workers(v_tenant, p_queue, v_id);
    end if;
    return v_id;
end
$$;

alter function llm.enqueue(text, jsonb, integer, interval, text, text, interval, integer, timestamptz, uuid) owner to llm_owner;

comment on function llm.enqueue(text, jsonb, integer, interval, text, text, interval, integer, timestamptz, uuid) is
'Puts a job into a queue of the current tenant, which is made if there is none; it is there when the transaction commits. p_priority: -100 to 100, the
highest first; p_delay, or p_run_at: not before; p_group: of one group only so many run at a time, in order; p_dedup_key: while a job with this key is
not done, and for p_dedup_for from now on, no other is taken; p_max_attempts: other than the queue''s; p_user_id: whom the payload concerns, by
default whom llm.set_user() told. Returns the id of the job; of the one that was there, when the key was taken. Errors: invalid_parameter_value,
null_value_not_allowed, object_not_in_prerequisite_state when no tenant is set.';


create function llm._enqueue(
    p_tenant       text,
    p_id           bigint,
    p_queue        text,
    p_payload      jsonb,
    p_priority     integer,
    p_delay        interval,
    p_group        text,
    p_dedup_key    text,
    p_dedup_for    interval,
    p_max_attempts integer,
    p_run_at       timestamptz,
    p_user_id      uuid
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_now   timestamptz := clock_timestamp();
    v_due   timestamptz := coalesce(p_run_at, v_now + p_delay);
    v_old   bigint;
    v_lane  integer;
begin
    if p_delay is not null and p_run_at is not null or not isfinite(coalesce(v_due, v_now))
        or octet_length(p_group) not between 1 and 200 or octet_length(p_dedup_key) not between 1 and 200
        or p_dedup_for is not null and (p_dedup_key is null or p_dedup_for <= interval '0' or p_dedup_for > interval '366 days')
        or p_max_attempts not between 1 and 1000
    then
        raise exception 'a job of queue % cannot be like this: delay %, at %, % and % bytes of group and key, key held for %, % attempts', p_queue,
            coalesce(p_delay::text, 'none'), coalesce(p_run_at::text, 'once'), coalesce(octet_length(p_group)::text, 'no'),
            coalesce(octet_length(p_dedup_key)::text, 'no'), coalesce(p_dedup_for::text, 'the job'), coalesce(p_max_attempts::text, 'as many')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give p_delay or p_run_at; group and key of 1 to 200 bytes; p_dedup_for with a key, up to 366 days; 1 to 1,000 attempts.';
    end if;
    while p_dedup_key is not null loop
        insert into llm.job_keys as k (tenant_id, queue, dedup_key, job_id, held_until)
        values (p_tenant, p_queue, p_dedup_key, p_id, v_now + p_dedup_for)
        on conflict (tenant_id, queue, dedup_key) do update
            set job_id = excluded.job_id,
                free_at = excluded.free_at,
                held_until = excluded.held_until
            where k.free_at <= v_now;
        exit when found;
        select k.job_id into v_old from llm.job_keys k where k.tenant_id = p_tenant and k.queue = p_queue and k.dedup_key = p_dedup_key;
        -- None when it was done meanwhile.
        if found then
            return v_old;
        end if;
    end loop;

    v_lane := case when v_due > v_now then 1000 when p_group is not null then 1001 else p_priority end;
    insert into llm.jobs (
        tenant_id, id, queue, lane, place, priority, max_attempts, due_at, due_set_at, user_id, group_key, dedup_key, payload
    )
    values (
        p_tenant, p_id, p_queue, v_lane, case when v_lane = 1000 then extract(epoch from v_due) * 1000000 else p_id end,
        p_priority, p_max_attempts, v_due, case when p_delay is not null then v_now end, p_user_id, p_group, p_dedup_key, p_payload
    );
    if v_lane = 1001 then
        insert into llm.job_turns (tenant_id, queue, group_key, job_id) values (p_tenant, p_queue, p_group, p_id);
    end if;
    return p_id;
end
$$;

comment on function llm._enqueue(text, bigint, text, jsonb, integer, interval, text, text, interval, integer, timestamptz, uuid) is
'The part of llm.enqueue() that knows delays, groups and keys. Whoever calls it settles the groups then. Returns p_id, or the id of the job that has
the key.';


-- security definer: as llm.enqueue().
create function llm.enqueue_many(
    p_queue      text,
    p_payloads   jsonb[],
    p_priority   integer default 0,
    p_delay      interval default null,
    p_groups     text[] default null,
    p_dedup_keys text[] default null,
    p_user_ids   uuid[] default null
)
    returns bigint[]
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._job_tenant();
    v_user_id uuid := llm.current_user_id();
    v_xid     xid8 := pg_current_xact_id();
    v_count   integer := coalesce(cardinality(p_payloads), 0);
    v_ids     bigint[];
    v_queue   record;
    v_given   record;
begin
    if cardinality(p_groups) <> v_count or cardinality(p_dedup_keys) <> v_count or cardinality(p_user_ids) <> v_count then
        raise exception 'there are % payloads, and another number of groups, keys or users', v_count
            using errcode = 'array_subscript_error',
                  hint = 'Arrays are of the same length, null for what a job has not; or left out.';
    end if;
    if array_position(p_payloads, null) is not null then
        raise exception 'a job of queue % has no payload', coalesce(p_queue, 'null')
            using errcode = 'null_value_not_allowed',
                  hint = 'Give {} when there is nothing to say.';
    end if;
    select q.priorities, q.notify into v_queue from llm.queues q where q.tenant_id = v_tenant and q.queue = p_queue;
    if not found or p_priority is null or p_priority <> all (v_queue.priorities) then
        v_queue.notify := llm._open_queue(v_tenant, p_queue, p_priority);
    end if;
    v_ids := array(select nextval('llm.jobs_id_seq'::regclass) from generate_series(1, v_count));

    if p_dedup_keys is null and p_delay is null and p_groups is null then
        insert into llm.jobs (tenant_id, id, queue, lane, place, priority, user_id, payload)
        select v_tenant, g.id, p_queue, p_priority, g.id, p_priority, coalesce(g.user_id, v_user_id), g.payload
        from unnest(v_ids, p_payloads, p_user_ids) g (id, payload, user_id);
    else
        -- In the order of their keys, so that two batches wait for each other instead of deadlocking.
        for v_given in
            select g.*
            from unnest(v_ids, p_payloads, p_groups, p_dedup_keys, p_user_ids) with ordinality
                g (id, payload, group_key, dedup_key, user_id, number)
            order by g.dedup_key collate "C", g.number
        loop
            v_ids[v_given.number] := llm._enqueue(
                v_tenant, v_given.id, p_queue, v_given.payload, p_priority, p_delay, v_given.group_key, v_given.dedup_key, null::interval,
                null::integer, null::timestamptz, coalesce(v_given.user_id, v_user_id)
            );
        end loop;
    end if;
    if p_groups is not null then
        perform llm._settle_groups(v_tenant, p_queue, p_groups);
    end if;
    if v_queue.notify and v_count > 0 then
        perform llm._wake_workers(v_tenant, p_queue, v_ids[1]);
    end if;
    return v_ids;
end
$$;

alter function llm.enqueue_many(text, jsonb[], integer, interval, text[], text[], uuid[]) owner to llm_owner;

comment on function llm.enqueue_many(text, jsonb[], integer, interval, text[], text[], uuid[]) is
'llm.enqueue() for many jobs, all or none. p_groups, p_dedup_keys, p_user_ids: as many as p_payloads, or left out; the rest is the same for all.
Returns their ids, in the order of the payloads. Errors: as there, and array_subscript_error.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_queue_channel', 'queue_channel'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_job_state'
);

select llm._grant_execute(
    array['llm_owner'],
    '_job_tenant', '_open_queue', '_enqueue', '_wake_workers'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'set_queue', 'enqueue', 'enqueue_many'
);
